"""A stand-in for the Hugging Face Hub on loopback, for tests and manual trials.

It serves a directory laid out as `ROOT/owner/repository/any/file` over the Hub's API, and large files through a
redirect to a second server, as the Hub's CDN does. The real huggingface_hub talks to it through HF_ENDPOINT.

    with StandinHub(tmp_path / "hub") as hub:
        write_model(hub.root / "acme" / "tiny-GGUF" / "tiny.Q4_0.gguf", TINY_LLAMA, "Q4_0")
        settings = Settings(..., hf_endpoint=hub.url)
        hub.fault("cut", "*.gguf", at=1000)          # the next download of a .gguf file ends after 1,000 bytes
        ...
        assert [r.range for r in hub.requests if r.server == "cdn"] == ["bytes=0-", "bytes=1000-"]

Files may be added or changed while it runs; a repository's commit follows from its files' paths, sizes and times.
Sparse files (ghosts of many GB) are never hashed: they get a stable made-up sha256, or the one given to `declare`.
`hub.gated`, `hub.private` and `hub.tokens` control access. From the command line: `python -m tests.standin_hub DIR`.

Source of endpoints and headers: huggingface_hub 2.4 (hf_api.py, file_download.py, utils/_http.py).
"""

from __future__ import annotations

import fnmatch
import hashlib
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.standin_hub_http import CdnHandler, HubHandler, Logged, Server

__all__ = ["Fault", "Logged", "StandinHub"]

FaultKind = Literal[
    "cut",  # close the connection after `at` bytes of the body
    "stall",  # send nothing more after `at` bytes, until `seconds` have passed or the server closes
    "slow",  # pause `seconds` before every 64 KiB
    "corrupt",  # flip the file's byte at offset `at`
    "status",  # answer `status` with `headers` instead of the file or listing
    "ignore_range",  # answer 200 and the whole file whatever range was asked for
    "wrong_range",  # send the bytes asked for under a Content-Range that starts one byte later
    "expired",  # the CDN answers 403, as for a signed URL that is too old
    "oversize",  # send 1,000 bytes more than the file or range has
    "gzip",  # claim Content-Encoding: gzip
    "wrong_etag",  # the redirect names another sha256
]


@dataclass
class Fault:
    """One misbehaviour. pattern: glob over "owner/repository/path" or its last part. times: None means always."""

    kind: FaultKind
    pattern: str
    at: int = 0
    status: int = 503
    seconds: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int | None = 1

    def matches(self, name: str) -> bool:
        """Whether it still applies to `name`."""
        globs = (name, name.rpartition("/")[2])
        return self.times != 0 and any(fnmatch.fnmatchcase(each, self.pattern) for each in globs)


class StandinHub:
    """The two servers and what they were told; see the module's text for use."""

    def __init__(self, root: Path, *, page_size: int = 1000) -> None:
        self.root, self.page_size = root, page_size
        root.mkdir(parents=True, exist_ok=True)
        self.requests: list[Logged] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.tokens: set[str] = set()
        """Tokens that open gated and private repositories."""
        self.closing = threading.Event()
        self._faults: list[Fault] = []
        self._declared: dict[str, str] = {}
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._commits: dict[str, list[str]] = {}
        self._lock = threading.RLock()
        self._hub, self._cdn = Server(self, HubHandler), Server(self, CdnHandler)

    def __enter__(self) -> StandinHub:
        for server in (self._hub, self._cdn):
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in (self._hub, self._cdn):
            server.stop()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def cdn_url(self) -> str:
        """Where large files are redirected to."""
        return f"http://127.0.0.1:{self._cdn.server_port}"

    def fault(self, kind: FaultKind, pattern: str = "*", **options: Any) -> Fault:
        """Misbehave for what matches `pattern`; options: the other fields of Fault. Returns it, to be ended early."""
        fault = Fault(kind, pattern, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def take_fault(self, name: str, *kinds: FaultKind) -> Fault | None:
        """Return the first fault of these kinds for `name` and use it up once."""
        with self._lock:
            for fault in self._faults:
                if fault.kind in kinds and fault.matches(name):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def declare(self, name: str, sha256: str) -> None:
        """Say that "owner/repository/path" has this sha256, without hashing it."""
        self._declared[name] = sha256

    def log(self, entry: Logged) -> None:
        """Remember one request."""
        with self._lock:
            self.requests.append(entry)

    @staticmethod
    def is_lfs(path: str) -> bool:
        """Whether the Hub would keep the file outside git."""
        return ".gguf" in path

    def files(self, repo: str) -> dict[str, Path]:
        """Return the repository's files by their path in it."""
        top = self.root / repo
        return {str(p.relative_to(top)): p for p in sorted(top.rglob("*")) if p.is_file()}

    def repos(self) -> list[str]:
        """Return all "owner/repository"."""
        return sorted(str(p.relative_to(self.root)) for p in self.root.glob("*/*") if p.is_dir())

    def commit(self, repo: str) -> str:
        """Return the repository's present commit: 40 hex digits that change when its files do."""
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
        path = self.root / name
        stat = path.stat()
        key = (name, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if name in self._declared:
                return self._declared[name]
            if key not in self._hashes:
                self._hashes[key] = _digest(path, name, stat.st_size, sparse=stat.st_blocks * 512 < stat.st_size // 2)
            return self._hashes[key]


def _digest(path: Path, name: str, size: int, *, sparse: bool) -> str:
    if not StandinHub.is_lfs(name):
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if sparse and size > 16 << 20:
        return hashlib.sha256(f"ghost {name} {size}".encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def main() -> None:
    """Serve the directory named on the command line until interrupted."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.standin_hub DIR")
    with StandinHub(Path(sys.argv[1])) as hub:
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
