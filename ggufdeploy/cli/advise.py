"""`ggufdeploy advise`: which GPUs would do for a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ggufdeploy.cli.command import command
from ggufdeploy.cli.options import (
    ctx_option,
    gpu_option,
    kv_type_option,
    min_quality_option,
    min_speed_option,
    model_argument,
    read_settings,
    revision_option,
    slots_option,
)
from ggufdeploy.cli.output import Output, align
from ggufdeploy.cli.plan import note_traffic
from ggufdeploy.errors import BadValue
from ggufdeploy.units import format_bytes, format_rate

if TYPE_CHECKING:
    from ggufdeploy.deploy.advising import Fit
    from ggufdeploy.deploy.candidates import Candidates
    from ggufdeploy.deploy.wish import Wish
    from ggufdeploy.hardware.catalog import GpuSpec
    from ggufdeploy.planner.request import KvType

SCHEMA_VERSION = 1


@command(
    "advise",
    examples=[
        ("ggufdeploy advise mixtral-8x22b", "which GPUs hold it, at which quantization, and how fast it is there"),
        ("ggufdeploy advise mixtral-8x22b --min-quality Q4_K_S --ctx 32k", "nothing worse, at one context"),
        ("ggufdeploy advise owner/repo --gpu rtx-4090 --min-speed 20", "one card, alone and with 2, 4 and 8 of them"),
        ("ggufdeploy advise owner/repo:Q8_0 --gpu h100-sxm:2", "one quantization on exactly two cards"),
    ],
)
@model_argument
@ctx_option
@slots_option
@kv_type_option
@min_quality_option
@min_speed_option
@gpu_option
@revision_option
def advise(
    model: str,
    context_tokens: int | None,
    slots: int | None,
    kv_type: KvType | Literal["auto"] | None,
    min_quality: float | None,
    min_speed: float | None,
    gpu: tuple[GpuSpec, int] | None,
    revision: str | None,
    out: Output,
) -> None:
    """Show which GPUs hold MODEL wholly in VRAM: the best quantization at each context, its quality and tokens/s.

    Compares 8k, 32k and 64k tokens unless --ctx names one, and the GPUs that are owned or rented most, alone and in
    numbers of 2, 4 and 8, unless --gpu names one. Reads only headers from the Hub, downloads nothing, and does not look
    at this machine.
    """
    from ggufdeploy.deploy import advising
    from ggufdeploy.deploy.candidates import Candidates
    from ggufdeploy.deploy.resolution import resolve
    from ggufdeploy.deploy.wish import Wish, make_request

    out.detail(f"looking up {model}")
    source, quantization = resolve(model, read_settings(), revision=revision)
    for note in source.notes:
        out.note(note)
    if quantization is not None:
        quantization = source.find(quantization).quantization
    candidates = Candidates(source)
    contexts = _contexts(context_tokens, candidates)
    wish = Wish(contexts[0], slots, kv_type, quantization, offload="none", min_quality=min_quality, min_speed=min_speed)
    request = make_request(wish, source.profile)
    fits = list(advising.advise(candidates, request, _compared(gpu), contexts))
    best = [fit for tokens in contexts if (fit := advising.smallest(fits, tokens)) is not None]
    document = {
        "schema_version": SCHEMA_VERSION, "model": source.name, "repo": source.repo, "revision": source.revision,
        "slots": request.slots, "fits": fits, "smallest": best,
    }  # fmt: skip
    rows = _rows(fits, contexts, keep_empty=gpu is not None)
    heads = [f"{tokens:,} TOKENS" for tokens in contexts]
    table = align(("GPU", ">VRAM", *heads), rows) if rows else []
    text = "\n".join([*table, "", *_sentences(best, contexts, wish)]).strip()
    out.result(text, document, brief="\n".join(f"{_gpu(fit)} {fit.quantization}" for fit in best))
    note_traffic(source, out)
    out.note("quantization, its quality, KV cache, tokens/s of one stream with half the context filled; estimates")
    if best:
        out.hint(f"ggufdeploy plan {model} --gpu {_gpu(best[-1])} --ctx {best[-1].context_tokens}")


def _contexts(asked: int | None, candidates: Candidates) -> list[int]:
    """Return the contexts to compare; one beyond the training context is none of them. Raises BadValue."""
    from ggufdeploy.deploy.advising import CONTEXTS_TOKENS

    candidates.read(next(iter(candidates.artifacts)))
    limit = candidates.all()[0].info.context_train_tokens
    if asked is None:
        return [tokens for tokens in CONTEXTS_TOKENS if limit is None or tokens <= limit] or [limit or 0]
    if limit is not None and asked > limit:
        message = f"--ctx {asked:,} is more than the {limit:,} tokens this model was trained for"
        raise BadValue("--ctx", message, hint=f"--ctx {limit}")
    return [asked]


def _compared(gpu: tuple[GpuSpec, int] | None) -> list[tuple[GpuSpec, Sequence[int]]]:
    """Return the GPUs and their numbers: one named without a number is tried in all."""
    from ggufdeploy.deploy.advising import COUNTS, shown_gpus

    if gpu is None:
        return [(spec, COUNTS) for spec in shown_gpus()]
    spec, count = gpu
    return [(spec, COUNTS if count == 1 else (count,))]


def _rows(fits: Sequence[Fit], contexts: Sequence[int], *, keep_empty: bool) -> list[tuple[str, ...]]:
    """Return one row per GPU and number, one cell per context; rows with nothing only where they were asked for."""
    grouped = [fits[i : i + len(contexts)] for i in range(0, len(fits), len(contexts))]
    return [
        (_gpu(row[0]), format_bytes(row[0].memory_bytes), *map(_cell, row))
        for row in grouped
        if keep_empty or any(fit.quantization for fit in row)
    ]


def _gpu(fit: Fit) -> str:
    return fit.gpu if fit.count == 1 else f"{fit.gpu}:{fit.count}"


def _cell(fit: Fit) -> str:
    if fit.quantization is None:
        return "-"
    worth = "?" if fit.quality is None else f"{fit.quality:.3f}"
    return f"{fit.quantization:<8} {worth} {fit.kv_type:<4} {_rate(fit)}"


def _rate(fit: Fit) -> str:
    rate = fit.decode_tokens_per_s
    return "?/s" if rate is None else f"{format_rate(rate).removesuffix(' tokens/s'):>4}/s"


def _sentences(best: Sequence[Fit], contexts: Sequence[int], wish: Wish) -> list[str]:
    """Say for each context which GPU is the smallest that would do."""
    by_context = {fit.context_tokens: fit for fit in best}
    lines = []
    for tokens in contexts:
        fit = by_context.get(tokens)
        if fit is None:
            lines.append(f"{tokens:,} tokens: nothing that was compared holds it{_floors(wish)}")
            continue
        rate = f", about {format_rate(fit.decode_tokens_per_s)}" if fit.decode_tokens_per_s else ""
        cards = f"one {fit.name}" if fit.count == 1 else f"no single GPU, but {fit.count} x {fit.name}"
        lines.append(f"{tokens:,} tokens: the smallest that does is {cards}: {fit.quantization}{rate}")
    return lines


def _floors(wish: Wish) -> str:
    floors = []
    if wish.min_speed is not None:
        floors.append(format_rate(wish.min_speed))
    if wish.min_quality is not None:
        floors.append(f"a quality of {wish.min_quality:.3f}")
    return f" with at least {' and '.join(floors)}" if floors else ""
