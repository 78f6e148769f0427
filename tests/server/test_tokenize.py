from __future__ import annotations

import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import MESSAGES


def test_tokenize_gives_the_ids_of_a_text_under_either_name(client):
    for field in ("content", "prompt"):
        assert client.post("/tokenize", json={field: "hé"}).json() == {"tokens": [104, 195, 169], "count": 3}


@pytest.mark.parametrize("field", ["add_special", "add_special_tokens"])
def test_tokenize_adds_begin_of_sequence_when_asked(client, field):
    assert client.post("/tokenize", json={"content": "h", field: True}).json() == {"tokens": [257, 104], "count": 2}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "content"),
        ({"content": 5}, "content"),
        ({"content": "x", "parse_special": False}, "parse_special"),
        ({"content": "x", "with_pieces": True}, "with_pieces"),
    ],
)
def test_tokenize_refuses_what_it_would_answer_differently(client, body, param):
    response = client.post("/tokenize", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
def test_detokenize_is_the_inverse(client, path):
    assert client.post(path, json={"tokens": [104, 195, 169]}).json() == {"content": "hé"}
    assert client.post(path, json={"tokens": []}).json() == {"content": ""}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tokens"),
        ({"tokens": "hé"}, "tokens"),
        ({"tokens": [1, -1]}, "tokens.1"),
        ({"tokens": [2**31]}, "tokens.0"),
        ({"tokens": [300]}, "tokens"),
    ],
)
def test_detokenize_names_the_field_that_is_no_list_of_tokens(client, body, param):
    response = client.post("/detokenize", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("path", ["/apply-template", "/v1/apply-template"])
def test_apply_template_shows_the_prompt_of_a_chat_without_running_it(client, engine, path):
    body = {"model": None, "messages": [{"role": "developer", "content": "Be brief."}, *MESSAGES]}
    assert client.post(path, json=body).json() == {"prompt": "system:Be brief.\nuser:Hi"}
    assert engine.requests == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_apply_template_refuses_what_a_chat_refuses(client, change, param):
    response = client.post("/apply-template", json={"messages": MESSAGES, **change})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": MESSAGES}),
    ],
)
def test_nothing_is_answered_while_loading(make_client, path, body):
    response = make_client(engine=FakeEngine(phase="loading")).post(path, json=body)
    assert (response.status_code, "retry-after" in response.headers) == (503, True)
