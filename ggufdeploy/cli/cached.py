"""`ggufdeploy list` and `ggufdeploy rm`: the models on this disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import ModelType, dry_run_option, read_settings, yes_option
from ggufdeploy.cli.output import Output, align
from ggufdeploy.errors import BadValue, NotFound, nearest
from ggufdeploy.units import format_file_size

if TYPE_CHECKING:
    from ggufdeploy.hub.cache import CachedModel
    from ggufdeploy.settings import Settings

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
    from ggufdeploy.hub.cache import list_cached

    settings = read_settings()
    models = sorted(list_cached(settings), key=lambda model: model.last_used or 0.0, reverse=True)
    rows = [
        (name_of(model), format_file_size(model.n_bytes), str(len(model.paths)), _ago(model.last_used))
        for model in models
    ]
    document = {"schema_version": SCHEMA_VERSION, "models": [_entry(model) for model in models]}
    empty = f"no models in {settings.hf_cache_dir}"
    out.table(("MODEL", ">SIZE", ">FILES", "LAST USED"), rows, document, empty=empty)
    if not models:
        out.hint("ggufdeploy pull mixtral-8x22b")


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
    from ggufdeploy.hub.cache import remove

    settings = read_settings()
    chosen = {name_of(model): model for text in models for model in _matching(text, settings)}
    total_bytes = sum(model.n_bytes for model in chosen.values())
    if not dry_run:
        rows = [(name, format_file_size(model.n_bytes)) for name, model in chosen.items()]
        for line in align(("", ">"), rows)[1:]:
            out.note(line)
        out.confirm(f"Delete {format_file_size(total_bytes)}?", yes=yes)
        total_bytes = sum(remove(model, settings) for model in chosen.values())
    verb = "would free" if dry_run else "freed"
    document = {
        "schema_version": SCHEMA_VERSION,
        "models": [_entry(model) for model in chosen.values()],
        "freed_bytes": total_bytes,
        "dry_run": dry_run,
    }
    text = f"{verb} {format_file_size(total_bytes)}: {', '.join(chosen)}"
    out.result(text, document, brief="\n".join(chosen))


def name_of(model: CachedModel) -> str:
    """Return what to type for it."""
    return f"{model.repo}:{model.quantization}"


def _matching(text: str, settings: Settings) -> list[CachedModel]:
    """Return the cached models `text` means. Raises NotFound, naming the nearest; BadValue for a path."""
    from ggufdeploy.hub.cache import list_cached
    from ggufdeploy.hub.ref import NameRef, PathRef, parse_ref
    from ggufdeploy.profiles.store import load_profiles

    reference = parse_ref(text)
    if isinstance(reference, PathRef):
        raise BadValue("MODEL", f"{text} is a file of your own", hint="rm deletes downloaded models only")
    if isinstance(reference, NameRef):
        repos: Sequence[str] = load_profiles(settings).find(reference.name).repos
    else:
        repos = (reference.repo,)
    wanted = {repo.lower() for repo in repos}
    cached = list_cached(settings)
    quantization = reference.quantization
    found = [
        model
        for model in cached
        if model.repo.lower() in wanted and (quantization is None or model.quantization.upper() == quantization.upper())
    ]
    if not found:
        close = nearest(text, [name_of(model) for model in cached])
        hint = f"did you mean {close}?" if close else "see what is here: ggufdeploy list"
        raise NotFound("model", text, f"{text} is not on this disk", hint=hint)
    return found


def _entry(model: CachedModel) -> dict[str, object]:
    used = model.last_used
    return {
        "name": name_of(model),
        "repo": model.repo,
        "quantization": model.quantization,
        "total_bytes": model.n_bytes,
        "paths": model.paths,
        "last_used": None if used is None else datetime.fromtimestamp(used, timezone.utc).isoformat(),
    }


def _ago(moment: float | None) -> str:
    """Return how long ago, in the largest unit that fits."""
    if moment is None:
        return "?"
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
