"""Every test runs in a sealed home: nothing of the developer is used, and output looks the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ggufdeploy.settings import Settings
from tests import demo

_CLEARED = ("GGUFDEPLOY_", "HF_", "HUGGING_FACE_", "CUDA_", "NVIDIA_", "FORCE_COLOR", "CLICOLOR")


@pytest.fixture(autouse=True)
def sealed_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every directory and the network's token at a fresh place; return it."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(_CLEARED):
            monkeypatch.delenv(name)
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"GGUFDEPLOY_{name}_DIR", str(home / name.lower()))
    for name, value in {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "HF_HOME": str(home / "huggingface"),
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "TERM": "xterm",
    }.items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture
def settings(sealed_home: Path) -> Settings:
    """What the program itself would read from the sealed environment."""
    return Settings.from_environment(os.environ)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Return the path of the demo model, a real chat model of 98 MB."""
    return demo.demo_model()
