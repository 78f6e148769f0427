"""Where the layers go: llama.cpp's rule, as data.

`n_gpu_layers = k` means the output layer plus the last k-1 blocks; there are `block_count + 1` items in all, the token
embedding always stays on the host. Item i goes to the device whose share of `tensor_split` it falls into.
Source: llama.cpp src/llama-model.cpp (load_tensors).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Strategy = Literal["full", "experts", "layers", "cpu"]


@dataclass(frozen=True)
class Placement:
    """items_per_device: blocks plus output, in order, on each device; their sum is `n_gpu_layers`.

    n_layers: the model's blocks. cpu_expert_layers: the first this many blocks keep their experts on the host.
    """

    n_layers: int
    items_per_device: tuple[int, ...]
    cpu_expert_layers: int = 0

    @property
    def n_devices(self) -> int:
        """Devices the placement knows, used or not."""
        return len(self.items_per_device)

    @property
    def n_gpu_layers(self) -> int:
        """As llama.cpp counts: blocks on GPUs plus one for the output layer."""
        return sum(self.items_per_device)

    @property
    def n_layers_total(self) -> int:
        """Blocks plus the output layer."""
        return self.n_layers + 1

    @property
    def strategy(self) -> Strategy:
        """What kind of placement this is."""
        if self.n_gpu_layers == 0:
            return "cpu"
        if self.n_gpu_layers < self.n_layers_total:
            return "layers"
        return "experts" if self.cpu_expert_layers else "full"

    @property
    def host_layers(self) -> range:
        """Blocks on the host: the first ones."""
        return range(self.n_layers_total - max(self.n_gpu_layers, 1))

    @property
    def output_device(self) -> int | None:
        """The device that holds the output layer, None for the host."""
        used = [device for device, items in enumerate(self.items_per_device) if items]
        return used[-1] if used else None

    @property
    def tensor_split(self) -> tuple[float, ...]:
        """One share per device for llama.cpp, empty without devices."""
        return tuple(float(items) for items in self.items_per_device)

    def layers_on(self, device: int) -> range:
        """Return the blocks on `device`, without the output layer."""
        first = self.n_layers_total - self.n_gpu_layers + sum(self.items_per_device[:device])
        last = first + self.items_per_device[device]
        return range(first, min(last, self.n_layers))

    def experts_on_host(self, layer: int) -> bool:
        """Tell whether the routed experts of this block stay on the host while its other tensors may not."""
        return layer < self.cpu_expert_layers

    def overrides(self) -> tuple[str, ...]:
        """Return the tensor-name patterns that go to the CPU. Source: llama.cpp common/arg.cpp (--n-cpu-moe)."""
        return tuple(rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps" for i in range(self.cpu_expert_layers))

    def with_experts_on_host(self, n: int) -> Placement:
        """Return the same placement with the experts of the first n blocks on the host."""
        return replace(self, cpu_expert_layers=n)


def on_cpu(n_layers: int, n_devices: int) -> Placement:
    """Return the placement that uses no GPU."""
    return Placement(n_layers, (0,) * n_devices)
