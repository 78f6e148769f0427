"""A stand-in Hub with one small repository, and a client for it that does not wait long."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufdeploy.hub.retry import RetryPolicy
from ggufdeploy.hub.session import HubClient
from ggufdeploy.settings import Settings
from tests.standin_hub import StandinHub

REPO = "acme/tiny-GGUF"
QUICK = RetryPolicy(tries=4, first_wait_s=0.001, longest_wait_s=0.002, patience_s=1.0)
WEIGHTS = random.Random(7).randbytes(3_000_000)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandinHub]:
    with StandinHub(tmp_path / "hub") as hub:
        folder = hub.root / REPO
        folder.mkdir(parents=True)
        (folder / "tiny.Q8_0.gguf").write_bytes(WEIGHTS)
        for shard in (1, 2):
            (folder / f"tiny.F16-0000{shard}-of-00002.gguf").write_bytes(WEIGHTS[: 1_000_000 * shard])
        (folder / "README.md").write_text("# tiny\n")
        yield hub


@pytest.fixture
def hub_settings(hub: StandinHub, settings: Settings) -> Settings:
    return dataclasses.replace(settings, hf_endpoint=hub.url)


@pytest.fixture
def client(hub_settings: Settings) -> HubClient:
    return HubClient(hub_settings, questions=QUICK, downloads=QUICK)
