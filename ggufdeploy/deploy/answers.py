"""Dry runs remembered on disk: the same question about the same header and build has the same answer.

What is free on a device changes from moment to moment, so questions about that are never answered from here: only
questions about a model file that was introduced with `about` are.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from functools import cache
from pathlib import Path

import msgspec

from ggufdeploy.deploy.sources import Headers
from ggufdeploy.engine import dryrun, native, parameters
from ggufdeploy.engine.dryrun import DryRun, DryRunAnswer
from ggufdeploy.engine.request import EngineConfig

_KEPT_FILES = 2000
"""Answers take about 500 bytes each; beyond this many the oldest half goes."""


class RememberedDryRun(DryRun):
    """A dry run that asks llama.cpp only what it was never asked. folder: None to remember nothing.

    devices: what else the answer depends on, as text: the names and kinds of the devices llama.cpp sees.
    """

    def __init__(self, folder: Path | None, devices: str) -> None:
        super().__init__()
        self._folder, self._devices = folder, devices
        self._subjects: dict[str, str] = {}

    def about(self, path: Path, headers: Headers) -> None:
        """Say which headers the model at `path` has, so that answers about it are remembered."""
        self._subjects[str(path)] = fingerprint(headers)

    def ask(self, config: EngineConfig) -> DryRunAnswer:
        """See DryRun.ask. A remembered answer's free bytes are those of its day."""
        subject = self._subjects.get(config.model_path)
        if self._folder is None or subject is None:
            return super().ask(config)
        path = self._folder / f"{self._key(subject, config)}.json"
        known = _read(path)
        if known is not None:
            return known
        answer = super().ask(config)
        _store(path, answer)
        return answer

    def _key(self, subject: str, config: EngineConfig) -> str:
        """Name the question: header, parameters that matter for memory, build, devices."""
        endpoints = ("",) * len(config.rpc_endpoints)  # a port changes, the device behind it does not
        asked = msgspec.structs.replace(config, model_path="", threads=0, rpc_endpoints=endpoints)
        devices = self._devices if config.n_gpu_layers else ""
        parts = (subject, msgspec.json.encode(asked).decode(), build_fingerprint(), devices)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def fingerprint(headers: Headers) -> str:
    """Return what makes these headers: the bytes of each, and the sizes of the files."""
    digest = hashlib.sha256()
    for shard in headers.shards:
        digest.update(f"{shard.n_bytes}:{len(shard.raw)}:".encode())
        digest.update(shard.raw)
    return digest.hexdigest()


@cache
def build_fingerprint() -> str:
    """Return what tells builds of llama.cpp apart, without loading one: names, sizes and times of its libraries.

    And of our own files that put the question, whose fixed parameters no question names.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return "none"
    package = Path(spec.origin).parent
    libraries = sorted({path for folder in (package.parent, package) for path in (folder / "lib").glob("lib*")})
    asking = [Path(module.__file__ or "") for module in (dryrun, native, parameters)]
    stats = [(path.name, path.stat()) for path in (*libraries, *asking)]
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def _read(path: Path) -> DryRunAnswer | None:
    """Return a remembered answer; None when there is none, or a damaged one that is asked again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DryRunAnswer)
    except (OSError, msgspec.DecodeError):
        return None


def _store(path: Path, answer: DryRunAnswer) -> None:
    """Write an answer; a file system that refuses costs the next plan a question, so it is no error."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _prune(path.parent)
        fresh.write_bytes(msgspec.json.encode(answer))
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    files = list(folder.iterdir())
    if len(files) > _KEPT_FILES:
        for path in sorted(files, key=lambda path: path.stat().st_mtime)[: len(files) // 2]:
            path.unlink(missing_ok=True)
