"""Starts a worker process with a socket between it and us."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import Process
from pathlib import Path

import ggufdeploy
from ggufdeploy.engine.parent import child_environment

WORKER = "ggufdeploy.engine.worker"


async def spawn_worker(module: str) -> tuple[Process, asyncio.StreamReader, asyncio.StreamWriter]:
    """Run `module`; return the process, whose stdout takes its log, and our end of the socket. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            f"--fd={theirs.fileno()}",
            f"--parent={os.getpid()}",
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # `-m` imports from the working directory first: let that be ours, not whatever the user is in.
            cwd=Path(ggufdeploy.__file__).parents[1],
            env=child_environment(),
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    return process, reader, writer
