"""A profile: everything known about one model, plus the defaults and presets to serve it with. Strict, no I/O."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ggufdeploy.errors import BadConfig, nearest

# The cache types llama.cpp's command line accepts. Source: llama.cpp common/arg.cpp, kv_cache_types.
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._:-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PypiSource:
    """A GGUF file inside a Python package.

    file: its path in the wheel. n_bytes and sha256: of the .gguf file; wheel_sha256: of the wheel (hex).
    """

    package: str
    version: str
    file: str
    n_bytes: int
    sha256: str
    wheel_sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """Shape of the model. None: not verified in any source, or not expressible here, so not stated.

    architecture: llama.cpp's name for it. n_kv_heads and head_size describe every block alike; they are left out for
    models where that is not so. n_active_params: what one token uses, as rounded by the publisher.
    """

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


def profile_from_dict(data: Mapping[str, Any], *, origin: str) -> Profile:
    """Return the profile that a TOML file's top-level table describes. origin: names the file in errors.

    In the file, `[quantizations]` maps names to tensor bytes and `[presets.NAME]` holds one preset each.
    Raises BadConfig: unknown or missing key, wrong type, or a value outside its range, with the key's full path.
    """
    _refuse_unknown_keys(data, origin)
    table = dict(data)
    for key, build in (("quantizations", _quantization_rows), ("presets", _preset_rows)):
        if key in table:
            table[key] = build(_table(table[key], key, origin))
    try:
        profile = msgspec.convert(table, Profile)
    except msgspec.ValidationError as error:
        raise BadConfig(_error_key(error), f"{origin}: {error}") from error
    for key, holds, rule in _rules(profile):
        if not holds:
            raise BadConfig(key, f"{origin}: {key} {rule}")
    return profile


def _quantization_rows(table: Mapping[str, Any]) -> list[Any]:
    return [{"name": name, "n_bytes": n_bytes} for name, n_bytes in table.items()]


def _preset_rows(table: Mapping[str, Any]) -> list[Any]:
    return [{**preset, "name": name} if isinstance(preset, Mapping) else preset for name, preset in table.items()]


def _table(value: Any, key: str, origin: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadConfig(key, f"{origin}: {key} must be a table, not {type(value).__name__}")
    return value


def _refuse_unknown_keys(data: Mapping[str, Any], origin: str) -> None:
    _refuse_unknown(data, Profile, "", origin)
    for key, shape in (("facts", ModelFacts), ("sampling", SamplingDefaults), ("pypi", PypiSource)):
        if isinstance(table := data.get(key), Mapping):
            _refuse_unknown(table, shape, f"{key}.", origin)
    presets = data.get("presets")
    for name, preset in presets.items() if isinstance(presets, Mapping) else ():
        if isinstance(preset, Mapping):
            _refuse_unknown(preset, Preset, f"presets.{name}.", origin, but={"name"})


def _refuse_unknown(
    table: Mapping[str, Any], shape: type, prefix: str, origin: str, but: frozenset[str] | set[str] = frozenset()
) -> None:
    known = [field.name for field in dataclasses.fields(shape) if field.name not in but]
    for key in table:
        if key not in known:
            close = nearest(key, known)
            hint = f"did you mean {prefix}{close}?" if close else f"known keys: {', '.join(known)}"
            raise BadConfig(prefix + key, f"{origin}: unknown key {prefix}{key}", hint=hint)


def _error_key(error: msgspec.ValidationError) -> str:
    """Return the path msgspec names: "... - at `$.facts.n_layers`" gives "facts.n_layers"."""
    return str(error).rpartition("`$")[2].rstrip("`").lstrip(".")


def _rules(profile: Profile) -> Iterator[tuple[str, bool, str]]:
    """Yield (key, whether it holds, the rule) for everything that types cannot say."""
    name, train = "lower-case letters, digits, '.', '_' and '-'", profile.facts.context_train_tokens
    yield "name", bool(_NAME.fullmatch(profile.name)), f"may only have {name}"
    for index, alias in enumerate(profile.aliases):
        yield f"aliases[{index}]", bool(_ALIAS.fullmatch(alias)), f"may only have {name}, and ':'"
        yield f"aliases[{index}]", alias not in (profile.name, *profile.aliases[:index]), f"repeats {alias!r}"
    for index, repo in enumerate(profile.repos):
        yield f"repos[{index}]", bool(_REPO.fullmatch(repo)), "must look like owner/repository"
    yield "repos", bool(profile.repos or profile.pypi), "must name at least one repository, unless there is [pypi]"
    for key in ("description", "license", "source"):
        yield key, bool(getattr(profile, key).strip()), "must not be empty"
    for field_ in dataclasses.fields(ModelFacts):
        value = getattr(profile.facts, field_.name)
        yield f"facts.{field_.name}", value is None or not isinstance(value, int) or value > 0, "must be positive"
    for quantization in profile.quantizations:
        yield f"quantizations.{quantization.name}", quantization.n_bytes > 0, "must be positive"
    limit = train if train is not None else profile.default_context_tokens
    yield "default_context_tokens", 0 < profile.default_context_tokens <= limit, f"must lie between 1 and {limit}"
    yield "default_slots", profile.default_slots > 0, "must be positive"
    yield from _sampling_rules(profile.sampling)
    yield from _preset_rules(profile.presets, train)
    if profile.pypi is not None:
        yield "pypi.n_bytes", profile.pypi.n_bytes > 0, "must be positive"
        yield "pypi.file", profile.pypi.file.endswith(".gguf"), "must name a .gguf file"
        for key in ("sha256", "wheel_sha256"):
            yield f"pypi.{key}", bool(_SHA256.fullmatch(getattr(profile.pypi, key))), "must be 64 hex digits"


def _sampling_rules(sampling: SamplingDefaults) -> Iterator[tuple[str, bool, str]]:
    ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
        ("temperature", lambda value: 0 <= value <= 2, "must lie between 0 and 2"),
        ("top_p", lambda value: 0 < value <= 1, "must lie above 0 and up to 1"),
        ("top_k", lambda value: value >= 0, "must be 0 (off) or more"),
        ("min_p", lambda value: 0 <= value <= 1, "must lie between 0 and 1"),
    )
    for key, fits, rule in ranges:
        value = getattr(sampling, key)
        yield f"sampling.{key}", value is None or fits(value), rule


def _preset_rules(presets: tuple[Preset, ...], train: int | None) -> Iterator[tuple[str, bool, str]]:
    for preset in presets:
        where, context, speed = f"presets.{preset.name}", preset.min_context_tokens, preset.min_decode_tokens_per_s
        limit = train if train is not None else context
        yield (
            f"{where}.min_context_tokens",
            context is None or limit is None or 0 < context <= limit,
            f"must lie between 1 and {limit}",
        )
        yield f"{where}.min_decode_tokens_per_s", speed is None or speed > 0, "must be positive"
        close = nearest(preset.kv_type or "", KV_TYPES)
        rule = f"must be one of {', '.join(KV_TYPES)}" + (f"; did you mean {close}?" if close else "")
        yield f"{where}.kv_type", preset.kv_type is None or preset.kv_type in KV_TYPES, rule
