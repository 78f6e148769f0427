"""Fit the speed model's constants on published llama.cpp runs, and say how far they are off.

    python -m benchmarks.fit_speed

Decode: seconds per token are linear in the unknowns (1 / efficiency and the costs per layer), so one least-squares fit
of the relative error finds them all; it is reweighted towards the absolute error, because some published runs are off.
The error that counts is the cross-validated one: each GPU is predicted from a fit that never saw it. Rows of 2024 have
a layer cost of their own, because CUDA graphs came since; rows marked `check` take no part in any fit.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufdeploy.planner.rates import memory_class

DATA = Path(__file__).parent / "data" / "speeds.csv"
MAX_EFFICIENCY = 0.95
"""No memory delivers more of its peak than this."""
_ROUNDS = 60
_SMALL_ERROR = 0.03  # below this, errors count squared

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One published run. host_*: what is on the host; the rest is on the GPUs. use: "fit" or "check"."""

    model: str
    quantization: str
    gpu: str
    n_gpus: int
    memory: str
    bandwidth: float
    fp16_flops: float | None
    layers: int
    expert_layers: int
    wide_layers: int
    host_expert_layers: int
    host_layers: int
    host_bandwidth: float
    read_bytes: int
    host_read_bytes: int
    active_params: float
    build: str
    decode_tokens_per_s: float
    prefill_tokens_per_s: float | None
    use: str

    def costs(self) -> dict[str, float]:
        """Return how often each unknown counts, so that the seconds per token are their weighted sum."""
        on_gpu = self.layers - self.host_layers if self.gpu != "none" else 0
        age = " 2024" if self.build == "2024" else ""
        return {
            f"1/efficiency {self.memory}": self.read_bytes / self.bandwidth if self.read_bytes else 0.0,
            "1/efficiency host": self.host_read_bytes / self.host_bandwidth if self.host_read_bytes else 0.0,
            f"layer {self.memory}{age}": float(on_gpu),
            "expert layer": self.expert_layers if on_gpu else 0.0,
            "wide expert layer": float(self.wide_layers),
            "host expert layer": float(self.host_expert_layers),
            "hop": float(max(self.n_gpus - 1, 0)),
        }


@dataclass(frozen=True)
class Fit:
    """The unknowns by name, and the relative errors of decode speeds: predicted / measured - 1."""

    constants: dict[str, float]
    cross_validated: dict[Run, float]
    checked: dict[Run, float]


def read_runs(path: Path = DATA) -> list[Run]:
    """Return the published runs."""
    with path.open(encoding="utf-8") as file:
        return [_run(row) for row in csv.DictReader(file)]


def _run(row: dict[str, str]) -> Run:
    # The one unified-memory GPU without a CUDA capability is AMD's.
    memory = "unified" if row["gpu"].startswith("Strix") else memory_class(row["compute_capability"])
    return Run(
        model=row["model"],
        quantization=row["quant"],
        gpu=row["gpu"],
        n_gpus=int(row["n_gpu"]),
        memory=memory,
        bandwidth=float(row["bandwidth_gb_s"] or 0) * 1e9,
        fp16_flops=float(row["fp16_tflops"]) * 1e12 if row["fp16_tflops"] else None,
        layers=int(row["layers"]),
        expert_layers=int(row["expert_layers"]),
        wide_layers=int(row["wide_layers"]),
        host_expert_layers=int(row["host_expert_layers"]),
        host_layers=int(row["host_layers"]),
        host_bandwidth=float(row["host_bandwidth_gb_s"] or 0) * 1e9,
        read_bytes=int(row["read_bytes"]),
        host_read_bytes=int(row["host_read_bytes"]),
        active_params=float(row["active_params"]),
        build=row["build"],
        decode_tokens_per_s=float(row["decode_tokens_per_s"]),
        prefill_tokens_per_s=float(row["prefill_tokens_per_s"]) if row["prefill_tokens_per_s"] else None,
        use=row["use"],
    )


def fit(runs: Sequence[Run]) -> Fit:
    """Fit all runs marked `fit`; predict each GPU from the others, and the runs marked `check` from all."""
    used = [run for run in runs if run.use == "fit"]
    constants = solve(used)
    validated: dict[Run, float] = {}
    for gpu in sorted({run.gpu for run in used}):
        others = solve([run for run in used if run.gpu != gpu])
        validated |= {run: error(run, others) for run in used if run.gpu == gpu and known(run, others)}
    return Fit(constants, validated, {run: error(run, constants) for run in runs if run.use == "check"})


def solve(runs: Sequence[Run]) -> dict[str, float]:
    """Return the unknowns that minimise the relative error of the seconds per token."""
    names = sorted({name for run in runs for name, count in run.costs().items() if count})
    shares = np.array([[run.costs().get(n, 0.0) * run.decode_tokens_per_s for n in names] for run in runs])
    floor = np.array([1 / MAX_EFFICIENCY if name.startswith("1/") else 0.0 for name in names])
    weights, found = np.ones(len(runs)), floor
    for _ in range(_ROUNDS):
        found = _bounded_least_squares(shares * weights[:, None], weights, floor)
        weights = 1 / np.sqrt(np.maximum(np.abs(shares @ found - 1), _SMALL_ERROR))
    return dict(zip(names, map(float, found), strict=True))


def _bounded_least_squares(a: Vector, b: Vector, floor: Vector) -> Vector:
    """Solve a x = b with x >= floor: what would go below its floor is held there, the worst first."""
    free = np.ones(len(floor), dtype=bool)
    while True:
        x = floor.copy()
        x[free] = np.linalg.lstsq(a[:, free], b - a[:, ~free] @ floor[~free], rcond=None)[0]
        low = np.where(x < floor, x - floor, 0.0)
        if not low.any():
            return x
        free[int(np.argmin(low))] = False


def known(run: Run, constants: dict[str, float]) -> bool:
    """Tell whether every unknown that this run needs was fitted."""
    return all(name in constants for name, count in run.costs().items() if count)


def error(run: Run, constants: dict[str, float]) -> float:
    """Return predicted / measured - 1 of the decode speed."""
    seconds = sum(count * constants.get(name, 0.0) for name, count in run.costs().items())
    return 1 / seconds / run.decode_tokens_per_s - 1


def prefill_flops(runs: Sequence[Run]) -> dict[str, float]:
    """Return the FLOP/s that a dense model's prompt reached on each card: the fastest run of the newest build."""
    dense = [r for r in runs if r.prefill_tokens_per_s and not r.expert_layers and not r.host_layers and r.n_gpus == 1]
    return {run.gpu: prompt_flops(run) for run in sorted(dense, key=lambda run: (run.build, prompt_flops(run)))}


def prompt_flops(run: Run) -> float:
    """Return the FLOP/s of this run's prompt: two per active parameter and token."""
    return 2 * run.active_params * (run.prefill_tokens_per_s or 0.0)


def expert_shares(runs: Sequence[Run], dense: dict[str, float]) -> list[float]:
    """Return what each mixture's prompt reached of the dense model's FLOP/s on the same card."""
    mixtures = [run for run in runs if run.expert_layers and run.prefill_tokens_per_s and not run.host_expert_layers]
    return [prompt_flops(run) / dense[run.gpu] for run in mixtures if run.gpu in dense and run.n_gpus == 1]


def peak_shares(runs: Sequence[Run], dense: dict[str, float]) -> list[float]:
    """Return the share of the FP16 peak that the dense prompt reached on each card whose peak is known."""
    peaks = {run.gpu: run.fp16_flops for run in runs if run.fp16_flops}
    return [dense[gpu] / peak for gpu, peak in peaks.items() if gpu in dense]


def likely_range(result: Fit) -> tuple[float, float]:
    """Return measured / predicted speed between which nine of ten runs on GPUs left out of the fit lie."""
    ratios = [1 / (1 + off) for off in result.cross_validated.values()]
    return float(np.quantile(ratios, 0.05)), float(np.quantile(ratios, 0.95))


def report(runs: Sequence[Run]) -> str:
    """Return the constants and the errors as Markdown."""
    result, dense = fit(runs), prefill_flops(runs)
    low, high = likely_range(result)
    return "\n".join(
        [
            *_constants(result),
            "",
            *_errors(result),
            "",
            f"measured / predicted decode: {low:.2f} to {high:.2f} for nine of ten runs on GPUs left out",
            _prefill_line("prefill, share of the FP16 peak", peak_shares(runs, dense)),
            _prefill_line("prefill, mixtures of experts of dense models", expert_shares(runs, dense)),
            "prefill, TFLOP/s: " + ", ".join(f"{gpu} {rate / 1e12:.1f}" for gpu, rate in sorted(dense.items())),
        ]
    )


def _constants(result: Fit) -> list[str]:
    lines = ["| constant | value |", "|---|---:|"]
    for name, value in result.constants.items():
        shown = f"{1 / value:.3f}" if name.startswith("1/") else f"{value * 1e6:.0f} us"
        lines.append(f"| {name.removeprefix('1/')} | {shown} |")
    return lines


def _errors(result: Fit) -> list[str]:
    left_out, checked = result.cross_validated, result.checked
    groups = {
        "on GPUs left out of the fit": list(left_out.values()),
        "of these, builds of 2025 and later": [e for run, e in left_out.items() if run.build != "2024"],
        "never fitted: layers on GPU and host": [e for run, e in checked.items() if _on_both(run)],
        "never fitted: F16 of 2024": [e for run, e in checked.items() if run.quantization == "F16"],
        "never fitted: user-submitted, approximate sizes, chats": [
            e for run, e in checked.items() if not _on_both(run) and run.quantization != "F16"
        ],
    }
    lines = ["| decode error of runs | median | 90th percentile | runs |", "|---|---:|---:|---:|"]
    for name, errors in groups.items():
        sizes = np.abs(errors)
        lines.append(f"| {name} | {np.median(sizes):.1%} | {np.quantile(sizes, 0.9):.1%} | {len(sizes)} |")
    return lines


def _on_both(run: Run) -> bool:
    return bool(run.host_read_bytes and run.read_bytes)


def _prefill_line(name: str, shares: Sequence[float]) -> str:
    return f"{name}: {np.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}, {len(shares)} runs)"


if __name__ == "__main__":
    print(report(read_runs()))
