"""The models on this disk, wherever they came from: the Hugging Face cache, or a Python package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.errors import BadValue, NotFound, nearest
from ggufdeploy.hub.cache import CachedModel, list_cached, remove
from ggufdeploy.hub.pypi import cached_pypi_model
from ggufdeploy.hub.quantization import parse_quantization
from ggufdeploy.hub.ref import NameRef, PathRef, RepoRef, parse_ref
from ggufdeploy.profiles.store import ProfileSet, load_profiles
from ggufdeploy.settings import Settings


@dataclass(frozen=True)
class Kept:
    """One complete quantization. name: the profile's or the repository's. repo and cached: None out of a package."""

    name: str
    repo: str | None
    quantization: str
    paths: tuple[Path, ...]
    n_bytes: int
    last_used_s: float
    cached: CachedModel | None = None

    @property
    def ref(self) -> str:
        """What to type for it."""
        if self.cached is not None and self.cached.by_file:
            first = self.paths[0].as_posix().partition(f"/{self.cached.commit}/")[2]
            return f"{self.name}/{first}"
        return f"{self.name}:{self.quantization}"


def list_kept(settings: Settings) -> list[Kept]:
    """Return every complete quantization on this disk. Raises BadConfig for a broken profile."""
    return [*_from_hub(settings), *_from_packages(load_profiles(settings), settings)]


def find_kept(text: str, settings: Settings) -> list[Kept]:
    """Return what `text` means of what is on this disk: a name or owner/repo, perhaps with a quantization or a file.

    Raises NotFound, naming the nearest, when there is nothing of it; BadValue for a path.
    """
    reference = parse_ref(text)
    if isinstance(reference, PathRef):
        raise BadValue("MODEL", f"{text} is a file of your own", hint="rm deletes downloaded models only")
    names = {reference.repo} if not isinstance(reference, NameRef) else _names(reference, settings)
    lower = {name.lower() for name in names}
    kept = list_kept(settings)
    wanted = reference.quantization
    file = reference.file if isinstance(reference, RepoRef) else None
    found = [
        model
        for model in kept
        if model.name.lower() in lower
        and (wanted is None or model.ref.upper() == f"{model.name}:{wanted}".upper())
        and (file is None or (model.cached is not None and model.cached.holds(file)))
    ]
    if not found:
        close = nearest(text, [model.ref for model in kept])
        hint = f"did you mean {close}?" if close else "see what is here: ggufdeploy list"
        raise NotFound("model", text, f"{text} is not on this disk", hint=hint)
    return found


def delete(model: Kept, settings: Settings) -> int:
    """Delete the model's files; return the bytes freed. Contents that other commits need stay."""
    if model.cached is not None:
        return remove(model.cached, settings)
    for path in model.paths:
        path.unlink()
    return model.n_bytes


def _names(reference: NameRef, settings: Settings) -> set[str]:
    """Return the names under which a profile's models are kept."""
    profile = load_profiles(settings).find(reference.name)
    return {profile.name, *profile.repos}


def _from_hub(settings: Settings) -> Iterator[Kept]:
    for model in list_cached(settings):
        yield Kept(model.repo, model.repo, model.quantization, model.paths, model.n_bytes, model.last_used_s, model)


def _from_packages(profiles: ProfileSet, settings: Settings) -> Iterator[Kept]:
    for profile in profiles.profiles():
        path = cached_pypi_model(profile.pypi, settings) if profile.pypi else None
        if path is not None and profile.pypi is not None:
            quantization = parse_quantization(profile.pypi.file) or "unknown"
            used_s = max(path.stat().st_atime, path.stat().st_mtime)
            yield Kept(profile.name, None, quantization, (path,), profile.pypi.n_bytes, used_s)
