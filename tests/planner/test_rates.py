"""The constants in the code are what the fit of the published runs says."""

import numpy as np
import pytest

from benchmarks.fit_speed import (
    DATA,
    Run,
    expert_shares,
    fit,
    likely_range,
    peak_shares,
    prefill_flops,
    read_runs,
    solve,
)
from ggufdeploy.hardware.catalog import list_gpus
from ggufdeploy.planner import rates


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return read_runs()


@pytest.fixture(scope="module")
def fitted(runs):
    return fit(runs)


def test_decode_constants_are_the_fitted_ones(fitted):
    found = fitted.constants
    for memory, efficiency in rates.EFFICIENCY.items():
        assert 1 / found[f"1/efficiency {memory}"] == pytest.approx(efficiency, abs=0.001)
        assert found[f"layer {memory}"] == pytest.approx(rates.LAYER_S[memory], abs=1e-6)
    assert found["expert layer"] == pytest.approx(rates.EXPERT_LAYER_S, abs=1e-6)
    assert found["wide expert layer"] == pytest.approx(rates.WIDE_EXPERT_LAYER_S, abs=1e-6)
    assert found["host expert layer"] == pytest.approx(rates.HOST_EXPERT_LAYER_S, abs=1e-6)
    assert found["hop"] == pytest.approx(rates.HOP_S, abs=1e-5)


def test_the_errors_that_the_documentation_states_hold_on_gpus_the_fit_never_saw(fitted):
    sizes = np.abs(list(fitted.cross_validated.values()))
    assert np.median(sizes) < 0.055
    assert np.quantile(sizes, 0.9) < 0.18
    assert likely_range(fitted) == pytest.approx((rates.LOW, rates.HIGH), abs=0.01)


def test_prefill_constants_are_the_published_ones(runs):
    dense = prefill_flops(runs)
    known = {spec.id for spec in list_gpus()}
    assert {gpu: rate for gpu, rate in dense.items() if gpu in known} == pytest.approx(
        rates.PREFILL_FLOPS_PER_S, rel=0.01
    )
    assert np.median(peak_shares(runs, dense)) == pytest.approx(rates.PREFILL_EFFICIENCY, abs=0.01)
    assert np.median(expert_shares(runs, dense)) == pytest.approx(rates.PREFILL_EXPERT_SHARE, abs=0.01)


def test_the_solver_finds_constants_that_made_the_runs(runs):
    true = {"1/efficiency gddr": 1 / 0.8, "layer gddr": 40e-6, "hop": 300e-6, "expert layer": 5e-6}
    made = []
    for run in runs:
        seconds = sum(count * true.get(name, 0.0) for name, count in run.costs().items())
        if run.memory == "gddr" and run.build != "2024" and not run.host_read_bytes and not run.wide_layers:
            made.append(Run(**{**vars(run), "decode_tokens_per_s": 1 / seconds}))
    found = solve(made)
    assert {name: found[name] for name in found} == pytest.approx({name: true[name] for name in found}, rel=1e-3)


def test_every_run_names_its_source():
    lines = DATA.read_text(encoding="utf-8").splitlines()
    assert all(line.rsplit(",", 1)[-1].strip() for line in lines)
