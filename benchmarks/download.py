"""Download one file with ggufdeploy, `hf download` and curl, side by side, and print the table of docs/benchmarks.md.

    python -m benchmarks.download [--size 512MB] [--rounds 5] [--dir DIR]

Each tool fetches the same file from the same server, a stand-in Hub in a process of its own, into an empty folder; the
tools take turns within each round, so that noise of the machine meets all of them. Times are of whole commands.
curl neither checks what came nor waits for the disk; "curl, sync, sha256sum" does what ggufdeploy does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufdeploy.units import format_file_size, parse_bytes

ROOT = Path(__file__).parents[1]
REPO, NAME = "acme/bench-GGUF", "bench.Q8_0.gguf"


@dataclass(frozen=True)
class Link:
    """A simulated network. rate, latency: options of the stand-in; size_bytes: of the file."""

    title: str
    options: tuple[str, ...]
    size_bytes: int


def commands(url: str, out: Path) -> Mapping[str, Sequence[Sequence[str]]]:
    """Return each tool's command lines, run one after the other."""
    python = sys.executable
    fetch = ["curl", "-sSfL", "-o", str(out / NAME), f"{url}/{REPO}/resolve/main/{NAME}"]
    return {
        "ggufdeploy pull": [[python, "-m", "ggufdeploy", "pull", f"{REPO}:Q8_0", "-q"]],
        "hf download": [[str(Path(python).with_name("hf")), "download", REPO, NAME, "--quiet"]],
        "curl": [fetch],
        "curl, sync, sha256sum": [fetch, ["sync", str(out / NAME)], ["sha256sum", str(out / NAME)]],
    }


@contextlib.contextmanager
def served(folder: Path, options: Sequence[str]) -> Iterator[str]:
    """Run a stand-in Hub and yield its address."""
    command = [sys.executable, "-m", "tests.standin_hub", str(folder), "--redirect", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip().partition("=")[2]
        finally:
            server.terminate()


def seconds(tool: str, url: str, folder: Path) -> float:
    """Run one tool into an empty folder and return the wall time."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()  # what the last tool wrote does not slow this one
    caches = {"HF_HOME": str(out / "hf"), "GGUFDEPLOY_CACHE_DIR": str(out / "own")}
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", **caches}
    began = time.monotonic()
    for command in commands(url, out)[tool]:
        subprocess.run(
            command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    return time.monotonic() - began


def measure(link: Link, rounds: int, folder: Path) -> list[str]:
    """Return the rows of one link's table."""
    source = folder / "hub" / REPO
    source.mkdir(parents=True, exist_ok=True)
    with (source / NAME).open("wb") as stream:
        for _ in range(link.size_bytes >> 20):
            stream.write(os.urandom(1 << 20))
    times: dict[str, list[float]] = {tool: [] for tool in commands("", folder)}
    with served(folder / "hub", link.options) as url:
        for number in range(rounds + 1):
            for tool, taken in times.items():
                elapsed = seconds(tool, url, folder)
                if number:  # the first round warms the page cache
                    taken.append(elapsed)
    ours = statistics.median(times["ggufdeploy pull"])
    size = (link.size_bytes >> 20) << 20
    rows = [f"**{link.title}**, {format_file_size(size)}, {rounds} rounds:", ""]
    rows += ["| tool | seconds, median | min | max | MB/s | ggufdeploy is faster by |", "|---|---|---|---|---|---|"]
    for tool, taken in times.items():
        median = statistics.median(taken)
        cells = [f"{value:.2f}" for value in (median, min(taken), max(taken))]
        rows.append(f"| {tool} | {' | '.join(cells)} | {size / median / 1e6:.0f} | {median / ours:.2f} |")
    return [*rows, ""]


def main() -> None:
    """Measure both links and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("512MiB"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="where to put files (a temporary folder)")
    options = parser.parse_args()
    links = (
        Link("Loopback without limits", (), options.size),
        Link("20 MB/s per connection, 50 ms per request", ("--rate", "20MB", "--latency", "50ms"), options.size),
    )
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for link in links:
            print("\n".join(measure(link, options.rounds, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
