"""llama.cpp as the planner's oracle: the dry run behind the `MemoryModel` protocol, and plans as engine parameters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ggufdeploy.deploy.sources import Headers
from ggufdeploy.engine.dryrun import DryRun, DryRunAnswer
from ggufdeploy.engine.request import EngineConfig, TensorOverride
from ggufdeploy.errors import EngineError, NoDryRun
from ggufdeploy.gguf.ghost import write_ghost
from ggufdeploy.gguf.model import ModelInfo
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.memory import DeviceUsage, FormulaMemory, Usage, output_bytes
from ggufdeploy.planner.placement import Placement, on_cpu
from ggufdeploy.planner.plan import Plan, PlanWarning
from ggufdeploy.planner.request import PlanRequest, kv_cells


@contextmanager
def model_file(headers: Headers) -> Iterator[Path]:
    """Yield a path llama.cpp can open: the real file, or a ghost of it for as long as the block runs.

    Raises NoDryRun when the file system refuses the ghost.
    """
    if headers.path is not None:
        yield headers.path
        return
    with tempfile.TemporaryDirectory(prefix="ggufdeploy-ghost-") as folder:
        shards = [(shard.name, shard.raw, shard.n_bytes) for shard in headers.shards]
        try:
            path = write_ghost(shards, Path(folder))
        except OSError as error:  # a file system without files of that size
            raise NoDryRun(f"no file of the model's size can be made in {folder}: {error.strerror}") from error
        yield path


class EngineMemory:
    """A MemoryModel that asks llama.cpp. Answers are remembered per placement."""

    def __init__(self, dry_run: DryRun, model_path: str, machine: Machine, rpc_endpoints: tuple[str, ...] = ()) -> None:
        self._dry_run, self._path, self._machine = dry_run, model_path, machine
        self._rpc_endpoints = rpc_endpoints
        self._known: dict[tuple[PlanRequest, Placement], Usage] = {}

    def usage(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> Usage:
        """See MemoryModel. Raises EngineError when llama.cpp cannot answer or sees other devices than the plan."""
        key = (request, placement)
        if key not in self._known:
            self._known[key] = self._ask(model, request, placement)
        return self._known[key]

    def calibrated(self, model: ModelInfo, request: PlanRequest) -> FormulaMemory:
        """Return the formulas for GPUs that are not here, bounded by the engine's own figures on the CPU.

        Raises EngineError, NoDryRun.
        """
        host = self._dry_run.ask(engine_config(request, on_cpu(model.n_layers, 0), self._path)).host
        return FormulaMemory(kv_total_bytes=host.kv_bytes, host_compute_bytes=host.compute_bytes)

    def machine_seen(self, model: ModelInfo, request: PlanRequest) -> Machine:
        """Return the machine with llama.cpp's own reading of what is free on each GPU, in place of the driver's.

        Raises EngineError, NoDryRun.
        """
        output_only = Placement(model.n_layers, (1,) + (0,) * (len(self._machine.devices) - 1))
        answer = self._answer(request, output_only)
        _match(answer, output_only, self._machine)
        free = {part.name: part.free_bytes for part in answer.devices}
        devices = tuple(
            replace(device, free_bytes=free[device.name], free_is_estimate=False) for device in self._machine.devices
        )
        return replace(self._machine, devices=devices)

    def _answer(self, request: PlanRequest, placement: Placement) -> DryRunAnswer:
        return self._dry_run.ask(engine_config(request, placement, self._path, rpc_endpoints=self._rpc_endpoints))

    def _ask(self, model: ModelInfo, request: PlanRequest, placement: Placement) -> Usage:
        answer = self._answer(request, placement)
        devices = _match(answer, placement, self._machine)
        # The rows of logits are not part of llama.cpp's own account.
        compute = answer.host.compute_bytes + output_bytes(model, request)
        return Usage(devices, DeviceUsage(answer.host.weights_bytes, answer.host.kv_bytes, compute), "engine")


def engine_not_asked(error: NoDryRun) -> PlanWarning:
    """Return what a plan says whose figures are the formula's, because the engine could not answer."""
    return PlanWarning("engine_not_asked", f"The memory figures are estimates: {error.message}.", error.hint)


def _match(answer: DryRunAnswer, placement: Placement, machine: Machine) -> tuple[DeviceUsage, ...]:
    """Line the engine's devices up with the machine's; a device the engine does not use counts zero."""
    found = {part.name: DeviceUsage(part.weights_bytes, part.kv_bytes, part.compute_bytes) for part in answer.devices}
    planned = [device.name for device in machine.devices]
    if placement.n_gpu_layers and set(found) != set(planned):
        raise EngineError(
            f"llama.cpp sees {', '.join(found) or 'no GPU'}, and the driver {', '.join(planned)}: this build of "
            "llama-cpp-python cannot use the GPUs as planned",
            hint="see why: ggufdeploy doctor\nrun on the CPU: put CUDA_VISIBLE_DEVICES= before the command",
        )
    nothing = DeviceUsage(0, 0, 0)
    return tuple(found.get(device.name, nothing) for device in machine.devices)


def engine_config(
    request: PlanRequest, placement: Placement, model_path: str, *, rpc_endpoints: tuple[str, ...] = ()
) -> EngineConfig:
    """Return the parameters a dry run is asked with; memory does not depend on the number of threads."""
    return EngineConfig(
        model_path=model_path,
        context_tokens=request.kv_cells,
        slots=request.slots,
        n_gpu_layers=placement.n_gpu_layers,
        n_batch=request.n_ubatch,
        n_ubatch=request.n_ubatch,
        key_type=request.kv_type,
        value_type=request.kv_type,
        flash_attention=request.flash_attention,
        split_mode="layer" if placement.n_devices > 1 else "none",
        tensor_split=placement.tensor_split,
        overrides=tuple(TensorOverride(pattern, "CPU") for pattern in placement.overrides()),
        load_mode="mmap",
        threads=1,
        rpc_endpoints=rpc_endpoints,
        kv_unified=request.kv_unified,
        n_outputs_max=request.n_outputs,
    )


def plan_config(
    plan: Plan, model_path: Path, *, chat_template: str | None = None, rpc_endpoints: tuple[str, ...] = ()
) -> EngineConfig:
    """Return the parameters that carry out a plan, also one read back from JSON."""
    place, engine = plan.placement, plan.engine
    return EngineConfig(
        model_path=str(model_path),
        context_tokens=kv_cells(max(plan.context_tokens, plan.kv_pool_tokens or 0)),
        slots=plan.slots,
        n_gpu_layers=place.n_gpu_layers,
        n_batch=engine.n_batch,
        n_ubatch=engine.n_ubatch,
        key_type=plan.kv_cache.key_type,
        value_type=plan.kv_cache.value_type,
        flash_attention=engine.flash_attention,
        split_mode=place.split_mode,
        tensor_split=place.tensor_split,
        overrides=tuple(TensorOverride(pattern, "CPU") for pattern in place.overrides),
        load_mode=engine.load_mode,
        threads=engine.threads,
        chat_template=chat_template,
        rpc_endpoints=rpc_endpoints,
    )
