"""A profile: everything known about one model, plus the defaults and presets to serve it with. Strict, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PypiSource:
    """A GGUF file inside a Python package. sha256: of the .gguf file; wheel_sha256: of the wheel (hex)."""

    package: str
    version: str
    file: str
    n_bytes: int
    sha256: str
    wheel_sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """Shape of the model. None: not verified in any source, so not stated."""

    architecture: str
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_size: int | None = None
    n_experts: int | None = None
    n_experts_used: int | None = None
    n_params: int | None = None
    n_active_params: int | None = None
    context_train_tokens: int | None = None


@dataclass(frozen=True)
class KnownQuantization:
    """Tensor bytes of one quantization, for planning when the Hub cannot be asked."""

    name: str
    n_bytes: int


@dataclass(frozen=True)
class SamplingDefaults:
    """What requests get when they do not say. None: the engine's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


@dataclass(frozen=True)
class Preset:
    """Named floors: what a plan must at least reach. None: no floor."""

    name: str
    description: str
    min_context_tokens: int | None = None
    min_decode_tokens_per_s: float | None = None
    kv_type: str | None = None


@dataclass(frozen=True)
class Profile:
    """One model. repos: Hub repositories in order of preference. source: where the facts were read."""

    name: str
    description: str
    license: str
    repos: tuple[str, ...]
    facts: ModelFacts
    source: str
    aliases: tuple[str, ...] = ()
    pypi: PypiSource | None = None
    quantizations: tuple[KnownQuantization, ...] = ()
    default_context_tokens: int = 8192
    default_slots: int = 4
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    chat_template: str | None = None
    presets: tuple[Preset, ...] = ()
