"""Two thousand broken headers through what `plan` does with them: each ends in one sentence or in an answer.

The header check comes first (BadGguf), then the dry run's child (EngineError; DryRunDied when it crashes, hangs or
wants too much). What is counted is printed with `-s`.
"""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from ggufdeploy.engine import dryrun
from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.errors import BadGguf, DryRunDied, EngineError, GgufdeployError, NoDryRun
from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import read_header
from ggufdeploy.units import GIB
from tests.engine.test_dryrun import config
from tests.gguf_writer import build_model
from tests.gguf_zoo import SMALL

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MUTATIONS = int(os.environ.get("GGUFDEPLOY_TEST_MUTATIONS", "2000"))
_INTERESTING = (0, 1, 2, 3, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def mutate(header: bytes, rng: random.Random) -> bytes:
    """Return the header with one to three changes: bytes, 32-bit numbers at the start, cuts, repeats.

    Most hit the architecture's keys, which stand in front of the vocabulary, or the tensor table behind it.
    """
    content = bytearray(header)
    for _ in range(rng.randint(1, 3)):
        near = rng.random()
        at = rng.randrange(24, 1600) if near < 0.5 else rng.randrange(max(len(content) - 3000, 0), len(content) - 8)
        kind = rng.randrange(5)
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            content[at : at + 4] = rng.choice(_INTERESTING).to_bytes(4, "little")
        elif kind == 2:
            content[at : at + 8] = rng.choice((0, 1, 1 << 20, 1 << 32, (1 << 63) - 1)).to_bytes(8, "little")
        elif kind == 3:
            del content[at : at + rng.randrange(1, 5)]
        else:
            content[at:at] = content[at : at + rng.randrange(1, 9)]
    return bytes(content)


def numbers(header: bytes, architecture: str, rng: random.Random) -> bytes:
    """Return the header with one of the architecture's 32-bit keys set to an odd value: what a check cannot forbid."""
    content = bytearray(header)
    marker = f"{architecture}.".encode()
    places = []
    at = content.find(marker)
    while 0 <= at < 4000:
        length = int.from_bytes(content[at - 8 : at], "little")
        value = at + length
        if length < 80 and content[value : value + 4] == b"\x04\0\0\0":  # GGUF's type 4: an unsigned 32-bit number
            places.append(value + 4)
        at = content.find(marker, at + 1)
    if places:
        place, odd = rng.choice(places), (*_INTERESTING, rng.randrange(1, 300), rng.randrange(1, 5000))
        content[place : place + 4] = rng.choice(odd).to_bytes(4, "little")
    return bytes(content)


def plan(content: bytes, file_bytes: int, path: Path, dry_run: DryRun) -> GgufdeployError | None:
    """Check the header and ask the engine, as planning does; return what was raised."""
    try:
        model_info([read_header(io.BytesIO(content), source="m.gguf", file_bytes=file_bytes)])
        with path.open("wb") as file:
            file.write(content)
            file.truncate(file_bytes)
        dry_run.ask(config(path))
    except GgufdeployError as error:
        return error
    return None


def outcome(error: GgufdeployError | None) -> str:
    """Name what became of a file, and check that a user can be told in one sentence."""
    if error is None:
        return "answered"
    assert error.message
    assert "\n" not in error.message
    if isinstance(error, BadGguf):
        return "refused by the header check"
    assert error.hint
    if isinstance(error, DryRunDied):
        return "ended the dry run's process: " + error.message.partition("model ")[2].split(":")[0]
    assert isinstance(error, EngineError)
    assert not isinstance(error, NoDryRun), error.message
    return "refused by llama.cpp"


def test_every_broken_header_has_a_clear_outcome_and_the_parent_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(dryrun, "TIMEOUT_S", 10.0)
    monkeypatch.setattr(dryrun, "MEMORY_LIMIT_BYTES", GIB)
    rng, outcomes = random.Random(20260101), Counter()
    builders = [(blueprint, build_model(blueprint, "F16")[0].builder) for blueprint in SMALL]
    shards = [(blueprint, builder.header(), builder.file_bytes) for blueprint, builder in builders]
    resident = dryrun._resident_bytes(os.getpid())
    with DryRun() as dry_run:
        for index in range(MUTATIONS):
            blueprint, header, file_bytes = shards[index % len(shards)]
            changed = mutate(header, rng) if index % 2 else numbers(header, blueprint.architecture, rng)
            size = file_bytes + len(changed) - len(header)
            outcomes[outcome(plan(changed, size, tmp_path / "m.gguf", dry_run))] += 1
        _, whole, file_bytes = shards[0]
        assert plan(whole, file_bytes, tmp_path / "m.gguf", dry_run) is None
    print("\n", *(f"{count:5} {what}\n" for what, count in outcomes.most_common()))
    assert sum(outcomes.values()) == MUTATIONS
    assert {"refused by the header check", "refused by llama.cpp", "answered"} <= set(outcomes)
    assert dryrun._resident_bytes(os.getpid()) < resident + GIB // 4
