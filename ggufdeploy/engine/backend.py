"""What the engine's loop needs from llama.cpp. `llamacpp.py` is the real one; the tests' fake keeps the same contract.

Threads: one thread, the owner, calls `decode`, `logits` and the sequence operations; `tokenize` may be called from
several other threads at the same time. Everything else is read-only once constructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggufdeploy.engine.request import EngineInfo

Logits = NDArray[np.float32]


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens of one sequence, to be decoded at positions start, start + 1, ...

    seq_id: 0 <= seq_id < slots. output: whether the last token's logits are wanted.
    """

    seq_id: int
    start: int
    tokens: Sequence[int]
    output: bool


class Decoded(Enum):
    """What became of a batch."""

    OK = "ok"
    NO_ROOM = "no room"
    """No place in the KV cache; nothing was changed."""
    OUT_OF_MEMORY = "out of memory"
    """A device refused memory in the middle of a batch; the backend is of no use any more."""
    BROKEN = "broken"
    """The computation failed; the batch's sequences must be cleared."""


class KvMemory(Protocol):
    """The sequences resident in the KV cache. Called by the owner thread alone."""

    def seq_rm(self, seq_id: int, from_pos: int) -> bool:
        """Forget the positions from `from_pos` on; return whether what is left can be continued there.

        False means that this model cannot roll back so far (recurrent state, sliding window): the whole sequence
        was forgotten instead. from_pos 0 forgets everything and always returns True.
        """
        ...

    def seq_cp(self, source: int, target: int, n_tokens: int) -> None:
        """Let the empty sequence `target` share the first n_tokens of `source`; no cell is copied."""
        ...

    def pos_max(self, seq_id: int) -> int:
        """Return the last position held, -1 for an empty sequence."""
        ...


class Vocabulary(Protocol):
    """Text to tokens and back."""

    @property
    def bos_text(self) -> str:
        """The begin-of-sequence token as text, "" if the model has none."""
        ...

    @property
    def eos_text(self) -> str:
        """The end-of-sequence token as text, "" if the model has none."""
        ...

    @property
    def adds_bos(self) -> bool:
        """Whether `tokenize(add_special=True)` puts a begin-of-sequence token first."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a generation."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The template in the model file, or None."""
        ...

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return the tokens; special tokens spelled out in `text` are recognised.

        Thread-safe. Some tokenizers recurse over the text: call it on a thread with a large stack.
        Raises BadRequest when the text cannot be tokenized.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """Return what the token stands for; b"" for control tokens. A character may span several tokens."""
        ...

    def token_spelling(self, token: int) -> bytes:
        """Return the same as `token_bytes`, and for control tokens their names ("<|im_end|>"). Thread-safe."""
        ...


class Backend(KvMemory, Vocabulary, Protocol):
    """A loaded model with one context of `info.context_tokens` cells and `info.slots` sequences."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded and where it is."""
        ...

    def decode(self, chunks: Sequence[Chunk]) -> Decoded:
        """Compute one batch: at most n_batch tokens, at most one chunk per sequence.

        Every chunk continues its sequence: start == pos_max(seq_id) + 1.
        """
        ...

    def logits(self) -> Logits:
        """Return the logits of the last batch, one row for each chunk with `output`, in the order of the chunks.

        A view of shape (rows, n_vocab), float32, valid until the next `decode`. The caller may write to it.
        """
        ...

    def close(self) -> None:
        """Free the context and the model. Nothing else may be called afterwards."""
        ...
