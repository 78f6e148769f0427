"""Whatever the bytes are, the only exception is BadGguf."""

import contextlib
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ggufdeploy.errors import BadGguf
from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import read_header, read_prefix
from ggufdeploy.gguf.shape import estimate_info
from tests.gguf_writer import TINY_GEMMA, TINY_LLAMA, TINY_MIXTRAL, GgufBuilder, Kind, build_model

TINY = GgufBuilder("llama", alignment=64)
TINY.kv("general.name", "ü").kv("llama.block_count", 1).kv("llama.embedding_length", 32)
TINY.kv("llama.attention.head_count", [4]).kv("tokenizer.ggml.tokens", ["a", "bc", ""])
TINY.tensor("token_embd.weight", (32, 3), "Q8_0").tensor("blk.0.attn_q.weight", (32, 32), "Q4_0")
BASES = [TINY.header(), *(build_model(s, "Q8_0")[0].builder.header() for s in (TINY_LLAMA, TINY_MIXTRAL, TINY_GEMMA))]

edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "u64"]),
        st.integers(0, 6000),
        st.integers(0, 255) | st.sampled_from([(1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 32, 1 << 24]),
    ),
    max_size=6,
)


def mutate(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    content = bytearray(data)
    for kind, position, value in changes:
        at = position % (len(content) + 1)
        if kind == "set":
            content[at : at + 1] = bytes([value & 255])
        elif kind == "insert":
            content[at:at] = bytes([value & 255])
        elif kind == "delete":
            del content[at : at + 1 + value % 16]
        else:
            content[at : at + 8] = value.to_bytes(8, "little")
    return bytes(content)


def survive(data: bytes, file_bytes: int | None) -> None:
    with contextlib.suppress(BadGguf):
        model_info([read_header(io.BytesIO(data), source="m.gguf", file_bytes=file_bytes)])
    with contextlib.suppress(BadGguf):
        estimate_info(read_prefix(io.BytesIO(data), source="m.gguf", file_bytes=file_bytes), 1 << 33)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, database=None)
@given(st.sampled_from(BASES), edits, st.sampled_from([None, 0, 1000, 1 << 40]))
def test_mutated_headers_only_raise_bad_gguf(base, changes, file_bytes):
    survive(mutate(base, changes), file_bytes)


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=300))
@example(b"GGUF")
def test_arbitrary_bytes_behind_the_magic_only_raise_bad_gguf(data):
    survive(data, None)
    survive(b"GGUF\x03\0\0\0" + data, None)


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, 1 << 70), st.sampled_from(["block_count", "embedding_length", "attention.head_count"]))
def test_any_integer_as_a_hyperparameter_only_raises_bad_gguf(value, key):
    kind = Kind.U32 if value < 1 << 32 else Kind.U64
    builder = GgufBuilder("llama").kv(f"llama.{key}", value % (1 << 64), kind).tensor("token_embd.weight", (32, 3))
    for other in {"block_count", "embedding_length", "attention.head_count"} - {key}:
        builder.kv(f"llama.{other}", 2)
    survive(builder.kv("tokenizer.ggml.tokens", ["a", "b", "c"]).header(), None)
