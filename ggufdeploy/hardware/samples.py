"""Runs measured on a machine, as data: what a token had to read and do on each device, and how long that took."""

from __future__ import annotations

from dataclasses import dataclass

HOST = "CPU"
"""The host's name in `Work.device`, as llama.cpp calls it."""


@dataclass(frozen=True)
class Work:
    """What one decoded token costs one device. device: HOST or a `Device.name`.

    read_bytes: weights and KV cells read. layers: blocks computed there; expert_layers of them hold routed experts,
    wide_expert_layers of these so many that choosing among them takes time; host_expert_layers keep theirs in RAM.
    attention_macs: multiply-adds of attention over the filled context, which a CPU is slow at.
    """

    device: str
    read_bytes: int
    layers: int
    expert_layers: int = 0
    wide_expert_layers: int = 0
    host_expert_layers: int = 0
    attention_macs: int = 0


@dataclass(frozen=True)
class SpeedSample:
    """One run of one stream. architecture, n_params and weights_bytes tell models apart; n_gpu_layers and
    cpu_expert_layers the placement. active_params: used per token. prefill_tokens_per_s: None when not measured.
    """

    architecture: str
    n_params: int
    weights_bytes: int
    active_params: int
    n_gpu_layers: int
    cpu_expert_layers: int
    work: tuple[Work, ...]
    decode_tokens_per_s: float
    prefill_tokens_per_s: float | None
