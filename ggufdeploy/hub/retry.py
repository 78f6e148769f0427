"""When to try again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ggufdeploy.errors import Blocked, Offline, RateLimited, Unreachable

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """tries: failures in a row before giving up. Waits double from first_wait_s to longest_wait_s, with jitter.

    patience_s: the longest wait a server may ask for; when it asks for more, the user is told instead.
    """

    tries: int
    first_wait_s: float
    longest_wait_s: float
    patience_s: float

    def wait_s(self, failures: int, error: Unreachable) -> float | None:
        """Return the seconds to wait after that many failures in a row; None: give up."""
        if isinstance(error, Offline | Blocked) or failures >= self.tries:
            return None
        if isinstance(error, RateLimited) and error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= self.patience_s else None
        doubled: float = self.first_wait_s * 2.0 ** (failures - 1)
        return min(self.longest_wait_s, doubled) * random.uniform(0.5, 1.0)


FOR_QUESTIONS = RetryPolicy(tries=3, first_wait_s=0.5, longest_wait_s=2.0, patience_s=10.0)
"""Listings and headers: someone is waiting for the answer."""

FOR_DOWNLOADS = RetryPolicy(tries=8, first_wait_s=1.0, longest_wait_s=30.0, patience_s=300.0)
"""Large files: about two minutes without a byte before giving up. The Hub counts requests in windows of 300 s."""


def retrying(policy: RetryPolicy, operation: Callable[[], T]) -> T:
    """Return what `operation` returns, trying again while it raises Unreachable; the last error is raised as it is."""
    failures = 0
    while True:
        try:
            return operation()
        except Unreachable as error:
            failures += 1
            wait_s = policy.wait_s(failures, error)
            if wait_s is None:
                raise
            time.sleep(wait_s)
