from __future__ import annotations

import pytest

from ggufdeploy.errors import BadValue
from ggufdeploy.server.auth import check_bind_address, host_allowed, is_loopback, key_matches, origin_allowed
from tests.server.conftest import MESSAGES

KEY = "sk-local-Ü1"
PATH = "/v1/chat/completions"
BODY = {"messages": MESSAGES}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "127.8.9.1", "localhost:1", "LOCALHOST", "[::1]:8000", "localhost."]
)
def test_loopback_names_are_answered(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", ""],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_a_rebound_name_is_refused_on_loopback(client, host, path):
    response = client.get(path, headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")


def test_configured_host_names_are_answered(make_client):
    client = make_client(allowed_hosts=("Box.lan",))
    assert client.get("/health", headers={"host": "box.LAN:8000"}).status_code == 200
    assert client.get("/health", headers={"host": "other.lan"}).status_code == 403


def test_beyond_loopback_any_host_name_is_answered_unless_some_are_configured(make_client):
    headers = {"host": "any.example"}
    assert make_client(host="0.0.0.0", api_key=KEY).get("/health", headers=headers).status_code == 200
    limited = make_client(host="0.0.0.0", api_key=KEY, allowed_hosts=("box.lan",))
    assert limited.get("/health", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[::1", "x"]
)
@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("GET", "/v1/models"), ("OPTIONS", PATH)])
def test_a_page_of_another_origin_is_refused(client, engine, origin, method, path):
    body = BODY if method == "POST" else None
    response = client.request(method, path, json=body, headers={"origin": origin})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert engine.requests == []
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8000", "https://[::1]"])
def test_a_page_of_this_machine_may_call_but_gets_no_cors_headers(client, origin):
    response = client.get("/v1/models", headers={"origin": origin})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_configured_origin_gets_cors_headers_and_its_preflight_needs_no_key(make_client):
    client = make_client(allowed_origins=("https://ui.example",), api_key=KEY)
    preflight = client.options(
        PATH,
        headers={
            "origin": "https://ui.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        },
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://ui.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    answer = client.get("/health", headers={"origin": "https://ui.example"})
    assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == ("https://ui.example", "Origin")


def test_the_key_opens_every_route_and_nothing_else_does(make_client):
    client = make_client(api_key=KEY)
    right = [
        {"authorization": f"Bearer {KEY}".encode()},
        {"authorization": f"bearer  {KEY}".encode()},
        {"x-api-key": KEY.encode()},
    ]
    wrong = [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer nope"},
        {"authorization": KEY.encode()},
        {"authorization": f"Basic {KEY}".encode()},
        {"x-api-key": f"{KEY}x".encode()},
        {"x-api-key": ""},
        {"authorization": "Bearer nope", "x-api-key": KEY.encode()},
    ]
    for headers in right:
        assert client.get("/v1/models", headers=headers).status_code == 200
    for headers in wrong:
        for method, path in [
            ("GET", "/v1/models"),
            ("POST", PATH),
            ("GET", "/metrics"),
            ("GET", "/plan"),
            ("GET", "/x"),
        ]:
            response = client.request(method, path, headers=headers)
            error = response.json()["error"]
            assert (response.status_code, error["type"], error["code"]) == (
                401,
                "authentication_error",
                "invalid_api_key",
            )
            assert response.headers["www-authenticate"] == "Bearer"


def test_health_and_liveness_need_no_key(make_client):
    client = make_client(api_key=KEY)
    for path in ("/health", "/livez", "/v1/health", "/health/"):
        assert client.get(path).status_code == 200


def test_without_a_configured_key_any_key_is_ignored(client):
    assert client.get("/v1/models", headers={"authorization": "Bearer whatever"}).status_code == 200


def test_options_answers_with_the_methods(client):
    response = client.options(PATH)
    assert (response.status_code, response.headers["allow"], response.content) == (204, "GET, HEAD, OPTIONS, POST", b"")


def test_head_is_answered_without_a_body(client):
    assert (client.head("/health").status_code, client.head("/v1/models").status_code) == (200, 200)


def test_the_request_id_is_echoed_when_it_is_harmless_and_made_up_otherwise(client):
    assert client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("", "a b", "x" * 129, "é".encode()):
        assert client.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req-")
    assert "x-request-id" in client.get("/nope").headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_key(host):
    check_bind_address(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "box.lan", "localhost.evil.example"])
def test_other_addresses_need_a_key(host):
    check_bind_address(host, KEY)
    for missing in (None, ""):
        with pytest.raises(BadValue, match="no API key") as caught:
            check_bind_address(host, missing)
        assert "GGUFDEPLOY_API_KEY" in (caught.value.hint or "")


def test_pure_rules():
    assert is_loopback("::1")
    assert not is_loopback("")
    assert host_allowed("a.b:1", {"a.b"})
    assert not origin_allowed("", ())
    assert key_matches("k", "k")
    assert not key_matches(None, "k")
