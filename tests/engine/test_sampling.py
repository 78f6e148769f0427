from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufdeploy.engine.mirostat import Mirostat
from ggufdeploy.engine.request import SamplingParams
from ggufdeploy.engine.sampling import Sampler
from ggufdeploy.errors import BadRequest, EngineError

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def sampler(n_vocab: int = 100, *, banned: frozenset[int] = frozenset(), **kwargs: object) -> Sampler:
    return Sampler(SamplingParams(**kwargs), n_vocab=n_vocab, banned=banned)  # type: ignore[arg-type]


def logits(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def reference(row: np.ndarray, params: SamplingParams) -> dict[int, float]:
    """Compute the distribution the slow and obvious way: sort everything, in llama.cpp's order."""
    order = sorted(range(len(row)), key=lambda i: -row[i])
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = np.exp(row[order].astype(np.float64) - row.max())
    if params.top_p < 1:
        cumulated = np.cumsum(weights / weights.sum())
        order = order[: int(np.argmax(cumulated >= params.top_p - 1e-9)) + 1 if cumulated[-1] >= params.top_p else None]
    if params.min_p > 0:
        order = [i for i in order if row[i] >= row.max() + np.log(params.min_p)]
    weights = np.exp((row[order].astype(np.float64) - row.max()) / params.temperature)
    return dict(zip(order, weights / weights.sum(), strict=True))


def test_temperature_zero_takes_the_best_token():
    chosen = sampler(4, temperature=0.0)
    assert chosen.is_plain_argmax
    assert chosen.sample(logits(1, 5, 3, 4), []) == 1


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 5, "top_p": 1.0, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.8, "min_p": 0.0},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.1},
        {"top_k": 40, "top_p": 0.95, "min_p": 0.05},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"top_k": 900, "top_p": 0.999, "min_p": 0.0},
    ],
)
@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
def test_the_candidates_and_their_weights_are_those_of_the_plain_definition(params, scale):
    row = (np.random.default_rng(7).standard_normal(1000) * scale).astype(np.float32)
    full = SamplingParams(temperature=0.7, **params)
    ids = Sampler(full, n_vocab=1000).candidates(row, float(row.max()))
    kept = range(1000) if ids is None else ids.tolist()
    assert set(kept) == set(reference(row, full))


@pytest.mark.parametrize("params", [OFF, {**OFF, "top_k": 3}, {**OFF, "top_p": 0.9999}])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_follow_the_probabilities(params, temperature):
    wanted = np.array([0.5, 0.3, 0.2])
    row = (np.log(wanted) * temperature).astype(np.float32)
    chosen = sampler(3, temperature=temperature, seed=1, **params)
    counts = Counter(chosen.sample(row, []) for _ in range(4000))
    assert [counts[token] / 4000 for token in range(3)] == pytest.approx(wanted.tolist(), abs=0.03)


@pytest.mark.slow
def test_many_unlikely_tokens_get_their_share_and_no_more():
    n_vocab = 1000
    row = np.full(n_vocab, -12.5, np.float32)  # further away than ln(1000) + 5, so drawn by rejection
    row[0] = 0.0
    row[1:500] = -11.5
    chosen = sampler(n_vocab, temperature=1.0, seed=3, **OFF)
    counts = Counter(chosen.sample(row, []) for _ in range(100_000))
    share = 100_000 * np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
    for group in (range(1, 500), range(500, 1000)):
        expected = share[group].sum()
        assert sum(counts[token] for token in group) == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others():
    row = np.zeros(100, np.float32)
    draws = [
        [chosen.sample(row, []) for _ in range(20)] for chosen in (sampler(seed=5), sampler(seed=5), sampler(seed=6))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_penalties_look_back_only_so_far_and_count():
    row = logits(4, 3, -1, 0)
    params = {"temperature": 0.0, "repeat_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    sampler(4, penalty_last_tokens=3, **params).adjust(row, [1, 0, 0, 2])
    assert row.tolist() == [4 / 2 - 2 * 0.5 - 0.25, 3, -1 * 2 - 0.5 - 0.25, 0]


def test_bias_makes_a_token_win_and_a_ban_makes_it_impossible():
    def row() -> np.ndarray:
        return logits(4, 3, 2)

    assert sampler(3, temperature=0.0, logit_bias=((2, 5.0),)).sample(row(), []) == 2
    assert sampler(3, temperature=0.0, banned=frozenset({0})).sample(row(), []) == 1
    drawn = {sampler(3, temperature=5.0, seed=i, banned=frozenset({0}), **OFF).sample(row(), []) for i in range(50)}
    assert drawn == {1, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_an_error(bad, temperature):
    with pytest.raises(EngineError, match="not finite"):
        sampler(3, temperature=temperature).sample(logits(1, bad, 2), [])


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"typical_p": -0.1}, "typical_p"),
        ({"top_n_sigma": float("nan")}, "top_n_sigma"),
        ({"xtc_probability": 2.0}, "xtc_probability"),
        ({"dynatemp_range": -1.0}, "dynatemp_range"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"logit_bias": ((100, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((1, float("inf")),)}, "logit_bias"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(params, name):
    with pytest.raises(BadRequest) as caught:
        sampler(100, **params)
    assert caught.value.param == name


def test_min_p_never_cuts_off_the_last_token_that_top_p_left():
    chosen = sampler(2, temperature=1.0, top_k=0, top_p=0.0, min_p=1.0, seed=0)
    assert chosen.sample(logits(-6.356918463845673e-11, 0.0), []) in (0, 1)


@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60),
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 70),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0, 1),
    top_n_sigma=st.floats(0, 5),
    xtc_probability=st.floats(0, 1),
    xtc_threshold=st.floats(0, 1),
    dynatemp_range=st.floats(0, 10),
    dynatemp_exponent=st.floats(0, 5),
    dry_multiplier=st.floats(0, 100),
    dry_base=st.floats(1, 100),
    mirostat=st.sampled_from([0, 0, 1, 2]),
    mirostat_tau=st.floats(0, 50),
    mirostat_eta=st.floats(0, 2),
)
def test_whatever_the_parameters_a_token_of_the_vocabulary_comes_out(row, **params):
    assert 0 <= sampler(len(row), seed=0, **params).sample(logits(*row), [0] * 300) < len(row)


def test_xtc_cuts_as_often_as_it_is_told_and_never_the_last_likely_token():
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    chosen = sampler(4, temperature=1.0, seed=2, xtc_probability=0.25, xtc_threshold=0.1, **OFF)
    cut = [chosen.candidates(row, float(row.max())) for _ in range(2000)]
    assert all(ids is None or ids.tolist() == [2, 3] for ids in cut)
    assert sum(ids is not None for ids in cut) / 2000 == pytest.approx(0.25, abs=0.04)


def test_temperature_zero_takes_the_best_token_that_xtc_left():
    chosen = sampler(3, temperature=0.0, xtc_probability=1.0, xtc_threshold=0.1)
    assert not chosen.is_plain_argmax
    assert chosen.sample(logits(5, 4, 0), []) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_brings_the_surprise_of_a_text_to_tau(version):
    chosen = sampler(2000, temperature=1.0, mirostat=version, mirostat_tau=4.0, mirostat_eta=0.1, seed=3)
    row = (-1.1 * np.log(np.arange(1, 2001))).astype(np.float32)
    shares = np.exp(row) / np.exp(row).sum()
    surprises = [-np.log2(shares[chosen.sample(row.copy(), [])]) for _ in range(1500)]
    free = float(-(shares * np.log2(shares)).sum())
    assert np.mean(surprises[200:]) < free - 1, "without mirostat the text is more surprising"
    assert np.mean(surprises[200:]) == pytest.approx(4.0, abs=1.5)


def test_mirostat_with_a_limit_beyond_the_vocabulary_keeps_all_of_it():
    for version in (1, 2):
        ids, shares = Mirostat(version, tau=100.0, eta=0.1).candidates(np.zeros(50, np.float32))
        assert (len(ids), shares.sum()) == (50, pytest.approx(1.0))


def test_mirostat_ignores_penalties_and_cuts_and_temperature_zero_wins_over_it():
    row = logits(5, 4.9, 0)
    drawn = sampler(3, temperature=1.0, mirostat=2, top_k=1, repeat_penalty=9.0, seed=1)
    assert {drawn.sample(row.copy(), [0, 0]) for _ in range(200)} >= {0, 1}
    assert sampler(3, temperature=0.0, mirostat=1, xtc_probability=1.0, repeat_penalty=9.0).sample(row, [0]) == 0


def test_a_dynamic_temperature_is_low_where_the_model_is_sure_and_high_where_it_is_not():
    chosen = sampler(4, temperature=1.0, dynatemp_range=0.5)
    temperatures = [chosen.temperature(row, 9.0, None) for row in (logits(9, -90, -90, -90), logits(9, 9, 9, 9))]
    assert temperatures == pytest.approx([0.5, 1.5])
    assert not sampler(4, temperature=0.0, dynatemp_range=0.5).is_plain_argmax
