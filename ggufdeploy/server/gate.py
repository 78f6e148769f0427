"""The first thing every request meets: Host, Origin, CORS preflight, API key. Also names the request.

A plain ASGI middleware, so that streams pass through untouched.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ggufdeploy.server.auth import host_allowed, is_loopback, key_matches, origin_allowed, presented_key
from ggufdeploy.server.errors import http_error
from ggufdeploy.server.state import ServerConfig

PUBLIC_PATHS = frozenset({"/health", "/livez", "/v1/health", "/v1/livez"})
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Gate:
    """Refuse who may not talk to us; strip trailing slashes; echo X-Request-Id or make one."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._config = config
        self._hosts = frozenset(host.lower() for host in config.allowed_hosts)
        self._check_host = is_loopback(config.host) or bool(self._hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"].rstrip("/") or "/"
        send = _with_headers(send, self._extra_headers(headers))
        answer = self._refusal(scope["method"], path, headers)
        await (answer or self._app)({**scope, "path": path}, receive, send)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        """Return the answer that ends the request here, or None when it may go on."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._check_host and not host_allowed(host, self._hosts):
            return http_error(403, f"The Host header {host!r} is not one this server answers to.")
        if origin is not None and not origin_allowed(origin, self._config.allowed_origins):
            return http_error(403, f"Pages of the origin {origin!r} may not use this server.")
        if method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS, POST"})
        key = self._config.api_key
        if key and path not in PUBLIC_PATHS and not _has_key(headers, key):
            message = "The API key is missing or wrong: send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
            return http_error(401, message, {"WWW-Authenticate": "Bearer"})
        return None

    def _extra_headers(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the request's name and, for the origins configured, the CORS headers (WHATWG Fetch, section 3.3)."""
        wanted = headers.get("x-request-id", "")
        name = wanted if _REQUEST_ID.fullmatch(wanted) else f"req-{secrets.token_hex(12)}"
        extra = [(b"x-request-id", name.encode())]
        origin = headers.get("origin")
        if origin is not None and origin in self._config.allowed_origins:
            extra += [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin")]
            if "access-control-request-method" in headers:
                requested = headers.get("access-control-request-headers", "Authorization, Content-Type")
                extra += [
                    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                    (b"access-control-allow-headers", requested.encode("latin-1")),
                    (b"access-control-max-age", b"600"),
                ]
        return extra


def _has_key(headers: Headers, expected: str) -> bool:
    return key_matches(presented_key(headers.get("authorization"), headers.get("x-api-key")), expected)


def _with_headers(send: Send, extra: list[tuple[bytes, bytes]]) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return wrapped
