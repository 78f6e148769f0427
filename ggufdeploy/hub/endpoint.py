"""Which Hub is asked, and whether it may see the token."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from ggufdeploy.errors import BadValue
from ggufdeploy.settings import DEFAULT_ENDPOINT, Settings

_HUB_HOSTS = frozenset({"huggingface.co", "hf.co"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Endpoint:
    """HF_ENDPOINT, checked. is_hub: the Hub itself, not a mirror; gets_token: it may see the user's token."""

    url: str
    is_hub: bool
    gets_token: bool

    @staticmethod
    def of(settings: Settings) -> Endpoint:
        """Return the endpoint that the settings name.

        The token goes to https://huggingface.co and hf.co, and to endpoints that GGUFDEPLOY_TRUSTED_ENDPOINTS names,
        if they are encrypted or on this machine. Raises BadValue for a URL that is not https: answers of plain http can
        be changed on the way, also the checksums in them. One on this machine, or trusted by name, is allowed.
        """
        url = settings.hf_endpoint
        parts = urlsplit(url)
        if parts.hostname is None or parts.scheme not in ("https", "http") or parts.username or parts.query:
            raise BadValue("HF_ENDPOINT", _shape(url), hint=f"write it like {DEFAULT_ENDPOINT}, or unset it")
        private = parts.scheme == "https" or parts.hostname in _LOOPBACK
        named = url in settings.trusted_endpoints
        if not private and not named:
            message = f"HF_ENDPOINT: {url} is not encrypted: what it says can be changed on the way"
            hint = f"use https, or set GGUFDEPLOY_TRUSTED_ENDPOINTS={url} if that network is yours"
            raise BadValue("HF_ENDPOINT", message, hint=hint)
        is_hub = parts.scheme == "https" and parts.netloc in _HUB_HOSTS
        return Endpoint(url, is_hub, is_hub or (private and named))

    def __str__(self) -> str:
        """Return what a message calls it."""
        return self.url if self.is_hub else f"the mirror {self.url}"


def _shape(url: str) -> str:
    """Say what is wrong with the URL, without a password that it may hold."""
    if "@" in url:
        return "HF_ENDPOINT: a user name or password in it is not supported"
    return f"HF_ENDPOINT: {url!r} is not an https URL"
