"""`ggufdeploy show`: what a repository offers, or what one quantization holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufdeploy.cli.artifacts import describe_artifact, describe_source, find_artifact
from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import model_argument, read_settings, revision_option
from ggufdeploy.cli.output import Output, align
from ggufdeploy.errors import NotFound
from ggufdeploy.units import format_bytes, format_file_size

if TYPE_CHECKING:
    from ggufdeploy.deploy.sources import Source
    from ggufdeploy.gguf.model import ModelInfo
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
        ("ggufdeploy show mixtral-8x22b", "its quantizations, with sizes and number of files"),
        ("ggufdeploy show owner/repo:Q4_K_M", "what that quantization holds, from its header alone"),
        ("ggufdeploy show ./model.gguf", "the same for a file on this disk"),
    ],
)
@model_argument
@revision_option
def show(model: str, revision: str | None, out: Output) -> None:
    """Show the quantizations of MODEL; with a quantization, or for a file, what it holds.

    MODEL is a name, owner/repo[:QUANT], a Hub URL, or a path. Reads headers only.
    """
    from ggufdeploy.deploy.sources import resolve

    source, quantization = resolve(model, read_settings(), revision=revision)
    artifact = _chosen(source, quantization)
    if artifact is None:
        _show_ladder(source, out)
    else:
        _show_facts(source, artifact, out)


def _chosen(source: Source, quantization: str | None) -> Artifact | None:
    """Return the quantization that was named, or a local source's only one; None for a choice of several."""
    artifacts = {artifact.quantization: artifact for artifact in source.artifacts}
    if quantization is not None:
        return find_artifact(source, quantization)
    only_local = source.repo is None and source.profile is None and len(artifacts) == 1
    return next(iter(artifacts.values())) if only_local else None


def _show_ladder(source: Source, out: Output) -> None:
    """Print all quantizations, the largest first."""
    artifacts = sorted(source.artifacts, key=lambda artifact: -artifact.total_bytes)
    rows = [
        (
            artifact.quantization,
            format_file_size(artifact.total_bytes),
            format_bytes(artifact.total_bytes),
            str(len(artifact.files)),
        )
        for artifact in artifacts
    ]
    out.note(f"{source.name}: {source.repo or 'no repository'}" + (f" @ {source.revision}" if source.revision else ""))
    out.table(
        ("QUANTIZATION", ">SIZE", ">MEMORY", ">FILES"),
        rows,
        {**describe_source(source), "quantizations": [describe_artifact(artifact) for artifact in artifacts]},
        empty="no GGUF quantization here",
    )
    if artifacts:
        out.hint(f"ggufdeploy plan {source.repo or source.name}")


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
