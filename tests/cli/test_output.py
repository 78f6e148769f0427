"""One voice in three modes: what goes to which stream."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from ggufdeploy.cli.output import Output, align, printable
from ggufdeploy.errors import BadValue


@dataclass(frozen=True)
class Item:
    name: str
    path: Path
    unknown: int | None = None


MODES = ("human", "json", "quiet")


@pytest.fixture
def check(capsys):
    """Call the function with an Output of each mode; compare (stdout, stderr)."""

    def check_(call, **expected):
        for mode in MODES:
            call(Output(mode))
            captured = capsys.readouterr()
            assert (captured.out, captured.err) == expected[mode], mode

    return check_


def test_a_result_is_text_a_document_or_its_short_form(check):
    document = '{\n  "name": "x",\n  "path": "/a/b",\n  "unknown": null\n}\n'
    check(
        lambda out: out.result("long text", Item("x", Path("/a/b")), brief="short"),
        human=("long text\n", ""),
        json=(document, ""),
        quiet=("short\n", ""),
    )


def test_a_table_is_aligned_a_document_or_its_first_column(check):
    rows = [("a", "1.0 GB"), ("long", "12.0 GB")]
    check(
        lambda out: out.table(("NAME", ">SIZE"), rows, {"rows": []}),
        human=("NAME     SIZE\na      1.0 GB\nlong  12.0 GB\n", ""),
        json=('{\n  "rows": []\n}\n', ""),
        quiet=("a\nlong\n", ""),
    )


def test_an_empty_table_says_so_on_stderr_and_is_an_empty_list_for_programs(check):
    check(
        lambda out: out.table(("NAME",), [], {"rows": []}, empty="nothing here"),
        human=("", "nothing here\n"),
        json=('{\n  "rows": []\n}\n', ""),
        quiet=("", ""),
    )


def test_notes_and_hints_are_for_people(check):
    check(lambda out: out.note("fetching"), human=("", "fetching\n"), json=("", ""), quiet=("", ""))
    check(lambda out: out.hint("do this"), human=("", "hint: do this\n"), json=("", ""), quiet=("", ""))


def test_warnings_are_said_in_every_mode(check):
    check(
        lambda out: out.warning("slow", "less context"),
        human=("", "warning: slow\nhint: less context\n"),
        json=("", json.dumps({"warning": {"message": "slow", "hint": "less context"}}) + "\n"),
        quiet=("", "warning: slow\n"),
    )


def test_details_need_verbose(capsys):
    Output().detail("quiet about this")
    Output(verbose=True).detail("but not about this")
    assert capsys.readouterr().err == "but not about this\n"


@pytest.mark.parametrize("mode", MODES)
def test_where_nobody_can_be_asked_yes_is_needed(mode, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    with pytest.raises(BadValue, match="Delete it") as caught:
        Output(mode).confirm("Delete it?", yes=False)

    assert "--yes" in (caught.value.hint or "")
    Output(mode).confirm("Delete it?", yes=True)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_the_question_goes_to_stderr(answer, goes_on, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal(answer))

    if goes_on:
        Output().confirm("Delete it?", yes=False)
    else:
        with pytest.raises(click.Abort):
            Output().confirm("Delete it?", yes=False)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Delete it? [y/N]: ")


HOSTILE = "model\x1b[2J\x1b]0;t\x07\r\u202egpj"


@pytest.mark.parametrize("mode", ["human", "quiet"])
def test_names_from_files_cannot_drive_the_terminal(mode, capsys):
    out = Output(mode)
    out.table(("NAME",), [(HOSTILE,)], {})
    out.result(HOSTILE, {})
    out.warning(HOSTILE)
    captured = capsys.readouterr()
    for character in "\x1b\x07\r\u202e":
        assert character not in captured.out + captured.err
    assert printable("tab\tand\nnewline stay") == "tab\tand\nnewline stay"


def test_a_piece_of_an_answer_is_filtered_on_terminals_only(monkeypatch):
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        monkeypatch.setattr("sys.stdout", stream)
        Output().write("a\x1b[31mb")
    assert terminal.getvalue() == "a?[31mb"
    assert "b" in pipe.getvalue()


def test_narrow_encodings_get_question_marks_not_a_crash(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))

    Output().result("Größe", {})
    Output("json").result("", {"name": "Größe"})

    first, rest = raw.getvalue().split(b"\n", 1)
    assert first == b"Gr??e"
    assert json.loads(rest) == {"name": "Größe"}


def test_colour_only_on_terminals_and_not_with_no_color(run, monkeypatch, capsys):
    from ggufdeploy.cli import main

    def styled(no_color):
        stream = Terminal()
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("NO_COLOR", no_color)
        main(["nonsense"])
        return "\x1b[" in stream.getvalue()

    assert "\x1b" not in run("nonsense").err
    assert styled("") is True
    assert styled("1") is False


def test_aligned_lines_have_no_trailing_blanks():
    assert align(("A", ">B"), [("x", "1"), ("longer", "22")]) == ["A        B", "x        1", "longer  22"]
    assert align(("A", "B"), [("x", "")]) == ["A  B", "x"]
