"""A download on stderr: a bar per file and one for all on a terminal, a line per file elsewhere, or nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import click

from ggufdeploy.cli.output import printable
from ggufdeploy.units import format_duration, format_file_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from ggufdeploy.hub.progress import Progress

Style = Literal["bars", "lines", "silent"]


# Without a terminal, a download of hours says something this often.
_LINE_EVERY_S = 30.0

DownloadProgress = Callable[["Progress"], None]


@contextmanager
def open_progress(style: Style) -> Iterator[DownloadProgress]:
    """Yield the function to call with every report, from any thread."""
    if style == "bars":
        with _bars() as show:
            yield show
    else:
        yield _Lines() if style == "lines" else _ignore


def _ignore(report: Progress) -> None:
    """Show nothing."""


class _Lines:
    """Says when a file is checked, starts, waits and is complete, and now and then how far it is; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spoke_at = time.monotonic()
        self._phases: dict[str, tuple[str, str | None]] = {}
        self._started: dict[str, tuple[float, int]] = {}

    def __call__(self, report: Progress) -> None:
        with self._lock:
            now = (report.phase, report.detail)
            news = self._phases.get(report.file) != now
            self._phases[report.file] = now
            if report.phase == "downloading":
                self._started.setdefault(report.file, (time.monotonic(), report.file_done_bytes))
            line = self._line(report) if news else self._so_far(report)
            if line:
                self._spoke_at = time.monotonic()
        if line:
            click.echo(printable(line), err=True)

    def _so_far(self, report: Progress) -> str | None:
        if report.phase != "downloading" or time.monotonic() - self._spoke_at < _LINE_EVERY_S:
            return None
        done, total = format_file_size(report.done_bytes), format_file_size(report.total_bytes)
        if report.bytes_per_s is None or report.remaining_s is None:
            return f"{done} of {total}"
        rate = format_file_size(round(report.bytes_per_s))
        return f"{done} of {total}, {rate}/s, {format_duration(report.remaining_s)} left"

    def _line(self, report: Progress) -> str | None:
        if report.detail:
            return report.detail
        size, here = format_file_size(report.file_total_bytes), report.file_done_bytes
        if report.phase == "checking":
            return f"checking {report.file}: {size}"
        if report.phase == "downloading":
            return f"fetching {report.file}: {size}" + (f", {format_file_size(here)} of it is here" if here else "")
        return self._ending(report) if report.phase == "done" else None

    def _ending(self, report: Progress) -> str:
        if report.file not in self._started:
            return f"complete: {report.file} was here"
        began, had_bytes = self._started[report.file]
        seconds = time.monotonic() - began
        fetched = format_file_size(report.file_total_bytes - had_bytes)
        return f"complete: {report.file}, {fetched} in {format_duration(seconds)}"


@contextmanager
def _bars() -> Iterator[DownloadProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    with RichProgress(*columns, console=console, redirect_stdout=False) as shown:
        yield _Bars(shown)


class _Bars:
    """Feeds rich, which is thread-safe, and adds a total once there are several files."""

    def __init__(self, shown: RichProgress) -> None:
        self._shown = shown
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None
        self._said: str | None = None

    def __call__(self, report: Progress) -> None:
        with self._lock:
            if report.detail and report.detail != self._said:
                self._shown.console.print(printable(report.detail), markup=False, highlight=False)
            self._said = report.detail
            if self._total is None and report.total_bytes > report.file_total_bytes:
                self._total = self._shown.add_task("all files", total=report.total_bytes)
            task = self._tasks.get(report.file)
            if task is None:
                name = printable(report.file.rpartition("/")[2])
                task = self._tasks[report.file] = self._shown.add_task(name, total=report.file_total_bytes)
        self._shown.update(task, completed=report.file_done_bytes)
        if self._total is not None:
            self._shown.update(self._total, completed=report.done_bytes)
