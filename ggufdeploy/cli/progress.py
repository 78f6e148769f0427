"""A download on stderr: a bar per file and one for all on a terminal, a line per file elsewhere, or nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

import click

from ggufdeploy.units import format_duration, format_file_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Style = Literal["bars", "lines", "silent"]


class FileProgress(Protocol):
    """What a download reports. All bytes count what was on disk before; total_bytes is of all files together."""

    @property
    def file(self) -> str:
        """The file this report is about."""

    @property
    def file_done_bytes(self) -> int:
        """Its bytes on disk."""

    @property
    def file_total_bytes(self) -> int:
        """Its size."""

    @property
    def done_bytes(self) -> int:
        """Bytes of all files on disk."""

    @property
    def total_bytes(self) -> int:
        """Size of all files."""


DownloadProgress = Callable[[FileProgress], None]


@contextmanager
def open_progress(style: Style) -> Iterator[DownloadProgress]:
    """Yield the function to call with every report, from any thread."""
    if style == "bars":
        with _bars() as show:
            yield show
    else:
        yield _Lines() if style == "lines" else _ignore


def _ignore(report: FileProgress) -> None:
    """Show nothing."""


class _Lines:
    """Says when a file starts and when it is complete, with its mean rate; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[str, tuple[float, int]] = {}
        self._complete: set[str] = set()

    def __call__(self, report: FileProgress) -> None:
        with self._lock:
            name, now = report.file, time.monotonic()
            if name not in self._started:
                self._started[name] = (now, report.file_done_bytes)
                self._say_start(report)
            if report.file_done_bytes >= report.file_total_bytes and name not in self._complete:
                self._complete.add(name)
                self._say_end(report, now)

    def _say_start(self, report: FileProgress) -> None:
        if report.file_done_bytes >= report.file_total_bytes:
            return
        kept = f", {format_file_size(report.file_done_bytes)} of it here already" if report.file_done_bytes else ""
        click.echo(f"fetching {report.file}: {format_file_size(report.file_total_bytes)}{kept}", err=True)

    def _say_end(self, report: FileProgress, now: float) -> None:
        started, had_bytes = self._started[report.file]
        fetched, seconds = report.file_done_bytes - had_bytes, now - started
        if not fetched:
            click.echo(f"complete: {report.file}", err=True)
            return
        rate = f", {format_file_size(int(fetched / seconds))}/s" if seconds > 0 else ""
        click.echo(f"complete: {report.file} in {format_duration(seconds)}{rate}", err=True)


@contextmanager
def _bars() -> Iterator[DownloadProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, redirect_stdout=False) as shown:
        yield _Bars(shown)


class _Bars:
    """Feeds rich, which is thread-safe, and adds a total once there are several files."""

    def __init__(self, shown: RichProgress) -> None:
        self._shown = shown
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None

    def __call__(self, report: FileProgress) -> None:
        with self._lock:
            task = self._tasks.get(report.file)
            if task is None:
                name = report.file.rpartition("/")[2]
                task = self._tasks[report.file] = self._shown.add_task(
                    name, total=report.file_total_bytes, completed=report.file_done_bytes
                )
            if self._total is None and report.total_bytes > report.file_total_bytes:
                self._total = self._shown.add_task("all files", total=report.total_bytes, completed=report.done_bytes)
        self._shown.update(task, completed=report.file_done_bytes)
        if self._total is not None:
            self._shown.update(self._total, completed=report.done_bytes)
