"""The plan: one frozen document, exactly what `plan --json` prints, to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from ggufdeploy.errors import BadConfig
from ggufdeploy.planner.calibration import Basis
from ggufdeploy.planner.placement import Strategy
from ggufdeploy.planner.request import HeaderSource, KvType, PlanFile
from ggufdeploy.planner.search import Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PlanModel:
    """ref: what the user typed. revision: the pinned commit."""

    ref: str
    name: str
    repo: str | None
    revision: str | None
    architecture: str
    n_params: int
    n_layers: int
    n_experts: int
    context_train_tokens: int | None


@dataclass(frozen=True)
class PlanQuantization:
    """total_bytes: of all files. bits_per_weight: tensor bytes x 8 / parameters."""

    name: str
    bits_per_weight: float
    files: tuple[PlanFile, ...]
    total_bytes: int


@dataclass(frozen=True)
class PlanKvCache:
    """bytes: KV and recurrent state of all devices."""

    key_type: KvType
    value_type: KvType
    bytes: int


@dataclass(frozen=True)
class PlanPlacement:
    """As `placement.Placement`. overrides: tensor-name patterns that stay on the CPU."""

    n_gpu_layers: int
    n_layers_total: int
    strategy: Strategy
    split_mode: Literal["none", "layer"]
    tensor_split: tuple[float, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class PlanEngine:
    """Parameters for llama.cpp that are not placement."""

    n_batch: int
    n_ubatch: int
    flash_attention: bool
    load_mode: Literal["mmap", "none"]
    threads: int


@dataclass(frozen=True)
class PlanDevice:
    """used_bytes: weights, KV, compute and overhead. margin_bytes: kept free on purpose.

    extra_bytes: held back for files beside the model (adapters, projectors, drafts); part of used_bytes.
    """

    name: str
    kind: Literal["gpu", "cpu", "rpc"]
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    overhead_bytes: int
    margin_bytes: int
    used_bytes: int
    extra_bytes: int = 0


@dataclass(frozen=True)
class PlanSpeed:
    """Of one stream; null: unknown. slowdown: all-GPU speed over this speed.

    decode_low_tokens_per_s, decode_high_tokens_per_s: where decode will be, nine times of ten. basis: what that rests
    on: "measured", "calibrated" or "estimated". bottleneck: what a token waits for most, in a sentence.
    """

    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    all_gpu_decode_tokens_per_s: float | None
    slowdown: float | None
    decode_low_tokens_per_s: float | None = None
    decode_high_tokens_per_s: float | None = None
    basis: Basis | None = None
    bottleneck: str | None = None


@dataclass(frozen=True)
class PlanWarning:
    """code: stable. hint: the command that avoids it, or null."""

    code: str
    message: str
    hint: str | None


@dataclass(frozen=True)
class PlanAlternative:
    """A quantization at the same request. why_not: one reason; null for the chosen one.

    vram_used_bytes of vram_available_bytes: by the model on all GPUs, of what may be used there; the first can be the
    larger one where it does not fit. longest_context_tokens: wholly in VRAM (in RAM without a GPU), null for none.
    """

    quantization: str
    kv_type: KvType
    context_tokens: int
    verdict: Verdict
    n_gpu_layers: int
    decode_tokens_per_s: float | None
    quality: float | None
    why_not: str | None
    total_bytes: int | None = None
    strategy: Strategy | None = None
    cpu_expert_layers: int | None = None
    vram_used_bytes: int | None = None
    vram_available_bytes: int | None = None
    longest_context_tokens: int | None = None


@dataclass(frozen=True)
class PlanPoint:
    """One point of the Pareto front: no other option is both better (quality of weights and KV) and faster."""

    quantization: str
    kv_type: KvType
    verdict: Verdict
    quality: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Plan:
    """Everything needed to fetch, load and explain one deployment; all sizes in bytes, all contexts in tokens.

    header_fetched_bytes: what planning read over the network, 0 when all headers were here; null: not recorded.
    simulated: for hardware that is not this machine's. reason: why this quantization and KV type. kv_pool_tokens: cells
    that all slots share, null when that is the context. pareto: best quality first.
    """

    model: PlanModel
    quantization: PlanQuantization
    context_tokens: int
    slots: int
    kv_cache: PlanKvCache
    verdict: Verdict
    placement: PlanPlacement
    engine: PlanEngine
    devices: tuple[PlanDevice, ...]
    speed: PlanSpeed
    memory_source: Literal["engine", "estimate"]
    header_source: HeaderSource
    warnings: tuple[PlanWarning, ...]
    alternatives: tuple[PlanAlternative, ...]
    header_fetched_bytes: int | None = None
    simulated: bool = False
    reason: str = ""
    kv_pool_tokens: int | None = None
    pareto: tuple[PlanPoint, ...] = ()
    schema_version: int = SCHEMA_VERSION


def plan_to_json(plan: Plan) -> str:
    """Return the document, indented, `schema_version` first."""
    fields = msgspec.to_builtins(plan)
    document = {"schema_version": fields.pop("schema_version"), **fields}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def plan_from_json(text: str) -> Plan:
    """Read a document back. Raises BadConfig for a wrong version, key or type."""
    try:
        plan = msgspec.json.decode(text, type=Plan)
    except msgspec.DecodeError as error:
        raise BadConfig("plan", f"not a plan: {error}", hint="make one: ggufdeploy plan MODEL --json") from error
    if plan.schema_version != SCHEMA_VERSION:
        raise BadConfig("schema_version", f"plan schema {plan.schema_version} is not {SCHEMA_VERSION}")
    return plan
