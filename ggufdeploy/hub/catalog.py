"""What a repository offers: quantizations as artifacts of one or more shards, with bytes and sha256."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GgufFile:
    """One file. path: within the repository. sha256: hex, None when the listing has none (not an LFS file)."""

    path: str
    n_bytes: int
    sha256: str | None


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
