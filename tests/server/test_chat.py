from __future__ import annotations

import pytest

from ggufdeploy.engine.request import ChatMessage, ChatPrompt, SamplingParams
from tests.fakes import FakeEngine, Script
from tests.server.conftest import MESSAGES, MODEL

CHAT = "/v1/chat/completions"


def post(client, **body):
    return client.post(CHAT, json={"messages": MESSAGES, **body})


def test_an_answer_has_the_shape_of_openai(client, engine):
    engine.script = Script(deltas=("Hello", " world"), prompt_tokens=7, cached_tokens=3)
    answer = post(client).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello world", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def test_it_answers_without_the_v1_prefix_and_with_a_trailing_slash(client):
    for path in ("/chat/completions", "/v1/chat/completions/", "/chat/completions//"):
        assert client.post(path, json={"messages": MESSAGES}).status_code == 200


def test_all_sampling_fields_reach_the_engine(client, engine):
    post(
        client,
        temperature=0.5,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        seed=42,
        presence_penalty=1,
        frequency_penalty=-1,
        repeat_penalty=1.1,
        repeat_last_n=32,
        typical_p=0.9,
        top_n_sigma=1.5,
        xtc_probability=0.5,
        xtc_threshold=0.2,
        dynatemp_range=0.1,
        dynatemp_exponent=2,
        dry_multiplier=0.8,
        dry_base=2,
        dry_allowed_length=3,
        dry_penalty_last_n=99,
        dry_sequence_breakers=["\n"],
        mirostat=2,
        mirostat_tau=3,
        mirostat_eta=0.2,
        logit_bias={"15": -100, "2": 1.5},
        stop=["END", ""],
        max_tokens=2,
        ignore_eos=True,
        min_tokens=1,
        stop_token_ids=[7, 8],
    )
    (request,) = engine.requests
    assert request.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        seed=42,
        presence_penalty=1,
        frequency_penalty=-1,
        repeat_penalty=1.1,
        penalty_last_tokens=32,
        typical_p=0.9,
        top_n_sigma=1.5,
        xtc_probability=0.5,
        xtc_threshold=0.2,
        dynatemp_range=0.1,
        dynatemp_exponent=2.0,
        dry_multiplier=0.8,
        dry_base=2.0,
        dry_allowed_length=3,
        dry_last_tokens=99,
        dry_sequence_breakers=("\n",),
        mirostat=2,
        mirostat_tau=3.0,
        mirostat_eta=0.2,
        logit_bias=((15, -100.0), (2, 1.5)),
    )
    assert (request.stop, request.max_tokens, request.ignore_eos) == (("END",), 2, True)
    assert (request.min_tokens, request.stop_token_ids) == (1, (7, 8))


def test_null_means_the_servers_default(make_client, engine):
    defaults = SamplingParams(temperature=0.3, top_k=7, seed=11)
    client = make_client(sampling=defaults, max_tokens=123)
    names = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "seed",
        "stop",
        "n",
        "max_tokens",
        "logit_bias",
        "tools",
        "model",
    )
    post(client, **dict.fromkeys((*names, "stream", "stream_options", "response_format", "logprobs", "functions")))
    (request,) = engine.requests
    assert (request.sampling, request.max_tokens, request.stop) == (defaults, 123, ())


def test_max_completion_tokens_wins_over_max_tokens(client, engine):
    answer = post(client, max_tokens=3, max_completion_tokens=1).json()
    assert engine.requests[0].max_tokens == 1
    assert answer["choices"][0]["finish_reason"] == "length"


def test_minus_one_asks_for_a_random_seed_and_for_no_top_k(client, engine):
    post(client, seed=-1, top_k=-1)
    assert (engine.requests[0].sampling.seed, engine.requests[0].sampling.top_k) == (None, 0)


def test_any_64_bit_seed_becomes_one_llama_cpp_does_not_read_as_random(client, engine):
    for seed in (-2, 2**63 - 1, -(2**63), 0xFFFFFFFF):
        post(client, seed=seed)
    assert all(0 <= request.sampling.seed < 0xFFFFFFFF for request in engine.requests)


def test_n_choices_are_n_engine_requests_whose_seeds_differ(client, engine):
    engine.script = lambda request: Script(deltas=(request.id[-1],), prompt_tokens=5)
    answer = post(client, n=3, seed=7).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["0", "1", "2"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in engine.requests] == [7, 8, 9]
    assert len({request.id for request in engine.requests}) == 3
    assert answer["usage"]["prompt_tokens"] == 5, "a prompt is counted once, however many choices it has"
    assert answer["usage"]["completion_tokens"] == 3


def test_roles_names_and_text_parts_reach_the_template(client, engine):
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "input_text", "text": "brief."}]},
        {"role": "user", "content": "Hi", "name": "ada"},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
        {"role": "user", "content": ""},
    ]
    post(client, messages=messages)
    assert engine.requests[0].prompt == ChatPrompt(
        (
            ChatMessage("system", "Be\nbrief."),
            ChatMessage("user", "Hi", "ada"),
            ChatMessage("assistant", ""),
            ChatMessage("tool", "42", tool_call_id="x"),
            ChatMessage("user", ""),
        )
    )


@pytest.mark.parametrize(
    ("extra", "continued"),
    [
        ({}, True),
        ({"continue_final_message": True}, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, True),
        ({"continue_final_message": False}, False),
        ({"add_generation_prompt": True}, False),
    ],
)
def test_a_trailing_assistant_message_is_continued_unless_told_otherwise(client, engine, extra, continued):
    post(client, messages=[*MESSAGES, {"role": "assistant", "content": "Once"}], **extra)
    assert engine.requests[0].prompt.continue_last is continued


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "string"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [123]}, "messages.0"),
        ({"messages": [{}]}, "messages.0.role"),
        ({"messages": [{"role": 123, "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 123}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [*MESSAGES, {"role": "user", "content": [{"type": "text"}]}]}, "messages.1.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "assistant", "content": "a"}] * 2}, "messages"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"seed": 10**30}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_completion_tokens": 10**12}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop.1"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
        ({"logit_bias": {"15": 101}}, "logit_bias"),
        ({"logit_bias": {"fifteen": 1}}, "logit_bias"),
        ({"logit_bias": {"9999999999": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"model": 5}, "model"),
        ({"mirostat": 3}, "mirostat"),
        ({"dry_sequence_breakers": ["a", ""]}, "dry_sequence_breakers.1"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(client, engine, body, param):
    response = post(client, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": 5}, "response_format"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"guided_json": {}}, "guided_json"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages.0.function_call"),
    ],
)
def test_what_would_change_the_answer_is_refused_and_never_ignored(client, engine, body, param):
    response = post(client, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter")
    assert engine.requests == []


def test_an_image_is_refused_by_name(client):
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    error = post(client, messages=[{"role": "user", "content": parts}]).json()["error"]
    assert (error["param"], error["code"]) == ("messages.0.content.1.type", "unsupported_value")
    assert "image_url" in error["message"]


def test_switched_off_features_and_unknown_fields_are_accepted(client, engine):
    response = post(
        client,
        tools=[],
        tool_choice="none",
        functions=[],
        response_format={"type": "text"},
        logprobs=False,
        top_logprobs=0,
        modalities=["text"],
        mirostat=0,
        typical_p=1.0,
        user="u",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=True,
        reasoning_effort="low",
        prediction={"type": "content"},
        something_new=[1, {"deep": None}],
    )
    assert (response.status_code, len(engine.requests)) == (200, 1)


def test_the_model_field_takes_the_id_the_aliases_and_nothing(make_client):
    client = make_client(aliases=("gpt-3.5-turbo",))
    for model in (MODEL, "gpt-3.5-turbo", "", None):
        assert post(client, model=model).status_code == 200
    response = post(client, model="gpt-5")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "gpt-5" in error["message"]
    assert f"{MODEL}, gpt-3.5-turbo" in error["message"], "the message lists what is served"


def test_the_fingerprint_changes_with_the_plan(make_client):
    prints = [post(make_client(plan_json=plan)).json()["system_fingerprint"] for plan in (b"{}", b"[]", b"{}")]
    assert prints[0] == prints[2] != prints[1]


def test_a_request_that_ends_without_finished_is_an_error_and_no_endless_wait(make_client):
    class Mute(FakeEngine):
        async def generate(self, request):
            return
            yield

    response = post(make_client(engine=Mute()))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")


def test_an_error_does_not_repeat_a_long_value(client):
    for body in ({"model": "x" * 100_000}, {"messages": [{"role": "x" * 100_000, "content": "y"}]}):
        assert len(post(client, **body).content) < 1000
