"""Errors as text and exit codes: one table, one format."""

from __future__ import annotations

import errno
import json
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import click

from ggufdeploy import __version__
from ggufdeploy.cli.output import Interrupted, printable
from ggufdeploy.errors import (
    AccessDenied,
    BadGguf,
    BadValue,
    ChecksumMismatch,
    DoesNotFit,
    EngineError,
    GgufdeployError,
    NoDiskSpace,
    NotFound,
    PortBusy,
    RequestError,
    Unreachable,
    without_secrets,
)

BUG = 70
INTERRUPTED = 130
USAGE = 2

EXIT_CODES: Mapping[type[GgufdeployError], int] = MappingProxyType(
    {
        BadValue: USAGE,
        NotFound: 3,
        AccessDenied: 4,
        DoesNotFit: 5,
        Unreachable: 6,
        NoDiskSpace: 7,
        BadGguf: 1,
        ChecksumMismatch: 1,
        PortBusy: 1,
        EngineError: 1,
        RequestError: 1,
    }
)
"""The nearest class in the error's ancestry decides."""

EXIT_MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        0: "done",
        1: "failed: the engine, a damaged file, a busy port",
        USAGE: "wrong usage: an unknown command or option, a wrong value, a wrong profile",
        3: "not found: model, quantization, file, GPU or profile",
        4: "the Hub wants a token, or its licence accepted",
        5: "nothing that was asked for fits this machine",
        6: "network unreachable, or offline and not cached",
        7: "not enough disk space",
        BUG: "a bug in ggufdeploy",
        INTERRUPTED: "interrupted",
    }
)

_LOG_LINES = 5
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_OF_THE_SYSTEM = _FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO, errno.ELOOP}


@dataclass(frozen=True)
class Report:
    """One error, ready to print. log: the engine's last lines. trace: a bug's traceback, else None."""

    type: str
    message: str
    hint: str | None
    exit_code: int
    log: tuple[str, ...] = ()
    trace: str | None = None


def describe(error: BaseException) -> Report:
    """Return what to say about `error` and how to exit, without secrets. What is not a known error is a bug."""
    report = _describe(error)
    return replace(
        report,
        message=without_secrets(report.message),
        hint=without_secrets(report.hint) if report.hint else None,
        log=tuple(map(without_secrets, report.log)),
        trace=without_secrets(report.trace) if report.trace else None,
    )


def _describe(error: BaseException) -> Report:
    if isinstance(error, GgufdeployError):
        log = error.log if isinstance(error, EngineError) else ()
        return Report(_snake_case(type(error).__name__), error.message, error.hint, exit_code(error), log)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        pressed = error.__cause__ if isinstance(error, click.Abort) else error  # click wraps it
        hint = pressed.hint if isinstance(pressed, Interrupted) else None
        return Report("interrupted", "interrupted", hint, INTERRUPTED)
    if isinstance(error, click.UsageError):
        hint = f"{error.ctx.command_path} --help" if error.ctx else None
        return Report("usage", error.format_message(), hint, USAGE)
    if isinstance(error, click.ClickException):
        return Report("failed", error.format_message(), None, error.exit_code)
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        return _of_the_system(error)
    trace = "".join(traceback.format_exception(error))
    message = f"{type(error).__name__}: {error}"
    hint = f"this is a bug in ggufdeploy {__version__}: please report it with the traceback and the command"
    return Report("bug", message, hint, BUG, trace=trace)


def _of_the_system(error: OSError) -> Report:
    """Describe a disk or folder that refuses, which no code here can mend. ENOENT is not one: it may be a bug."""
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in _FULL
    advice = "free some space (ggufdeploy list shows models)" if full else "check the folder and its permissions"
    hint = f"{advice}; GGUFDEPLOY_CACHE_DIR and HF_HOME say where files go"
    code = EXIT_CODES[NoDiskSpace] if full else 1
    return Report("no_disk_space" if full else "system", f"{where}{error.strerror}", hint, code)


def exit_code(error: GgufdeployError) -> int:
    """Return the code of the nearest class in EXIT_CODES; 1 for the base class itself."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), 1)


def show(report: Report, *, json_mode: bool, verbose: bool = False, color: bool | None = None) -> None:
    """Print the report on stderr: "error: ..." and "hint: ...", or one JSON line. verbose: the whole engine log."""
    if json_mode:
        error = {"type": report.type, "message": report.message, "hint": report.hint}
        if report.trace is not None:
            error["traceback"] = report.trace
        click.echo(json.dumps({"error": error}), err=True)
        return
    if report.trace is not None:
        click.echo(report.trace, err=True, nl=False)
    for line in report.log if verbose else report.log[-_LOG_LINES:]:
        click.echo(f"  {printable(line)}", err=True)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(report.message)}", err=True, color=color)
    if report.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {printable(report.hint)}", err=True, color=color)
    if sys.stderr is not None:  # None: started with stderr closed
        sys.stderr.flush()


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
