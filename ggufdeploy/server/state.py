"""What every route shares: the configuration, the engine, and the generations in flight."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ggufdeploy.engine.request import SamplingParams
from ggufdeploy.engine.service import EngineService
from ggufdeploy.errors import LoadFailed, ModelNotServed, Overloaded
from ggufdeploy.server.meters import Meters

DEFAULT_MAX_BODY_BYTES = 10 << 20
LOADING_RETRY_S = 5.0
STOPPING_RETRY_S = 10.0


@dataclass(frozen=True)
class ServerConfig:
    """How the API presents one deployed model.

    host: the address bound, which decides whether the Host header is checked. aliases: other names `model` may take.
    created: Unix time shown by /v1/models. max_tokens: limit of requests that name none; None is the context's edge.
    plan_json: the first plan as a JSON document. allowed_hosts: names besides the loopback ones that clients may use in
    the Host header. allowed_origins: web origins besides the loopback ones; only these receive CORS headers.
    ping_s: seconds of silence after which a stream gets a comment. send_timeout_s: a client that takes nothing for so
    long is dropped. body_timeout_s: time for a request body to arrive.
    """

    model_id: str
    created: int
    host: str = "127.0.0.1"
    port: int = 8000
    aliases: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    plan_json: bytes = b"null"
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    body_timeout_s: float = 60.0
    ping_s: float = 15.0
    send_timeout_s: float = 60.0

    @property
    def served(self) -> tuple[str, ...]:
        """Every name the `model` field may hold, the model's own first."""
        return (self.model_id, *self.aliases)


class Shown:
    """What GET /plan answers; replaced when the model is loaded anew. Used from the event loop alone.

    memory: planned beside actual, anything msgspec encodes; None until the model is loaded. fingerprint: the
    `system_fingerprint`, which changes with the model or the plan, as seeded output may.
    """

    def __init__(self, model_id: str, plan_json: bytes) -> None:
        self._model_id = model_id
        self.show(plan_json, None)

    def show(self, plan_json: bytes, memory: Any) -> None:
        """Replace both."""
        self.plan_json, self.memory = plan_json, memory
        self.fingerprint = "fp_" + hashlib.sha256(self._model_id.encode() + b"\0" + plan_json).hexdigest()[:12]


class Abortable(Protocol):
    """A generation that can be told to end."""

    def abort(self, error: Exception) -> None:
        """Make the generation fail with `error`; returns at once."""
        ...


class Inflight:
    """The generations being answered, so that a stop can wait for them. Used from the event loop alone."""

    def __init__(self) -> None:
        self.draining = False
        self._runs: set[Abortable] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._runs)

    @contextmanager
    def track(self, run: Abortable) -> Iterator[None]:
        """Count `run` while the block lasts. Raises Overloaded once draining has begun."""
        if self.draining:
            raise stopping()
        self._runs.add(run)
        self._idle.clear()
        try:
            yield
        finally:
            self._runs.discard(run)
            if not self._runs:
                self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuse new generations, give the running ones `grace_s` seconds, then abort what is left."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout=grace_s)
        except asyncio.TimeoutError:
            for run in list(self._runs):
                run.abort(stopping())


@dataclass(frozen=True)
class ServerState:
    """Handed to every route."""

    engine: EngineService
    config: ServerConfig
    inflight: Inflight
    shown: Shown
    meters: Meters = field(default_factory=Meters)

    @property
    def accepting(self) -> bool:
        """Whether a new request would reach the engine."""
        return self.engine.status.phase == "ready" and not self.inflight.draining

    @property
    def chat_template(self) -> str | None:
        """The template of the model served; None without one, and before it is loaded."""
        info = self.engine.status.info
        return info.chat_template if info else None

    def require_ready(self) -> None:
        """Raise Overloaded while loading or stopping, LoadFailed when the model could not be loaded."""
        status = self.engine.status
        if self.inflight.draining or status.phase == "stopped":
            raise stopping()
        if status.phase == "failed":
            raise LoadFailed(status.error or "The model could not be loaded.")
        if status.phase == "restarting":
            raise Overloaded("The model is being loaded again after its process ended.", retry_after_s=LOADING_RETRY_S)
        if status.phase == "loading":
            done = "" if status.progress is None else f" ({status.progress:.0%})"
            raise Overloaded(f"The model is still loading{done}.", retry_after_s=LOADING_RETRY_S)

    def require_model(self, name: str | None) -> None:
        """Raise ModelNotServed unless `name` is missing, empty or one of the names served."""
        if name and name not in self.config.served:
            raise ModelNotServed(name[:200])


def stopping() -> Overloaded:
    """Return the error of requests that come, or still run, when the server ends."""
    return Overloaded("The server is shutting down.", retry_after_s=STOPPING_RETRY_S)
