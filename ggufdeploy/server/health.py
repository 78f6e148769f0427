"""GET /health, /livez and /plan: what operators and probes ask."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggufdeploy.server.errors import json_response
from ggufdeploy.server.state import ServerState


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

    return [Route("/health", health), Route("/livez", livez), Route("/plan", plan)]


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
