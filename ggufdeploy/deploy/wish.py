"""What the user said of a plan, merged with preset, profile and defaults, and checked against the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ggufdeploy.engine.parameters import MAX_SLOTS
from ggufdeploy.errors import BadValue, NotFound, nearest
from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.advice import Invocation
from ggufdeploy.planner.memory import kv_type_misfit
from ggufdeploy.planner.request import ExtraFile, KvType, OffloadPolicy, PlanRequest, Preference
from ggufdeploy.profiles.profile import Preset, Profile

DEFAULT_CONTEXT_TOKENS = 8192
DEFAULT_SLOTS = 4
DEFAULT_UBATCH = 512
"""llama.cpp's own default."""
# What may be chosen where the user did not say, best first. Four-bit KV types only when asked: they cost as much as a
# step between quantizations of the weights. Smaller passes slow prompts down a little; fewer slots come last.
_AUTO_KV_TYPES: tuple[KvType, ...] = ("q8_0",)
_SMALLER_UBATCHES = (256,)
_FEWER_SLOTS = (1,)


@dataclass(frozen=True)
class Wish:
    """What the user said; None: not said, so the preset, the profile or the default decides.

    kv_type "auto": like None, also where the preset names one. min_quality: as `quality.quality`. vram_budgets: see
    PlanRequest. extra_files: beside the model.
    """

    context_tokens: int | None = None
    slots: int | None = None
    kv_type: KvType | Literal["auto"] | None = None
    quantization: str | None = None
    prefer: Preference = "balanced"
    offload: OffloadPolicy = "auto"
    reserve_bytes: int = 0
    n_ubatch: int | None = None
    preset: str | None = None
    kv_pool_tokens: int | None = None
    min_quality: float | None = None
    min_speed: float | None = None
    vram_budgets: tuple[tuple[str | None, int], ...] = ()
    extra_files: tuple[ExtraFile, ...] = ()


def make_request(wish: Wish, profile: Profile | None) -> PlanRequest:
    """Merge flags over preset over profile over defaults. Raises NotFound for an unknown preset."""
    preset = _preset(wish.preset, profile)
    context = wish.context_tokens
    if context is None:
        context = profile.default_context_tokens if profile else DEFAULT_CONTEXT_TOKENS
        context = max(context, (preset.min_context_tokens or 0) if preset else 0)
    asked = wish.kv_type or _preset_kv_type(preset) or "auto"
    min_speed = wish.min_speed
    if min_speed is None and preset is not None:
        min_speed = preset.min_decode_tokens_per_s
    return PlanRequest(
        context_tokens=context,
        slots=wish.slots or (profile.default_slots if profile else DEFAULT_SLOTS),
        kv_type="f16" if asked == "auto" else asked,
        quantization=wish.quantization,
        prefer=wish.prefer,
        offload=wish.offload,
        reserve_bytes=wish.reserve_bytes,
        min_decode_tokens_per_s=min_speed,
        n_ubatch=wish.n_ubatch or DEFAULT_UBATCH,
        kv_pool_tokens=wish.kv_pool_tokens,
        min_quality=wish.min_quality,
        other_kv_types=_AUTO_KV_TYPES if asked == "auto" else (),
        other_ubatches=_SMALLER_UBATCHES if wish.n_ubatch is None else (),
        other_slots=_FEWER_SLOTS if wish.slots is None else (),
        vram_budgets=wish.vram_budgets,
        extra_files=wish.extra_files,
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


def invocation(ref: str, wish: Wish) -> Invocation:
    """Return what was typed, for the commands that a plan suggests."""
    budgets = tuple(size if name is None else f"{name}={size}" for name, size in wish.vram_budgets)
    return Invocation(
        ref,
        {
            "slots": wish.slots,
            "reserve": wish.reserve_bytes or None,
            "ubatch": wish.n_ubatch,
            "kv_pool": wish.kv_pool_tokens,
            "vram_budget": budgets,
            "min_quality": wish.min_quality,
            "min_speed": wish.min_speed,
            "preset": wish.preset,
            "prefer": None if wish.prefer == "balanced" else wish.prefer,
            "offload": None if wish.offload == "auto" else wish.offload,
        },
    )


def check_budgets(request: PlanRequest, machine: Machine) -> None:
    """Raise BadValue for a budget of a GPU that is not there."""
    names = [device.name for device in machine.devices]
    for name, _ in request.vram_budgets:
        if name is not None and name not in names:
            message = f"--vram-budget {name}: there is no such GPU here"
            raise BadValue(
                "--vram-budget", message, hint=f"there are: {', '.join(names)}" if names else "no GPU is here"
            )


def within_training(request: PlanRequest, wish: Wish, info: ModelInfo) -> PlanRequest:
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


def check_engine_limits(request: PlanRequest, info: ModelInfo) -> None:
    """Raise BadValue for what llama.cpp would refuse after the download."""
    slots, n_ubatch = request.slots, request.n_ubatch
    if slots > MAX_SLOTS:
        raise BadValue("--slots", f"--slots {slots}: llama.cpp serves at most {MAX_SLOTS}", hint=f"--slots {MAX_SLOTS}")
    if n_ubatch < slots:
        message = f"--ubatch {n_ubatch}: one pass takes a token of each of the {slots} slots"
        raise BadValue("--ubatch", message, hint=f"--ubatch {slots}")
    pool = request.kv_pool_tokens
    if pool is not None and pool < request.context_tokens:
        message = f"--kv-pool {pool:,} is less than the {request.context_tokens:,} tokens one request may take"
        raise BadValue("--kv-pool", message, hint=f"--kv-pool {request.context_tokens}, or more")
    head = kv_type_misfit(info, request.kv_type)
    if head is not None:
        message = (
            f"--kv-type {request.kv_type} stores blocks of 32, and this model's attention heads have {head} elements"
        )
        raise BadValue("--kv-type", message, hint="--kv-type f16")
