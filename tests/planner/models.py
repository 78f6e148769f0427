"""Models and machines for planner tests, by hand: round figures that can be checked in the head."""

from __future__ import annotations

from ggufdeploy.gguf.model import LayerInfo, ModelInfo
from ggufdeploy.hardware.machine import Device, Machine
from ggufdeploy.planner.request import Candidate, PlanFile
from ggufdeploy.units import GIB, MIB


def model(*, n_layers: int = 10, layer_bytes: int = GIB, expert_bytes: int = 0, tied: bool = False) -> ModelInfo:
    """Ten layers of 1 GiB, 8 KV heads of 128: 4 KiB of f16 KV per token and layer."""
    layers = tuple(
        LayerInfo(
            index=i,
            dense_bytes=layer_bytes - expert_bytes,
            expert_bytes=expert_bytes,
            kv_heads=8,
            key_length=128,
            value_length=128,
            largest_host_copy_bytes=(expert_bytes or layer_bytes) // 2,
        )
        for i in range(n_layers)
    )
    return ModelInfo(
        architecture="llama", name="test", n_params=8_000_000_000, n_layers=n_layers, embedding_length=4096,
        feed_forward_length=14336, expert_feed_forward_length=14336 if expert_bytes else None, n_heads=32,
        n_experts=8 if expert_bytes else 0, n_experts_used=2 if expert_bytes else 0, n_vocab=32000,
        context_train_tokens=65536, sliding_window_tokens=None, tied_embeddings=tied,
        token_embedding_bytes=100 * MIB, output_bytes=100 * MIB, layers=layers,
        total_bytes=n_layers * layer_bytes + (100 if tied else 200) * MIB, n_tensors=93, file_type=15,
        chat_template=None,
    )  # fmt: skip


def candidate(name: str = "Q4_K_M", info: ModelInfo | None = None) -> Candidate:
    """One exact candidate."""
    info = info or model()
    return Candidate(name, (PlanFile(f"m.{name}.gguf", info.total_bytes, None),), info, True, "file")


def gpu(free_bytes: int, index: int = 0, bandwidth: int = 1_000_000_000_000) -> Device:
    """A GPU no catalogue knows: margin 1 GiB, overhead 194 MiB."""
    return Device(
        name=f"CUDA{index}", kind="gpu", description="test", total_bytes=free_bytes + GIB, free_bytes=free_bytes,
        bandwidth_bytes_per_s=bandwidth, compute_capability="8.6",
    )  # fmt: skip


def machine(*devices: Device, ram_bytes: int = 256 * GIB) -> Machine:
    """A host with plenty of RAM at 100 GB/s."""
    return Machine(
        devices=devices, ram_total_bytes=ram_bytes, ram_available_bytes=ram_bytes, physical_cores=8, logical_cores=16,
        ram_bandwidth_bytes_per_s=100_000_000_000,
    )  # fmt: skip
