"""Which settings are measured, and what becomes of the runs."""

import pytest

from ggufdeploy.deploy import measuring
from ggufdeploy.deploy.measuring import Run, Setting, measure, samples_of, settings_for
from ggufdeploy.engine.request import EngineInfo, Finished, Stats
from ggufdeploy.engine.service import EngineStatus
from ggufdeploy.planner.placement import on_cpu
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.speed import predict
from tests.planner.models import machine, model


def test_settings_go_deeper_as_far_as_the_context_goes_and_take_several_streams_once():
    assert settings_for(8192, 4) == [
        Setting(64, 64),
        Setting(64, 64, streams=4),
        Setting(512, 64),
        Setting(4096, 64),
    ]
    assert settings_for(1024, 1) == [Setting(64, 64), Setting(512, 64)]
    assert settings_for(100, 4) == [Setting(36, 64)]


@pytest.mark.parametrize("context", [128, 256, 300, 576, 4160, 65536])
@pytest.mark.parametrize("slots", [1, 2, 4, 256])
def test_every_setting_fits_the_context(context, slots):
    for setting in settings_for(context, slots):
        assert setting.streams * (setting.prompt_tokens + setting.generated_tokens) <= context


class Client:
    """An engine that prefills 100 tokens/s and decodes 10."""

    def __init__(self):
        info = EngineInfo(
            description="", context_tokens=8192, slots=4, n_vocab=100, context_train_tokens=8192, buffers=(),
            layer_devices=(), has_chat_template=False, load_s=0.0,
        )  # fmt: skip
        self.status = EngineStatus("ready", info=info)
        self.stats = Stats()
        self.prompts = []
        self.stopped = False

    @classmethod
    async def start(cls, config, *, on_progress=None):
        cls.last = cls()
        return cls.last

    async def wait_ready(self):
        pass

    async def generate(self, request):
        self.prompts.append(request.prompt.tokens)
        n, made = len(request.prompt.tokens), request.max_tokens
        yield Finished(request.id, "length", n, made, 0, n / 100, (made - 1) / 10, 0.0)

    async def stop(self, grace_s):
        self.stopped = True


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(measuring, "EngineClient", Client)
    return Client


async def run(settings, repeat=2):
    runs, skipped = [], []
    done = await measure(
        None, settings, repeat, on_progress=lambda _: None, on_run=runs.append,
        on_skip=lambda setting, seconds: skipped.append((setting, seconds)),
    )  # fmt: skip
    assert done == runs
    return runs, skipped


async def test_rates_are_of_one_stream_and_no_prompt_is_asked_twice(client):
    runs, _ = await run([Setting(64, 11), Setting(64, 11, streams=3)])
    assert runs[0] == Run(64, 11, 1, 100.0, 10.0, 10.0)
    assert runs[1] == Run(64, 11, 3, 100.0, 10.0, 30.0)
    prompts = client.last.prompts
    assert len(prompts) == 1 + 2 + 6  # the first warms up
    assert len({tokens[:8] for tokens in prompts}) == len(prompts)
    assert client.last.stopped


async def test_a_setting_that_would_take_too_long_is_left_out_and_said(client):
    runs, skipped = await run([Setting(64, 11), Setting(7000, 11)])
    assert [r.prompt_tokens for r in runs] == [64]
    assert skipped == [(Setting(7000, 11), pytest.approx(71.1))]


async def test_the_engine_is_stopped_when_a_run_fails(client, monkeypatch):
    async def broken(self, request):
        raise RuntimeError("boom")
        yield

    monkeypatch.setattr(Client, "generate", broken)
    with pytest.raises(RuntimeError, match="boom"):
        await run([Setting(64, 11)])
    assert client.last.stopped


def test_runs_of_one_stream_become_samples_that_bring_the_model_to_what_was_measured():
    info, host, place = model(), machine(), on_cpu(10, 0)
    runs = [Run(64, 64, 1, 50.0, 3.0, 3.0), Run(64, 64, 4, 50.0, 2.0, 8.0)]
    (sample,) = samples_of(runs, info, place, "f16", host)
    measured = machine()
    measured = type(measured)(**{**vars(measured), "speed_samples": (sample,)})
    speed = predict(info, PlanRequest(8192, 4), place, measured, used_tokens=96)
    assert (speed.decode_tokens_per_s, speed.prefill_tokens_per_s) == (pytest.approx(3.0), pytest.approx(50.0))
    assert speed.basis == "measured"
