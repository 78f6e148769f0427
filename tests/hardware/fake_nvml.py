"""A stand-in for the pynvml module: answers from a description of the GPUs, refuses what real ones refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

MIB = 1 << 20


@dataclass
class FakeGpu:
    """reserved None: an old driver without the second memory structure. total None: memory shared with the system."""

    name: str
    uuid: str
    total_mib: int | None
    free_mib: int = 0
    reserved_mib: int | None = None
    capability: tuple[int, int] | None = (9, 0)
    display: int | None = 0
    instances: list[FakeGpu] = field(default_factory=list)
    broken: bool = False
    mig_on: bool = False


class FakeNvml:
    """Counts nvmlInit and nvmlShutdown in `open_sessions`."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_NotFound(NVMLError):
        pass

    nvmlMemory_v2 = 2

    def __init__(self, gpus=(), *, driver="580.95.05", init_error=None):
        self.gpus = list(gpus)
        self.driver = driver
        self.init_error = init_error
        self.open_sessions = 0
        self.processes = {}  # uuid -> [(pid, bytes or None)]

    def nvmlInit(self):
        if self.init_error:
            raise self.init_error
        self.open_sessions += 1

    def nvmlShutdown(self):
        self.open_sessions -= 1

    def nvmlSystemGetDriverVersion(self):
        return self.driver

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        if self.gpus[index].broken:
            raise self.NVMLError("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu):
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu):
        return gpu.uuid

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.processes.get(gpu.uuid, ())]

    def nvmlDeviceGetMemoryInfo(self, gpu, version=1):
        if gpu.total_mib is None or (version == 2 and gpu.reserved_mib is None):
            raise self.NVMLError_NotSupported("Not Supported")
        memory = SimpleNamespace(total=gpu.total_mib * MIB, free=gpu.free_mib * MIB)
        if version == 2:
            memory.reserved = gpu.reserved_mib * MIB
        return memory

    def nvmlDeviceGetCudaComputeCapability(self, gpu):
        if gpu.capability is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return gpu.capability

    def nvmlDeviceGetDisplayActive(self, gpu):
        if gpu.display is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return gpu.display

    def nvmlDeviceGetMigMode(self, gpu):
        if gpu.capability is None or gpu.capability < (8, 0):
            raise self.NVMLError_NotSupported("Not Supported")
        return [1, 1] if gpu.instances or gpu.mig_on else [0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, position):
        if position >= len(gpu.instances):
            raise self.NVMLError_NotFound("Not Found")
        return gpu.instances[position]


# `nvidia-smi -q` of an idle H100 SXM, seen in a public repository: 516 MiB reserved, 0 used, 81042 free.
IDLE_H100 = FakeGpu("NVIDIA H100 80GB HBM3", "GPU-f8844f98-2150", 81559, 81042, 516, (9, 0), None)

# A desktop: the card that drives the screen has a part of its memory in use. The total is an RTX 4090's; what is used
# and reserved is made up.
DISPLAY_4090 = FakeGpu("NVIDIA GeForce RTX 4090", "GPU-0a1b2c3d-4e5f", 24564, 22310, 454, (8, 9), 1)


def mig_instance(profile: str, total_mib: int, uuid: str) -> FakeGpu:
    """An idle instance of an H100, as NVML names it; what is used and reserved is made up."""
    return FakeGpu(f"NVIDIA H100 80GB HBM3 MIG {profile}", uuid, total_mib, total_mib - 60, 45, None, None)
