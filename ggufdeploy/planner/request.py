"""What the user asks of a plan. Everything here is a constraint: a plan meets it or says that it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line reads this module's choices for --help
    from ggufdeploy.gguf.model import ModelInfo
    from ggufdeploy.hardware.machine import Device

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
Preference = Literal["balanced", "quality", "speed", "context"]
OffloadPolicy = Literal["auto", "experts", "layers", "none"]

CONTEXT_STEP_TOKENS = 256
"""llama.cpp rounds contexts up to this many cells. Source: llama.cpp src/llama-context.cpp (GGML_PAD(n_ctx, 256))."""


def kv_cells(context_tokens: int) -> int:
    """Return the cells of a unified KV cache for this context, as llama.cpp rounds them."""
    return -(-context_tokens // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS


@dataclass(frozen=True)
class Lesson:
    """What an earlier load on this machine taught about one GPU.

    device: its UUID, or llama.cpp's name where it has none. extra_margin_bytes: keep this much more free than the
    table says. when: UTC, ISO 8601.
    """

    device: str
    extra_margin_bytes: int
    reason: str
    when: str


@dataclass(frozen=True)
class Learned:
    """All lessons of this machine; the newest of a GPU holds."""

    lessons: tuple[Lesson, ...] = ()

    def extra_bytes(self, device: Device) -> int:
        """Return what this GPU needs beyond its margin; 0 when nothing was learned."""
        known = [lesson for lesson in self.lessons if lesson.device == (device.uuid or device.name)]
        return max(known, key=lambda lesson: lesson.when).extra_margin_bytes if known else 0


@dataclass(frozen=True)
class ExtraFile:
    """A file loaded beside the model: an adapter, a projector, a draft model."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PlanRequest:
    """context_tokens: longest single request, and the KV cells that all slots share unless a larger pool is asked for.

    quantization: None lets the planner choose. min_decode_tokens_per_s and min_quality (as `quality.quality`): floors,
    None for none. n_ubatch: prompt tokens per compute pass. other_*: what else the planner may choose, in order of
    preference; empty where the user decided. reserve_bytes: kept free on every GPU beyond the planner's own margin.
    kv_unified: False gives each slot cells of its own. n_outputs: rows of logits one pass can give, None: one per slot.
    vram_budgets: (device name, most bytes to use there); None instead of a name means every GPU.
    """

    context_tokens: int
    slots: int
    kv_type: KvType = "f16"
    quantization: str | None = None
    prefer: Preference = "balanced"
    offload: OffloadPolicy = "auto"
    reserve_bytes: int = 0
    min_decode_tokens_per_s: float | None = None
    n_ubatch: int = 512
    kv_unified: bool = True
    flash_attention: bool = True
    n_outputs: int | None = None
    kv_pool_tokens: int | None = None
    min_quality: float | None = None
    other_kv_types: tuple[KvType, ...] = ()
    other_ubatches: tuple[int, ...] = ()
    other_slots: tuple[int, ...] = ()
    vram_budgets: tuple[tuple[str | None, int], ...] = ()
    learned: Learned = Learned()
    extra_files: tuple[ExtraFile, ...] = ()

    @property
    def kv_cells(self) -> int:
        """Cells of the unified KV cache, as llama.cpp rounds them."""
        return kv_cells(max(self.context_tokens, self.kv_pool_tokens or 0))

    @property
    def extra_bytes(self) -> int:
        """Bytes of all files beside the model."""
        return sum(file.bytes for file in self.extra_files)


HeaderSource = Literal["remote", "cache", "file", "profile"]


@dataclass(frozen=True)
class PlanFile:
    """One file of a quantization. sha256: hex, None when unknown."""

    name: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Candidate:
    """One quantization that could be chosen.

    exact: `info` was read from this quantization's own header; otherwise it is scaled from another one's by file size,
    or derived from a profile, and good enough to shortlist only.
    """

    quantization: str
    files: tuple[PlanFile, ...]
    info: ModelInfo
    exact: bool
    header_source: HeaderSource

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)
