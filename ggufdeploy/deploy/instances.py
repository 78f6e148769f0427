"""What runs on this machine for this user: one small file per `ggufdeploy run`, and its log.

A file names a process by its id and by when it started, so that another process with the same id is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ggufdeploy.deploy.truth import Truth
from ggufdeploy.errors import NotFound
from ggufdeploy.settings import Settings

_KEPT_LOGS = 20
_STAMP = re.compile(r"\.\d{8}-\d{6}\.\d+\.log$")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Instance:
    """One `ggufdeploy run`. identity: see `identity_of`. phase: "starting", "loading", "ready", "restarting" or
    "stopping". started: Unix time. log: None when it writes to a terminal. memory: None until the model is loaded."""

    pid: int
    identity: str
    model: str
    ref: str
    phase: str
    started: float
    url: str | None = None
    port: int | None = None
    log: str | None = None
    quantization: str | None = None
    context_tokens: int | None = None
    slots: int | None = None
    restarts: int = 0
    memory: Truth | None = None


def identity_of(pid: int) -> str | None:
    """Return what tells this process from every other one that has had or will have its id; None when there is none.

    On Linux the boot and the ticks from it to the start (proc(5), field 22 of /proc/PID/stat), which no clock changes.
    """
    if _BOOT_ID.exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{_BOOT_ID.read_text(encoding='ascii').strip()}:{fields[19]}"
    import psutil  # type: ignore[import-untyped, unused-ignore]

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


class Registry:
    """The files below `state_dir`, readable by this user alone."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.state_dir / "running"
        self._logs = settings.state_dir / "logs"

    def write(self, instance: Instance) -> None:
        """Make or replace the instance's file. Raises OSError."""
        _private(self._folder)
        path = self._path(instance.pid)
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(instance))
        partial.replace(path)

    def remove(self, pid: int) -> None:
        """Forget an instance; one that is not there is no error."""
        self._path(pid).unlink(missing_ok=True)

    def read(self, pid: int) -> Instance | None:
        """Return the entry of a process id; None when there is none."""
        return _read(self._path(pid))

    def all(self) -> list[Instance]:
        """Return what runs, oldest first; files of processes that are gone are removed."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            instance = _read(path)
            alive = identity_of(int(path.stem)) if path.stem.isdigit() else None
            if alive is not None and instance is not None and instance.identity == alive:
                found.append(instance)
            elif alive is None or instance is not None:  # else it may be another version's
                path.unlink(missing_ok=True)
        return sorted(found, key=lambda instance: instance.started)

    def find(self, name: str | None) -> list[Instance]:
        """Return the instances `name` means: a model, what was typed, a port or a process id; None: the only one.

        Raises NotFound, naming what runs.
        """
        running = self.all()
        if name is None and len(running) == 1:
            return running
        chosen = [one for one in running if name in (one.model, one.ref, str(one.port), str(one.pid))]
        if not chosen:
            known = ", ".join(f"{one.model} (port {one.port})" for one in running)
            what = name or "a model to act on"
            message = f"nothing that runs is called {name}" if name else "several models run, and none was named"
            if not running:
                message = "no model runs here"
            hint = f"there are: {known}" if known else "start one: ggufdeploy run MODEL --detach"
            raise NotFound("running model", what, message, hint=hint)
        return chosen

    def new_log(self, model: str) -> Path:
        """Return the path of a fresh log file, 0600, and delete the oldest ones."""
        _private(self._logs)
        for old in self.logs()[_KEPT_LOGS - 1 :]:
            old.unlink(missing_ok=True)
        path = self._logs / f"{_safe(model)}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}.log"
        path.touch(mode=0o600)
        return path

    def logs(self, model: str | None = None) -> list[Path]:
        """Return the log files, of all models or of one as it was typed, newest first."""
        files = [
            path for path in self._logs.glob("*.log") if model is None or _STAMP.sub("", path.name) == _safe(model)
        ]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)

    def _path(self, pid: int) -> Path:
        return self._folder / f"{pid}.json"


class Registration:
    """This process's own entry, while it serves. Failing to write it never stops a server; it is only for `ps`."""

    def __init__(self, registry: Registry, instance: Instance) -> None:
        self._registry, self._instance = registry, instance

    @property
    def detached(self) -> bool:
        """Whether it writes to a log."""
        return self._instance.log is not None

    def update(self, **changes: object) -> None:
        """Replace fields of the entry."""
        self._instance = replace(self._instance, **changes)  # type: ignore[arg-type]  # names are Instance's fields
        with contextlib.suppress(OSError):
            self._registry.write(self._instance)


@contextlib.contextmanager
def registered(settings: Settings, *, model: str, ref: str, log: str | None) -> Iterator[Registration]:
    """List this process as running while the block lasts."""
    pid, registry = os.getpid(), Registry(settings)
    instance = Instance(pid, identity_of(pid) or "", model, ref, "starting", time.time(), log=log)
    registration = Registration(registry, instance)
    registration.update()
    try:
        yield registration
    finally:
        with contextlib.suppress(OSError):
            registry.remove(pid)


def send(instance: Instance, number: signal.Signals) -> bool:
    """Signal the instance; return whether it was still there. Never hits another process that has got its id."""
    if not hasattr(os, "pidfd_open"):
        if identity_of(instance.pid) != instance.identity:
            return False
        os.kill(instance.pid, number)
        return True
    try:
        handle = os.pidfd_open(instance.pid)
    except ProcessLookupError:
        return False
    try:
        if identity_of(instance.pid) != instance.identity:  # the handle keeps meaning the process checked here
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def wait_gone(instance: Instance, timeout_s: float) -> bool:
    """Return whether the instance ended within that time."""
    deadline = time.monotonic() + timeout_s
    while identity_of(instance.pid) == instance.identity:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _read(path: Path) -> Instance | None:
    """Return the entry, or None for one that is not there, damaged or another version's."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Instance)
    except (OSError, msgspec.DecodeError):
        return None


def _safe(model: str) -> str:
    """Return the model's name as the start of a file name."""
    return "".join(char if char.isalnum() or char in "-._" else "-" for char in model)[:80].strip(".") or "model"


def _private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
