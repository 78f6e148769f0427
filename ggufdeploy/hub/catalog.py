"""What a repository offers: quantizations as artifacts of one or more shards, with bytes and sha256."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ggufdeploy.errors import NotFound, nearest
from ggufdeploy.hub.quantization import canonical_quantization, parse_quantization

if TYPE_CHECKING:
    from ggufdeploy.hub.session import HubClient

__all__ = ["Artifact", "Catalogue", "GgufFile", "build_catalogue", "list_repository", "parse_quantization"]

UNNAMED = "unknown"
"""The quantization of a repository's only model file when its name does not say one."""

SHARD = re.compile(r"(?P<prefix>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""Source: llama.cpp src/llama.cpp, llama_split_path: "<prefix>-00001-of-00003.gguf", counted from 1."""

_PIECE = re.compile(r"\.gguf[.-]?(part|split|cat)[\w.-]*$", re.IGNORECASE)
# Files that accompany a model and cannot be served alone. Source: llama.cpp common/download.cpp leaves out the same.
_SIDECARS = (
    (re.compile(r"(^|[-._])mmproj([-._]|$)", re.IGNORECASE), "a vision projector, which accompanies a model"),
    (re.compile(r"(^|[-._])imatrix([-._]|$)", re.IGNORECASE), "importance matrix, not a model"),
    (re.compile(r"^(mtp|eagle3|dflash|dspark|draft)[-._]", re.IGNORECASE), "a draft model, which accompanies a model"),
    (re.compile(r"^(ggml-)?vocab[-._]", re.IGNORECASE), "only a vocabulary"),
)


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


@dataclass(frozen=True)
class Catalogue:
    """A repository at one commit. skipped: (path, reason) of GGUF-like files that are not offered as models."""

    repo: str
    commit: str
    artifacts: tuple[Artifact, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def find(self, quantization: str) -> Artifact:
        """Return the artifact of that name; spelling may vary as in file names ("q4_k_m", "Q6", "fp16").

        Raises NotFound with the nearest name and the list.
        """
        wanted = (canonical_quantization(quantization) or quantization).upper()
        names = {artifact.quantization.upper(): artifact for artifact in self.artifacts}
        # Only the Hub's own dynamic mixes have names such as Q4_K_XL, so leaving out "UD-" is not ambiguous for them.
        found = names.get(wanted) or (names.get(f"UD-{wanted}") if wanted.endswith("_XL") else None)
        if found is not None:
            return found
        offered = [artifact.quantization for artifact in self.artifacts]
        close = nearest(quantization, offered)
        raise NotFound(
            "quantization",
            quantization,
            f"{self.repo} has no {quantization}; it has {', '.join(offered) or 'none'}",
            hint=f"did you mean {close}? ggufdeploy run {self.repo}:{close}" if close else None,
        )


def build_catalogue(repo: str, commit: str, files: Iterable[GgufFile]) -> Catalogue:
    """Group a repository's files into artifacts, smallest first; pure.

    What is left out although it looks like GGUF is listed with its reason in `skipped`.
    """
    skipped: list[tuple[str, str]] = []
    sets: dict[tuple[str, int], list[GgufFile]] = {}
    for file in sorted(files, key=lambda file: (file.path.count("/"), file.path)):
        reason = _reason_to_skip(file)
        if reason is not None:
            skipped += [(file.path, reason)] if _looks_like_gguf(file.path) else []
            continue
        shard = SHARD.fullmatch(file.path)
        key = (shard["prefix"], int(shard["count"])) if shard else (file.path, 0)
        sets.setdefault(key, []).append(file)
    artifacts: dict[str, Artifact] = {}
    for (_, count), members in sets.items():
        reason = _incomplete(members, count) if count else None
        name = parse_quantization(members[0].path) or UNNAMED
        if reason is None and name in artifacts:
            reason = f"{artifacts[name].files[0].path} is {name} too"
        if reason is None:
            artifacts[name] = Artifact(name, tuple(members))
        else:
            skipped += [(file.path, reason) for file in members]
    if UNNAMED in artifacts and len(artifacts) > 1:
        unnamed = artifacts.pop(UNNAMED)
        skipped += [(file.path, "its name does not say the quantization") for file in unnamed.files]
    ordered = sorted(artifacts.values(), key=lambda artifact: (artifact.total_bytes, artifact.quantization))
    return Catalogue(repo, commit, tuple(ordered), tuple(sorted(skipped)))


def list_repository(repo: str, revision: str | None, client: HubClient) -> Catalogue:
    """List a repository at the commit that `revision` (None: main) names now.

    Raises NotFound (also when nothing in it can be served), AccessDenied, Unreachable, Offline, RateLimited.
    """
    commit = client.resolve_commit(repo, revision)
    catalogue = build_catalogue(repo, commit, client.list_files(repo, commit))
    if not catalogue.artifacts:
        first = f"; {catalogue.skipped[0][0]}: {catalogue.skipped[0][1]}" if catalogue.skipped else ""
        raise NotFound(
            "model",
            repo,
            f"{repo} has no GGUF model that can be served{first}",
            hint="look for a repository whose name ends in -GGUF",
        )
    return catalogue


def _looks_like_gguf(path: str) -> bool:
    return path.lower().endswith(".gguf") or _PIECE.search(path) is not None


def _reason_to_skip(file: GgufFile) -> str | None:
    name = PurePosixPath(file.path).name
    if not is_safe_path(file.path):
        return "its path is not safe to write on a disk"
    if not name.lower().endswith(".gguf"):
        return "a raw piece of a file, which llama.cpp cannot load" if _PIECE.search(name) else "not GGUF"
    for pattern, reason in _SIDECARS:
        if pattern.search(name.removesuffix(".gguf")):
            return reason
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
    missing = [index for index in range(1, count + 1) if index not in indexes.values()]
    if missing:
        some = ", ".join(map(str, missing[:5])) + ("…" if len(missing) > 5 else "")
        return f"shard {some} of {count} is missing" if len(missing) == 1 else f"shards {some} of {count} are missing"
    return None if len(members) == count else f"{len(members)} files where {count} shards were expected"
