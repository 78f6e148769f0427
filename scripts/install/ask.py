"""Ask a running ggufdeploy server one question over HTTP and print the answer; install.sh --demo runs it.

`ask.py READY_FILE QUESTION`: READY_FILE is what `ggufdeploy run --ready-file` wrote, JSON with the key `url`.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

_TIMEOUT_S = 120


def main(arguments: list[str]) -> int:
    """Ask and print; returns the exit status."""
    ready_file, question = arguments
    url = json.loads(Path(ready_file).read_text(encoding="utf-8"))["url"].rstrip("/").removesuffix("/v1")
    model = _call(f"{url}/v1/models")["data"][0]["id"]
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": 48, "temperature": 0}
    answer = _call(f"{url}/v1/chat/completions", body)
    sys.stdout.write(answer["choices"][0]["message"]["content"].strip() + "\n")
    return 0


def _call(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST `body` as JSON; never through a proxy, since the server is on this machine."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=_TIMEOUT_S) as response:
        decoded: dict[str, Any] = json.load(response)
        return decoded


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
