"""`ggufdeploy run smollm2-135m` as a process of its own, and the openai SDK in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest

from tests.demo import CACHE

START_S = 180.0


@dataclass(frozen=True)
class Deployment:
    """A running `ggufdeploy run`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self, **options: object) -> openai.OpenAI:
        """The SDK, as a user would set it up."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60, **options)

    def workers(self) -> list[psutil.Process]:
        """The processes it started."""
        return psutil.Process(self.process.pid).children(recursive=True)


def environment(home: Path) -> dict[str, str]:
    """A sealed home, but the shared cache: the demo model is 98 MB."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GGUFDEPLOY_", "HF_"))}
    return kept | {
        "HOME": str(home),
        "GGUFDEPLOY_CACHE_DIR": str(CACHE),
        "GGUFDEPLOY_CONFIG_DIR": str(home / "config"),
        "GGUFDEPLOY_STATE_DIR": str(home / "state"),
        "HF_HOME": str(home / "huggingface"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there: the demo model needs no Hub
        "PYTHONWARNINGS": "error",
    }


@contextlib.contextmanager
def deployed(home: Path, *args: str) -> Iterator[Deployment]:
    """Run `ggufdeploy run ARGS --port 0` until the block ends; then it must stop with exit code 0 on SIGTERM."""
    ready, log = home / "ready.json", home / "log.txt"
    command = [sys.executable, "-m", "ggufdeploy", "run", *args, "--port", "0", "--ready-file", str(ready)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment(home)
        )
    try:
        deadline = time.monotonic() + START_S
        while not ready.exists():
            assert process.poll() is None, f"it ended with {process.returncode}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"not ready after {START_S} s:\n{log.read_text()}"
            time.sleep(0.05)
        yield Deployment(process, json.loads(ready.read_text())["url"], log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One deployment of the demo model for all tests that do not end it: 8 slots, 4,096 tokens."""
    with deployed(tmp_path_factory.mktemp("home"), "smollm2-135m", "--ctx", "4096", "--slots", "8") as running:
        yield running


@pytest.fixture
def client(deployment: Deployment) -> Iterator[openai.OpenAI]:
    """The SDK, closed afterwards."""
    with deployment.client() as client:
        yield client
