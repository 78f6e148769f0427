"""Help is instant: it imports no engine, no network and no server code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ggufdeploy.cli.app import COMMANDS

HEAVY = ("llama_cpp", "huggingface_hub", "starlette", "uvicorn", "numpy", "rich", "pynvml")


def loaded_modules(*args: str) -> set[str]:
    """Run a command line in a fresh interpreter; return the heavy modules it imported."""
    program = (
        "import sys; from ggufdeploy.cli import main; code = main(sys.argv[1:]);"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: ggufdeploy" in done.stdout
    return set(done.stderr.split())


def test_help_of_the_program_imports_no_command():
    program = (
        "import sys; from ggufdeploy.cli import main; main(['--help']);"
        "print(*sorted(n for n in sys.modules if n.startswith('ggufdeploy')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stderr.split()) == {
        "ggufdeploy",
        "ggufdeploy.cli",
        "ggufdeploy.cli.app",
        "ggufdeploy.cli.command",
        "ggufdeploy.cli.errors",
        "ggufdeploy.cli.output",
        "ggufdeploy.errors",
    }


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]], ids=lambda words: " ".join(words) or "root")
def test_help_imports_nothing_heavy(command):
    assert loaded_modules(*command, "--help") == set()
