"""What `run` refuses before anything slow, and how it reads what was typed."""

from __future__ import annotations

import os

import pytest

from ggufdeploy.cli.output import Output
from ggufdeploy.cli.run import _as_typed


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\xff\xfe\x00", "is not text"), (b" \n", "is empty"), (b"one\ntwo\n", "several lines"), (b"a\x07b", "control")],
)
def test_a_key_file_that_holds_no_key_is_refused_before_planning(content, complaint, run, tmp_path):
    file = tmp_path / "key"
    file.write_bytes(content)

    done = run("run", "smollm2-135m", "--port", "0", "--api-key-file", str(file))

    assert done.code == 2
    assert f"--api-key-file {file}" in done.err
    assert complaint in done.err


def test_a_ready_file_that_cannot_be_written_is_refused_before_planning(run, tmp_path):
    done = run("run", "smollm2-135m", "--port", "0", "--ready-file", str(tmp_path / "missing" / "ready.json"))

    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path / 'missing'} is not a folder" in done.err


def test_a_prompt_is_utf_8_whatever_the_locale_made_of_it():
    assert _as_typed("ü 🦊") == "ü 🦊"
    assert _as_typed(os.fsdecode("ü".encode())) == "ü"
    assert _as_typed("a\udcffb") == "a\ufffdb"


def test_an_answer_to_a_closed_stdout_is_dropped(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)

    Output().write("text")
    Output("json").document({})
