"""The backend on llama-cpp-python's low-level bindings; with the dry run, all that imports llama_cpp.

Short calls go through PyDLL, which keeps the GIL: giving it up and taking it back costs far more than the call when
other threads are busy. Calls that compute or wait go through CDLL.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from ggufdeploy.engine import parameters
from ggufdeploy.engine.backend import Chunk, Decoded, Logits
from ggufdeploy.engine.breakdown import Breakdown, BufferBytes
from ggufdeploy.engine.loadlog import LoadLog, tells_out_of_memory
from ggufdeploy.engine.native import Batch, Native
from ggufdeploy.engine.parameters import Params
from ggufdeploy.engine.request import DeviceBuffers, EngineConfig, EngineInfo
from ggufdeploy.errors import BadRequest, EngineError, LoadFailed, NoDryRun


@functools.cache
def initialise() -> Native:
    """Import llama_cpp (it takes a second), check that it reads libllama's structs right, start its backends.

    Once per process. Raises LoadFailed.
    """
    import llama_cpp.llama_cpp as api

    params = api.llama_context_default_params()
    if (params.n_batch, params.n_ubatch, params.type_k) != (2048, 512, 1):
        raise LoadFailed(
            "The installed llama-cpp-python does not fit its own libllama: the parameter structs are read wrong.",
            hint="reinstall it: pip install --force-reinstall llama-cpp-python==0.3.36",
        )
    api.llama_backend_init()
    return Native(api)


def build_params(config: EngineConfig, on_progress: Callable[[float], None] | None = None) -> tuple[Params, Params]:
    """Register the RPC devices and return llama_model_params and llama_context_params. Raises LoadFailed."""
    native = initialise()
    parameters.check(config)
    for endpoint in config.rpc_endpoints:
        native.add_rpc_device(endpoint)
    return parameters.model_params(native, config, on_progress), parameters.context_params(native, config)


def device_name(device: int) -> str:
    """Return the name of a ggml_backend_dev_t: "CUDA0", "RPC0", "CPU"."""
    name: bytes = initialise().long("ggml_backend_dev_name", ctypes.c_char_p, "p")(device)
    return name.decode()


class LlamaCppBackend:
    """A model loaded with exactly the parameters of `config`. Implements `backend.Backend`.

    on_progress: called with 0..1 on the constructing thread. on_log: called with each log line, on any thread.
    Raises LoadFailed.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_progress: Callable[[float], None] | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        started = time.monotonic()
        self._native = initialise()
        self._api = self._native.api
        self._log = LoadLog(on_log)
        self._native.set_log(self._log.feed)
        self._model: int | None = None
        self._context: int | None = None
        self._view: Logits | None = None
        self._view_of = (0, 0)  # address and rows
        self._load(config, on_progress)
        self._bind_vocabulary()
        self._bind_computation(config.n_batch)
        self._info = self._describe(config, time.monotonic() - started)

    @property
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(self._info, buffers=self._buffers())

    def account(self) -> tuple[BufferBytes, ...]:
        """Return what this model and its context hold, to the byte, without the rows of logits. Raises NoDryRun."""
        assert self._context is not None
        return Breakdown(self._native).read(self._context)

    def close(self) -> None:
        if self._context is not None:
            self._api.llama_free(self._context)
            self._context = None
        if self._model is not None:
            self._api.llama_model_free(self._model)
            self._model = None
        self._native.reset_log()

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        capacity = len(data) + 8
        for _ in range(2):
            tokens = (ctypes.c_int32 * capacity)()
            n_tokens = self._api.llama_tokenize(self._vocab, data, len(data), tokens, capacity, add_special, True)
            if n_tokens >= 0:
                return tokens[:n_tokens]
            if n_tokens == -(1 << 31):
                break
            capacity = -n_tokens
        raise BadRequest(f"A text of {len(data):,} bytes is too long to be tokenized.")

    def token_bytes(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token, special=False)
        return known

    def token_spelling(self, token: int) -> bytes:
        return self._piece(token, special=True)

    def decode(self, chunks: Sequence[Chunk]) -> Decoded:
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        outputs: list[int] = []
        for chunk in chunks:
            n_tokens = len(chunk.tokens)
            tokens.extend(chunk.tokens)
            positions.extend(range(chunk.start, chunk.start + n_tokens))
            sequences.extend([chunk.seq_id] * n_tokens)
            outputs.extend([0] * (n_tokens - 1))
            outputs.append(chunk.output)
        self._n_rows = sum(outputs)
        self._log.forget_refusal()
        result = self._api.llama_decode(self._context, self._batch.fill(tokens, positions, sequences, outputs))
        if result == 0:
            return Decoded.OK
        if result < 0 and self._log.refused:
            return Decoded.OUT_OF_MEMORY
        return Decoded.NO_ROOM if result == 1 else Decoded.BROKEN

    def logits(self) -> Logits:
        address = self._get_logits(self._context)
        if not address or not self._n_rows:
            raise EngineError("llama.cpp returned no logits for the last batch.", log=self._log.lines)
        if self._view is None or (address, self._n_rows) != self._view_of:
            self._view = _view(address, self._n_rows, self._info.n_vocab)
            self._view_of = (address, self._n_rows)
        return self._view

    def seq_rm(self, seq_id: int, from_pos: int) -> bool:
        if from_pos <= 0:
            self._seq_rm(self._memory, seq_id, -1, -1)
            return True
        kept = self._seq_rm(self._memory, seq_id, from_pos, -1) and self.pos_max(seq_id) == from_pos - 1
        if kept and self._n_swa and self._seq_pos_min(self._memory, seq_id) > max(0, from_pos - self._n_swa):
            kept = False  # the window's cells before from_pos have been reused
        if not kept:
            self._seq_rm(self._memory, seq_id, -1, -1)
        return kept

    def seq_cp(self, source: int, target: int, n_tokens: int) -> None:
        self._seq_cp(self._memory, source, target, 0, n_tokens)

    def pos_max(self, seq_id: int) -> int:
        return int(self._seq_pos_max(self._memory, seq_id))

    def _buffers(self) -> tuple[DeviceBuffers, ...]:
        """Return llama.cpp's account with the rows of logits; where it cannot be read, what the log says."""
        try:
            return self._log.buffers(self.account())
        except NoDryRun:
            return self._log.buffers()

    def _load(self, config: EngineConfig, on_progress: Callable[[float], None] | None) -> None:
        model_params, context_params = build_params(config, on_progress)
        self._model = self._api.llama_model_load_from_file(config.model_path.encode(), model_params.value)
        if not self._model:
            raise self._load_failed("load the model")
        self._context = self._api.llama_init_from_model(self._model, context_params.value)
        if not self._context:
            raise self._load_failed("create the context")

    def _load_failed(self, what: str) -> LoadFailed:
        self.close()
        lines = tuple(self._log.lines)
        cause = self._log.first_error or (lines[-1] if lines else "it gave no reason")
        return LoadFailed(f"llama.cpp could not {what}: {cause}", out_of_memory=tells_out_of_memory(lines), log=lines)

    def _bind_vocabulary(self) -> None:
        api, short = self._api, self._native.short
        self._vocab = api.llama_model_get_vocab(self._model)
        self._token_to_piece = short("llama_token_to_piece", ctypes.c_int32, "pipiib")
        self._pieces: dict[int, bytes] = {}
        is_end = short("llama_vocab_is_eog", ctypes.c_bool, "pi")
        n_vocab = api.llama_vocab_n_tokens(self._vocab)
        self.end_tokens = frozenset(token for token in range(n_vocab) if is_end(self._vocab, token))
        self.adds_bos = bool(api.llama_vocab_get_add_bos(self._vocab))
        self.bos_text = self._special_text(api.llama_vocab_bos(self._vocab))
        self.eos_text = self._special_text(api.llama_vocab_eos(self._vocab))
        template = api.llama_model_chat_template(self._model, None)
        self.chat_template: str | None = template.decode("utf-8", errors="replace") if template else None

    def _bind_computation(self, n_batch: int) -> None:
        api, short = self._api, self._native.short
        self._memory = api.llama_get_memory(self._context)
        self._n_swa = int(api.llama_model_n_swa(self._model))
        self._seq_rm = short("llama_memory_seq_rm", ctypes.c_bool, "piii")
        self._seq_cp = short("llama_memory_seq_cp", None, "piiii")
        self._seq_pos_max = short("llama_memory_seq_pos_max", ctypes.c_int32, "pi")
        self._seq_pos_min = short("llama_memory_seq_pos_min", ctypes.c_int32, "pi")
        self._get_logits = self._native.long("llama_get_logits", ctypes.c_void_p, "p")
        self._batch = Batch(n_batch, api.llama_batch)
        self._n_rows = 0

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n_bytes = self._token_to_piece(self._vocab, token, buffer, size, 0, special)
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            size = -n_bytes

    def _special_text(self, token: int) -> str:
        return "" if token < 0 else self._piece(token, special=True).decode("utf-8", errors="replace")

    def _describe(self, config: EngineConfig, load_s: float) -> EngineInfo:
        buffer = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self._model, buffer, len(buffer))
        return EngineInfo(
            description=buffer.value.decode("utf-8", errors="replace"),
            context_tokens=config.context_tokens,
            slots=config.slots,
            n_vocab=int(self._api.llama_vocab_n_tokens(self._vocab)),
            context_train_tokens=int(self._api.llama_model_n_ctx_train(self._model)),
            buffers=self._log.buffers(),
            layer_devices=self._log.layer_devices,
            has_chat_template=bool(config.chat_template or self.chat_template),
            load_s=load_s,
            chat_template=config.chat_template or self.chat_template,
        )


def _view(address: int, n_rows: int, n_columns: int) -> Logits:
    memory = (ctypes.c_float * (n_rows * n_columns)).from_address(address)
    return np.frombuffer(memoryview(memory).cast("B"), dtype=np.float32).reshape(n_rows, n_columns)
