"""The tree of commands: what the help says is what there is."""

from __future__ import annotations

import shlex
import typing

import click
import pytest

from ggufdeploy import __version__
from ggufdeploy.cli import options
from ggufdeploy.cli.app import COMMANDS, app
from ggufdeploy.cli.command import Command
from ggufdeploy.cli.reference import reference
from ggufdeploy.engine.parameters import MAX_SLOTS
from ggufdeploy.planner.request import KvType, OffloadPolicy, Preference


def leaves(command=app, path=("ggufdeploy",)):
    """Yield (words, command) for every command that does something."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        yield from leaves(command.get_command(context, name), (*path, name))


LEAVES = dict(leaves())
EACH = pytest.mark.parametrize("words", LEAVES, ids=" ".join)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_leads_to_commands_of_those_names(name):
    command = COMMANDS[name].load()
    assert command.name == name
    assert command.help
    assert COMMANDS[name].summary.endswith(".")
    assert len(COMMANDS[name].summary) <= 68


@EACH
def test_every_command_has_json_quiet_verbose_and_examples(words):
    command = LEAVES[words]
    assert isinstance(command, Command)
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {"--json", "-q", "--quiet", "-v", "--verbose"} <= flags
    assert 1 <= len(command.examples) <= 4


@EACH
def test_every_example_is_a_valid_command_line(words):
    for line, meaning in LEAVES[words].examples:
        args = shlex.split(line)
        assert tuple(args[: len(words)]) == words, line
        assert meaning
        LEAVES[words].make_context(words[-1], args[len(words) :])


@EACH
def test_every_option_is_explained(words):
    for parameter in LEAVES[words].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.rstrip("]").endswith((".", "8080", "127.0.0.1")) or "[" in parameter.help, (
                parameter.help
            )


def test_the_same_flag_means_the_same_everywhere():
    meanings: dict[str, set[tuple]] = {}
    for command in LEAVES.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for flag in parameter.opts:
                    meanings.setdefault(flag, set()).add((parameter.name, parameter.help))
    assert {flag: found for flag, found in meanings.items() if len(found) > 1} == {}


def test_choices_are_the_planners():
    assert typing.get_args(KvType) == options.KV_TYPES
    assert options.MAX_SLOTS == MAX_SLOTS
    assert typing.get_args(Preference) == options.PREFERENCES
    assert typing.get_args(OffloadPolicy) == options.OFFLOAD_POLICIES


def test_the_options_of_a_plan_are_the_fields_of_a_wish():
    from ggufdeploy.deploy.wish import Wish

    @options.wish_options
    def function():
        pass

    names = {parameter.name for parameter in function.__click_params__}
    assert names | {"extra_files"} == set(Wish.__dataclass_fields__)  # files beside the model: of `plan` alone


def test_defaults_of_the_server_are_the_servers():
    from ggufdeploy.deploy.running import ServeOptions

    @options.host_option
    @options.port_option
    def function():
        pass

    defaults = {parameter.name: parameter.default for parameter in function.__click_params__}
    assert defaults == {"host": ServeOptions.host, "port": ServeOptions.port}


def test_the_bare_program_shows_its_help(run):
    assert run() == run("--help") == run("-h")
    assert all(name in run().out for name in COMMANDS)


def test_a_bare_group_shows_its_help(run):
    done = run("profiles")
    assert done.code == 0
    assert done.out == run("profiles", "--help").out


def test_help_groups_options_and_ends_with_examples(run):
    text = run("pull", "--help").out
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Plan:", "Machine:", "Options:", "Common options:", "Examples:"]


def test_version(run):
    assert run("--version").out == f"ggufdeploy {__version__}\n"


def test_completion_of_commands_imports_none():
    found = app.shell_complete(click.Context(app), "p")
    assert [(item.value, item.help) for item in found] == [
        (name, COMMANDS[name].summary) for name in ("plan", "ps", "pull", "partials", "profiles")
    ]


def test_completion_of_models_knows_profiles():
    argument = next(parameter for parameter in COMMANDS["pull"].load().params if parameter.name == "model")
    found = argument.type.shell_complete(click.Context(app), argument, "mixtral-8x2")
    assert "mixtral-8x22b" in [item.value for item in found]


def test_docs_cli_md_is_current(pytestconfig):
    path = pytestconfig.rootpath / "docs" / "cli.md"
    assert path.read_text(encoding="utf-8") == reference(), "run: python -m ggufdeploy.cli.reference > docs/cli.md"
