"""The stand-in itself: its directory, who may read what, its faults, and the two servers in front."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.standin_hub.checksums import Checksums, git_oid
from tests.standin_hub.faults import Fault, FaultKind, Faults
from tests.standin_hub.handlers import CdnHandler, HubHandler
from tests.standin_hub.server import Logged, Server, Side

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LFS = re.compile(r"\.(gguf|safetensors|bin|pt|pth|ckpt|onnx|h5|npz|msgpack|parquet|tar|gz|zip)\b", re.IGNORECASE)


class StandinHub:
    """The two servers and what they were told; see the package's text for use.

    host, port: where the Hub listens (0: any free port); the CDN takes any. redirect: whether large files come from
    the CDN. rate_bytes_per_s: what one connection gets at most; latency_s: waited before every answer.
    index: where checksums are kept between starts. recording: whether `requests` is kept.
    """

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        redirect: bool = True,
        page_size: int = 1000,
        rate_bytes_per_s: float | None = None,
        latency_s: float = 0.0,
        index: Path | None = None,
        recording: bool = True,
        controlled: bool = False,
    ) -> None:
        self.root, self.page_size, self.redirect = root, page_size, redirect
        self.rate_bytes_per_s, self.latency_s = rate_bytes_per_s, latency_s
        self.recording, self.controlled = recording, controlled
        root.mkdir(parents=True, exist_ok=True)
        self.requests: list[Logged] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.tokens: set[str] = set()
        """Tokens that open gated and private repositories."""
        self.on_request: Callable[[Logged], object] | None = None
        """Called before each answer, on the connection's thread; may change files, faults, or end a process."""
        self.closing = threading.Event()
        self.faults, self.checksums = Faults(), Checksums(root, index)
        self._declared: dict[str, str] = {}
        self._commits: dict[str, list[str]] = {}
        self._links: dict[str, list[float]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._servers = {"hub": Server(self, HubHandler, host, port), "cdn": Server(self, CdnHandler, host, 0)}

    def __enter__(self) -> StandinHub:
        for server in self._servers.values():
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers.values():
            server.stop()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be on this machine."""
        return f"http://127.0.0.1:{self.port('hub')}"

    @property
    def cdn_url(self) -> str:
        """Where large files are redirected to."""
        return f"http://127.0.0.1:{self.port('cdn')}"

    def port(self, side: Side) -> int:
        """Return the port that the Hub or the CDN listens on."""
        return self._servers[side].server_port

    @contextlib.contextmanager
    def refusing(self, side: Side) -> Iterator[None]:
        """Refuse new connections to one of the servers; those that are open go on."""
        self._servers[side].refuse()
        try:
            yield
        finally:
            self._servers[side].accept()

    def fault(self, kind: FaultKind, pattern: str = "*", **options: Any) -> Fault:
        """Misbehave for what matches `pattern`; options: the other fields of Fault. Returns it, to be ended early."""
        fault = Fault(kind, pattern, **options)
        self.faults.add(fault)
        return fault

    def reset(self) -> None:
        """Forget the faults and the requests."""
        self.faults.clear()
        self.requests.clear()

    def declare(self, name: str, sha256: str) -> None:
        """Say that "owner/repository/path" has this sha256, without hashing it."""
        self._declared[name] = sha256

    def log(self, entry: Logged) -> None:
        """Remember one request, and tell `on_request`."""
        if self.recording:
            self.requests.append(entry)
        if self.on_request is not None:
            self.on_request(entry)

    def sign(self, name: str) -> str:
        """Return the query that makes a link to the CDN a signed one."""
        with self._lock:
            signature = f"secret-{next(self._numbers)}"
            if self.faults.find(name, "expiring"):
                self._links[signature] = [time.monotonic(), 0]
        return f"Expires=3600&Signature={signature}"

    def is_expired(self, name: str, signature: str) -> bool:
        """Count one use of a signed link, and say whether it was one too many, or too late."""
        fault = self.faults.find(name, "expiring")
        with self._lock:
            link = self._links.get(signature)
            if fault is None or link is None:
                return False
            link[1] += 1
            return time.monotonic() - link[0] > fault.seconds or 0 < fault.at < link[1]

    @staticmethod
    def is_lfs(path: str) -> bool:
        """Whether the Hub would keep the file outside git."""
        return _LFS.search(path) is not None

    def has_repo(self, repo: str) -> bool:
        """Whether there is such a repository; never true for a name that leads out of the root."""
        owner, _, name = repo.partition("/")
        return all(_NAME.fullmatch(part) for part in (owner, name)) and (self.root / repo).is_dir()

    def files(self, repo: str) -> dict[str, Path]:
        """Return the repository's files by their path in it, without what `hf download --local-dir` notes down."""
        if not self.has_repo(repo):
            return {}
        top = self.root / repo
        found = {p.relative_to(top).as_posix(): p for p in sorted(top.rglob("*")) if p.is_file()}
        return {path: file for path, file in found.items() if not path.startswith(".cache/")}

    def repos(self) -> list[str]:
        """Return all "owner/repository"."""
        names = (p.relative_to(self.root).as_posix() for p in self.root.glob("*/*"))
        return sorted(name for name in names if self.has_repo(name))

    def commit(self, repo: str) -> str:
        """Return the repository's present commit: 40 hex digits that change when its files do.

        A link to a snapshot of a Hugging Face cache has the snapshot's commit.
        """
        top = (self.root / repo).resolve()
        if top.parent.name == "snapshots" and _COMMIT.fullmatch(top.name):
            commit = top.name
        else:
            stats = ((path, file.stat()) for path, file in self.files(repo).items())
            text = repr([repo, [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]])
            commit = hashlib.sha1(text.encode()).hexdigest()
        with self._lock:
            known = self._commits.setdefault(repo, [])
            if commit not in known:
                known.append(commit)
        return commit

    def resolve_commit(self, repo: str, revision: str) -> str | None:
        """Return the commit that `revision` names, None for an unknown one."""
        commit = self.commit(repo)
        if revision == "main":
            return commit
        return revision if revision in self._commits[repo] else None

    def oid(self, name: str) -> str:
        """Return the sha256 of an LFS file ("owner/repository/path"), or the git blob id of another."""
        if name in self._declared:
            return self._declared[name]
        return self.checksums.sha256(name) if self.is_lfs(name) else git_oid(self.root / name)
