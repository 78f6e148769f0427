import copy

import pytest

from ggufdeploy.errors import BadConfig
from ggufdeploy.profiles.profile import (
    KnownQuantization,
    ModelFacts,
    Preset,
    Profile,
    PypiSource,
    SamplingDefaults,
    profile_from_dict,
)

MINIMAL = {
    "name": "tiny",
    "description": "A model",
    "license": "mit",
    "repos": ["someone/Tiny-GGUF"],
    "source": "its card",
    "facts": {"architecture": "llama", "context_train_tokens": 32768},
}
FULL = {
    **MINIMAL,
    "aliases": ["tiny:1b", "tiny-1b"],
    "default_context_tokens": 4096,
    "default_slots": 2,
    "chat_template": "{{ messages }}",
    "quantizations": {"Q4_K_M": 1000, "Q8_0": 2000},
    "sampling": {"temperature": 1, "top_k": 0},
    "presets": {"long": {"description": "Long", "min_context_tokens": 32768, "kv_type": "q8_0"}},
    "pypi": {
        "package": "tiny-pkg",
        "version": "1.0",
        "file": "tiny/tiny.Q4_1.gguf",
        "n_bytes": 3,
        "sha256": "a" * 64,
        "wheel_sha256": "b" * 64,
    },
}


def changed(path, value):
    """Return FULL with the key at the dotted path set, or removed when value is None."""
    data = copy.deepcopy(FULL)
    *parents, last = path.split(".")
    table = data
    for key in parents:
        table = table[key]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return data


def test_a_minimal_profile_takes_the_documented_defaults():
    profile = profile_from_dict(MINIMAL, origin="tiny.toml")
    assert profile == Profile(
        name="tiny",
        description="A model",
        license="mit",
        repos=("someone/Tiny-GGUF",),
        facts=ModelFacts("llama", context_train_tokens=32768),
        source="its card",
    )
    assert (profile.default_context_tokens, profile.default_slots) == (8192, 4)


def test_every_field_arrives():
    profile = profile_from_dict(FULL, origin="tiny.toml")
    assert profile.aliases == ("tiny:1b", "tiny-1b")
    assert profile.quantizations == (KnownQuantization("Q4_K_M", 1000), KnownQuantization("Q8_0", 2000))
    assert profile.sampling == SamplingDefaults(temperature=1.0, top_k=0)
    assert profile.presets == (Preset("long", "Long", min_context_tokens=32768, kv_type="q8_0"),)
    assert profile.pypi == PypiSource("tiny-pkg", "1.0", "tiny/tiny.Q4_1.gguf", 3, "a" * 64, "b" * 64)
    assert profile.chat_template == "{{ messages }}"
    assert (profile.default_context_tokens, profile.default_slots) == (4096, 2)


def test_parsing_leaves_the_table_as_it_was():
    before = copy.deepcopy(FULL)
    profile_from_dict(FULL, origin="tiny.toml")
    assert before == FULL


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("alias", "aliases"),
        ("default_context", "default_context_tokens"),
        ("facts.n_layer", "facts.n_layers"),
        ("sampling.temprature", "sampling.temperature"),
        ("presets.long.min_context", "presets.long.min_context_tokens"),
        ("pypi.sha", "pypi.sha256"),
    ],
)
def test_an_unknown_key_is_refused_with_file_path_and_nearest_key(path, suggestion):
    with pytest.raises(BadConfig) as caught:
        profile_from_dict(changed(path, 1), origin="my/tiny.toml")
    assert caught.value.name == path
    assert "my/tiny.toml" in caught.value.message
    assert path in caught.value.message
    assert caught.value.hint == f"did you mean {suggestion}?"


def test_an_unknown_key_near_to_nothing_lists_the_known_ones():
    with pytest.raises(BadConfig) as caught:
        profile_from_dict(changed("facts.zzz", 1), origin="tiny.toml")
    assert "architecture" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("name", "Tiny Model", "name"),
        ("name", None, "name"),
        ("license", "  ", "license"),
        ("source", None, "source"),
        ("source", "", "source"),
        ("description", 3, "description"),
        ("repos", "someone/Tiny-GGUF", "repos"),
        ("repos", ["just-a-name"], "repos[0]"),
        ("repos", ["https://huggingface.co/a/b"], "repos[0]"),
        ("repos", ["../etc"], "repos[0]"),
        ("aliases", ["ok", "has space"], "aliases[1]"),
        ("aliases", ["a", "a"], "aliases[1]"),
        ("aliases", ["tiny"], "aliases[0]"),
        ("aliases", ["Upper"], "aliases[0]"),
        ("facts.n_layers", "56", "facts.n_layers"),
        ("facts.n_layers", True, "facts.n_layers"),
        ("facts.n_layers", 0, "facts.n_layers"),
        ("facts.n_layers", 1.5, "facts.n_layers"),
        ("facts.architecture", None, "architecture"),
        ("default_context_tokens", 65536, "default_context_tokens"),
        ("default_context_tokens", 0, "default_context_tokens"),
        ("default_slots", 0, "default_slots"),
        ("quantizations", [1], "quantizations"),
        ("quantizations.Q4_K_M", -1, "quantizations.Q4_K_M"),
        ("quantizations.Q4_K_M", "85 GB", "quantizations"),
        ("sampling.temperature", 3.0, "sampling.temperature"),
        ("sampling.top_p", 0.0, "sampling.top_p"),
        ("sampling.top_k", -1, "sampling.top_k"),
        ("sampling.min_p", 1.5, "sampling.min_p"),
        ("presets", [1], "presets"),
        ("presets.long", 7, "presets"),
        ("presets.long.kv_type", "q8", "presets.long.kv_type"),
        ("presets.long.min_context_tokens", 65536, "presets.long.min_context_tokens"),
        ("presets.long.min_decode_tokens_per_s", 0, "presets.long.min_decode_tokens_per_s"),
        ("presets.long.description", None, "description"),
        ("pypi.file", "tiny.bin", "pypi.file"),
        ("pypi.n_bytes", 0, "pypi.n_bytes"),
        ("pypi.sha256", "A" * 64, "pypi.sha256"),
        ("pypi.wheel_sha256", "abc", "pypi.wheel_sha256"),
        ("pypi.version", None, "version"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(path, value, named):
    with pytest.raises(BadConfig) as caught:
        profile_from_dict(changed(path, value), origin="my/tiny.toml")
    assert caught.value.message.startswith("my/tiny.toml: ")
    assert named in caught.value.message


def test_a_near_miss_of_a_kv_type_is_corrected():
    with pytest.raises(BadConfig, match=r"did you mean q8_0\?"):
        profile_from_dict(changed("presets.long.kv_type", "q8-0"), origin="tiny.toml")


def test_a_model_may_come_from_a_package_alone_but_not_from_nowhere():
    assert profile_from_dict(changed("repos", []), origin="tiny.toml").repos == ()
    nowhere = changed("repos", [])
    del nowhere["pypi"]
    with pytest.raises(BadConfig, match="repos must name at least one"):
        profile_from_dict(nowhere, origin="tiny.toml")
