"""The command line. A command is parse -> call -> print; this file starts it and turns the end into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

_INTERRUPTED = 130


def entry() -> NoReturn:
    """Run as the console script: like `main`, then exit the process."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: the process's own) and return its exit code.

    Never raises: every error becomes text on stderr (one JSON line under --json) and a code from `errors.EXIT_CODES`.
    """
    try:
        from ggufdeploy.cli import errors
        from ggufdeploy.cli.app import app
    except KeyboardInterrupt:  # nothing that could say it nicely is there yet
        sys.stderr.write("error: interrupted\n")
        return _INTERRUPTED

    args = list(sys.argv[1:] if argv is None else argv)
    color = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
    try:
        code = app.main(args=args, prog_name="ggufdeploy", standalone_mode=False, color=color, obj=args)
        return code if isinstance(code, int) else 0
    except SystemExit as stop:  # click ends a broken pipe and a shell completion this way
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:  # noqa: BLE001  the one place where errors become text
        report = errors.describe(error)
        errors.show(report, json_mode="--json" in args, verbose=bool({"-v", "--verbose"} & set(args)), color=color)
        return report.exit_code
