"""The real openai SDK against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest

from ggufdeploy.errors import ContextOverflow, EngineCrashed, Overloaded
from tests.fakes import Script
from tests.server.conftest import MESSAGES, MODEL, Live, WatchedEngine, serving

KEY = "sk-test"


@asynccontextmanager
async def sdk(
    engine: WatchedEngine | None = None, key: str = KEY, retries: int = 0, **changes
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Live]]:
    async with (
        serving(engine, api_key=KEY, **changes) as live,
        openai.AsyncOpenAI(
            base_url=f"{live.server.url}/v1",
            api_key=key,
            max_retries=retries,
            http_client=openai.DefaultAsyncHttpxClient(verify=False, trust_env=False),
        ) as client,
    ):
        yield client, live


async def test_chat():
    async with sdk() as (client, _):
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=2)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 2, 7)
    assert answer.model == MODEL


async def test_streamed_chat_with_usage():
    async with sdk() as (client, _):
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello world!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
    assert chunks[-1].usage is not None
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 8)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_streaming_helper_accumulates_the_same_text():
    async with sdk() as (client, _), client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "Hello world!"


async def test_completions_whole_and_streamed():
    async with sdk() as (client, _):
        answer = await client.completions.create(model=MODEL, prompt=["a", "b"])
        stream = await client.completions.create(model=MODEL, prompt=[1, 2, 3], stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert [choice.text for choice in answer.choices] == ["Hello world!"] * 2
    assert text == "Hello world!"


async def test_logprobs_of_both_routes():
    async with sdk() as (client, _):
        chat = await client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2)
        text = await client.completions.create(model=MODEL, prompt="a", logprobs=2)
    content = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert content is not None
    assert "".join(each.token for each in content) == chat.choices[0].message.content
    assert [len(each.top_logprobs) for each in content] == [2, 2, 2]
    assert text.choices[0].logprobs is not None
    assert "".join(text.choices[0].logprobs.tokens or []) == text.choices[0].text


async def test_models():
    async with sdk(aliases=("small",)) as (client, _):
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve("small")).id == "small"
        assert (await client.models.retrieve(MODEL)).owned_by == "ggufdeploy"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("owner/other")


async def test_closing_a_stream_early_cancels_the_request():
    engine = WatchedEngine(script=Script(deltas=tuple("abc" * 100_000)))
    async with sdk(engine) as (client, live):
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        assert await live.engine.ended.get() == engine.cancelled[0]


async def test_a_client_timeout_cancels_the_request():
    async with sdk() as (client, live):
        live.engine.hold()
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, timeout=0.2)
        assert await live.engine.ended.get() == live.engine.cancelled[0]


async def test_errors_become_the_sdks_classes():
    async with sdk() as (client, live):
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as missing:
            await create(model="gpt-5", messages=MESSAGES)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as wrong:
            await create(model=MODEL, messages=MESSAGES, temperature=9)
        assert wrong.value.param == "temperature"
        live.engine.script = Script(rejected=ContextOverflow(9000, 4096))
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as overflow:
                await create(model=MODEL, messages=MESSAGES, stream=stream)
            assert overflow.value.code == "context_length_exceeded"
        live.engine.script = Script(rejected=Overloaded("The queue is full.", retry_after_s=1))
        with pytest.raises(openai.RateLimitError):
            await create(model=MODEL, messages=MESSAGES)
        live.engine.phase = "loading"
        with pytest.raises(openai.APIStatusError) as loading:
            await create(model=MODEL, messages=MESSAGES)
        assert loading.value.status_code == 503


async def test_a_wrong_key_is_an_authentication_error():
    async with sdk(key="sk-other") as (client, _):
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_an_error_in_the_middle_of_a_stream_is_raised_after_the_text_before_it():
    broken = Script(deltas=("a", "b"), broken=EngineCrashed("The engine died.", exit_code=-9))
    async with sdk(WatchedEngine(script=broken)) as (client, _):
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        got: list[str] = []

        async def read() -> None:
            async for chunk in stream:
                got.append(chunk.choices[0].delta.content or "")

        with pytest.raises(openai.APIError, match="The engine died"):
            await read()
    assert "".join(got) == "ab"


async def test_the_sdk_tries_again_after_an_overload_but_not_after_a_crash():
    engine = WatchedEngine()
    errors = [Overloaded("busy", retry_after_s=0.01), None, EngineCrashed("died", exit_code=-9)]
    engine.script = lambda request: Script(rejected=errors[len(engine.requests) - 1])
    async with sdk(engine, retries=2) as (client, _):
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello world!"
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert len(engine.requests) == 3
