"""Mixtral 8x22B on one H100 that is not in this machine, end to end over a loopback Hub."""

from __future__ import annotations

import json

import pytest

from ggufdeploy.deploy.planning import make
from ggufdeploy.deploy.resolution import resolve
from ggufdeploy.deploy.wish import Wish
from ggufdeploy.gguf.model import model_info
from ggufdeploy.hardware.catalog import find_gpu, simulate
from ggufdeploy.hardware.machine import Machine
from ggufdeploy.planner.budget import fits
from ggufdeploy.planner.memory import FormulaMemory
from ggufdeploy.planner.placement import Placement
from ggufdeploy.planner.plan import plan_from_json, plan_to_json
from ggufdeploy.planner.request import PlanRequest
from ggufdeploy.units import GIB, format_file_size
from tests.deploy.conftest import REPO, SHARDS, ggufdeploy

pytestmark = pytest.mark.engine


def plan(*args: str):
    return ggufdeploy("plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ram", "256GiB", "--json", *args)


def by_name(document):
    return {item["quantization"]: item for item in document["alternatives"]}


@pytest.mark.parametrize(
    ("context", "quantizations", "kv_bytes"),
    [
        (8192, {"Q4_K_S", "IQ4_XS"}, 1_879_048_192),
        (32768, {"Q3_K_L"}, 7_516_192_768),
        (65536, {"Q3_K_M", "Q3_K_L"}, 15_032_385_536),
    ],
)
def test_the_best_quantization_that_is_wholly_in_vram(mixtral_hub, context, quantizations, kv_bytes):
    result = plan("--ctx", str(context), "--kv-type", "f16")
    assert result.code == 0
    document = result.document
    assert document["verdict"] == "gpu"
    assert document["quantization"]["name"] in quantizations
    assert document["kv_cache"] == {"key_type": "f16", "value_type": "f16", "bytes": kv_bytes}
    assert document["context_tokens"] == context
    assert document["placement"]["n_gpu_layers"] == document["placement"]["n_layers_total"] == 57
    card = document["devices"][0]
    assert card["used_bytes"] + card["margin_bytes"] <= card["free_bytes"]
    assert document["header_source"] == "remote"


@pytest.mark.parametrize(
    ("context", "quantization", "kv_type"),
    [(8192, "Q4_K_S", "f16"), (32768, "IQ4_XS", "q8_0"), (65536, "Q3_K_M", "f16")],
)
def test_a_q8_0_kv_cache_is_taken_only_where_it_buys_a_clearly_better_quantization(
    mixtral_hub, context, quantization, kv_type
):
    document = plan("--ctx", str(context)).document
    assert (document["quantization"]["name"], document["kv_cache"]["key_type"]) == (quantization, kv_type)
    assert document["verdict"] == "gpu"
    assert ("q8_0 KV cache" in document["reason"]) == (kv_type == "q8_0")


def test_q4_k_m_is_never_called_fitting_and_f16_is_281_gb_and_does_not_fit(mixtral_hub):
    for context in ("512", "8192", "65536"):
        rows = by_name(plan("--ctx", context).document)
        assert rows["Q4_K_M"]["verdict"] == "offload"
        assert "does not fit in VRAM" in rows["Q4_K_M"]["why_not"]
        assert rows["F16"]["verdict"] in ("offload", "disk")
        assert rows["F16"]["why_not"].startswith("does not fit")
        assert set(rows) == set(SHARDS)


def test_f16_is_refused_with_its_281_gb_where_the_ram_is_small(mixtral_hub):
    result = ggufdeploy(
        "plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ram", "24GiB", "--quant", "F16", "--ctx", "8192", "--json"
    )
    assert result.code == 5
    assert "281.3 GB" in result.error["message"]
    assert "does not fit" in result.error["message"]
    assert "Q4_K_S" in result.error["hint"]
    assert result.stdout == ""


def test_a_named_quantization_is_offloaded_with_the_speed_cost_in_numbers(mixtral_hub):
    result = plan("--quant", "Q4_K_M", "--ctx", "32768", "--offload", "layers")
    document = result.document
    assert document["verdict"] == "offload"
    assert document["quantization"]["name"] == "Q4_K_M"
    assert 1 < document["placement"]["n_gpu_layers"] < 57
    warning = next(w for w in document["warnings"] if w["code"] == "offload_speed")
    host_layers = 57 - document["placement"]["n_gpu_layers"]
    speed = document["speed"]
    assert f"{host_layers} of 56 layers" in warning["message"]
    assert "GiB" in warning["message"]
    assert "tokens/s instead of" in warning["message"]
    ratio = speed["all_gpu_decode_tokens_per_s"] / speed["decode_tokens_per_s"]
    assert f"{ratio:.1f} times slower" in warning["message"]
    assert "1. IQ4_XS runs wholly in VRAM at this context with a q8_0 KV cache" in warning["hint"]
    assert "--quant IQ4_XS --ctx 32768" in warning["hint"]
    assert "h100-sxm:2" in warning["hint"]


def test_experts_of_the_fewest_layers_stay_in_ram_and_that_is_faster_than_whole_layers(mixtral_hub):
    experts = plan("--quant", "Q4_K_M", "--ctx", "32768").document
    layers = plan("--quant", "Q4_K_M", "--ctx", "32768", "--offload", "layers").document
    assert experts["placement"]["strategy"] == "experts"
    assert experts["placement"]["n_gpu_layers"] == 57
    kept = len(experts["placement"]["overrides"])
    assert 0 < kept < 10
    assert experts["devices"][-1]["kv_bytes"] == 0
    assert experts["speed"]["decode_tokens_per_s"] > layers["speed"]["decode_tokens_per_s"]
    warning = next(w for w in experts["warnings"] if w["code"] == "offload_speed")
    assert f"the experts of {kept} of 56 layers" in warning["message"]


def test_one_more_layer_would_not_fit(mixtral_hub, settings):
    bare = Machine((), 256 * GIB, 256 * GIB, 32, 64)
    machine = simulate(find_gpu("h100-sxm"), 1, ram_bytes=256 * GIB, base=bare)
    source, _ = resolve("mixtral-8x22b", settings)
    planned = make(source, "mixtral-8x22b", Wish(32768, quantization="Q4_K_M", offload="layers"), machine)
    layers = planned.plan.placement.n_gpu_layers
    headers = source.headers(planned.artifact)
    info = model_info([shard.header for shard in headers.shards])
    request = PlanRequest(context_tokens=32768, slots=planned.plan.slots)
    memory = FormulaMemory()
    here, more = (memory.usage(info, request, Placement(56, (n,))) for n in (layers, layers + 1))
    assert fits(here, machine, request)
    assert not fits(more, machine, request)
    assert here.devices[0].weights_bytes == planned.plan.devices[0].weights_bytes


def sent(hub):
    """What the Hub sent of files: (bytes, requests)."""
    ranges = [entry.range.removeprefix("bytes=").split("-") for entry in hub.requests if entry.server == "cdn"]
    return sum(int(last) - int(first) + 1 for first, last in ranges), len(ranges)


@pytest.mark.parametrize(
    ("context", "at_most_bytes"), [(8192, 1_200_000), (32768, 2_400_000), (65536, 2_400_000)]
)  # the quantization that is chosen, and from 32,768 on one that misses by under 2 %, with a q8_0 KV cache or without
def test_planning_downloads_only_headers_and_says_how_many_bytes(mixtral_hub, context, at_most_bytes):
    document = plan("--ctx", str(context)).document
    n_bytes, _ = sent(mixtral_hub)
    assert document["header_fetched_bytes"] == n_bytes
    assert 0 < n_bytes <= at_most_bytes

    mixtral_hub.requests.clear()
    result = ggufdeploy("plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ram", "256GiB", "--ctx", str(context))
    assert sent(mixtral_hub) == (0, 0)
    assert "of headers" not in result.stderr
    again = plan("--ctx", str(context)).document
    assert (again["header_fetched_bytes"], again["header_source"]) == (0, "cache")
    assert again["devices"] == document["devices"]


@pytest.mark.parametrize("context", ["8k", "32k", "64k"])
def test_show_estimates_from_64_kib_what_the_plan_finds(mixtral_hub, context):
    machine = ("--gpu", "h100-sxm", "--ram", "256GiB", "--ctx", context)
    shown = ggufdeploy("show", "mixtral-8x22b", *machine, "--json").document
    assert sent(mixtral_hub) == (65_536, 1)
    planned = by_name(plan("--ctx", context).document)
    for entry in shown["quantizations"]:
        found = planned[entry["quantization"]]
        assert entry["fits"]["verdict"] == found["verdict"], entry["quantization"]
        if entry["fits"]["strategy"] == found["strategy"]:  # experts and whole layers can be equally fast
            assert entry["fits"]["n_gpu_layers"] == pytest.approx(found["n_gpu_layers"], abs=1)
    bits = {entry["quantization"]: entry["bits_per_weight"] for entry in shown["quantizations"]}
    assert bits["F16"] == pytest.approx(16, abs=0.01)
    assert bits["Q4_K_M"] == pytest.approx(4.87, abs=0.01)


def test_the_plan_in_words_says_how_many_bytes_too(mixtral_hub):
    result = ggufdeploy("plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ram", "256GiB", "--ctx", "8192")
    n_bytes, requests = sent(mixtral_hub)
    assert requests == 3
    assert (
        f"read {format_file_size(n_bytes)} of headers in {requests} requests, nothing else was downloaded"
        in result.stderr.splitlines()
    )


def test_a_cut_connection_is_counted_and_its_bytes_are_not_fetched_again(mixtral_hub):
    mixtral_hub.fault("cut", "*.gguf", at=10_000)
    document = plan("--ctx", "8192").document
    n_bytes, requests = sent(mixtral_hub)  # one of these ranges ended after 10,000 bytes, and the next began there
    assert requests == 4
    assert document["header_fetched_bytes"] == n_bytes - (65_536 - 10_000)


def test_the_document_has_exactly_the_documented_keys(mixtral_hub):
    document = plan("--ctx", "8192").document
    assert document["schema_version"] == 1
    assert set(document) == {
        "schema_version", "model", "quantization", "context_tokens", "slots", "kv_cache", "verdict", "placement",
        "engine", "devices", "speed", "memory_source", "header_source", "header_fetched_bytes", "warnings",
        "alternatives", "simulated", "reason", "kv_pool_tokens", "pareto",
    }  # fmt: skip
    assert document["simulated"] is True
    assert set(document["model"]) == {
        "ref", "name", "repo", "revision", "architecture", "n_params", "n_layers", "n_experts", "context_train_tokens",
    }  # fmt: skip
    assert document["model"]["repo"] == REPO
    assert document["model"]["n_params"] == 140_630_071_296
    assert set(document["quantization"]) == {"name", "bits_per_weight", "files", "total_bytes"}
    assert set(document["quantization"]["files"][0]) == {"name", "bytes", "sha256"}
    assert set(document["placement"]) == {
        "n_gpu_layers", "n_layers_total", "strategy", "split_mode", "tensor_split", "overrides",
    }  # fmt: skip
    assert set(document["engine"]) == {"n_batch", "n_ubatch", "flash_attention", "load_mode", "threads"}
    assert set(document["devices"][0]) == {
        "name", "kind", "total_bytes", "free_bytes", "weights_bytes", "kv_bytes", "compute_bytes", "overhead_bytes",
        "margin_bytes", "used_bytes", "extra_bytes",
    }  # fmt: skip
    assert set(document["speed"]) == {
        "decode_tokens_per_s", "prefill_tokens_per_s", "all_gpu_decode_tokens_per_s", "slowdown",
        "decode_low_tokens_per_s", "decode_high_tokens_per_s", "basis", "bottleneck",
    }  # fmt: skip
    assert set(document["alternatives"][0]) == {
        "quantization", "kv_type", "context_tokens", "verdict", "n_gpu_layers", "decode_tokens_per_s", "quality",
        "why_not", "total_bytes", "strategy", "cpu_expert_layers", "vram_used_bytes", "vram_available_bytes",
        "longest_context_tokens",
    }  # fmt: skip
    assert set(document["pareto"][0]) == {"quantization", "kv_type", "verdict", "quality", "decode_tokens_per_s"}


def test_a_plan_goes_to_json_and_back(mixtral_hub):
    text = plan("--ctx", "8192").stdout
    again = plan_from_json(text)
    assert plan_to_json(again) + "\n" == text
    assert again == plan_from_json(plan_to_json(again))


def test_a_plan_from_before_fetched_bytes_were_recorded_is_still_read(mixtral_hub):
    document = plan("--ctx", "8192").document
    del document["header_fetched_bytes"]
    assert plan_from_json(json.dumps(document)).header_fetched_bytes is None


def test_the_explanation_names_the_choice_the_layers_and_the_reasons(mixtral_hub):
    result = ggufdeploy("plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ctx", "8192")
    assert result.code == 0
    assert "SIMULATED" in result.stdout
    assert "n_gpu_layers 57 of 57" in result.stdout
    assert "*  Q4_K_S" in result.stdout
    assert "\x1b" not in result.stdout
