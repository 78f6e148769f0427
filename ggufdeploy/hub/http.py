"""HTTP with a limit on every wait, where every failure is one of our errors. Imported lazily: it costs 0.3 s."""

from __future__ import annotations

import contextlib
import logging
import re
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

from ggufdeploy.errors import AccessDenied, BadValue, GgufdeployError, NotFound, RateLimited, Unreachable

__all__ = ["BoundedClient", "build_hf_headers", "get_session", "hf_raise_for_status", "install"]

# The library's own client waits without limit, and several of its calls say so per request.
TIMEOUTS_S = {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0}
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_OFFLINE_HINT = "check the network and HTTPS_PROXY; with HF_HUB_OFFLINE=1 models already downloaded run without it"


class BoundedClient(httpx.Client):
    """A client that never waits without limit and turns what may pass into Unreachable or RateLimited.

    Raising those here also keeps huggingface_hub from its own retries (23 s of silence when nothing listens).
    """

    def __init__(self) -> None:
        super().__init__(follow_redirects=True, timeout=None)  # send() sets the limits, also against "no limit"

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send with limits. Raises Unreachable (connection, time, 408, 5xx, an expired link), RateLimited (429)."""
        asked = request.extensions.get("timeout", {})
        limits = {key: limit if asked.get(key) is None else asked[key] for key, limit in TIMEOUTS_S.items()}
        request.extensions = {**request.extensions, "timeout": limits}
        with transport_errors(request.url.host):
            response = super().send(request, **options)
        refusal = _transient_refusal(response)
        if refusal is not None:
            response.close()
            raise refusal
        return response


def install() -> None:
    """Make huggingface_hub use BoundedClient in this process, and keep its warnings off stderr."""
    set_client_factory(BoundedClient)
    hub_logging.set_verbosity(logging.ERROR)


@contextlib.contextmanager
def transport_errors(host: str) -> Iterator[None]:
    """Turn a failed connection, a stall or a cut body into Unreachable."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise Unreachable(host, f"{host} did not answer in time", hint=_OFFLINE_HINT) from error
    except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        detail = str(error) or type(error).__name__
        hint = _OFFLINE_HINT
        if "CERTIFICATE_VERIFY_FAILED" in detail:
            hint = "point SSL_CERT_FILE at your company's certificates"
        raise Unreachable(host, f"{host} cannot be reached: {_without_queries(detail)}", hint=hint) from error


def _without_queries(text: str) -> str:
    """Leave out the query of any URL: a CDN's carries a signature."""
    return re.sub(r"\?\S+", "", text)[:300]


def _transient_refusal(response: httpx.Response) -> Unreachable | None:
    host, status = response.url.host, response.status_code
    if status == 429:
        wait_s = _asked_wait_s(response.headers)
        said = f" for {wait_s:.0f} s" if wait_s is not None else ""
        hint = "try again later; requests with a token may be more frequent: hf auth login"
        return RateLimited(host, f"{host} asks to wait{said}: too many requests", retry_after_s=wait_s, hint=hint)
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
def library_errors(repo: str, *, endpoint: str, token_hint: str) -> Iterator[None]:
    """Turn huggingface_hub's errors about a repository into ours. token_hint: what to do about a missing token."""
    try:
        yield
    except hub_library.HFValidationError as error:
        raise BadValue("MODEL", f"{repo!r} is not a repository name", hint="write owner/repository") from error
    except (hub_library.HfHubHTTPError, hub_library.FileMetadataError) as error:
        raise _translate(error, repo, endpoint, token_hint) from error
    except ValueError as error:  # JSONDecodeError: a captive portal's HTML, for example
        raise Unreachable(endpoint, f"{endpoint} does not answer like a Hub: {str(error)[:100]}") from error


def _translate(error: Exception, repo: str, endpoint: str, token_hint: str) -> GgufdeployError:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, hub_library.GatedRepoError):
        message = f"{repo} is gated: its conditions must be accepted first"
        return AccessDenied(repo, message, gated=True, hint=f"accept them on {endpoint}/{repo}, then {token_hint}")
    if isinstance(error, hub_library.RepositoryNotFoundError):
        message = f"{endpoint} has no repository {repo}, or it is private"
        return NotFound("model", repo, message, hint=f"check the spelling; if it is private, {token_hint}")
    if isinstance(error, hub_library.RevisionNotFoundError):
        return NotFound("model", repo, f"{repo} has no such branch, tag or commit", hint="leave it out to use main")
    if isinstance(error, hub_library.EntryNotFoundError) or status == 404:
        return NotFound("file", repo, f"{repo} does not have that file", hint=f"ggufdeploy show {repo}")
    if status in (401, 403):
        said = getattr(response, "headers", {}).get("X-Error-Message", "")[:200]
        message = f"{endpoint} refuses access to {repo}" + (f": {said}" if said.isprintable() and said else "")
        return AccessDenied(repo, message, gated=False, hint=token_hint[0].upper() + token_hint[1:])
    return Unreachable(endpoint, f"{endpoint} answers {status or 'something that is not a Hub'} for {repo}")
