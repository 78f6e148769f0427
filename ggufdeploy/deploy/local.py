"""Models in files and directories of the user's own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ggufdeploy.deploy.sources import LocalSource
from ggufdeploy.errors import Ambiguous, BadGguf, BadValue, NotFound
from ggufdeploy.gguf.reader import Header, read_header_file
from ggufdeploy.gguf.types import file_type_name
from ggufdeploy.hub.catalog import (
    UNNAMED,
    Catalogue,
    Companion,
    GgufFile,
    build_catalogue,
    parse_quantization,
    shown_reasons,
)
from ggufdeploy.hub.companion import SHARD, CompanionKind, companion_kind, is_gguf_name, whole_of_piece
from ggufdeploy.profiles.profile import Profile

_DEPTH = 2
"""Folders below a directory that are searched: `hf download --local-dir` makes DIR/QUANTIZATION/file."""

# Source: llama.cpp gguf-py/gguf/constants.py, GGUFType.
_TYPES: dict[object, CompanionKind] = {"adapter": "adapter", "mmproj": "projector", "imatrix": "imatrix"}


def local_source(path: Path, name: str | None = None, profile: Profile | None = None) -> LocalSource:
    """Return the source for a file, any shard of a split, or a directory of one model's quantizations.

    In a directory and its folders companions, cut files and raw pieces are kept apart, as in a repository.
    name: what to call the model, None for the file's or directory's name.

    Raises NotFound, Ambiguous (several models), BadGguf (a shard is missing, a raw piece), BadValue.
    """
    if not path.exists():
        raise NotFound("file", str(path), f"file not found: {path}", hint="check the path, or name a model to fetch")
    if path.is_dir():
        return _from_directory(path, name or path.resolve().name, profile)
    if not path.is_file():
        raise BadValue("MODEL", f"{path} is neither a file nor a directory", hint="name a .gguf file")
    whole = whole_of_piece(path.name)
    if whole is not None:
        hint = f"put its pieces together, in order: cat PIECES > {whole}"
        raise BadGguf(str(path), 0, "it is a raw piece of one, which llama.cpp cannot load", hint=hint)
    paths = _all_shards(path)
    quantization = parse_quantization("/".join(path.absolute().parts[-2:])) or _stated(read_header_file(paths[0]))
    return LocalSource(name or path.name.removesuffix(".gguf"), {quantization: paths}, profile)


def _all_shards(file: Path) -> list[Path]:
    match = SHARD.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match["count"])
    paths = [file.with_name(f"{match['prefix']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [path.name for path in paths if not path.exists()]
    if missing or not paths:
        some = ", ".join(missing[:3]) + ("…" if len(missing) > 3 else "")
        raise BadGguf(str(file), 0, f"it is one of {count} shards and {some} is missing beside it")
    return paths


def _from_directory(path: Path, name: str, profile: Profile | None) -> LocalSource:
    catalogue, stated = _list_directory(path)
    if not catalogue.artifacts:
        message = f"no .gguf file in {path} that can be run{shown_reasons(catalogue)}"
        hint = "name a file, or a model to fetch"
        raise NotFound("file", str(path), message, hint=hint)
    if len(catalogue.models) > 1:
        example = shlex.quote(str(path / catalogue.artifacts[0].files[0].path))
        raise Ambiguous("directory", str(path), catalogue.models, hint=f"name a file: ggufdeploy run {example}")
    quantizations = {}
    for artifact in catalogue.artifacts:
        first = artifact.files[0].path
        quantization = stated[first] if artifact.quantization == UNNAMED else artifact.quantization
        quantizations[quantization] = [path / file.path for file in artifact.files]
    return LocalSource(name, quantizations, profile, catalogue=catalogue)


def _list_directory(path: Path) -> tuple[Catalogue, dict[str, str]]:
    """Return the directory as a catalogue, and what each header says the quantization is.

    Every header is read: a file that was cut while it was copied, or a companion with a model's name, shows only there.
    """
    files: list[GgufFile] = []
    damaged: list[tuple[str, str]] = []
    companions: list[Companion] = []
    stated: dict[str, str] = {}
    for full in _gguf_files(path):
        file = GgufFile(full.relative_to(path).as_posix(), full.stat().st_size, None)
        if whole_of_piece(file.path) is None and companion_kind(file.path) is None and file.n_bytes:
            try:
                header = read_header_file(full)
            except BadGguf as error:
                damaged.append((file.path, error.reason))
                continue
            stated[file.path] = _stated(header)
            kind = _kind(header)
            if kind is not None:
                companions.append(Companion(kind, file))
                continue
        files.append(file)
    catalogue = build_catalogue(str(path), "", files)
    skipped = tuple(sorted([*catalogue.skipped, *damaged]))
    return replace(catalogue, skipped=skipped, companions=(*catalogue.companions, *companions)), stated


def _gguf_files(path: Path) -> Iterator[Path]:
    """Yield GGUF files and pieces down to _DEPTH, but none that is hidden, as the Hub's own `.cache` folder is."""
    for depth in range(_DEPTH + 1):
        for file in sorted(path.glob("*/" * depth + "*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if is_gguf_name(file.name) and not hidden and file.is_file():
                yield file


def _stated(header: Header) -> str:
    """Return the quantization that a header states, for a file whose name says nothing."""
    stated = header.metadata.get("general.file_type")
    return (file_type_name(stated) if isinstance(stated, int) else None) or UNNAMED


def _kind(header: Header) -> CompanionKind | None:
    if header.metadata.get("general.architecture") == "clip":
        return "projector"
    return _TYPES.get(header.metadata.get("general.type"))
