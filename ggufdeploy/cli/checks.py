"""What `doctor` looks at: each check returns findings, each problem with what fixes it. Nothing is changed."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from ggufdeploy import __version__
from ggufdeploy.cli.engine_probe import Probe
from ggufdeploy.errors import GgufdeployError
from ggufdeploy.hardware.detect import Detection, free_disk_bytes
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.profiles.store import load_profiles
from ggufdeploy.settings import Settings
from ggufdeploy.units import GIB, format_bytes, format_duration

Status = Literal["ok", "warning", "problem"]

ENGINE_TIMEOUT_S = 60.0
"""The first start of a CUDA build compiles kernels for new GPUs, which takes many seconds."""

DEMO_MODEL = "smollm2-135m"

_SCARCE_RAM_BYTES = 2 * GIB
_SCARCE_DISK_BYTES = 20 * GIB
_REINSTALL = "install the pinned engine again: ./install.sh"


@dataclass(frozen=True)
class Finding:
    """One line of the report. name: stable. fix: what to do, None when nothing is to be done."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


def check_platform() -> Iterator[Finding]:
    """Say what this runs on."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Finding("platform", "ok", f"{system}, Python {platform.python_version()}, ggufdeploy {__version__}")


def check_machine(detection: Detection) -> Iterator[Finding]:
    """Report GPUs, RAM and cores, and what could not be told of them."""
    machine = detection.machine
    for device in machine.devices:
        driver = f", driver {device.driver_version}" if device.driver_version else ""
        memory = f"{format_bytes(device.free_bytes)} of {format_bytes(device.total_bytes)} free"
        yield Finding("gpu", "ok", f"{device.name}: {device.description}, {memory}{driver}")
    if not machine.devices:
        yield Finding(
            "gpu", "warning", "no GPU was found: models will run on the CPU, slowly",
            "nothing, if there is none; else install its driver",
        )  # fmt: skip
    for note in detection.notes:
        yield Finding("gpu", "warning", note)
    scarce = machine.ram_available_bytes < _SCARCE_RAM_BYTES
    detail = f"{format_bytes(machine.ram_available_bytes)} of {format_bytes(machine.ram_total_bytes)} available"
    fix = "end other programs, or raise the container's memory limit" if scarce else None
    yield Finding("ram", "warning" if scarce else "ok", detail + _limit_note(machine), fix)
    cores = f"{machine.physical_cores} physical, {machine.logical_cores} logical"
    yield Finding("cpu", "ok", f"{machine.cpu_name or 'unknown processor'}: {cores} cores usable")


def _limit_note(machine: Machine) -> str:
    """Say so when a container's limit is below what the machine has."""
    import psutil

    physical = psutil.virtual_memory().total
    return (
        f" (limited by the cgroup; the machine has {format_bytes(physical)})"
        if machine.ram_total_bytes < physical
        else ""
    )


def check_engine(probe: Probe | Finding, machine: Machine) -> Iterator[Finding]:
    """Report llama.cpp's version and devices. probe: from `probe_engine`."""
    try:
        version = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        yield Finding("engine", "problem", "llama-cpp-python is not installed", _REINSTALL)
        return
    if isinstance(probe, Finding):
        yield probe
        return
    gpus = [device for device in probe.devices if device.kind not in ("cpu", "accelerator")]
    seen = ", ".join(f"{device.name} ({device.description})" for device in gpus) or "the CPU only"
    detail = f"llama-cpp-python {version} loads and sees {seen}"
    if machine.devices and not gpus:
        names = ", ".join(device.description for device in machine.devices)
        yield Finding("engine", "problem", f"{detail}: it cannot use {names}", "./install.sh --backend auto")
    else:
        yield Finding("engine", "ok", detail)


def probe_engine(timeout_s: float = ENGINE_TIMEOUT_S) -> Probe | Finding:
    """Load llama.cpp in a child process; return what it says, or the problem."""
    command = [sys.executable, "-m", "ggufdeploy.cli.engine_probe"]
    try:
        child = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            "engine",
            "problem",
            f"llama.cpp did not start within {timeout_s:.0f} s",
            "see whether the GPU driver answers: nvidia-smi",
        )
    if child.returncode == 0:
        return msgspec.json.decode(child.stdout, type=Probe)
    lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = lines[-1] if lines else _ending(child.returncode)
    return Finding("engine", "problem", f"llama.cpp does not load: {reason}", _REINSTALL)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Report free space where models and headers are kept."""
    places: dict[str, Path] = {"models": settings.hf_cache_dir, "cache": settings.cache_dir}
    for name, path in places.items():
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not os.access(existing, os.W_OK):
            yield Finding("disk", "problem", f"{name}: {path} cannot be written", _elsewhere(name))
            continue
        free = free_disk_bytes(path)
        scarce = name == "models" and free < _SCARCE_DISK_BYTES
        fix = f"delete models with ggufdeploy rm, or {_elsewhere(name)}" if scarce else None
        yield Finding("disk", "warning" if scarce else "ok", f"{name}: {format_bytes(free)} free at {path}", fix)


def _elsewhere(name: str) -> str:
    return f"set {'HF_HOME' if name == 'models' else 'GGUFDEPLOY_CACHE_DIR'} to another disk"


def check_hub(settings: Settings, timeout_s: float = 5.0) -> Iterator[Finding]:
    """Ask the Hub for its first page. Never sends the token."""
    import http.client
    import urllib.error
    import urllib.request

    shown = re.sub(r"(?<=://)[^/]*@", "", settings.hf_endpoint)  # a mirror's credentials
    token = "with a token" if settings.hf_token else "without a token"
    if settings.offline:
        yield Finding("hub", "warning", "offline mode is on (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE to download")
        return
    started = time.monotonic()
    try:
        urllib.request.urlopen(f"{settings.hf_endpoint}/api/models?limit=1", timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        detail = f"{shown} answers {error.code} {error.reason}"
        yield Finding("hub", "warning", detail, "try again later, or set HF_ENDPOINT to a mirror")
        return
    except (OSError, http.client.HTTPException, ValueError) as error:
        detail = f"{shown} cannot be reached: {getattr(error, 'reason', None) or error}"
        yield Finding("hub", "warning", detail, "check the network and HTTPS_PROXY; downloaded models work without it")
        return
    yield Finding("hub", "ok", f"{shown} answers in {time.monotonic() - started:.1f} s, {token}")


def check_profiles(settings: Settings) -> Iterator[Finding]:
    """Read every profile."""
    try:
        known = load_profiles(settings)
        known.profiles()
    except GgufdeployError as error:
        yield Finding(
            "profiles", "problem", error.message, error.hint or f"edit or delete it in {settings.user_profiles_dir}"
        )
        return
    own = len(known.user_files)
    yield Finding("profiles", "ok", f"{len(known.names())} models known by name, {own} of them defined by you")


def check_generation(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """Let the demo model, where it is here already, write a few words on this machine as `run` would."""
    import asyncio

    from ggufdeploy.deploy.local import local_source
    from ggufdeploy.deploy.planning import make
    from ggufdeploy.deploy.recovery import Deployment
    from ggufdeploy.deploy.running import Voice, answer
    from ggufdeploy.deploy.wish import Wish
    from ggufdeploy.hub.pypi import cached_pypi_model

    try:
        profile = load_profiles(settings).find(DEMO_MODEL)
        path = cached_pypi_model(profile.pypi, settings) if profile.pypi else None
        if path is None:
            yield Finding("generation", "ok", f"not tried: the demo model is not here (ggufdeploy pull {DEMO_MODEL})")
            return
        planned = make(local_source(path, DEMO_MODEL, profile), DEMO_MODEL, Wish(context_tokens=512, slots=1), machine)
        started = time.monotonic()
        done = asyncio.run(answer(Deployment(planned, path, settings), "Count to five.", 16, Voice(), _ignore))
    except GgufdeployError as error:
        yield Finding(
            "generation", "problem", f"{DEMO_MODEL} does not answer: {error.message}", error.hint or _REINSTALL
        )
        return
    where = {"gpu": "on the GPU", "cpu": "on the CPU"}.get(planned.plan.verdict, "on GPU and CPU")
    seconds = format_duration(time.monotonic() - started)
    yield Finding(
        "generation", "ok", f"{DEMO_MODEL} wrote {done.completion_tokens} tokens {where}; {seconds} with loading"
    )


def _ignore(news: object) -> None:
    """Show nothing of how it goes."""
