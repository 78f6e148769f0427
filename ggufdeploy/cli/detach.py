"""`ggufdeploy run --detach`: the same command in a process of its own, followed until the model answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ggufdeploy
from ggufdeploy.cli.output import Output
from ggufdeploy.deploy.instances import Instance, Registry
from ggufdeploy.settings import Settings
from ggufdeploy.units import format_duration

SCHEMA_VERSION = 1
# This very package, whatever the working directory holds; the directory itself is kept for relative paths.
_PROGRAM = """\
import sys
sys.path = [sys.argv.pop(1), *filter(None, sys.path)]
from ggufdeploy.cli import entry
entry()
"""
_HERE_ONLY = frozenset({"--detach", "--json", "-q", "--quiet"})  # the log is for people
_LOOK_EVERY_S = 0.1
_STOP_TIMEOUT_S = 30.0


def detach(model: str, words: Sequence[str], settings: Settings, out: Output) -> int:
    """Run the command line `words` in the background; return 0 once it serves, else its own exit code.

    Its output goes to a log in the state directory, and to stderr here until it serves. Ctrl-C ends it too.
    """
    words = [word for word in words if word not in _HERE_ONLY]
    registry = Registry(settings)
    log = registry.new_log(model)
    with log.open("ab") as stream:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _PROGRAM,
                str(Path(ggufdeploy.__file__).parents[1]),
                *words,
                "--detached-log",
                str(log),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = time.monotonic()
    try:
        instance = _follow(child, log, registry, out)
    except KeyboardInterrupt:
        child.terminate()
        child.wait(_STOP_TIMEOUT_S)
        raise
    if instance is None:
        return child.returncode or 1
    _say(instance, log, time.monotonic() - started, out)
    child.returncode = 0  # it goes on without us: no complaint about a child that still runs
    return 0


def _follow(child: subprocess.Popen[bytes], log: Path, registry: Registry, out: Output) -> Instance | None:
    """Pass on what the process says until it serves or ends; None when it ended."""
    with log.open(encoding="utf-8", errors="replace") as text:
        while child.poll() is None:
            _pass_on(text.readlines(), out)
            instance = registry.read(child.pid)
            if instance is not None and instance.phase == "ready":
                _pass_on(text.readlines(), out)
                return instance
            time.sleep(_LOOK_EVERY_S)
        _pass_on(text.readlines(), out)
    if out.mode != "human":
        out.relay_error(*_last_words(log))
    return None


def _last_words(log: Path) -> tuple[str, str | None]:
    """Return the error and the hint that a failed process ended with."""
    said: dict[str, str] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        label, _, text = line.partition(": ")
        if label in ("error", "hint"):
            said[label] = text
    return said.get("error", f"it ended without a word; see {log}"), said.get("hint")


def _pass_on(lines: Sequence[str], out: Output) -> None:
    for line in lines:
        out.note(line.rstrip("\n"))


def _say(instance: Instance, log: Path, seconds: float, out: Output) -> None:
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": instance.model,
        "url": f"{instance.url}/v1",
        "pid": instance.pid,
        "log": log,
    }
    text = f"{instance.model} serves on {instance.url}/v1 in the background (process {instance.pid}), "
    out.result(f"{text}after {format_duration(seconds)}", document, brief=f"{instance.url}/v1")
    out.hint(f"stop it: ggufdeploy stop {instance.port}\nits log: ggufdeploy logs {instance.port} -f")
