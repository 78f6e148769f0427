"""`ggufdeploy pull`: fetch one quantization, ask nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ggufdeploy.cli.artifacts import describe_artifact, describe_source
from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import (
    dry_run_option,
    machine_options,
    model_argument,
    read_settings,
    revision_option,
    wish_options,
)
from ggufdeploy.cli.output import Output
from ggufdeploy.errors import NotFound
from ggufdeploy.units import format_file_size

if TYPE_CHECKING:
    from ggufdeploy.deploy.sources import Source
    from ggufdeploy.hardware.catalog import GpuSpec
    from ggufdeploy.hub.catalog import Artifact
    from ggufdeploy.settings import Settings


@command(
    "pull",
    examples=[
        ("ggufdeploy pull mixtral-8x22b", "the quantization that run would choose on this machine"),
        ("ggufdeploy pull mixtral-8x22b --gpu h100-sxm --ctx 64k", "the one for another machine"),
        ("ggufdeploy pull owner/repo:Q4_K_M", "exactly this one"),
        ("ggufdeploy pull owner/repo --quant Q8_0 --dry-run", "how much it would be"),
    ],
)
@model_argument
@wish_options
@machine_options
@revision_option
@dry_run_option
def pull(
    model: str,
    gpu: tuple[GpuSpec, int] | None,
    machine_file: Path | None,
    ram_bytes: int | None,
    revision: str | None,
    dry_run: bool,
    out: Output,
    **wish: object,
) -> None:
    """Download one quantization of MODEL and print the path of its first file.

    Without a quantization it fetches the one that run would choose with the same options. What is here already is
    not fetched again; an interrupted download goes on where it stopped.
    """
    from ggufdeploy.deploy.resolution import resolve

    settings = read_settings()
    source, named = resolve(model, settings, revision=revision)
    for note in source.notes:
        out.note(note)
    quantization = wish["quantization"] or named
    if quantization is not None:
        artifact = source.find(str(quantization))
    elif len(source.artifacts) == 1:
        artifact = source.artifacts[0]
    else:
        artifact = _planned(source, model, wish, (gpu, machine_file, ram_bytes), out, settings)
    if dry_run:
        _announce(source, artifact, settings.hf_cache_dir if source.repo else settings.cache_dir, out)
        return
    with out.download_progress() as progress:
        path = source.fetch(artifact, progress)
    document = {**describe_source(source), **describe_artifact(artifact), "path": path, "dry_run": False}
    out.result(str(path), document)
    at = ["--revision", revision] if revision else []
    which = [] if named else ["--quant", artifact.quantization]
    out.hint(shlex.join(["ggufdeploy", "run", model, *at, *which]))


def _planned(
    source: Source,
    model: str,
    wish: dict[str, object],
    machine: tuple[tuple[GpuSpec, int] | None, Path | None, int | None],
    out: Output,
    settings: Settings,
) -> Artifact:
    """Return the quantization that a plan chooses."""
    from ggufdeploy.cli.machines import choose_machine
    from ggufdeploy.deploy.planning import make
    from ggufdeploy.deploy.wish import Wish
    from ggufdeploy.planner.explain import headline

    if not source.artifacts:
        raise NotFound("quantization", source.name, f"{source.name} offers no GGUF quantization")
    here = choose_machine(*machine).machine
    planned = make(source, model, Wish(**wish), here, settings=settings)  # type: ignore[arg-type]  # Wish's fields
    out.note(headline(planned.plan))
    return planned.artifact


def _announce(source: Source, artifact: Artifact, place: Path, out: Output) -> None:
    """Print what would be fetched to `place`."""
    from ggufdeploy.hardware.detect import free_disk_bytes

    here = [source.here_bytes(file) for file in artifact.files]
    rows = [
        (file.path, format_file_size(file.n_bytes), format_file_size(had))
        for file, had in zip(artifact.files, here, strict=True)
    ]
    missing, free = artifact.total_bytes - sum(here), free_disk_bytes(place)
    document = {**describe_source(source), **describe_artifact(artifact), "path": None, "dry_run": True}
    what = f"would fetch {format_file_size(missing)}" if missing else "all here already"
    out.note(f"{source.name} {artifact.quantization}: {what}")
    out.table(("FILE", ">SIZE", ">HERE"), rows, {**document, "missing_bytes": missing, "free_disk_bytes": free})
    out.note(f"{format_file_size(free)} free at {place}")
