"""The routes beside the OpenAI ones against the real thing: HTTP, worker process, llama.cpp, SmolLM2."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.e2e.conftest import Deployment
from tests.e2e.test_openai_sdk import stats

pytestmark = pytest.mark.engine

QUESTION = [{"role": "user", "content": "Name three colors."}]


def post(deployment: Deployment, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{deployment.url}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_a_rendered_chat_continues_as_the_chat_does(deployment):
    greedy = {"temperature": 0, "max_tokens": 12}
    prompt = post(deployment, "/apply-template", {"messages": QUESTION})["prompt"]
    assert "Name three colors." in prompt
    text = post(deployment, "/v1/completions", {"prompt": prompt, **greedy})
    chat = post(deployment, "/v1/chat/completions", {"messages": QUESTION, **greedy})
    assert text["choices"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert text["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]


def test_tokens_of_a_prompt_make_the_same_prompt_again(deployment):
    prompt = post(deployment, "/apply-template", {"messages": QUESTION})["prompt"]
    made = post(deployment, "/tokenize", {"content": prompt})
    assert made["count"] == len(made["tokens"]) < len(prompt)
    assert post(deployment, "/v1/detokenize", {"tokens": made["tokens"]}) == {"content": prompt}


def test_a_request_leaves_its_times_in_the_metrics(deployment):
    before = stats(deployment.url)
    post(deployment, "/v1/completions", {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 9})
    after = stats(deployment.url)
    grown = {name: after[name] - before[name] for name in after if before[name] != after[name]}
    times = ("time_to_first_token", "inter_token", "queue_wait", "request_duration")
    assert [grown[f"ggufdeploy_{name}_seconds_count"] for name in times] == [1, 8, 1, 1]
    first, between, _, whole = (grown[f"ggufdeploy_{name}_seconds_sum"] for name in times)
    assert 0 < first < first + between <= whole * (1 + 1e-9)
    assert grown["ggufdeploy_completion_tokens_total"] == 9
    assert grown['ggufdeploy_requests_ended_total{outcome="length"}'] == 1
