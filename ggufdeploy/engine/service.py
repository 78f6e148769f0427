"""The engine as the server sees it. `supervisor.Supervisor` is the real one; tests script a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec

from ggufdeploy.engine.request import ChatPrompt, EngineInfo, Event, GenerateRequest, Stats

Phase = Literal["loading", "ready", "restarting", "failed", "stopped"]
"""restarting: its process ended, and a new one is being started."""


class EngineStatus(msgspec.Struct, frozen=True):
    """progress: 0..1 while loading, else None. error: why it failed, or restarts. info: set once ready."""

    phase: Phase
    progress: float | None = None
    error: str | None = None
    info: EngineInfo | None = None


class EngineService(Protocol):
    """Used from one asyncio event loop."""

    @property
    def status(self) -> EngineStatus:
        """The current phase; never blocks."""
        ...

    @property
    def stats(self) -> Stats:
        """The latest snapshot the worker sent; never blocks."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """Yield Accepted, then Delta any number of times, then Finished.

        Closing the iterator early (aclose, or cancelling the task that awaits it) cancels the request in the worker
        within one step. Raises BadRequest, ContextOverflow, Overloaded (also while loading) or EngineError,
        always before Accepted or instead of a later event.
        """
        ...

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the ids of `text`; add_special: with begin-of-sequence where the model wants it.

        Raises BadRequest, EngineError, Overloaded.
        """
        ...

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text, control tokens spelled out, U+FFFD for bytes that are no UTF-8.

        Raises BadRequest for a token the model does not have, EngineError, Overloaded.
        """
        ...

    async def render(self, prompt: ChatPrompt) -> str:
        """Return what the model's template makes of the messages, without the begin-of-sequence that tokenizing adds.

        Raises BadRequest, EngineError, Overloaded.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, let running ones finish for grace_s seconds, then end the worker. Idempotent."""
        ...
