"""A loopback Hub with the real shape of Mixtral 8x22B, and the command line run as users run it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ggufdeploy.cli import main
from tests.gguf_writer import write_mixtral_8x22b
from tests.standin_hub import StandinHub

REPO = "MaziyarPanahi/Mixtral-8x22B-Instruct-v0.1-GGUF"
"""Quantizations and shard counts as that repository has them; F16 stands for its fp16."""
SHARDS = {
    "Q2_K": 3, "Q3_K_S": 3, "Q3_K_M": 2, "Q3_K_L": 2, "IQ4_XS": 2, "Q4_K_S": 2, "Q4_K_M": 2, "Q5_K_S": 4, "Q5_K_M": 4,
    "Q6_K": 4, "Q8_0": 4, "F16": 7,
}  # fmt: skip


@pytest.fixture(scope="session")
def mixtral_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files: true headers, tensors as holes."""
    root = tmp_path_factory.mktemp("hub")
    folder = root / REPO
    folder.mkdir(parents=True)
    for quantization, shards in SHARDS.items():
        write_mixtral_8x22b(folder, quantization, shards=shards)
    return root


@pytest.fixture
def mixtral_hub(mixtral_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinHub]:
    """The Hub that serves it, as HF_ENDPOINT."""
    with StandinHub(mixtral_root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout as one JSON document."""
        return json.loads(self.stdout)

    @property
    def error(self) -> dict[str, Any]:
        """The JSON error line on stderr."""
        return json.loads(self.stderr.splitlines()[-1])["error"]


def ggufdeploy(*args: str) -> Result:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(args))
    return Result(code, out.getvalue(), err.getvalue())
