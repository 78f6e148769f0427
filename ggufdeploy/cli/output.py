"""One voice: who writes what to which stream, in which mode.

stdout carries the result alone: text, a table, or one JSON document. All else goes to stderr.
Text that comes from files or the Hub cannot move the cursor or colour the terminal: only this module styles.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from ggufdeploy.errors import BadValue

if TYPE_CHECKING:
    from ggufdeploy.cli.progress import DownloadProgress

Mode = Literal["human", "json", "quiet"]

# C0 and C1 controls, but tab and newline; and the marks that reorder what is shown.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return `text` with control characters shown as "?", so that it cannot drive a terminal."""
    return _CONTROL.sub("?", text)


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C where something can be said about how to go on. hint: that."""

    def __init__(self, hint: str) -> None:
        super().__init__()
        self.hint = hint


@dataclass(frozen=True)
class Output:
    """Streams and modes of one command.

    json: results are documents, messages JSON lines. quiet: results in their shortest form, and warnings; nothing else.
    """

    mode: Mode = "human"
    verbose: bool = False

    def result(self, text: str, document: object, *, brief: str | None = None) -> None:
        """Print the result. document: dataclasses, mappings, lists; brief: what --quiet prints, None for `text`."""
        if self.mode == "json":
            self.document(document)
        else:
            self._print(brief if self.mode == "quiet" and brief is not None else text)

    def document(self, document: object) -> None:
        """Print one JSON document, whatever the mode."""
        self._print(json.dumps(_plain(document), indent=2, allow_nan=False))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], document: object, *, empty: str | None = None
    ) -> None:
        """Print aligned rows under a header; --quiet prints the first column alone.

        columns: headings; one that starts with ">" is aligned right. empty: said on stderr when there are no rows.
        """
        if self.mode == "json":
            self.document(document)
        elif not rows:
            if empty:
                self.note(empty)
        elif self.mode == "quiet":
            self._print("\n".join(row[0] for row in rows))
        else:
            header, *lines = align(columns, rows)
            click.secho(_encodable(printable(header), sys.stdout), bold=True)
            self._print("\n".join(lines))

    def write(self, text: str) -> None:
        """Print a piece of a longer result at once, without a newline."""
        on_terminal = sys.stdout is not None and sys.stdout.isatty()  # None: started with stdout closed
        click.echo(_encodable(printable(text) if on_terminal else text, sys.stdout), nl=False)

    def note(self, text: str) -> None:
        """Say what happens, on stderr; not under --json or --quiet."""
        if self.mode == "human":
            self._message(text)

    def detail(self, text: str) -> None:
        """Say what only --verbose wants to know, on stderr."""
        if self.verbose and self.mode == "human":
            self._message(text)

    def hint(self, text: str) -> None:
        """Say what to do next, on stderr; not under --json or --quiet."""
        if self.mode == "human":
            self._message(text, click.style("hint:", fg="cyan"))

    def warning(self, message: str, hint: str | None = None) -> None:
        """Say what the user should know although it went on, on stderr, in every mode."""
        if self.mode == "json":
            click.echo(json.dumps({"warning": {"message": message, "hint": hint}}), err=True)
            return
        self._message(message, click.style("warning:", fg="yellow", bold=True))
        if hint and self.mode == "human":
            self.hint(hint)

    def relay_error(self, message: str, hint: str | None) -> None:
        """Pass on the error that another process ended with, on stderr, in every mode."""
        if self.mode == "json":
            error = {"type": "background", "message": message, "hint": hint}
            click.echo(json.dumps({"error": error}), err=True)
            return
        self._message(message, click.style("error:", fg="red", bold=True))

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask on the terminal, unless `yes`. Raises Abort for a no, BadValue where nobody can be asked."""
        if yes:
            return
        if self.mode != "human" or sys.stdin is None or not sys.stdin.isatty():
            raise BadValue("--yes", f"{printable(question)} Nobody can be asked here", hint="add --yes to go ahead")
        click.confirm(printable(question), abort=True, err=True)

    @contextmanager
    def download_progress(self) -> Iterator[DownloadProgress]:
        """Show a download: bars on a terminal, a line per file elsewhere, nothing under --json or --quiet.

        Call what this yields with every report of the download, from any thread. Raises Interrupted, with the command
        that goes on, for a Ctrl-C.
        """
        from ggufdeploy.cli.progress import open_progress

        with open_progress("silent" if self.mode != "human" else "bars" if _is_terminal() else "lines") as progress:
            try:
                yield progress
            except KeyboardInterrupt:
                raise Interrupted(f"what was fetched is kept; this goes on from there: {_typed_command()}") from None

    def _print(self, text: str) -> None:
        click.echo(_encodable(printable(text), sys.stdout))

    def _message(self, text: str, label: str = "") -> None:
        click.echo(f"{label} {printable(text)}" if label else printable(text), err=True)


def align(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the header and the rows as lines with aligned columns. columns: as in `Output.table`."""
    right = [name.startswith(">") for name in columns]
    cells = [[name.removeprefix(">") for name in columns], *([*map(str, row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(row) for row in cells]


def ago(moment_s: float) -> str:
    """Return how long ago a Unix time is, in the largest unit that fits."""
    seconds = max(0.0, time.time() - moment_s)
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _plain(value: object) -> object:
    """Return what JSON knows: fields of dataclasses and structs, also unset ones, by name; paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    names: Sequence[str] | None = getattr(value, "__struct_fields__", None)
    if names is not None:
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(_plain(item) for item in value)  # type: ignore[type-var]  # of one kind, in our documents
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _typed_command() -> str:
    """Return the command line of this process, as one can paste it; `main` leaves its arguments in the root context."""
    root = click.get_current_context().find_root()
    return shlex.join([root.command_path, *root.obj])


def _is_terminal() -> bool:
    """Return whether stderr can show bars."""
    import os

    on_terminal = sys.stderr is not None and sys.stderr.isatty()  # None: started with stderr closed
    return on_terminal and os.environ.get("TERM") != "dumb"


def _encodable(text: str, stream: TextIO | Any) -> str:
    """Return `text` with "?" for what the stream's encoding lacks; stderr does that by itself."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
