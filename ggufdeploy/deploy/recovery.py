"""Memory was refused: plan again with what that taught, within what the user asked for, and say what changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ggufdeploy.deploy import lessons
from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.oracle import plan_config
from ggufdeploy.deploy.planning import Planned, make
from ggufdeploy.deploy.sources import Source
from ggufdeploy.deploy.wish import Wish
from ggufdeploy.engine.loadlog import Refusal, find_refusal, tells_out_of_memory
from ggufdeploy.engine.request import EngineConfig
from ggufdeploy.errors import DoesNotFit, EngineError, GgufdeployError, LoadFailed
from ggufdeploy.hardware.detect import detect
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.plan import Plan
from ggufdeploy.settings import Settings
from ggufdeploy.units import MIB, format_bytes, format_file_size, format_rate

# The first lesson about a device, doubled by each further one. Below it are 65 MiB of growth after a load (H100) and
# above it the 1 GiB that llama.cpp keeps free by default; see docs/memory-model.md.
_LESSON_SHARE = 50
# Free memory may move by this share between two readings without anybody having taken it.
_STEADY_SHARE = 100


@dataclass(frozen=True)
class Change:
    """What a refusal led to.

    free_bytes: of the device now. learned_bytes: what it keeps free from now on beyond its margin; None when other
    programs had taken the memory. remembered: that is also on the disk. hint: a better way, by command.
    """

    before: Plan
    after: Plan
    refusal: Refusal
    free_bytes: int | None
    learned_bytes: int | None
    remembered: bool
    hint: str | None

    def lines(self) -> list[str]:
        """Say it in numbers."""
        device = self.refusal.device or "a device"
        asked = f" ({format_bytes(self.refusal.asked_bytes)} asked for)" if self.refusal.asked_bytes else ""
        lines = [f"memory ran out on {device}{asked}"]
        planned = next((d.free_bytes for d in self.before.devices if d.name == self.refusal.device), None)
        if self.free_bytes is not None and planned is not None:
            lines[0] += (
                f": {format_bytes(planned)} were free when it was planned, {format_bytes(self.free_bytes)} are now"
            )
        lines.append(f"before: {_placed(self.before)}")
        lines.append(f"now: {_placed(self.after)}")
        if self.learned_bytes is not None:
            when = "remembered for next time" if self.remembered else "for as long as this runs"
            lines.append(f"{when}: {format_bytes(self.learned_bytes)} more stay free on {device}")
        return lines


class Deployment:
    """A plan being carried out with the model at `path`, and replaced when memory runs out. One thread at a time.

    read_machine: this machine now; for tests. rpc_endpoints: as in `planning.make`.
    """

    def __init__(
        self,
        planned: Planned,
        path: Path,
        settings: Settings,
        *,
        rpc_endpoints: tuple[str, ...] = (),
        read_machine: Callable[[], Machine] = lambda: detect(os.environ).machine,
    ) -> None:
        self.planned, self.path = planned, path
        self._settings, self._rpc_endpoints, self._read_machine = settings, rpc_endpoints, read_machine
        self._proven = False
        self._unsaved_bytes = 0  # a lesson the disk would not take

    @property
    def config(self) -> EngineConfig:
        """The parameters that carry out the plan."""
        profile = self.planned.source.profile
        template = profile.chat_template if profile else None
        return plan_config(self.planned.plan, self.path, chat_template=template, rpc_endpoints=self._rpc_endpoints)

    def mark_proven(self) -> None:
        """Note that the plan was loaded and passed its proof prompts."""
        self._proven = True

    def plan_again(self, error: EngineError) -> Change:
        """Replace the plan by one that keeps more memory free; takes seconds.

        Context, slots, KV type and quantization stay. Raises LoadFailed or DoesNotFit, with the ways out, when no other
        plan is left.
        """
        before = self.planned
        machine = _with_bandwidth(self._read_machine(), before.machine)
        refusal = _blamed(error, before.plan)
        device = next((item for item in machine.devices if item.name == refusal.device), None)
        free_bytes = device.free_bytes if device else machine.ram_available_bytes if refusal.device == "CPU" else None
        learned = self._learn(device, error) if device and not _was_taken(device, before.plan) else None
        after = self._make(machine, error)
        if plan_config(after.plan, self.path) == plan_config(before.plan, self.path):
            if not self._proven:
                raise _nothing_left(before, error)
        else:
            self._proven = False
        plan = replace(after.plan, model=before.plan.model, quantization=before.plan.quantization)
        self.planned = replace(before, plan=plan, machine=after.machine)
        remembered = learned is not None and not self._unsaved_bytes
        return Change(before.plan, plan, refusal, free_bytes, learned, remembered, self._better(machine))

    def _learn(self, device: Device, error: EngineError) -> int:
        known = max(lessons.load(self._settings).extra_bytes(device), self._unsaved_bytes)
        extra = 2 * known or max(device.total_bytes // _LESSON_SHARE, MIB)
        self._unsaved_bytes = 0
        try:
            lessons.remember(self._settings, device, extra, f"{self.planned.plan.model.ref}: {error.message}"[:500])
        except OSError:  # a state directory that cannot be written: `Change.remembered` tells the user
            self._unsaved_bytes = extra
        return extra

    def _make(self, machine: Machine, error: EngineError) -> Planned:
        """Plan for the file that is here and for what the plan had chosen. Raises DoesNotFit."""
        plan, source = self.planned.plan, self.planned.source
        wish = replace(
            self.planned.wish,
            quantization=None,
            context_tokens=plan.context_tokens,
            slots=plan.slots,
            kv_type=plan.kv_cache.key_type,
            n_ubatch=plan.engine.n_ubatch,
        )
        try:
            return self._plan(local_source(self.path, source.name, source.profile), wish, machine)
        except DoesNotFit as refused:
            raise DoesNotFit(
                f"{error.message} With what is free now, nothing else does: {refused.message}",
                needed_bytes=refused.needed_bytes,
                free_bytes=refused.free_bytes,
                hint="\n".join(filter(None, (refused.hint, self._better(machine)))) or None,
            ) from error

    def _plan(self, source: Source, wish: Wish, machine: Machine) -> Planned:
        wish = replace(wish, reserve_bytes=wish.reserve_bytes + self._unsaved_bytes)
        ref = self.planned.plan.model.ref
        return make(source, ref, wish, machine, settings=self._settings, rpc_endpoints=self._rpc_endpoints)

    def _better(self, machine: Machine) -> str | None:
        """Return the command for another quantization that runs wholly on the GPUs, where the user named none."""
        current = self.planned
        if current.wish.quantization is not None or current.plan.verdict == "gpu" or len(current.source.artifacts) < 2:
            return None
        try:
            other = self._plan(current.source, current.wish, machine).plan
        except GgufdeployError:
            return None  # an offer only: what it would have needed cannot be read now
        name, ref = other.quantization.name, current.plan.model.ref
        if other.verdict != "gpu" or name == current.plan.quantization.name:
            return None
        size = format_file_size(other.quantization.total_bytes)
        return f"{name} would run wholly in VRAM, a download of {size}: ggufdeploy run {ref} --quant {name}"


def _blamed(error: EngineError, plan: Plan) -> Refusal:
    """Name the device where the log does not: the GPU with the least to spare.

    The host when the log is silent too: the kernel killed the process before llama.cpp was refused anything.
    """
    refusal = find_refusal(error.log)
    if refusal.device is not None:
        return refusal
    used = [device for device in plan.devices if device.kind != "cpu" and device.used_bytes]
    if not used or not tells_out_of_memory(error.log):
        return replace(refusal, device="CPU")
    return replace(refusal, device=min(used, key=lambda d: d.free_bytes - d.used_bytes).name)


def _was_taken(device: Device, plan: Plan) -> bool:
    """Tell whether other programs took memory since the plan was made: then there is nothing wrong with it to learn."""
    planned = next((item for item in plan.devices if item.name == device.name), None)
    return planned is not None and planned.free_bytes - device.free_bytes > device.total_bytes // _STEADY_SHARE


def _with_bandwidth(machine: Machine, known: Machine) -> Machine:
    """Keep what was measured before."""
    if machine.ram_bandwidth_bytes_per_s is None:
        return replace(machine, ram_bandwidth_bytes_per_s=known.ram_bandwidth_bytes_per_s)
    return machine


def _nothing_left(planned: Planned, error: EngineError) -> LoadFailed:
    plan = planned.plan
    return LoadFailed(
        f"{error.message} No plan of {plan.quantization.name} with {plan.context_tokens:,} tokens takes less.",
        out_of_memory=True,
        log=error.log,
        hint="\n".join(
            (
                f"a smaller context: ggufdeploy run {plan.model.ref} --ctx {max(plan.context_tokens // 2, 256)}",
                f"a smaller KV cache: ggufdeploy run {plan.model.ref} --kv-type q8_0",
                f"another quantization: ggufdeploy plan {plan.model.ref}",
            )
        ),
    )


def _placed(plan: Plan) -> str:
    """Return where a plan puts the model and what that takes and costs."""
    place = plan.placement
    text = f"{place.n_gpu_layers} of {place.n_layers_total} layers on GPUs"
    if place.overrides:
        text += f", experts of {len(place.overrides)} of them in RAM"
    taken = [f"{format_bytes(device.used_bytes)} on {device.name}" for device in plan.devices if device.used_bytes]
    rate = plan.speed.decode_tokens_per_s
    return ", ".join([text, *taken, *([f"about {format_rate(rate)}"] if rate is not None else [])])
