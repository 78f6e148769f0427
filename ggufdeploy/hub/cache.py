"""Models in the Hugging Face cache: what is there, what can run offline, and removing one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.errors import NotFound
from ggufdeploy.hub.catalog import GgufFile, build_catalogue
from ggufdeploy.hub.layout import RepoCache
from ggufdeploy.settings import Settings


@dataclass(frozen=True)
class CachedModel:
    """One complete artifact. paths: its shards in order, in the snapshot. last_used_s: Unix time of the last read.

    n_bytes: of the files, which other commits' snapshots may share. by_file: it is a second build of a quantization, or
    of another model than the rest of the repository, so only the name of its file means it.
    """

    repo: str
    commit: str
    quantization: str
    paths: tuple[Path, ...]
    n_bytes: int
    last_used_s: float
    by_file: bool = False

    def holds(self, file: str) -> bool:
        """Whether a file of the repository is one of its shards."""
        return any(path.as_posix().endswith(f"/{self.commit}/{file}") for path in self.paths)


def list_cached(settings: Settings) -> list[CachedModel]:
    """Return every complete artifact in the cache, by repository and size; no network, no other program needed.

    A quantization that several commits share is listed once, under the commit that main names or the newest.
    """
    folders = sorted(settings.hf_cache_dir.glob("models--*--*"))
    repos = [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
    return [model for repo in repos for model in _distinct(repo, settings)]


def find_cached(
    repo: str, settings: Settings, quantization: str | None = None, file: str | None = None
) -> list[CachedModel]:
    """Return the repository's complete artifacts, one per quantization: of the commit main names, else the newest.

    quantization: canonical name; None for all. file: path in the repository; only what it belongs to. Empty when there
    is none.
    """
    found: dict[str, CachedModel] = {}
    for model in _distinct(repo, settings):
        if quantization in (None, model.quantization) and (model.holds(file) if file else not model.by_file):
            found.setdefault(model.quantization, model)
    return list(found.values())


def remove(model: CachedModel, settings: Settings) -> int:
    """Delete the artifact's entries and the contents nothing else refers to; return the bytes freed.

    Entries of other commits under the same name with the same contents go too. Raises NotFound when it is gone.
    """
    from huggingface_hub import scan_cache_dir

    wanted = {_relative(path, model.commit): path.resolve() for path in model.paths}
    if not all(path.exists() for path in model.paths):
        raise NotFound("file", str(model.paths[0]), f"{model.repo} {model.quantization} is not in the cache any more")
    scan = scan_cache_dir(settings.hf_cache_dir)
    selected = [
        file
        for repo in scan.repos
        if repo.repo_id == model.repo and repo.repo_type == "model"
        for revision in repo.revisions
        for file in revision.files
        if wanted.get(_relative(file.file_path, revision.commit_hash)) == file.file_path.resolve()
    ]
    strategy = scan.delete_files(*selected)
    strategy.execute()
    _prune(RepoCache(settings.hf_cache_dir, model.repo))
    return strategy.expected_freed_size


def _relative(path: Path, commit: str) -> str:
    """Return the path within the repository."""
    parts = path.parts
    return "/".join(parts[len(parts) - parts[::-1].index(commit) :])


def _distinct(repo: str, settings: Settings) -> Iterator[CachedModel]:
    """Yield complete artifacts, of main's commit first, then newest; each set of contents once."""
    seen: set[tuple[str, tuple[Path, ...]]] = set()
    for snapshot in _snapshots(RepoCache(settings.hf_cache_dir, repo)):
        for model in _models_in(snapshot, repo):
            contents = (model.quantization, tuple(path.resolve() for path in model.paths))
            if contents not in seen:
                seen.add(contents)
                yield model


def _snapshots(cache: RepoCache) -> list[Path]:
    current = cache.read_ref("main")
    folders = [folder for folder in cache.snapshots.glob("*") if folder.is_dir()]
    return sorted(folders, key=lambda folder: (folder.name != current, -folder.stat().st_mtime))


def _models_in(snapshot: Path, repo: str) -> Iterator[CachedModel]:
    paths = [path for path in snapshot.rglob("*.gguf") if path.is_file()]
    files = [GgufFile(str(path.relative_to(snapshot)), path.stat().st_size, None) for path in paths]
    catalogue = build_catalogue(repo, snapshot.name, files)
    for artifact in (*catalogue.artifacts, *catalogue.others):
        shards = tuple(snapshot / file.path for file in artifact.files)
        used_s = max(max(path.stat().st_atime, path.stat().st_mtime) for path in shards)
        by_file = artifact in catalogue.others
        yield CachedModel(repo, snapshot.name, artifact.quantization, shards, artifact.total_bytes, used_s, by_file)


def _prune(cache: RepoCache) -> None:
    """Remove folders left empty, and the repository's folder once it holds no file and no partial."""
    for folder in sorted(cache.snapshots.rglob("*"), reverse=True):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    if not any(cache.snapshots.glob("*")) and not any(cache.blobs.glob("*")):
        shutil.rmtree(cache.folder)
