"""From a source and a wish to a plan: read the headers that matter, search, and let the engine check the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ggufdeploy.deploy import lessons
from ggufdeploy.deploy.answers import RememberedDryRun
from ggufdeploy.deploy.bandwidth import ram_bandwidth_bytes_per_s
from ggufdeploy.deploy.candidates import Candidates
from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.oracle import EngineMemory, engine_not_asked, model_file
from ggufdeploy.deploy.othermodels import other_models
from ggufdeploy.deploy.sources import Headers, OnProgress, Source
from ggufdeploy.deploy.wish import (
    Wish,
    check_budgets,
    check_engine_limits,
    invocation,
    make_request,
    within_training,
)
from ggufdeploy.errors import NoDryRun
from ggufdeploy.hardware.catalog import list_gpus
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.hub.catalog import Artifact
from ggufdeploy.planner.advice import USEFUL_TOKENS_PER_S, Advice, avoid_offload
from ggufdeploy.planner.assemble import make_plan
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.plan import Plan, PlanWarning
from ggufdeploy.planner.refusal import does_not_fit
from ggufdeploy.planner.request import Candidate, PlanRequest
from ggufdeploy.planner.search import Option, SearchResult, decide, evaluate, longest_context_tokens, options_of, search
from ggufdeploy.settings import Settings


@dataclass(frozen=True)
class Planned:
    """A plan with what is needed to carry it out, or to make it again."""

    plan: Plan
    source: Source
    artifact: Artifact
    wish: Wish
    machine: Machine
    settings: Settings | None = None


def make(
    source: Source,
    ref: str,
    wish: Wish,
    machine: Machine,
    *,
    settings: Settings | None = None,
    rpc_endpoints: tuple[str, ...] = (),
) -> Planned:
    """Plan `wish` for `source` on `machine`. rpc_endpoints: where the machine's devices of kind "rpc" answer, in order.

    settings: where dry runs are remembered, lessons of earlier loads and profiles are; None does without. Reads only
    headers. The RAM's bandwidth is measured (0.3 s, once a day) on a real machine where it is not known, because the
    speed of everything left in RAM rests on it. Raises BadValue (context beyond the training context), NotFound
    (quantization), DoesNotFit (with the numbers and the ways out), and whatever reading headers raises.
    """
    cache_dir = settings.cache_dir if settings is not None else None
    if not machine.simulated and machine.ram_bandwidth_bytes_per_s is None:
        machine = replace(machine, ram_bandwidth_bytes_per_s=ram_bandwidth_bytes_per_s(machine, cache_dir))
    candidates, request = prepare(source, wish, machine)
    if settings is not None and not machine.simulated:
        request = replace(request, learned=lessons.load(settings))
    candidates.read(_better_guess(request, candidates, machine))
    unasked: list[PlanWarning] = []
    dry_run = RememberedDryRun(cache_dir and cache_dir / "answers", _devices_key(machine))
    with dry_run:
        machine = _as_the_engine_sees_it(machine, dry_run, candidates, request)
        result = _search_exactly(candidates, request, machine)
        if wish.context_tokens is None and request.prefer == "context":
            request = _with_the_longest_context(result, request, machine)
            result = _search_exactly(candidates, request, machine)
        result = _confirm(result, dry_run, candidates, request, machine, rpc_endpoints, unasked)
    typed = invocation(ref, wish)
    option = result.chosen
    if option is None:
        models = other_models(settings, source.name) if settings else ()
        raise does_not_fit(result.options, request, machine, typed, models)
    advice: tuple[Advice, ...] = ()
    if option.verdict != "gpu" and machine.devices:
        slow = settings is not None and option.decode < USEFUL_TOKENS_PER_S
        models = other_models(settings, source.name) if settings and slow else ()
        advice = avoid_offload(option, result.options, request, machine, typed, list_gpus(), models)
    plan = make_plan(ref, source.name, source.repo, source.revision, request, machine, option, result, advice)
    warnings = (*plan.warnings, *unasked)
    plan = replace(plan, header_fetched_bytes=source.traffic.fetched_bytes, warnings=warnings)
    artifact = candidates.artifacts[option.candidate.quantization]
    return Planned(plan, source, artifact, wish, machine, settings)


def _devices_key(machine: Machine) -> str:
    return "\n".join(f"{device.kind} {device.name} {device.description}" for device in machine.devices)


def prepare(source: Source, wish: Wish, machine: Machine) -> tuple[Candidates, PlanRequest]:
    """Read what tells the model's shape, 64 KiB where they suffice, and check the wish against it. Raises as `make`."""
    candidates = Candidates(source)
    request = make_request(wish, source.profile)
    check_budgets(request, machine)
    if request.quantization is not None:
        request = replace(request, quantization=source.find(request.quantization).quantization)
    guess = _first_guess(request, candidates, machine)
    if request.quantization is not None or not candidates.read_shape(guess):
        candidates.read(guess)
    info = candidates.all()[0].info
    request = within_training(request, wish, info)
    check_engine_limits(request, info)
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
    return make(local, planned.plan.model.ref, planned.wish, planned.machine, settings=planned.settings), path


def _search_exactly(candidates: Candidates, request: PlanRequest, machine: Machine) -> SearchResult:
    """Search until the choice rests on headers of its own; each round reads at most one more."""
    memory = FormulaMemory()
    known: dict[tuple[str, bool], tuple[Option, ...]] = {}
    while True:
        for item in candidates.all():
            if (item.quantization, item.exact) not in known:
                known[item.quantization, item.exact] = tuple(options_of(item, request, machine, memory))
        options = [o for item in candidates.all() for o in known[item.quantization, item.exact]]
        result = decide(options, request, machine, memory)
        doubtful = _doubtful(result)
        if doubtful is None or not candidates.read(doubtful):
            return result


def _with_the_longest_context(result: SearchResult, request: PlanRequest, machine: Machine) -> PlanRequest:
    """Return the request at the longest context that the chosen option holds; the default where it holds less."""
    if result.chosen is None:
        return request
    tokens = longest_context_tokens(result.chosen.candidate, result.chosen.request, machine, FormulaMemory())
    return replace(request, context_tokens=max(tokens or 0, request.context_tokens))


def _first_guess(request: PlanRequest, candidates: Candidates, machine: Machine) -> str:
    """Return the quantization whose header is read first: the named one, or the largest file the machine could hold."""
    if request.quantization is not None:
        return next(name for name in candidates.artifacts if name.upper() == request.quantization.upper())
    room = sum(device.free_bytes for device in machine.devices) or machine.ram_available_bytes
    by_size = sorted(candidates.artifacts.values(), key=lambda artifact: artifact.total_bytes)
    fitting = [artifact for artifact in by_size if artifact.total_bytes <= room]
    return (fitting[-1] if fitting else by_size[0]).quantization


def _better_guess(request: PlanRequest, candidates: Candidates, machine: Machine) -> str:
    """Return the quantization that the shape of the model speaks for; its header is the one most likely needed.

    Without offloading and smaller passes, which take most of a search's time and seldom change the choice.
    """
    quick = replace(request, offload="none", other_ubatches=(), other_slots=())
    chosen = search(candidates.all(), quick, machine, FormulaMemory()).chosen
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


def _as_the_engine_sees_it(
    machine: Machine, dry_run: RememberedDryRun, candidates: Candidates, request: PlanRequest
) -> Machine:
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
    dry_run: RememberedDryRun,
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
    confirmed: dict[tuple[str, str], Option] = {}
    while result.chosen is not None and result.chosen.key not in confirmed:
        first = result.chosen.key
        name = result.chosen.candidate.quantization
        if not candidates.read(name):
            return result
        candidate = next(item for item in candidates.all() if item.quantization == name)
        headers = candidates.headers(name)
        assert headers is not None
        siblings = [option for option in result.options if option.candidate.quantization == name]
        try:
            for option in sorted(siblings, key=lambda option: option.key != first):
                wish = replace(request, kv_type=option.request.kv_type, other_kv_types=())
                asked = _ask(dry_run, candidate, headers, wish, machine, rpc_endpoints)
                confirmed[option.key] = asked
                if asked.verdict == option.verdict:
                    break  # the formula can be believed for the other KV types too
        except NoDryRun as error:
            unasked.append(engine_not_asked(error))
            return result  # its figures are the formula's and say so
        options = [confirmed.get(option.key, option) for option in result.options]
        result = decide(options, request, machine, FormulaMemory())
    return result


def _ask(
    dry_run: RememberedDryRun,
    candidate: Candidate,
    headers: Headers,
    request: PlanRequest,
    machine: Machine,
    rpc_endpoints: tuple[str, ...],
) -> Option:
    """Place one candidate again with the engine's figures. Raises NoDryRun, EngineError."""
    with model_file(headers) as path:
        dry_run.about(path, headers)
        engine = EngineMemory(dry_run, str(path), machine, rpc_endpoints)
        if not machine.simulated:
            return evaluate(candidate, request, machine, engine)
        return evaluate(candidate, request, machine, engine.calibrated(candidate.info, request))
