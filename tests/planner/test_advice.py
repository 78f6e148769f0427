"""What a plan or a refusal suggests: it must work when typed."""

import shlex
from dataclasses import replace

from ggufdeploy.hardware.catalog import find_gpu, list_gpus, simulate
from ggufdeploy.planner.advice import Advice, Invocation, OtherModel, avoid_offload, numbered
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.refusal import does_not_fit
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.planner.search import evaluate, longest_context_tokens, search
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


def texts(wish, host, info=None, models=()) -> list[str]:
    option = evaluate(candidate(info=info), wish, host, MEMORY)
    found = avoid_offload(option, (option,), wish, host, Invocation("m"), list_gpus(), models)
    return [f"{advice.text}: {advice.command}" for advice in found]


MOE = model(expert_bytes=GIB * 3 // 4)


def test_where_the_policy_forbids_it_experts_in_ram_are_a_way_out():
    for policy in ("none", "layers"):
        (line,) = [line for line in texts(request(offload=policy), machine(gpu(10 * GIB)), MOE) if "experts" in line]
        assert line.startswith("with some of its experts in RAM Q4_K_M runs, about ")
        assert line.endswith("--offload experts")
    assert not [line for line in texts(request(), machine(gpu(10 * GIB)), MOE) if "in RAM" in line]


def test_a_dense_model_may_leave_layers_in_ram():
    (line,) = [line for line in texts(request(offload="none"), machine(gpu(10 * GIB))) if "in RAM" in line]
    assert line.startswith("with some of its layers in RAM")
    assert line.endswith("--offload auto")


def test_more_of_this_gpu_and_the_smallest_single_one_are_both_named():
    host = simulate(find_gpu("rtx-4090"), 1, base=machine())
    lines = texts(request(), host, model(n_layers=30, layer_bytes=GIB))
    assert any("2 x GeForce RTX 4090 hold Q4_K_M" in line and "--gpu rtx-4090:2" in line for line in lines)
    (single,) = [line for line in lines if line.startswith("one ")]
    name = single.rpartition("--gpu ")[2]
    smaller = [spec for spec in list_gpus() if spec.llama_free_bytes < find_gpu(name).llama_free_bytes]
    wish = request(quantization="Q4_K_M")
    big = candidate(info=model(n_layers=30, layer_bytes=GIB))
    assert evaluate(big, wish, simulate(find_gpu(name), 1, base=machine()), MEMORY).verdict == "gpu"
    for spec in smaller:
        assert evaluate(big, wish, simulate(spec, 1, base=machine()), MEMORY).verdict != "gpu"


def other(name: str, n_layers: int, n_params: int, trained: int = 131_072) -> OtherModel:
    info = replace(model(n_layers=n_layers), n_params=n_params, context_train_tokens=trained)
    return OtherModel(name, candidate(info=info))


def test_other_models_are_named_largest_first_if_they_fit_wholly_hold_the_context_and_are_fast_enough():
    host = machine(gpu(12 * GIB))
    models = [
        other("small", 2, 2 * 10**9), other("large", 20, 20 * 10**9), other("middle", 5, 5 * 10**9),
        other("short", 4, 4 * 10**9, trained=8192), other("little", 3, 3 * 10**9), other("tiny", 1, 10**9),
    ]  # fmt: skip
    named = [line.split()[0] for line in texts(request(), host, models=models) if "(estimate)" in line]
    assert named == ["middle", "little", "small"]
    quick = [line for line in texts(request(min_decode_tokens_per_s=300), host, models=models) if "(estimate)" in line]
    assert [line.split()[0] for line in quick] == ["small", "tiny"]
    assert all("--ctx 32768" in line and "--quant" not in line for line in quick)


def test_advice_is_a_numbered_list_of_commands():
    lines = numbered([Advice("this helps", "ggufdeploy plan m"), Advice("so does that", None)])
    assert lines == "1. this helps: ggufdeploy plan m\n2. so does that"
    assert numbered([]) == ""


def test_flags_that_may_be_repeated_are_repeated_and_left_out_where_another_machine_is_meant():
    typed = Invocation("m", {"vram_budget": ("CUDA0=5", "7"), "prefer": "quality"})
    words = shlex.split(typed.command("plan", request(kv_type="q8_0")))
    assert words[-6:] == ["--vram-budget", "CUDA0=5", "--vram-budget", "7", "--prefer", "quality"]
    assert "--vram-budget" not in typed.command("plan", request(), gpu="t4", vram_budget=None)


def test_a_kv_type_that_was_left_open_is_left_open_in_commands():
    assert "--kv-type" not in Invocation("m").command("plan", request(other_kv_types=("q8_0",)))
    assert "--kv-type f16" in Invocation("m").command("plan", request())


def test_a_refusal_for_quality_names_the_best_there_is():
    wish, host = request(min_quality=0.99), machine(gpu(30 * GIB))
    error = does_not_fit(search([candidate()], wish, host, MEMORY).options, wish, host, Invocation("m", {"slots": 2}))
    assert "no quantization of quality 0.990 or more" in error.message
    assert "the best is Q4_K_M at 0.972" in error.message
    assert error.hint == "without the floor: ggufdeploy plan m --ctx 32768 --kv-type f16 --slots 2"


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
