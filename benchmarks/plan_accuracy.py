"""How exact plans are: planned bytes against what llama.cpp allocates, for every kind of model it knows.

    python -m benchmarks.plan_accuracy [--only NAME] [--write docs/benchmarks.md]

Small models are planned (the dry run, as `ggufdeploy plan` asks it), then loaded for real in a process of their own
with the same parameters, and given a full pass of tokens. Real shapes are too large to load: for them the planner's
formulas are held against the dry run. Everything runs on the CPU and on a stand-in device behind llama.cpp's RPC
backend, so it needs a llama-cpp-python built with GGML_RPC=ON, and neither a GPU nor a network. Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from benchmarks.plan_accuracy_load import Question, Reading
from ggufdeploy.deploy.oracle import EngineMemory, engine_config
from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.errors import EngineError
from ggufdeploy.gguf.model import ModelInfo, model_info
from ggufdeploy.gguf.reader import read_header_file
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.memory import DeviceUsage, FormulaMemory, Usage, kv_type_misfit
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.units import GIB, MIB
from tests.gguf_blueprints import Blueprint
from tests.gguf_writer import write_model
from tests.gguf_zoo import LARGE, REAL, SMALL
from tests.rpc_device import rpc_device

BASE = PlanRequest(context_tokens=2048, slots=4)
ASKED = {
    "4 slots, one cache": BASE,
    "4 slots, a cache each": replace(BASE, kv_unified=False),
    "1 slot": replace(BASE, slots=1),
    "q8_0 cache": replace(BASE, kv_type="q8_0"),
    "no flash attention": replace(BASE, flash_attention=False),
    "64 rows of logits": replace(BASE, n_outputs=64),
}
REAL_REQUEST = PlanRequest(context_tokens=32768, slots=4)
GOAL_SHARE, GOAL_BYTES = 0.001, MIB
"""A cell is good when the plan is not below the truth, and above it by at most the larger of the two."""
PARTS = ("weights", "KV", "compute")


@dataclass(frozen=True)
class Cell:
    """One figure of one device: what was planned and what is true, in bytes. part: one of PARTS."""

    model: str
    asked: str
    place: str
    device: str
    part: str
    planned: int
    actual: int

    @property
    def excess(self) -> int:
        """Planned beyond what is true; negative is below."""
        return self.planned - self.actual

    @property
    def good(self) -> bool:
        """See GOAL_SHARE."""
        return 0 <= self.excess <= max(GOAL_BYTES, GOAL_SHARE * self.actual)


def positions(n_layers: int) -> list[int]:
    """Return the five numbers of GPU layers: none, the output, half, all but one, all."""
    items = n_layers + 1
    return sorted({0, 1, items // 2, items - 1, items})


class Loader:
    """Loads models for real, each in a process of its own, because llama.cpp keeps what it has once initialised."""

    def read(self, question: Question) -> Reading:
        """Return what was allocated. Raises RuntimeError with the child's last words."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan_accuracy_load"],
            input=msgspec.json.encode(question),
            capture_output=True,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
            cwd=Path(__file__).parents[1],
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode("utf-8", "replace")[-800:])
        return msgspec.json.decode(done.stdout, type=Reading)


class Bench:
    """Plans and truths of one run; the stand-in device and the dry run stay up for all of it."""

    def __init__(self, folder: Path, endpoint: str, dry_run: DryRun) -> None:
        self._folder, self._endpoint, self._dry_run, self._loader = folder, endpoint, dry_run, Loader()
        device = Device(name="RPC0", kind="rpc", description="stand-in", total_bytes=GIB, free_bytes=GIB)
        self._with_device = Machine((device,), GIB, GIB, 1, 1)
        self._alone = Machine((), GIB, GIB, 1, 1)

    def model(self, blueprint: Blueprint, quantization: str) -> tuple[ModelInfo, Path]:
        """Write a model and return its facts."""
        path = write_model(self._folder / f"{blueprint.name}-{quantization}.gguf", blueprint, quantization)
        return model_info([read_header_file(path)]), path

    def small(
        self, blueprint: Blueprint, quantization: str, asked: str, n_gpu_layers: int | None, *, run_pass: bool
    ) -> list[Cell]:
        """Plan, load and compare one small model. n_gpu_layers: None for no device at all."""
        info, path = self.model(blueprint, quantization)
        request, cells = ASKED[asked], list[Cell]()
        if kv_type_misfit(info, request.kv_type) is not None:
            return cells
        endpoints = () if n_gpu_layers is None else (self._endpoint,)
        place = Placement(info.n_layers, () if n_gpu_layers is None else (n_gpu_layers,))
        machine = self._alone if n_gpu_layers is None else self._with_device
        plan = EngineMemory(self._dry_run, str(path), machine, endpoints).usage(info, request, place)
        config = engine_config(request, place, str(path), rpc_endpoints=endpoints)
        reading = self._loader.read(Question(msgspec.structs.replace(config, load_mode="none"), run_pass))
        where = "CPU" if n_gpu_layers is None else f"{n_gpu_layers} of {info.n_layers + 1}"
        actual = [reading.devices.get("RPC0", (0, 0, 0))] * len(plan.devices) + [reading.devices["CPU"]]
        names = ["RPC0"] * len(plan.devices) + ["CPU"]
        for name, planned, true in zip(names, (*plan.devices, plan.host), actual, strict=True):
            cells += _cells(f"{blueprint.name} {quantization}", asked, where, name, planned, true)
        return cells

    def formula(self, blueprint: Blueprint, request: PlanRequest) -> list[Cell]:
        """Hold the formulas against the dry run at five positions."""
        info, path = self.model(blueprint, blueprint.quantization)
        cells = list[Cell]()
        for n_gpu_layers in positions(info.n_layers):
            place = Placement(info.n_layers, (n_gpu_layers,))
            engine = EngineMemory(self._dry_run, str(path), self._with_device, (self._endpoint,))
            truth = engine.usage(info, request, place)
            guess = FormulaMemory(cuda=False).usage(info, request, place)
            for name, planned, true in zip(("RPC0", "CPU"), _records(guess), _records(truth), strict=True):
                actual = (true.weights_bytes, true.kv_bytes, true.compute_bytes)
                cells += _cells(blueprint.name, "", f"{n_gpu_layers} of {info.n_layers + 1}", name, planned, actual)
        return cells


def _records(usage: Usage) -> tuple[DeviceUsage, ...]:
    return (*usage.devices, usage.host)


def _cells(
    model: str, asked: str, place: str, device: str, planned: DeviceUsage, actual: tuple[int, int, int]
) -> Iterator[Cell]:
    figures = (planned.weights_bytes, planned.kv_bytes, planned.compute_bytes)
    for part, figure, true in zip(PARTS, figures, actual, strict=True):
        yield Cell(model, asked, place, device, part, figure, true)


@contextmanager
def bench() -> Iterator[Bench]:
    """Yield a Bench with a stand-in device of its own, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, rpc_device() as endpoint, DryRun() as dry_run:
        yield Bench(Path(folder), endpoint, dry_run)


def jobs(blueprint: Blueprint) -> Iterator[tuple[str, str, Sequence[int | None]]]:
    """Yield what one small model is asked: F16 at all places, Q4_0 at two, and everything else at three."""
    items = int(str(blueprint.keys["block_count"])) + 1
    yield "F16", "4 slots, one cache", [None, *positions(items - 1)]
    yield "Q4_0", "4 slots, one cache", [None, items]
    for asked in list(ASKED)[1:]:
        yield "F16", asked, [None, items // 2, items]


def collect_small(blueprint: Blueprint) -> tuple[list[Cell], list[str]]:
    """Return the cells of one small model, and what could not be run and why; that is only loaded then."""
    cells: list[Cell] = []
    failures: list[str] = []
    with ExitStack() as stack:
        run = stack.enter_context(bench())
        for quantization, asked, places in jobs(blueprint):
            for place in places:
                try:
                    cells += run.small(blueprint, quantization, asked, place, run_pass=True)
                except (EngineError, RuntimeError) as error:
                    cause = str(error).strip().splitlines()[-1].rpartition("/")[2]
                    failures.append(f"{blueprint.name} {quantization}, {asked}, {place} GPU layers: {cause}")
                    run = stack.enter_context(bench())  # the stand-in device has died of it
                    cells += run.small(blueprint, quantization, asked, place, run_pass=False)
    return cells, failures


def _range(values: Sequence[int]) -> str:
    """Return "0" or "-16 to 5,120"."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def small_table(cells: Sequence[Cell]) -> str:
    """One row per model, over everything it was asked."""
    lines = [
        "| model | trait | cells | weights | KV and state | compute | within the goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for blueprint in SMALL:
        mine = [cell for cell in cells if cell.model.split()[0] == blueprint.name]
        if not mine:
            continue
        parts = [_range([cell.excess for cell in mine if cell.part == part]) for part in PARTS]
        good = sum(cell.good for cell in mine)
        lines.append(f"| {blueprint.name} | {blueprint.trait} | {len(mine)} | {' | '.join(parts)} | {good} |")
    return "\n".join(lines)


def formula_table(cells: Sequence[Cell], blueprints: Sequence[Blueprint]) -> str:
    """One row per shape: formula against dry run, compute as a ratio where the device holds a layer."""
    lines = ["| shape | weights | KV and state | compute, formula over dry run | source |", "|---|---|---|---|---|"]
    for blueprint in blueprints:
        mine = [cell for cell in cells if cell.model == blueprint.name]
        if not mine:
            continue
        parts = [_range([cell.excess for cell in mine if cell.part == part]) for part in PARTS[:2]]
        ratios = [cell.planned / cell.actual for cell in mine if cell.part == "compute" and cell.actual > 40 * MIB]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-"
        lines.append(f"| {blueprint.name} | {' | '.join(parts)} | {span} | {blueprint.source} |")
    return "\n".join(lines)


def exceptions(cells: Sequence[Cell]) -> str:
    """Return the cells that miss the goal, the worst first, one line each."""
    bad = sorted((cell for cell in cells if not cell.good), key=lambda cell: cell.excess)
    return "\n".join(
        f"- {c.model}, {c.asked}, {c.place}, {c.device} {c.part}: planned {c.planned:,}, actual {c.actual:,}"
        for c in bad
    )


def report(small: Sequence[Cell], formulas: Sequence[Cell], failures: Sequence[str]) -> str:
    """Return the section for docs/benchmarks.md."""
    good, below = sum(cell.good for cell in small), sum(cell.excess < 0 for cell in small)
    exact = sum(cell.excess == 0 for cell in small)
    compute = [cell for cell in formulas if cell.part == "compute"]
    others = [cell for cell in formulas if cell.part != "compute"]
    misses = exceptions(small)
    notes = [f"{chr(10)}Beyond the goal:{chr(10)}{chr(10)}{misses}{chr(10)}"] if misses else []
    if failures:
        lines = "\n".join(f"- {failure}" for failure in failures)
        notes.append(
            f"{chr(10)}Loaded, but not run, because the stand-in device broke down:{chr(10)}{chr(10)}{lines}{chr(10)}"
        )
    return f"""## Plan accuracy

`python -m benchmarks.plan_accuracy`. Bytes per device, on the CPU alone and on a stand-in device behind llama.cpp's RPC
backend, at five `n_gpu_layers` each. Goal: not below the truth, and above it by at most 1 MiB or 0.1 %.

**Plan against a real load.** {len({cell.model.split()[0] for cell in small})} small models in F16 and Q4_0, asked for
{"; ".join(ASKED)}.
Planned by the dry run, loaded for real with the same parameters, then one full pass of 512 tokens. Of {len(small):,}
figures {exact:,} are equal to the byte, {good:,} within the goal, {below} below the truth. Columns: planned minus
actual, in bytes, lowest to highest over all devices and questions. The 92,160 are rows of logits that were asked for
and not yet used.

{small_table(small)}
{"".join(notes)}
**Formula against the dry run.** Real and large shapes as ghosts, 32,768 tokens, 4 slots; what a shortlist rests on
before the engine is asked. Of {len(others):,} figures of weights and KV {sum(c.excess == 0 for c in others):,} are
equal to the byte; of {len(compute):,} of compute {sum(c.excess < 0 for c in compute)} are below. Ratios are of buffers
above 40 MiB. What weights exceed is the padding of a CUDA device, which the stand-in does not need; the highest ratios
are of a host that keeps one narrow block, or of gemma3n beside the host.
The dimensions were written down from memory of the named files, not read from them here.
The parameter counts that follow equal the published ones for Llama 70B, both Mixtral, both Qwen3,
gpt-oss, Phi-4 and Command R+; for Gemma 3, DeepSeek V3, Qwen3-Next and Mamba nothing here checks them.

{formula_table(formulas, REAL + LARGE)}
"""


def write_section(path: Path, section: str) -> None:
    """Put the section into the document in place of the one with the same heading, or at its end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    heading = section.splitlines()[0]
    pattern = re.compile(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", re.S | re.M)
    text, replaced = pattern.subn(lambda _: section + "\n", text)
    path.write_text(text.rstrip() + "\n" if replaced else f"{text.rstrip()}\n\n{section}", encoding="utf-8")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    arguments = parser.parse_args()
    models = [blueprint for blueprint in SMALL + REAL + LARGE if arguments.only in blueprint.name]
    small: list[Cell] = []
    failures: list[str] = []
    for blueprint in models:
        if blueprint in SMALL:
            cells, failed = collect_small(blueprint)
            small, failures = small + cells, failures + failed
    with bench() as run:
        shapes = [blueprint for blueprint in models if blueprint not in SMALL]
        formulas = [cell for blueprint in shapes for cell in run.formula(blueprint, REAL_REQUEST)]
    section = report(small, formulas, failures)
    print(section)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(cell) for cell in (*small, *formulas)]))
    if arguments.write:
        write_section(arguments.write, section)


if __name__ == "__main__":
    main()
