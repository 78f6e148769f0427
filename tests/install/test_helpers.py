"""The small programs install.sh runs, and its reading of pytest's closing line."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.install.machine import CHECKOUT

SCRIPTS = CHECKOUT / "scripts/install"


@pytest.mark.install
def test_every_shell_script_passes_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = [shellcheck, "--external-sources", "--check-sourced", "install.sh", ".ci/run"]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_ci_runs_the_test_mode() -> None:
    script = CHECKOUT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec ./install.sh --test"


@pytest.mark.parametrize(
    ("line", "passed", "failed"),
    [
        ("412 passed in 7.31s", 412, 0),
        ("3 failed, 1009 passed, 2 skipped in 61.02s (0:01:01)", 1009, 3),
        ("1 failed in 0.05s", 0, 1),
        ("no tests ran in 0.01s", 0, 0),
    ],
)
def test_the_numbers_of_pytests_closing_line_are_read(tmp_path: Path, line: str, passed: int, failed: int) -> None:
    (tmp_path / "pytest").write_text(f"....  [100%]\n{line}\n", encoding="utf-8")
    program = f"source {shlex.quote(str(SCRIPTS / 'after.sh'))}; closing_count passed; closing_count failed"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        env={"PATH": "/usr/bin:/bin", "TMP": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(number) for number in result.stdout.split()] == [passed, failed]


def test_cuda_libraries_are_linked_beside_the_engine(tmp_path: Path) -> None:
    installed = tmp_path / "nvidia" / "cu13" / "lib"
    installed.mkdir(parents=True)
    for name in ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libnvblas.so.13"):
        (installed / name).write_bytes(b"library")
    engine = tmp_path / "llama_cpp" / "lib"
    engine.mkdir(parents=True)
    (engine / "libcudart.so.13").symlink_to(tmp_path / "an older one")
    links = runpy.run_path(str(SCRIPTS / "cuda_libraries.py"))["link"](tmp_path / "nvidia", engine)
    assert sorted(link.name for link in links) == ["libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13"]
    assert all(link.read_bytes() == b"library" for link in links)


def test_the_demonstrations_question_is_asked_of_the_served_model(tmp_path: Path) -> None:
    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer({"choices": [{"message": {"content": " Paris. "}}]})

        def _answer(self, body: object) -> None:
            payload = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        ready = tmp_path / "ready.json"
        ready.write_text(json.dumps({"url": f"http://127.0.0.1:{server.server_port}"}), encoding="utf-8")
        result = subprocess.run(
            [sys.executable, SCRIPTS / "ask.py", ready, "Capital of France?"], capture_output=True, text=True
        )
        server.shutdown()
        thread.join()
    assert result.stdout == "Paris.\n", result.stderr
    assert asked[0]["model"] == "tiny"
    assert asked[0]["messages"] == [{"role": "user", "content": "Capital of France?"}]


@pytest.mark.engine
def test_the_engine_check_sees_the_cpu_and_produces_a_token() -> None:
    result = subprocess.run([sys.executable, SCRIPTS / "check_engine.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    values = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert values["device"].startswith("cpu CPU ")
    assert values["exact-planning"] == "yes"
    assert 0 <= int(values["token"]) < 64
