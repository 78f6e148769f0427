from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from starlette.routing import Mount, Route

from ggufdeploy.server import answers, errors
from ggufdeploy.server.openapi import CONTRACTS, ERRORS
from tests.fakes import FakeEngine, Script
from tests.server.conftest import MESSAGES, MODEL, sse_data


@pytest.fixture
def document(client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [each for value in node.values() for each in references(value)]
    return [each for value in node for each in references(value)] if isinstance(node, list) else []


def resolve(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node


def served(client) -> set[tuple[str, str]]:
    """Return every method and path of the application, those below /v1 aside."""
    routes = [route for route in client.app.routes if isinstance(route, Route)]
    return {
        (method, re.sub(r":\w+\}", "}", route.path)) for route in routes for method in route.methods if method != "HEAD"
    }


def test_every_route_is_described_and_nothing_else(client, document):
    assert document["openapi"].startswith("3.1.")
    assert set(operations(document)) == served(client)
    assert {operation["operationId"] for operation in operations(document).values()} == set(CONTRACTS)


def test_every_route_answers_below_v1_too_as_the_servers_say(client, document):
    assert [server["url"] for server in document["servers"]] == ["/v1", "/"]
    (below,) = [route for route in client.app.routes if isinstance(route, Mount)]
    assert below.path == "/v1"
    assert [route.path for route in below.app.routes] == [r.path for r in client.app.routes if isinstance(r, Route)]
    for method, path in served(client):
        path = path.replace("{id}", MODEL)
        plain, prefixed = client.request(method, path), client.request(method, "/v1" + path)
        assert plain.status_code == prefixed.status_code == (400 if method == "POST" else 200)


def test_every_reference_leads_somewhere_and_every_component_is_used(document):
    found = set(references(document))
    assert all(resolve(document, reference) for reference in found)
    defined = {
        f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in document["components"][kind]
    }
    assert defined - found == {"#/components/responses/401"}  # no key is configured


def test_the_document_has_what_openapi_requires(document):
    assert {"openapi", "info", "paths"} <= document.keys()
    assert {"title", "version"} <= document["info"].keys()
    for (_, path), operation in operations(document).items():
        assert path.startswith("/")
        parameters = operation.get("parameters", [])
        assert [each["name"] for each in parameters if each["in"] == "path" and each["required"]] == re.findall(
            r"\{(\w+)\}", path
        )
        for status, response in operation["responses"].items():
            assert re.fullmatch("[1-5][0-9][0-9]", status)
            full = resolve(document, response["$ref"]) if "$ref" in response else response
            assert full["description"]
            assert all("schema" in media for media in full["content"].values())


def test_a_body_is_described_by_the_type_it_is_read_with(document):
    body = operations(document)["POST", "/chat/completions"]["requestBody"]
    assert body["required"]
    schema = resolve(document, body["content"]["application/json"]["schema"]["$ref"])
    assert schema["required"] == ["messages"]
    assert schema["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}


def test_every_status_an_error_can_have_is_described(document):
    known = {shape.status for shape in (*errors.SHAPES.values(), *errors.HTTP_SHAPES.values(), errors.UNAVAILABLE)}
    assert known - {405} == set(ERRORS)  # a wrong method belongs to no operation
    described = {status for operation in operations(document).values() for status in operation["responses"]}
    assert described == {str(status) for status in {200, *ERRORS} - {401}}
    assert "Retry-After" in document["components"]["responses"]["429"]["headers"]


def test_a_key_is_asked_for_where_it_is_needed(make_client, document):
    assert "securitySchemes" not in document["components"]
    headers = {"authorization": "Bearer sk-1"}
    client = make_client(api_key="sk-1")
    assert client.get("/openapi.json").status_code == 401
    guarded = client.get("/openapi.json", headers=headers).json()
    assert guarded["security"] == [{"bearer": []}, {"header": []}]
    assert set(guarded["components"]["securitySchemes"]) == {"bearer", "header"}
    open_to_all = {path for (_, path), operation in operations(guarded).items() if operation.get("security") == []}
    assert open_to_all == {"/health", "/livez"}
    for (_, path), operation in operations(guarded).items():
        assert ("401" in operation["responses"]) == (path not in open_to_all)


CHAT = {"messages": MESSAGES}
TEXT = {"prompt": "Hi"}


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/chat/completions", CHAT, answers.ChatAnswer),
        ("/completions", TEXT, answers.TextAnswer),
        ("/tokenize", {"content": "x"}, answers.TokensAnswer),
        ("/detokenize", {"tokens": [65]}, answers.ContentAnswer),
        ("/apply-template", CHAT, answers.PromptAnswer),
        ("/models", None, answers.ModelList),
        (f"/models/{MODEL}", None, answers.ModelCard),
        ("/health", None, answers.HealthAnswer),
        ("/livez", None, answers.HealthAnswer),
        ("/plan", None, answers.PlanAnswer),
    ],
)
def test_answers_have_the_shape_described(client, path, body, kind):
    response = client.get(path) if body is None else client.post(path, json=body)
    assert response.status_code == 200
    answer = msgspec.json.decode(response.content, type=kind)
    assert msgspec.to_builtins(answer).keys() == response.json().keys()


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [("/chat/completions", CHAT, answers.ChatChunk), ("/completions", TEXT, answers.TextAnswer)],
)
def test_events_of_a_stream_have_the_shape_described(client, path, body, kind):
    response = client.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, done = sse_data(response.text)
    assert done == "[DONE]"
    for chunk in chunks:
        assert msgspec.to_builtins(msgspec.convert(chunk, kind)).keys() == chunk.keys()


@pytest.mark.parametrize("phase", ["loading", "restarting", "failed", "stopped"])
def test_health_has_the_shape_described_in_every_phase(make_client, phase):
    response = make_client(engine=FakeEngine(phase=phase, error="why")).get("/health")
    assert response.status_code == 503
    assert msgspec.to_builtins(msgspec.json.decode(response.content, type=answers.HealthAnswer)) == response.json()


def test_errors_have_the_shape_described(client, engine):
    engine.script = Script(rejected=errors.ContextOverflow(5000, 4096))
    for response in (client.post("/chat/completions", json=CHAT), client.post("/tokenize", json={}), client.get("/x")):
        error = msgspec.json.decode(response.content, type=answers.ErrorAnswer)
        assert msgspec.to_builtins(error) == response.json()
