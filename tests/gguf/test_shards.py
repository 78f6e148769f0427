"""Shards: what belongs together, and what is missing."""

import io
import re

import pytest

from ggufdeploy.errors import BadGguf
from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import Header, read_header
from ggufdeploy.gguf.shards import merge_shards, shard_count
from tests.gguf_writer import MIXTRAL_8X22B, TINY_LLAMA, GgufBuilder, Kind, ModelShape, build_model


def headers(shape: ModelShape, quantization: str, shards: int) -> list[Header]:
    return [
        read_header(io.BytesIO(shard.builder.header()), source=shard.name, file_bytes=shard.builder.file_bytes)
        for shard in build_model(shape, quantization, shards=shards)
    ]


def shard(number: int, count: int, total: int, name: str = "t") -> Header:
    builder = GgufBuilder().kv("split.no", number, Kind.U16).kv("split.count", count, Kind.U16)
    builder.kv("split.tensors.count", total, Kind.I32).tensor(name, (8,))
    return read_header(io.BytesIO(builder.header()), source=f"{number}.gguf")


def test_the_first_of_several_shards_carries_all_keys_and_the_others_only_split_ones():
    first, second, third = headers(MIXTRAL_8X22B, "Q4_K_S", 3)
    assert first.metadata["general.architecture"] == "llama"
    assert set(second.metadata) == set(third.metadata) == {"split.no", "split.count", "split.tensors.count"}
    assert [h.metadata["split.no"] for h in (first, second, third)] == [0, 1, 2]
    assert [shard_count(h) for h in (first, second, third)] == [3, 3, 3]
    assert sum(len(h.tensors) for h in (first, second, third)) == 563


def test_a_split_model_has_the_same_facts_as_a_whole_one():
    assert model_info(headers(MIXTRAL_8X22B, "Q3_K_M", 4)) == model_info(headers(MIXTRAL_8X22B, "Q3_K_M", 1))


def test_a_file_without_split_keys_is_the_whole_model():
    (whole,) = headers(TINY_LLAMA, "F16", 1)
    assert shard_count(whole) == 1
    assert len(merge_shards([whole])) == 21


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ([0, 1], "the model has 4 shards and number 3, 4 is missing"),
        ([1, 2, 3], "number 1 is missing"),
        ([0, 2, 1, 3], "it is shard 3 where shard 2 of 4 belongs"),
        ([0, 1, 2, 3, 3], "the model has 4 shards, 5 were given"),
    ],
)
def test_incomplete_or_shuffled_sets_are_refused(kept, reason):
    shards = headers(MIXTRAL_8X22B, "Q4_K_M", 4)
    with pytest.raises(BadGguf, match=re.escape(reason)):
        model_info([shards[index] for index in kept])


def test_two_whole_files_are_not_one_model():
    (whole,) = headers(TINY_LLAMA, "F16", 1)
    with pytest.raises(BadGguf, match="the model has 1 shard, 2 were given"):
        merge_shards([whole, whole])


def test_shards_of_different_sets_are_refused():
    with pytest.raises(BadGguf, match=r"1\.gguf is not.*belongs to a set of 3 shards, the first shard to one of 2"):
        merge_shards([shard(0, 2, 2, "a"), shard(1, 3, 2, "b")])


def test_the_tensor_total_is_checked():
    with pytest.raises(BadGguf, match=r"2 shards hold 2 tensors, split\.tensors\.count says 3"):
        merge_shards([shard(0, 2, 3, "a"), shard(1, 2, 3, "b")])


def test_a_tensor_in_two_shards_is_refused():
    with pytest.raises(BadGguf, match="'t' is in another shard as well"):
        merge_shards([shard(0, 2, 2), shard(1, 2, 2)])


def test_a_split_key_that_is_no_count_is_refused():
    bad = read_header(io.BytesIO(GgufBuilder().kv("split.count", "two").header()), source="m.gguf")
    with pytest.raises(BadGguf, match=r"split\.count is 'two'"):
        merge_shards([bad])


def test_no_header_at_all_is_a_bug():
    with pytest.raises(ValueError, match="at least one"):
        merge_shards([])
