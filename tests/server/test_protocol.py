from __future__ import annotations

import asyncio
import time

import pytest

from ggufdeploy.server.protocol import TimedH11
from tests.server.conftest import MESSAGES, http_request, serving, soon

pytestmark = pytest.mark.slow

HEALTH = http_request("/health", None)


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch):
    monkeypatch.setattr(TimedH11, "head_timeout_s", 0.3)


async def seconds_until_closed(reader: asyncio.StreamReader) -> float:
    began = time.monotonic()
    await soon(reader.read())
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: 127"], ids=["nothing", "half a head"])
async def test_a_connection_without_a_whole_head_is_closed(sent):
    async with serving() as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(sent)
        assert 0.1 < await seconds_until_closed(reader) < 2
        writer.close()


async def test_single_bytes_do_not_keep_a_head_alive():
    async with serving() as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        closed = asyncio.create_task(reader.read())
        deadline = time.monotonic() + 5
        while not closed.done():
            writer.write(b"G")
            await asyncio.wait({closed}, timeout=0.05)
            assert time.monotonic() < deadline
        writer.close()


async def test_the_head_of_a_second_request_has_the_same_limit():
    async with serving() as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(HEALTH + b"GET /he")
        answer = await soon(reader.read())
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1") == 1
        writer.close()


async def test_idle_connections_and_slow_answers_are_not_cut():
    async with serving() as live:
        live.engine.queue_gate = asyncio.Event()
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(HEALTH)
        await soon(reader.readuntil(b'"ok"}'))
        await asyncio.wait({asyncio.create_task(reader.read(1))}, timeout=0.6)  # silence, beyond the limit
        assert not reader.at_eof()
        writer.close()
        reader, writer = await live.connect("/v1/chat/completions", {"messages": MESSAGES}, "Connection: close\r\n")
        await soon(live.engine.queued.get())
        answer = asyncio.create_task(reader.read())
        assert not (await asyncio.wait({answer}, timeout=0.6))[0]
        live.engine.queue_gate.set()
        assert (await soon(answer)).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01 tls?\r\n\r\n", HEALTH.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost")],
)
async def test_what_anybody_can_send_is_not_worth_a_line_in_the_log(sent, caplog):
    async with serving() as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(sent)
        assert (await soon(reader.read(12))) in (b"HTTP/1.1 400", b"HTTP/1.1 200")
        writer.close()
    assert not caplog.records
