"""Ghosts: files with a model's real header and size, but holes instead of weights.

llama.cpp loads a ghost with `no_alloc` as if it were the model, and so tells the exact memory it would need. A ghost of
an 80 GB model takes about 1 MB on disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ggufdeploy.errors import BadGguf

_SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def write_ghost(headers: Sequence[tuple[str, bytes, int]], folder: Path) -> Path:
    """Write one sparse file per shard into `folder` and return the first shard's path.

    headers: per shard, in order, its file name, its first bytes up to at least data_offset, and its full size in bytes.
    Folders in the names are dropped. Several shards must be named `<prefix>-00001-of-0000N.gguf`, because llama.cpp
    finds the others by the first one's name (src/llama.cpp, llama_split_path). Existing files are replaced. Raises
    BadGguf for names llama.cpp would not find, OSError when the file system refuses (no space, or no such large files).
    """
    if not headers:
        raise ValueError("write_ghost needs at least one header")
    names = [name.rsplit("/", 1)[-1] for name, _, _ in headers]
    for name in names:
        if name in {"", ".", ".."} or "\0" in name:
            raise BadGguf(name, 0, "it cannot be the name of a file")
    if len(names) > 1:
        _check_split_names(names)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, header, file_bytes) in zip(names, headers, strict=True):
        with (folder / name).open("wb") as file:
            file.write(header[:file_bytes])
            file.truncate(file_bytes)
    return folder / names[0]


def _check_split_names(names: Sequence[str]) -> None:
    first = _SPLIT_NAME.fullmatch(names[0])
    prefix = first["prefix"] if first else names[0].removesuffix(".gguf")
    for index, name in enumerate(names):
        expected = f"{prefix}-{index + 1:05d}-of-{len(names):05d}.gguf"
        if name != expected:
            raise BadGguf(name, 0, f"llama.cpp looks for shard {index + 1} of {len(names)} under the name {expected}")
