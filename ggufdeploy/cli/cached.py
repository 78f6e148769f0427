"""`ggufdeploy list` and `ggufdeploy rm`: the models on this disk."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import ModelType, dry_run_option, read_settings, yes_option
from ggufdeploy.cli.output import Output, ago, align
from ggufdeploy.units import format_file_size

if TYPE_CHECKING:
    from ggufdeploy.cli.kept import Kept

SCHEMA_VERSION = 1


@command(
    "list",
    examples=[
        ("ggufdeploy list", "every quantization on this disk, the last used first"),
        ("ggufdeploy list --json", "with paths, for programs"),
    ],
)
def list_(out: Output) -> None:
    """List the models on this disk."""
    from ggufdeploy.cli.kept import list_kept
    from ggufdeploy.hub.leftovers import list_leftovers

    settings = read_settings()
    models = sorted(list_kept(settings), key=lambda model: -model.last_used_s)
    rows = [
        (model.ref, format_file_size(model.n_bytes), str(len(model.paths)), ago(model.last_used_s)) for model in models
    ]
    document = {"schema_version": SCHEMA_VERSION, "models": [_entry(model) for model in models]}
    empty = f"no models in {settings.hf_cache_dir}"
    out.table(("MODEL", ">SIZE", ">FILES", "LAST USED"), rows, document, empty=empty)
    leftovers = list_leftovers(settings)
    if leftovers:
        size = format_file_size(sum(each.disk_bytes for each in leftovers))
        out.note(f"{size} more in unfinished downloads: ggufdeploy partials list")
    if not models:
        out.hint("ggufdeploy profiles list")


@command(
    "rm",
    examples=[
        ("ggufdeploy rm owner/repo:Q4_K_M", "one quantization"),
        ("ggufdeploy rm mixtral-8x22b", "all of its quantizations"),
        ("ggufdeploy rm owner/repo --dry-run", "how much that would free"),
    ],
)
@click.argument("models", type=ModelType(), nargs=-1, required=True, metavar="MODEL...")
@dry_run_option
@yes_option
def rm(models: tuple[str, ...], dry_run: bool, yes: bool, out: Output) -> None:
    """Delete downloaded models.

    MODEL is a name or owner/repo, with :QUANT for one quantization only. Other tools that use the Hugging Face cache
    lose them too.
    """
    from ggufdeploy.cli.kept import delete, find_kept

    settings = read_settings()
    chosen = {model.ref: model for text in models for model in find_kept(text, settings)}
    total_bytes = sum(model.n_bytes for model in chosen.values())
    if not dry_run:
        rows = [(name, format_file_size(model.n_bytes)) for name, model in chosen.items()]
        for line in align(("", ">"), rows)[1:]:
            out.note(line)
        out.confirm(f"Delete {format_file_size(total_bytes)}?", yes=yes)
        total_bytes = sum(delete(model, settings) for model in chosen.values())
    document = {
        "schema_version": SCHEMA_VERSION,
        "models": [_entry(model) for model in chosen.values()],
        "freed_bytes": total_bytes,
        "dry_run": dry_run,
    }
    text = f"{'would free' if dry_run else 'freed'} {format_file_size(total_bytes)}: {', '.join(chosen)}"
    out.result(text, document, brief="\n".join(chosen))


def _entry(model: Kept) -> dict[str, object]:
    return {
        "ref": model.ref,
        "repo": model.repo,
        "quantization": model.quantization,
        "total_bytes": model.n_bytes,
        "paths": model.paths,
        "last_used": datetime.fromtimestamp(model.last_used_s, timezone.utc).isoformat(timespec="seconds"),
    }
