"""For child processes: never outlive the parent, and know none of its secrets."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


# A child parses files nobody has vetted; it has no use for these.
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GGUFDEPLOY_API_KEY")


def child_environment() -> dict[str, str]:
    """Return this environment without its secrets; llama.cpp is told not to start a debugger when it aborts."""
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return kept | {"GGML_NO_BACKTRACE": "1"}


def end_with_parent(parent: int) -> None:
    """Let the kernel end this process when `parent`, a process id, does; at once when that is gone already.

    Linux only; elsewhere the process ends when it notices that its socket is closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)
