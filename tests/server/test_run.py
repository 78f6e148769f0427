from __future__ import annotations

import asyncio
import json
import os
import socket
import time

import pytest

from ggufdeploy.errors import BadValue, PortBusy
from ggufdeploy.server.app import build_app
from ggufdeploy.server.run import Server, bind, url_of
from tests.fakes import Script
from tests.server.conftest import MESSAGES, WatchedEngine, http_request, make_config, serving, soon, sse_data

CHAT = "/v1/chat/completions"
STREAM = {"messages": MESSAGES, "stream": True}


def test_a_bound_port_is_taken_at_once_and_the_error_names_its_owner_and_a_free_one():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortBusy) as caught:
            bind("127.0.0.1", port)
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)
    assert f"port {port} on 127.0.0.1 is in use by " in caught.value.message
    assert f"(pid {os.getpid()})" in caught.value.message
    flag, free = (caught.value.hint or "").split()
    assert flag == "--port"
    bind("127.0.0.1", int(free)).close()


def test_a_host_that_is_not_ours_is_a_wrong_value():
    for host in ("203.0.113.7", "no such name", "name.invalid"):
        with pytest.raises(BadValue, match="--host"):
            bind(host, 0)


def test_the_url_is_one_a_client_here_can_use():
    with bind("127.0.0.1", 0) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    with bind("0.0.0.0", 0) as sock:
        assert url_of(sock).startswith("http://127.0.0.1:")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_is_bound_and_written_in_brackets():
    try:
        sock = bind("::1", 0)
    except BadValue:
        pytest.skip("no IPv6 loopback here")
    with sock:
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"


async def test_health_and_models_answer_while_the_model_loads():
    engine = WatchedEngine(phase="loading", progress=0.1)
    async with serving(engine) as live:
        status, _, content = await soon(live.request("/health"))
        assert (status, json.loads(content)) == (503, {"status": "loading", "progress": 0.1})
        assert (await soon(live.request("/v1/models")))[0] == 200
        assert (await soon(live.request(CHAT, STREAM)))[0] == 503
        engine.phase = "ready"
        assert (await soon(live.request(CHAT, STREAM)))[0] == 200


async def test_a_stop_lets_running_requests_finish_and_refuses_new_ones():
    async with serving() as live:
        live.engine.hold()
        reader, writer = await live.connect(CHAT, STREAM)
        await soon(live.engine.wait_started())
        stopping = asyncio.create_task(live.server.stop(60))
        await asyncio.sleep(0)
        late_reader, late_writer = await live.connect(CHAT, STREAM)
        refusal = (await soon(late_reader.read())).decode().lower()
        late_writer.close()
        assert refusal.startswith("http/1.1 503 ")
        assert "\r\nretry-after: " in refusal
        assert "\r\nconnection: close\r\n" in refusal, "or a client would wait for more on this connection"
        assert '"code":"service_unavailable"' in refusal
        status, _, content = await soon(live.request("/health"))
        assert (status, json.loads(content)) == (503, {"status": "stopping"})
        assert not stopping.done()
        live.engine.release()
        received = await soon(reader.read())
        assert b"world" in received
        assert received.rstrip().endswith(b"[DONE]\n\n\r\n0")
        writer.close()
        await soon(stopping)
        with pytest.raises(ConnectionRefusedError):
            await live.connect("/livez", None)


async def test_a_request_that_outlives_the_grace_ends_with_an_error_not_a_cut():
    async with serving() as live:
        live.engine.hold()
        stream, stream_writer = await live.connect(CHAT, STREAM)
        whole, whole_writer = await live.connect(CHAT, {"messages": MESSAGES})
        while len(live.engine.requests) < 2:
            await asyncio.sleep(0)
        await soon(live.server.stop(0.01))
        events = (await soon(stream.read())).decode()
        assert '"error":{"message":"The server is shutting down."' in events
        assert "[DONE]" not in events
        assert b" 503 " in await soon(whole.readline())
        assert len(live.engine.cancelled) == 2
        for writer in (stream_writer, whole_writer):
            writer.close()


async def test_a_second_stop_without_grace_ends_the_first():
    async with serving() as live:
        live.engine.hold()
        _, writer = await live.connect(CHAT, STREAM)
        await soon(live.engine.wait_started())
        first = asyncio.create_task(live.server.stop(600))
        await asyncio.sleep(0)
        await soon(live.server.stop(0))
        await soon(first)
        writer.close()


async def test_an_idle_server_stops_quickly_and_again_and_before_it_started():
    async with serving() as live:
        reader, writer = await live.connect("/livez", None)
        await soon(reader.readuntil(b"}"))
        began = time.monotonic()
        await soon(live.server.stop(60))
        assert time.monotonic() - began < 1.5, "idle keep-alive connections are closed"
        await soon(live.server.stop(60))
        await soon(live.server.wait())
        writer.close()
    sock = bind("127.0.0.1", 0)
    await Server(build_app(WatchedEngine(), make_config()), sock).stop(0)
    assert sock.fileno() == -1


async def test_signals_stay_with_the_caller():
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_a_bug_is_logged_with_its_traceback(caplog):
    async with serving(WatchedEngine(script=Script(rejected=ZeroDivisionError("inside")))) as live:
        status, _, content = await soon(live.request(CHAT, STREAM))
    assert (status, b"inside" in content) == (500, False)
    assert "ZeroDivisionError: inside" in caplog.text


async def test_keep_alive_serves_several_requests_on_one_connection():
    async with serving() as live:
        reader, writer = await live.connect(CHAT, STREAM)
        first = await soon(reader.readuntil(b"\r\n0\r\n\r\n"))

        writer.write(http_request(CHAT, {"messages": MESSAGES}))
        second = await soon(reader.readuntil(b"}}}"))
        writer.close()
    assert b"[DONE]" in first
    assert b"Hello world!" in second


async def test_a_stream_over_the_wire_is_what_the_templates_wrote():
    async with serving() as live:
        reader, writer = await live.connect(CHAT, STREAM, "Connection: close\r\n")
        raw = await soon(reader.read())
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    lines = body.split(b"\r\n")
    text = b"".join(lines[1::2]).decode()
    assert sse_data(text)[-1] == "[DONE]"
