"""Measure a model through the engine that serves it: decode and prefill at several depths of context."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ggufdeploy.deploy.planning import Planned
from ggufdeploy.engine.client import EngineClient
from ggufdeploy.engine.request import EngineConfig, Finished, GenerateRequest, SamplingParams, TokenPrompt
from ggufdeploy.gguf.model import ModelInfo, model_info
from ggufdeploy.hardware.cpu import measure_ram_bandwidth_bytes_per_s
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.hardware.samples import SpeedSample
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.request import KvType
from ggufdeploy.planner.work import active_params, work_per_token

GENERATED_TOKENS = 64
LONGEST_S = 60.0
"""A setting that would take longer is left out."""
_DEPTHS_TOKENS = (64, 512, 4096)
_STREAMS = 4
_WARM_UP = (16, 4)  # prompt and generated tokens; maps the weights and makes the engine allocate what it does late
_BANDWIDTH_ROUNDS, _BANDWIDTH_S = 3, 0.5


@dataclass(frozen=True)
class Setting:
    """streams requests at once, each with a prompt of its own."""

    prompt_tokens: int
    generated_tokens: int
    streams: int = 1


@dataclass(frozen=True)
class Run:
    """One setting's medians. tokens/s of one stream; total_tokens_per_s: decoded by all streams together."""

    prompt_tokens: int
    generated_tokens: int
    streams: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    total_tokens_per_s: float


def measure_ram() -> int:
    """Return the RAM's read bandwidth in bytes/s: the best of three short rounds, as others only make it slower."""
    return max(measure_ram_bandwidth_bytes_per_s(_BANDWIDTH_S) for _ in range(_BANDWIDTH_ROUNDS))


def settings_for(context_tokens: int, slots: int, generated_tokens: int = GENERATED_TOKENS) -> list[Setting]:
    """Return the settings that a context of this size holds, the quickest first."""
    depths = [depth for depth in _DEPTHS_TOKENS if depth + generated_tokens <= context_tokens]
    found = [Setting(depth, generated_tokens) for depth in depths or [max(context_tokens - generated_tokens, 1)]]
    streams = min(slots, _STREAMS)
    if streams > 1 and streams * (_DEPTHS_TOKENS[0] + generated_tokens) <= context_tokens:
        found.insert(1, Setting(_DEPTHS_TOKENS[0], generated_tokens, streams))
    return found


async def measure(
    config: EngineConfig,
    settings: Sequence[Setting],
    repeat: int,
    *,
    on_progress: Callable[[float], None],
    on_run: Callable[[Run], None],
    on_skip: Callable[[Setting, float], None],
) -> list[Run]:
    """Load the model, run every setting `repeat` times, and stop.

    on_skip: called with the seconds a setting would take, when that is more than LONGEST_S.
    Raises LoadFailed, EngineCrashed.
    """
    client = await EngineClient.start(config, on_progress=on_progress)
    try:
        await client.wait_ready()
        info = client.status.info
        assert info is not None
        prompts = _Prompts(info.n_vocab)
        await _run_once(client, Setting(*_WARM_UP), prompts)
        runs: list[Run] = []
        for setting in settings:
            seconds = _expected_s(setting, runs)
            if seconds > LONGEST_S:
                on_skip(setting, seconds)
                continue
            rounds = [await _run_once(client, setting, prompts) for _ in range(repeat)]
            runs.append(_median(setting, rounds))
            on_run(runs[-1])
        return runs
    finally:
        await client.stop(0.0)


class _Prompts:
    """Random tokens, so that no prompt shares a prefix with an earlier one and every prefill is computed."""

    def __init__(self, n_vocab: int) -> None:
        self._random = random.Random(1)
        self._n_vocab = n_vocab
        self._count = 0

    def next(self, setting: Setting) -> GenerateRequest:
        self._count += 1
        return GenerateRequest(
            id=f"bench-{self._count}",
            prompt=TokenPrompt(tuple(self._random.randrange(self._n_vocab) for _ in range(setting.prompt_tokens))),
            sampling=SamplingParams(temperature=0.0),
            max_tokens=setting.generated_tokens,
            ignore_eos=True,
        )


async def _run_once(client: EngineClient, setting: Setting, prompts: _Prompts) -> list[Finished]:
    return list(await asyncio.gather(*(_finish(client, prompts.next(setting)) for _ in range(setting.streams))))


async def _finish(client: EngineClient, request: GenerateRequest) -> Finished:
    finished = None
    async for event in client.generate(request):
        finished = event if isinstance(event, Finished) else finished
    assert finished is not None
    return finished


def _median(setting: Setting, rounds: Sequence[Sequence[Finished]]) -> Run:
    ends = [end for ends in rounds for end in ends]
    decode = median((end.completion_tokens - 1) / end.decode_s for end in ends)
    prefill = median((end.prompt_tokens - end.cached_tokens) / end.prefill_s for end in ends)
    return Run(
        setting.prompt_tokens, setting.generated_tokens, setting.streams, round(prefill, 2), round(decode, 2),
        round(decode * setting.streams, 2),
    )  # fmt: skip


def _expected_s(setting: Setting, runs: Sequence[Run]) -> float:
    """Return what one round will take by the runs so far: 0 before the first."""
    if not runs:
        return 0.0
    last = runs[0]
    decode_s = setting.generated_tokens / last.decode_tokens_per_s
    return setting.streams * (setting.prompt_tokens / last.prefill_tokens_per_s) + decode_s


def planned_model(planned: Planned) -> ModelInfo:
    """Return what the header of the planned quantization says; it is on this disk by now."""
    headers = planned.source.headers(planned.artifact)
    assert headers is not None
    return model_info([shard.header for shard in headers.shards])


def planned_placement(planned: Planned) -> Placement:
    """Return the plan's placement as the planner computes with it."""
    place = planned.plan.placement
    items = tuple(int(share) for share in place.tensor_split)
    return Placement(place.n_layers_total - 1, items, len(place.overrides))


def samples_of(
    runs: Sequence[Run], model: ModelInfo, placement: Placement, kv_type: KvType, machine: Machine
) -> tuple[SpeedSample, ...]:
    """Return the runs of one stream as samples that correct later plans."""
    return tuple(
        SpeedSample(
            architecture=model.architecture,
            n_params=model.n_params,
            weights_bytes=model.total_bytes,
            active_params=int(active_params(model)),
            n_gpu_layers=placement.n_gpu_layers,
            cpu_expert_layers=placement.cpu_expert_layers,
            work=work_per_token(model, kv_type, placement, machine, run.prompt_tokens + run.generated_tokens // 2),
            decode_tokens_per_s=run.decode_tokens_per_s,
            prefill_tokens_per_s=run.prefill_tokens_per_s,
        )
        for run in runs
        if run.streams == 1
    )
