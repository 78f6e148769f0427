"""Ten thousand mutated headers: each is read or refused with BadGguf, in little time and memory.

The cases follow from SEED alone; a failure names the case, and `mutant(SEED, case)` makes it again.
"""

import io
import random
import struct
import time
import tracemalloc
from functools import cache

import pytest

from ggufdeploy.errors import BadGguf
from ggufdeploy.gguf.cursor import Cursor
from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import read_header, read_prefix
from ggufdeploy.gguf.shape import PREFIX_BYTES, estimate_info
from tests.gguf_writer import (
    MIXTRAL_8X22B,
    TINY_GEMMA,
    TINY_LLAMA,
    TINY_MIXTRAL,
    GgufBuilder,
    Kind,
    build_model,
)

SEED = 20_26
CASES = 10_000
LONGEST_S = 1.0
LARGEST_BYTES = 8 << 20
EXTREMES = (
    0,
    1,
    2,
    31,
    255,
    4096,
    65_536,
    1 << 24,
    1 << 31,
    (1 << 32) - 1,
    1 << 33,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)


def nested():
    """Arrays of arrays, of every number type, empty, long; odd alignment; keys in unusual order."""
    builder = GgufBuilder("llama", alignment=64).kv("tokenizer.ggml.tokens", ["a", "bc", "", "ü" * 300])
    builder.kv("x.nested", [[1, 2], [3], [4, 5, 6]], item=Kind.ARRAY).kv(
        "x.words", [["a"], ["b", "c"]], item=Kind.ARRAY
    )
    for kind in (Kind.U8, Kind.I16, Kind.F32, Kind.U64, Kind.F64, Kind.BOOL):
        builder.kv(f"x.{kind.name.lower()}", [1, 0, 1], item=kind).kv(f"x.many.{kind.value}", [0] * 5000, item=kind)
    builder.kv("llama.block_count", 2).kv("llama.embedding_length", 64).kv("llama.attention.head_count", [4, 4])
    builder.kv("llama.attention.head_count_kv", [2, 0]).kv("general.name", "nested")
    return builder.tensor("token_embd.weight", (64, 4), "Q8_0").tensor("blk.1.attn_q.weight", (64, 64), "Q4_0")


@cache
def bases():
    """Return the shards of every model to mutate, as headers."""
    models = [[nested().header()]]
    for shape, quantization, shards in (
        (TINY_LLAMA, "Q8_0", 1), (TINY_MIXTRAL, "Q4_K_M", 3), (TINY_GEMMA, "F16", 2), (MIXTRAL_8X22B, "Q4_K_S", 4),
    ):  # fmt: skip
        models.append([shard.builder.header() for shard in build_model(shape, quantization, shards=shards)])
    return models


@cache
def fields(base):
    """Return the offsets of all lengths, counts, types and descriptions: where the parser takes a value."""
    found = []
    take = Cursor.take

    def recording(self, n, what):
        found.append(self.position)
        return take(self, n, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cursor, "take", recording)
        read_header(io.BytesIO(base), source="base")
    return found


def mutate(data, choose, base):
    """Return data with one change, of a kind drawn by `choose`."""
    at = choose.choice(fields(base)) if choose.random() < 0.7 else choose.randrange(len(data) + 1)
    at = min(at, len(data))
    kind = choose.randrange(10)
    if kind == 0:
        at = choose.randrange(max(len(data), 1))
        data[at : at + 1] = bytes([data[at] ^ 1 << choose.randrange(8)]) if data else b""
    elif kind == 1:
        data[at : at + 8] = struct.pack("<Q", choose.choice(EXTREMES))
    elif kind == 2:
        data[at : at + 4] = struct.pack("<I", choose.choice([*range(16), 39, 255, 1 << 16, (1 << 32) - 1]))
    elif kind == 3:
        data[at : at + 8] = struct.pack(
            "<Q", (int.from_bytes(data[at : at + 8], "little") + choose.choice((-1, 1, 8))) % (1 << 64)
        )
    elif kind == 4:
        del data[choose.randrange(len(data) + 1) :]
    elif kind == 5:
        del data[at : at + choose.randrange(1, 64)]
    elif kind == 6:
        data[at:at] = choose.randbytes(choose.randrange(1, 64))
    elif kind == 7:
        start = choose.randrange(len(data) + 1)
        data[at:at] = data[start : start + choose.randrange(1, 4096)]
    elif kind == 8:
        other = choose.choice(choose.choice(bases()))
        start = choose.choice(fields(other))
        data[at : at + choose.randrange(200)] = other[start : start + choose.randrange(1, 4096)]
    else:
        count = choose.choice((8, 16))
        data[count : count + 8] = struct.pack("<Q", choose.choice([*EXTREMES, *range(40)]))
    return data


def mutant(seed, case):
    """Return (headers of all shards, one of them mutated; its index; the size the file is said to have)."""
    choose = random.Random(seed * CASES + case)
    # The real shape is 50 times as long as the tiny ones, and nearly all of it one vocabulary.
    shards = list(choose.choices(bases(), weights=(6, 4, 4, 4, 1))[0])
    index = choose.randrange(len(shards))
    data = bytearray(shards[index])
    for _ in range(choose.choice((1, 1, 1, 2, 3, 6))):
        data = mutate(data, choose, shards[index])
    shards[index] = bytes(data)
    return shards, index, choose.choice((None, None, 1 << 40, len(data), 1000, 0))


@cache
def intact(base):
    """Return the header of a shard that was not mutated."""
    return read_header(io.BytesIO(base), source="m.gguf")


def read_all(shards, index, file_bytes):
    """Read everything that is read of a hostile file; tell whether all of it was accepted."""
    accepted = True
    try:
        prefix = read_prefix(io.BytesIO(shards[index][:PREFIX_BYTES]), source="m.gguf", file_bytes=file_bytes)
        estimate_info(prefix, 1 << 33)
    except BadGguf:
        accepted = False
    try:
        mutated = read_header(io.BytesIO(shards[index]), source="m.gguf", file_bytes=file_bytes)
        model_info([mutated if number == index else intact(shard) for number, shard in enumerate(shards)])
    except BadGguf:
        accepted = False
    return accepted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_mutated_header_is_read_or_refused_in_little_time_and_memory():
    accepted = 0
    tracemalloc.start()
    try:
        for case in range(CASES):
            shards, index, file_bytes = mutant(SEED, case)
            tracemalloc.reset_peak()
            before, begun = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                accepted += read_all(shards, index, file_bytes)
            except Exception as error:
                raise AssertionError(f"case {case} of seed {SEED} raised {error!r}") from error
            took_s, took_bytes = time.process_time() - begun, tracemalloc.get_traced_memory()[1] - before
            assert took_s < LONGEST_S, f"case {case} of seed {SEED} took {took_s:.1f} s"
            assert took_bytes < LARGEST_BYTES, f"case {case} of seed {SEED} took {took_bytes:,} bytes"
    finally:
        tracemalloc.stop()
    assert CASES // 100 < accepted < CASES // 2  # mutations that always or never break would test little
