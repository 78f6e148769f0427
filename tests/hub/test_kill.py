"""`ggufdeploy pull` killed again and again, as a user's machine might: nothing is lost but what was on its way."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.layout import RepoCache
from ggufdeploy.hub.ranges import Fanout
from ggufdeploy.hub.sidecar import read_sidecar
from tests.standin_hub import StandinHub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REPO, NAME, SIZE = "acme/big-GGUF", "big.Q4_K_M.gguf", 192 << 20
KILLS = 10


def pull(hub, settings):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(settings.hf_cache_dir)}
    command = [sys.executable, "-m", "ggufdeploy", "pull", f"{REPO}:Q4_K_M", "-q"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def missing(interval_list, size):
    """Return the gaps between intervals."""
    edges = [0, *(edge for interval in interval_list for edge in interval), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def union(intervals):
    covered = []
    for start, end in sorted(intervals):
        if covered and start <= covered[-1][1]:
            covered[-1] = (covered[-1][0], max(end, covered[-1][1]))
        else:
            covered.append((start, end))
    return covered


def asked(hub):
    ranges = [request.range for request in hub.requests if request.server == "cdn" and request.range]
    pairs = (each.removeprefix("bytes=").split("-") for each in ranges)
    return union((int(start), int(end) + 1) for start, end in pairs)


def test_ten_kills_at_random_moments_cost_less_than_a_range_per_connection(tmp_path, settings):
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    contents = random.Random(5).randbytes(SIZE)
    (folder / NAME).write_bytes(contents)
    sha256 = hashlib.sha256(contents).hexdigest()
    file = GgufFile(NAME, SIZE, sha256)
    cache = RepoCache(settings.hf_cache_dir, REPO)
    dice = random.Random()
    with StandinHub(tmp_path / "hub", rate_bytes_per_s=2_500_000) as hub:
        lost = []
        for _ in range(KILLS):
            seen = len(hub.requests)
            with pull(hub, settings) as process:
                while not any(request.server == "cdn" for request in hub.requests[seen:]):
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.01)
                time.sleep(dice.uniform(0.0, 1.5))
                process.send_signal(signal.SIGKILL)
            note = read_sidecar(cache.note(file), SIZE)
            on_disk = cache.partial(file).stat().st_blocks * 512
            lost.append(on_disk - (note.trusted_bytes if note else 0))
        note = read_sidecar(cache.note(file), SIZE)
        assert note is not None
        assert 0 < note.trusted_bytes < SIZE
        hub.requests.clear()
        hub.rate_bytes_per_s = None
        with pull(hub, settings) as process:
            out, err = process.communicate()
        assert process.returncode == 0, err
    assert max(lost) < Fanout().connections * Fanout().range_bytes
    assert asked(hub) == union(missing(note.trusted, SIZE))
    path = cache.snapshots / note.commit / NAME
    assert out.strip() == str(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert {each.name for each in cache.blobs.iterdir()} - {f"{cache.note(file).name}.new"} == {sha256}
