"""Time `ggufdeploy plan` from command to printed plan, and print the table of docs/benchmarks.md.

    python -m benchmarks.plan_time [--rounds 7]

Two repositories of 20 quantizations each, true headers over holes, served by a stand-in Hub on loopback in a process of
its own: Mixtral 8x22B for one simulated H100, and a model with a large vocabulary for this machine's CPU, where every
figure is llama.cpp's own. Cold: nothing is here; headers cached: the dry run is asked again; all cached: an answer on
disk. Times are of whole commands; the three take turns within each round. CPU: time of the processor, which says more
than the clock where the machine is busy.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.download import served
from tests.gguf_shapes import GEMMA_3_4B, MIXTRAL_8X22B, ModelShape
from tests.gguf_writer import write_model

QUANTIZATIONS = (
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L",
    "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XXS", "Q2_K", "Q2_K_S",
)  # fmt: skip
GOALS_S = {"all cached": 0.5, "headers cached": 2.5, "cold": 4.0}


@dataclass(frozen=True)
class Case:
    """One command: the model's shape, and what describes the machine to `plan`."""

    repo: str
    shape: ModelShape
    machine: str
    flags: tuple[str, ...] = ()


CASES = (
    Case("acme/mixtral-GGUF", MIXTRAL_8X22B, "one H100, simulated", ("--gpu", "h100-sxm", "--ram", "256GiB")),
    Case("acme/gemma-GGUF", GEMMA_3_4B, "one H100, simulated", ("--gpu", "h100-sxm", "--ram", "256GiB")),
    Case("acme/gemma-GGUF", GEMMA_3_4B, "this CPU"),
)


@dataclass(frozen=True)
class Timing:
    """Seconds by the clock, and of the processor (with all child processes)."""

    wall_s: float
    cpu_s: float


def prepare(root: Path) -> Mapping[str, int]:
    """Write the repositories; return the bytes of one header of each."""
    sizes = {}
    for case in CASES:
        for quantization in QUANTIZATIONS if case.repo not in sizes else ():
            path = root / case.repo / f"{case.shape.name}.{quantization}.gguf"
            sizes[case.repo] = write_model(path, case.shape, quantization).stat().st_blocks * 512
    return sizes


def forget(home: Path, state: str) -> None:
    """Bring the caches into the state the name says."""
    if state == "cold":
        shutil.rmtree(home, ignore_errors=True)
    elif state == "headers cached":
        shutil.rmtree(home / "cache" / "answers", ignore_errors=True)


def timed(command: Sequence[str], environment: Mapping[str, str]) -> Timing:
    """Run one command. Raises CalledProcessError."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=dict(environment), check=True, capture_output=True)
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Timing(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(case: Case, url: str, home: Path, rounds: int) -> Mapping[str, Sequence[Timing]]:
    """Return the timings of every state."""
    command = [sys.executable, "-m", "ggufdeploy", "plan", case.repo, "--ctx", "8k", *case.flags]
    places = {"CACHE": home / "cache", "CONFIG": home / "config", "STATE": home / "state"}
    environment = {
        **os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home / "hf"),
        **{f"GGUFDEPLOY_{name}_DIR": str(path) for name, path in places.items()},
    }  # fmt: skip
    timings: dict[str, list[Timing]] = {state: [] for state in ("cold", "headers cached", "all cached")}
    for _ in range(rounds):
        for state, times in timings.items():
            forget(home, state)
            times.append(timed(command, environment))
    return timings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print("| 20 quantizations of | one header | machine | state | median | fastest | CPU | goal |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ggufdeploy-bench-") as name:
        folder = Path(name)
        sizes = prepare(folder / "hub")
        with served(folder / "hub", ()) as url:
            for case in CASES:
                for state, times in measure(case, url, folder / "home", rounds).items():
                    wall = [timing.wall_s for timing in times]
                    cpu_s = statistics.median(timing.cpu_s for timing in times)
                    print(
                        f"| {case.shape.name} | {sizes[case.repo] / 1e6:.1f} MB | {case.machine} | {state} | "
                        f"{statistics.median(wall):.2f} s | {min(wall):.2f} s | {cpu_s:.2f} s | {GOALS_S[state]} s |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
