"""`ggufdeploy ps`: what runs, where its memory is, and whether that is what was planned."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import read_settings
from ggufdeploy.cli.output import Output
from ggufdeploy.units import format_bytes, format_duration

if TYPE_CHECKING:
    from ggufdeploy.deploy.instances import Instance
    from ggufdeploy.deploy.live import Live
    from ggufdeploy.deploy.truth import Truth

SCHEMA_VERSION = 1


@command(
    "ps",
    examples=[
        ("ggufdeploy ps", "every model that runs, planned beside actual memory"),
        ("ggufdeploy ps --json", "bytes per device, for programs"),
    ],
)
def ps(out: Output) -> None:
    """List the models that run on this machine: address, context, GPU share, memory planned and used, requests.

    Lists what this user started. The requests of a server with an API key are known where GGUFDEPLOY_API_KEY holds it.
    """
    from ggufdeploy.deploy.instances import Registry
    from ggufdeploy.deploy.live import ask

    settings = read_settings()
    found = [(instance, ask(instance, settings.api_key)) for instance in Registry(settings).all()]
    rows = [_row(instance, live) for instance, live in found]
    document = {"schema_version": SCHEMA_VERSION, "running": [_entry(instance, live) for instance, live in found]}
    columns = ("MODEL", "STATE", "URL", ">PID", "CONTEXT", "WHERE", "PLANNED", "ACTUAL", ">REQUESTS", "UP")
    out.table(columns, rows, document, empty="no model runs here")
    for instance, _ in found:
        for warning in instance.memory.warnings if instance.memory else ():
            out.warning(f"{instance.model}: {warning}")
    if not found:
        out.hint("ggufdeploy run MODEL --detach")


def _row(instance: Instance, live: Live) -> tuple[str, ...]:
    truth = instance.memory
    context = "?" if instance.context_tokens is None else f"{instance.context_tokens:,} x {instance.slots}"
    requests = "?" if live.running is None else str(live.running) + (f" (+{live.waiting})" if live.waiting else "")
    name = f"{instance.model}:{instance.quantization}" if instance.quantization else instance.model
    return (
        name,
        instance.phase,
        f"{instance.url}/v1" if instance.url else "-",
        str(instance.pid),
        context,
        _where(truth),
        _bytes(truth, planned=True),
        _bytes(truth, planned=False),
        requests,
        format_duration(time.time() - instance.started),
    )


def _where(truth: Truth | None) -> str:
    if truth is None:
        return "?"
    share = round(truth.gpu_share * 100)
    return "100 % GPU" if share == 100 else "CPU" if share == 0 else f"{share} % GPU"


def _bytes(truth: Truth | None, *, planned: bool) -> str:
    if truth is None:
        return "?"
    sizes = [(d.name, (d.planned if planned else d.actual).total_bytes) for d in truth.devices]
    return " + ".join(f"{name} {format_bytes(size)}" for name, size in sizes if size)


def _entry(instance: Instance, live: Live) -> dict[str, object]:
    return {
        "model": instance.model,
        "ref": instance.ref,
        "quantization": instance.quantization,
        "state": instance.phase,
        "url": instance.url,
        "port": instance.port,
        "pid": instance.pid,
        "context_tokens": instance.context_tokens,
        "slots": instance.slots,
        "restarts": instance.restarts,
        "requests_running": live.running,
        "requests_waiting": live.waiting,
        "uptime_s": round(time.time() - instance.started, 1),
        "log": instance.log,
        "memory": instance.memory,
    }
