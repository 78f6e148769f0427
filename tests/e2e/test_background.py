"""`run --detach`, `ps`, `stop` and `logs` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import environment

pytestmark = pytest.mark.engine

RUN = ("run", "smollm2-135m", "--ctx", "512", "--port", "0", "--detach")


class Home:
    """A sealed home in which commands run; `cleanup` ends what is left."""

    def __init__(self, path) -> None:
        self.path = path

    def __call__(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ggufdeploy", *args],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, env=environment(self.path),
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *args: str) -> dict:
        return json.loads(self(*args, "--json").stdout)


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    yield home
    for running in home.json("ps")["running"]:
        os.kill(running["pid"], signal.SIGKILL)


def test_a_model_in_the_background_from_start_to_stop(home):
    started = home.json(*RUN)
    process = psutil.Process(started["pid"])
    workers = process.children(recursive=True)
    assert workers
    with urllib.request.urlopen(started["url"].replace("/v1", "/health")) as response:
        assert response.status == 200

    (running,) = home.json("ps")["running"]
    assert (running["model"], running["quantization"], running["state"]) == ("smollm2-135m", "Q4_1", "ready")
    assert (running["pid"], running["context_tokens"], running["requests_running"]) == (started["pid"], 512, 0)
    (host,) = running["memory"]["devices"]
    assert host["planned"]["kv_bytes"] == host["actual"]["kv_bytes"] > 0
    line = home("ps").stdout.splitlines()[1]
    assert "smollm2-135m:Q4_1" in line
    assert "512 x 4" in line

    assert "ready in" in home("logs").stdout
    assert stat.S_IMODE(Path(started["log"]).stat().st_mode) == 0o600

    stopped = home("stop", str(running["port"]))
    assert "smollm2-135m" in stopped.stdout
    assert "stopped in" in stopped.stdout
    _, alive = psutil.wait_procs([process, *workers], timeout=10)
    assert not alive
    assert home.json("ps")["running"] == []
    assert "stopping" in home("logs", "smollm2-135m").stdout
    home("stop", "smollm2-135m", code=3)


def test_what_cannot_start_in_the_background_says_why_and_leaves_nothing(home):
    done = home("run", "smollm2-135m", "--ctx", "999999", "--port", "0", "--detach", code=2)
    assert "trained for" in done.stderr
    done = home("run", "smollm2-135m", "--ctx", "999999", "--port", "0", "--detach", "--json", code=2)
    assert "trained for" in json.loads(done.stderr)["error"]["message"]
    assert home.json("ps")["running"] == []


def test_ctrl_c_while_it_starts_ends_it(home):
    process = subprocess.Popen(
        [sys.executable, "-m", "ggufdeploy", *RUN],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(home.path),
    )  # fmt: skip
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr.decode()
    assert b"Traceback" not in stderr
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_killed_server_is_no_longer_listed_and_its_log_stays(home):
    started = home.json(*RUN)
    os.kill(started["pid"], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(started["pid"])] if psutil.pid_exists(started["pid"]) else [], timeout=10)
    assert home.json("ps")["running"] == []
    assert home("ps").stderr.startswith("no model runs here")
    assert "ready in" in home("logs").stdout
