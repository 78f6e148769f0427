"""Prometheus' text format, written. Used from one thread.

Source: Prometheus documentation, "Text-based format", version 0.0.4. `prometheus_client` is not used: what is needed
of it is this file, and its histograms take a lock for every observation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

MEDIA_TYPE = "text/plain; version=0.0.4"

_LABEL_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def header(name: str, kind: Literal["counter", "gauge", "histogram"], text: str) -> Iterator[str]:
    """Yield the two lines before a metric's samples."""
    yield f"# HELP {name} {text.translate(_HELP_ESCAPES)}"
    yield f"# TYPE {name} {kind}"


def sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """Return one line."""
    inside = ",".join(f'{label}="{text.translate(_LABEL_ESCAPES)}"' for label, text in (labels or {}).items())
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


class Histogram:
    """Observations in buckets. bounds: their upper ends, ascending; one more bucket takes what is above."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._bounds = name, text, tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` that many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self) -> Iterator[str]:
        """Yield all lines; the counts of buckets include those of the smaller ones, as the format wants it."""
        yield from header(self._name, "histogram", self._text)
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield sample(f"{self._name}_bucket", total, {"le": bound})
        yield sample(f"{self._name}_sum", self._sum)
        yield sample(f"{self._name}_count", total)
