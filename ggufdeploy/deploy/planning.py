"""From a source and a wish to a plan: read the headers that matter, search, and let the engine check the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ggufdeploy.deploy.oracle import EngineMemory, model_file
from ggufdeploy.deploy.sources import Headers, OnProgress, Source, local_source
from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.errors import BadValue, DoesNotFit, NoDryRun, NotFound, nearest
from ggufdeploy.gguf.model import ModelInfo, model_info
from ggufdeploy.hardware.catalog import list_gpus
from ggufdeploy.hardware.cpu import measure_ram_bandwidth_bytes_per_s
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.hub.catalog import Artifact
from ggufdeploy.hub.quantization import canonical_quantization
from ggufdeploy.planner.advice import Advice, avoid_offload
from ggufdeploy.planner.assemble import make_plan, shortfall
from ggufdeploy.planner.memory import FormulaMemory, MemoryModel
from ggufdeploy.planner.plan import Plan
from ggufdeploy.planner.request import Candidate, KvType, OffloadPolicy, PlanFile, PlanRequest, Preference
from ggufdeploy.planner.scale import Shape, derive, scale
from ggufdeploy.planner.search import Option, SearchResult, as_option, search
from ggufdeploy.profiles.profile import Preset, Profile
from ggufdeploy.units import format_bytes, format_file_size

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
        quantization=wish.quantization and (canonical_quantization(wish.quantization) or wish.quantization),
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


class _Candidates:
    """The source's quantizations as candidates; each becomes exact when its header is read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._headers: dict[str, Headers] = {}
        self._infos: dict[str, ModelInfo] = {}
        self.artifacts = {artifact.quantization: artifact for artifact in source.artifacts}
        if not self.artifacts:
            raise NotFound("quantization", source.name, f"{source.name} offers no GGUF quantization")

    def read(self, quantization: str) -> bool:
        """Read this quantization's own header. Returns False when it cannot be had before the download."""
        if quantization in self._infos:
            return True
        headers = self._source.headers(self.artifacts[quantization])
        if headers is None:
            return False
        self._headers[quantization] = headers
        self._infos[quantization] = model_info([shard.header for shard in headers.shards])
        return True

    def headers(self, quantization: str) -> Headers | None:
        """Return the headers read so far for this quantization."""
        return self._headers.get(quantization)

    def all(self) -> list[Candidate]:
        """Return every quantization, exact where its header was read."""
        return [self._candidate(artifact) for artifact in self.artifacts.values()]

    def _candidate(self, artifact: Artifact) -> Candidate:
        name = artifact.quantization
        files = tuple(PlanFile(file.path, file.n_bytes, file.sha256) for file in artifact.files)
        if name in self._infos:
            return Candidate(name, files, self._infos[name], True, self._headers[name].origin)
        if self._infos:
            known, info = next(iter(self._infos.items()))
            return Candidate(name, files, scale(info, artifact.total_bytes), False, self._headers[known].origin)
        return Candidate(name, files, derive(self._shape(), artifact.total_bytes), False, "profile")

    def _shape(self) -> Shape:
        profile = self._source.profile
        facts = profile.facts if profile else None
        if (
            profile is None
            or facts is None
            or not (facts.n_layers and facts.n_heads and facts.n_kv_heads and facts.head_size and facts.n_params)
        ):
            raise NotFound(
                "model",
                self._source.name,
                f"nothing is known about the shape of {self._source.name} without its header",
                hint="connect to the Hub, or name a local file",
            )
        return Shape(
            facts.architecture, profile.name, facts.n_layers, facts.n_heads, facts.n_kv_heads, facts.head_size,
            facts.n_experts or 0, facts.n_experts_used or 0, facts.n_params, facts.n_active_params,
            facts.context_train_tokens,
        )  # fmt: skip


def make(source: Source, ref: str, wish: Wish, machine: Machine, *, rpc_endpoints: tuple[str, ...] = ()) -> Planned:
    """Plan `wish` for `source` on `machine`. rpc_endpoints: where the machine's devices of kind "rpc" answer, in order.

    Reads only headers. The RAM's bandwidth is measured (0.3 s) on a real machine where it is not known, because the
    speed of everything left in RAM rests on it. Raises BadValue (context beyond the training context), NotFound
    (quantization), DoesNotFit (with the numbers and the ways out), and whatever reading headers raises.
    """
    if not machine.simulated and machine.ram_bandwidth_bytes_per_s is None:
        machine = replace(machine, ram_bandwidth_bytes_per_s=measure_ram_bandwidth_bytes_per_s())
    candidates = _Candidates(source)
    request = make_request(wish, source.profile)
    _check_quantization(request, candidates)
    candidates.read(_first_guess(request, candidates, machine))
    request = _within_training(request, wish, candidates.all()[0].info)
    result, option = _search_exactly(candidates, request, machine)
    if option is None:
        raise _does_not_fit(result, request, machine, ref)
    option = _confirm(option, candidates, request, machine, rpc_endpoints)
    advice: tuple[Advice, ...] = ()
    if option.verdict != "gpu" and machine.devices:
        advice = avoid_offload(option, result.options, request, machine, ref, list_gpus())
    plan = make_plan(ref, source.name, source.repo, source.revision, request, machine, option, result, advice)
    artifact = candidates.artifacts[option.candidate.quantization]
    sizes = {name: item.total_bytes for name, item in candidates.artifacts.items()}
    return Planned(plan, source, artifact, sizes, wish, machine)


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


def _check_quantization(request: PlanRequest, candidates: _Candidates) -> None:
    wanted = request.quantization
    if wanted is None or wanted.upper() in {name.upper() for name in candidates.artifacts}:
        return
    close = nearest(wanted, candidates.artifacts)
    names = ", ".join(candidates.artifacts)
    hint = f"did you mean {close}? There are: {names}" if close else f"there are: {names}"
    raise NotFound("quantization", wanted, hint=hint)


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


def _search_exactly(
    candidates: _Candidates, request: PlanRequest, machine: Machine
) -> tuple[SearchResult, Option | None]:
    """Search until the choice rests on headers of its own; each round reads at most one more."""
    while True:
        everything = candidates.all()
        result = search(everything, request, machine, FormulaMemory())
        doubtful = _doubtful(result)
        if doubtful is None or not candidates.read(doubtful):
            return result, result.chosen


def _first_guess(request: PlanRequest, candidates: _Candidates, machine: Machine) -> str:
    """Return the quantization whose header is read first: the named one, or the largest file the machine could hold."""
    if request.quantization is not None:
        return next(name for name in candidates.artifacts if name.upper() == request.quantization.upper())
    room = sum(device.free_bytes for device in machine.devices) or machine.ram_available_bytes
    by_size = sorted(candidates.artifacts.values(), key=lambda artifact: artifact.total_bytes)
    fitting = [artifact for artifact in by_size if artifact.total_bytes <= room]
    return (fitting[-1] if fitting else by_size[0]).quantization


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


def _does_not_fit(result: SearchResult, request: PlanRequest, machine: Machine, ref: str) -> DoesNotFit:
    options = result.options
    if request.quantization is not None:
        wanted = request.quantization.upper()
        option = next(o for o in options if o.candidate.quantization.upper() == wanted)
    else:
        option = min(options, key=lambda o: o.candidate.total_bytes)
    needed, free = shortfall(option, request, machine)
    host = option.usage.host
    where = ", ".join(f"{d.name} {format_bytes(d.free_bytes)} free" for d in machine.devices) or "no GPU"
    message = (
        f"{ref} {option.candidate.quantization} ({format_file_size(option.candidate.total_bytes)}) does not fit at "
        f"{request.context_tokens:,} tokens: "
    )
    if machine.devices:
        message += f"it needs {format_bytes(needed)} of VRAM, {format_bytes(free)} may be used ({where}), and "
    rest = host.total_bytes if request.offload != "none" else 0
    message += f"{format_bytes(rest)} of RAM, of which {format_bytes(machine.ram_available_bytes)} are available"
    if request.offload == "none":
        message = message.rsplit(", and ", 1)[0]
    advice = avoid_offload(option, options, request, machine, ref, list_gpus())
    best = next((o for o in options if o.verdict != "impossible"), None)
    lines = [f"{a.text}: {a.command}" for a in advice]
    if not lines and best is not None:
        lines = [
            f"{best.candidate.quantization} would run: ggufdeploy plan {ref} --quant {best.candidate.quantization}"
        ]
    hint = "\n".join(lines) or "choose a smaller model: ggufdeploy profiles list"
    return DoesNotFit(message, needed_bytes=needed, free_bytes=free, hint=hint)


def _confirm(
    option: Option, candidates: _Candidates, request: PlanRequest, machine: Machine, rpc_endpoints: tuple[str, ...]
) -> Option:
    """Replace the formula's figures with the engine's, and move layers until they fit by those.

    On a simulated machine the engine can still give the KV cache in total; GPU compute stays a formula, and the plan
    says "estimate". Without a header, or where the build has no dry run, the formula's figures stand as estimates.
    """
    headers = candidates.headers(option.candidate.quantization)
    if headers is None or not option.candidate.exact:
        return option
    with model_file(headers) as path, DryRun() as dry_run:
        engine = EngineMemory(dry_run, str(path), machine, rpc_endpoints)
        try:
            if machine.simulated:
                total = engine.kv_total_bytes(option.candidate.info, request)
                memory: MemoryModel = FormulaMemory(kv_total_bytes=total)
            else:
                engine.usage(option.candidate.info, request, option.placement)
                memory = engine
            return _settle(option, request, machine, memory)
        except NoDryRun:
            return option  # its figures are the formula's and say so


def _settle(option: Option, request: PlanRequest, machine: Machine, memory: MemoryModel) -> Option:
    """Search this one candidate again with better figures."""
    exact = search([option.candidate], replace(request, quantization=option.candidate.quantization), machine, memory)
    return exact.chosen or as_option(
        option.candidate, request, machine, memory, option.placement,
        memory.usage(option.candidate.info, request, option.placement),
    )  # fmt: skip
