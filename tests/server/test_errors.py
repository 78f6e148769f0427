from __future__ import annotations

import pytest

from ggufdeploy import errors
from ggufdeploy.server.errors import SHAPES, shape_of
from tests.fakes import FakeEngine, Script
from tests.server.conftest import MESSAGES

PATH = "/v1/chat/completions"
BODY = {"messages": MESSAGES}


def leaves(cls: type) -> set[type]:
    children = cls.__subclasses__()
    return set().union(*map(leaves, children)) if children else {cls}


def test_every_error_of_requests_and_of_the_engine_has_a_row():
    wanted = leaves(errors.RequestError) | leaves(errors.EngineError)
    ours = {cls for cls in wanted if cls.__module__ == "ggufdeploy.errors"}
    assert len(ours) >= 6
    assert ours <= SHAPES.keys()


@pytest.mark.parametrize(
    ("error", "status", "type_", "code"),
    [
        (errors.BadRequest("x", param="p", code="c"), 400, "invalid_request_error", "c"),
        (errors.ContextOverflow(9, 8), 400, "invalid_request_error", "context_length_exceeded"),
        (errors.ModelNotServed("m"), 404, "invalid_request_error", "model_not_found"),
        (errors.Overloaded("x", retry_after_s=2), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.EngineError("x"), 500, "server_error", "engine_error"),
        (errors.EngineCrashed("x", exit_code=None), 500, "server_error", "engine_crashed"),
        (errors.LoadFailed("x"), 503, "server_error", "model_load_failed"),
    ],
)
def test_each_error_has_the_status_type_and_code_clients_look_for(client, engine, error, status, type_, code):
    engine.script = Script(rejected=error)
    response = client.post(PATH, json=BODY)
    body = response.json()["error"]
    assert (response.status_code, body["type"], body["code"]) == (status, type_, code)
    assert {"message", "type", "param", "code"} <= body.keys()


def test_a_context_overflow_carries_its_numbers(client, engine):
    engine.script = Script(rejected=errors.ContextOverflow(5000, 4096))
    error = client.post(PATH, json=BODY).json()["error"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (5000, 4096)
    assert "5,000" in error["message"]


def test_a_full_queue_says_when_to_come_back(client, engine):
    engine.script = Script(rejected=errors.Overloaded("The queue is full.", retry_after_s=1.2))
    response = client.post(PATH, json=BODY)
    assert response.status_code == 429
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("2", "1200")
    assert "x-should-retry" not in response.headers


def test_a_crash_is_not_to_be_tried_again(client, engine):
    engine.script = Script(rejected=errors.EngineCrashed("It died.", exit_code=-6))
    response = client.post(PATH, json=BODY)
    assert (response.status_code, response.headers["x-should-retry"]) == (500, "false")


def test_a_bug_is_a_500_without_its_inside(make_client, engine):
    engine.script = Script(rejected=ZeroDivisionError("secret"))
    response = make_client(raise_bugs=False).post(PATH, json=BODY)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"
    with pytest.raises(ZeroDivisionError):
        make_client().post(PATH, json=BODY)


def test_an_error_that_is_not_about_requests_is_a_bug_here(make_client, engine):
    engine.script = Script(rejected=errors.NoDiskSpace("/secret", "no space", needed_bytes=1, free_bytes=0))
    response = make_client(raise_bugs=False).post(PATH, json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "no space" not in response.text
    assert shape_of(errors.NotFound("model", "x"), accepting=True).status == 500


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/models", "/v1/embeddings", "/admin", "/v1/chat", "//"])
def test_an_unknown_path_is_a_404_in_json(client, path):
    response = client.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/models/x", "GET, HEAD"),
        ("PATCH", "/health", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_a_405_that_says_which_is_right(client, method, path, allow):
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    assert response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", [PATH, "/v1/completions", "/completions", "/tokenize"])
def test_while_loading_inference_is_a_503_to_be_tried_again(make_client, path):
    client = make_client(engine=FakeEngine(phase="loading", progress=0.42))
    response = client.post(path, json={"prompt": "x", "content": "x", "messages": MESSAGES})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "service_unavailable")
    assert "42%" in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) > 0


def test_a_model_that_did_not_load_is_a_503_with_the_reason_and_no_retry(make_client):
    client = make_client(engine=FakeEngine(phase="failed", error="unknown architecture"))
    response = client.post(PATH, json=BODY)
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "false")
    assert response.json()["error"]["message"] == "unknown architecture"


def test_a_stopped_engine_is_a_503(make_client):
    response = make_client(engine=FakeEngine(phase="stopped")).post(PATH, json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "service_unavailable")


def test_a_long_path_is_not_repeated_in_full(client):
    answer = client.get("/" + "a" * 50_000)
    assert answer.status_code == 404
    assert len(answer.content) < 500
