"""EngineConfig as llama.cpp's parameter structs, every field set. Shared by the backend and the dry run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufdeploy.engine.native import Native
from ggufdeploy.engine.request import EngineConfig
from ggufdeploy.errors import LoadFailed

# Source: llama.cpp src/llama-cparams.h, LLAMA_MAX_SEQ
MAX_SLOTS = 256

# Source: llama.cpp include/llama.h and ggml/include/ggml.h
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
_LOAD_MODES = {"none": 0, "mmap": 1}
_KV_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
_FROM_MODEL = -1
_POOLING_NONE = 0


@dataclass(frozen=True)
class Params:
    """value: the ctypes struct. keep: what it points to; must live until the load is over."""

    value: Any
    keep: tuple[Any, ...] = ()


def check(config: EngineConfig) -> None:
    """Raise LoadFailed for what would make llama.cpp abort, now or in a later batch."""
    if not 1 <= config.slots <= MAX_SLOTS:
        raise LoadFailed(f"llama.cpp serves 1 to {MAX_SLOTS} slots, not {config.slots}.")
    if config.n_batch < config.slots:
        raise LoadFailed(f"A batch of {config.n_batch} tokens is too small for {config.slots} slots.")
    if not Path(config.model_path).is_file():
        raise LoadFailed(f"There is no model file {config.model_path}.")


def model_params(native: Native, config: EngineConfig, on_progress: Callable[[float], None] | None = None) -> Params:
    """Return llama_model_params. on_progress: called with 0..1 on the loading thread. Raises LoadFailed."""

    def report(fraction: float, _: Any) -> bool:
        if on_progress is not None:
            on_progress(fraction)
        return True

    api = native.api
    progress = api.llama_progress_callback(report)
    overrides = native.buffer_overrides(config.overrides)
    no_devices = (ctypes.c_void_p * 1)(None)
    split = (ctypes.c_float * api.LLAMA_MAX_DEVICES)(*config.tensor_split)
    params = api.llama_model_default_params()
    # Without GPU layers the list is empty, so that no GPU is even initialised; else llama.cpp's own order: RPC devices
    # as they were registered, then the local GPUs.
    params.devices = None if config.n_gpu_layers else ctypes.cast(no_devices, ctypes.c_void_p)
    params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p) if overrides else None
    params.n_gpu_layers = config.n_gpu_layers
    params.split_mode = _SPLIT_MODES[config.split_mode]
    params.load_mode = _LOAD_MODES[config.load_mode]
    params.lazy_mode = 0
    params.main_gpu = 0
    params.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float)) if config.tensor_split else None
    params.progress_callback = progress
    params.progress_callback_user_data = None
    params.kv_overrides = None
    params.vocab_only = False
    params.check_tensors = False
    params.use_extra_bufts = True
    params.no_host = False
    params.no_alloc = False
    params.load_mtp = False
    return Params(params, keep=(progress, overrides, no_devices, split))


def context_params(native: Native, config: EngineConfig) -> Params:
    """Return llama_context_params; without `n_outputs_max`, room for one row of logits per slot."""
    params = native.api.llama_context_default_params()
    params.n_ctx = config.context_tokens
    params.n_batch = config.n_batch
    params.n_ubatch = config.n_ubatch
    params.n_seq_max = config.slots
    params.n_rs_seq = 0
    params.n_outputs_max = config.n_outputs_max or config.slots
    params.n_outputs_max_per_seq = 1 if config.n_outputs_max is None else config.n_outputs_max
    params.n_threads = config.threads
    params.n_threads_batch = config.threads
    params.ctx_type = 0
    params.rope_scaling_type = _FROM_MODEL
    params.pooling_type = _POOLING_NONE
    params.attention_type = _FROM_MODEL
    params.flash_attn_type = int(config.flash_attention)
    params.rope_freq_base = params.rope_freq_scale = 0.0  # from the model
    params.yarn_ext_factor = params.yarn_attn_factor = _FROM_MODEL
    params.yarn_beta_fast = params.yarn_beta_slow = _FROM_MODEL
    params.yarn_orig_ctx = 0
    params.defrag_thold = -1.0
    params.cb_eval_user_data = None
    params.type_k = _KV_TYPES[config.key_type]
    params.type_v = _KV_TYPES[config.value_type]
    params.abort_callback_data = None
    params.embeddings = False
    params.offload_kqv = True
    params.no_perf = True
    params.op_offload = True
    params.swa_full = False
    params.kv_unified = config.kv_unified
    params.samplers = None
    params.n_samplers = 0
    params.ctx_other = None
    return Params(params)
