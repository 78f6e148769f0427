"""`ggufdeploy partials`: what unfinished downloads left on this disk."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import Group, command
from ggufdeploy.cli.options import dry_run_option, read_settings, yes_option
from ggufdeploy.cli.output import Output, ago
from ggufdeploy.errors import NotFound, nearest
from ggufdeploy.units import format_file_size

if TYPE_CHECKING:
    from ggufdeploy.hub.leftovers import Leftover

SCHEMA_VERSION = 1
_STATES = {
    "partial": "goes on with pull",
    "orphan": "nothing goes on with it",
    "damaged": "failed its check",
}


@click.group(cls=Group)
def partials() -> None:
    """List and delete what unfinished downloads left on this disk.

    Interrupted downloads are kept, so that they go on where they stopped. What other programs left unfinished is
    listed too.
    """


@command(
    "list",
    group=partials,
    examples=[("ggufdeploy partials list", "how far each is, and whether anything will finish it")],
)
def list_(out: Output) -> None:
    """List unfinished downloads."""
    from ggufdeploy.hub.leftovers import list_leftovers

    found = list_leftovers(read_settings())
    rows = [
        (_name(each), _done(each), format_file_size(each.disk_bytes), ago(each.changed_s), _state(each))
        for each in found
    ]
    document = {"schema_version": SCHEMA_VERSION, "partials": [dataclasses.asdict(each) for each in found]}
    out.table(("FILE", ">DONE", ">ON DISK", "CHANGED", "STATE"), rows, document, empty="no unfinished downloads")
    going_on = next((each for each in found if each.kind == "partial" and not each.busy), None)
    if going_on:
        out.hint(f"ggufdeploy pull {shlex.quote(_name(going_on))}")
    elif not all(each.busy for each in found):
        out.hint("ggufdeploy partials clean")


@command(
    "clean",
    group=partials,
    examples=[
        ("ggufdeploy partials clean", "all that no process is fetching now"),
        ("ggufdeploy partials clean owner/repo", "those of one repository"),
        ("ggufdeploy partials clean --dry-run", "how much that would free"),
    ],
)
@click.argument("repos", nargs=-1, metavar="[REPO]...")
@dry_run_option
@yes_option
def clean(repos: tuple[str, ...], dry_run: bool, yes: bool, out: Output) -> None:
    """Delete unfinished downloads, except those that a process is fetching now."""
    from ggufdeploy.hub.leftovers import delete_leftover, list_leftovers

    settings = read_settings()
    found = _of(repos, list_leftovers(settings))
    chosen = [each for each in found if not each.busy]
    for each in found:
        if each.busy:
            out.note(f"{_name(each)} is being fetched and stays")
    n_bytes = sum(each.disk_bytes for each in chosen)
    if chosen and not dry_run:
        for each in chosen:
            out.note(f"{_name(each)}  {format_file_size(each.disk_bytes)}")
        out.confirm(f"Delete {format_file_size(n_bytes)}?", yes=yes)
        n_bytes = sum(delete_leftover(each, settings) for each in chosen)
    document = {
        "schema_version": SCHEMA_VERSION,
        "partials": [dataclasses.asdict(each) for each in chosen],
        "freed_bytes": n_bytes,
        "dry_run": dry_run,
    }
    out.result(f"{'would free' if dry_run else 'freed'} {format_file_size(n_bytes)}", document)


def _of(repos: tuple[str, ...], found: list[Leftover]) -> list[Leftover]:
    """Return the leftovers of these repositories, of all when none is named. Raises NotFound."""
    if not repos:
        return found
    known = {each.repo for each in found}
    for repo in repos:
        if repo not in known:
            close = nearest(repo, known)
            hint = f"did you mean {close}?" if close else "see what there is: ggufdeploy partials list"
            raise NotFound("model", repo, f"{repo} has no unfinished downloads", hint=hint)
    return [each for each in found if each.repo in repos]


def _name(leftover: Leftover) -> str:
    return f"{leftover.repo}/{leftover.path or leftover.files[0].name[:12] + '…'}"


def _done(leftover: Leftover) -> str:
    if leftover.done_bytes is None or leftover.total_bytes is None:
        return "unknown"
    return f"{format_file_size(leftover.done_bytes)} of {format_file_size(leftover.total_bytes)}"


def _state(leftover: Leftover) -> str:
    return "being fetched now" if leftover.busy else _STATES[leftover.kind]
