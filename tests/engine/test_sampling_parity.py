"""Our sampler keeps the tokens, with the probabilities, that llama.cpp's own chain keeps."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from ggufdeploy.engine.dry import BreakerIndex, Dry
from ggufdeploy.engine.llamacpp import LlamaCppBackend
from ggufdeploy.engine.mirostat import Mirostat
from ggufdeploy.engine.request import SamplingParams
from ggufdeploy.engine.sampling import Sampler

pytestmark = pytest.mark.engine

N_VOCAB = 5000


def llama_distribution(row: np.ndarray, params: SamplingParams, history: list[int]) -> dict[int, float]:
    """Run common/sampling.cpp's default chain and return what is left."""
    import llama_cpp.llama_cpp as api

    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    biases = (api.llama_logit_bias * max(len(params.logit_bias), 1))(*params.logit_bias)
    for part in (
        api.llama_sampler_init_logit_bias(N_VOCAB, len(params.logit_bias), biases),
        api.llama_sampler_init_penalties(
            N_VOCAB,
            params.penalty_last_tokens,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        ),
        api.llama_sampler_init_top_n_sigma(params.top_n_sigma),
        api.llama_sampler_init_top_k(params.top_k),
        api.llama_sampler_init_typical(params.typical_p, 0),
        api.llama_sampler_init_top_p(params.top_p, 0),
        api.llama_sampler_init_min_p(params.min_p, 0),
        api.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 0, 1),
        api.llama_sampler_init_temp_ext(params.temperature, params.dynatemp_range, params.dynatemp_exponent),
        api.llama_sampler_init_dist(1),
    ):
        api.llama_sampler_chain_add(chain, part)
    for token in history:
        api.llama_sampler_accept(chain, token)
    kept, _ = apply(chain, row)
    api.llama_sampler_free(chain)
    return kept


def apply(chain: Any, row: np.ndarray) -> tuple[dict[int, float], int]:
    """Return the probabilities of the tokens that a chain of llama.cpp leaves, and the token it draws."""
    import llama_cpp.llama_cpp as api

    data = (api.llama_token_data * N_VOCAB)()
    for token in range(N_VOCAB):
        data[token].id, data[token].logit = token, float(row[token])
    array = api.llama_token_data_array(ctypes.cast(data, ctypes.POINTER(api.llama_token_data)), N_VOCAB, -1, False)
    api.llama_sampler_apply(chain, ctypes.byref(array))
    kept = {array.data[i].id: array.data[i].p for i in range(array.size) if array.data[i].logit > -np.inf}
    return kept, array.data[array.selected].id


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(temperature=1.3, top_k=0, top_p=0.9, min_p=0.0),
        SamplingParams(temperature=0.6, top_k=20, top_p=0.8, min_p=0.1),
        SamplingParams(temperature=0.7, repeat_penalty=1.2, frequency_penalty=0.4, presence_penalty=0.3),
        SamplingParams(repeat_penalty=1.5, penalty_last_tokens=5),
        SamplingParams(logit_bias=((3, 20.0), (4, -50.0), (77, 4.5))),
        SamplingParams(typical_p=0.5),
        SamplingParams(typical_p=0.9, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(typical_p=0.3, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(typical_p=0.8, top_k=100, top_p=0.9, min_p=0.0),
        SamplingParams(top_n_sigma=1.0),
        SamplingParams(top_n_sigma=2.5, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.2),
        SamplingParams(xtc_probability=1.0, xtc_threshold=0.05),
        SamplingParams(xtc_probability=1.0, xtc_threshold=0.02, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(xtc_probability=1.0, xtc_threshold=0.6),
        SamplingParams(dynatemp_range=0.5),
        SamplingParams(dynatemp_range=2.0, dynatemp_exponent=0.7, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(top_n_sigma=2.0, dynatemp_range=0.5, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(typical_p=0.7, top_n_sigma=3.0, xtc_probability=1.0, xtc_threshold=0.03, dynatemp_range=0.3),
    ],
)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_candidates_and_probabilities_are_those_of_llama_cpp(params, scale):
    random = np.random.default_rng(3)
    row = (random.standard_normal(N_VOCAB) * scale).astype(np.float32)
    history = [int(token) for token in np.argsort(-row)[random.integers(0, 20, 30)]]
    expected = llama_distribution(row, params, history)
    sampler = Sampler(params, n_vocab=N_VOCAB)
    sampler.adjust(row, history)
    ids = sampler.candidates(row, float(row.max()))
    kept = np.flatnonzero(row > -np.inf) if ids is None else ids
    best = float(row[kept].max())
    weights = np.exp((row[kept] - best) / sampler.temperature(row, best, ids))
    ours = dict(zip(kept.tolist(), (weights / weights.sum()).tolist(), strict=True))
    # llama.cpp cumulates top_p in float32: at a cut through thousands of tokens the last few may differ.
    odd = set(ours) ^ set(expected)
    assert len(odd) <= 0.01 * len(expected)
    assert all(ours[token] == pytest.approx(p, rel=0.01) for token, p in expected.items() if token not in odd)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("tau", "eta"), [(5.0, 0.1), (2.0, 0.5), (3.0, 1.0)])
@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
def test_mirostat_keeps_what_llama_cpp_keeps_while_both_see_the_same_tokens(version, tau, eta, scale):
    import llama_cpp.llama_cpp as api

    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(0.8))
    if version == 1:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_mirostat(N_VOCAB, 7, tau, eta, 100))
    else:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_mirostat_v2(7, tau, eta))
    ours = Mirostat(version, tau=tau, eta=eta)
    random = np.random.default_rng(5)
    for _ in range(20):
        row = (random.standard_normal(N_VOCAB) * scale).astype(np.float32)
        expected, drawn = apply(chain, row)
        ids, shares = ours.candidates(row / np.float32(0.8))
        kept = dict(zip(ids.tolist(), shares.tolist(), strict=True))
        # llama.cpp computes the cut in float32, which moves it by a few tokens in thousands.
        assert len(set(kept) ^ set(expected)) <= max(1, 0.005 * len(expected))
        assert [kept.get(token, 0.0) for token in set(kept) & set(expected)] == pytest.approx(
            [expected[token] for token in set(kept) & set(expected)], rel=0.05
        )
        ours.observe(expected[drawn])
    api.llama_sampler_free(chain)


@pytest.fixture(scope="module")
def vocabulary(demo_config):
    backend = LlamaCppBackend(demo_config)
    yield backend
    backend.close()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(dry_multiplier=0.8),
        SamplingParams(dry_multiplier=0.8, dry_sequence_breakers=()),
        SamplingParams(dry_multiplier=2.0, dry_base=1.0, dry_allowed_length=0, dry_last_tokens=500),
        SamplingParams(dry_multiplier=0.5, dry_base=3.0, dry_allowed_length=1, dry_last_tokens=500),
        SamplingParams(
            dry_multiplier=1.0, dry_last_tokens=500, dry_sequence_breakers=("cat sat", " on the m", "é", "q")
        ),
        SamplingParams(dry_multiplier=1.0, dry_last_tokens=3000, dry_sequence_breakers=()),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "The cat sat on the mat. The cat sat on the mat. The cat sat on",
        'He said: "no no no"\nand: "no no no"\nand: "no no',
        "ha" * 700,
        "a cat sat é on the moon, a cat sat é on the moon, a cat sat é",
        "one",
    ],
)
def test_dry_changes_the_logits_that_llama_cpp_changes(vocabulary, params, text):
    import llama_cpp.llama_cpp as api

    history = vocabulary.tokenize(text, add_special=False)
    n_vocab = vocabulary.info.n_vocab
    texts = [each.encode() for each in params.dry_sequence_breakers]
    sampler = api.llama_sampler_init_dry(
        vocabulary._vocab,
        params.dry_multiplier,
        params.dry_base,
        params.dry_allowed_length,
        params.dry_last_tokens,
        (ctypes.c_char_p * len(texts))(*texts),
        len(texts),
    )
    for token in history:
        api.llama_sampler_accept(sampler, token)
    data = (api.llama_token_data * n_vocab)()
    for token in range(n_vocab):
        data[token].id = token
    array = api.llama_token_data_array(ctypes.cast(data, ctypes.POINTER(api.llama_token_data)), n_vocab, -1, False)
    api.llama_sampler_apply(sampler, ctypes.byref(array))
    api.llama_sampler_free(sampler)
    row = np.zeros(n_vocab, np.float32)
    breakers = BreakerIndex(vocabulary, n_vocab).find(params.dry_sequence_breakers)
    Dry(params, breakers).penalise(row, history)
    expected = {data[i].id: max(data[i].logit, -1e6) for i in range(n_vocab) if data[i].logit}
    assert {int(token): float(row[token]) for token in np.flatnonzero(row)} == pytest.approx(expected, rel=1e-4)
