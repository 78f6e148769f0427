"""Tools and reasoning over HTTP: what reaches the template, and the shapes of what comes back."""

from __future__ import annotations

import asyncio
import json

import msgspec
import openai
import pydantic
import pytest

from ggufdeploy.engine.request import ChatMessage, ToolCall, ToolSpec
from ggufdeploy.server import answers
from tests.fakes import FAKE_INFO, FakeEngine, Script
from tests.server.conftest import MESSAGES, MODEL, WatchedEngine, serving, sse_data

CHAT = "/v1/chat/completions"
HERMES = "{{ tools }}<tool_call></tool_call>"
QWEN3 = HERMES + "<think></think>"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS}}
CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich\u2028"}}\n</tool_call>'
CALL = {"name": "get_weather", "arguments": '{"city": "Zürich\u2028"}'}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(info=msgspec.structs.replace(FAKE_INFO, chat_template=HERMES))


def says(engine, text, template=HERMES, **script):
    """Let the engine answer `text`, one token per character."""
    engine.info = msgspec.structs.replace(FAKE_INFO, chat_template=template)
    engine.script = Script(deltas=tuple(text), **script)


def post(client, **body):
    return client.post(CHAT, json={"messages": MESSAGES, "tools": [WEATHER], **body})


def choice_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def streamed(client, **body):
    """Return the deltas of the first choice and its finish reason."""
    data = sse_data(post(client, stream=True, **body).text)
    assert data.pop() == "[DONE]"
    choices = [chunk["choices"][0] for chunk in data]
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return [choice["delta"] for choice in choices[:-1]], choices[-1]["finish_reason"]


def test_the_tools_reach_the_template(client, engine):
    post(client, tools=[WEATHER, {"type": "function", "function": {"name": "now", "strict": True}}])
    assert engine.requests[0].prompt.tools == (
        ToolSpec("get_weather", "Weather", json.dumps(PARAMETERS, separators=(",", ":"))),
        ToolSpec("now"),
    )
    assert engine.requests[0].spelled, "markers that are control tokens must be seen"


def test_a_call_makes_an_answer_of_openais_shape(client, engine):
    says(engine, CALL_TEXT)
    choice = choice_of(post(client))
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    assert len(call.pop("id")) == 9
    assert call == {"type": "function", "function": CALL}


def test_text_beside_a_call_is_content(client, engine):
    says(engine, "I look.\n" + CALL_TEXT)
    assert choice_of(post(client))["message"]["content"] == "I look."


def test_an_answer_without_a_call_is_plain(client, engine):
    says(engine, "It is <b>sunny</b>.")
    choice = choice_of(post(client))
    assert choice["message"] == {"role": "assistant", "content": "It is <b>sunny</b>.", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_streamed_calls_come_with_id_and_name_first_and_then_their_arguments(client, engine):
    says(engine, "Ok.\n" + CALL_TEXT + "\n" + CALL_TEXT)
    deltas, reason = streamed(client)
    assert reason == "tool_calls"
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content") or "" for delta in deltas) == "Ok."
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [call["index"] for call in calls] == [0, 0, 1, 1]
    ids = [call.pop("id") for call in calls[::2]]
    assert len(set(ids)) == 2
    begun = {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    assert calls[0] == begun
    assert calls[1] == {"index": 0, "function": {"arguments": CALL["arguments"]}}
    assert all("role" not in delta for delta in deltas[1:])


def test_no_line_splitter_cuts_streamed_arguments(client, engine):
    says(engine, CALL_TEXT)
    assert "\u2028" not in post(client, stream=True).text


def test_a_call_cut_off_is_shown_and_ends_with_length(client, engine):
    says(engine, CALL_TEXT)
    choice = choice_of(post(client, max_tokens=30))
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL_TEXT[:30], "length")
    assert "tool_calls" not in choice["message"]


def test_a_whole_call_before_the_limit_keeps_the_reason_length(client, engine):
    says(engine, CALL_TEXT + "\nand")
    choice = choice_of(post(client, max_tokens=len(CALL_TEXT) + 2))
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "length")


def test_parallel_tool_calls_false_keeps_one_call(client, engine):
    says(engine, CALL_TEXT * 2)
    assert len(choice_of(post(client))["message"]["tool_calls"]) == 2
    assert len(choice_of(post(client, parallel_tool_calls=False))["message"]["tool_calls"]) == 1


def test_every_choice_has_its_own_calls(client, engine):
    engine.script = lambda request: Script(deltas=(CALL_TEXT,) if request.id.endswith("1") else ("no",))
    choices = post(client, n=2).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "tool_calls"]


@pytest.mark.parametrize("extra", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}])
def test_without_tools_to_call_nothing_is_parsed(client, engine, extra):
    says(engine, CALL_TEXT)
    choice = choice_of(post(client, **extra))
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL_TEXT, "stop")
    assert (engine.requests[0].prompt.tools, engine.requests[0].spelled) == ((), False)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_is_refused_and_never_ignored(client, engine, choice):
    response = post(client, tool_choice=choice)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "tool_choice", "unsupported_parameter")
    assert "cannot be forced" in error["message"]
    assert engine.requests == []


def test_a_template_that_shows_no_tools_is_a_400(client, engine):
    says(engine, "x", template="{{ messages }}")
    error = post(client).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")


ASSISTANT = {"role": "assistant", "content": None}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"tools": [{"type": "code_interpreter", "function": {"name": "f"}}]}, "tools.0.type"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"messages": [{**ASSISTANT, "tool_calls": [{"id": "x"}]}]}, "messages.0.tool_calls.0.function"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [NAMED]}]}, "messages.0.tool_calls"),
        *(
            (
                {"messages": [{**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": text}}]}]},
                "messages.0.tool_calls.0.function.arguments",
            )
            for text in ("{", "[]", "3", '{"a": NaN}', '{"a":' * 100_000)
        ),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(client, engine, body, param):
    response = post(client, **body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert engine.requests == []


def test_calls_and_their_results_in_the_history_reach_the_template(client, engine):
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"id": "c", "type": "function", "function": {"name": "h", "arguments": {"y": "ü"}}},
    ]
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "42"}]},
    ]
    post(client, messages=messages)
    assert engine.requests[0].prompt.messages[1:] == (
        ChatMessage(
            "assistant",
            "",
            tool_calls=(ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", "{}"), ToolCall("c", "h", '{"y":"ü"}')),
            reasoning="Hm.",
        ),
        ChatMessage("tool", "42", tool_call_id="a"),
    )


def test_reasoning_is_split_from_the_answer_also_without_tools(client, engine):
    says(engine, "<think>\nHm.\n</think>\n\nYes.", template=QWEN3)
    choice = choice_of(post(client, tools=None))
    assert choice["message"] == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning_content": "Hm.",
    }
    deltas, reason = streamed(client, tools=None)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    assert reason == "stop"


def test_reasoning_the_prompt_has_begun_is_reasoning(client, engine):
    says(engine, "Hm.</think>" + CALL_TEXT, template=QWEN3, prompt_end="assistant\n<think>\n")
    message = choice_of(post(client))["message"]
    assert (message["reasoning_content"], len(message["tool_calls"])) == ("Hm.", 1)


def test_the_logprobs_of_a_call_are_told_although_its_text_is_held_back(client, engine):
    says(engine, "Ok. " + CALL_TEXT)
    whole = choice_of(post(client, logprobs=True))["logprobs"]["content"]
    data = sse_data(post(client, logprobs=True, stream=True).text)[:-1]
    pieces = [chunk["choices"][0]["logprobs"] for chunk in data]
    assert "".join(token["token"] for token in whole) == "Ok. " + CALL_TEXT
    assert [token for piece in pieces if piece for token in piece["content"]] == whole


def test_answers_with_calls_and_reasoning_are_as_openapi_says(client, engine):
    says(engine, "<think>Hm</think>" + CALL_TEXT, template=QWEN3)
    whole = post(client).json()
    assert msgspec.to_builtins(msgspec.convert(whole, answers.ChatAnswer)) == whole
    for chunk in sse_data(post(client, stream=True).text)[:-1]:
        assert msgspec.to_builtins(msgspec.convert(chunk, answers.ChatChunk)) == chunk


async def test_a_stream_is_pinged_while_a_long_call_is_written():
    class Slow(WatchedEngine):
        async def generate(self, request):
            async for event in super().generate(request):
                await asyncio.sleep(0.01)
                yield event

    engine = Slow(info=msgspec.structs.replace(FAKE_INFO, chat_template=HERMES))
    engine.script = Script(deltas=tuple(CALL_TEXT))
    async with serving(engine, ping_s=0.05) as live:
        _, _, content = await live.request(CHAT, {"messages": MESSAGES, "tools": [WEATHER], "stream": True})
    assert content.count(b": ping") >= 3


def sdk(live):
    http = openai.DefaultAsyncHttpxClient(verify=False, trust_env=False)
    return openai.AsyncOpenAI(base_url=f"{live.server.url}/v1", api_key="x", max_retries=0, http_client=http)


async def test_the_openai_sdk_reads_calls_and_its_stream_helper_joins_them():
    class Weather(pydantic.BaseModel):
        city: str

    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    engine = WatchedEngine(info=msgspec.structs.replace(FAKE_INFO, chat_template=QWEN3))
    engine.script = Script(deltas=tuple("<think>Hm</think>Ok. " + CALL_TEXT * 2))
    async with serving(engine) as live, sdk(live) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[tool])
        async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=[tool]) as stream:
            joined = await stream.get_final_completion()
    for completion in (whole, joined):
        (choice,) = completion.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Ok.")
        assert [call.function.arguments for call in choice.message.tool_calls] == [CALL["arguments"]] * 2
        assert len({call.id for call in choice.message.tool_calls}) == 2
    assert joined.choices[0].message.tool_calls[1].function.parsed_arguments == Weather(city="Zürich\u2028")
    assert whole.choices[0].message.reasoning_content == "Hm"
