"""What can go wrong on purpose, and how often."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

FaultKind = Literal[
    # bodies
    "cut",  # close the connection after `at` bytes of the body
    "stall",  # send nothing more after `at` bytes, until `seconds` have passed or the server closes
    "slow",  # pause `seconds` before every 64 KiB
    "short",  # announce and send `at` bytes only, under the Content-Range that was asked for
    "corrupt",  # flip the file's byte at offset `at`
    "oversize",  # send 1,000 bytes more than the file or range has
    "gzip",  # send the body compressed, with Content-Encoding: gzip
    "ignore_range",  # answer 200 and the whole file whatever range was asked for
    "wrong_range",  # send the bytes asked for under a Content-Range that starts one byte later
    # answers
    "status",  # a listing or the CDN answers `status` with `headers`
    "resolve_status",  # /resolve answers `status` with `headers`
    "expired",  # the CDN answers 403, as for a signed URL that is too old
    "expiring",  # every signed URL is good for `at` requests (0: any number) and `seconds`; lasts until the reset
    "wrong_etag",  # /resolve names another sha256
    "no_etag",  # /resolve names no ETag and no X-Linked-Etag
    "no_commit",  # /resolve names no X-Repo-Commit
    "other_commit",  # /resolve names another X-Repo-Commit than the one it was asked for
    # connections: the pattern is "hub" or "cdn"
    "reset",  # reset a new connection instead of reading from it
]


@dataclass
class Fault:
    """One misbehaviour. pattern: glob over "owner/repository/path" or its last part. times: None means always."""

    kind: FaultKind
    pattern: str = "*"
    at: int = 0
    status: int = 503
    seconds: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int | None = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"no fault is called {self.kind!r}")

    def matches(self, name: str) -> bool:
        """Whether it still applies to `name`."""
        globs = (name, name.rpartition("/")[2])
        return self.times != 0 and any(fnmatch.fnmatchcase(each, self.pattern) for each in globs)


class Faults:
    """The faults in force. May be used by several threads."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Put one in force."""
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """End them all."""
        with self._lock:
            self._faults.clear()

    def find(self, name: str, *kinds: FaultKind) -> Fault | None:
        """Return the first fault of these kinds for `name`, without using it up."""
        return next((fault for fault in self._faults if fault.kind in kinds and fault.matches(name)), None)

    def take(self, name: str, *kinds: FaultKind) -> Fault | None:
        """Return the first fault of these kinds for `name` and use it up once."""
        with self._lock:
            fault = self.find(name, *kinds)
            if fault is not None and fault.times is not None:
                fault.times -= 1
            return fault
