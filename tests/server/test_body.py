from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ggufdeploy.server.app import build_app
from ggufdeploy.server.body import decode
from ggufdeploy.server.schemas import ChatBody, CompletionBody
from tests.fakes import FakeEngine, Script
from tests.server.conftest import MESSAGES, make_config, serving, soon

PATH = "/v1/chat/completions"
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("path", [PATH, "/v1/completions", "/tokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"42",
        b'"text"',
        b"[]",
        b"{} x",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"prompt":NaN,"content":NaN,"messages":NaN}',
        b'{"prompt":"x","content":1e999,"messages":[],"temperature":1e999}',
        b'{"prompt":"\\ud800","content":"\\ud800","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"prompt":"\xff","content":"\xff","messages":[{"role":"user","content":"\xff"}]}',
        b'{"prompt":%s,"content":%s,"messages":%s}' % (DEEP, DEEP, DEEP),
        b'{"prompt":[%s],"content":%s,"messages":%s,"seed":%s}' % ((b"9" * 5000,) * 4),
        b'{"unknown":%s}' % DEEP,
    ],
)
def test_a_hostile_body_is_a_400_with_an_error_object(client, engine, path, body):
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert engine.requests == []


def test_deep_nesting_where_any_value_may_stand_is_a_400(client):
    for field in (b"response_format", b"tools", b"metadata"):
        body = b'{"messages":[{"role":"user","content":"x"}],"%s":%s}' % (field, DEEP)
        assert client.post(PATH, content=body).status_code == 400


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_a_type_that_a_page_may_post_without_asking_is_a_415(client, engine, media_type):
    body = json.dumps({"messages": MESSAGES}).encode()
    response = client.post(PATH, content=body, headers={"content-type": media_type})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert engine.requests == []


def test_json_with_a_charset_and_no_type_at_all_are_accepted(client):
    body = json.dumps({"messages": MESSAGES}).encode()
    for headers in ({}, {"content-type": "Application/JSON; charset=utf-8"}):
        assert client.post(PATH, content=body, headers=headers).status_code == 200


def test_a_compressed_body_is_a_415(client):
    response = client.post(PATH, content=b"{}", headers={"content-encoding": "gzip"})
    assert response.status_code == 415


def test_a_body_over_the_limit_is_a_413_announced_or_not(make_client):
    client = make_client(max_body_bytes=200)
    exact = b'{"messages":[{"role":"user","content":"x"}]}'
    assert client.post(PATH, content=exact + b" " * (200 - len(exact))).status_code == 200
    too_large = exact + b" " * (201 - len(exact))
    announced = client.post(PATH, content=too_large)
    chunked = client.post(PATH, content=iter([too_large[:150], too_large[150:]]))
    for response in (announced, chunked):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_real_client_that_sends_too_much_reads_the_413():
    async with serving(max_body_bytes=1000) as live:
        status, _, _ = await soon(live.request(PATH, {"messages": [{"role": "user", "content": "x" * 3_000_000}]}))
        assert status == 413


async def test_a_body_that_does_not_come_is_a_408():
    async with serving(body_timeout_s=0.05) as live:
        reader, writer = await live.connect(PATH, None)
        await soon(reader.readuntil(b"}"))
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{{".encode())
        assert b"408" in await soon(reader.readuntil(b"\r\n"))
        writer.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({field for kind in (ChatBody, CompletionBody) for field in kind.__struct_fields__})
LIKELY = st.one_of(
    JSON,
    st.sampled_from([0, 1, -1, 2**31, 2**63, 0.5, "", "x", [], {}, True, None, ["a"], [[1]], [1], {"type": "text"}]),
)
VALID = {"messages": MESSAGES, "prompt": "x"}
BODIES = st.dictionaries(st.sampled_from(FIELDS), LIKELY, max_size=5).map(lambda fields: {**VALID, **fields})
FUZZED = TestClient(
    build_app(FakeEngine(script=Script(deltas=("a",))), make_config()), base_url="http://127.0.0.1:8000"
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from([PATH, "/v1/completions"]), body=BODIES)
def test_no_body_of_json_values_makes_a_5xx(path, body):
    response = FUZZED.post(path, json=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert {"message", "type", "param", "code"} == response.json()["error"].keys()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: json.dumps(text).encode()))
def test_no_bytes_make_a_5xx(body):
    assert FUZZED.post(PATH, content=body).status_code == 400


def test_a_decoded_body_keeps_what_was_sent():
    body = decode(b'{"prompt":["a",[1]],"n":null,"stop":"x"}', CompletionBody)
    assert (body.prompt, body.n, body.stop) == (["a", [1]], None, "x")
