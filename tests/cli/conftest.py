"""Command lines run in this process, as the console script would run them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ggufdeploy.cli import main
from tests.gguf_writer import TINY_LLAMA, write_model
from tests.standin_hub import StandinHub

REPO = "acme/tiny-GGUF"


@dataclass(frozen=True)
class Done:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The one JSON line on stderr."""
        (line,) = self.err.splitlines()
        return json.loads(line)["error"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `ggufdeploy ARGS`."""

    def run_(*args: str) -> Done:
        capsys.readouterr()
        code = main(list(args))
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run_


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinHub]:
    """A Hub on loopback with one repository of three quantizations, one of them in two shards."""
    with StandinHub(tmp_path / "hub") as hub:
        folder = hub.root / REPO
        write_model(folder / "tiny.Q8_0.gguf", TINY_LLAMA, "Q8_0")
        write_model(folder / "tiny.Q4_0.gguf", TINY_LLAMA, "Q4_0")
        write_model(folder / "tiny.F16.gguf", TINY_LLAMA, "F16", shards=2)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
