"""The application: every route under /v1 and without it, behind the gate, with errors as JSON."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Router

from ggufdeploy.engine.service import EngineService
from ggufdeploy.errors import GgufdeployError
from ggufdeploy.server.chat import chat_routes
from ggufdeploy.server.completions import completion_routes
from ggufdeploy.server.errors import ErrorHandlers
from ggufdeploy.server.gate import Gate
from ggufdeploy.server.health import health_routes
from ggufdeploy.server.metrics import metrics_routes
from ggufdeploy.server.models import model_routes
from ggufdeploy.server.openapi import openapi_routes
from ggufdeploy.server.state import Inflight, ServerConfig, ServerState, Shown
from ggufdeploy.server.tokenize import tokenize_routes


def build_app(engine: EngineService, config: ServerConfig) -> Starlette:
    """Return the ASGI application. The engine may still be loading: /health says so and inference answers 503.

    `app.state.inflight` is the Inflight that `run.Server` drains when it stops, `app.state.shown` what /plan shows.
    """
    state = ServerState(engine, config, Inflight(), Shown(config.model_id, config.plan_json))
    routes = [
        *chat_routes(state),
        *completion_routes(state),
        *model_routes(state),
        *tokenize_routes(state),
        *health_routes(state),
        *metrics_routes(state),
    ]
    routes += openapi_routes(routes, needs_key=config.api_key is not None)
    handlers = ErrorHandlers(state)
    app = Starlette(
        routes=[Mount("/v1", app=Router(routes, redirect_slashes=False)), *routes],
        middleware=[Middleware(Gate, config=config)],
        exception_handlers={
            HTTPException: handlers.http,
            GgufdeployError: handlers.known,
            Exception: handlers.bug,
        },
    )
    app.router.redirect_slashes = False
    app.state.inflight, app.state.shown = state.inflight, state.shown
    return app
