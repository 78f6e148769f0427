"""The dry run is expendable: whatever happens to its process, the caller gets one sentence and can ask again."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from ggufdeploy.engine import dryrun
from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.engine.request import EngineConfig
from ggufdeploy.errors import DryRunDied, EngineError
from ggufdeploy.units import MIB
from tests.gguf_writer import TINY_LLAMA, GgufBuilder, build_model, write_model

pytestmark = pytest.mark.slow


def config(path, **changes) -> EngineConfig:
    defaults = {
        "model_path": str(path), "context_tokens": 512, "slots": 1, "n_gpu_layers": 0, "n_batch": 256, "n_ubatch": 256,
        "key_type": "f16", "value_type": "f16", "flash_attention": True, "split_mode": "none", "tensor_split": (),
        "overrides": (), "load_mode": "mmap", "threads": 1,
    }  # fmt: skip
    return EngineConfig(**(defaults | changes))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that makes the child a program which reads a question and then runs the given statements."""

    def install(statements: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!{sys.executable}\nimport os, sys, time\nsys.stdin.readline()\n{statements}\n")
        program.chmod(0o700)
        monkeypatch.setattr(dryrun.sys, "executable", str(program))

    return install


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        ("os.kill(os.getpid(), 9)", "ended with signal SIGKILL"),
        ("os.abort()", "ended with signal SIGABRT"),
        ("sys.stderr.write('x.cpp:1: GGML_ASSERT(n > 0) failed\\n'); sys.stderr.flush(); os.abort()", "n > 0"),
        ("sys.stderr.write('terminate called: std::bad_alloc\\n'); sys.exit(1)", "could not get the memory"),
        ("print('this is no answer', flush=True); time.sleep(60)", "gave an answer that is none"),
        ("print('half an', end='', flush=True); time.sleep(60)", "did not answer within 1 s"),
        ("time.sleep(60)", "did not answer within 1 s"),
        ("x = bytearray(200 << 20); time.sleep(60)", "took more than 100.0 MiB of memory"),
    ],
)
def test_a_child_that_fails_is_one_sentence_and_is_gone(stand_in, monkeypatch, statements, says):
    monkeypatch.setattr(dryrun, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(dryrun, "MEMORY_LIMIT_BYTES", 100 * MIB)
    stand_in(statements)
    with DryRun() as dry_run:
        with pytest.raises(DryRunDied, match=says) as caught:
            dry_run.ask(config("m.gguf"))
        assert dry_run._child is None
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.engine
def test_after_a_killed_child_the_next_question_is_answered(tmp_path):
    path = write_model(tmp_path / "m.gguf", TINY_LLAMA, "F16")
    with DryRun() as dry_run:
        first = dry_run.ask(config(path))
        child = dry_run._child
        assert child is not None
        os.kill(child.pid, signal.SIGSTOP)  # so that it cannot answer before it dies
        killer = threading.Timer(0.2, os.kill, (child.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(DryRunDied, match="SIGKILL"):
            dry_run.ask(config(path))
        assert dry_run.ask(config(path)).host.kv_bytes == first.host.kv_bytes


@pytest.mark.engine
def test_a_header_that_aborts_llama_cpp_is_quoted_and_the_next_question_is_answered(tmp_path):
    """More experts than llama.cpp's LLAMA_MAX_EXPERTS fail an assertion: source: src/llama-model.cpp."""
    builder = GgufBuilder("llama").kv("llama.expert_count", 1_000_000).kv("llama.expert_used_count", 8)
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        builder.kv(f"llama.{key}", 2)
    builder.tensor("token_embd.weight", (2, 2))
    hostile, good = builder.write(tmp_path / "hostile.gguf"), write_model(tmp_path / "m.gguf", TINY_LLAMA, "F16")
    with DryRun() as dry_run:
        with pytest.raises(DryRunDied, match=r"SIGABRT: llama-model\.cpp:\d+: GGML_ASSERT"):
            dry_run.ask(config(hostile))
        assert dry_run.ask(config(good)).host.weights_bytes > 0


@pytest.mark.engine
def test_a_refused_model_is_an_error_of_the_model_and_keeps_the_child(tmp_path):
    path = write_model(tmp_path / "m.gguf", TINY_LLAMA, "F16")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-1000])
    with DryRun() as dry_run:
        dry_run.ask(config(path))
        child = dry_run._child
        with pytest.raises(EngineError, match="not within the file bounds") as caught:
            dry_run.ask(config(cut))
        assert not isinstance(caught.value, DryRunDied)
        assert dry_run._child is child
        assert dry_run.ask(config(path)).host.weights_bytes > 0


@pytest.mark.engine
def test_the_account_has_every_tensor_also_those_the_cpu_repacks(tmp_path):
    """Q4_K rows are repacked on CPUs with AVX2; wherever they lie, the host holds the whole model once."""
    (shard,) = build_model(TINY_LLAMA, "Q8_0")
    path = shard.builder.write(tmp_path / "m.gguf")
    with DryRun() as dry_run:
        answer = dry_run.ask(config(path))
    tensor_bytes = path.stat().st_size - len(shard.builder.header())
    assert answer.host.weights_bytes == tensor_bytes
