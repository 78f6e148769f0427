"""What goes wrong for users: each with its exit code, one sentence and a hint, and never a traceback."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.deploy.conftest import ggufdeploy
from tests.gguf_writer import TINY_LLAMA, write_model
from tests.standin_hub import StandinHub

pytestmark = pytest.mark.slow


def fails(code: int, *args: str, says: str, hint: str | None = None) -> str:
    """Run, check code and texts, and return stderr."""
    result = ggufdeploy(*args)
    assert result.code == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    error = next(line for line in lines if line.startswith("error: "))
    assert says in error
    if hint is not None:
        assert hint in result.stderr[result.stderr.index("hint:") :]
    return result.stderr


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with StandinHub(tmp_path / "hub") as hub:
        write_model_at(hub.root / "acme" / "tiny-GGUF" / "tiny.F16.gguf")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def write_model_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_model(path, TINY_LLAMA, "F16")


@pytest.fixture
def model(tmp_path):
    return write_model_at(tmp_path / "tiny.F16.gguf")


def test_misspelt_model(hub):
    fails(3, "plan", "mixtrel-8x22b", says="mixtrel-8x22b", hint="mixtral-8x22b")


def test_unknown_model(hub):
    fails(3, "plan", "zzzzqqqq", says="zzzzqqqq", hint="ggufdeploy profiles list")


def test_unknown_repository(hub):
    fails(3, "plan", "acme/nothing-GGUF", says="acme/nothing-GGUF")


def test_unknown_quantization(hub):
    fails(3, "plan", "acme/tiny-GGUF:Q4_K_M", says="Q4_K_M", hint="F16")


def test_missing_file(tmp_path):
    fails(3, "plan", str(tmp_path / "none.gguf"), says="none.gguf")


def test_cut_gguf(model):
    os.truncate(model, model.stat().st_size - 5000)
    fails(1, "plan", str(model), says="not a usable GGUF file")


def test_gguf_cut_inside_the_header(model):
    os.truncate(model, 200)
    fails(1, "plan", str(model), says="not a usable GGUF file")


def test_not_a_gguf(tmp_path):
    page = tmp_path / "model.gguf"
    page.write_text("<!DOCTYPE html><html>Not found</html>")
    fails(1, "plan", str(page), says="HTML")


def test_context_beyond_the_training_context(model):
    fails(2, "plan", str(model), "--ctx", "64k", says="65,536", hint="--ctx")


def test_absurd_context(model):
    fails(2, "plan", str(model), "--ctx", "999999999", says="999,999,999", hint="--ctx")


def test_unreadable_context(model):
    fails(2, "plan", str(model), "--ctx", "lots", says="lots", hint="32k")


def test_unknown_gpu(model):
    fails(3, "plan", str(model), "--gpu", "nosuch", says="nosuch", hint="doctor --gpus")


def test_ambiguous_gpu_lists_its_meanings(model):
    text = fails(3, "plan", str(model), "--gpu", "h100", says="h100")
    assert "h100-sxm" in text
    assert "h100-pcie" in text


def test_busy_port_before_anything_is_fetched(hub):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(1, "run", "acme/tiny-GGUF", "--port", str(port), says=f"port {port}", hint="--port")
    assert not hub.requests


def test_network_unreachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    fails(6, "plan", "acme/tiny-GGUF", says="127.0.0.1 cannot be reached")


def test_no_disk_space_is_said_before_the_first_byte(hub, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fails(7, "pull", "acme/tiny-GGUF", says="1.0 kB free")
    assert not [entry for entry in hub.requests if entry.server == "cdn" and entry.range is None]


def test_an_address_beyond_loopback_needs_a_key(model):
    fails(2, "run", str(model), "--host", "0.0.0.0", "--port", "0", says="0.0.0.0", hint="--api-key-file")


def test_nothing_is_left_in_the_cache_after_a_failed_plan(hub, settings):
    fails(3, "plan", "acme/tiny-GGUF:Q9_Z", says="Q9_Z")
    assert not list(settings.hf_cache_dir.rglob("*.gguf"))


def test_a_pipe_is_no_model(tmp_path):
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    fails(2, "plan", str(pipe), says="neither a file nor a directory")


def test_a_file_whose_name_says_nothing_is_called_as_its_header_says(tmp_path):
    write_model_at(tmp_path / "tiny.F16.gguf").rename(tmp_path / "model.gguf")
    result = ggufdeploy("plan", str(tmp_path / "model.gguf"), "--json")
    assert result.code == 0, result.stderr
    assert result.document["quantization"]["name"] == "F16"
