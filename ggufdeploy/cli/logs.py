"""`ggufdeploy logs`: what a model in the background said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import Option, command
from ggufdeploy.cli.options import read_settings
from ggufdeploy.cli.output import Output
from ggufdeploy.errors import NotFound

if TYPE_CHECKING:
    from ggufdeploy.deploy.instances import Instance, Registry

SCHEMA_VERSION = 1
_LOOK_EVERY_S = 0.2


@command(
    "logs",
    examples=[
        ("ggufdeploy logs", "of the only model that runs, or of the one that ended last"),
        ("ggufdeploy logs mixtral-8x22b -f", "go on as more is written, until Ctrl-C or its end"),
    ],
)
@click.argument("name", required=False, metavar="[NAME|PORT]")
@click.option("-f", "--follow", is_flag=True, cls=Option, help="Go on until the model ends.")
def logs(name: str | None, follow: bool, out: Output) -> None:
    """Print the log of a model that was started with --detach."""
    from ggufdeploy.deploy.instances import Registry, identity_of

    path, instance = _choose(name, Registry(read_settings()))
    if out.mode == "json":
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        out.document({"schema_version": SCHEMA_VERSION, "log": path, "lines": lines})
        return
    with path.open(encoding="utf-8", errors="replace") as text:
        out.write(text.read())
        while follow and instance is not None and identity_of(instance.pid) == instance.identity:
            time.sleep(_LOOK_EVERY_S)
            out.write(text.read())
        out.write(text.read())


def _choose(name: str | None, registry: Registry) -> tuple[Path, Instance | None]:
    """Return the log that is meant and what writes to it, None for a model that has ended. Raises NotFound."""
    try:
        instance = registry.find(name)[-1]
    except NotFound as error:
        past = registry.logs(name)
        if not past or (name is None and registry.all()):
            raise error from None
        return past[0], None
    if instance.log is None:
        message = f"{instance.model} (process {instance.pid}) writes to the terminal it was started in"
        raise NotFound("log", instance.model, message, hint="start it with --detach to have a log")
    return Path(instance.log), instance
