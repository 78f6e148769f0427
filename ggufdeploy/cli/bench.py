"""`ggufdeploy bench`: measure this machine, so that plans need not estimate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import Option, command
from ggufdeploy.cli.options import ModelType, read_settings, revision_option, wish_options
from ggufdeploy.cli.output import Output
from ggufdeploy.units import format_duration, format_rate

if TYPE_CHECKING:
    from ggufdeploy.deploy.measuring import Run, Setting
    from ggufdeploy.deploy.planning import Planned
    from ggufdeploy.hardware.machine import Machine
    from ggufdeploy.planner.speed import Speed
    from ggufdeploy.settings import Settings

SCHEMA_VERSION = 1
_BUSY_SHARE = 0.5
"""More runnable processes than this per core, and the figures are those of a shared machine."""


@dataclass(frozen=True)
class Measured:
    """A run beside what the speed model said before it was measured; None where it could not say."""

    prompt_tokens: int
    generated_tokens: int
    streams: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    total_tokens_per_s: float
    predicted_decode_tokens_per_s: float | None
    predicted_prefill_tokens_per_s: float | None


@command(
    "bench",
    examples=[
        ("ggufdeploy bench", "measure how fast this machine reads its RAM"),
        ("ggufdeploy bench smollm2-135m", "and decode and prefill of a model, through the engine that serves it"),
        ("ggufdeploy bench mixtral-8x22b --quant IQ4_XS --ctx 32k", "as it would be served"),
        ("ggufdeploy bench --forget", "plan from estimates again"),
    ],
)
@click.argument("model", type=ModelType(), metavar="[MODEL]", required=False)
@wish_options
@click.option(
    "--repeat", type=click.IntRange(1, 100), default=3, show_default=True, cls=Option, metavar="N",
    help="Rounds per setting; the median counts.",
)  # fmt: skip
@click.option("--forget", is_flag=True, cls=Option, help="Drop what was measured on this machine, and stop.")
@revision_option
def bench(model: str | None, repeat: int, forget: bool, revision: str | None, out: Output, **wish: object) -> None:
    """Measure this machine's RAM and, with MODEL, tokens/s; plans made on it use the figures from then on.

    MODEL is planned and fetched as by run, loaded, and asked at several depths of context, alone and with four streams.
    Other work on this machine makes the figures too low. GPUs are measured through MODEL only.
    """
    from ggufdeploy.deploy import measurements
    from ggufdeploy.hardware.detect import detect

    settings = read_settings()
    machine = detect(os.environ).machine
    if forget:
        found = measurements.forget(machine, settings.state_dir)
        out.result("forgotten" if found else "nothing was measured on this machine", {"forgotten": found})
        return
    bandwidth = _measure_ram(machine, settings, out)
    document: dict[str, object] = {"schema_version": SCHEMA_VERSION, "ram_bandwidth_bytes_per_s": bandwidth}
    if model is None:
        text = f"RAM: {bandwidth / 1e9:.1f} GB/s read by {machine.physical_cores} cores"
        out.result(text, document, brief=f"{bandwidth / 1e9:.1f}")
        if machine.devices:
            out.hint("name a model to measure the GPUs: ggufdeploy bench MODEL")
        return
    _bench_model(model, wish, revision, repeat, document, settings, out)


def _measure_ram(machine: Machine, settings: Settings, out: Output) -> int:
    from ggufdeploy.deploy.measurements import remember_bandwidth
    from ggufdeploy.deploy.measuring import measure_ram

    load = os.getloadavg()[0]
    if load > _BUSY_SHARE * machine.logical_cores:
        out.warning(
            f"this machine is busy (load {load:.1f} on {machine.logical_cores} cores): the figures will be too low",
            "run it again when the machine is idle",
        )
    out.note("measuring RAM bandwidth ...")
    bandwidth = measure_ram()
    path = remember_bandwidth(machine, bandwidth, settings.state_dir)
    out.detail(f"kept in {path}")
    return bandwidth


def _bench_model(
    model: str,
    wish: dict[str, object],
    revision: str | None,
    repeat: int,
    document: dict[str, object],
    settings: Settings,
    out: Output,
) -> None:
    """Plan, fetch, measure, keep and show."""
    from ggufdeploy.cli.plan import make_planned
    from ggufdeploy.deploy.measurements import remember_samples
    from ggufdeploy.deploy.measuring import planned_model, planned_placement, samples_of
    from ggufdeploy.deploy.planning import fetch

    planned = make_planned(model, wish, None, None, None, revision, out, settings)
    with out.download_progress() as progress:
        planned, path = fetch(planned, progress)
    runs = _run(planned, path, repeat, out)
    info, placement, machine = planned_model(planned), planned_placement(planned), planned.machine
    samples = samples_of(runs, info, placement, planned.plan.kv_cache.key_type, machine)
    remember_samples(machine, samples, settings.state_dir)
    uncalibrated = replace(machine, speed_samples=())
    rows = [_beside(run, predict_run(run, planned, uncalibrated)) for run in runs]
    document |= {
        "model": planned.source.name,
        "quantization": planned.plan.quantization.name,
        "placement": planned.plan.placement,
        "runs": rows,
    }
    _show(planned, rows, document, out)


def _run(planned: Planned, path: os.PathLike[str], repeat: int, out: Output) -> Sequence[Run]:
    import asyncio
    from pathlib import Path

    from ggufdeploy.deploy.measuring import measure, settings_for
    from ggufdeploy.deploy.oracle import plan_config

    plan = planned.plan

    def on_run(run: Run) -> None:
        streams = f", {run.streams} streams" if run.streams > 1 else ""
        out.note(f"{run.prompt_tokens:,} tokens deep{streams}: {format_rate(run.decode_tokens_per_s)} per stream")

    def on_skip(setting: Setting, seconds: float) -> None:
        out.warning(f"left out: a prompt of {setting.prompt_tokens:,} tokens would take {format_duration(seconds)}")

    out.note(f"loading {planned.source.name} {plan.quantization.name} ...")
    coroutine = measure(
        plan_config(planned.plan, Path(path)), settings_for(plan.context_tokens, plan.slots), repeat,
        on_progress=lambda fraction: out.detail(f"loading: {fraction:.0%}"), on_run=on_run, on_skip=on_skip,
    )  # fmt: skip
    return asyncio.run(coroutine)


def predict_run(run: Run, planned: Planned, machine: Machine) -> Speed:
    """Return what the speed model says to this run."""
    from ggufdeploy.deploy.measuring import planned_model, planned_placement
    from ggufdeploy.planner.request import PlanRequest
    from ggufdeploy.planner.speed import predict

    plan = planned.plan
    request = PlanRequest(plan.context_tokens, plan.slots, plan.kv_cache.key_type, n_ubatch=plan.engine.n_ubatch)
    used = run.prompt_tokens + run.generated_tokens // 2
    return predict(planned_model(planned), request, planned_placement(planned), machine, used_tokens=used)


def _beside(run: Run, speed: Speed) -> Measured:
    alone = run.streams == 1  # the speed model is about one stream
    return Measured(
        run.prompt_tokens, run.generated_tokens, run.streams, run.prefill_tokens_per_s, run.decode_tokens_per_s,
        run.total_tokens_per_s, _rounded(speed.decode_tokens_per_s) if alone else None,
        _rounded(speed.prefill_tokens_per_s) if alone else None,
    )  # fmt: skip


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)


def _show(planned: Planned, rows: Sequence[Measured], document: dict[str, object], out: Output) -> None:
    bandwidth = planned.machine.ram_bandwidth_bytes_per_s or 0
    out.note(f"RAM: {bandwidth / 1e9:.1f} GB/s read by {planned.machine.physical_cores} cores")
    cells = [
        (
            f"{row.prompt_tokens:,}",
            str(row.streams),
            _cell(row.prefill_tokens_per_s),
            _cell(row.decode_tokens_per_s),
            _cell(row.total_tokens_per_s),
            _cell(row.predicted_decode_tokens_per_s),
        )
        for row in rows
    ]
    columns = (">PROMPT", ">STREAMS", ">PREFILL/S", ">DECODE/S", ">ALL STREAMS/S", ">PREDICTED/S")
    out.table(columns, cells, document)
    out.hint("plans on this machine use these figures now; ggufdeploy bench --forget drops them")


def _cell(rate: float | None) -> str:
    return "-" if rate is None else format_rate(rate).removesuffix(" tokens/s")
