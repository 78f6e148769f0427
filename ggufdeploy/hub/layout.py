"""Where a repository's files lie in the Hugging Face cache, which other tools read and write too.

    models--OWNER--NAME/blobs/CHECKSUM
                       /snapshots/COMMIT/PATH -> ../../blobs/CHECKSUM
                       /refs/REVISION            holds a COMMIT
    .locks/models--OWNER--NAME/CHECKSUM.lock

Source: huggingface_hub file_download.py (repo_folder_name, _create_symlink) and its cache guide; llama.cpp's `-hf` uses
the same (common/download.cpp).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.errors import NotFound
from ggufdeploy.hub.catalog import GgufFile, is_safe_path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
PARTIAL = ".ggufdeploy-partial"
DAMAGED = ".ggufdeploy-damaged"


def checksum(file: GgufFile) -> str:
    """Return the name of the file's blob: its sha256, or git's sha1 outside LFS. Raises NotFound without either."""
    name = file.sha256 or file.git_oid
    if name is None or not _CHECKSUM.fullmatch(name):
        raise NotFound("file", file.path, f"the Hub lists no checksum for {file.path}, so it cannot be verified")
    return name


@dataclass(frozen=True)
class RepoCache:
    """The paths of one repository under root, the Hugging Face cache. Only link and write_ref touch the disk."""

    root: Path
    repo: str

    @property
    def folder(self) -> Path:
        """The repository's folder."""
        return self.root / f"models--{self.repo.replace('/', '--')}"

    @property
    def blobs(self) -> Path:
        """Contents, named by checksum."""
        return self.folder / "blobs"

    @property
    def snapshots(self) -> Path:
        """One folder of links per commit."""
        return self.folder / "snapshots"

    def blob(self, file: GgufFile) -> Path:
        """Where the complete file lies."""
        return self.blobs / checksum(file)

    def partial(self, file: GgufFile) -> Path:
        """Where it grows while it is fetched."""
        return self.blobs / f"{checksum(file)}{PARTIAL}"

    def note(self, file: GgufFile) -> Path:
        """Who fetches the partial, and what it is part of; JSON."""
        return self.blobs / f"{checksum(file)}{PARTIAL}.json"

    def damaged(self, file: GgufFile) -> Path:
        """Where contents with a wrong checksum are put aside."""
        return self.blobs / f"{checksum(file)}{DAMAGED}"

    def lock(self, file: GgufFile) -> Path:
        """The lock that huggingface_hub takes for the same blob."""
        return self.root / ".locks" / self.folder.name / f"{checksum(file)}.lock"

    def entry(self, commit: str, path: str) -> Path:
        """Where a commit's file is found by its name. Raises ValueError when either is not safe to join."""
        if not _COMMIT.fullmatch(commit) or not is_safe_path(path):
            raise ValueError(f"not a path in a snapshot: {commit}/{path}")
        return self.snapshots / commit / path

    def link(self, commit: str, file: GgufFile) -> Path:
        """Make the commit's entry point to the blob, atomically; return the entry."""
        entry, blob = self.entry(commit, file.path), self.blob(file)
        entry.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blob, entry.parent)
        if not entry.is_symlink() or str(entry.readlink()) != target:
            fresh = entry.with_name(f".{entry.name[:200]}.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.replace(entry)
        # huggingface_hub leaves this marker after a 404 and then denies the file even when it is there.
        denial = self.folder / ".no_exist" / commit / file.path
        if denial.exists():
            denial.unlink(missing_ok=True)
        return entry

    def write_ref(self, revision: str, commit: str) -> None:
        """Record that a branch or tag names `commit`, as huggingface_hub expects offline, unless that is known."""
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise ValueError(f"not a revision: {revision}")
        if self.read_ref(revision) == commit:
            return
        ref = self.folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh = ref.with_name(f".{ref.name[:200]}.{os.getpid()}")
        fresh.write_text(commit, encoding="ascii")
        fresh.replace(ref)

    def read_ref(self, revision: str) -> str | None:
        """Return the commit last recorded for `revision`, None when there is none."""
        try:
            return (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
