"""NVIDIA GPUs through NVML. `read_devices` asks the driver; everything else works on what it answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ggufdeploy.hardware.catalog import GpuSpec, context_bytes, estimate_idle_free_bytes
from ggufdeploy.hardware.machine import Device
from ggufdeploy.units import MIB

# The smallest CUDA context in any llama.cpp log (RTX 5060 Ti). Source: the logs behind gpus.csv.
_SMALLEST_CONTEXT_BYTES = 137 * MIB


@dataclass(frozen=True)
class NvidiaReading:
    """What NVML says of one GPU, or of one MIG instance. None: the driver does not say.

    index: NVML's number of the GPU, in PCI bus order. reserved_bytes: kept by the driver, neither used nor free;
    known from NVML's second memory structure on. total_bytes is None on GPUs that share the system's RAM.
    """

    index: int
    name: str
    uuid: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    compute_capability: str | None = None
    driver_version: str | None = None
    display: bool | None = None
    mig: bool = False


@dataclass(frozen=True)
class NvidiaReadings:
    """devices: in NVML's order. notes: what could not be read, for the user."""

    devices: tuple[NvidiaReading, ...] = ()
    notes: tuple[str, ...] = ()


def read_devices(nvml: Any = None) -> NvidiaReadings:
    """Ask NVML for all GPUs. nvml: a stand-in for the pynvml module. No driver: no devices and no notes.

    An error of the driver becomes a note; it never stops detection.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return NvidiaReadings()
    except nvml.NVMLError as error:
        return NvidiaReadings(notes=(f"the NVIDIA driver does not answer: {error}",))
    try:
        return _read_all(nvml)
    except nvml.NVMLError as error:
        return NvidiaReadings(notes=(f"the NVIDIA driver cannot list its GPUs: {error}",))
    finally:
        nvml.nvmlShutdown()


def read_process_bytes(pid: int, nvml: Any = None) -> dict[str, int]:
    """Return what the process holds on each GPU, by the GPU's UUID; without those the driver does not tell.

    nvml: a stand-in for the pynvml module. In a container the driver may know the process by another id; then nothing
    is found. Takes some milliseconds.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        found: dict[str, int] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
            for target in (*_mig_handles(nvml, handle), handle) if handle is not None else ():
                uuid = _text(_ask(nvml, nvml.nvmlDeviceGetUUID, target))
                running = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, target) or ()
                held = [process.usedGpuMemory for process in running if process.pid == pid]
                if uuid and held and None not in held:
                    found[uuid] = sum(held)
        return found
    except nvml.NVMLError:
        return {}
    finally:
        nvml.nvmlShutdown()


def select_visible(
    readings: Sequence[NvidiaReading], visible: str | None
) -> tuple[tuple[NvidiaReading, ...], tuple[str, ...]]:
    """Return the devices CUDA will show, in its order, and notes. visible: CUDA_VISIBLE_DEVICES, None when not set.

    Like CUDA, stop at the first entry that names no device, and show at most one MIG instance.
    Source: CUDA C++ Programming Guide, environment variables; NVIDIA MIG User Guide.
    """
    chosen, notes = list(readings), []
    if visible is not None:
        chosen = []
        for word in (word.strip() for word in visible.split(",")):
            match = _find(readings, word)
            if match is None or match in chosen:
                if word:
                    notes.append(
                        f"CUDA_VISIBLE_DEVICES={visible}: {word!r} names no further GPU; it and the rest are not used"
                    )
                break
            chosen.append(match)
    slices = [reading for reading in chosen if reading.mig]
    if slices:
        chosen = slices[:1]
        notes.append(f"MIG is on: CUDA shows one instance per process, here {slices[0].name}")
    return tuple(chosen), tuple(notes)


def to_device(reading: NvidiaReading, spec: GpuSpec | None, *, position: int) -> Device | None:
    """Return the device as llama.cpp will see it, or None when the driver tells no memory size.

    position: its place among the visible GPUs, hence llama.cpp's name. spec: its entry in the catalogue.
    """
    if reading.total_bytes is None or reading.free_bytes is None:
        return None
    return Device(
        name=f"CUDA{position}",
        kind="gpu",
        description=reading.name,
        total_bytes=reading.total_bytes,
        free_bytes=_free_for_llama_bytes(reading.total_bytes, reading.free_bytes, reading.reserved_bytes, spec),
        free_is_estimate=True,
        catalogue_id=spec.id if spec else None,
        bandwidth_bytes_per_s=spec.bandwidth_bytes_per_s if spec else None,
        compute_capability=reading.compute_capability,
        driver_version=reading.driver_version,
        uuid=reading.uuid,
        display=reading.display,
        fp16_flops_per_s=spec.fp16_flops_per_s if spec else None,
    )


def _free_for_llama_bytes(total: int, free: int, reserved: int | None, spec: GpuSpec | None) -> int:
    """Estimate free memory after llama.cpp made its context.

    NVML's free leaves out what the driver reserves, so only the rest of the gap between NVML's total and llama.cpp's
    free is taken off: an idle H100 has 81,559 MiB, 516 reserved, 81,042 free; llama.cpp sees 80,552.
    Source: nvidia-smi -q and llama.cpp logs in public repositories.
    """
    if reserved is None:
        return max(0, free - context_bytes(total))
    idle_gap = spec.nvml_total_bytes - spec.llama_free_bytes if spec else total - estimate_idle_free_bytes(total)
    return max(0, free - max(idle_gap - reserved, _SMALLEST_CONTEXT_BYTES))


def _find(readings: Sequence[NvidiaReading], word: str) -> NvidiaReading | None:
    """Return the device a CUDA_VISIBLE_DEVICES entry names: an index, or the start of a UUID that fits only one."""
    if word.isdigit():
        return next((reading for reading in readings if reading.index == int(word)), None)
    matches = [reading for reading in readings if word and (reading.uuid or "").startswith(word)]
    return matches[0] if len(matches) == 1 else None


def _read_all(nvml: Any) -> NvidiaReadings:
    driver = _ask(nvml, nvml.nvmlSystemGetDriverVersion)
    devices: list[NvidiaReading] = []
    notes: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            slices = list(_mig_handles(nvml, handle))
            if not slices and _mig_is_on(nvml, handle):
                notes.append(f"GPU {index} is in MIG mode without an instance, so CUDA cannot use it")
                continue
            for target in slices or [handle]:
                devices.append(_read_one(nvml, target, handle, index, driver, mig=bool(slices)))
        except nvml.NVMLError as error:
            notes.append(f"GPU {index} does not answer and is left out: {error}")
    return NvidiaReadings(tuple(devices), tuple(notes))


def _read_one(nvml: Any, target: Any, gpu: Any, index: int, driver: Any, *, mig: bool) -> NvidiaReading:
    """Read one GPU, or one MIG instance `target` of it; what an instance cannot answer is asked of its GPU."""
    memory = _memory(nvml, target)
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, gpu)
    display = _ask(nvml, nvml.nvmlDeviceGetDisplayActive, gpu)
    return NvidiaReading(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(target)) or f"NVIDIA GPU {index}",
        uuid=_text(_ask(nvml, nvml.nvmlDeviceGetUUID, target)),
        total_bytes=int(memory.total) if memory else None,
        free_bytes=int(memory.free) if memory else None,
        reserved_bytes=int(memory.reserved) if hasattr(memory, "reserved") else None,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        driver_version=_text(driver),
        display=bool(display) if display is not None else None,
        mig=mig,
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """Return NVML's memory structure with `reserved`, on old drivers the one without; None where there is neither."""
    second = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, version=nvml.nvmlMemory_v2)
    return second if second is not None else _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)


def _mig_is_on(nvml: Any, handle: Any) -> bool:
    mode = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return bool(mode and mode[0])


def _mig_handles(nvml: Any, handle: Any) -> Iterator[Any]:
    if not _mig_is_on(nvml, handle):
        return
    for position in range(_ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, position)
        if instance is not None:
            yield instance


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the answer, or None: many GPUs support only some of NVML's questions."""
    try:
        return question(*arguments, **options)
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
