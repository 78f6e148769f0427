"""Every error a user can cause or meet, as one tree.

    GgufdeployError
    ├── BadValue            a flag, environment variable or JSON value is wrong
    │   └── BadConfig       a profile or settings file is wrong
    ├── NotFound            model, quantization, file, GPU or profile does not exist
    │   └── Ambiguous       the name means several things
    ├── AccessDenied        the Hub wants a token or an accepted licence
    ├── DoesNotFit          no plan satisfies the request on this machine
    ├── Unreachable         network, mirror or node cannot be reached
    │   ├── Offline         offline mode is on and the file is not cached
    │   ├── Blocked         something on the way refuses or answers in its place
    │   └── RateLimited     the Hub asks us to wait
    ├── NoDiskSpace
    ├── BadGguf             the file is not a GGUF file, or a damaged one
    │   └── HeaderTruncated more bytes are needed
    ├── ChecksumMismatch
    ├── PortBusy
    ├── EngineError         llama.cpp refused, or its process died
    │   ├── NoDryRun        this build of llama.cpp cannot measure without loading
    │   │   └── DryRunDied  it crashed, hung, or wanted too much memory
    │   ├── LoadFailed
    │   └── EngineCrashed
    └── RequestError        one inference request is wrong or cannot be served
        ├── BadRequest
        ├── ContextOverflow
        ├── ModelNotServed
        └── Overloaded

The classes carry data; `cli/errors.py` turns them into exit codes and `server/errors.py` into HTTP.
Anything that is not a GgufdeployError is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice closest to `word`, ignoring case, or None when nothing is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


_SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), ""),  # user and password in a URL
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), r"\1"),  # a query: a CDN's carries a signature
    (re.compile(r"\b(Bearer|Basic) [\w.~+/=-]+", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}"), "hf_***"),  # the Hub's tokens have 34 letters and digits behind hf_
)


def without_secrets(text: str) -> str:
    """Return `text` without tokens, passwords in URLs and signed queries, whatever library wrote it."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class GgufdeployError(Exception):
    """Base of all errors shown to a user.

    message: one sentence with the numbers. hint: what to do next, usually a command; None if nothing helps.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadValue(GgufdeployError):
    """A value given by the user is wrong. name: the flag, variable or field."""

    def __init__(self, name: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.name = name


class BadConfig(BadValue):
    """A profile, settings file or environment variable is wrong. name: the key."""


class NotFound(GgufdeployError):
    """kind: "model", "quantization", "GPU", "profile" or "file"; name: what was asked for."""

    def __init__(self, kind: str, name: str, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or f"{kind} not found: {name}", hint=hint)
        self.kind = kind
        self.name = name


class Ambiguous(NotFound):
    """The name means several things; choices: the names to pick from."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, hint: str | None = None) -> None:
        self.choices = tuple(choices)
        super().__init__(
            kind, name, f"{kind} {name!r} could mean {len(self.choices)} things: {', '.join(self.choices)}", hint=hint
        )


class AccessDenied(GgufdeployError):
    """The Hub refused. gated: the licence must be accepted; otherwise a token is missing or lacks access."""

    def __init__(self, repo: str, message: str, *, gated: bool, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.repo = repo
        self.gated = gated


class DoesNotFit(GgufdeployError):
    """Nothing satisfies the request. needed_bytes and free_bytes are None when no single pair says it."""

    def __init__(
        self, message: str, *, needed_bytes: int | None = None, free_bytes: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class Unreachable(GgufdeployError):
    """endpoint: host or URL (without credentials) that did not answer."""

    def __init__(self, endpoint: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.endpoint = endpoint


class Offline(Unreachable):
    """Offline mode is on and what was asked for is not cached."""


class Blocked(Unreachable):
    """Something on the way refuses, or answers in the Hub's place; trying again will not help.

    A proxy that wants a login, a certificate nobody here trusts, a network's login page, a mirror that is no Hub.
    """


class RateLimited(Unreachable):
    """retry_after_s: seconds to wait, or None when the server did not say."""

    def __init__(self, endpoint: str, message: str, *, retry_after_s: float | None, hint: str | None = None) -> None:
        super().__init__(endpoint, message, hint=hint)
        self.retry_after_s = retry_after_s


class NoDiskSpace(GgufdeployError):
    """path: where; needed_bytes: still to be written; free_bytes: what the file system has."""

    def __init__(
        self, path: str, message: str, *, needed_bytes: int, free_bytes: int | None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class BadGguf(GgufdeployError):
    """source: file or URL; offset_bytes: where parsing stopped; reason: what is wrong there."""

    def __init__(self, source: str, offset_bytes: int, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{source} is not a usable GGUF file: {reason} (at byte {offset_bytes:,})", hint=hint)
        self.source = source
        self.offset_bytes = offset_bytes
        self.reason = reason


class HeaderTruncated(BadGguf):
    """The stream ended inside the header: the file is cut, or more of it must be fetched."""


class ChecksumMismatch(GgufdeployError):
    """The bytes received are not the bytes the Hub or the profile names (sha256, hex)."""

    def __init__(self, path: str, expected: str, actual: str, *, hint: str | None = None) -> None:
        hint = hint or "run the same command again; if that repeats, a proxy or mirror on the way changes the file"
        super().__init__(f"{path} is damaged: sha256 {actual[:12]}… instead of {expected[:12]}…", hint=hint)
        self.path = path
        self.expected = expected
        self.actual = actual


class PortBusy(GgufdeployError):
    """host and port cannot be bound."""

    def __init__(self, host: str, port: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.port = port


class EngineError(GgufdeployError):
    """llama.cpp refused a call. log: its last lines, oldest first."""

    def __init__(self, message: str, *, log: Iterable[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.log = tuple(log)


class NoDryRun(EngineError):
    """This build of llama.cpp cannot say how much memory a configuration takes without loading it."""


class DryRunDied(NoDryRun):
    """The process of a dry run crashed, hung or wanted too much memory; formulas can stand in for its answer."""


class LoadFailed(EngineError):
    """The model did not load. out_of_memory: a device refused an allocation."""

    def __init__(
        self, message: str, *, out_of_memory: bool = False, log: Iterable[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, log=log, hint=hint)
        self.out_of_memory = out_of_memory


class EngineCrashed(EngineError):
    """The engine's process ended. exit_code: negative is a signal number, None when unknown.

    out_of_memory: a device or the system refused memory.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None,
        out_of_memory: bool = False,
        log: Iterable[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, log=log, hint=hint)
        self.exit_code = exit_code
        self.out_of_memory = out_of_memory


class RequestError(GgufdeployError):
    """One inference request failed; the server goes on."""


class BadRequest(RequestError):
    """param: the JSON field, dotted ("messages.0.role"), or None; code: machine-readable reason or None."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextOverflow(RequestError):
    """The prompt alone is longer than one request may be."""

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"This model's context is {context_tokens:,} tokens here; the prompt has {prompt_tokens:,} tokens."
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class ModelNotServed(RequestError):
    """The `model` field names something this server does not serve."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model!r} does not exist or is not served here.")
        self.model = model


class Overloaded(RequestError):
    """Try again in retry_after_s seconds: loading, queue full, or shutting down."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
