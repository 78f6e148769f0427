"""What a plan or a refusal suggests: it must work when typed."""

import shlex
from dataclasses import replace

from ggufdeploy.hardware.catalog import find_gpu, list_gpus, simulate
from ggufdeploy.planner.advice import Invocation, avoid_offload, longest_context_tokens
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.refusal import does_not_fit
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import evaluate, search
from ggufdeploy.units import GIB
from tests.planner.models import candidate, gpu, machine, model

MEMORY = FormulaMemory()


def request(**changes) -> PlanRequest:
    return PlanRequest(**{"context_tokens": 32768, "slots": 4, **changes})


def commands(wish, host, info=None, flags=None) -> list[str]:
    option = evaluate(candidate(info=info), wish, host, MEMORY)
    typed = Invocation("my model", flags or {})
    return [advice.command for advice in avoid_offload(option, (option,), wish, host, typed, list_gpus())]


def test_commands_repeat_what_the_user_asked_for_and_are_quoted():
    lines = commands(request(kv_type="q8_0"), machine(gpu(8 * GIB)), flags={"slots": 2, "ubatch": None})
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[2] == "my model"
        assert words[words.index("--kv-type") + 1] == "q8_0"
        assert words[words.index("--slots") + 1] == "2"
        assert words[words.index("--quant") + 1] == "Q4_K_M"
        assert "--ubatch" not in words


def test_a_quantized_kv_cache_is_not_advised_for_heads_it_cannot_hold():
    host = machine(gpu(14 * GIB))
    assert any("q8_0" in line for line in commands(request(context_tokens=65536), host))
    odd = replace(model(), layers=tuple(replace(x, key_length=144, value_length=112) for x in model().layers))
    assert not any("q8_0" in line for line in commands(request(context_tokens=65536), host, odd))


def test_more_of_the_same_gpu_means_more_than_there_are():
    host = simulate(find_gpu("rtx-4090"), 2, base=machine())
    lines = commands(request(), host, model(n_layers=30, layer_bytes=2 * GIB))
    assert [line for line in lines if "--gpu rtx-4090:4" in line]


def test_a_context_too_short_to_be_of_use_is_not_advised():
    host = machine(gpu(int(11.46 * GIB)))
    assert 256 <= longest_context_tokens(candidate(), request(), host, MEMORY) < 2048
    assert all("--ctx 32768" in line for line in commands(request(), host))


def test_a_refusal_for_speed_names_the_fastest_and_the_floor_and_how_to_go_on():
    wish, host = request(min_decode_tokens_per_s=500.0), machine(gpu(30 * GIB))
    result = search([candidate()], wish, host, MEMORY)
    assert result.chosen is None
    error = does_not_fit(result.options, wish, host, Invocation("m"))
    assert "too slow" in error.message
    assert "does not fit" not in error.message
    assert "Q4_K_M, the fastest, makes about" in error.message
    assert "500 tokens/s" in error.message
    assert "ggufdeploy plan m --quant Q4_K_M --ctx 32768" in error.hint


def test_a_refusal_without_a_gpu_speaks_of_ram_alone():
    wish, host = request(offload="none"), machine(ram_bytes=4 * GIB)
    error = does_not_fit(search([candidate()], wish, host, MEMORY).options, wish, host, Invocation("m"))
    assert "VRAM" not in error.message
    assert "it needs 11." in error.message
    assert "3.0 GiB may be used" in error.message
