from __future__ import annotations

import pytest

from ggufdeploy.engine.breakdown import BufferBytes
from ggufdeploy.engine.loadlog import LoadLog, Refusal, find_refusal, tells_out_of_memory
from ggufdeploy.engine.request import DeviceBuffers
from ggufdeploy.units import MIB

INFO, DEBUG, ERROR, CONTINUED = 2, 1, 4, 5


def test_buffers_are_summed_per_device_and_the_host_comes_last():
    log = LoadLog()
    for line in (
        "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
        "load_tensors:        CUDA0 model buffer size =    40.00 MiB",
        "load_tensors: RPC0[127.0.0.1:59543] model buffer size =    47.50 MiB",
        "llama_context:  CUDA_Host  output buffer size =     0.75 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =    31.50 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =     1.50 MiB",
        "llama_memory_recurrent:      CUDA0 RS buffer size =     2.00 MiB",
        "sched_reserve:      CUDA0 compute buffer size =    13.00 MiB",
        "sched_reserve:      CUDA0 compute buffer size =    15.00 MiB",
        "sched_reserve:  CUDA_Host compute buffer size =     4.00 MiB",
    ):
        log.feed(INFO, line + "\n")
    assert log.buffers() == (
        DeviceBuffers("CUDA0", 40 * MIB, 35 * MIB, 15 * MIB),
        DeviceBuffers("RPC0", int(47.5 * MIB), 0, 0),
        DeviceBuffers("CPU", round(92.10 * MIB), 0, int(4.75 * MIB)),
    )


def test_layers_are_told_by_debug_lines_which_are_not_kept():
    log = LoadLog()
    for index, device in ((0, "CPU"), (1, "RPC0"), (2, "RPC0")):
        log.feed(DEBUG, f"load_tensors: layer {index:3d} assigned to device {device}, is_swa = 0\n")
    assert log.layer_devices == ("CPU", "RPC0", "RPC0")
    assert not log.lines


def test_lines_in_pieces_are_joined_and_progress_dots_dropped():
    seen: list[str] = []
    log = LoadLog(seen.append)
    log.feed(INFO, "one ")
    log.feed(CONTINUED, "line\ntwo\n")
    log.feed(CONTINUED, ".")
    log.feed(ERROR, "it broke\n")
    log.feed(ERROR, "so this failed too\n")
    assert seen == ["one line", "two", "it broke", "so this failed too"]
    assert log.first_error == "it broke"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "alloc_buffer: allocating 100 MiB on device 0: cudaMalloc failed: out of memory",
            True,
        ),
        ("alloc_tensor_range: failed to allocate CUDA0 buffer of size 1048576", True),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", True),
        ("llama_model_load: error loading model: tensor 'x' data is not within the file bounds", False),
    ],
)
def test_out_of_memory_is_recognised(line, expected):
    assert tells_out_of_memory(["something else", line]) is expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 41000.50 MiB on device 1: cudaMalloc failed",
                "alloc_tensor_range: failed to allocate CUDA1 buffer of size 42992140288",
            ],
            Refusal("CUDA1", round(41000.5 * MIB)),
        ),
        (["alloc_tensor_range: failed to allocate RPC0[127.0.0.1:5] buffer of size 1048576"], Refusal("RPC0", MIB)),
        (["llama_model_load: error loading model: unable to allocate CPU_REPACK buffer"], Refusal("CPU", None)),
        (
            [
                "CUDA error: out of memory",
                "  current device: 0, in function alloc at ggml-cuda.cu:521",
                "  cuMemCreate",
            ],
            Refusal("CUDA0", None),
        ),
        (["something else"], Refusal()),
    ],
)
def test_the_log_tells_who_refused_how_much(lines, expected):
    assert find_refusal(lines) == expected


def test_a_refusal_counts_until_it_is_forgotten():
    log = LoadLog()
    log.feed(ERROR, "decode: could not reserve space for batch with 4 outputs\n")
    assert log.refused
    log.forget_refusal()
    assert not log.refused


def test_weights_that_are_repacked_are_a_second_copy_only_beside_mapped_ones():
    repacked = "load_tensors:   CPU_REPACK model buffer size =    80.00 MiB\n"
    mapped, plain = LoadLog(), LoadLog()
    for log, name in ((mapped, "CPU_Mapped"), (plain, "CPU")):
        log.feed(INFO, f"load_tensors:   {name} model buffer size =    92.00 MiB\n")
        log.feed(INFO, repacked)
    assert mapped.buffers() == (DeviceBuffers("CPU", 92 * MIB, 0, 0, 80 * MIB),)
    assert plain.buffers() == (DeviceBuffers("CPU", 172 * MIB, 0, 0, 0),)


def test_llama_cpps_own_account_is_exact_and_the_log_adds_the_rows_of_logits():
    log = LoadLog()
    log.feed(INFO, "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB\n")
    log.feed(INFO, "llama_kv_cache:      CUDA0 KV buffer size =    31.50 MiB\n")
    log.feed(INFO, "llama_context:  CUDA_Host  output buffer size =     0.75 MiB\n")
    account = (
        BufferBytes("CPU", "CPU", 1000, 0, 10),
        BufferBytes("CPU_REPACK", "CPU", 900, 0, 0),
        BufferBytes("CUDA0", "CUDA0", 5000, 300, 20),
    )
    assert log.buffers(account) == (
        DeviceBuffers("CUDA0", 5000, 300, 20),
        DeviceBuffers("CPU", 1000, 0, 10 + int(0.75 * MIB), 900),
    )
