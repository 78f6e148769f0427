"""The root command and the table of all commands."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

from ggufdeploy import __version__
from ggufdeploy.cli.command import Lazy, LazyGroup

COMMANDS: Mapping[str, Lazy] = MappingProxyType(
    {
        "run": Lazy("ggufdeploy.cli.run:run", "Pick, fetch, load and serve a model."),
        "plan": Lazy("ggufdeploy.cli.plan:plan", "Show which quantization fits, where it goes and what it costs."),
        "advise": Lazy(
            "ggufdeploy.cli.advise:advise", "Show which GPUs would do for a model, and how fast it is there."
        ),
        "ps": Lazy("ggufdeploy.cli.ps:ps", "List the models that run, planned and actual memory."),
        "stop": Lazy("ggufdeploy.cli.stop:stop", "Stop a running model."),
        "logs": Lazy("ggufdeploy.cli.logs:logs", "Print the log of a model in the background."),
        "pull": Lazy("ggufdeploy.cli.pull:pull", "Download one quantization of a model."),
        "list": Lazy("ggufdeploy.cli.cached:list_", "List the models on this disk."),
        "rm": Lazy("ggufdeploy.cli.cached:rm", "Delete downloaded models."),
        "partials": Lazy("ggufdeploy.cli.partials:partials", "List and delete unfinished downloads."),
        "show": Lazy("ggufdeploy.cli.show:show", "Show a model's quantizations, or what a GGUF file holds."),
        "profiles": Lazy("ggufdeploy.cli.profiles:profiles", "List and show the models known by name."),
        "bench": Lazy("ggufdeploy.cli.bench:bench", "Measure this machine, so that plans need not estimate."),
        "doctor": Lazy("ggufdeploy.cli.doctor:doctor", "Check this machine and say what to fix."),
    }
)


@click.group(cls=LazyGroup, lazy=COMMANDS)
@click.version_option(__version__, prog_name="ggufdeploy", message="%(prog)s %(version)s")
def app() -> None:
    """Pick the GGUF quantization that fits this machine's GPUs, fetch it, and serve it.

    Start with: ggufdeploy run mixtral-8x22b
    """
