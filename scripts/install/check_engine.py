"""Prove that the installed llama-cpp-python works on this machine; install.sh runs it in a child process.

Prints `key value` lines: version, one `device` line per device (kind, name, description), `gpu`, `rpc` and
`exact-planning` (yes or no), and `token`, the number of the token that a tiny model with random weights produced. Needs
no network and no model file. An illegal instruction or a missing library ends the process instead; the caller reads the
exit status.
"""

from __future__ import annotations

import ctypes
import math
import random
import struct
import sys
import tempfile
from pathlib import Path

# Numbers of the GGUF format. Source: ggml docs/gguf.md.
_U32, _F32, _STRING = 4, 6, 8
_TYPE_F32, _TYPE_Q8_0 = 0, 8
_ALIGNMENT = 32

# enum ggml_backend_dev_type. Source: llama.cpp ggml/include/ggml-backend.h.
_DEVICE_KINDS = ("cpu", "gpu", "igpu", "accelerator")

_WIDTH, _HIDDEN, _VOCABULARY, _HEADS = 64, 128, 64, 2
_PROMPT = (1, 2, 3)


def main() -> int:
    """Run the whole check; returns the exit status."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    libraries = Path(llama_cpp.__file__).parent / "lib"
    _say("version", llama_cpp.__version__)
    kinds = _print_devices(libraries)
    _say("gpu", _yes("gpu" in kinds or "igpu" in kinds))
    _say("rpc", _yes(_library(libraries, "ggml-rpc") is not None))
    _say("exact-planning", _yes(_library(libraries.parent.parent / "lib", "llama-common") is not None))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny.gguf"
        model.write_bytes(_tiny_model())
        _say("token", _generate(model))
    return 0


def _say(key: str, value: object) -> None:
    """Write one line at once: the next call may kill the process."""
    sys.stdout.write(f"{key} {value}\n")
    sys.stdout.flush()


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _library(folder: Path, name: str) -> Path | None:
    """Return lib<name>.so or .dylib in `folder`, or None."""
    return next(
        (folder / f"lib{name}{end}" for end in (".so", ".dylib") if (folder / f"lib{name}{end}").exists()), None
    )


def _print_devices(libraries: Path) -> set[str]:
    """Print what ggml sees and return the kinds. `llama_supports_gpu_offload` is no use: RPC alone makes it true."""
    path = _library(libraries, "ggml")
    if path is None:
        raise FileNotFoundError(f"no libggml in {libraries}")
    ggml = ctypes.CDLL(str(path))
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        getattr(ggml, name).restype = ctypes.c_char_p
        getattr(ggml, name).argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    kinds = set()
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        number = ggml.ggml_backend_dev_type(device)
        kind = _DEVICE_KINDS[number] if number < len(_DEVICE_KINDS) else f"type-{number}"
        name = ggml.ggml_backend_dev_name(device).decode(errors="replace")
        _say("device", f"{kind} {name} {ggml.ggml_backend_dev_description(device).decode(errors='replace')}")
        kinds.add(kind)
    return kinds


def _generate(model_path: Path) -> int:
    """Load the model with everything on the GPU if there is one, decode three tokens, return the likeliest next one."""
    import llama_cpp

    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 99
    model = llama_cpp.llama_model_load_from_file(str(model_path).encode(), model_params)
    if not model:
        raise RuntimeError("llama.cpp refused the tiny model")
    context_params = llama_cpp.llama_context_default_params()
    context_params.n_ctx = 64
    context = llama_cpp.llama_init_from_model(model, context_params)
    if not context:
        raise RuntimeError("llama.cpp made no context for the tiny model")
    tokens = (llama_cpp.llama_token * len(_PROMPT))(*_PROMPT)
    status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(_PROMPT)))
    if status != 0:
        raise RuntimeError(f"llama_decode returned {status}")
    logits = llama_cpp.llama_get_logits_ith(context, -1)[:_VOCABULARY]
    if not all(math.isfinite(value) for value in logits):
        raise RuntimeError("the engine computed numbers that are not finite")
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return max(range(_VOCABULARY), key=logits.__getitem__)


def _tiny_model() -> bytes:
    """Return a one-layer llama GGUF with random Q8_0 weights and no vocabulary, 60 kB."""
    keys = [
        _text("general.architecture", "llama"),
        _text("tokenizer.ggml.model", "no_vocab"),
        _number("general.alignment", _ALIGNMENT),
        _number("llama.vocab_size", _VOCABULARY),
        _number("llama.context_length", 64),
        _number("llama.block_count", 1),
        _number("llama.embedding_length", _WIDTH),
        _number("llama.feed_forward_length", _HIDDEN),
        _number("llama.attention.head_count", _HEADS),
        _name("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", _F32, 1e-5),
    ]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (_WIDTH, _VOCABULARY),
        "output_norm": (_WIDTH,),
        "output": (_WIDTH, _VOCABULARY),
        "blk.0.attn_norm": (_WIDTH,),
        **{f"blk.0.attn_{part}": (_WIDTH, _WIDTH) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_norm": (_WIDTH,),
        "blk.0.ffn_gate": (_WIDTH, _HIDDEN),
        "blk.0.ffn_up": (_WIDTH, _HIDDEN),
        "blk.0.ffn_down": (_HIDDEN, _WIDTH),
    }
    source = random.Random(0)
    infos, data = b"", b""
    for name, shape in shapes.items():
        kind = _TYPE_F32 if len(shape) == 1 else _TYPE_Q8_0
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += _name(f"{name}.weight") + dims + struct.pack("<IQ", kind, len(data))
        data += _aligned(_norm(shape[0]) if kind == _TYPE_F32 else _q8_0(math.prod(shape), source))
    return _aligned(struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(keys)) + b"".join(keys) + infos) + data


def _name(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _text(key: str, value: str) -> bytes:
    return _name(key) + struct.pack("<I", _STRING) + _name(value)


def _number(key: str, value: int) -> bytes:
    return _name(key) + struct.pack("<II", _U32, value)


def _norm(width: int) -> bytes:
    return struct.pack(f"<{width}f", *([1.0] * width))


def _q8_0(count: int, source: random.Random) -> bytes:
    """Return `count` random weights: blocks of 32 signed bytes, each with a half-precision scale before it."""
    return b"".join(struct.pack("<e", 0.01) + source.randbytes(32) for _ in range(count // 32))


def _aligned(block: bytes) -> bytes:
    return block + bytes(-len(block) % _ALIGNMENT)


if __name__ == "__main__":
    sys.exit(main())
