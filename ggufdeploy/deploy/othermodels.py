"""The models known by name as candidates, at the size their profiles suggest: what could run instead."""

from __future__ import annotations

from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.planner.advice import OtherModel
from ggufdeploy.planner.request import Candidate, PlanFile
from ggufdeploy.planner.scale import Shape, derive
from ggufdeploy.profiles.profile import Profile
from ggufdeploy.profiles.store import load_profiles
from ggufdeploy.settings import Settings

_TYPICAL = "Q4_K_M"
_TYPICAL_BITS = 4.87
"""Bits per weight of Q4_K_M over a whole model. Source: Mixtral 8x22B, 85,598,035,968 bytes of 140,630,071,296
parameters; Llama-3-8B has 4.89 (llama.cpp tools/quantize/README.md)."""


def other_models(settings: Settings, without: str) -> list[OtherModel]:
    """Return every model whose profile states its shape, except `without`, at Q4_K_M."""
    found = []
    for profile in load_profiles(settings).profiles():
        shape = shape_of(profile)
        if profile.name == without or shape is None:
            continue
        known = {item.name: item.n_bytes for item in profile.quantizations}
        n_bytes = known.get(_TYPICAL) or int(shape.n_params * _TYPICAL_BITS / 8)
        info: ModelInfo = derive(shape, n_bytes)
        files = (PlanFile(f"{profile.name}.{_TYPICAL}.gguf", n_bytes, None),)
        found.append(OtherModel(profile.name, Candidate(_TYPICAL, files, info, False, "profile")))
    return found


def shape_of(profile: Profile) -> Shape | None:
    """Return the shape a profile states; None when it leaves out a part that memory depends on."""
    facts = profile.facts
    if not (facts.n_layers and facts.n_heads and facts.n_kv_heads and facts.head_size and facts.n_params):
        return None
    return Shape(
        facts.architecture, profile.name, facts.n_layers, facts.n_heads, facts.n_kv_heads, facts.head_size,
        facts.n_experts or 0, facts.n_experts_used or 0, facts.n_params, facts.n_active_params,
        facts.context_train_tokens,
    )  # fmt: skip
