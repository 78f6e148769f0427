"""Where profiles come from: the shipped files, and the user's own, which override or extend them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufdeploy.errors import Ambiguous, BadConfig, NotFound, nearest
from ggufdeploy.profiles.profile import Profile, profile_from_dict
from ggufdeploy.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LIST_HINT = "list them: ggufdeploy profiles list"


@dataclass(frozen=True)
class ProfileSet:
    """All profiles: shipped_files and user_files map a profile's name to its file.

    A file is read when it is first needed; `find` by name reads that one only. Not safe for several threads.
    """

    shipped_files: Mapping[str, Path]
    user_files: Mapping[str, Path]
    _read: dict[Path, Profile] = field(default_factory=dict, repr=False, compare=False)

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted. Reads no file."""
        return tuple(sorted({*self.shipped_files, *self.user_files}))

    def path(self, name: str) -> Path:
        """Return the file that defines the profile called exactly `name`. Raises NotFound."""
        path = self.user_files.get(name) or self.shipped_files.get(name)
        if path is None:
            raise self._not_found(name)
        return path

    def find(self, name: str) -> Profile:
        """Return the profile with this name or alias, ignoring case.

        Names come before aliases, the user's before shipped ones.
        Raises NotFound, Ambiguous for the beginning of several names, BadConfig.
        """
        key = name.strip().lower()
        if key in self.user_files or key in self.shipped_files:
            return self._load(self.path(key))
        owner = self._aliases().get(key)
        if owner is None:
            raise self._not_found(name)
        return self._load(self.path(owner))

    def begun(self, name: str) -> tuple[str, ...]:
        """Return the names of which `name` is the beginning, up to a "-" or "."; reads no file."""
        key = name.strip().lower()
        return tuple(known for known in self.names() if known.startswith((f"{key}-", f"{key}.")))

    def by_repo(self, repo: str) -> Profile | None:
        """Return the profile that names this Hub repository first among its own, None when none does.

        Reads as TOML only the files that can name it: they mention it, or extend another. Raises BadConfig for those.
        """
        paths = [path for path in map(self.path, self.names()) if _can_name(path, repo.lower())]
        ranked = [
            (names.index(repo.lower()), profile)
            for profile in map(self._load, paths)
            if repo.lower() in (names := [name.lower() for name in profile.repos])
        ]
        return min(ranked, key=lambda item: item[0])[1] if ranked else None

    def profiles(self) -> tuple[Profile, ...]:
        """Return all profiles, sorted by name. Raises BadConfig, also when two files claim one alias."""
        self._aliases()
        return tuple(self._load(self.path(name)) for name in self.names())

    def _aliases(self) -> dict[str, str]:
        """Return alias -> profile name. A user's alias hides a shipped one; within one directory an alias is unique."""
        shipped = [name for name in self.shipped_files if name not in self.user_files]
        return {
            **self._unique_aliases(self._load(self.shipped_files[name]) for name in shipped),
            **self._unique_aliases(self._load(path) for path in self.user_files.values()),
        }

    def _unique_aliases(self, profiles: Iterator[Profile]) -> dict[str, str]:
        owners: dict[str, str] = {}
        for profile in profiles:
            for index, alias in enumerate(profile.aliases):
                other = alias if alias in self.names() else owners.get(alias)
                if other is not None:
                    key = f"aliases[{index}]"
                    raise BadConfig(key, f"{self.path(profile.name)}: {key} {alias!r} already means {other}")
                owners[alias] = profile.name
        return owners

    def _load(self, path: Path) -> Profile:
        if path not in self._read:
            profile = profile_from_dict(self._resolved(path, ()), origin=str(path))
            if profile.name != path.stem:
                raise BadConfig("name", f"{path}: name {profile.name!r} differs from the file's name")
            self._read[path] = profile
        return self._read[path]

    def _resolved(self, path: Path, trail: tuple[Path, ...]) -> dict[str, Any]:
        """Return the file's table, laid over the table of the profile it extends."""
        table = _read_toml(path)
        if "extends" not in table:
            return table
        parent = table.pop("extends")
        base = self._parent(path, parent, (*trail, path))
        inherited = self._resolved(base, (*trail, path))
        if base.stem != path.stem:
            inherited.pop("aliases", None)
        return {**_merged(inherited, table), "name": table.get("name", path.stem)}

    def _parent(self, path: Path, parent: object, trail: tuple[Path, ...]) -> Path:
        """Return the file called `parent`: the user's, except where that one is being read already."""
        if not isinstance(parent, str):
            raise BadConfig("extends", f"{path}: extends must be the name of a profile")
        found = [files[parent] for files in (self.user_files, self.shipped_files) if parent in files]
        free = [candidate for candidate in found if candidate not in trail]
        if free:
            return free[0]
        if found:
            raise BadConfig("extends", f"{path}: extends {parent!r} leads back to this file")
        close = nearest(parent, self.names())
        hint = f"did you mean {close}?" if close else _LIST_HINT
        raise BadConfig("extends", f"{path}: extends {parent!r}, which is no profile", hint=hint)

    def _not_found(self, name: str) -> NotFound:
        begun = self.begun(name)
        if len(begun) > 1:
            return Ambiguous("model", name, begun, hint=f"name one of them, for example {begun[0]}")
        first, *others = begun or self._nearest(name) or (None,)
        also = f" (or {', '.join(others)})" if others else ""
        return NotFound("model", name, hint=f"did you mean {first}?{also} {_LIST_HINT}" if first else _LIST_HINT)

    def _nearest(self, name: str) -> tuple[str, ...]:
        """Return up to three names like `name`, the nearest first; an alias only when no name is near."""
        left = set(self.names())
        found: list[str] = []
        while len(found) < 3 and (close := nearest(name.strip(), left)):
            found.append(close)
            left.discard(close)
        close = nearest(name.strip(), self._aliases()) if not found else None
        return (close,) if close else tuple(found)


def load_profiles(settings: Settings, *, shipped_dir: Path | None = None) -> ProfileSet:
    """List the profile files. shipped_dir: instead of the installed ones. Reads directories only."""
    return ProfileSet(
        shipped_files=_files(shipped_dir if shipped_dir is not None else shipped_profiles_dir()),
        user_files=_files(settings.user_profiles_dir),
    )


def shipped_profiles_dir() -> Path:
    """Return where the shipped profiles are: inside the wheel, or in the repository for a source checkout."""
    packaged = Path(__file__).parent / "shipped"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "profiles"


def _can_name(path: Path, repo: str) -> bool:
    """Tell whether a file may name a repository; one that cannot be read is left to those who report that."""
    try:
        text = path.read_text(encoding="utf-8").lower()
    except (OSError, UnicodeDecodeError):
        return True
    return repo in text or "extends" in text or "\\" in text  # an escape could spell it otherwise


def _files(directory: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(directory.glob("*.toml"))}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(str(path), f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(str(path), f"{path} is not TOML: {error}") from error
    return table


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `over` replaced, tables key by key."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both and below is not None else value
    return merged
