"""`ps`, `stop` and `logs` on entries written here; the commands with a real model are in tests/e2e."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ggufdeploy.deploy.instances import Instance, Registry, identity_of
from ggufdeploy.deploy.truth import DeviceTruth, ProcessMemory, Truth
from ggufdeploy.planner.memory import DeviceUsage
from ggufdeploy.units import GIB

TRUTH = Truth(
    (
        DeviceTruth("CUDA0", "gpu", DeviceUsage(40 * GIB, 8 * GIB, 0), DeviceUsage(41 * GIB, 8 * GIB, 0), 0, 50 * GIB),
        DeviceTruth("CPU", "cpu", DeviceUsage(GIB, 0, 0), DeviceUsage(GIB, 0, 0), 0, None),
    ),
    0.98,
    ProcessMemory(2 * GIB, GIB, {"CUDA0": 50 * GIB}),
    (64, 512),
    0.5,
    ("CUDA0 was planned to take 48.0 GiB and takes 49.0 GiB (+2.1%): weights 40.0 GiB -> 41.0 GiB",),
)


@pytest.fixture
def registry(settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def metrics():
    """Serve /metrics on loopback; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"# HELP x\nggufdeploy_requests_running 3\nggufdeploy_requests_waiting 2\n")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def entry(pid: int, **changes: object) -> Instance:
    fields = {
        "pid": pid, "identity": identity_of(pid) or "", "model": "m", "ref": "owner/m", "phase": "ready",
        "started": time.time() - 60, "port": 8080, "quantization": "Q4_K_M", "context_tokens": 32768, "slots": 4,
    }  # fmt: skip
    return Instance(**{**fields, **changes})  # type: ignore[arg-type]


def test_ps_shows_planned_beside_actual_and_says_what_differs(run, registry, metrics):
    registry.write(entry(os.getpid(), url=metrics, memory=TRUTH))
    done = run("ps")
    line = done.out.splitlines()[1]
    for text in ("m:Q4_K_M", "ready", metrics, "32,768 x 4", "98 % GPU", "CUDA0 48.0 GiB", "CUDA0 49.0 GiB", "3 (+2)"):
        assert text in line
    assert "warning: m: CUDA0 was planned to take 48.0 GiB" in done.err


def test_ps_as_json_has_bytes_and_unknowns_as_null(run, registry):
    registry.write(entry(os.getpid(), memory=TRUTH))
    document = json.loads(run("ps", "--json").out)
    (running,) = document["running"]
    assert running["memory"]["devices"][0]["actual"]["weights_bytes"] == 41 * GIB
    assert running["memory"]["process"]["gpu_bytes"] == {"CUDA0": 50 * GIB}
    assert running["requests_running"] is None
    assert 59 <= running["uptime_s"] <= 120


def test_ps_shows_what_is_still_starting(run, registry):
    registry.write(entry(os.getpid(), phase="starting", quantization=None, context_tokens=None, slots=None, port=None))
    line = run("ps").out.splitlines()[1]
    assert line.split()[:3] == ["m", "starting", "-"]


def test_stop_ends_the_only_one_and_says_how_long_it_took(run, registry, sleeper):
    registry.write(entry(sleeper.pid))
    threading.Thread(target=sleeper.wait).start()  # its parent reaps it, as init does with a detached one
    done = run("stop")
    assert (done.code, done.out.startswith(f"m (process {sleeper.pid}) stopped in ")) == (0, True)
    assert registry.all() == []


def test_stop_all_with_nothing_to_stop_is_no_error(run):
    assert run("stop", "--all").out == "no model runs here\n"
    assert run("stop").code == 3
    assert run("stop", "m", "--all").code == 2


def test_a_terminals_output_is_no_log(run, registry):
    registry.write(entry(os.getpid()))
    done = run("logs")
    assert done.code == 3
    assert "writes to the terminal it was started in" in done.err


def test_logs_are_printed_also_of_what_has_ended(run, registry):
    path = registry.new_log("owner/m")
    path.write_text("one\ntwo\n")
    registry.write(entry(os.getpid(), log=str(path)))
    assert run("logs", "8080").out == "one\ntwo\n"
    assert json.loads(run("logs", "m", "--json").out)["lines"] == ["one", "two"]
    registry.remove(os.getpid())
    assert run("logs").out == run("logs", "owner/m").out == "one\ntwo\n"
    assert run("logs", "other").code == 3


def test_following_a_log_ends_with_its_process(run, registry, sleeper):
    path = registry.new_log("m")
    path.write_text("begin\n")
    registry.write(entry(sleeper.pid, log=str(path)))

    def write_and_end() -> None:
        time.sleep(0.4)
        path.write_text("begin\nend\n")
        sleeper.kill()
        sleeper.wait()

    threading.Thread(target=write_and_end).start()
    assert run("logs", "-f").out == "begin\nend\n"


def test_serving_in_the_background_and_answering_once_exclude_each_other(run):
    for other in (["--prompt", "Hi"], ["--dry-run"]):
        done = run("run", "m", "--detach", *other)
        assert (done.code, f"{other[0]} does not" in done.err) == (2, True)
