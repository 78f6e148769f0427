"""What a running server says of itself, for `ps`."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass

from ggufdeploy.deploy.instances import Instance

_TIMEOUT_S = 2.0
_GAUGE = re.compile(r"^ggufdeploy_requests_(running|waiting) (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Live:
    """Requests now. None: the server did not say."""

    running: int | None = None
    waiting: int | None = None


def ask(instance: Instance, api_key: str | None) -> Live:
    """Ask the instance's /metrics; a server that does not answer, or wants another key, leaves it unknown."""
    if instance.url is None:
        return Live()
    request = urllib.request.Request(f"{instance.url}/metrics")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own server is behind no proxy
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            text = response.read().decode("utf-8", "replace")
    except OSError:  # refused, timed out, or an HTTP status that is an error
        return Live()
    found = {name: int(value) for name, value in _GAUGE.findall(text)}
    return Live(found.get("running"), found.get("waiting"))
