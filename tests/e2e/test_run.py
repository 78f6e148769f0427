"""`ggufdeploy run` as a process: answering once, planned and actual, stopping, leaving nothing behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from tests.e2e.conftest import deployed, environment

pytestmark = pytest.mark.engine


def command(home, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ggufdeploy", *args],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, env=environment(home), check=False,
    )  # fmt: skip


def test_a_prompt_is_answered_once_on_stdout(tmp_path):
    done = command(tmp_path, "run", "smollm2-135m", "--prompt", "Name three colors.", "--max-tokens", "40")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()  # sampled, so the words differ from run to run
    tokens = int(re.search(r"(\d+) tokens, .* tokens/s", done.stderr)[1])
    assert 2 <= tokens <= 40
    assert "Traceback" not in done.stderr


def test_the_answer_as_json(tmp_path):
    done = command(tmp_path, "run", "smollm2-135m", "--prompt", "Hi", "--max-tokens", "4", "--json")
    document = json.loads(done.stdout)
    assert document["completion_tokens"] == 4
    assert document["finish_reason"] == "length"


def test_planned_bytes_stand_beside_what_llama_cpp_allocated(deployment):
    line = next(line for line in deployment.log.read_text().splitlines() if line.startswith("CPU: planned"))
    planned, actual = line.removeprefix("CPU: planned ").split(", actual ")
    assert planned == actual
    with urllib.request.urlopen(f"{deployment.url}/plan") as response:
        document = json.load(response)
    plan = document["plan"]
    assert plan["memory_source"] == "engine"
    assert plan["header_source"] == "file"
    assert plan["context_tokens"] == 4096
    assert document["actual"]["context_tokens"] == 4096
    (host,) = document["memory"]["devices"]
    assert host["planned"]["weights_bytes"] == host["actual"]["weights_bytes"]
    assert host["planned"]["kv_bytes"] == host["actual"]["kv_bytes"] == plan["kv_cache"]["bytes"]
    assert document["memory"]["process"]["rss_bytes"] > host["actual"]["weights_bytes"]
    assert document["memory"]["warnings"] == []
    assert 64 in document["memory"]["proof_tokens"]


def test_health_says_503_until_the_model_answers(deployment):
    with urllib.request.urlopen(f"{deployment.url}/health") as response:
        assert response.status == 200
        assert json.load(response)["status"] == "ok"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_its_worker(tmp_path, number, code):
    with deployed(tmp_path, "smollm2-135m", "--ctx", "512") as running:
        workers = running.workers()
        assert workers
        running.process.send_signal(number)
        assert running.process.wait(20) == code
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{running.url}/health", timeout=2)


def test_the_worker_dies_with_a_killed_parent(tmp_path):
    with deployed(tmp_path, "smollm2-135m", "--ctx", "512") as running:
        workers = running.workers()
        running.process.kill()
        running.process.wait(10)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive


def test_a_killed_worker_is_replaced_and_the_user_is_told(tmp_path):
    with deployed(tmp_path, "smollm2-135m", "--ctx", "512") as running:
        before = running.workers()
        for worker in before:
            worker.kill()
        deadline = time.monotonic() + 60
        while "ready again" not in running.log.read_text():
            assert time.monotonic() < deadline, running.log.read_text()
            time.sleep(0.05)
        with urllib.request.urlopen(f"{running.url}/health") as response:
            assert response.status == 200
        assert {worker.pid for worker in running.workers()}.isdisjoint(worker.pid for worker in before)
        assert running.process.poll() is None
        text = running.log.read_text()
        assert "warning: The engine's process was ended by SIGKILL" in text
        assert "Traceback" not in text


def test_ctrl_c_while_loading_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "ggufdeploy", "run", "smollm2-135m", "--port", "0"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(tmp_path),
    )  # fmt: skip
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr.decode()
    assert b"Traceback" not in stderr
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
