"""What a download shows: bars on a terminal, lines elsewhere, nothing for programs."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest

from ggufdeploy.cli.output import Output
from ggufdeploy.hub.progress import Progress

MB = 10**6


def report(phase, file, done_mb, size_mb, all_done_mb, all_mb, detail=None):
    return Progress(phase, file, done_mb * MB, size_mb * MB, all_done_mb * MB, all_mb * MB, None, detail)


TWO_FILES = [
    report("checking", "m-00001-of-00002.gguf", 0, 100, 0, 300),
    report("downloading", "m-00001-of-00002.gguf", 40, 100, 40, 300),
    report("downloading", "m-00001-of-00002.gguf", 70, 100, 70, 300),
    report("retrying", "m-00001-of-00002.gguf", 70, 100, 70, 300, "connection lost, trying again in 2 s"),
    report("downloading", "m-00001-of-00002.gguf", 99, 100, 99, 300),
    report("done", "m-00001-of-00002.gguf", 100, 100, 100, 300),
    report("checking", "m-00002-of-00002.gguf", 200, 200, 300, 300),
    report("done", "m-00002-of-00002.gguf", 200, 200, 300, 300),
]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def show(out, reports=TWO_FILES):
    with out.download_progress() as progress:
        for item in reports:
            progress(item)


def test_off_a_terminal_each_change_is_one_line_on_stderr(capsys):
    show(Output())

    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.sub(r"MB in [\d.]+ s$", "MB in T", captured.err, flags=re.MULTILINE).splitlines() == [
        "checking m-00001-of-00002.gguf: 100.0 MB",
        "fetching m-00001-of-00002.gguf: 100.0 MB, 40.0 MB of it is here",
        "connection lost, trying again in 2 s",
        "fetching m-00001-of-00002.gguf: 100.0 MB, 99.0 MB of it is here",
        "complete: m-00001-of-00002.gguf, 60.0 MB in T",
        "checking m-00002-of-00002.gguf: 200.0 MB",
        "complete: m-00002-of-00002.gguf was here",
    ]


def test_a_long_download_says_now_and_then_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr("ggufdeploy.cli.progress._LINE_EVERY_S", 0.0)
    going = dataclasses.replace(report("downloading", "m.gguf", 50, 100, 50, 100), bytes_per_s=10e6)

    show(Output(), [report("downloading", "m.gguf", 10, 100, 10, 100), going])

    assert capsys.readouterr().err.splitlines()[-1] == "50.0 MB of 100.0 MB, 10.0 MB/s, 5.0 s left"


@pytest.mark.parametrize("mode", ["json", "quiet"])
def test_programs_get_no_progress(mode, capsys):
    show(Output(mode))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_per_file_and_one_for_all(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    show(Output())

    text = terminal.getvalue()
    assert capsys.readouterr().out == ""
    for word in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "all files", "300.0/300.0 MB", "connection lost"):
        assert word in text


def test_one_file_needs_no_total(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    show(Output(), [report("downloading", "m.gguf", 50, 100, 50, 100), report("done", "m.gguf", 100, 100, 100, 100)])

    assert "100.0/100.0 MB" in terminal.getvalue()
    assert "all files" not in terminal.getvalue()


def test_a_file_name_cannot_drive_the_terminal(monkeypatch, capsys):
    hostile = [report("downloading", "a\x1b[2J[red]b.gguf", 1, 2, 1, 2, "\x1b]0;t\x07detail")]
    show(Output(), hostile)
    assert "\x1b" not in capsys.readouterr().err

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    show(Output(), hostile)
    assert "\x1b[2J[red]" not in terminal.getvalue()
    assert "\x1b]0" not in terminal.getvalue()
    assert "[red]b.gguf" in terminal.getvalue()


def test_a_failing_download_leaves_the_terminal_in_order(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    def fail():
        with Output().download_progress() as progress:
            progress(TWO_FILES[1])
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()

    hidden, shown = terminal.getvalue().rfind("\x1b[?25l"), terminal.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown


@pytest.mark.parametrize("on_terminal", [True, False])
def test_waiting_is_said_once_not_at_every_look(on_terminal, monkeypatch):
    terminal = Terminal()
    terminal.isatty = lambda: on_terminal
    monkeypatch.setattr("sys.stderr", terminal)
    waiting = [report("waiting", "m.gguf", mb, 100, mb, 100, "process 5 is downloading it") for mb in (10, 11, 12)]
    other = report("waiting", "m.gguf", 13, 100, 13, 100, "process 6 is downloading it")

    show(Output(), [*waiting, other])

    assert terminal.getvalue().count("process 5 is downloading it") == 1
    assert terminal.getvalue().count("process 6 is downloading it") == 1
