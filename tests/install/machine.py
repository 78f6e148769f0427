"""A machine that is only a folder: a home, and stand-ins for the programs install.sh asks."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass
class StandInMachine:
    """A home and a PATH of their own; `programs` holds shell text by program name."""

    folder: Path
    programs: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.home.mkdir()
        self.programs["python3"] = f'exec {shlex.quote(sys.executable)} "$@"'
        self.programs |= dict.fromkeys(("nvidia-smi", "rocminfo", "vulkaninfo"), "exit 9")

    def install(self, *arguments: str, script: Path = CHECKOUT / "install.sh") -> subprocess.CompletedProcess[str]:
        """Run install.sh to its end."""
        with self.start(*arguments, script=script, errors=subprocess.PIPE) as process:
            output, errors = process.communicate(timeout=500)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def start(
        self, *arguments: str, script: Path = CHECKOUT / "install.sh", errors: int = subprocess.STDOUT
    ) -> subprocess.Popen[str]:
        """Start install.sh; its standard output is a pipe."""
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        for name, text in self.programs.items():
            (tools / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (tools / name).chmod(0o755)
        environment = {"HOME": str(self.home), "PATH": f"{tools}:/usr/bin:/bin", "TMPDIR": str(self.folder)}
        environment["KFD_NODES"] = str(tools / "kfd")
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=environment | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if "tools" not in path.parts and path != self.home]
