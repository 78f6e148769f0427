"""Real installations into a home of their own. They need an engine wheel and an index for the dependencies:
`./install.sh --test` builds the one and names it in ENGINE_WHEEL.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.install.machine import CHECKOUT, StandInMachine

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

REQUIREMENTS = ("diskcache", "jinja2", "numpy", "typing-extensions")  # of llama-cpp-python 0.3.36
CRASHING_MODULE = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"


@pytest.fixture
def wheel() -> Path:
    path = os.environ.get("ENGINE_WHEEL")
    if not path:
        pytest.skip("ENGINE_WHEEL names no llama-cpp-python wheel; ./install.sh --test does")
    return Path(path)


@pytest.fixture
def machine(tmp_path: Path) -> StandInMachine:
    machine = StandInMachine(tmp_path)
    wanted = re.compile(r"PIP_|SSL_CERT|REQUESTS_CA|https?_proxy|no_proxy", re.IGNORECASE)
    machine.environment |= {name: value for name, value in os.environ.items() if wanted.match(name)}
    return machine


def command_output(machine: StandInMachine, *arguments: str) -> str:
    command = machine.home / ".local/bin/ggufdeploy"
    environment = {"HOME": str(machine.home), "PATH": "/usr/bin:/bin"}
    return subprocess.run([command, *arguments], env=environment, capture_output=True, text=True, check=True).stdout


def manifest(machine: StandInMachine) -> dict[str, str]:
    lines = (machine.home / ".local/share/ggufdeploy/manifest").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def test_an_installation_works_repeats_quickly_repairs_itself_and_leaves_nothing(
    machine: StandInMachine, wheel: Path
) -> None:
    first = machine.install("--wheel", str(wheel), "--backend", "cpu")
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"^  sha256 +[0-9a-f]{64}$", first.stdout, re.M)
    assert re.search(r"^  device +cpu ", first.stdout, re.M)
    assert re.search(r"^  check +a tiny model was loaded and produced token [0-9]+$", first.stdout, re.M)
    assert ".local/bin is not in PATH" in first.stdout
    assert "ggufdeploy" in command_output(machine, "--version")

    started = time.monotonic()
    second = machine.install("--backend", "cpu")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "is there already" in second.stdout
    assert "is installed already" in second.stdout
    assert time.monotonic() - started < 20

    venv = machine.home / ".local/share/ggufdeploy/venv"
    next(venv.glob("lib/python*/site-packages/ggufdeploy/__init__.py")).unlink()
    shutil.rmtree(next(venv.glob("lib/python*/site-packages/starlette-*.dist-info")))
    (machine.home / ".local/bin/ggufdeploy").unlink()
    third = machine.install("--backend", "cpu")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "ggufdeploy" in command_output(machine, "--version")
    assert list(venv.glob("lib/python*/site-packages/starlette-*.dist-info"))

    assert machine.install("--uninstall").returncode == 0
    assert [path for path in machine.files() if ".cache" not in path.parts] == []


@pytest.fixture
def crashing_index(tmp_path: Path) -> Iterator[str]:
    """A wheel index on loopback whose llama-cpp-python dies of an illegal instruction when it is imported."""
    version = pinned_version()
    folder = tmp_path / "tools" / "whl" / "cpu" / "llama-cpp-python"
    folder.mkdir(parents=True)
    name = f"llama_cpp_python-{version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        archive.writestr("llama_cpp/__init__.py", CRASHING_MODULE)
        metadata = f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {package}\n" for package in REQUIREMENTS)
        archive.writestr(f"{name}.dist-info/METADATA", metadata)
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "tools"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/whl"
        server.shutdown()
        thread.join()


def pinned_version() -> str:
    found = re.search(r"llama-cpp-python==([0-9.]+)", (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found
    return found[1]


def test_a_ready_wheel_that_crashes_here_is_replaced_by_a_build(
    machine: StandInMachine, wheel: Path, crashing_index: str
) -> None:
    """The build itself is the wheel already built, put where install.sh keeps its builds."""
    plan = machine.install("--dry-run", "--backend", "cpu").stdout
    found = re.search(r"^# built once, then taken from (.*)$", plan, re.M)
    assert found
    folder = Path(found[1])
    folder.mkdir(parents=True)
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    (folder / "SHA256").write_text((wheel.parent / "SHA256").read_text(encoding="utf-8"), encoding="utf-8")

    machine.environment["LLAMA_CPP_WHEEL_INDEX"] = crashing_index
    result = machine.install("--backend", "cpu")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"fetching the wheel from {crashing_index}/cpu" in result.stdout
    assert "illegal instruction" in result.stderr
    assert manifest(machine)["engine-source"] == "source"
    assert "produced token" in result.stdout


def test_a_wheel_of_another_version_is_refused(machine: StandInMachine, tmp_path: Path) -> None:
    other = tmp_path / "tools" / "llama_cpp_python-0.1.0-py3-none-any.whl"
    other.parent.mkdir()
    other.write_bytes(b"")
    result = machine.install("--wheel", str(other))
    assert result.returncode == 1
    assert f"is not a wheel of llama-cpp-python {pinned_version()}" in result.stderr


def test_an_interrupted_installation_leaves_no_process_and_no_temporary_folder(
    machine: StandInMachine, tmp_path: Path
) -> None:
    machine.programs["c++"] = "exit 1"
    machine.environment["LLAMA_CPP_WHEEL_INDEX"] = "http://127.0.0.1:9/whl"
    process = machine.start("--from-source")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("engine: building"):
            break
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert list(tmp_path.glob("ggufdeploy-install.*")) == []
    assert processes_under(tmp_path) == []


def processes_under(folder: Path) -> list[list[str]]:
    """Return the command lines of running processes that name the folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in lines if any(str(folder) in word for word in words)]
