"""Who may talk to the server: the address it binds, the Host and Origin headers, the API key.

Pure decisions; `gate.py` applies them. Without the Host check a web page can reach a server on 127.0.0.1 by rebinding
its own name to it (CVE-2024-28224); without the Origin check it can post to it.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from ggufdeploy.errors import BadValue


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or address, without port) is this machine by its spelling alone; nothing is resolved."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind_address(host: str, api_key: str | None) -> None:
    """Raise BadValue when other machines could reach the server and no API key protects it."""
    if is_loopback(host) or api_key:
        return
    raise BadValue(
        "--host",
        f"--host {host or '(all addresses)'} lets other machines use the model, and no API key is set",
        hint="give a key with --api-key-file or GGUFDEPLOY_API_KEY, or keep --host 127.0.0.1",
    )


def hostname_of(host_header: str) -> str:
    """Return the Host header without its port, lower case: "[::1]:8000" gives "[::1]"."""
    host = host_header.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def host_allowed(host_header: str, allowed: Collection[str]) -> bool:
    """Whether the Host header names this machine or one of `allowed` (names without port)."""
    name = hostname_of(host_header)
    return is_loopback(name) or name in allowed


def origin_allowed(origin: str, allowed: Collection[str]) -> bool:
    """Whether a page of `origin` may call: loopback pages and those named. "null" (files, sandboxes) may not."""
    if origin in allowed:
        return True
    try:
        host = urlsplit(origin).hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)


def presented_key(authorization: str | None, x_api_key: str | None) -> str | None:
    """Return the key in `Authorization: Bearer KEY`, else the one in X-Api-Key, else None."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return x_api_key


def key_matches(presented: str | None, expected: str) -> bool:
    """Compare in time that does not depend on where the keys differ. presented: as latin-1, how headers are read."""
    return presented is not None and hmac.compare_digest(presented.encode("latin-1"), expected.encode())
