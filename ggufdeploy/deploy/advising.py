"""Which GPUs would do for a model: the best quantization that each holds wholly, at each context, and how fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ggufdeploy.deploy.candidates import Candidates
from ggufdeploy.hardware.catalog import GpuSpec, find_gpu, simulate
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.calibration import Basis
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.request import KvType, PlanRequest
from ggufdeploy.planner.search import NOTICEABLE, Option, fast_enough, good_enough, search

COUNTS = (1, 2, 4, 8)
CONTEXTS_TOKENS = (8192, 32768, 65536)
_SHOWN = (
    "rtx-3060", "rtx-4060-ti-16gb", "rtx-3090", "rtx-4090", "rtx-5090", "l4", "rtx-a6000", "l40s", "rtx-6000-ada",
    "rtx-pro-6000", "a100-40gb", "a100-80gb", "h100-sxm", "h200-sxm", "b200",
)  # fmt: skip
"""What people own or rent most, one of each size and generation; --gpu names any other."""
# Wholly in VRAM, the host only holds the token embedding; any host does.
_HOST = Machine(
    devices=(), ram_total_bytes=1 << 40, ram_available_bytes=1 << 40, physical_cores=1, logical_cores=1, simulated=True
)


@dataclass(frozen=True)
class Fit:
    """The best quantization for one number of one GPU at one context; quantization None: none fits and is wanted.

    memory_bytes: free for llama.cpp on all cards together. kv_type: of the KV cache, None without a quantization. best:
    more memory would bring nothing that is noticeably better.
    """

    gpu: str
    name: str
    count: int
    memory_bytes: int
    context_tokens: int
    quantization: str | None = None
    file_bytes: int | None = None
    kv_type: KvType | None = None
    quality: float | None = None
    decode_tokens_per_s: float | None = None
    decode_low_tokens_per_s: float | None = None
    decode_high_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    basis: Basis | None = None
    best: bool = False


def shown_gpus() -> tuple[GpuSpec, ...]:
    """Return the GPUs that are compared when none is named, smallest first."""
    return tuple(sorted((find_gpu(name) for name in _SHOWN), key=lambda spec: spec.llama_free_bytes))


def advise(
    candidates: Candidates,
    request: PlanRequest,
    gpus: Sequence[tuple[GpuSpec, Sequence[int]]],
    contexts_tokens: Sequence[int],
) -> Iterator[Fit]:
    """Yield one Fit per GPU, number of them and context: what a plan would choose there, wholly in VRAM.

    request: with the floors, and whatever is left open, as `plan` makes it; its context is replaced. gpus: each with
    the numbers of cards to try. More cards of a GPU are left out once fewer hold the best at every context. Compute
    buffers are formulas; weights come from the header of each quantization that is named, read when first needed.
    """
    for spec, counts in gpus:
        for count in counts:
            machine = simulate(spec, count, base=_HOST)
            fits = [
                _fit(candidates, replace(request, context_tokens=tokens, offload="none"), machine, spec, count)
                for tokens in contexts_tokens
            ]
            yield from fits
            if all(fit.best for fit in fits):
                break


def _fit(candidates: Candidates, request: PlanRequest, machine: Machine, spec: GpuSpec, count: int) -> Fit:
    nothing = Fit(spec.id, spec.name, count, spec.llama_free_bytes * count, request.context_tokens)
    while True:
        result = search(candidates.all(), request, machine, FormulaMemory())
        chosen = result.chosen
        if chosen is None:
            return nothing
        name = chosen.candidate.quantization
        if chosen.candidate.exact or not candidates.read(name):
            break
    speed = chosen.speed
    return replace(
        nothing,
        quantization=name,
        file_bytes=chosen.candidate.total_bytes,
        kv_type=chosen.request.kv_type,
        quality=chosen.quality,
        decode_tokens_per_s=_rounded(speed.decode_tokens_per_s),
        decode_low_tokens_per_s=_rounded(speed.decode_low_tokens_per_s),
        decode_high_tokens_per_s=_rounded(speed.decode_high_tokens_per_s),
        prefill_tokens_per_s=_rounded(speed.prefill_tokens_per_s),
        basis=speed.basis,
        best=_is_best(chosen, result.options, request),
    )


def _is_best(chosen: Option, options: Sequence[Option], request: PlanRequest) -> bool:
    """Tell whether no quantization that is wanted is noticeably better, and the KV cache is of the first choice."""
    wanted = next(
        option
        for option in options  # best quality first
        if request.quantization in (None, option.candidate.quantization)
        and good_enough(option, request)
        and fast_enough(option, request)
    )
    if chosen.request.kv_type != request.kv_type:
        return False
    if chosen.candidate.quantization == wanted.candidate.quantization:
        return True
    if chosen.quality is None or wanted.quality is None:
        return False
    return chosen.quality >= wanted.quality - NOTICEABLE


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)


def smallest(fits: Sequence[Fit], context_tokens: int) -> Fit | None:
    """Return the least memory that does at this context: one card before several; None when nothing does."""
    doing = [fit for fit in fits if fit.context_tokens == context_tokens and fit.quantization is not None]
    return min(doing, key=lambda fit: (fit.count > 1, fit.memory_bytes), default=None)
