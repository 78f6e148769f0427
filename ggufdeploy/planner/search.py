"""Which quantization at which KV type, and where it goes: for every pair the best placement, then the best pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner import quality
from ggufdeploy.planner.budget import fits, ram_tier, short_bytes
from ggufdeploy.planner.fitting import Placed, longest, offloaded, whole, windowed_or_recurrent
from ggufdeploy.planner.memory import MemoryModel, Usage, kv_type_misfit
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import CONTEXT_STEP_TOKENS, Candidate, PlanRequest
from ggufdeploy.planner.speed import Speed, predict

Verdict = Literal["gpu", "offload", "cpu", "disk", "impossible"]

# `balanced` offloads the best quantization that keeps this share of the speed of the fastest acceptable one.
_BALANCED_SPEED_SHARE = 0.7
NOTICEABLE = 0.001
"""Less quality than this is not worth half the speed and twice the download: Q8_0 before F16."""
# How much better the weights must be to serve fewer requests at once than by default: more than for a smaller KV type.
_FEWER_SLOTS_PRICE = 0.03


@dataclass(frozen=True)
class Option:
    """One candidate at one KV type, at its best placement.

    request: with the KV type, slots and pass size that were chosen. short_bytes: VRAM missing to hold all of it, 0 when
    it fits.
    """

    candidate: Candidate
    request: PlanRequest
    placement: Placement
    usage: Usage
    verdict: Verdict
    speed: Speed
    all_gpu_speed: Speed
    short_bytes: int

    @property
    def quality(self) -> float | None:
        """Of the weights alone; see `quality.quality`."""
        return quality.quality(self.candidate.quantization)

    @property
    def score(self) -> float | None:
        """Quality of weights and KV cache together, None when unknown."""
        return None if self.quality is None else round(self.quality * quality.kv_quality(self.request.kv_type), 4)

    @property
    def decode(self) -> float:
        """Decode tokens/s for comparing; an unknown speed compares as 0."""
        return self.speed.decode_tokens_per_s or 0.0

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others: quantization and KV type."""
        return self.candidate.quantization, self.request.kv_type


@dataclass(frozen=True)
class SearchResult:
    """options: every candidate at every KV type, best quality first. chosen: None when none satisfies the request."""

    chosen: Option | None
    options: tuple[Option, ...]

    @cached_property
    def ladder(self) -> tuple[Option, ...]:
        """One option per quantization, best quality first: the chosen one, and of the others what would be chosen."""
        names = list(dict.fromkeys(option.candidate.quantization for option in self.options))
        return tuple(self._best_of(name) for name in names)

    def _best_of(self, name: str) -> Option:
        if self.chosen is not None and self.chosen.candidate.quantization == name:
            return self.chosen
        own = [option for option in self.options if option.candidate.quantization == name]
        return next((option for option in own if option.verdict == "gpu"), own[0])


def search(
    candidates: Sequence[Candidate], request: PlanRequest, machine: Machine, memory: MemoryModel
) -> SearchResult:
    """Evaluate every candidate and choose by the request's preference."""
    options = [option for item in candidates for option in options_of(item, request, machine, memory)]
    return decide(options, request, machine, memory)


def decide(options: Sequence[Option], request: PlanRequest, machine: Machine, memory: MemoryModel) -> SearchResult:
    """Sort the options by quality and choose one."""
    ordered = sorted(options, key=lambda option: _merit(option, request))
    return SearchResult(choose(ordered, request, machine, memory), tuple(ordered))


def _merit(option: Option, request: PlanRequest) -> tuple[float, int, int]:
    place = quality.rank(option.candidate.quantization)
    kv_place = (request.kv_type, *request.other_kv_types).index(option.request.kv_type)
    return (place if place is not None else 1000.0, -option.candidate.total_bytes, kv_place)


def options_of(candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel) -> Iterator[Option]:
    """Evaluate one candidate at every KV type the request leaves open and the model can have."""
    for kv_type in (request.kv_type, *request.other_kv_types):
        if kv_type == request.kv_type or kv_type_misfit(candidate.info, kv_type) is None:
            yield evaluate(candidate, replace(request, kv_type=kv_type, other_kv_types=()), machine, memory)


def evaluate(candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel) -> Option:
    """Place one candidate as well as possible at the request's KV type.

    Everything on GPUs if that fits, if need be with smaller passes or fewer slots where those were left open; else what
    the offload policy allows, else the CPU.
    """
    first: tuple[PlanRequest, Placed] | None = None
    for wish in _variants(candidate, request):
        placed = whole(candidate, wish, machine, memory)
        first = first or (wish, placed)
        if not machine.devices or fits(placed[1], machine, wish):
            return _as_option(candidate, wish, machine, placed, placed)
    assert first is not None
    wish, everything = first
    placed = everything if request.offload == "none" else offloaded(candidate, wish, machine, memory)
    return _as_option(candidate, wish, machine, placed, everything)


def _variants(candidate: Candidate, request: PlanRequest) -> Iterator[PlanRequest]:
    """Return the request with every pass size and number of slots that is open, in order of preference."""
    slots = (request.slots, *(request.other_slots if windowed_or_recurrent(candidate.info) else ()))
    for n_slots in slots:
        for n_ubatch in (request.n_ubatch, *request.other_ubatches):
            if n_ubatch == request.n_ubatch or n_ubatch >= n_slots:
                yield replace(request, slots=n_slots, n_ubatch=n_ubatch, other_slots=(), other_ubatches=())


def _as_option(
    candidate: Candidate, request: PlanRequest, machine: Machine, placed: Placed, everything: Placed
) -> Option:
    """Judge a placement: verdict, speed, and what is missing for everything to be on GPUs."""
    info, (placement, usage) = candidate.info, placed
    full = Placement(info.n_layers, (info.n_layers + 1,) + (0,) * max(len(machine.devices) - 1, 0))
    all_gpu = predict(info, request, full, machine) if machine.devices else Speed(None, None, False)
    verdict: Verdict
    if machine.devices and placement.strategy == "full":
        verdict = "gpu" if fits(usage, machine, request) else "impossible"
    else:
        verdict = host_verdict(usage, machine, request, on_gpu=placement.n_gpu_layers > 0)
    short = 0
    if machine.devices and verdict != "gpu":
        short = max(short_bytes(everything[1], machine, request), 1)
    speed = all_gpu if placement == full else predict(info, request, placement, machine)
    return Option(candidate, request, placement, usage, verdict, speed, all_gpu, short)


def host_verdict(usage: Usage, machine: Machine, request: PlanRequest, *, on_gpu: bool) -> Verdict:
    """Say what the host's share means: it fits in RAM, is read from disk, or is out of the question."""
    tier = ram_tier(usage.host, machine, request)
    if tier == "impossible" or tier == "disk":
        return tier
    return "offload" if on_gpu else "cpu"


def longest_context_tokens(
    candidate: Candidate, request: PlanRequest, machine: Machine, memory: MemoryModel
) -> int | None:
    """Return the longest context with everything on GPUs, or in RAM without any; at most the training context.

    None if none fits.
    """
    limit = candidate.info.context_train_tokens or request.context_tokens

    def holds(steps: int) -> bool:
        wish = replace(request, context_tokens=steps * CONTEXT_STEP_TOKENS)
        usage = whole(candidate, wish, machine, memory)[1]
        if not machine.devices:
            return ram_tier(usage.host, machine, wish) in ("fits", "tight")
        return fits(usage, machine, wish)

    return longest(max(limit // CONTEXT_STEP_TOKENS, 1), holds) * CONTEXT_STEP_TOKENS or None


def eligible(options: Sequence[Option], request: PlanRequest) -> list[Option]:
    """Return the options that run and that the request allows, whatever their speed; from disk only if nothing else."""
    wanted = request.quantization
    named = [o for o in options if wanted is None or o.candidate.quantization.upper() == wanted.upper()]
    running = [o for o in named if o.verdict != "impossible" and good_enough(o, request)]
    return [o for o in running if o.verdict != "disk"] or running


def good_enough(option: Option, request: PlanRequest) -> bool:
    """Tell whether the quality floor that was asked for is met; an unknown quality does not meet one."""
    return request.min_quality is None or (option.quality is not None and option.quality >= request.min_quality)


def fast_enough(option: Option, request: PlanRequest) -> bool:
    """Tell whether the speed floor is met; nothing speaks against an unknown speed."""
    floor, rate = request.min_decode_tokens_per_s, option.speed.decode_tokens_per_s
    return floor is None or rate is None or rate >= floor


def choose(options: Sequence[Option], request: PlanRequest, machine: Machine, memory: MemoryModel) -> Option | None:
    """Choose among options that are sorted by quality, best first. None when none runs, or none meets the floors."""
    usable = [o for o in eligible(options, request) if fast_enough(o, request)]
    if not usable:
        return None
    if request.quantization is None and request.min_quality is None:
        usable = [o for o in usable if quality.meets_floor(o.candidate.quantization)] or usable
    if request.prefer == "speed":
        return max(usable, key=lambda o: o.decode)
    if request.prefer == "quality" and request.quantization is None:
        return usable[0]
    on_gpu = [o for o in usable if o.verdict == "gpu"]
    if request.prefer == "context" and on_gpu:
        return max(on_gpu, key=lambda o: (_longest(o, machine, memory), _worth(o, request)))
    if on_gpu:
        best = max(_worth(o, request) for o in on_gpu)
        return max((o for o in on_gpu if _worth(o, request) >= best - NOTICEABLE), key=lambda o: o.decode)
    plain = [o for o in usable if o.request.kv_type == request.kv_type] or usable
    fastest = max(o.decode for o in plain)
    return next(o for o in plain if o.decode >= _BALANCED_SPEED_SHARE * fastest)


def _longest(option: Option, machine: Machine, memory: MemoryModel) -> int:
    return longest_context_tokens(option.candidate, option.request, machine, memory) or 0


def _worth(option: Option, request: PlanRequest) -> float:
    """Return the quality of the weights, less what the concessions must buy to be worth it; unknown counts least."""
    if option.quality is None:
        return -1.0
    slots = _FEWER_SLOTS_PRICE if option.request.slots < request.slots else 0.0
    return option.quality - slots - quality.kv_price(option.request.kv_type)


def front(options: Sequence[Option]) -> tuple[Option, ...]:
    """Return the options that run and that no other beats in both quality and decode speed, best quality first."""
    known = [o for o in options if o.verdict != "impossible" and o.score is not None]
    best, fastest = [], -1.0
    for option in sorted(known, key=lambda o: (-(o.score or 0.0), -o.decode)):
        if option.decode > fastest:
            best.append(option)
            fastest = option.decode
    return tuple(best)
