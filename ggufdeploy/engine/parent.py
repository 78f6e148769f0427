"""For child processes: never outlive the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Let the kernel end this process when `parent`, a process id, does; at once when that is gone already.

    Linux only; elsewhere the process ends when it notices that its socket is closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)
