from __future__ import annotations

import pytest

from ggufdeploy.engine.request import TextPrompt, TokenPrompt
from tests.fakes import Script
from tests.server.conftest import MODEL, sse_data


def post(client, **body):
    return client.post("/v1/completions", json=body)


def test_an_answer_has_the_shape_of_openai(client):
    answer = post(client, prompt="Once").json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": "Hello world!", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [TextPrompt("a")]),
        ("", [TextPrompt("")]),
        (["a", "b"], [TextPrompt("a"), TextPrompt("b")]),
        ([1, 2], [TokenPrompt((1, 2))]),
        ([[1], [2, 3]], [TokenPrompt((1,)), TokenPrompt((2, 3))]),
        (["a", [2, 3]], [TextPrompt("a"), TokenPrompt((2, 3))]),
    ],
)
def test_prompts_are_texts_token_ids_or_lists_of_either(client, engine, prompt, expected):
    answer = post(client, prompt=prompt).json()
    assert [request.prompt for request in engine.requests] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))


def test_n_choices_per_prompt_stand_side_by_side(client, engine):
    engine.script = lambda request: Script(deltas=(request.prompt.text + request.id[-1],), prompt_tokens=4)
    answer = post(client, prompt=["a", "b"], n=2, best_of=2).json()
    assert [choice["text"] for choice in answer["choices"]] == ["a0", "a1", "b2", "b3"]
    assert answer["usage"]["prompt_tokens"] == 8


def test_echo_puts_the_prompt_first(client):
    answer = post(client, prompt=["One", "Two"], echo=True).json()
    assert [choice["text"] for choice in answer["choices"]] == ["OneHello world!", "TwoHello world!"]


def test_a_stream_carries_text_then_an_empty_chunk_with_the_reason(client):
    *chunks, done = sse_data(post(client, prompt="Once", stream=True, echo=True).text)
    assert done == "[DONE]"
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], "text_completion", MODEL)
    }
    assert [chunk["choices"][0] for chunk in chunks] == [
        {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        for text, reason in [("Once", None), ("Hello", None), (" world", None), ("!", None), ("", "stop")]
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt.0"),
        ({"prompt": [[1, "a"]]}, "prompt.0.1"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [2**31]}, "prompt.0"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "x", "max_tokens": 0, "echo": True}, "max_tokens"),
        ({"prompt": "x", "suffix": "end"}, "suffix"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": 2, "echo": True}, "logprobs"),
        ({"prompt": "x", "n": 2, "best_of": 3}, "best_of"),
        ({"prompt": [1, 2], "echo": True}, "echo"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 8}, "n"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(client, engine, body, param):
    response = post(client, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert engine.requests == []


def test_sixty_four_texts_at_once_are_served(client, engine):
    assert post(client, prompt=["a"] * 8, n=8).status_code == 200
    assert len(engine.requests) == 64
