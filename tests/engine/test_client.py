"""The whole engine room: client, worker process, llama.cpp, the demo model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from ggufdeploy.engine.client import EngineClient
from ggufdeploy.engine.request import (
    Accepted,
    ChatMessage,
    ChatPrompt,
    Delta,
    EngineConfig,
    Finished,
    GenerateRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
)
from ggufdeploy.errors import BadRequest, ContextOverflow, EngineCrashed, EngineError, LoadFailed, Overloaded
from tests.engine.conftest import with_changes

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

GREEDY = SamplingParams(temperature=0.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(demo_config):
    client = await EngineClient.start(demo_config)
    await client.wait_ready()
    yield client
    await client.stop(0)


def counting(first: int) -> TextPrompt:
    """Return a prompt whose continuation leaves no doubt: near-ties may fall differently in other batches."""
    return TextPrompt(", ".join(str(first + i) for i in range(8)) + ",")


def request(id: str, prompt: Prompt, max_tokens: int = 24, **kwargs: object) -> GenerateRequest:
    fields = {"sampling": GREEDY, **kwargs}
    return GenerateRequest(id=id, prompt=prompt, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


async def complete(client: EngineClient, wanted: GenerateRequest) -> tuple[str, Finished]:
    events = [event async for event in client.generate(wanted)]
    assert isinstance(events[0], Accepted)
    finished = events[-1]
    assert isinstance(finished, Finished)
    return "".join(event.text for event in events if isinstance(event, Delta)), finished


async def until(client: EngineClient, running: int) -> None:
    """Wait for statistics that say so; they come with every step."""

    async def watch() -> None:
        while client.stats.running != running:
            await asyncio.sleep(0.005)

    await asyncio.wait_for(watch(), 20)


async def test_the_model_is_described_as_loaded(client, demo_config):
    info = client.status.info
    assert client.status.phase == "ready"
    assert (info.slots, info.context_tokens, info.n_vocab) == (8, 2048, 49152)
    assert info.layer_devices == ("CPU",) * 31
    (host,) = info.buffers
    assert host.device == "CPU"
    assert host.kv_bytes == 2048 * 30 * 2 * 192 * 2
    assert host.weights_bytes > 90_000_000


async def test_logprobs_spell_the_text_and_greedy_takes_the_likeliest(client):
    wanted = request("logprobs", counting(3), max_tokens=12, logprobs=3)
    deltas = [event async for event in client.generate(wanted) if isinstance(event, Delta)]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert b"".join(entry.data for entry in entries).decode() == "".join(delta.text for delta in deltas)
    assert len(entries) == 12
    for entry in entries:
        assert (entry.top[0].data, entry.top[0].logprob) == (entry.data, entry.logprob)
        assert 0 >= entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob


async def test_every_sampler_at_once_still_gives_text(client):
    odd = SamplingParams(
        typical_p=0.9, top_n_sigma=3, xtc_probability=0.5, dynatemp_range=0.5, dry_multiplier=0.8, seed=1
    )
    assert (await complete(client, request("odd", counting(1), sampling=odd)))[1].completion_tokens > 0


async def test_a_request_gets_the_same_text_alone_and_among_seven_others(client):
    alone = [(await complete(client, request(f"alone{i}", counting(10 * i))))[0] for i in range(8)]
    together = await asyncio.gather(*(complete(client, request(f"both{i}", counting(10 * i))) for i in range(8)))
    assert [text for text, _ in together] == alone
    assert alone[1].startswith(" 18, 19, 20, 21")


async def test_eight_streams_interleave(client):
    order: list[str] = []

    async def run(id: str) -> None:
        async for event in client.generate(request(id, counting(int(id)), max_tokens=32)):
            if isinstance(event, Delta):
                order.append(id)

    await asyncio.gather(*(run(str(10 * i)) for i in range(8)))
    rounds = [order[i : i + 8] for i in range(len(order) // 4, len(order) // 2, 8)]
    assert all(len(set(each)) == 8 for each in rounds)


async def test_closing_the_iterator_frees_the_slot_within_one_step(client):
    stream = client.generate(request("long", counting(1), max_tokens=1000))
    async for event in stream:
        if isinstance(event, Delta):
            break
    assert client.stats.running == 1
    await stream.aclose()
    steps_before = client.stats.steps_total
    await until(client, 0)
    assert client.stats.steps_total - steps_before <= 2


async def test_cancelling_the_waiting_task_cancels_the_request(client):
    task = asyncio.ensure_future(complete(client, request("cancelled", counting(1), max_tokens=1000)))
    await until(client, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(client, 0)


async def test_a_prompt_longer_than_the_context_is_refused_before_it_starts(client):
    with pytest.raises(ContextOverflow) as caught:
        await complete(client, request("overflow", TextPrompt("word " * 3000)))
    assert caught.value.context_tokens == 2048
    assert caught.value.prompt_tokens > 3000


async def test_thirty_thousand_times_the_same_letter_harms_nobody(client):
    with pytest.raises(ContextOverflow):
        await complete(client, request("letters", TextPrompt("a" * 30_000)))
    assert len(await client.tokenize("a" * 30_000)) > 2048


async def test_a_stop_string_ends_the_text_and_is_not_shown(client):
    text, finished = await complete(client, request("stop", counting(1), stop=("1, 12", "never")))
    assert (text, finished.reason) == (" 9, 10, 1", "stop")


async def test_the_same_seed_gives_the_same_text(client):
    prompt = TextPrompt("Once upon a time")

    async def sampled(id: str, seed: int) -> str:
        return (await complete(client, request(id, prompt, sampling=SamplingParams(temperature=1.5, seed=seed))))[0]

    first, again, other = [await sampled(f"seed{i}", seed) for i, seed in enumerate((7, 7, 8))]
    assert first == again != other


async def test_chat_uses_the_models_template_and_ends_with_its_end_token(client):
    prompt = ChatPrompt((ChatMessage("user", "What is the capital of France? Answer in one word."),))
    text, finished = await complete(client, request("chat", prompt, max_tokens=60))
    assert "Paris" in text
    assert "<|im" not in text
    assert finished.reason == "stop"


async def test_the_end_of_a_spelled_prompt_has_its_control_tokens(client):
    prompt = ChatPrompt((ChatMessage("user", "Hi"),))
    events = [event async for event in client.generate(request("spelled", prompt, max_tokens=1, spelled=True))]
    assert events[0].prompt_end.endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


async def test_emoji_of_three_tokens_come_out_whole_and_half_a_one_at_the_end_does_not(client):
    deltas = [
        event.text
        async for event in client.generate(request("emoji", TextPrompt("🎉" * 9), max_tokens=14))
        if isinstance(event, Delta)
    ]
    assert deltas == ["🎉"] * 4


async def test_a_second_turn_reads_only_the_new_part(client):
    text, first = await complete(client, request("turn1", counting(300)))
    longer = TextPrompt(counting(300).text + text + " and then")
    _, second = await complete(client, request("turn2", longer))
    assert second.cached_tokens >= first.prompt_tokens


async def test_a_bad_request_keeps_its_field(client):
    with pytest.raises(BadRequest) as caught:
        await complete(client, request("bad", counting(1), sampling=SamplingParams(logit_bias=((10**6, 1.0),))))
    assert caught.value.param == "logit_bias"


async def test_tokens_of_a_text(client):
    assert await client.tokenize("Hello <|im_start|>") == [19556, 216, 1]


async def test_the_text_of_tokens(client):
    text = "<|im_start|>Hello, wörld! 🙂"
    tokens = await client.tokenize(text)
    assert await client.detokenize(tokens) == text
    assert await client.detokenize([]) == ""
    with pytest.raises(BadRequest, match="49,152 tokens") as caught:
        await client.detokenize([49152])
    assert caught.value.param == "tokens"


async def test_the_template_shows_what_a_chat_becomes(client):
    chat = ChatPrompt((ChatMessage("user", "Hi"),))
    text = await client.render(chat)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    shown, plain = [
        await complete(client, request(id, prompt, 4)) for id, prompt in (("c", chat), ("t", TextPrompt(text)))
    ]
    assert (shown[0], shown[1].prompt_tokens) == (plain[0], plain[1].prompt_tokens)


async def test_more_requests_than_cells_all_finish(demo_config):
    small = await EngineClient.start(with_changes(demo_config, context_tokens=256, n_batch=64, n_ubatch=64))
    try:
        await small.wait_ready()
        wanted = [request(str(i), counting(100 * i), max_tokens=110) for i in range(8)]
        results = await asyncio.gather(*(complete(small, each) for each in wanted))
        assert [finished.completion_tokens for _, finished in results] == [110] * 8
        assert all(text.startswith(f" {100 * i + 8}, {100 * i + 9},") for i, (text, _) in enumerate(results))
    finally:
        await small.stop(0)


async def test_progress_is_reported_and_requests_are_refused_while_loading(demo_config):
    seen: list[float] = []
    loading = await EngineClient.start(demo_config, on_progress=seen.append)
    try:
        assert loading.status.phase == "loading"
        with pytest.raises(Overloaded, match="loading"):
            await complete(loading, request("early", counting(1)))
        await loading.wait_ready()
        assert seen == sorted(seen)
        assert 0 <= seen[0] < seen[-1] <= 1
    finally:
        await loading.stop(0)


async def test_stopping_lets_running_requests_finish_and_refuses_new_ones(demo_config):
    client = await EngineClient.start(demo_config)
    await client.wait_ready()
    running = asyncio.ensure_future(complete(client, request("running", counting(1), max_tokens=20)))
    await until(client, 1)
    stopping = asyncio.ensure_future(client.stop(30))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="shutting down"):
        await complete(client, request("late", counting(1)))
    _, finished = await running
    assert finished.completion_tokens == 20
    await stopping
    await client.stop(0)
    assert client.status.phase == "stopped"
    assert not _is_alive(client.pid)


async def test_stopping_without_grace_ends_running_requests_with_an_error(demo_config):
    client = await EngineClient.start(demo_config)
    await client.wait_ready()
    running = asyncio.ensure_future(complete(client, request("running", counting(1), max_tokens=1000)))
    await until(client, 1)
    await client.stop(0)
    with pytest.raises(EngineError, match="stopped"):
        await running


async def test_a_killed_worker_fails_running_requests_and_says_how_it_died(demo_config):
    client = await EngineClient.start(demo_config)
    await client.wait_ready()
    running = asyncio.ensure_future(complete(client, request("running", counting(1), max_tokens=1000)))
    await until(client, 1)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match="SIGKILL") as caught:
        await running
    assert caught.value.exit_code == -signal.SIGKILL
    assert client.status.phase == "failed"
    assert client.stats.running == 0
    with pytest.raises(EngineError):
        await client.tokenize("x")
    await client.stop(0)


async def _load_error(config: EngineConfig) -> LoadFailed:
    client = await EngineClient.start(config)
    try:
        with pytest.raises(LoadFailed) as caught:
            await client.wait_ready()
        assert client.status.phase == "failed"
        assert client.status.error == caught.value.message
        return caught.value
    finally:
        await client.stop(0)


async def test_a_truncated_file_does_not_load_and_says_why(demo_config, demo_model, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(demo_model.read_bytes()[:50_000_000])
    error = await _load_error(with_changes(demo_config, model_path=str(cut)))
    assert "bounds" in error.message or "truncated" in error.message
    assert not error.out_of_memory
    assert error.log


async def test_a_file_that_is_no_gguf_does_not_load(demo_config, tmp_path):
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF" + bytes(range(256)) * 10)
    assert "could not load the model" in (await _load_error(with_changes(demo_config, model_path=str(junk)))).message


async def test_a_header_that_aborts_llama_cpp_is_an_error_with_its_last_words(demo_config, demo_model, tmp_path):
    data, key = bytearray(demo_model.read_bytes()), b"llama.block_count"
    value = data.index(len(key).to_bytes(8, "little") + key) + 8 + len(key) + 4
    data[value : value + 4] = (1 << 31).to_bytes(4, "little")
    hostile = tmp_path / "hostile.gguf"
    hostile.write_bytes(data)
    error = await _load_error(with_changes(demo_config, model_path=str(hostile)))
    assert "SIGABRT" in error.message
    assert "LLAMA_MAX_LAYERS" in error.message
    assert not error.out_of_memory


async def test_a_missing_file_does_not_load(demo_config):
    assert "no model file" in (await _load_error(with_changes(demo_config, model_path="/nonexistent.gguf"))).message


async def test_parameters_llama_cpp_refuses_do_not_load(demo_config):
    refused = with_changes(demo_config, value_type="q4_0", flash_attention=False)
    error = await _load_error(refused)
    assert "create the context" in error.message


async def test_a_worker_killed_while_loading_counts_as_out_of_memory(demo_config):
    client = await EngineClient.start(demo_config)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(LoadFailed, match="SIGKILL") as caught:
        await client.wait_ready()
    assert caught.value.out_of_memory
    await client.stop(0)


async def test_the_worker_dies_with_its_parent(demo_config, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, sys, msgspec\n"
        "from ggufdeploy.engine.client import EngineClient\n"
        "from ggufdeploy.engine.request import EngineConfig\n"
        "async def main():\n"
        "    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)\n"
        "    client = await EngineClient.start(config)\n"
        "    await client.wait_ready()\n"
        "    print(client.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        msgspec.json.encode(demo_config).decode(),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert _is_alive(pid)
    parent.kill()
    await parent.wait()
    for _ in range(500):
        if not _is_alive(pid):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"worker {pid} outlived its parent")


def _is_alive(pid: int) -> bool:
    """Say whether the process runs; one that waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
