"""`advise` on the real shape of Mixtral 8x22B over a loopback Hub: it says what `plan` says."""

from __future__ import annotations

import pytest

from tests.deploy.conftest import REPO, ggufdeploy

pytestmark = pytest.mark.slow


def test_the_table_and_the_smallest_gpu(mixtral_hub):
    done = ggufdeploy("advise", "mixtral-8x22b", "--gpu", "h100-sxm")
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["GPU", "VRAM", "8,192", "TOKENS", "32,768", "TOKENS", "65,536", "TOKENS"]
    assert [line.split()[0] for line in lines[1:3]] == ["h100-sxm", "h100-sxm:2"]
    assert "8,192 tokens: the smallest that does is one H100 SXM5 80GB: Q4_K_S" in done.stdout


@pytest.mark.parametrize("context", [8192, 32768, 65536])
def test_a_row_names_what_plan_finds_in_vram(mixtral_hub, context):
    document = ggufdeploy("advise", "mixtral-8x22b", "--gpu", "h100-sxm", "--ctx", str(context), "--json").document
    fit = document["fits"][0]
    plan = ggufdeploy("plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ctx", str(context), "--json").document
    assert plan["verdict"] == "gpu"
    assert (fit["quantization"], fit["kv_type"]) == (plan["quantization"]["name"], plan["kv_cache"]["key_type"])
    assert fit["decode_tokens_per_s"] == plan["speed"]["decode_tokens_per_s"]
    assert document["smallest"] == [fit]


def test_a_floor_that_nothing_meets_is_said(mixtral_hub):
    done = ggufdeploy("advise", "mixtral-8x22b", "--gpu", "rtx-3090", "--ctx", "8k", "--min-quality", "Q8_0",
                      "--min-speed", "100")  # fmt: skip
    assert done.code == 0
    assert "nothing that was compared holds it with at least 100 tokens/s and a quality of 0.999" in done.stdout


def test_a_context_beyond_the_training_is_refused(mixtral_hub):
    done = ggufdeploy("advise", "mixtral-8x22b", "--ctx", "128k", "--json")
    assert (done.code, done.error["hint"]) == (2, "--ctx 65536")


def test_a_quality_that_is_none_is_refused(mixtral_hub):
    done = ggufdeploy("advise", "mixtral-8x22b", "--min-quality", "excellent", "--json")
    assert (done.code, done.error["hint"]) == (2, "--min-quality Q4_K_M")


def test_all_shown_gpus_are_compared_and_the_smallest_for_each_context_is_named(mixtral_hub):
    document = ggufdeploy("advise", "mixtral-8x22b", "--json").document
    assert [fit["context_tokens"] for fit in document["smallest"]] == [8192, 32768, 65536]
    assert all(fit["count"] == 1 for fit in document["smallest"])
    assert len({fit["gpu"] for fit in document["fits"]}) > 10


def test_a_quantization_that_is_not_there_is_not_found_and_one_that_is_there_is_the_only_one_named(mixtral_hub):
    done = ggufdeploy("advise", f"{REPO}:Q4_K_X", "--gpu", "h100-sxm", "--json")
    assert done.code == 3
    document = ggufdeploy("advise", f"{REPO}:Q2_K", "--gpu", "h100-sxm", "--json").document
    assert {fit["quantization"] for fit in document["fits"]} == {"Q2_K"}
