"""The openai SDK against the real thing: HTTP, worker process, llama.cpp, SmolLM2."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
import urllib.request

import openai
import pytest

pytestmark = pytest.mark.engine

MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "Name three colors."}]


def stats(url: str) -> dict[str, float]:
    """The numbers of /metrics by name."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line and not line.startswith("#")}


def running(url: str) -> float:
    return next(value for name, value in stats(url).items() if "running" in name)


def test_chat_answers_in_english(client):
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=40)
    assert "Red" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.prompt_tokens > 5
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_streamed_chat_with_usage_gives_the_same_text(client):
    options = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions(client):
    reply = client.completions.create(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=8)
    assert reply.choices[0].text.strip().startswith("Paris")
    assert reply.usage.completion_tokens == 8
    pieces = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in pieces) == reply.choices[0].text


def test_models(client):
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client):
    reply = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=20, stop=["\n"]
    )
    assert reply.choices[0].finish_reason == "stop"
    assert "\n" not in reply.choices[0].text


def test_the_same_seed_gives_the_same_text(client):
    options = {"model": MODEL, "prompt": "Once upon a time", "temperature": 1.0, "max_tokens": 24}
    first, second = (client.completions.create(**options, seed=7).choices[0].text for _ in range(2))
    other = client.completions.create(**options, seed=8).choices[0].text
    assert first == second
    assert first != other


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 6000, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"
    assert "4,096" in caught.value.body["message"]


def test_eight_streams_all_finish_and_run_at_the_same_time(deployment):
    """Each stream notes the order in which its tokens arrive among all; they must interleave."""
    arrivals: list[int] = []
    finished: list[int] = []
    lock = threading.Lock()
    barrier = threading.Barrier(8)

    def stream(number: int) -> None:
        with deployment.client() as client:
            barrier.wait()
            chunks = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Count to {number + 10}."}],
                max_tokens=48,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for chunk in chunks:
                with lock:
                    if chunk.choices and chunk.choices[0].delta.content:
                        arrivals.append(number)
                    if chunk.choices and chunk.choices[0].finish_reason:
                        finished.append(number)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(finished) == list(range(8))
    first_end = min(len(arrivals) - 1 - arrivals[::-1].index(number) for number in range(8))
    assert len(set(arrivals[:first_end])) == 8, "every stream must have started before the first one ends"
    switches = sum(a != b for a, b in itertools.pairwise(arrivals))
    assert switches > len(arrivals) / 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_slot_within_a_second(deployment, stream):
    host = deployment.url.removeprefix("http://")
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Tell me a very long story."}],
            "max_tokens": 3500,
            "stream": stream,
            "ignore_eos": True,
        }
    )
    connection = http.client.HTTPConnection(host)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    if stream:
        response = connection.getresponse()
        response.read(64)
    deadline = time.monotonic() + 20
    while running(deployment.url) != 1:
        assert time.monotonic() < deadline, "the request never ran"
        time.sleep(0.02)
    if stream:
        response.close()
    connection.close()
    left = time.monotonic()
    while running(deployment.url) != 0:
        assert time.monotonic() < left + 1.0, "the slot is still taken a second after the client left"
        time.sleep(0.02)
