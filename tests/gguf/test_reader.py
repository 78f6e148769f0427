"""Headers that are read, and headers that are refused before their lengths are believed."""

import io
import struct
import tracemalloc

import pytest

from ggufdeploy.errors import BadGguf, HeaderTruncated, NotFound
from ggufdeploy.gguf.cursor import MAX_HEADER_BYTES
from ggufdeploy.gguf.reader import Header, SkippedArray, read_header, read_header_file
from tests.gguf_writer import GgufBuilder, Kind


def parse(data: bytes, file_bytes: int | None = None) -> Header:
    return read_header(io.BytesIO(data), source="m.gguf", file_bytes=file_bytes)


def refused(data: bytes, file_bytes: int | None = None) -> str:
    """Return the reason of the BadGguf that is not just "more bytes are needed"."""
    with pytest.raises(BadGguf) as caught:
        parse(data, file_bytes)
    assert not isinstance(caught.value, HeaderTruncated), caught.value.reason
    return caught.value.reason


def small() -> GgufBuilder:
    return GgufBuilder("llama").kv("llama.block_count", 2).tensor("a", (64, 3), "Q8_0").tensor("b", (8,))


class Grudging:
    """A stream that returns one byte per read, as a slow socket may."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, n: int) -> bytes:
        return self._stream.read(min(n, 1))


class Endless:
    """A header's start, then the same bytes for ever; refuses reads that are larger than a careful reader makes."""

    def __init__(self, start: bytes, then: bytes = b"\0") -> None:
        self._start = io.BytesIO(start)
        self._then = then * (65_536 // len(then))
        self.served_bytes = 0

    def read(self, n: int) -> bytes:
        assert n <= 1 << 20, f"{n} bytes were read in one go"
        part = self._start.read(n) or self._then
        self.served_bytes += len(part)
        return part


def test_every_value_type_is_read_back():
    values = {
        Kind.U8: 255, Kind.I8: -128, Kind.U16: 65535, Kind.I16: -2, Kind.U32: 4294967295, Kind.I32: -3, Kind.F32: 0.5,
        Kind.BOOL: True, Kind.STRING: "Größe", Kind.U64: 1 << 63, Kind.I64: -(1 << 63), Kind.F64: 0.1,
    }  # fmt: skip
    builder = GgufBuilder("llama")
    for kind, value in values.items():
        builder.kv(f"x.{kind.name}", value, kind)
    metadata = parse(builder.to_bytes()).metadata
    assert {k: metadata[f"x.{k.name}"] for k in values} == values
    assert metadata["x.BOOL"] is True


def test_small_number_arrays_are_kept_and_strings_only_counted():
    builder = GgufBuilder("llama").kv("heads", [8, 8, 0, 8]).kv("flags", [True, False]).kv("words", ["a", "b"])
    builder.kv("many", [0.5] * 4097).kv("empty", [])
    metadata = parse(builder.to_bytes()).metadata
    assert metadata["heads"] == (8, 8, 0, 8)
    assert metadata["flags"] == (True, False)
    assert metadata["words"] == SkippedArray(2)
    assert metadata["many"] == SkippedArray(4097)
    assert metadata["empty"] == ()


def test_tensors_have_shape_type_offset_and_bytes():
    header = parse(small().to_bytes())
    a, b = header.tensors
    assert (a.name, a.shape, a.type.name, a.offset, a.n_bytes) == ("a", (64, 3), "Q8_0", 0, 204)
    assert (b.name, b.shape, b.type.name, b.offset, b.n_bytes) == ("b", (8,), "F32", 224, 32)
    assert header.tensor_bytes == 236
    assert header.data_offset % 32 == 0
    assert header.data_offset == len(small().header())


def test_alignment_moves_the_data():
    builder = GgufBuilder("llama", alignment=256).tensor("a", (8,)).tensor("b", (8,))
    header = parse(builder.to_bytes())
    assert header.alignment == 256
    assert header.data_offset % 256 == 0
    assert header.tensors[1].offset == 256


def test_version_2_is_read():
    assert parse(GgufBuilder("llama", version=2).to_bytes()).version == 2


def test_a_stream_may_return_less_than_asked_for():
    data = small().kv("words", ["ab" * n for n in range(50)]).to_bytes()
    assert read_header(Grudging(data), source="m.gguf") == parse(data)


def test_a_vocabulary_across_many_buffers_is_skipped_exactly():
    words = ["x" * (n % 91) for n in range(20_000)] + ["y" * 200_000] + ["z"] * 10
    header = parse(GgufBuilder("llama").kv("words", words).kv("after", 7).tensor("a", (8,)).to_bytes())
    assert header.metadata["words"] == SkippedArray(20_011)
    assert header.metadata["after"] == 7


def test_a_vocabulary_is_never_built_in_memory():
    data = GgufBuilder("llama").kv("tokenizer.ggml.merges", [f"Ġmerge {n:012d}" for n in range(100_000)]).to_bytes()
    stream = io.BytesIO(data)
    tracemalloc.start()
    try:
        read_header(stream, source="m.gguf")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) > 2_500_000
    assert peak_bytes < 500_000


def test_a_stream_that_ends_in_the_header_asks_for_more_wherever_it_ends():
    header = small().kv("words", ["one", "two"]).kv("heads", [1, 2, 3]).header()
    end = len(header.rstrip(b"\0")) - 1
    for length in range(1, end):
        with pytest.raises(HeaderTruncated, match="the data ends inside"):
            parse(header[:length], file_bytes=10_000)


def test_a_header_is_complete_without_the_padding_behind_it():
    assert parse(small().header()) == parse(small().to_bytes())


def test_the_files_size_shows_that_it_is_cut():
    data = small().to_bytes()
    header = parse(data, file_bytes=len(data))
    assert header.needed_bytes == len(data)
    reason = refused(data[:-1], file_bytes=len(data) - 1)
    assert reason == f"the file is cut: {len(data) - 1:,} bytes of {len(data):,}"
    assert "is cut" in refused(data[:60], file_bytes=60)


def test_the_last_tensors_padding_may_be_missing():
    builder = GgufBuilder("llama").tensor("a", (3,))
    unpadded = len(builder.header()) + 12
    assert parse(builder.to_bytes()[:unpadded], file_bytes=unpadded).needed_bytes == unpadded


def test_a_local_file_is_checked_against_its_own_size(tmp_path):
    path = small().write(tmp_path / "m.gguf")
    assert read_header_file(path).metadata["general.architecture"] == "llama"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadGguf, match="the file is cut"):
        read_header_file(path)
    with pytest.raises(NotFound, match=r"nothing\.gguf"):
        read_header_file(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\n <html lang=en>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>", "an XML document"),
        (struct.pack("<Q", 1000) + b'{"__metadata__"', "a safetensors file"),
        (b"PK\x03\x04\x00\x00", "a zip archive"),
        (b'{"error": "not found"}', "a JSON document"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"tjgg\x01\x00\x00\x00", "before GGUF"),
        (bytes(4096), "zero bytes"),
        (b"\x7fELF\x02\x01\x01\x00", "bytes 7f 45 4c 46"),
    ],
)
def test_other_files_are_called_what_they_look_like(start, name):
    assert name in refused(start)


@pytest.mark.parametrize(
    ("version", "reason"),
    [(0x03000000, "big-endian"), (1, "version 1, which llama.cpp no longer reads"), (4, "version 4"), (0, "version 0")],
)
def test_other_versions_are_refused_by_name(version, reason):
    assert reason in refused(GgufBuilder("llama", version=version).to_bytes())


def kv_start(key: str, kind: int) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)


def array_start(item: int, count: int) -> bytes:
    return struct.pack("<IQ", item, count)


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (GgufBuilder("a", kv_count=65_537), "65,537 key-value pairs"),
        (GgufBuilder("a", tensor_count=1 << 63), "tensors, the limit"),
        (GgufBuilder().raw_kv(struct.pack("<Q", 1 << 40)), "claims 1,099,511,627,776 bytes"),
        (GgufBuilder().raw_kv(struct.pack("<Q", 65_536)), "key 0 claims"),
        (GgufBuilder().raw_kv(kv_start("s", 8) + struct.pack("<Q", (16 << 20) + 1)), "the limit is 16,777,216"),
        (GgufBuilder().raw_kv(kv_start("s", 9) + array_start(4, 1 << 62)), "items in 's'"),
        (GgufBuilder().raw_kv(kv_start("s", 9) + array_start(12, 1 << 26)), "headers beyond 67,108,864"),
        (GgufBuilder().raw_kv(kv_start("s", 9) + array_start(8, 1 << 26)), "headers beyond 67,108,864"),
        (GgufBuilder().raw_kv(kv_start("s", 9) + array_start(8, 2) + struct.pack("<Q", 1 << 50)), "a string in 's'"),
        (GgufBuilder().raw_kv(kv_start("s", 9) + array_start(9, 1 << 20)), "1,048,576 arrays"),
        (GgufBuilder().raw_kv(kv_start("s", 9) + array_start(9, 1) + array_start(9, 1)), "more than two deep"),
        (GgufBuilder().raw_kv(kv_start("s", 13)), "unknown value type 13"),
        (GgufBuilder().raw_kv(kv_start("s", 9) + array_start(77, 5000)), "unknown value type 77"),
        (GgufBuilder().kv("", 1), "key 0 is empty"),
        (GgufBuilder().kv("a", 1).kv("a", 2), "'a' occurs twice"),
        (GgufBuilder().kv(b"\xff\xfe", 1), "not valid UTF-8"),
        (GgufBuilder().kv("a", b"\xc3("), "not valid UTF-8"),
        (GgufBuilder().kv("general.alignment", 48), "not a power of two"),
        (GgufBuilder().kv("general.alignment", 0), "not a power of two"),
        (GgufBuilder().kv("general.alignment", 32, Kind.U64), "must have type 4"),
        (GgufBuilder().kv("general.alignment", "32"), "must have type 4"),
        (GgufBuilder("llama").kv("llama.block_count", 513), "block_count is 513"),
        (GgufBuilder("llama").kv("llama.block_count", "many"), "block_count is 'many'"),
        (GgufBuilder().kv("general.alignment", 1 << 30).tensor("t", (8,)), "data starts at byte 1,073,741,824"),
    ],
)  # fmt: skip
def test_absurd_metadata_is_refused_before_it_is_read(builder, reason):
    stream = Endless(builder.header())
    with pytest.raises(BadGguf) as caught:
        read_header(stream, source="m.gguf")
    assert reason in caught.value.reason
    assert stream.served_bytes < 1 << 20


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (GgufBuilder().tensor("t", (8,), type_id=4), "Q4_2, which llama.cpp no longer reads"),
        (GgufBuilder().tensor("t", (8,), type_id=43), "unknown type 43"),
        (GgufBuilder().tensor("t", (8,)).tensor("t", (8,)), "'t' occurs twice"),
        (GgufBuilder().tensor("t" * 65, (8,)), "name of tensor 0 claims 65 bytes"),
        (GgufBuilder().tensor("a\0b", (8,)), "zero byte"),
        (GgufBuilder().tensor(b"\xff", (8,)), "not valid UTF-8"),
        (GgufBuilder().tensor("t", (1, 1, 1, 1, 1)), "5 dimensions"),
        (GgufBuilder().tensor("t", (1 << 32, 1 << 31)), "more than 2^63-1"),
        (GgufBuilder().tensor("t", (0, 1 << 63)), "more than 2^63-1"),
        (GgufBuilder().tensor("t", (1 << 62,)), "beyond the largest possible file"),
        (GgufBuilder().tensor("t", (31,), type_id=8), "rows of 31 elements"),
        (GgufBuilder().tensor("t", (8,), offset=32), "at offset 32, 0 was expected"),
        (GgufBuilder().tensor("a", (8,)).tensor("b", (8,), offset=0), "at offset 0, 32 was expected"),
        (GgufBuilder().tensor("t", (8,), offset=(1 << 64) - 32), "0 was expected"),
    ],
)
def test_impossible_tensors_are_refused(builder, reason):
    assert reason in refused(builder.header())


def test_nested_arrays_are_skipped_down_to_the_second_level():
    inner = array_start(4, 2) + struct.pack("<II", 1, 2)
    builder = GgufBuilder().raw_kv(kv_start("s", 9) + array_start(9, 2) + inner + inner).kv("after", 3)
    metadata = parse(builder.to_bytes()).metadata
    assert metadata == {"s": SkippedArray(2), "after": 3}


def test_a_header_that_never_ends_is_given_up_at_the_limit():
    entry = kv_start("s", 9) + array_start(8, 1 << 22)
    start = GgufBuilder().raw_kv(entry).header()[: 24 + len(entry)]
    stream = Endless(start, then=struct.pack("<Q8s", 8, b"a string"))
    with pytest.raises(BadGguf, match="headers beyond"):
        read_header(stream, source="m.gguf")
    assert stream.served_bytes <= MAX_HEADER_BYTES + (1 << 20)
