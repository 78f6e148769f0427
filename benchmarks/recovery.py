"""Kill the engine of a running server again and again under load, and print the table of docs/benchmarks.md.

    python -m benchmarks.recovery [--kills 10] [--streams 8] [--model smollm2-135m]

A server started with `ggufdeploy run` streams to as many clients as it has slots; each begins a new answer when one
ends, however it ended. `kill -9` hits the engine's process at a random moment. Times are from the kill. At the end the
process that answers HTTP must be the one that was started.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_START_S = 300.0
_RECOVER_S = 120.0
_ANSWER_TOKENS = 400


@dataclass
class Clients:
    """What the streams met. Locked by `lock`. told: moments at which a stream got its error event."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    told: list[float] = field(default_factory=list)
    n_tokens: int = 0
    n_finished: int = 0
    n_refused: int = 0
    n_cut: int = 0


@dataclass(frozen=True)
class Kill:
    """Seconds from the kill. told: streams that got an error event, and when the last one did."""

    told: int
    told_s: float
    refused_s: float
    healthy_s: float
    token_s: float


def stream(port: int, clients: Clients, over: threading.Event) -> None:
    """Ask for one long answer after the other until it is over."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": "Tell me a long story about the sea."}],
            "max_tokens": _ANSWER_TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
    )
    while not over.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_RECOVER_S)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                with clients.lock:
                    clients.n_refused += 1
                time.sleep(0.1)
                continue
            _read(response, clients, over)
        except (OSError, http.client.HTTPException):
            with clients.lock:
                clients.n_cut += 1
        finally:
            connection.close()


def _read(response: http.client.HTTPResponse, clients: Clients, over: threading.Event) -> None:
    """Read one stream to its end and note how it ended."""
    for line in response:
        if over.is_set():
            return
        if line.startswith(b'data: {"error"'):
            with clients.lock:
                clients.told.append(time.monotonic())
            return
        if line.startswith(b"data: [DONE]"):
            with clients.lock:
                clients.n_finished += 1
            return
        with clients.lock:
            clients.n_tokens += line.startswith(b"data:")
    with clients.lock:
        clients.n_cut += not over.is_set()


def get(port: int, path: str, body: str | None = None) -> int:
    """Return the status of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_RECOVER_S)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def kill_once(server: subprocess.Popen[bytes], port: int, clients: Clients) -> Kill:
    """Kill the engine and wait until a new request gets a token."""
    worker = next(
        child for child in psutil.Process(server.pid).children() if "ggufdeploy.engine.worker" in child.cmdline()
    )
    with clients.lock:
        clients.told.clear()
    killed = time.monotonic()
    worker.kill()
    refused_s = _until(port, "/health", 503, killed)
    healthy_s = _until(port, "/health", 200, killed)
    token_s = _until(port, "/v1/completions", 200, killed, json.dumps({"prompt": "one, two, three,", "max_tokens": 1}))
    with clients.lock:
        told = list(clients.told)
    return Kill(len(told), max(told) - killed if told else 0.0, refused_s, healthy_s, token_s)


def _until(port: int, path: str, wanted: int, killed: float, body: str | None = None) -> float:
    """Ask until the status is `wanted`; return the seconds since the kill."""
    while (status := get(port, path, body)) != wanted:
        if time.monotonic() - killed > _RECOVER_S:
            raise RuntimeError(f"{path} still answers {status} after {_RECOVER_S} s")
        time.sleep(0.002)
    return time.monotonic() - killed


@contextlib.contextmanager
def deployed(model: str, slots: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the server; yield it and its port."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        options = ["--ctx", "8192", "--slots", str(slots), "--port", "0", "--ready-file", str(ready)]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "ggufdeploy", "run", model, *options], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + _START_S
            while not ready.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((Path(folder) / "log").read_text())
                time.sleep(0.1)
            yield server, int(json.loads(ready.read_text())["url"].rpartition(":")[2])
        finally:
            server.terminate()
            server.wait(60)


def measure(model: str, kills: int, streams: int) -> tuple[list[Kill], Clients]:
    """Run the whole experiment. Raises RuntimeError when the server does not serve again."""
    clients, over = Clients(), threading.Event()
    results = []
    with deployed(model, streams) as (server, port):
        threads = [threading.Thread(target=stream, args=(port, clients, over), daemon=True) for _ in range(streams)]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            time.sleep(random.uniform(2.0, 4.0))
            results.append(kill_once(server, port, clients))
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        over.set()
        for thread in threads:
            thread.join(_RECOVER_S)
    return results, clients


def table(results: Sequence[Kill], clients: Clients, streams: int) -> str:
    """Return the Markdown table and the sentence below it."""
    lines = [
        "| kill | streams told | last one told | /health 503 | /health 200 | a new request's token |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for number, kill in enumerate(results, 1):
        lines.append(
            f"| {number} | {kill.told} of {streams} | {kill.told_s * 1000:.0f} ms | {kill.refused_s * 1000:.0f} ms "
            f"| {kill.healthy_s:.2f} s | {kill.token_s:.2f} s |"
        )
    middle = statistics.median(kill.token_s for kill in results)
    worst = max(kill.token_s for kill in results)
    lines += [
        "",
        f"Median {middle:.2f} s, worst {worst:.2f} s from `kill -9` to a new request's token. The process that answers "
        f"HTTP was the same throughout. The streams got {clients.n_tokens:,} chunks and {clients.n_finished} whole "
        f"answers; {clients.n_cut} connections were cut without an error event.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    results, clients = measure(options.model, options.kills, options.streams)
    print(table(results, clients, options.streams))


if __name__ == "__main__":
    main()
