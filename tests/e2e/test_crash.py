"""The engine's process is killed while requests run: what OpenAI's own client sees of it."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request

import openai
import psutil
import pytest

from tests.e2e.conftest import Deployment, deployed

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Tell me a long story about the sea."}]
LONG = {"model": "smollm2-135m", "messages": MESSAGES, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with deployed(tmp_path_factory.mktemp("home"), "smollm2-135m", "--ctx", "4096", "--slots", "2") as running:
        yield running


def kill_worker(running: Deployment) -> None:
    server = psutil.Process(running.process.pid)
    worker = next(child for child in server.children() if "ggufdeploy.engine.worker" in child.cmdline())
    worker.kill()
    psutil.wait_procs([worker], timeout=10)


def until_healthy(running: Deployment) -> list[int]:
    """Return the statuses /health had on the way."""
    seen: list[int] = []
    deadline = time.monotonic() + 60
    while not seen or seen[-1] != 200:
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(f"{running.url}/health", timeout=10) as response:
                status = response.status
        except urllib.error.HTTPError as error:
            status = error.code
        if seen[-1:] != [status]:
            seen.append(status)
        time.sleep(0.005)
    return seen


def test_a_stream_gets_an_error_event_and_the_server_serves_again(running):
    with running.client() as client:
        stream = client.chat.completions.create(**LONG, stream=True)
        for _ in range(3):
            next(stream)
        kill_worker(running)
        with pytest.raises(openai.APIError, match="SIGKILL") as caught:
            list(stream)
        assert caught.value.code == "engine_crashed"
        assert until_healthy(running)[-1] == 200
        short = client.chat.completions.create(model="smollm2-135m", messages=MESSAGES, max_tokens=3)
        assert short.usage.completion_tokens == 3


def test_a_whole_answer_becomes_a_500_that_is_not_retried_and_new_requests_are_told_when_to_come_back(running):
    until_healthy(running)
    outcome: list[openai.InternalServerError] = []

    def ask() -> None:
        with running.client() as client, pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**LONG)
        outcome.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{running.url}/metrics") as response:
            if "ggufdeploy_requests_running 1" in response.read().decode():
                break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_worker(running)
    asking.join(30)
    (error,) = outcome
    assert (error.status_code, error.code) == (500, "engine_crashed")
    assert error.response.headers["x-should-retry"] == "false"

    with running.client() as client, pytest.raises(openai.InternalServerError) as busy:
        client.chat.completions.create(model="smollm2-135m", messages=MESSAGES, max_tokens=3)
    assert busy.value.status_code == 503
    assert int(busy.value.response.headers["retry-after"]) >= 1
    assert until_healthy(running)[-1] == 200
