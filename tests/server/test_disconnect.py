"""A client that goes away ends its request in the engine: on real sockets, in every phase."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import Script
from tests.server.conftest import MESSAGES, WatchedEngine, serving, soon

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
ROUTES = [
    (CHAT, {"messages": MESSAGES}),
    (CHAT, {"messages": MESSAGES, "stream": True}),
    (CHAT, {"messages": MESSAGES, "stream": True, "n": 3}),
    ("/v1/completions", {"prompt": ["a", "b"]}),
]


def n_sequences(body: dict) -> int:
    return body.get("n", 1) * (len(body["prompt"]) if "prompt" in body else 1)


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("abrupt", [True, False])
async def test_a_client_gone_while_the_engine_prefills_cancels_its_requests(path, body, abrupt):
    async with serving() as live:
        live.engine.hold()
        _, writer = await live.connect(path, body)
        await soon(live.engine.wait_started())
        writer.transport.abort() if abrupt else writer.close()
        ended = [await soon(live.engine.ended.get()) for _ in range(n_sequences(body))]
        assert sorted(ended) == sorted(live.engine.cancelled)
        assert live.engine.running == set()


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_client_gone_while_its_request_is_queued_takes_it_out_of_the_queue(path, body):
    async with serving(WatchedEngine(queue_gate=asyncio.Event())) as live:
        _, writer = await live.connect(path, body)
        queued = [await soon(live.engine.queued.get()) for _ in range(n_sequences(body))]
        writer.close()
        assert sorted([await soon(live.engine.ended.get()) for _ in queued]) == sorted(queued)
        assert live.engine.requests == [], "it never ran"


async def test_a_client_gone_between_two_tokens_cancels_its_request():
    engine = WatchedEngine(script=Script(deltas=tuple("abcdef" * 100_000)))
    async with serving(engine) as live:
        reader, writer = await live.connect(CHAT, {"messages": MESSAGES, "stream": True})
        await soon(reader.readuntil(b'"content":"a"'))
        writer.transport.abort()
        assert await soon(engine.ended.get()) == engine.cancelled[0]


async def test_two_hundred_impatient_clients_leave_nothing_behind():
    async with serving() as live:
        live.engine.hold()
        bodies = [{"messages": MESSAGES, "stream": at % 2 == 0} for at in range(200)]
        clients = [await live.connect(CHAT, body) for body in bodies]
        while len(live.engine.requests) < 200:
            await asyncio.sleep(0)
        for _, writer in clients:
            writer.transport.abort()
        for _ in clients:
            await soon(live.engine.ended.get())
        assert len(live.engine.cancelled) == 200
        live.engine.release()
        status, _, content = await soon(live.request(CHAT, {"messages": MESSAGES}))
        assert status == 200
        assert b"Hello world!" in content


async def test_a_request_that_was_answered_is_not_cancelled():
    async with serving() as live:
        for stream in (False, True):
            assert (await soon(live.request(CHAT, {"messages": MESSAGES, "stream": stream})))[0] == 200
            await soon(live.engine.ended.get())
        assert live.engine.cancelled == []


async def test_a_client_that_stops_reading_is_dropped(caplog):
    engine = WatchedEngine(script=Script(deltas=("x" * 100_000,) * 200))
    async with serving(engine, send_timeout_s=0.1) as live:
        _, writer = await live.connect(CHAT, {"messages": MESSAGES, "stream": True})
        writer.transport.pause_reading()
        await soon(engine.wait_started())
        assert len(live.inflight) == 1
        # This grace would last a minute: it ends early because the request does.
        await soon(live.inflight.drain(60))
        writer.transport.abort()
    assert "stopped reading" in caplog.text
