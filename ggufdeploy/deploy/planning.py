"""From a source and a wish to a plan: read the headers that matter, search, and let the engine check the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ggufdeploy.deploy.candidates import Candidates
from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.oracle import EngineMemory, engine_not_asked, model_file
from ggufdeploy.deploy.sources import Headers, OnProgress, Source
from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.engine.parameters import MAX_SLOTS
from ggufdeploy.errors import BadValue, NoDryRun, NotFound, nearest
from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.hardware.catalog import list_gpus
from ggufdeploy.hardware.cpu import measure_ram_bandwidth_bytes_per_s
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.hub.catalog import Artifact
from ggufdeploy.planner.advice import Advice, Invocation, avoid_offload
from ggufdeploy.planner.assemble import make_plan
from ggufdeploy.planner.memory import FormulaMemory, kv_type_misfit
from ggufdeploy.planner.plan import Plan, PlanWarning
from ggufdeploy.planner.refusal import does_not_fit
from ggufdeploy.planner.request import Candidate, KvType, OffloadPolicy, PlanRequest, Preference
from ggufdeploy.planner.search import Option, SearchResult, choose, evaluate, search
from ggufdeploy.profiles.profile import Preset, Profile

DEFAULT_CONTEXT_TOKENS = 8192
DEFAULT_SLOTS = 4


@dataclass(frozen=True)
class Wish:
    """What the user said; None: not said, so the preset, the profile or the default decides."""

    context_tokens: int | None = None
    slots: int | None = None
    kv_type: KvType | None = None
    quantization: str | None = None
    prefer: Preference = "balanced"
    offload: OffloadPolicy = "auto"
    reserve_bytes: int = 0
    n_ubatch: int | None = None
    preset: str | None = None


@dataclass(frozen=True)
class Planned:
    """A plan with what is needed to carry it out, or to make it again. sizes: file bytes of every quantization."""

    plan: Plan
    source: Source
    artifact: Artifact
    sizes: Mapping[str, int]
    wish: Wish
    machine: Machine


def make_request(wish: Wish, profile: Profile | None) -> PlanRequest:
    """Merge flags over preset over profile over defaults. Raises NotFound for an unknown preset."""
    preset = _preset(wish.preset, profile)
    context = wish.context_tokens
    if context is None:
        context = profile.default_context_tokens if profile else DEFAULT_CONTEXT_TOKENS
        context = max(context, (preset.min_context_tokens or 0) if preset else 0)
    kv_type: KvType = wish.kv_type or _preset_kv_type(preset) or "f16"
    return PlanRequest(
        context_tokens=context,
        slots=wish.slots or (profile.default_slots if profile else DEFAULT_SLOTS),
        kv_type=kv_type,
        quantization=wish.quantization,
        prefer=wish.prefer,
        offload=wish.offload,
        reserve_bytes=wish.reserve_bytes,
        min_decode_tokens_per_s=preset.min_decode_tokens_per_s if preset else None,
        n_ubatch=wish.n_ubatch or 512,
    )


def _preset(name: str | None, profile: Profile | None) -> Preset | None:
    if name is None:
        return None
    presets = {preset.name: preset for preset in (profile.presets if profile else ())}
    if name not in presets:
        close = nearest(name, presets)
        known = ", ".join(presets) or "none"
        hint = f"did you mean {close}?" if close else f"presets of this model: {known}"
        raise NotFound("preset", name, hint=hint)
    return presets[name]


def _preset_kv_type(preset: Preset | None) -> KvType | None:
    return next((name for name in get_args(KvType) if preset is not None and name == preset.kv_type), None)


def make(source: Source, ref: str, wish: Wish, machine: Machine, *, rpc_endpoints: tuple[str, ...] = ()) -> Planned:
    """Plan `wish` for `source` on `machine`. rpc_endpoints: where the machine's devices of kind "rpc" answer, in order.

    Reads only headers. The RAM's bandwidth is measured (0.3 s) on a real machine where it is not known, because the
    speed of everything left in RAM rests on it. Raises BadValue (context beyond the training context), NotFound
    (quantization), DoesNotFit (with the numbers and the ways out), and whatever reading headers raises.
    """
    if not machine.simulated and machine.ram_bandwidth_bytes_per_s is None:
        machine = replace(machine, ram_bandwidth_bytes_per_s=measure_ram_bandwidth_bytes_per_s())
    candidates, request = prepare(source, wish, machine)
    candidates.read(_better_guess(request, candidates, machine))
    unasked: list[PlanWarning] = []
    with DryRun() as dry_run:
        machine = _as_the_engine_sees_it(machine, dry_run, candidates, request)
        result = _search_exactly(candidates, request, machine)
        result = _confirm(result, dry_run, candidates, request, machine, rpc_endpoints, unasked)
    typed = Invocation(ref, {"slots": wish.slots, "reserve": wish.reserve_bytes or None, "ubatch": wish.n_ubatch})
    option = result.chosen
    if option is None:
        raise does_not_fit(result.options, request, machine, typed)
    advice: tuple[Advice, ...] = ()
    if option.verdict != "gpu" and machine.devices:
        advice = avoid_offload(option, result.options, request, machine, typed, list_gpus())
    plan = make_plan(ref, source.name, source.repo, source.revision, request, machine, option, result, advice)
    warnings = (*plan.warnings, *unasked)
    plan = replace(plan, header_fetched_bytes=source.traffic.fetched_bytes, warnings=warnings)
    artifact = candidates.artifacts[option.candidate.quantization]
    sizes = {name: item.total_bytes for name, item in candidates.artifacts.items()}
    return Planned(plan, source, artifact, sizes, wish, machine)


def prepare(source: Source, wish: Wish, machine: Machine) -> tuple[Candidates, PlanRequest]:
    """Read what tells the model's shape, 64 KiB where they suffice, and check the wish against it. Raises as `make`."""
    candidates = Candidates(source)
    request = make_request(wish, source.profile)
    if request.quantization is not None:
        request = replace(request, quantization=source.find(request.quantization).quantization)
    guess = _first_guess(request, candidates, machine)
    if request.quantization is not None or not candidates.read_shape(guess):
        candidates.read(guess)
    info = candidates.all()[0].info
    request = _within_training(request, wish, info)
    _check_engine_limits(request, info)
    return candidates, request


def fetch(planned: Planned, on_progress: OnProgress) -> tuple[Planned, Path]:
    """Fetch the plan's quantization; return the plan and the first shard's path.

    A plan made without the header (from a profile) is made again from the file. Raises what `Source.fetch` and `make`
    raise.
    """
    path = planned.source.fetch(planned.artifact, on_progress)
    if planned.plan.header_source != "profile":
        return planned, path
    local = local_source(path, planned.source.name, planned.source.profile)
    return make(local, planned.plan.model.ref, planned.wish, planned.machine), path


def _within_training(request: PlanRequest, wish: Wish, info: ModelInfo) -> PlanRequest:
    """Return the request, a default context cut to the training context; one that was asked for is never cut."""
    limit = info.context_train_tokens
    if limit is not None and request.context_tokens > limit:
        if wish.context_tokens is None and wish.preset is None:
            return replace(request, context_tokens=limit)
        raise BadValue(
            "--ctx",
            f"--ctx {request.context_tokens:,} is more than the {limit:,} tokens this model was trained for",
            hint=f"--ctx {limit}",
        )
    return request


def _check_engine_limits(request: PlanRequest, info: ModelInfo) -> None:
    """Raise BadValue for what llama.cpp would refuse after the download."""
    slots, n_ubatch = request.slots, request.n_ubatch
    if slots > MAX_SLOTS:
        raise BadValue("--slots", f"--slots {slots}: llama.cpp serves at most {MAX_SLOTS}", hint=f"--slots {MAX_SLOTS}")
    if n_ubatch < slots:
        message = f"--ubatch {n_ubatch}: one pass takes a token of each of the {slots} slots"
        raise BadValue("--ubatch", message, hint=f"--ubatch {slots}")
    head = kv_type_misfit(info, request.kv_type)
    if head is not None:
        message = (
            f"--kv-type {request.kv_type} stores blocks of 32, and this model's attention heads have {head} elements"
        )
        raise BadValue("--kv-type", message, hint="--kv-type f16")


def _search_exactly(candidates: Candidates, request: PlanRequest, machine: Machine) -> SearchResult:
    """Search until the choice rests on headers of its own; each round reads at most one more."""
    while True:
        result = search(candidates.all(), request, machine, FormulaMemory())
        doubtful = _doubtful(result)
        if doubtful is None or not candidates.read(doubtful):
            return result


def _first_guess(request: PlanRequest, candidates: Candidates, machine: Machine) -> str:
    """Return the quantization whose header is read first: the named one, or the largest file the machine could hold."""
    if request.quantization is not None:
        return next(name for name in candidates.artifacts if name.upper() == request.quantization.upper())
    room = sum(device.free_bytes for device in machine.devices) or machine.ram_available_bytes
    by_size = sorted(candidates.artifacts.values(), key=lambda artifact: artifact.total_bytes)
    fitting = [artifact for artifact in by_size if artifact.total_bytes <= room]
    return (fitting[-1] if fitting else by_size[0]).quantization


def _better_guess(request: PlanRequest, candidates: Candidates, machine: Machine) -> str:
    """Return the quantization that the shape of the model speaks for; its header is the one most likely needed."""
    chosen = search(candidates.all(), request, machine, FormulaMemory()).chosen
    return _first_guess(request, candidates, machine) if chosen is None else chosen.candidate.quantization


def _doubtful(result: SearchResult) -> str | None:
    """Return the quantization whose header should be read next: the chosen one, or a better one barely too large."""
    chosen = result.chosen
    if chosen is None:
        return None
    if not chosen.candidate.exact:
        return chosen.candidate.quantization
    for option in result.options:
        if option.candidate is chosen.candidate:
            return None
        close_call = option.short_bytes and option.short_bytes < option.candidate.total_bytes // 50
        if close_call and not option.candidate.exact:
            return option.candidate.quantization
    return None


def _as_the_engine_sees_it(machine: Machine, dry_run: DryRun, candidates: Candidates, request: PlanRequest) -> Machine:
    """Return a real machine with the free memory llama.cpp reads on its GPUs; any header will do for the question."""
    known = next((item for item in candidates.all() if item.exact), None)
    if machine.simulated or known is None or not any(device.kind == "gpu" for device in machine.devices):
        return machine
    headers = candidates.headers(known.quantization)
    assert headers is not None
    try:
        with model_file(headers) as path:
            return EngineMemory(dry_run, str(path), machine).machine_seen(known.info, request)
    except NoDryRun:
        return machine  # the driver's reading stands, as an estimate


def _confirm(
    result: SearchResult,
    dry_run: DryRun,
    candidates: Candidates,
    request: PlanRequest,
    machine: Machine,
    rpc_endpoints: tuple[str, ...],
    unasked: list[PlanWarning],
) -> SearchResult:
    """Replace the chosen option's figures by the engine's; if that changes the choice, go on with the next one.

    On a simulated machine the engine can still give the KV cache in total; GPU compute stays a formula, and the plan
    says "estimate". Without a header, or where the engine cannot answer, the formula's figures stand as estimates;
    the reason is added to `unasked`.
    """
    confirmed: dict[str, Option] = {}
    while result.chosen is not None and result.chosen.candidate.quantization not in confirmed:
        name = result.chosen.candidate.quantization
        if not candidates.read(name):
            return result
        candidate = next(item for item in candidates.all() if item.quantization == name)
        headers = candidates.headers(name)
        assert headers is not None
        try:
            confirmed[name] = _ask(dry_run, candidate, headers, request, machine, rpc_endpoints)
        except NoDryRun as error:
            unasked.append(engine_not_asked(error))
            return result  # its figures are the formula's and say so
        options = tuple(confirmed.get(o.candidate.quantization, o) for o in result.options)
        result = SearchResult(choose(options, request), options)
    return result


def _ask(
    dry_run: DryRun,
    candidate: Candidate,
    headers: Headers,
    request: PlanRequest,
    machine: Machine,
    rpc_endpoints: tuple[str, ...],
) -> Option:
    """Place one candidate again with the engine's figures. Raises NoDryRun, EngineError."""
    with model_file(headers) as path:
        engine = EngineMemory(dry_run, str(path), machine, rpc_endpoints)
        if not machine.simulated:
            return evaluate(candidate, request, machine, engine)
        return evaluate(candidate, request, machine, engine.calibrated(candidate.info, request))
