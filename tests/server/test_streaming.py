from __future__ import annotations

import asyncio
import json

import pytest

from ggufdeploy.engine.request import Accepted, Delta, Finished
from ggufdeploy.errors import BadRequest, ContextOverflow, EngineCrashed, Overloaded
from ggufdeploy.server.streaming import CHAT, Chunks, Head, json_text
from tests.fakes import Script
from tests.server.conftest import MESSAGES, MODEL, WatchedEngine, serving, soon, sse_data

PATH = "/v1/chat/completions"


def stream(client, **body):
    return client.post(PATH, json={"messages": MESSAGES, "stream": True, **body})


def test_a_stream_has_the_shape_of_openai(client, engine):
    engine.script = Script(deltas=("Hel", "lo"), reason="length")
    response = stream(client)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, done = sse_data(response.text)
    assert done == "[DONE]"
    envelope = {key: chunks[0][key] for key in ("id", "created", "model", "system_fingerprint")}
    assert envelope["id"].startswith("chatcmpl-")
    assert envelope["model"] == MODEL
    expected = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hel"}, None),
        ({"content": "lo"}, None),
        ({}, "length"),
    ]
    assert chunks == [
        {
            **envelope,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
        }
        for delta, reason in expected
    ]


def test_usage_comes_last_with_empty_choices_and_only_when_asked_for(client, engine):
    engine.script = Script(prompt_tokens=5, cached_tokens=2)
    *chunks, last, done = sse_data(stream(client, stream_options={"include_usage": True}).text)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert last["id"] == chunks[0]["id"]
    for options in (None, {}, {"include_usage": False}, {"include_usage": None}):
        chunks = sse_data(stream(client, stream_options=options).text)[:-1]
        assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)


def test_an_empty_answer_still_has_its_role_and_its_reason(client, engine):
    engine.script = Script(deltas=())
    first, last, done = sse_data(stream(client).text)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"], done) == ({}, "stop", "[DONE]")


def test_every_choice_of_n_has_its_role_its_text_and_its_reason(client, engine):
    engine.script = lambda request: Script(deltas=tuple(f"{request.id[-1]}{at}" for at in range(4)))
    chunks = sse_data(stream(client, n=3).text)[:-1]
    for index in range(3):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"].get("content", "") for each in mine) == "".join(f"{index}{at}" for at in range(4))
        assert [each["finish_reason"] for each in mine] == [None] * 5 + ["stop"]


def test_text_of_any_kind_survives_and_no_line_splitter_cuts_an_event(client, engine):
    text = 'quote " slash \\ tab \t newline \n nul \x00 del \x7f next \x85 ls \u2028 ps \u2029 é 漢 😀 </script>'
    engine.script = Script(deltas=(text,))
    raw = stream(client).text
    assert sse_data(raw)[1]["choices"][0]["delta"]["content"] == text
    assert [line for line in raw.splitlines() if line and not line.startswith("data: ")] == []


def test_json_text_is_json():
    for text in ("", "plain", '\u2028\u2029\x85\n"\\', "漢字😀"):
        assert json.loads(json_text(text)) == text


def test_templates_equal_the_encoder():
    head = Head('id"', 5, 'mod"el\\', "fp")
    chunks = Chunks(CHAT, head, 2, with_usage=True)
    raw = chunks.opening(0) + chunks.text(1, 'a"b') + chunks.text(1, "") + chunks.finish(1, "stop")
    first, second, third = sse_data(raw.decode())
    assert first == {
        **head.fields(CHAT.object),
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
        "usage": None,
    }
    assert second["choices"] == [{"index": 1, "delta": {"content": 'a"b'}, "logprobs": None, "finish_reason": None}]
    assert third["choices"] == [{"index": 1, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextOverflow(5000, 4096), 400, "context_length_exceeded"),
        (BadRequest("no such token", param="prompt", code="invalid_value"), 400, "invalid_value"),
        (Overloaded("the queue is full", retry_after_s=1.5), 429, "rate_limit_exceeded"),
        (EngineCrashed("it died", exit_code=-11), 500, "engine_crashed"),
    ],
)
def test_an_error_before_the_first_event_has_its_own_status(client, engine, error, status, code):
    engine.script = Script(rejected=error)
    for body in ({}, {"n": 2}, {"stream": False}):
        response = stream(client, **body)
        assert response.headers["content-type"] == "application/json"
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_one_refused_choice_refuses_the_request_and_ends_the_others(client, engine):
    engine.hold()
    engine.script = lambda request: Script(rejected=ContextOverflow(9, 8)) if request.id.endswith("-1") else Script()
    assert stream(client, n=3).status_code == 400
    assert engine.running == set()


def test_an_error_after_the_first_event_is_an_event_and_no_done_follows(client, engine):
    engine.script = Script(deltas=("a", "b"), broken=EngineCrashed("The engine's process ended.", exit_code=-9))
    response = stream(client)
    assert response.status_code == 200
    *chunks, last = sse_data(response.text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "ab", "what was generated before the error is delivered"
    assert last == {
        "error": {
            "message": "The engine's process ended.",
            "type": "server_error",
            "param": None,
            "code": "engine_crashed",
        }
    }


def test_a_bug_in_a_stream_shows_nothing_of_its_inside_but_logs_its_traceback(client, engine, caplog):
    engine.script = Script(broken=ZeroDivisionError("secret"))
    last = sse_data(stream(client).text)[-1]
    assert (last["error"]["message"], last["error"]["code"]) == ("Internal server error.", "internal_error")
    assert "ZeroDivisionError: secret" in caplog.text


async def test_pings_keep_a_silent_stream_alive_while_it_waits_for_its_first_token():
    async with serving(ping_s=0.02) as live:
        live.engine.hold()
        reader, writer = await live.connect(PATH, {"messages": MESSAGES, "stream": True})
        received = await soon(reader.readuntil(b": ping\n\n"))
        assert b"200 OK" in received
        assert b'"role":"assistant"' in received, "the first chunk does not wait for the first token"
        await soon(reader.readuntil(b": ping\n\n"))
        live.engine.release()
        assert b"Hello" in await soon(reader.readuntil(b"[DONE]"))
        writer.close()


class Stepped(WatchedEngine):
    """Gives one token for each release of `steps`."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = asyncio.Semaphore(0)

    async def generate(self, request):
        yield Accepted(request.id, 1)
        for text in ("one", "two"):
            await self.steps.acquire()
            yield Delta(request.id, text, 1)
        yield Finished(
            id=request.id,
            reason="stop",
            prompt_tokens=1,
            completion_tokens=2,
            cached_tokens=0,
            prefill_s=0.0,
            decode_s=0.0,
            queue_s=0.0,
        )


async def test_each_token_leaves_before_the_next_is_made():
    engine = Stepped()
    async with serving(engine) as live:
        reader, writer = await live.connect(PATH, {"messages": MESSAGES, "stream": True})
        await soon(reader.readuntil(b'"content":""}'))
        for text in (b'"one"', b'"two"'):
            engine.steps.release()
            await soon(reader.readuntil(text))
        await soon(reader.readuntil(b"[DONE]"))
        writer.close()
