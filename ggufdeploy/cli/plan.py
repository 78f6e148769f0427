"""`ggufdeploy plan`: explain, download nothing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import (
    extra_file_options,
    machine_options,
    model_argument,
    read_settings,
    revision_option,
    wish_options,
)
from ggufdeploy.cli.output import Output
from ggufdeploy.units import format_file_size

if TYPE_CHECKING:
    from ggufdeploy.deploy.planning import Planned
    from ggufdeploy.deploy.sources import Source
    from ggufdeploy.hardware.catalog import GpuSpec
    from ggufdeploy.settings import Settings


@command(
    "plan",
    examples=[
        ("ggufdeploy plan mixtral-8x22b --ctx 32k", "the best quantization for this machine, and why"),
        ("ggufdeploy plan mixtral-8x22b --gpu h100-sxm --ctx 64k", "for a card that is not in this machine"),
        ("ggufdeploy plan owner/repo:Q5_K_M --gpu rtx-4090:2 --ram 128GiB", "a repository, two cards, other RAM"),
        ("ggufdeploy plan ./model.gguf --json", "a local file, as one JSON document"),
    ],
)
@model_argument
@wish_options
@extra_file_options
@machine_options
@revision_option
def plan(
    model: str,
    gpu: tuple[GpuSpec, int] | None,
    machine_file: Path | None,
    ram_bytes: int | None,
    revision: str | None,
    lora_files: tuple[Path, ...],
    mmproj_file: Path | None,
    draft_file: Path | None,
    out: Output,
    **wish: object,
) -> None:
    """Show which quantization of MODEL fits, where its layers go, how fast it will be, and what else is possible.

    Reads only headers from the Hub (a few MB) and downloads nothing.
    """
    from ggufdeploy.planner.request import ExtraFile

    beside = [path for path in (*lora_files, mmproj_file, draft_file) if path is not None]
    wish["extra_files"] = tuple(ExtraFile(path.name, path.stat().st_size) for path in beside)
    with _without_collecting():
        planned = make_planned(model, wish, gpu, machine_file, ram_bytes, revision, out, read_settings())
    note_traffic(planned.source, out)
    show(planned, out)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Leave garbage alone: importing makes none, and looking for it takes a tenth of a plan's time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def note_traffic(source: Source, out: Output) -> None:
    """Say how much was read of the model's headers over the network."""
    traffic = source.traffic
    if traffic.requests:
        size, plural = format_file_size(traffic.fetched_bytes), "s" if traffic.requests > 1 else ""
        out.note(f"read {size} of headers in {traffic.requests} request{plural}, nothing else was downloaded")
    else:
        out.detail("every header was here already, nothing of the files was downloaded")


def make_planned(
    model: str,
    wish: dict[str, object],
    gpu: tuple[GpuSpec, int] | None,
    machine_file: Path | None,
    ram_bytes: int | None,
    revision: str | None,
    out: Output,
    settings: Settings,
) -> Planned:
    """Resolve and plan, saying on stderr what takes time; shared with `run`."""
    from ggufdeploy.cli.machines import choose_machine
    from ggufdeploy.deploy.measurements import recall
    from ggufdeploy.deploy.planning import make
    from ggufdeploy.deploy.resolution import resolve
    from ggufdeploy.deploy.wish import Wish

    found = choose_machine(gpu, machine_file, ram_bytes)
    for note in found.notes:
        out.note(note)
    out.detail(f"looking up {model}")
    source, quantization = resolve(model, settings, revision=revision)
    for note in source.notes:
        out.note(note)
    wish = {**wish, "quantization": wish.get("quantization") or quantization}
    machine = recall(found.machine, settings.state_dir)
    return make(source, model, Wish(**wish), machine, settings=settings)  # type: ignore[arg-type]  # Wish's fields


def show(planned: Planned, out: Output) -> None:
    """Print the plan on stdout: in words, or as the JSON document."""
    from ggufdeploy.planner.plan import plan_to_json

    if out.mode == "json":
        out.write(plan_to_json(planned.plan) + "\n")
    else:
        out.result("\n".join(explanation(planned)), planned.plan)


def explanation(planned: Planned) -> list[str]:
    """Return the plan in words."""
    from ggufdeploy.planner import explain

    plan = planned.plan
    lines = ["SIMULATED: planned for hardware that is not this machine's."] if plan.simulated else []
    lines += [explain.headline(plan), explain.placement_line(plan)]
    lines += [plan.speed.bottleneck, ""] if plan.speed.bottleneck else [""]
    lines += [*explain.receipt(plan), "", *explain.ladder(plan)]
    for warning in plan.warnings:
        lines += ["", f"warning: {warning.message}"]
        lines += [f"  {line}" for line in (warning.hint or "").splitlines()]
    return lines
