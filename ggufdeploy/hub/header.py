"""GGUF headers by range reads, so that a model can be planned exactly before it is downloaded."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.errors import BadGguf, HeaderTruncated
from ggufdeploy.gguf.reader import Header, read_header
from ggufdeploy.hub.catalog import Artifact, GgufFile
from ggufdeploy.hub.layout import RepoCache
from ggufdeploy.hub.session import HubClient
from ggufdeploy.units import MIB

# Headers on the Hub take 0.7 to 16 MB, nearly all of it vocabulary; later shards of a split a few kB.
_FIRST_READ_BYTES = 1 * MIB
_CAP_BYTES = 64 * MIB
_PARALLEL = 4


@dataclass(frozen=True)
class FetchedHeader:
    """One file's header. raw: its bytes up to data_offset. fetched_bytes, requests: what it took over the network."""

    header: Header
    raw: bytes
    fetched_bytes: int
    requests: int
    from_cache: bool


def fetch_headers(client: HubClient, repo: str, commit: str, artifact: Artifact) -> list[FetchedHeader]:
    """Return the headers of all shards in order, some fetched at the same time. Raises as fetch_header."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(lambda file: fetch_header(client, repo, commit, file), artifact.files))


def fetch_header(client: HubClient, repo: str, commit: str, file: GgufFile) -> FetchedHeader:
    """Return a file's header from the downloaded file, from `cache_dir/headers`, or by reads growing from 1 MiB.

    A header is not covered by the file's checksum until the whole file is here. Raises BadGguf (also for a header above
    64 MiB and a listed size too small for the tensors), Unreachable, AccessDenied, NotFound, Offline.
    """
    source = f"{repo}/{file.path}"
    cached = client.settings.cache_dir / "headers" / _key(repo, commit, file)
    local = _local_copy(client, repo, commit, file)
    for path in (local, cached):
        found = _read_local(path, source, file) if path else None
        if found is not None:
            return found
    data, requests = bytearray(), 0
    while True:
        end = min(file.n_bytes, _CAP_BYTES, max(_FIRST_READ_BYTES, 2 * len(data)))
        data += client.read_range(repo, commit, file, len(data), end)
        requests += 1
        try:
            header = read_header(io.BytesIO(data), source=source, file_bytes=file.n_bytes)
        except HeaderTruncated:
            if end == file.n_bytes:
                raise
            if end >= _CAP_BYTES:
                raise BadGguf(source, end, f"its header is larger than {_CAP_BYTES // MIB} MiB") from None
            continue
        # The padding before the first tensor may lie behind the last read; it is not parsed, so zeros stand for it.
        raw = bytes(data[: header.data_offset]).ljust(header.data_offset, b"\0")
        _store(cached, raw)
        return FetchedHeader(header, raw, len(data), requests, from_cache=False)


def _key(repo: str, commit: str, file: GgufFile) -> str:
    """Name a header by its file's checksum, so that renames and new commits share it."""
    return file.sha256 or hashlib.sha256(f"{repo}@{commit}/{file.path}".encode()).hexdigest()


def _local_copy(client: HubClient, repo: str, commit: str, file: GgufFile) -> Path | None:
    entry = RepoCache(client.settings.hf_cache_dir, repo).entry(commit, file.path)
    return entry if entry.is_file() and entry.stat().st_size == file.n_bytes else None


def _read_local(path: Path, source: str, file: GgufFile) -> FetchedHeader | None:
    """Return the header at the start of a local file; None when there is none or it is damaged."""
    try:
        with path.open("rb") as stream:
            header = read_header(stream, source=source, file_bytes=file.n_bytes)
            stream.seek(0)
            raw = stream.read(header.data_offset)
    except (OSError, BadGguf):
        return None
    return FetchedHeader(header, raw, 0, 0, from_cache=True)


def _store(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")  # shards are fetched side by side
    fresh.write_bytes(raw)
    fresh.replace(path)
