"""HTTP with a limit on every wait, where every failure is one of our errors. Imported lazily: it costs 0.3 s."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
from huggingface_hub import errors as hub_library
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    set_client_factory,
)
from huggingface_hub.utils import logging as hub_logging

from ggufdeploy.errors import (
    AccessDenied,
    BadValue,
    Blocked,
    GgufdeployError,
    NotFound,
    RateLimited,
    Unreachable,
    without_secrets,
)
from ggufdeploy.hub.endpoint import Endpoint
from ggufdeploy.settings import DEFAULT_ENDPOINT

__all__ = ["BoundedClient", "build_hf_headers", "get_session", "hf_raise_for_status", "install"]

# The library's own client waits without limit, and several of its calls say so per request.
TIMEOUTS_S = {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0}
ANSWER_S = 120.0
"""For one whole answer that is not a file: a server that drips a byte at a time never reaches the read limit."""
_ANSWER_BYTES = 256 << 20  # a listing of 1,000 files has under 1 MB
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_OFFLINE_HINT = "check the network and HTTPS_PROXY; with HF_HUB_OFFLINE=1 models already downloaded run without it"
_PROXY_HINT = "put user and password into HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT), or list the host in NO_PROXY"
_CERTIFICATE_HINT = "if a proxy of your company reads TLS, point SSL_CERT_FILE at its certificate; else do not trust it"
_PORTAL_HINT = "open it in a browser: the network may want a login first, or HF_ENDPOINT is wrong"

_GRANT: contextvars.ContextVar[tuple[httpx.URL, str] | None] = contextvars.ContextVar("grant", default=None)


@contextlib.contextmanager
def token_for(endpoint: str, token: str | None) -> Iterator[None]:
    """Send the token along with this thread's requests to the endpoint's own origin, and to no other.

    The library is given none: it would take it along to wherever a listing's next page is said to be.
    """
    before = _GRANT.set((httpx.URL(endpoint), token) if token else None)
    try:
        yield
    finally:
        _GRANT.reset(before)


class BoundedClient(httpx.Client):
    """A client that never waits without limit and turns what may pass into Unreachable or RateLimited.

    Raising those here also keeps huggingface_hub from its own retries (23 s of silence when nothing listens).
    """

    def __init__(self) -> None:
        super().__init__(follow_redirects=True, timeout=None)  # send() sets the limits, also against "no limit"

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send with limits, and with the token where `token_for` grants it.

        Raises Unreachable (connection, time, 408, 5xx, an expired link), RateLimited (429), Blocked.
        """
        asked = request.extensions.get("timeout", {})
        limits = {key: limit if asked.get(key) is None else asked[key] for key, limit in TIMEOUTS_S.items()}
        request.extensions = {**request.extensions, "timeout": limits}
        grant = _GRANT.get()
        if grant is not None and grant[0].origin == request.url.origin:
            request.headers["Authorization"] = f"Bearer {grant[1]}"
        with transport_errors(request.url.host):
            response = super().send(request, **{**options, "stream": True})
        refusal = _transient_refusal(response)
        if refusal is not None:
            response.close()
            raise refusal
        if not options.get("stream"):
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _Whole(response.stream, response.url.host)
            with transport_errors(response.url.host):
                response.read()
        return response


class _Whole(httpx.SyncByteStream):
    """A body that must be over within ANSWER_S, and below a size."""

    def __init__(self, stream: httpx.SyncByteStream, host: str) -> None:
        self._stream, self._host = stream, host

    def __iter__(self) -> Iterator[bytes]:
        until, n_bytes = time.monotonic() + ANSWER_S, 0
        for chunk in self._stream:
            n_bytes += len(chunk)
            if time.monotonic() > until or n_bytes > _ANSWER_BYTES:
                raise Unreachable(self._host, f"{self._host} did not end its answer in time", hint=_OFFLINE_HINT)
            yield chunk

    def close(self) -> None:
        self._stream.close()


def install() -> None:
    """Make huggingface_hub use BoundedClient in this process, and keep its warnings off stderr."""
    set_client_factory(BoundedClient)
    hub_logging.set_verbosity(logging.ERROR)


@contextlib.contextmanager
def transport_errors(host: str) -> Iterator[None]:
    """Turn a failed connection, a stall or a cut body into Unreachable, and what will not pass into Blocked."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise Unreachable(host, f"{host} did not answer in time", hint=_OFFLINE_HINT) from error
    except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise _explain(error, host) from error


def _explain(error: Exception, host: str) -> Unreachable:
    detail = without_secrets(str(error) or type(error).__name__)[:300]
    causes = list(_causes(error))
    if isinstance(error, httpx.ProxyError) and not re.match(r"5\d\d\b", detail):
        return Blocked(host, f"the proxy does not let us reach {host}: {detail}", hint=_PROXY_HINT)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        message = f"{host} shows a certificate that this machine does not trust: somebody may be reading along"
        return Blocked(host, message, hint=_CERTIFICATE_HINT)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        message = f"{host} cannot be reached: its name, or its proxy's, cannot be looked up ({detail})"
        return Unreachable(host, message, hint=_OFFLINE_HINT)
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        return Unreachable(host, f"the connection to {host} broke off: {detail}", hint=_OFFLINE_HINT)
    return Unreachable(host, f"{host} cannot be reached: {detail}", hint=_OFFLINE_HINT)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _transient_refusal(response: httpx.Response) -> Unreachable | None:
    host, status = response.url.host, response.status_code
    if status == 429:
        wait_s = _asked_wait_s(response.headers)
        said = f" for {wait_s:.0f} s" if wait_s is not None else ""
        hint = "try again later; requests with a token may be more frequent: hf auth login"
        return RateLimited(host, f"{host} asks to wait{said}: too many requests", retry_after_s=wait_s, hint=hint)
    if status == 407:
        return Blocked(host, f"the proxy does not let us reach {host}: it wants a login (407)", hint=_PROXY_HINT)
    # A CDN's link is signed for an hour; asking the Hub again gives a new one.
    expired = status == 403 and response.history and "X-Error-Code" not in response.headers
    if status in _TRANSIENT or expired:
        return Unreachable(host, f"{host} answers {status} {response.reason_phrase}", hint="try again later")
    return None


def _asked_wait_s(headers: httpx.Headers) -> float | None:
    """Return what Retry-After or the Hub's `RateLimit: "api";r=0;t=55` asks for, None when neither says."""
    if re.fullmatch(r"\d{1,6}", headers.get("Retry-After", "")):
        return float(headers["Retry-After"])
    match = re.search(r";\s*t\s*=\s*(\d{1,6})", headers.get("RateLimit", ""))
    return float(match[1]) if match else None


@contextlib.contextmanager
def library_errors(repo: str, *, endpoint: Endpoint, token_hint: str) -> Iterator[None]:
    """Turn huggingface_hub's errors about a repository into ours. token_hint: what to do about a missing token."""
    try:
        yield
    except hub_library.HFValidationError as error:
        raise BadValue("MODEL", f"{repo!r} is not a repository name", hint="write owner/repository") from error
    except (hub_library.HfHubHTTPError, hub_library.FileMetadataError) as error:
        raise _translate(error, repo, endpoint, token_hint) from error
    except (ValueError, KeyError, TypeError) as error:  # a login page's HTML, or JSON that says something else
        message = f"{endpoint} does not answer like a Hub: {type(error).__name__}: {str(error)[:100]}"
        raise Blocked(endpoint.url, message, hint=_PORTAL_HINT) from error


def not_a_file(host: str, path: str) -> Blocked:
    """Return the error for a web page in place of a file."""
    return Blocked(host, f"{host} answers with a web page instead of {path}", hint=_PORTAL_HINT)


def _translate(error: Exception, repo: str, endpoint: Endpoint, token_hint: str) -> GgufdeployError:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, hub_library.GatedRepoError):
        message = f"{repo} is gated: its conditions must be accepted first"
        return AccessDenied(repo, message, gated=True, hint=f"accept them on {endpoint.url}/{repo}, then {token_hint}")
    if isinstance(error, hub_library.RevisionNotFoundError):
        return NotFound("model", repo, f"{repo} has no such branch, tag or commit", hint="leave it out to use main")
    of_a_file = response is not None and "/resolve/" in response.request.url.path
    if isinstance(error, hub_library.EntryNotFoundError) or (status == 404 and of_a_file):
        hint = f"ggufdeploy show {repo}" + ("" if endpoint.is_hub else f"; {_ask_the_hub(repo)}")
        return NotFound("file", repo, f"{endpoint} has {repo}, but not that file of it", hint=hint)
    if isinstance(error, hub_library.RepositoryNotFoundError) or status == 404:
        if not endpoint.is_hub:
            hint = f"{_ask_the_hub(repo)}; if it is private on the mirror, {token_hint}"
            return NotFound("model", repo, f"{endpoint} has no repository {repo}", hint=hint)
        message = f"{endpoint} has no repository {repo}, or it is private"
        return NotFound("model", repo, message, hint=f"check the spelling; if it is private, {token_hint}")
    if status in (401, 403):
        said = getattr(response, "headers", {}).get("X-Error-Message", "")[:200]
        message = f"{endpoint} refuses access to {repo}" + (f": {said}" if said.isprintable() and said else "")
        return AccessDenied(repo, message, gated=False, hint=token_hint[0].upper() + token_hint[1:])
    return Unreachable(endpoint.url, f"{endpoint} answers {status or 'something that is not a Hub'} for {repo}")


def _ask_the_hub(repo: str) -> str:
    return f"to ask the Hub itself: HF_ENDPOINT={DEFAULT_ENDPOINT} ggufdeploy show {repo}"
