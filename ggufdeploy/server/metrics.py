"""GET /metrics: the engine's statistics and the server's own meters for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ggufdeploy import __version__
from ggufdeploy.engine.request import Stats
from ggufdeploy.server.exposition import MEDIA_TYPE, header, sample
from ggufdeploy.server.state import ServerState

_STATS: tuple[tuple[str, Literal["counter", "gauge"], str, str], ...] = (
    ("requests_running", "gauge", "Requests being generated.", "running"),
    ("requests_waiting", "gauge", "Requests waiting for a slot.", "waiting"),
    ("slots", "gauge", "Requests that can run at once.", "slots"),
    ("kv_cells", "gauge", "Cells of the KV cache, one token each.", "kv_cells"),
    ("kv_cells_used", "gauge", "Cells held by running requests and cached prefixes.", "kv_cells_used"),
    ("prompt_tokens_total", "counter", "Prompt tokens of all requests.", "prompt_tokens_total"),
    ("completion_tokens_total", "counter", "Tokens generated.", "completion_tokens_total"),
    ("requests_total", "counter", "Requests accepted.", "requests_total"),
    ("steps_total", "counter", "Batches decoded.", "steps_total"),
    ("preemptions_total", "counter", "Times a running request was set back to the queue.", "preemptions_total"),
    ("engine_restarts_total", "counter", "Engines started after the first one.", "restarts_total"),
)


def metrics_routes(state: ServerState) -> list[Route]:
    """Return the route."""

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(metrics_text(state), media_type=MEDIA_TYPE)

    return [Route("/metrics", metrics)]


def metrics_text(state: ServerState) -> str:
    """Return everything there is to know, one line each."""
    lines = [*_server_lines(state), *_engine_lines(state.engine.stats), *state.meters.lines(), *_process_lines()]
    return "\n".join(lines) + "\n"


def _server_lines(state: ServerState) -> Iterator[str]:
    yield from header("ggufdeploy_info", "gauge", "Always 1; the labels say what is served by which version.")
    yield sample("ggufdeploy_info", 1, {"model": state.config.model_id, "version": __version__})
    yield from header("ggufdeploy_ready", "gauge", "1 when requests are served.")
    yield sample("ggufdeploy_ready", int(state.accepting))


def _process_lines() -> Iterator[str]:
    """Yield what shows a leak in this process. The names are those that every Prometheus client library uses."""
    import psutil

    process = psutil.Process()
    for name, text, value in (
        ("process_open_fds", "Open file descriptors of the API process.", process.num_fds()),
        ("process_resident_memory_bytes", "Resident memory of the API process.", process.memory_info().rss),
        ("process_start_time_seconds", "Unix time at which it started.", process.create_time()),
    ):
        yield from header(name, "gauge", text)
        yield sample(name, value)


def _engine_lines(stats: Stats) -> Iterator[str]:
    for name, kind, text, field in _STATS:
        yield from header(f"ggufdeploy_{name}", kind, text)
        yield sample(f"ggufdeploy_{name}", getattr(stats, field))
