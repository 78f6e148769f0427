"""`ggufdeploy show`: what a repository offers, or what one quantization holds."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufdeploy.cli.artifacts import describe_artifact, describe_source
from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import ctx_option, machine_options, model_argument, read_settings, revision_option
from ggufdeploy.cli.output import Output, align
from ggufdeploy.cli.plan import note_traffic
from ggufdeploy.errors import NotFound
from ggufdeploy.units import format_bytes, format_file_size

if TYPE_CHECKING:
    from ggufdeploy.deploy.ladder import Fit, Ladder
    from ggufdeploy.deploy.sources import Source
    from ggufdeploy.gguf.model import ModelInfo
    from ggufdeploy.hardware.catalog import GpuSpec
    from ggufdeploy.hardware.machine import Machine
    from ggufdeploy.hub.catalog import Artifact


@dataclass(frozen=True)
class Facts:
    """What a header says of a model; null: it does not say. Sizes in bytes, contexts in tokens."""

    name: str | None
    architecture: str
    quantization: str
    n_params: int
    bits_per_weight: float
    n_layers: int
    n_experts: int
    n_experts_used: int
    embedding_length: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    context_train_tokens: int | None
    sliding_window_tokens: int | None
    n_tensors: int
    tensors_bytes: int
    experts_bytes: int
    chat_template_sha256: str | None


@command(
    "show",
    examples=[
        ("ggufdeploy show mixtral-8x22b", "its quantizations: sizes, files, and which fit this machine"),
        ("ggufdeploy show owner/repo --gpu rtx-4090:2 --ctx 32k", "which fit two cards that are not here"),
        ("ggufdeploy show owner/repo:Q4_K_M", "what that quantization holds, from its header alone"),
        ("ggufdeploy show ./model.gguf", "the same for a file on this disk"),
    ],
)
@model_argument
@ctx_option
@machine_options
@revision_option
def show(
    model: str,
    context_tokens: int | None,
    gpu: tuple[GpuSpec, int] | None,
    machine_file: Path | None,
    ram_bytes: int | None,
    revision: str | None,
    out: Output,
) -> None:
    """Show the quantizations of MODEL and whether they fit; with a quantization, or for a file, what it holds.

    MODEL is a name, owner/repo[:QUANT], a Hub URL, or a path. Reads headers only: for all quantizations 64 KiB. What
    fits is an estimate for the profile's context, or --ctx; `plan` asks the engine.
    """
    from ggufdeploy.cli.machines import choose_machine
    from ggufdeploy.deploy.resolution import resolve

    source, quantization = resolve(model, read_settings(), revision=revision)
    for note in source.notes:
        out.note(note)
    artifact = _chosen(source, quantization)
    if artifact is None:
        found = choose_machine(gpu, machine_file, ram_bytes)
        for note in found.notes:
            out.note(note)
        _show_ladder(source, model, context_tokens, found.machine, out)
    else:
        _show_facts(source, artifact, out)
        note_traffic(source, out)


def _chosen(source: Source, quantization: str | None) -> Artifact | None:
    """Return the quantization that was named, or a local source's only one; None for a choice of several."""
    artifacts = {artifact.quantization: artifact for artifact in source.artifacts}
    if quantization is not None:
        return source.find(quantization)
    only_local = source.repo is None and source.profile is None and len(artifacts) == 1
    return next(iter(artifacts.values())) if only_local else None


def _show_ladder(source: Source, model: str, context_tokens: int | None, machine: Machine, out: Output) -> None:
    """Print all quantizations, the largest first, and whether they fit. model: as it was typed."""
    from ggufdeploy.deploy.ladder import judge
    from ggufdeploy.deploy.wish import Wish

    ladder = judge(source, Wish(context_tokens=context_tokens), machine)
    rows = [
        (
            rung.artifact.quantization,
            format_file_size(rung.artifact.total_bytes),
            format_bytes(rung.artifact.total_bytes),
            str(len(rung.artifact.files)),
            "?" if rung.bits_per_weight is None else f"{rung.bits_per_weight:.2f}",
            "?" if rung.fit is None else _where(rung.fit, ladder.context_tokens),
        )
        for rung in ladder.rungs
    ]
    out.note(f"{source.name}: {source.repo or 'no repository'}" + (f" @ {source.revision}" if source.revision else ""))
    columns = ("QUANTIZATION", ">SIZE", ">MEMORY", ">FILES", ">BITS", "FITS")
    out.table(columns, rows, _ladder_document(source, ladder, machine), empty="no GGUF quantization here")
    if ladder.problem is not None:
        out.warning(f"what fits is not known: {ladder.problem}", ladder.problem.hint)
    else:
        out.note(f"FITS is an estimate for {_machine(machine)} at {ladder.context_tokens:,} tokens of context")
    _note_skipped(source, out)
    note_traffic(source, out)
    out.hint(f"ggufdeploy plan {shlex.quote(model)}")


def _ladder_document(source: Source, ladder: Ladder, machine: Machine) -> dict[str, object]:
    """Return what a document says of all quantizations; fits: of each, an estimate, null when unknown."""
    return {
        **describe_source(source),
        "context_tokens": ladder.context_tokens,
        "slots": ladder.slots,
        "machine": machine,
        "memory_source": "estimate",
        "header_source": ladder.header_source,
        "header_fetched_bytes": source.traffic.fetched_bytes,
        "fits_unknown_because": None if ladder.problem is None else str(ladder.problem),
        "quantizations": [
            {
                **describe_artifact(rung.artifact),
                "bits_per_weight": None if rung.bits_per_weight is None else round(rung.bits_per_weight, 3),
                "fits": rung.fit,
            }
            for rung in ladder.rungs
        ],
        "companions": [
            {"kind": item.kind, "path": item.file.path, "bytes": item.file.n_bytes, "sha256": item.file.sha256}
            for item in (source.catalogue.companions if source.catalogue else ())
        ],
        "others": [describe_artifact(artifact) for artifact in (source.catalogue.others if source.catalogue else ())],
        "skipped": [{"path": path, "reason": reason} for path, reason in _skipped(source)],
    }


def _where(fit: Fit, context_tokens: int) -> str:
    """Say in a few words where a quantization would run, and what is left beside it."""
    context = f"{context_tokens // 1024}k" if context_tokens % 1024 == 0 else f"{context_tokens:,}"
    free = "" if fit.free_bytes is None else f"{format_bytes(fit.free_bytes)} free at {context}"
    if fit.verdict == "gpu":
        return f"GPU, {free}"
    if fit.verdict == "cpu":
        return f"CPU, {free}"
    if fit.verdict == "offload" and fit.strategy == "experts":
        return f"GPU+RAM, experts of {fit.n_host_expert_layers}/{fit.n_layers_total - 1} layers in RAM"
    if fit.verdict == "offload":
        return f"GPU+RAM {fit.n_gpu_layers}/{fit.n_layers_total}"
    return "from disk, very slow" if fit.verdict == "disk" else "no"


def _machine(machine: Machine) -> str:
    """Name the machine that was judged for."""
    names = [device.description for device in machine.devices]
    cards = ", ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )
    ram = f"{format_bytes(machine.ram_available_bytes)} of free RAM"
    return f"{cards} and {ram}" if cards else f"no GPU and {ram}"


def _skipped(source: Source) -> Sequence[tuple[str, str]]:
    """Return (path, reason) of the GGUF files that are no quantization of the model."""
    return () if source.catalogue is None else source.catalogue.not_offered


def _note_skipped(source: Source, out: Output) -> None:
    """Name the GGUF files that are no quantization of the model."""
    skipped = _skipped(source)
    for path, reason in skipped:
        out.detail(f"not offered: {path} ({reason})")
    if skipped and not out.verbose:
        kinds = Counter(reason for _, reason in skipped)
        named = "; ".join(f"{count} x {reason}" for reason, count in kinds.most_common(3))
        more = f"; {len(kinds) - 3} other reasons" if len(kinds) > 3 else ""
        out.note(f"GGUF files that are not offered: {len(skipped)} ({named}{more}); -v names them")
    others = source.catalogue.others if source.catalogue else ()
    for artifact in others:
        out.detail(f"had by the file's name: {artifact.files[0].path} ({artifact.quantization})")
    if others and not out.verbose:
        count = f"{len(others)} more builds or models are" if len(others) > 1 else "one more build or model is"
        example = shlex.quote(f"{source.repo or source.name}/{others[0].files[0].path}")
        out.note(f"{count} had by the file's name, as in {example}")


def _show_facts(source: Source, artifact: Artifact, out: Output) -> None:
    """Print what the header of one quantization says."""
    from ggufdeploy.gguf.model import model_info

    headers = source.headers(artifact)
    if headers is None:
        raise NotFound(
            "file",
            f"{source.name}:{artifact.quantization}",
            f"the header of {source.name} {artifact.quantization} cannot be read before it is downloaded",
            hint=f"ggufdeploy pull {source.repo or source.name} --quant {artifact.quantization}",
        )
    facts = _facts(model_info([shard.header for shard in headers.shards]), artifact.quantization)
    files = [(file.path, format_file_size(file.n_bytes)) for file in artifact.files]
    text = "\n".join([*_lines(facts), "files", *(f"  {line}" for line in align(("", ">"), files)[1:])])
    out.result(text, {**describe_source(source), **describe_artifact(artifact), "facts": facts})


def _facts(info: ModelInfo, quantization: str) -> Facts:
    template = info.chat_template
    return Facts(
        name=info.name,
        architecture=info.architecture,
        quantization=quantization,
        n_params=info.n_params,
        bits_per_weight=round(info.total_bytes * 8 / info.n_params, 2),
        n_layers=info.n_layers,
        n_experts=info.n_experts,
        n_experts_used=info.n_experts_used,
        embedding_length=info.embedding_length,
        n_heads=info.n_heads,
        n_kv_heads=max((layer.kv_heads for layer in info.layers), default=0),
        n_vocab=info.n_vocab,
        context_train_tokens=info.context_train_tokens,
        sliding_window_tokens=info.sliding_window_tokens,
        n_tensors=info.n_tensors,
        tensors_bytes=info.total_bytes,
        experts_bytes=sum(layer.expert_bytes for layer in info.layers),
        chat_template_sha256=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    )


def _lines(facts: Facts) -> Sequence[str]:
    """Return the facts as aligned lines; what is unknown is left out."""
    experts = f"{facts.n_experts}, {facts.n_experts_used} per token, {format_bytes(facts.experts_bytes)}"
    rows = [
        ("name", facts.name),
        ("architecture", facts.architecture),
        ("quantization", f"{facts.quantization}, {facts.bits_per_weight:.2f} bits per weight"),
        ("parameters", f"{facts.n_params:,}"),
        ("layers", f"{facts.n_layers}"),
        ("experts", experts if facts.n_experts else None),
        ("embedding", f"{facts.embedding_length:,}"),
        ("heads", f"{facts.n_heads}, {facts.n_kv_heads} for keys and values"),
        ("vocabulary", f"{facts.n_vocab:,}"),
        ("context", _tokens(facts.context_train_tokens)),
        ("sliding window", _tokens(facts.sliding_window_tokens)),
        ("tensors", f"{facts.n_tensors:,}, {format_bytes(facts.tensors_bytes)}"),
        ("chat template", f"sha256 {facts.chat_template_sha256}" if facts.chat_template_sha256 else "none"),
    ]
    return align(("", ""), [(name, value) for name, value in rows if value is not None])[1:]


def _tokens(count: int | None) -> str | None:
    return None if count is None else f"{count:,} tokens"
