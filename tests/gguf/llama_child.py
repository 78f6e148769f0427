"""Answers questions about GGUF files with the real llama.cpp, in a process of its own.

    python -m tests.gguf.llama_child '{"ask": "generate", "path": "m.gguf"}'

prints one JSON document. `ask()` runs it and returns that document.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def ask(question: str, **arguments: Any) -> Any:
    """Run one question in a child process and return its answer; a crash fails the test with the child's stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf.llama_child", json.dumps({"ask": question, **arguments})],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"llama.cpp ended with {done.returncode}:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)


def types() -> list[list[Any]]:
    """Return [id, name, elements per block, bytes per block] of every type ggml can store."""
    import llama_cpp

    lib = llama_cpp.llama_cpp._lib
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_type_size.restype = ctypes.c_size_t
    lib.ggml_blck_size.restype = ctypes.c_int64
    table = []
    for type_id in range(43):
        elements = lib.ggml_blck_size(type_id)
        if elements:
            table.append([type_id, lib.ggml_type_name(type_id).decode(), elements, lib.ggml_type_size(type_id)])
    return table


def _load(path: str, **parameters: Any) -> Any:
    import llama_cpp

    params = llama_cpp.llama_model_default_params()
    for name, value in parameters.items():
        setattr(params, name, value)
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(f"{path} did not load")
    return model


def dry(path: str, context_tokens: int = 0) -> dict[str, Any]:
    """Load without allocating; with context_tokens also make a context, for its log lines about the KV cache."""
    import llama_cpp

    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, user_data: object) -> None:
        lines.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    model = _load(path, no_alloc=True, load_mode=llama_cpp.LLAMA_LOAD_MODE_NONE)
    answer: dict[str, Any] = {
        "n_params": llama_cpp.llama_model_n_params(model),
        "tensor_bytes": llama_cpp.llama_model_size(model),
        "n_layers": llama_cpp.llama_model_n_layer(model),
        "n_swa": llama_cpp.llama_model_n_swa(model),
    }
    if context_tokens:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.kv_unified, params.n_seq_max, params.swa_full = context_tokens, True, 1, False
        if not llama_cpp.llama_init_from_model(model, params):
            raise SystemExit("no context")
    answer["log"] = "".join(lines)
    return answer


def generate(path: str) -> dict[str, Any]:
    """Load for real, tokenize, decode once and return the likeliest next token."""
    import llama_cpp
    import numpy as np

    model = _load(path)
    vocab = llama_cpp.llama_model_get_vocab(model)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 256
    context = llama_cpp.llama_init_from_model(model, params)
    tokens = (llama_cpp.llama_token * 64)()
    text = "the cat ü".encode()
    n = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, 64, True, False)
    status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, n))
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(n_vocab,))
    return {
        "status": status,
        "tokens": list(tokens[:n]),
        "n_vocab": n_vocab,
        "next": int(logits.argmax()),
        "finite": bool(np.isfinite(logits).all()),
        "spread": float(logits.std()),
    }


def quantize(path: str, out: str, file_type: int) -> int:
    """Quantize a file with llama.cpp's own mix; returns its status."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    return int(llama_cpp.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    questions = {"types": types, "dry": dry, "generate": generate, "quantize": quantize}
    print(json.dumps(questions[arguments.pop("ask")](**arguments)))
