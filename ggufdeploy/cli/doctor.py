"""`ggufdeploy doctor`: check this machine, and say what to fix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import Option, command
from ggufdeploy.cli.options import read_settings
from ggufdeploy.cli.output import Output
from ggufdeploy.errors import BadValue
from ggufdeploy.units import format_bytes

if TYPE_CHECKING:
    from ggufdeploy.cli.checks import Finding
    from ggufdeploy.cli.engine_probe import Probe
    from ggufdeploy.hardware.machine import Machine

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Diagnosis:
    """Everything found. engine: None when llama.cpp did not load."""

    findings: Sequence[Finding]
    machine: Machine
    engine: Probe | None
    schema_version: int = SCHEMA_VERSION

    @property
    def exit_code(self) -> int:
        """1 when there is a problem, else 0."""
        return int(any(finding.status == "problem" for finding in self.findings))


@command(
    "doctor",
    examples=[
        ("ggufdeploy doctor", "check GPUs, engine, memory, disk and network"),
        ("ggufdeploy doctor --gpus", "list the GPUs that plan --gpu can simulate"),
        ("ggufdeploy doctor --save-machine box.json", "describe this machine, for plan --machine elsewhere"),
    ],
)
@click.option("--gpus", is_flag=True, cls=Option, help="List the GPUs known by name, and stop.")
@click.option(
    "--save-machine", type=click.Path(path_type=Path, dir_okay=False), cls=Option, metavar="FILE",
    help="Write this machine to FILE, for plan --machine, and stop.",
)  # fmt: skip
def doctor(gpus: bool, save_machine: Path | None, out: Output) -> int:
    """Check this machine and say what to fix. Changes nothing; ends with 1 when there is a problem."""
    if gpus:
        _list_gpus(out)
        return 0
    if save_machine is not None:
        _save(save_machine, out)
        return 0
    out.note("checking ...")
    diagnosis = diagnose()
    document = {"schema_version": diagnosis.schema_version, "version": _version(), **_fields(diagnosis)}
    out.result("\n".join(_lines(diagnosis.findings)), document, brief="\n".join(_lines(_bad(diagnosis.findings))))
    if diagnosis.engine is not None:
        out.detail(f"engine features: {diagnosis.engine.features}")
    return diagnosis.exit_code


def diagnose() -> Diagnosis:
    """Run all checks; the slow ones (engine, network) side by side."""
    from ggufdeploy.cli import checks
    from ggufdeploy.cli.engine_probe import Probe
    from ggufdeploy.hardware.detect import detect

    settings = read_settings()
    with ThreadPoolExecutor() as pool:
        engine = pool.submit(checks.probe_engine)
        hub = pool.submit(lambda: list(checks.check_hub(settings)))
        detection = detect(os.environ)
        probe = engine.result()
        findings = [
            *checks.check_platform(),
            *checks.check_machine(detection),
            *checks.check_engine(probe, detection.machine),
            *(checks.check_generation(settings, detection.machine) if isinstance(probe, Probe) else ()),
            *checks.check_disk(settings),
            *hub.result(),
            *checks.check_profiles(settings),
        ]
    return Diagnosis(findings, detection.machine, probe if isinstance(probe, Probe) else None)


def _fields(diagnosis: Diagnosis) -> dict[str, object]:
    return {"findings": diagnosis.findings, "machine": diagnosis.machine, "engine": diagnosis.engine}


def _version() -> str:
    from ggufdeploy import __version__

    return __version__


def _bad(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status != "ok"]


def _lines(findings: Sequence[Finding]) -> list[str]:
    """Return one line per finding, and one more per fix."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.name.replace('_', ' ')}: {finding.detail}")
        if finding.fix:
            lines.append(f"{'':<8} -> {finding.fix}")
    return lines


def _list_gpus(out: Output) -> None:
    from ggufdeploy.hardware.catalog import list_gpus

    specs = list_gpus()
    rows = [
        (
            spec.id,
            format_bytes(spec.nvml_total_bytes),
            format_bytes(spec.llama_free_bytes) + (" (estimate)" if spec.llama_free_is_estimate else ""),
            f"{spec.bandwidth_bytes_per_s // 10**9:,} GB/s" if spec.bandwidth_bytes_per_s else "?",
            spec.name,
        )
        for spec in specs
    ]
    document = {"schema_version": SCHEMA_VERSION, "gpus": specs}
    out.table(("ID", ">MEMORY", "FREE FOR LLAMA.CPP", ">BANDWIDTH", "NAME"), rows, document)


def _save(path: Path, out: Output) -> None:
    """Write the machine, its RAM bandwidth measured (which keeps all cores busy for a moment)."""
    from ggufdeploy.hardware.cpu import measure_ram_bandwidth_bytes_per_s
    from ggufdeploy.hardware.detect import detect
    from ggufdeploy.hardware.machine import machine_to_json

    detection = detect(os.environ)
    for note in detection.notes:
        out.note(note)
    out.note("measuring RAM bandwidth ...")
    machine = replace(detection.machine, ram_bandwidth_bytes_per_s=measure_ram_bandwidth_bytes_per_s())
    try:
        path.write_text(machine_to_json(machine), encoding="utf-8")
    except OSError as error:
        message = f"--save-machine: cannot write {path}: {error.strerror}"
        raise BadValue("--save-machine", message, hint="name a file in a directory that exists and is yours") from error
    out.result(str(path), {"schema_version": SCHEMA_VERSION, "path": path, "machine": machine})
    out.hint(f"ggufdeploy plan MODEL --machine {path}")
