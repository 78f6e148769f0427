"""`bench` measures, keeps, shows, and forgets."""

from __future__ import annotations

import json
import os

import pytest

from ggufdeploy.deploy import measuring


@pytest.fixture
def ram(monkeypatch):
    monkeypatch.setattr(measuring, "measure_ram", lambda: 42_000_000_000)


def test_without_a_model_the_ram_is_measured_and_kept(run, ram, settings):
    done = run("bench")
    assert (done.code, done.out.startswith("RAM: 42.0 GB/s read by ")) == (0, True)
    (record,) = json.loads((settings.state_dir / "measurements.json").read_text())["machines"].values()
    assert record["ram_bandwidth_bytes_per_s"] == 42_000_000_000


def test_the_document(run, ram):
    assert run("bench", "--json").document == {"schema_version": 1, "ram_bandwidth_bytes_per_s": 42_000_000_000}
    assert run("bench", "-q").out == "42.0\n"


def test_a_busy_machine_is_warned_about_because_its_figures_are_too_low(run, ram, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (500.0, 1.0, 1.0))
    assert "busy (load 500.0 on " in run("bench").err
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 1.0, 1.0))
    assert "busy" not in run("bench").err


def test_forgetting(run, ram):
    assert run("bench", "--forget").out == "nothing was measured on this machine\n"
    run("bench")
    assert run("bench", "--forget", "--json").document == {"forgotten": True}


def test_plans_for_this_machine_use_what_was_measured(run, ram, hub, settings):
    run("bench")
    before = run("plan", "acme/tiny-GGUF:F16", "--json").document["speed"]["decode_tokens_per_s"]
    path = settings.state_dir / "measurements.json"
    path.write_text(path.read_text().replace("42000000000", "42000000"))
    after = run("plan", "acme/tiny-GGUF:F16", "--json").document["speed"]["decode_tokens_per_s"]
    assert after < before / 10


def test_a_damaged_file_of_measurements_is_a_usage_error_that_says_how_to_go_on(run, ram, hub, settings):
    settings.state_dir.mkdir(parents=True)
    (settings.state_dir / "measurements.json").write_text("{")
    done = run("plan", "acme/tiny-GGUF", "--json")
    assert done.code == 2
    assert done.error["hint"] == "ggufdeploy bench --forget"


@pytest.mark.engine
def test_a_model_is_measured_through_the_engine_and_the_next_plan_says_what_was_measured(run, demo_model):
    done = run("bench", str(demo_model), "--ctx", "512", "--slots", "2", "--repeat", "1", "--json")
    assert done.code == 0, done.err
    runs = done.document["runs"]
    assert [(r["prompt_tokens"], r["streams"]) for r in runs] == [(64, 1), (64, 2)]
    assert all(r["decode_tokens_per_s"] > 1 and r["prefill_tokens_per_s"] > 1 for r in runs)
    assert runs[0]["predicted_decode_tokens_per_s"] > 1
    plan = run("plan", str(demo_model), "--ctx", "512", "--json").document
    # At 256 filled cells instead of 96 a token takes a little longer than the one that was measured.
    assert 0.5 < plan["speed"]["decode_tokens_per_s"] / runs[0]["decode_tokens_per_s"] < 1.01
