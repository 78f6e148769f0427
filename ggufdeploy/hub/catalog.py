"""What a repository offers: quantizations as artifacts of one or more shards, with bytes and sha256."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING

from ggufdeploy.errors import NotFound, nearest
from ggufdeploy.hub.companion import MEANINGS, SHARD, CompanionKind, companion_kind, is_gguf_name, whole_of_piece
from ggufdeploy.hub.quantization import (
    canonical_quantization,
    name_before_quantization,
    parse_quantization,
    why_unloadable,
)

if TYPE_CHECKING:
    from ggufdeploy.hub.session import HubClient

__all__ = ["Artifact", "Catalogue", "Companion", "GgufFile", "build_catalogue", "list_repository", "parse_quantization"]

UNNAMED = "unknown"
"""The quantization of a model file whose name does not say one."""

# Words at the end of a name, before the quantization, that say how a file was made and not which model it is.
_MAKING = re.compile(r"(?:^|[-_. ]+)(?:i1|ud|imat|imatrix|gguf|smol|static)?[-_. ]*$", re.IGNORECASE)
_GENERIC = frozenset({"", "model", "ggml-model"})
"""Names of files that leave it to their folder to say which model they are."""


@dataclass(frozen=True)
class GgufFile:
    """One file. path: within the repository. sha256: hex, None when the listing has none (not an LFS file).

    git_oid: git's own sha1 of a file that is not in LFS, hex; None for LFS files and where the listing has none.
    """

    path: str
    n_bytes: int
    sha256: str | None
    git_oid: str | None = None


@dataclass(frozen=True)
class Artifact:
    """One quantization: its shards in order. quantization: canonical name ("Q4_K_M", "UD-Q4_K_XL", "F16")."""

    quantization: str
    files: tuple[GgufFile, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes to download."""
        return sum(file.n_bytes for file in self.files)

    @property
    def model(self) -> str:
        """Which model it is of, as its first file is named, or the folder of a file called just "model"; may be ""."""
        *folders, name = self.files[0].path.split("/")
        own = _model_in(name)
        return (_model_in(folders[-1]) or own) if folders and own.lower() in _GENERIC else own


@dataclass(frozen=True)
class Companion:
    """A file that goes with a model: a projector, draft model, importance matrix, vocabulary or LoRA adapter."""

    kind: CompanionKind
    file: GgufFile


@dataclass(frozen=True)
class Catalogue:
    """A repository at one commit.

    artifacts: one model's quantizations, smallest first, each name once. others: complete files reachable by path only:
    another model's, or a second build of a quantization. skipped: (path, reason) of GGUF-like files that cannot be
    loaded. models: the names of the models the repository holds, that of `artifacts` first.
    """

    repo: str
    commit: str
    artifacts: tuple[Artifact, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    companions: tuple[Companion, ...] = ()
    others: tuple[Artifact, ...] = ()
    models: tuple[str, ...] = ()

    @property
    def is_evident(self) -> bool:
        """Whether it is clear which model is meant: the only one, the one named as the repository, or the fullest."""
        if len(self.models) < 2 or _normal(self.models[0]) == _named_after(self.repo):
            return True
        counts = Counter(_key(artifact) for artifact in self.others)
        return len(self.artifacts) > max(counts[key] for key in counts if key != _key(self.artifacts[0]))

    @property
    def not_offered(self) -> tuple[tuple[str, str], ...]:
        """Every GGUF file that is no model, with the reason: what is skipped, and the companions."""
        return (*self.skipped, *((item.file.path, MEANINGS[item.kind]) for item in self.companions))

    def find(self, quantization: str) -> Artifact:
        """Return the artifact of that name; spelling may vary as in file names ("q4_k_m", "Q6", "fp16").

        Raises NotFound: why it cannot be had although its files are there, else the nearest name and the list.
        """
        found = find_artifact(self.artifacts, quantization)
        if found is None:
            raise self._unavailable(canonical_quantization(quantization) or quantization)
        return found

    def find_file(self, path: str) -> Artifact:
        """Return the artifact that a file belongs to, also one of `others`; any shard names it.

        Raises NotFound, saying what the file is when it is there but is no model.
        """
        for artifact in (*self.artifacts, *self.others):
            if any(file.path == path for file in artifact.files):
                return artifact
        reasons = dict(self.not_offered)
        if path not in reasons:
            raise NotFound("file", f"{self.repo}/{path}", hint=f"see what there is: ggufdeploy show {self.repo}")
        raise NotFound("file", path, f"{path} of {self.repo} cannot be run: {reasons[path]}", hint=self._instead())

    def only(self, artifact: Artifact) -> Catalogue:
        """Return the same repository offering this artifact alone."""
        return replace(self, artifacts=(artifact,), models=(artifact.model,))

    def _unavailable(self, wanted: str) -> NotFound:
        """Return the error for a quantization that is not offered."""
        missing = [item for item in self.skipped if (parse_quantization(item[0]) or "").upper() == wanted.upper()]
        other = next((item for item in self.others if item.quantization.upper() == wanted.upper()), None)
        if other is not None:
            path = other.files[0].path
            message = f"{self.repo} has {wanted} only of another model: {path}"
            named = shlex.quote(f"{self.repo}/{path}")
            return NotFound("quantization", wanted, message, hint=f"name the file: ggufdeploy run {named}")
        if missing:
            path, reason = missing[0]
            message = f"{self.repo} has {wanted} only as {path}: {reason}"
            return NotFound("quantization", wanted, message, hint=self._instead(wanted))
        offered = [artifact.quantization for artifact in self.artifacts]
        return unknown_quantization(self.repo, wanted, offered)

    def _instead(self, wanted: str | None = None) -> str:
        """Return what to do about a quantization or file that is there but cannot be loaded."""
        offered = [artifact.quantization for artifact in self.artifacts]
        elsewhere = f"look for another repository that has {wanted or 'it'}"
        if not offered:
            return elsewhere
        close = (nearest(wanted, offered) if wanted else None) or offered[0]
        names = ", ".join(offered)
        return (
            f"take another quantization: ggufdeploy run {self.repo} --quant {close} (there are {names}), or {elsewhere}"
        )


def find_artifact(artifacts: Sequence[Artifact], quantization: str) -> Artifact | None:
    """Return the artifact a user means by a quantization's name, None when there is none."""
    wanted = (canonical_quantization(quantization) or quantization).upper()
    names = {artifact.quantization.upper(): artifact for artifact in artifacts}
    # Only the Hub's own dynamic mixes have names such as Q4_K_XL, so leaving out "UD-" is not ambiguous for them.
    return names.get(wanted) or (names.get(f"UD-{wanted}") if wanted.endswith("_XL") else None)


def unknown_quantization(name: str, wanted: str, offered: Sequence[str]) -> NotFound:
    """Return the error for a quantization that `name` does not have, with the nearest and all there are."""
    close = nearest(wanted, offered)
    hint = f"did you mean {close}? " if close else ""
    return NotFound(
        "quantization",
        wanted,
        f"{name} has no quantization {wanted}",
        hint=f"{hint}There are: {', '.join(offered) or 'none'}",
    )


def build_catalogue(repo: str, commit: str, files: Iterable[GgufFile]) -> Catalogue:
    """Sort a repository's files into models, their quantizations, companions and the rest; pure."""
    skipped: list[tuple[str, str]] = []
    companions: list[Companion] = []
    sets: dict[tuple[str, int | None], list[GgufFile]] = {}
    for file in {file.path: file for file in files if is_gguf_name(file.path)}.values():
        reason, kind = _reason_to_skip(file), companion_kind(file.path)
        if reason is not None:
            skipped.append((file.path, reason))
        elif kind is not None:
            companions.append(Companion(kind, file))
        else:
            shard = SHARD.fullmatch(file.path)
            key = (shard["prefix"], int(shard["count"])) if shard else (file.path, None)
            sets.setdefault(key, []).append(file)
    complete: list[Artifact] = []
    for (_, count), members in sets.items():
        name = parse_quantization(members[0].path) or UNNAMED
        reason = (_incomplete(members, count) if count is not None else None) or why_unloadable(name)
        if reason is None:
            complete.append(Artifact(name, tuple(members)))
        else:
            skipped += [(file.path, reason) for file in members]
    companions.sort(key=lambda item: item.file.path)
    artifacts, others, models = _ladder(complete, repo)
    return Catalogue(repo, commit, artifacts, tuple(sorted(skipped)), tuple(companions), others, models)


def list_repository(repo: str, revision: str | None, client: HubClient) -> Catalogue:
    """List a repository at the commit that `revision` (None: main) names now.

    Raises NotFound (also when nothing in it can be served), AccessDenied, Unreachable, Offline, RateLimited.
    """
    commit = client.resolve_commit(repo, revision)
    catalogue = build_catalogue(repo, commit, client.list_files(repo, commit))
    if not catalogue.artifacts:
        raise NotFound(
            "model",
            repo,
            f"{repo} has no GGUF model that can be served{shown_reasons(catalogue)}",
            hint="look for a repository whose name ends in -GGUF",
        )
    return catalogue


def shown_reasons(catalogue: Catalogue) -> str:
    """Return why a catalogue offers nothing, by its first file, as the end of a sentence; "" when it has no files."""
    return next((f"; {path}: {reason}" for path, reason in catalogue.not_offered), "")


def _ladder(
    complete: Sequence[Artifact], repo: str
) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...], tuple[str, ...]]:
    """Return one model's quantizations, all else, and the names of the models, the chosen one first.

    Chosen is the model called like the repository, else the one with the most quantizations. Of two files of one
    quantization the one less deep in folders, then with the shorter name is taken: tags such as "-mtp" make it longer.
    """
    preferred = sorted(complete, key=_prominence)
    groups = [list(group) for _, group in groupby(sorted(preferred, key=_key), key=_key)]
    if not groups:
        return (), (), ()
    name = _named_after(repo)
    groups.sort(key=lambda group: (_key(group[0]) != name, -len({item.quantization for item in group}), _key(group[0])))
    chosen: dict[str, Artifact] = {}
    for artifact in groups[0]:
        chosen.setdefault(artifact.quantization, artifact)
    if len(chosen) > 1:
        chosen.pop(UNNAMED, None)
    artifacts = sorted(chosen.values(), key=lambda artifact: (artifact.total_bytes, artifact.quantization))
    offered = set(artifacts)
    others = [artifact for artifact in preferred if artifact not in offered]
    first, *rest = (group[0].model for group in groups)
    return tuple(artifacts), tuple(others), (first, *(model for model in rest if model.lower() not in _GENERIC))


def _prominence(artifact: Artifact) -> tuple[int, int, str]:
    path = artifact.files[0].path
    return path.count("/"), len(path), path


def _model_in(name: str) -> str:
    """Return the model that a file, folder or repository is named after, as it is written there."""
    return _MAKING.sub("", _MAKING.sub("", name_before_quantization(name)))


def _named_after(repo: str) -> str:
    return _normal(_model_in(repo.rpartition("/")[2]))


def _key(artifact: Artifact) -> str:
    return _normal(artifact.model)


def _normal(model: str) -> str:
    """Write a model's name so that spellings of it compare equal."""
    return re.sub(r"[^a-z0-9.]+", "-", model.lower())


def _reason_to_skip(file: GgufFile) -> str | None:
    if not is_safe_path(file.path):
        return "its path is not safe to write on a disk"
    if whole_of_piece(file.path) is not None:
        return "a raw piece of a file, which llama.cpp cannot load"
    return None if file.n_bytes > 0 else "empty"


def is_safe_path(path: str) -> bool:
    """Whether a path from a listing stays inside the folder it is joined to; listings are hostile input."""
    parts = path.split("/")
    return (
        path.isprintable()
        and not re.search(r'[\\:*?"<>|]', path)
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


def _incomplete(members: list[GgufFile], count: int) -> str | None:
    """Return why a shard set cannot be loaded, None when it is complete. Sorts `members` by shard number."""
    indexes = {file.path: int(match["index"]) for file in members if (match := SHARD.fullmatch(file.path))}
    members.sort(key=lambda file: indexes[file.path])
    here = {index for index in indexes.values() if 1 <= index <= count}
    n_missing = count - len(here)
    if n_missing:
        first = islice((index for index in range(1, count + 1) if index not in here), 5)
        some = ", ".join(map(str, first)) + ("…" if n_missing > 5 else "")
        return f"shard {some} of {count} is missing" if n_missing == 1 else f"shards {some} of {count} are missing"
    return None if len(members) == count else f"{len(members)} files where {count} shards were expected"
