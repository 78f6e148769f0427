"""`ggufdeploy stop`: end what runs, letting running requests finish."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import Option, command
from ggufdeploy.cli.options import read_settings
from ggufdeploy.cli.output import Output
from ggufdeploy.errors import BadValue, GgufdeployError
from ggufdeploy.units import format_duration

if TYPE_CHECKING:
    from ggufdeploy.deploy.instances import Instance

SCHEMA_VERSION = 1
# The drain, then what ending the engine and closing the connections may take.
_DRAIN_S, _END_S = 20.0, 20.0


@command(
    "stop",
    examples=[
        ("ggufdeploy stop", "the only model that runs"),
        ("ggufdeploy stop mixtral-8x22b", "by name, port or process id"),
        ("ggufdeploy stop --all", "everything this user started"),
    ],
)
@click.argument("name", required=False, metavar="[NAME|PORT]")
@click.option("--all", "everything", is_flag=True, cls=Option, help="Stop every model.")
def stop(name: str | None, everything: bool, out: Output) -> int:
    """Stop a running model: no new requests, ten seconds for those that run, then the end."""
    from ggufdeploy.deploy.instances import Registry

    if name is not None and everything:
        raise BadValue("--all", "--all stops everything, and a name was given too", hint="leave one of them out")
    registry = Registry(read_settings())
    chosen = registry.all() if everything else registry.find(name)
    results = [(instance, *_stop(instance)) for instance in chosen]
    lines = [f"{instance.model} (process {instance.pid}) {how}" for instance, _, how in results]
    document = {
        "schema_version": SCHEMA_VERSION,
        "stopped": [
            {"model": instance.model, "pid": instance.pid, "port": instance.port, "ended": ended, "how": how}
            for instance, ended, how in results
        ],
    }
    out.result("\n".join(lines) or "no model runs here", document, brief="\n".join(one.model for one in chosen))
    stuck = [instance for instance, ended, _ in results if not ended]
    if stuck:
        pids = " ".join(str(instance.pid) for instance in stuck)
        raise GgufdeployError(f"{len(stuck)} did not end", hint=f"end it the hard way: kill -9 {pids}")
    return 0


def _stop(instance: Instance) -> tuple[bool, str]:
    """Return whether it ended, and how. A second SIGTERM ends the drain of one that does not."""
    from ggufdeploy.deploy.instances import Registry, send, wait_gone

    began = time.monotonic()
    if not send(instance, signal.SIGTERM):
        return True, "had ended already"
    ended = wait_gone(instance, _DRAIN_S)
    how = "stopped"
    if not ended:
        send(instance, signal.SIGTERM)
        ended, how = wait_gone(instance, _END_S), "was stopped at once after its requests did not finish"
    if not ended:
        return False, f"still runs after {format_duration(time.monotonic() - began)}"
    Registry(read_settings()).remove(instance.pid)
    return True, f"{how} in {format_duration(time.monotonic() - began)}"
