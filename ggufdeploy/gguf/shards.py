"""Several files of one model: check that they belong together and merge their tensor tables.

Source: llama.cpp src/llama-model-loader.cpp (loading splits) and tools/gguf-split/gguf-split.cpp (writing them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ggufdeploy.errors import BadGguf
from ggufdeploy.gguf.reader import Header, TensorInfo


def shard_count(header: Header) -> int:
    """Return how many files the model has, from any one of their headers; 1 when it is not split. Raises BadGguf."""
    count = _split_number(header, "split.count")
    return count if count else 1


def merge_shards(headers: Sequence[Header]) -> Mapping[str, TensorInfo]:
    """Return all tensors by name, in file order.

    Raises BadGguf when a shard is missing, out of order or of another model, or when a tensor occurs twice.
    """
    if not headers:
        raise ValueError("merge_shards needs at least one header")
    first = headers[0]
    count = shard_count(first)
    if count > 1 or len(headers) > 1:
        _check_numbers(headers, count)
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise BadGguf(header.source, header.data_offset, f"tensor {tensor.name!r} is in another shard as well")
            tensors[tensor.name] = tensor
    expected = _split_number(first, "split.tensors.count")
    if count > 1 and expected != len(tensors):
        reason = f"its {count} shards hold {len(tensors):,} tensors, split.tensors.count says {expected}"
        raise BadGguf(first.source, first.data_offset, reason)
    return tensors


def _check_numbers(headers: Sequence[Header], count: int) -> None:
    first = headers[0]
    numbers = [_split_number(header, "split.no") for header in headers]
    missing = sorted(set(range(count)) - {n for n in numbers if n is not None})
    if missing and count > 1:
        named = ", ".join(str(n + 1) for n in missing)
        raise BadGguf(first.source, first.data_offset, f"the model has {count} shards and number {named} is missing")
    if len(headers) != count:
        reason = f"the model has {count} shard{'s' if count > 1 else ''}, {len(headers)} were given"
        raise BadGguf(first.source, first.data_offset, reason)
    for position, (header, number) in enumerate(zip(headers, numbers, strict=True)):
        if number != position:
            reason = f"it is shard {(number or 0) + 1} where shard {position + 1} of {count} belongs"
            raise BadGguf(header.source, header.data_offset, reason)
        if shard_count(header) != count:
            reason = f"it belongs to a set of {shard_count(header)} shards, the first shard to one of {count}"
            raise BadGguf(header.source, header.data_offset, reason)


def _split_number(header: Header, key: str) -> int | None:
    value = header.metadata.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise BadGguf(header.source, header.data_offset, f"{key} is {value!r}, which is not a count")
    return value
