"""Logprobs on the wire, in the shapes of OpenAI's two routes."""

from __future__ import annotations

import pytest

from tests.fakes import Script
from tests.server.conftest import MESSAGES, sse_data


def chat(client, **body):
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, **body})


def completion(client, **body):
    return client.post("/v1/completions", json={"prompt": "Once", **body})


def entry(text: str, *alternatives: str) -> dict[str, object]:
    shown = {"token": text, "logprob": -0.75, "bytes": list(text.encode())}
    return {
        **shown,
        "top_logprobs": [{k: v for k, v in entry(each).items() if k != "top_logprobs"} for each in alternatives],
    }


@pytest.mark.parametrize(
    ("body", "alternatives"),
    [({}, ()), ({"top_logprobs": 0}, ()), ({"top_logprobs": 1}, ("é",)), ({"top_logprobs": 2}, ("é", "other"))],
)
def test_chat_tells_token_logprob_bytes_and_alternatives(client, engine, body, alternatives):
    engine.script = Script(deltas=("é",))
    (choice,) = chat(client, logprobs=True, **body).json()["choices"]
    assert choice["logprobs"] == {"content": [entry("é", *alternatives)], "refusal": None}


def test_a_chat_stream_tells_them_beside_the_text(client):
    chunks = sse_data(chat(client, logprobs=True, top_logprobs=1, stream=True).text)[:-1]
    first, *middle, last = [chunk["choices"][0] for chunk in chunks]
    assert (first["logprobs"], last["logprobs"]) == (None, None)
    assert [choice["delta"]["content"] for choice in middle] == ["Hello", " world", "!"]
    assert [choice["logprobs"]["content"] for choice in middle] == [[entry(t, t)] for t in ("Hello", " world", "!")]


def test_completions_tell_four_lists_side_by_side(client):
    (choice,) = completion(client, logprobs=2).json()["choices"]
    assert choice["logprobs"] == {
        "tokens": ["Hello", " world", "!"],
        "token_logprobs": [-0.75] * 3,
        "top_logprobs": [{text: -0.75, "other": -0.75} for text in ("Hello", " world", "!")],
        "text_offset": [0, 5, 11],
    }


def test_zero_logprobs_of_completions_are_those_of_the_chosen_tokens(client):
    (choice,) = completion(client, logprobs=0).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"Hello": -0.75}, {" world": -0.75}, {"!": -0.75}]


def test_a_completion_stream_goes_on_counting_the_offset(client):
    chunks = sse_data(completion(client, logprobs=1, stream=True).text)[:-1]
    offsets = [choice["logprobs"] and choice["logprobs"]["text_offset"] for (choice,) in (c["choices"] for c in chunks)]
    assert offsets == [[0], [5], [11], None]


def test_who_does_not_ask_gets_null(client, engine):
    for body in ({}, {"logprobs": None}, {"logprobs": False}):
        assert chat(client, **body).json()["choices"][0]["logprobs"] is None
        assert completion(client, **body).json()["choices"][0]["logprobs"] is None
    assert {request.logprobs for request in engine.requests} == {None}


def test_line_breaks_in_tokens_do_not_cut_an_event(client, engine):
    engine.script = Script(deltas=("a\u2028b",))
    raw = chat(client, logprobs=True, stream=True).text
    assert [line for line in raw.splitlines() if line and not line.startswith("data: ")] == []
