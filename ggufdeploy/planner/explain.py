"""A plan in words: one receipt per device, the ladder of quantizations, what it costs, what would help."""

from __future__ import annotations

from collections.abc import Sequence

from ggufdeploy.planner.plan import Plan, PlanAlternative, PlanDevice, PlanSpeed
from ggufdeploy.units import GIB, format_file_size, format_rate

_VERDICTS = {
    "gpu": "everything in VRAM",
    "offload": "part in system RAM",
    "cpu": "everything on the CPU",
    "disk": "part read from disk",
    "impossible": "does not fit",
}


def headline(plan: Plan) -> str:
    """Return the plan in one sentence."""
    return f"{plan.model.name} {plan.quantization.name}: {_VERDICTS[plan.verdict]}{_speed(plan.speed)}"


def _speed(speed: PlanSpeed) -> str:
    if speed.decode_tokens_per_s is None:
        return ""
    low, high = speed.decode_low_tokens_per_s, speed.decode_high_tokens_per_s
    span = f"{_digits(low)} to {_digits(high)}, " if low is not None and high is not None else ""
    return f", about {format_rate(speed.decode_tokens_per_s)} ({span}{speed.basis or 'estimated'})"


def _digits(tokens_per_s: float) -> str:
    return format_rate(tokens_per_s).removesuffix(" tokens/s")


def reason_line(plan: Plan) -> str:
    """Return why this quantization and KV type."""
    return f"chosen: {plan.reason}"


def receipt(plan: Plan) -> list[str]:
    """Return the memory account of every device that is used, as lines of at most 80 columns."""
    lines = []
    for device in plan.devices:
        if device.used_bytes:
            lines += [*_device_lines(device, plan), ""]
    return lines[:-1]


def _device_lines(device: PlanDevice, plan: Plan) -> list[str]:
    source = "engine" if plan.memory_source == "engine" else "estimate"
    weights = "profile" if plan.header_source == "profile" else "file"
    kind = "RAM" if device.kind == "cpu" else "VRAM"
    free = f"{device.free_bytes / GIB:.2f} GiB {kind} free of {device.total_bytes / GIB:.2f}"
    cells = max(plan.context_tokens, plan.kv_pool_tokens or 0)
    rows = [
        ("weights", device.weights_bytes, weights),
        ("KV cache", device.kv_bytes, f"{cells:,} tokens, {plan.kv_cache.key_type}"),
        ("compute buffers", device.compute_bytes, source),
        ("outside llama.cpp", device.overhead_bytes, "cuBLAS and activation pools"),
        ("other files", device.extra_bytes, "held back"),
    ]
    lines = [f"{device.name}: {free}"]
    lines += [f"  {name:<18}{size / GIB:>9.2f} GiB   {note}" for name, size, note in rows if size]
    left = device.free_bytes - device.used_bytes
    lines.append(
        f"  {'used':<18}{device.used_bytes / GIB:>9.2f} GiB   leaves {left / GIB:.2f}, "
        f"margin {device.margin_bytes / GIB:.2f}"
    )
    return lines


def placement_line(plan: Plan) -> str:
    """Return where the layers are."""
    place = plan.placement
    text = f"n_gpu_layers {place.n_gpu_layers} of {place.n_layers_total}"
    if place.overrides:
        text += f", experts of {len(place.overrides)} layers in RAM"
    used = [f"{share:.0f}" for share in place.tensor_split if share]
    if len(used) > 1:
        text += f", split {'/'.join(used)} over {len(used)} GPUs"
    return text


def ladder(plan: Plan) -> list[str]:
    """Return the table of quantizations at this request; the chosen one has a star and the reason."""
    header = ("", "quantization", "size", "KV", "where", "VRAM GiB", "longest context", "tokens/s", "quality", "why")
    rows = [header, *(_ladder_row(item, plan) for item in plan.alternatives)]
    if all(item.vram_available_bytes is None for item in plan.alternatives):
        rows = [row[:5] + row[6:] for row in rows]
    return _columns(rows, left={"", "quantization", "KV", "where", "why"})


def _ladder_row(item: PlanAlternative, plan: Plan) -> tuple[str, ...]:
    rate, runs = item.decode_tokens_per_s, item.verdict != "impossible"
    used, available = item.vram_used_bytes, item.vram_available_bytes
    return (
        "*" if item.why_not is None else "",
        item.quantization,
        format_file_size(item.total_bytes) if item.total_bytes is not None else "?",
        item.kv_type,
        _where(item, plan),
        f"{used / GIB:.1f}/{available / GIB:.1f}" if runs and used is not None and available is not None else "-",
        f"{item.longest_context_tokens:,}" if item.longest_context_tokens is not None else "-",
        _digits(rate) if rate is not None and runs else "-",
        f"{item.quality:.3f}" if item.quality is not None else "?",
        item.why_not if item.why_not is not None else plan.reason,
    )


def _where(item: PlanAlternative, plan: Plan) -> str:
    """Return "GPU", what of it is in RAM, or where else it is."""
    if item.verdict in ("cpu", "disk", "impossible"):
        return {"cpu": "RAM", "disk": "disk", "impossible": "-"}[item.verdict]
    if item.strategy == "experts":
        return f"GPU, experts of {item.cpu_expert_layers} in RAM"
    total = plan.placement.n_layers_total
    return "GPU" if item.n_gpu_layers == total else f"GPU {item.n_gpu_layers}/{total}, RAM"


def _columns(rows: Sequence[Sequence[str]], *, left: set[str]) -> list[str]:
    """Align the rows; the first is the header, and names the columns that are aligned to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
