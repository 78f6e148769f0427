"""`python -m tests.standin_hub DIR`: a mirror of DIR for this machine or its network, or a stand-in to test against."""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from pathlib import Path

from ggufdeploy.units import format_file_size, parse_bytes
from tests.standin_hub import StandinHub

_INDEX = ".standin-hub-checksums.json"
_SAID_FROM_BYTES = 1 << 30


def main() -> None:
    """Serve the directory until interrupted."""
    options = _parser().parse_args()
    if not options.directory.is_dir():
        sys.exit(f"{options.directory} is not a directory")
    hub = StandinHub(
        options.directory,
        host=options.host,
        port=options.port,
        redirect=options.redirect,
        rate_bytes_per_s=options.rate,
        latency_s=options.latency,
        index=options.directory / _INDEX,
        recording=options.faults,
        controlled=options.faults,
    )
    try:
        _hash_all(hub)
        with hub:
            host = options.host if options.host not in ("0.0.0.0", "::") else socket.gethostname()
            host = f"[{host}]" if ":" in host else host
            print(f"HF_ENDPOINT=http://{host}:{hub.port('hub')}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.standin_hub", description=__doc__)
    add = parser.add_argument
    add("directory", type=Path, metavar="DIR", help="holds owner/repository/files")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    add("--port", type=int, default=0, metavar="N", help="the Hub's port (any free one)")
    add("--redirect", action="store_true", help="send large files from a second port, as the Hub does")
    add("--rate", type=parse_bytes, metavar="SIZE", help="bytes per second of one connection, like 20MB")
    add("--latency", type=_seconds, default=0.0, metavar="TIME", help="wait before every answer, like 50ms")
    add("--faults", action="store_true", help="answer GET /_log, POST /_fault and POST /_reset")
    return parser


def _seconds(text: str) -> float:
    number, scale = (text.removesuffix("ms"), 1000.0) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    return float(number) / scale


def _hash_all(hub: StandinHub) -> None:
    """Know every checksum before the first client waits for one."""
    for repo in hub.repos():
        for path, file in hub.files(repo).items():
            name = f"{repo}/{path}"
            if not hub.is_lfs(path):
                continue
            if file.stat().st_size >= _SAID_FROM_BYTES and not hub.checksums.is_known(name):
                print(f"reading {name}, {format_file_size(file.stat().st_size)}, once", file=sys.stderr, flush=True)
            hub.oid(name)


if __name__ == "__main__":
    main()
