"""Why a quantization was chosen, and why another was not: one phrase each."""

from __future__ import annotations

from ggufdeploy.planner import quality
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import Option, SearchResult
from ggufdeploy.units import format_bytes, format_file_size


def why_chosen(chosen: Option, result: SearchResult, request: PlanRequest) -> str:
    """Return the reason in a phrase; it follows the rules of `search.choose`."""
    where = {"gpu": "wholly in VRAM", "cpu": "in RAM", "disk": "from disk"}.get(
        chosen.verdict, "with part of it in RAM"
    )
    verb = "fits" if chosen.verdict == "gpu" else "runs"
    floor = "" if quality.meets_floor(chosen.candidate.quantization) else f"; nothing of better quality {verb}"
    if request.quantization is not None:
        reason = f"asked for; runs {where}"
    elif request.prefer == "quality":
        reason = f"best quality that runs{_above_floor(request)}, {where}"
    elif request.prefer == "speed":
        reason = f"fastest of acceptable quality, {where}"
    elif request.prefer == "context" and chosen.verdict == "gpu":
        reason = "holds the longest context wholly in VRAM"
    elif chosen.verdict == "gpu":
        reason = f"best quality wholly in VRAM{_above_floor(request)}{floor}"
    elif chosen.verdict == "cpu":
        reason = f"best quality at a good speed, in RAM{floor}"
    else:
        reason = f"nothing acceptable is wholly in VRAM; best quality at a good speed, {where}{floor}"
    return reason + _adapted(chosen, result, request)


def _above_floor(request: PlanRequest) -> str:
    floor = request.min_decode_tokens_per_s
    return f" at {floor:g} tokens/s or more" if floor is not None else ""


def _adapted(chosen: Option, result: SearchResult, request: PlanRequest) -> str:
    """Say what the planner chose besides the quantization, and what it bought."""
    text, wish = "", chosen.request
    if wish.kv_type != request.kv_type and request.prefer in ("speed", "context"):
        text += f"; with a {wish.kv_type} KV cache, {'read faster' if request.prefer == 'speed' else 'half as large'}"
    elif wish.kv_type != request.kv_type:
        plain = [o for o in result.options if o.verdict == "gpu" and o.request.kv_type == request.kv_type]
        instead = f" instead of {plain[0].candidate.quantization}" if plain else ""
        text += f"; a {wish.kv_type} KV cache makes room for it{instead}"
    if wish.n_ubatch != request.n_ubatch:
        text += f"; prompts in passes of {wish.n_ubatch} tokens make room for it"
    if wish.slots != request.slots:
        text += f"; {wish.slots} instead of {request.slots} slots make room for it"
    return text


def why_not(option: Option, chosen: Option) -> str:
    """Return the reason an option was not chosen."""
    if option.verdict == "impossible":
        short = f", {format_bytes(option.short_bytes)} of VRAM short" if option.short_bytes else ""
        return f"does not fit: {format_file_size(option.candidate.total_bytes)}{short}"
    if option.verdict == "disk" and chosen.verdict not in ("gpu", "disk"):
        return "exceeds the RAM: part of it would be read from disk"
    if option.short_bytes and chosen.verdict == "gpu":
        now, rate = option.speed.decode_tokens_per_s, chosen.speed.decode_tokens_per_s
        slower = f", {rate / now:.1f} times slower" if now and rate else ""
        return f"does not fit in VRAM ({format_bytes(option.short_bytes)} short){slower}"
    if option.quality is not None and chosen.quality is not None and option.quality < chosen.quality:
        return "lower quality than the chosen one"
    if option.request.kv_type != chosen.request.kv_type and option.verdict == "gpu" == chosen.verdict:
        return f"barely better, and its KV cache would be {option.request.kv_type}"
    if option.verdict == "gpu" == chosen.verdict and option.decode and chosen.decode > option.decode:
        return f"barely better, {chosen.decode / option.decode:.1f} times slower"
    return "slower than the chosen one"
