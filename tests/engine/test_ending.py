from __future__ import annotations

import signal

import pytest

from ggufdeploy.engine.ending import crash, how_it_ended, load_failure, read_oom_kills
from ggufdeploy.engine.messages import GaveUp

REFUSED = ("CUDA error: out of memory",)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "ended with exit code 3"),
        (-signal.SIGSEGV, "was ended by SIGSEGV"),
        (-signal.SIGKILL, "was ended by SIGKILL, as the kernel does when memory runs out"),
        (-200, "was ended by signal 200"),
    ],
)
def test_exit_codes_are_told_in_words(code, words):
    assert how_it_ended(code) == words


@pytest.mark.parametrize(
    ("code", "report", "log", "oom_kills", "expected"),
    [
        (-signal.SIGKILL, None, (), 0, False),  # an administrator's kill -9
        (-signal.SIGKILL, None, (), 1, True),  # the kernel's
        (-signal.SIGABRT, None, REFUSED, 0, True),
        (-signal.SIGSEGV, None, (), 1, False),
        (1, GaveUp("no memory", True, (), None), (), 0, True),
    ],
)
def test_a_crash_is_told_from_a_lack_of_memory(code, report, log, oom_kills, expected):
    error = crash(code, report, log, None, oom_kills=oom_kills)
    assert error.out_of_memory is expected
    assert error.exit_code == code


def test_a_worker_killed_while_loading_is_taken_for_one_without_memory():
    error = load_failure("m.gguf", -signal.SIGKILL, None, ("bye",), None)
    assert error.out_of_memory
    assert error.message == (
        "llama.cpp's process was ended by SIGKILL, as the kernel does when memory runs out, while loading m.gguf: bye"
    )


def test_a_hung_worker_is_not_taken_for_a_killed_one():
    assert "did not answer for 61 s" in crash(-signal.SIGKILL, None, (), 61.2, oom_kills=0).message
    error = load_failure("m.gguf", -signal.SIGKILL, None, (), 900.0)
    assert (error.out_of_memory, "no progress" in error.message) == (False, True)


def test_the_kernels_count_is_read_where_there_is_one(tmp_path):
    file = tmp_path / "vmstat"
    file.write_text("nr_free_pages 5\noom_kill 7\n")
    assert read_oom_kills(file) == 7
    file.write_text("nr_free_pages 5\n")
    assert read_oom_kills(file) is None
    assert read_oom_kills(tmp_path / "missing") is None
