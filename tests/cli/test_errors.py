"""Exit codes and the shape of errors, through `main` as the shell sees them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import click
import pytest

from ggufdeploy import errors
from ggufdeploy.cli.app import app
from ggufdeploy.cli.command import Lazy
from ggufdeploy.cli.errors import EXIT_CODES, EXIT_MEANINGS
from tests.cli import failing

SAMPLES = [
    (errors.BadValue("--ctx", "m", hint="h"), 2, "bad_value"),
    (errors.BadConfig("key", "m", hint="h"), 2, "bad_config"),
    (errors.NotFound("model", "x", "m", hint="h"), 3, "not_found"),
    (errors.Ambiguous("GPU", "a100", ["a", "b"], hint="h"), 3, "ambiguous"),
    (errors.AccessDenied("o/r", "m", gated=True, hint="h"), 4, "access_denied"),
    (errors.DoesNotFit("m", needed_bytes=2, free_bytes=1, hint="h"), 5, "does_not_fit"),
    (errors.Unreachable("https://example.org", "m", hint="h"), 6, "unreachable"),
    (errors.Offline("https://example.org", "m", hint="h"), 6, "offline"),
    (errors.Blocked("https://example.org", "m", hint="h"), 6, "blocked"),
    (errors.RateLimited("https://example.org", "m", retry_after_s=3.0, hint="h"), 6, "rate_limited"),
    (errors.NoDiskSpace("/", "m", needed_bytes=2, free_bytes=1, hint="h"), 7, "no_disk_space"),
    (errors.BadGguf("f.gguf", 12, "wrong magic", hint="h"), 1, "bad_gguf"),
    (errors.HeaderTruncated("f.gguf", 12, "cut", hint="h"), 1, "header_truncated"),
    (errors.ChecksumMismatch("f.gguf", "a" * 64, "b" * 64, hint="h"), 1, "checksum_mismatch"),
    (errors.PortBusy("127.0.0.1", 80, "m", hint="h"), 1, "port_busy"),
    (errors.EngineError("m", hint="h"), 1, "engine_error"),
    (errors.NoDryRun("m", hint="h"), 1, "no_dry_run"),
    (errors.DryRunDied("m", hint="h"), 1, "dry_run_died"),
    (errors.LoadFailed("m", hint="h"), 1, "load_failed"),
    (errors.EngineCrashed("m", exit_code=-9, hint="h"), 1, "engine_crashed"),
    (errors.BadRequest("m"), 1, "bad_request"),
    (errors.ContextOverflow(9, 8), 1, "context_overflow"),
    (errors.ModelNotServed("m"), 1, "model_not_served"),
    (errors.Overloaded("m", retry_after_s=1.0), 1, "overloaded"),
]


@pytest.fixture
def fail(run, monkeypatch):
    """Run a command that raises the error."""
    monkeypatch.setattr(app, "lazy", {"fail": Lazy("tests.cli.failing:fail", "Fail.")})
    monkeypatch.setattr(failing, "error", [])

    def fail_(error, *args):
        failing.error.append(error)
        return run("fail", *args)

    return fail_


def subclasses(kind):
    """Return the class and all below it that errors.py defines."""
    below = (child for child in kind.__subclasses__() if child.__module__ == errors.__name__)
    return {kind}.union(*map(subclasses, below))


def test_every_error_class_has_a_sample_here():
    shown = {type(error) for error, _, _ in SAMPLES}
    assert subclasses(errors.GgufdeployError) - shown == {errors.GgufdeployError, errors.RequestError}


def test_every_error_class_is_in_the_table_of_exit_codes():
    for kind in subclasses(errors.GgufdeployError) - {errors.GgufdeployError}:
        assert any(base in EXIT_CODES for base in kind.__mro__), kind


def test_every_exit_code_has_a_meaning():
    assert {*EXIT_CODES.values(), 0, 1, 2, 70, 130} == set(EXIT_MEANINGS)


@pytest.mark.parametrize(("error", "code", "name"), SAMPLES, ids=[name for _, _, name in SAMPLES])
def test_an_error_ends_with_its_code_and_says_what_and_what_next(error, code, name, fail):
    done = fail(error)

    assert (done.code, done.out) == (code, "")
    expected = [f"error: {error.message}"] + ([f"hint: {error.hint}"] if error.hint else [])
    assert done.err.splitlines() == expected


@pytest.mark.parametrize(("error", "code", "name"), SAMPLES, ids=[name for _, _, name in SAMPLES])
def test_under_json_an_error_is_one_line_on_stderr(error, code, name, fail):
    done = fail(error, "--json")

    assert (done.code, done.out) == (code, "")
    assert done.error == {"type": name, "message": error.message, "hint": error.hint}


def test_the_engines_last_words_stand_above_the_error(fail):
    log = [f"line {index}" for index in range(20)]
    error = errors.LoadFailed("out of memory", log=log)

    short = fail(error).err.splitlines()
    full = fail(error, "--verbose").err.splitlines()

    assert short == [*(f"  line {index}" for index in range(15, 20)), "error: out of memory"]
    assert full == [*(f"  {line}" for line in log), "error: out of memory"]


def test_control_characters_in_an_error_reach_no_terminal(fail):
    done = fail(errors.NotFound("model", "x", "\x1b]0;owned\x07 \x1b[2Jgone", hint="\x1b[31mred"))

    assert "\x1b" not in done.err
    assert "\x07" not in done.err


def test_a_bug_keeps_its_traceback_and_ends_with_70(fail):
    done = fail(KeyError("surprise"))

    assert (done.code, done.out) == (70, "")
    assert "Traceback (most recent call last)" in done.err
    assert "raise error[-1]" in done.err
    assert done.err.splitlines()[-2] == "error: KeyError: 'surprise'"
    assert "this is a bug" in done.err.splitlines()[-1]


@pytest.mark.parametrize("args", [(), ("--json",), ("-v",)])
@pytest.mark.parametrize("kind", [RuntimeError, errors.EngineError])
def test_no_error_shows_a_token_a_password_or_a_signed_link(args, kind, fail):
    token = "hf_" + "c4n4ry" * 6
    text = f"GET https://me:hunter2@cdn.example/blob?Signature=s1gned failed with Bearer opaque and {token}"

    done = fail(kind(text, hint=text, log=[text]) if kind is errors.EngineError else kind(text), *args)

    assert "cdn.example/blob failed" in done.err
    assert [secret for secret in (token, "hunter2", "s1gned", "opaque") if secret in done.err] == []


def test_a_bug_under_json_is_one_line_with_the_traceback(fail):
    error = fail(ValueError("surprise"), "--json").error

    assert (error["type"], error["message"]) == ("bug", "ValueError: surprise")
    assert "raise error[-1]" in error["traceback"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), EOFError()], ids=["ctrl-c", "abort", "eof"])
def test_an_interruption_ends_with_130_and_no_traceback(error, fail):
    done = fail(error)

    assert done.code == 130
    assert done.err.split() == ["error:", "interrupted"]


def test_a_reader_that_left_early_is_no_error(fail):
    done = fail(BrokenPipeError(32, "Broken pipe"))

    assert (done.code, done.err) == (1, "")


def test_a_closed_pipe_ends_a_real_process_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "ggufdeploy", "profiles", "list", "--json"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_ends_a_real_process_with_130():
    program = (
        "import os, signal, sys; from ggufdeploy.cli import entry; from ggufdeploy.cli.app import app;"
        "app.get_command = lambda ctx, name: os.kill(os.getpid(), signal.SIGINT); sys.argv[1:] = ['doctor']; entry()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "error: interrupted")


def test_an_exit_code_of_a_command_is_returned(run, monkeypatch):
    @click.command()
    def leave():
        return 5

    monkeypatch.setattr(app, "get_command", lambda ctx, name: leave)
    monkeypatch.setattr(app, "lazy", {"leave": None})

    assert run("leave").code == 5


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["doctr"], "No such command 'doctr'. Did you mean 'doctor'?", "ggufdeploy --help"),
        (["profiles", "lst"], "No such command 'lst'. Did you mean 'list'?", "ggufdeploy profiles --help"),
        (["doctor", "--jsn"], "No such option '--jsn'. Did you mean '--json'?", "ggufdeploy doctor --help"),
        (["profiles", "show"], "Missing argument 'NAME'.", "ggufdeploy profiles show --help"),
        (["pull", "m", "--slots", "0"], "Invalid value for '--slots': 0 is not in the range 1<=x<=256.",
         "ggufdeploy pull --help"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_names_the_right_word(args, message, hint, run):
    done = run(*args)

    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [f"error: {message}", f"hint: {hint}"]


def test_wrong_usage_under_json(run):
    error = run("profiles", "list", "--nope", "--json").error
    assert error == {"type": "usage", "message": "No such option '--nope'.", "hint": "ggufdeploy profiles list --help"}


def test_an_unknown_variable_names_the_nearest(run, monkeypatch):
    monkeypatch.setenv("GGUFDEPLOY_CACH_DIR", "x")

    done = run("profiles", "path")

    assert done.code == 2
    assert done.err.splitlines() == [
        "error: unknown environment variable GGUFDEPLOY_CACH_DIR",
        "hint: did you mean GGUFDEPLOY_CACHE_DIR?",
    ]


def test_ctrl_c_while_the_command_line_is_still_being_imported_shows_no_traceback():
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from ggufdeploy.cli import entry\n"
        "entry()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "type_"),
    [(errno.ENOSPC, 7, "no_disk_space"), (errno.EACCES, 1, "system"), (errno.EROFS, 1, "system")],
)
def test_a_disk_that_refuses_is_no_bug(number, code, type_, fail):
    error = OSError(number, os.strerror(number), "/data/models")
    text, document = fail(error), fail(error, "--json")

    assert (text.code, document.error["type"]) == (code, type_)
    assert text.err.splitlines()[0] == f"error: /data/models: {os.strerror(number)}"
    assert "Traceback" not in text.err


def test_a_missing_file_nobody_expected_stays_a_bug(fail):
    assert fail(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")).code == 70
