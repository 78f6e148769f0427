"""GGUF headers by range reads, so that a model can be planned exactly before it is downloaded."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from ggufdeploy.errors import BadGguf, Unreachable
from ggufdeploy.gguf.reader import Header, HeaderPrefix, read_header, read_prefix
from ggufdeploy.gguf.shape import PREFIX_BYTES
from ggufdeploy.hub.catalog import Artifact, GgufFile
from ggufdeploy.hub.layout import RepoCache
from ggufdeploy.hub.retry import retrying
from ggufdeploy.hub.session import HubClient
from ggufdeploy.units import MIB

T = TypeVar("T")

# Headers on the Hub take 0.7 to 16 MB, nearly all of it vocabulary; later shards of a split have none, and a few kB.
_FIRST_READ_BYTES = 1 * MIB
_CAP_BYTES = 64 * MIB
_PARALLEL = 4
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class FetchedHeader:
    """One file's header. raw: its bytes up to data_offset. from_cache: nothing was read over the network."""

    header: Header
    raw: bytes
    from_cache: bool


class HeaderReader:
    """Reads headers of one repository at a pinned commit, and counts what that takes. May be used by several threads.

    A header comes from the downloaded file, from `cache_dir/headers`, or over the network, and is then cached under the
    file's sha256. It is not covered by the file's checksum until the whole file is here.
    """

    def __init__(self, client: HubClient, repo: str, commit: str) -> None:
        self._client, self._repo, self._commit = client, repo, commit
        self._lock = threading.Lock()
        self._fetched_bytes = self._requests = 0

    @property
    def fetched_bytes(self) -> int:
        """Bytes of files received so far, also those of attempts that failed."""
        return self._fetched_bytes

    @property
    def requests(self) -> int:
        """Ranges of files asked for so far."""
        return self._requests

    def headers(self, artifact: Artifact) -> list[FetchedHeader]:
        """Return the headers of all shards in order, some fetched at the same time. Raises as header."""
        first = [_FIRST_READ_BYTES] + [PREFIX_BYTES] * (len(artifact.files) - 1)
        return _side_by_side([partial(self.header, *each) for each in zip(artifact.files, first, strict=True)])

    def header(self, file: GgufFile, first_read_bytes: int = _FIRST_READ_BYTES) -> FetchedHeader:
        """Return a file's header, reading no more than 64 MiB of it.

        Raises BadGguf (also for a header above 64 MiB and a listed size too small for the tensors), Unreachable,
        AccessDenied, NotFound, Offline.
        """
        for stream in (self._open_copy(file), _open_entry(self._entry(file))):
            found = None if stream is None else self._parse(stream, file)
            if found is not None:
                return found
        start = _open_entry(self._start_entry(file))
        try:
            return self._fetch(file, b"" if start is None else start.read(), first_read_bytes)
        except BadGguf:
            if start is None:
                raise
            self._start_entry(file).unlink(missing_ok=True)  # it may have been damaged on its way
            return self._fetch(file, b"", first_read_bytes)

    def prefix(self, file: GgufFile) -> HeaderPrefix:
        """Return what the first 64 KiB of a file say. Raises as header."""
        for known in (self._open_copy(file), _open_entry(self._entry(file)), _open_entry(self._start_entry(file))):
            if known is not None:
                with known, suppress(BadGguf):  # a damaged file is passed over
                    return self._parse_prefix(known.read(PREFIX_BYTES), file)
        start = _RemoteStart(self, file, b"", PREFIX_BYTES).read(PREFIX_BYTES)
        prefix = self._parse_prefix(start, file)
        _store(self._start_entry(file), start)
        return prefix

    def _fetch(self, file: GgufFile, start: bytes, first_read_bytes: int) -> FetchedHeader:
        remote = _RemoteStart(self, file, start, first_read_bytes)
        header = read_header(remote, source=self._source(file), file_bytes=file.n_bytes)
        # The padding before the first tensor may lie behind the last read; it is not parsed, so zeros stand for it.
        raw = bytes(remote.data[: header.data_offset]).ljust(header.data_offset, b"\0")
        _store(self._entry(file), raw)
        return FetchedHeader(header, raw, from_cache=False)

    def _parse(self, stream: BinaryIO, file: GgufFile) -> FetchedHeader | None:
        """Return the header of a file on this disk, None when it is damaged or another file's."""
        with stream:
            try:
                header = read_header(stream, source=self._source(file), file_bytes=file.n_bytes)
            except BadGguf:
                return None
            stream.seek(0)
            return FetchedHeader(header, stream.read(header.data_offset), from_cache=True)

    def _parse_prefix(self, start: bytes, file: GgufFile) -> HeaderPrefix:
        return read_prefix(io.BytesIO(start), source=self._source(file), file_bytes=file.n_bytes)

    def _source(self, file: GgufFile) -> str:
        return f"{self._repo}/{file.path}"

    def _entry(self, file: GgufFile) -> Path:
        """Return where a header is kept: by its file's checksum, so that renames and new commits share it."""
        name = file.sha256 or hashlib.sha256(f"{self._repo}@{self._commit}/{file.path}".encode()).hexdigest()
        return self._client.settings.cache_dir / "headers" / name

    def _start_entry(self, file: GgufFile) -> Path:
        """Return where the first 64 KiB are kept."""
        return self._entry(file).with_suffix(".start")

    def _open_copy(self, file: GgufFile) -> BinaryIO | None:
        """Open the downloaded file, None when it is not here as a whole or not ours to read."""
        entry = RepoCache(self._client.settings.hf_cache_dir, self._repo).entry(self._commit, file.path)
        try:
            return entry.open("rb") if entry.stat().st_size == file.n_bytes else None
        except OSError:
            return None

    def _count(self, *, n_bytes: int = 0, requests: int = 0) -> None:
        with self._lock:
            self._fetched_bytes += n_bytes
            self._requests += requests

    def _extend(self, data: bytearray, file: GgufFile, end: int) -> None:
        """Append the file's bytes up to `end` to `data`, going on where a connection was cut."""

        def attempt() -> None:
            self._count(requests=1)
            with self._client.open_range(self._repo, self._commit, file, len(data), end) as body:
                skip = len(data) - body.offset
                for chunk in body.chunks:
                    self._count(n_bytes=len(chunk))
                    data.extend(chunk[skip : skip + end - len(data)])
                    skip = max(0, skip - len(chunk))
                    if len(data) == end:
                        return
            host = self._client.endpoint
            raise Unreachable(host, f"{file.path} ended after {len(data):,} of {file.n_bytes:,} bytes")

        retrying(self._client.questions, attempt)


class _RemoteStart:
    """The start of a remote file as a stream: what is not here yet is fetched when the parser comes to it.

    data: what is here, from the file's first byte on. The first read has first_read_bytes, then all that is here
    doubles, from 1 MiB on; no byte is fetched twice.
    """

    def __init__(self, reader: HeaderReader, file: GgufFile, start: bytes, first_read_bytes: int) -> None:
        self.data = bytearray(start)
        self._reader, self._file, self._first_read_bytes = reader, file, first_read_bytes
        self._at = 0

    def read(self, n: int) -> bytes:
        """Return up to n bytes, b"" at the file's end. Raises BadGguf beyond 64 MiB, and as HubClient.open_range."""
        if self._at == len(self.data) < self._file.n_bytes:
            self._grow()
        part = bytes(memoryview(self.data)[self._at : self._at + n])
        self._at += len(part)
        return part

    def _grow(self) -> None:
        have = len(self.data)
        if have >= _CAP_BYTES:
            raise BadGguf(self._reader._source(self._file), have, f"its header is larger than {_CAP_BYTES // MIB} MiB")
        wanted = max(2 * have, _FIRST_READ_BYTES) if have else self._first_read_bytes
        self._reader._extend(self.data, self._file, min(self._file.n_bytes, _CAP_BYTES, wanted))


def _side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run the jobs, _PARALLEL at a time, and return their results in order; what the first one raises ends it.

    On daemon threads: those of a ThreadPoolExecutor would keep a Ctrl-C waiting for a server that does not answer.
    """
    futures = [Future[T]() for _ in jobs]
    waiting = deque(zip(jobs, futures, strict=True))

    def work() -> None:
        with suppress(IndexError):  # nothing is waiting any more
            while True:
                job, future = waiting.popleft()
                _settle(job, future)

    for _ in range(min(_PARALLEL, len(jobs))):
        threading.Thread(target=work, name="header", daemon=True).start()
    try:
        return [future.result() for future in futures]
    finally:
        waiting.clear()


def _settle(job: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:  # noqa: BLE001  # raised by the thread that waits for the result
        future.set_exception(error)


def _open_entry(path: Path) -> BinaryIO | None:
    """Return what _store wrote, None when it is not there or no longer the same."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, raw = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return io.BytesIO(raw) if hashlib.sha256(raw).digest() == digest else None


def _store(path: Path, raw: bytes) -> None:
    """Write raw behind its checksum, whole or not at all, whoever else writes it too.

    A cache that cannot be written (full, read-only) costs the next plan a fetch, so it does not end this one.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(hashlib.sha256(raw).digest() + raw)
            Path(fresh).replace(path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
