"""A plan in words: one receipt per device, the ladder of quantizations, what it costs, what would help."""

from __future__ import annotations

from collections.abc import Sequence

from ggufdeploy.planner.plan import Plan, PlanAlternative, PlanDevice
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
    rate = plan.speed.decode_tokens_per_s
    speed = f", about {format_rate(rate)} (estimate)" if rate is not None else ""
    return f"{plan.model.name} {plan.quantization.name}: {_VERDICTS[plan.verdict]}{speed}"


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
    rows = [
        ("weights", device.weights_bytes, weights),
        ("KV cache", device.kv_bytes, f"{plan.context_tokens:,} tokens, {plan.kv_cache.key_type}"),
        ("compute buffers", device.compute_bytes, source),
        ("outside llama.cpp", device.overhead_bytes, "cuBLAS and activation pools"),
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
        text += f", experts of {len(place.overrides)} layers on the CPU"
    used = [f"{share:.0f}" for share in place.tensor_split if share]
    if len(used) > 1:
        text += f", split {'/'.join(used)} over {len(used)} GPUs"
    return text


def ladder(plan: Plan, sizes: dict[str, int]) -> list[str]:
    """Return the table of quantizations at this request; the chosen one has a star. sizes: file bytes by name."""
    header = ("", "quantization", "size", "where", "layers", "tokens/s", "quality", "why not")
    rows = [_ladder_row(item, plan, sizes) for item in plan.alternatives]
    return _columns([header, *rows])


def _ladder_row(item: PlanAlternative, plan: Plan, sizes: dict[str, int]) -> tuple[str, ...]:
    rate = item.decode_tokens_per_s
    where = {"gpu": "GPU", "offload": "GPU+RAM", "cpu": "CPU", "disk": "disk", "impossible": "-"}[item.verdict]
    return (
        "*" if item.why_not is None else "",
        item.quantization,
        format_file_size(sizes[item.quantization]) if item.quantization in sizes else "?",
        where,
        f"{item.n_gpu_layers}/{plan.placement.n_layers_total}" if item.verdict != "impossible" else "-",
        format_rate(rate).removesuffix(" tokens/s") if rate is not None and item.verdict != "impossible" else "-",
        f"{item.quality:.3f}" if item.quality is not None else "?",
        item.why_not or "chosen",
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = {2, 4, 5, 6}
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
