"""Artifacts into the Hugging Face cache: enough disk first, one process per file, verified, all shards or none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ggufdeploy.errors import ChecksumMismatch, NoDiskSpace
from ggufdeploy.hub.catalog import Artifact, GgufFile
from ggufdeploy.hub.layout import RepoCache, checksum
from ggufdeploy.hub.progress import OnProgress, Phase, Progress, Reporter
from ggufdeploy.hub.ranges import Fanout
from ggufdeploy.hub.session import HubClient
from ggufdeploy.hub.sidecar import read_sidecar
from ggufdeploy.hub.transfer import DownloadStopped, Stop, Transfer
from ggufdeploy.hub.verify import VerifiedFiles, feed, new_digest
from ggufdeploy.units import GIB, format_file_size

__all__ = ["DownloadStopped", "Progress", "download_artifact"]

_LOCK_POLL_S = 0.2


def download_artifact(
    client: HubClient,
    repo: str,
    commit: str,
    artifact: Artifact,
    *,
    on_progress: OnProgress,
    stop: Callable[[], bool] | None = None,
    fanout: Fanout | None = None,
) -> list[Path]:
    """Make all shards complete and verified in the Hugging Face cache; return their paths in the snapshot, in order.

    Works without the network when everything is there. Partial files survive every failure but a wrong checksum, also
    KeyboardInterrupt, and are continued by the next call. on_progress is called from this thread; stop is asked often.
    Raises NoDiskSpace (before the first byte, or when the disk fills), ChecksumMismatch (after a second full try),
    DownloadStopped, Unreachable, Offline, RateLimited, AccessDenied, NotFound.
    """
    cache = RepoCache(client.settings.hf_cache_dir, repo)
    for file in artifact.files:
        cache.entry(commit, file.path)
    reporter = Reporter(on_progress, artifact.total_bytes)
    job = _Job(client, cache, commit, reporter, stop or (lambda: False), fanout or Fanout())
    require_space(cache, [file for file in artifact.files if not _is_here(cache, file)])
    for file in artifact.files:
        job.complete(file)
    entries = [cache.link(commit, file) for file in artifact.files]
    revision = client.revision_of(repo, commit)
    if revision is not None:
        cache.write_ref(revision, commit)
    return entries


def require_space(cache: RepoCache, files: list[GgufFile]) -> None:
    """Raise NoDiskSpace when what is still missing of these files, and a margin, does not fit on the cache's disk."""
    missing = sum(file.n_bytes - partial_bytes(cache, file) for file in files)
    if missing == 0:
        return
    # A full disk hurts more than this download: leave 5 % of it, at most 2 GiB.
    needed = missing + min(missing // 20, 2 * GIB)
    free = shutil.disk_usage(_existing_parent(cache.root)).free
    if needed > free:
        raise NoDiskSpace(
            str(cache.root),
            f"{cache.root} has {format_file_size(free)} free; {format_file_size(needed)} are needed for the download",
            needed_bytes=needed,
            free_bytes=free,
            hint="free some space (ggufdeploy list shows models), set HF_HUB_CACHE to another disk, or choose a "
            "smaller quantization",
        )


class _Job:
    """One call of download_artifact."""

    def __init__(
        self, client: HubClient, cache: RepoCache, commit: str, reporter: Reporter, stop: Stop, fanout: Fanout
    ) -> None:
        self._client, self._cache, self._commit = client, cache, commit
        self._reporter, self._stop, self._fanout = reporter, stop, fanout
        self._verified = VerifiedFiles(client.settings)

    def complete(self, file: GgufFile) -> None:
        """Adopt the blob that is here, or fetch it; a second full try follows a wrong checksum."""
        # What is whole needs no lock, so it can also be used from a disk that is read-only.
        if self._is_whole(file):
            self._report("done", file, file.n_bytes)
            return
        with self._locked(file):
            if self._is_whole(file):
                self._report("done", file, file.n_bytes)
                return
            if _is_here(self._cache, file):
                self._cache.blob(file).replace(self._cache.damaged(file))
                self._make_room(file)
            try:
                blob = self._fetch(file)
            except ChecksumMismatch:
                self._make_room(file)
                blob = self._fetch(file)
            self._cache.damaged(file).unlink(missing_ok=True)
            self._verified.remember(blob, file)
            self._report("done", file, file.n_bytes)

    def _fetch(self, file: GgufFile) -> Path:
        return Transfer(self._client, self._cache, self._commit, file, self._reporter, self._stop, self._fanout).run()

    def _is_whole(self, file: GgufFile) -> bool:
        """Whether the blob is here and right; one that another program put here is hashed, once."""
        if not _is_here(self._cache, file):
            return False
        blob = self._cache.blob(file)
        if self._verified.knows(blob, file):
            return True
        digest = new_digest(file)

        def on_bytes(done: int) -> None:
            if self._stop():
                raise DownloadStopped(file, file.n_bytes)
            self._report("checking", file, min(done, file.n_bytes - 1))

        try:
            feed(digest, blob, on_bytes)
        except FileNotFoundError:  # another process has found it damaged and put it aside
            return False
        if digest.hexdigest() != checksum(file):
            return False
        self._verified.remember(blob, file)
        return True

    def _make_room(self, file: GgufFile) -> None:
        """Give up the damaged contents when the disk cannot hold them beside the next try."""
        try:
            require_space(self._cache, [file])
        except NoDiskSpace:
            self._cache.damaged(file).unlink(missing_ok=True)
            require_space(self._cache, [file])

    @contextlib.contextmanager
    def _locked(self, file: GgufFile) -> Iterator[None]:
        """Hold the file's lock, which huggingface_hub respects too; say for whom we wait."""
        from filelock import FileLock, Timeout

        path = self._cache.lock(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
            except Timeout:
                have = partial_bytes(self._cache, file)
                if self._stop():
                    raise DownloadStopped(file, have) from None
                self._report("waiting", file, have, f"{self._owner(file)} is downloading {file.path}; waiting for it")
        try:
            yield
        finally:
            lock.release()

    def _owner(self, file: GgufFile) -> str:
        note = read_sidecar(self._cache.note(file))
        return f"process {note.pid} on {note.host}" if note else "another program"

    def _report(self, phase: Phase, file: GgufFile, done_bytes: int, detail: str | None = None) -> None:
        self._reporter.report(phase, file.path, done_bytes, file.n_bytes, detail=detail)


def here_bytes(client: HubClient, repo: str, file: GgufFile) -> int:
    """Return how much of a file need not be fetched any more."""
    cache = RepoCache(client.settings.hf_cache_dir, repo)
    return file.n_bytes if _is_here(cache, file) else partial_bytes(cache, file)


def _is_here(cache: RepoCache, file: GgufFile) -> bool:
    """Whether a blob of the right size exists; its contents are another question."""
    try:
        return cache.blob(file).stat().st_size == file.n_bytes
    except FileNotFoundError:
        return False


def partial_bytes(cache: RepoCache, file: GgufFile) -> int:
    """Return how much of a file an interrupted download left that the next one need not fetch."""
    note = read_sidecar(cache.note(file), file.n_bytes)
    return note.trusted_bytes if note and cache.partial(file).is_file() else 0


def _existing_parent(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
