"""What all commands share: --json, -q and -v at the end of the line, examples, and being imported only when used."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from ggufdeploy.cli.output import Mode, Output

_COMMON = "Common options"
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}


class Option(click.Option):
    """An option with the section of the help it is listed in."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose help ends with examples and groups its options. examples: (command line, what it does)."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT_SETTINGS, **kwargs})
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block per section, in order of first use, the common ones last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", _COMMON), []).append(record)
        for name in sorted(sections, key=lambda name: name == _COMMON):
            with formatter.section(name):
                formatter.write_dl(sections[name], col_max=34)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for line, meaning in self.examples:
                    formatter.write_text(f"{line}\n")
                    with formatter.indentation():
                        formatter.write_text(meaning)


class Group(click.Group):
    """A group that shows its help when called alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT_SETTINGS, "no_args_is_help": False, **kwargs})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read no arguments as --help."""
        return super().parse_args(ctx, args or ["--help"])


@dataclass(frozen=True)
class Lazy:
    """Where a command is and what it does. target: "module:name"."""

    target: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, name = self.target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


class LazyGroup(Group):
    """A group that lists its commands without importing them."""

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or return None when there is none of that name."""
        return self.lazy[cmd_name].load() if cmd_name in self.lazy else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a misspelt one names the nearest."""
        if args[0] not in self.lazy and not ctx.resilient_parsing:
            raise click.NoSuchCommand(args[0], possibilities=self.lazy, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from the summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self.lazy.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of commands, importing none."""
        commands = [
            CompletionItem(name, help=lazy.summary) for name, lazy in self.lazy.items() if name.startswith(incomplete)
        ]
        return commands if not incomplete.startswith("-") else click.Command.shell_complete(self, ctx, incomplete)


def command(
    name: str | None = None, *, examples: Sequence[tuple[str, str]], group: click.Group | None = None
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function that takes `out`; its docstring is the help, --json, -q and -v are added.

    group: the group to belong to; None for commands of the root, which lists them in `app.COMMANDS`.
    """

    def decorate(function: Callable[..., Any]) -> Command:
        @functools.wraps(function)
        def run(*args: Any, json_mode: bool, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
            mode: Mode = "json" if json_mode else "quiet" if quiet else "human"
            return function(*args, out=Output(mode, verbose), **kwargs)

        for option in reversed(_output_options()):
            run = option(run)
        made = click.command(name, cls=Command, examples=examples)(run)
        if group is not None:
            group.add_command(made)
        return made

    return decorate


def _output_options() -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    option = functools.partial(click.option, cls=Option, section=_COMMON, is_flag=True)
    return [
        option("--json", "json_mode", help="Print one JSON document; errors are one JSON line on stderr."),
        option("-q", "--quiet", help="Print the bare result, warnings and errors only."),
        option("-v", "--verbose", help="Say more on stderr."),
    ]
