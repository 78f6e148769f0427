"""Configurations of the engine for the demo model and for the fake."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ggufdeploy.engine.request import EngineConfig


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
