"""GET /health, /livez, /plan and /metrics: what operators and probes ask."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ggufdeploy.engine.request import Stats
from ggufdeploy.server.errors import json_response
from ggufdeploy.server.state import ServerState

# Source of the format: Prometheus text exposition format 0.0.4.
_METRICS = (
    ("requests_running", "gauge", "Requests being generated.", "running"),
    ("requests_waiting", "gauge", "Requests waiting for a slot.", "waiting"),
    ("slots", "gauge", "Requests that can run at once.", "slots"),
    ("kv_cells", "gauge", "Cells of the KV cache, one token each.", "kv_cells"),
    ("kv_cells_used", "gauge", "Cells held by running requests and cached prefixes.", "kv_cells_used"),
    ("prompt_tokens_total", "counter", "Prompt tokens of all requests.", "prompt_tokens_total"),
    ("completion_tokens_total", "counter", "Tokens generated.", "completion_tokens_total"),
    ("requests_total", "counter", "Requests accepted.", "requests_total"),
    ("steps_total", "counter", "Batches decoded.", "steps_total"),
    ("engine_restarts_total", "counter", "Engines started after the first one.", "restarts_total"),
)


def health_routes(state: ServerState) -> list[Route]:
    """Return the operators' routes. /health is for readiness, /livez only says that the process answers."""

    async def health(request: Request) -> Response:
        status, document = _health(state)
        return json_response(document, status)

    async def livez(request: Request) -> Response:
        return json_response({"status": "ok"})

    async def plan(request: Request) -> Response:
        shown = state.shown
        document = {
            "plan": msgspec.Raw(shown.plan_json),
            "actual": state.engine.status.info,
            "memory": shown.memory,
        }
        return json_response(document)

    async def metrics(request: Request) -> Response:
        text = metrics_text(state.engine.stats, ready=state.accepting)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    return [Route("/health", health), Route("/livez", livez), Route("/plan", plan), Route("/metrics", metrics)]


def _health(state: ServerState) -> tuple[int, dict[str, Any]]:
    status = state.engine.status
    if state.inflight.draining or status.phase == "stopped":
        return 503, {"status": "stopping"}
    if status.phase == "failed":
        return 503, {"status": "failed", "error": status.error}
    if status.phase == "restarting":
        return 503, {"status": "restarting", "progress": status.progress, "error": status.error}
    if status.phase == "loading":
        return 503, {"status": "loading", "progress": status.progress}
    return 200, {"status": "ok"}


def metrics_text(stats: Stats, *, ready: bool) -> str:
    """Return the engine's counters for Prometheus."""
    lines = []
    rows = [(name, kind, text, getattr(stats, field)) for name, kind, text, field in _METRICS]
    for name, kind, text, value in [*rows, ("ready", "gauge", "1 when requests are served.", int(ready))]:
        lines += [f"# HELP ggufdeploy_{name} {text}", f"# TYPE ggufdeploy_{name} {kind}", f"ggufdeploy_{name} {value}"]
    return "\n".join(lines) + "\n"
