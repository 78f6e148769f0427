"""The quick look at the RAM's bandwidth, kept for a day."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from ggufdeploy.deploy import bandwidth
from ggufdeploy.deploy.bandwidth import ram_bandwidth_bytes_per_s
from ggufdeploy.units import GIB
from tests.planner.models import machine

HOST = machine(ram_bytes=64 * GIB)


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Each measurement gives a figure of its own."""
    figures = []

    def measure() -> int:
        figures.append(1000 + len(figures))
        return figures[-1]

    monkeypatch.setattr(bandwidth, "measure_ram_bandwidth_bytes_per_s", measure)
    return figures


def test_a_figure_is_measured_once_a_day_and_machine(tmp_path):
    folder = tmp_path / "cache"
    assert [ram_bandwidth_bytes_per_s(HOST, folder) for _ in range(3)] == [1000, 1000, 1000]
    assert ram_bandwidth_bytes_per_s(replace(HOST, cpu_name="another"), folder) == 1001
    (path,) = [path for path in folder.iterdir() if path.read_text() == "1000"]
    os.utime(path, times=(time.time() - 90_000,) * 2)
    assert ram_bandwidth_bytes_per_s(HOST, folder) == 1002


@pytest.mark.parametrize("text", ["", "fast", "\xff"])
def test_a_damaged_figure_is_measured_again(tmp_path, text):
    ram_bandwidth_bytes_per_s(HOST, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(text, encoding="latin-1")
    assert ram_bandwidth_bytes_per_s(HOST, tmp_path) == 1001


def test_nothing_is_kept_without_a_folder_or_where_it_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert [ram_bandwidth_bytes_per_s(HOST, place) for place in (None, None, blocked, blocked)] == [
        1000, 1001, 1002, 1003,
    ]  # fmt: skip
