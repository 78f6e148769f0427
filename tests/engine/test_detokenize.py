from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.engine.detokenize import TextStream


def test_a_character_split_over_tokens_leaves_whole():
    stream = TextStream()
    emoji = "🙂".encode()
    assert [stream.push(emoji[:1]), stream.push(emoji[1:3]), stream.push(emoji[3:])] == ["", "", "🙂"]


def test_half_a_character_at_the_end_is_dropped():
    stream = TextStream()
    assert stream.push("é".encode()[:1]) == ""
    assert stream.flush() == ""


def test_bytes_that_are_no_utf8_become_replacement_characters():
    assert TextStream().push(b"a\xffb") == "a�b"


def test_a_stop_string_over_several_tokens_is_never_shown():
    stream = TextStream(["###"])
    assert [stream.push(b"text #"), stream.push(b"#"), stream.push(b"# more")] == ["text ", "", ""]
    assert stream.stopped
    assert (stream.push(b"more"), stream.flush()) == ("", "")


def test_text_that_only_began_like_a_stop_string_comes_out():
    stream = TextStream(["###"])
    assert [stream.push(b"a ##"), stream.push(b"b")] == ["a ", "##b"]
    assert stream.push(b"#") == ""
    assert stream.flush() == "#"


def test_the_first_of_several_stop_strings_wins():
    stream = TextStream(["world", "lo"])
    assert stream.push(b"hello world") == "hel"


@pytest.mark.parametrize("stop", ["aab", "aaab"])
def test_a_stop_string_that_overlaps_itself_is_found(stop):
    stream = TextStream([stop])
    shown = "".join(stream.push(bytes([byte])) for byte in b"aaaab!")
    assert stream.stopped
    assert shown == "aaaab"[: "aaaab".index(stop)]


@given(
    st.text(alphabet="ab🙂", max_size=40),
    st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_however_the_bytes_are_cut_the_text_ends_right_before_a_stop_string(text, stops, data):
    stream, shown, rest = TextStream(stops), "", text.encode()
    while rest:
        size = data.draw(st.integers(1, 5))
        piece, rest = rest[:size], rest[size:]
        shown += stream.push(piece)
        assert not any(stop in shown for stop in stops)
        if stream.stopped:
            break
    shown += stream.flush()
    assert text.startswith(shown)
    assert stream.stopped == any(stop in text for stop in stops)
    if stream.stopped:
        assert any(text.startswith(stop, len(shown)) for stop in stops)
    else:
        assert shown == text
