"""What the words a user types become: a profile, a repository, an error that names what is near."""

from __future__ import annotations

import dataclasses

import pytest

from ggufdeploy.deploy.resolution import choose_repository, resolve
from ggufdeploy.errors import Ambiguous, NotFound, Unreachable
from ggufdeploy.profiles.store import load_profiles
from tests.gguf_writer import TINY_LLAMA, write_model
from tests.standin_hub import StandinHub


@pytest.fixture
def hub(tmp_path):
    with StandinHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def on_hub(hub, settings):
    return dataclasses.replace(settings, hf_endpoint=hub.url)


def publish(hub, *repos, quantizations=("Q4_0", "Q8_0")):
    for repo in repos:
        model = repo.rpartition("/")[2].removesuffix("-GGUF")
        for name in quantizations:
            write_model(hub.root / repo / f"{model}-{name}.gguf", TINY_LLAMA, name)


HERMES = [
    "someone/Hermes-9-8B-Instruct-GGUF",
    "mradermacher/Hermes-9-8B-Instruct-GGUF",
    "bartowski/Hermes-9-8B-GGUF",
    "bartowski/Hermes-9-8B-Uncensored-GGUF",
    "bartowski/Hermes-9-70B-Instruct-GGUF",
    "unsloth/Hermes-9-8B-Instruct-GGUF",
]


@pytest.mark.parametrize(
    ("name", "found", "chosen"),
    [
        ("hermes-9-8b", HERMES, "unsloth/Hermes-9-8B-Instruct-GGUF"),
        ("hermes-9-8b", ["TheBloke/Hermes-9-8B-i1-GGUF", "TheBloke/Hermes-9-8B-GGUF"], "TheBloke/Hermes-9-8B-GGUF"),
        ("hermes-9-8b-instruct", HERMES, "unsloth/Hermes-9-8B-Instruct-GGUF"),
        ("hermes-9-8b-uncensored", HERMES, "bartowski/Hermes-9-8B-Uncensored-GGUF"),
        ("gemma-9-4b", ["bartowski/google_gemma-9-4b-it-GGUF"], "bartowski/google_gemma-9-4b-it-GGUF"),
        ("hermes-9", HERMES, None),
        ("hermes-9-8", HERMES, None),
        ("hermes-9-8b", ["someone/Hermes-9-8B-Instruct-GGUF"], None),
        ("hermes-9-8b", ["bartowski/Hermes-9-8B-v2-GGUF", "bartowski/Hermes-9-8B-Base-GGUF"], None),
        ("instruct", HERMES, None),
        ("llama", ["unsloth/Llama-GGUF"], None),
        ("---", HERMES, None),
        ("hermes-9-8b", [], None),
    ],
)  # fmt: skip
def test_a_bare_name_means_the_instruct_model_of_the_best_known_publisher_or_nothing(name, found, chosen):
    assert choose_repository(name, found) == chosen
    assert choose_repository(name, list(reversed(found))) == chosen


def test_such_a_choice_is_announced_with_the_others(hub, on_hub):
    publish(hub, *HERMES)
    source, quantization = resolve("hermes-9-8b:q4_0", on_hub)
    assert (source.repo, quantization) == ("unsloth/Hermes-9-8B-Instruct-GGUF", "Q4_0")
    (note,) = source.notes
    assert note.startswith("hermes-9-8b: took unsloth/Hermes-9-8B-Instruct-GGUF; others: ")
    assert "bartowski/Hermes-9-8B-GGUF" in note


def test_an_unknown_name_is_told_what_the_hub_has(hub, on_hub):
    publish(hub, "someone/Zebra-GGUF")
    with pytest.raises(NotFound) as caught:
        resolve("zebra", on_hub)
    assert caught.value.hint == "the Hub has someone/Zebra-GGUF; for example: ggufdeploy run someone/Zebra-GGUF"


def test_a_misspelt_profile_is_told_the_nearest_and_what_the_hub_has(hub, on_hub):
    publish(hub, "someone/Mixtral-8x22-experiment-GGUF")
    with pytest.raises(NotFound) as caught:
        resolve("mixtral-8x22", on_hub)
    hint = caught.value.hint or ""
    assert hint.startswith("did you mean mixtral-8x22b?")
    assert "the Hub has someone/Mixtral-8x22-experiment-GGUF" in hint


def test_a_misspelt_profile_needs_no_hub(settings):
    with pytest.raises(NotFound, match="mixtrl-8x22b") as caught:
        resolve("mixtrl-8x22b", dataclasses.replace(settings, hf_endpoint="http://127.0.0.1:9"))
    hint = caught.value.hint or ""
    assert hint.startswith("did you mean mixtral-8x22b?")
    assert hint.endswith("; the Hub could not be searched for it")


def test_a_name_that_begins_profiles_of_several_sizes_is_left_to_the_user(on_hub):
    with pytest.raises(Ambiguous) as caught:
        resolve("mixtral", on_hub)
    assert "mixtral-8x7b" in caught.value.choices


def test_a_name_that_begins_a_single_profile_is_that_and_says_so(hub, on_hub):
    publish(hub, load_profiles(on_hub).find("seed-oss-36b").repos[0])
    source, _ = resolve("seed-oss", on_hub)
    assert source.name == "seed-oss-36b"
    assert source.notes == ("seed-oss: took seed-oss-36b, the only profile that begins so",)


def test_a_name_that_begins_profiles_of_one_size_is_the_instruct_model_and_says_so(hub, on_hub):
    on_hub.user_profiles_dir.mkdir(parents=True)
    for name, parent in (("big-plain", "mixtral-8x22b-base"), ("big-chat", "mixtral-8x22b")):
        text = f'extends = "{parent}"\nrepos = ["acme/{name}-GGUF"]\n'
        (on_hub.user_profiles_dir / f"{name}.toml").write_text(text)
    publish(hub, "acme/big-chat-GGUF")
    source, _ = resolve("big", on_hub)
    assert source.name == "big-chat"
    assert source.notes == ("big: took big-chat, the instruct model; others: big-plain",)


def test_a_repository_of_several_models_says_so_and_a_file_chooses(hub, on_hub):
    publish(hub, "acme/big-7b-GGUF")
    stray = write_model(hub.root / "acme" / "big-7b-GGUF" / "small-1b-Q8_0.gguf", TINY_LLAMA, "Q8_0")
    source, _ = resolve("acme/big-7b-GGUF", on_hub)
    assert source.notes == (
        "acme/big-7b-GGUF holds 2 models; this is big-7b, the others are small-1b: "
        "name a file to take one of them, as in acme/big-7b-GGUF/small-1b-Q8_0.gguf",
    )
    named, quantization = resolve(f"acme/big-7b-GGUF/{stray.name}", on_hub)
    assert [item.files[0].path for item in named.artifacts] == [stray.name]
    assert (quantization, named.notes, named.name) == ("Q8_0", (), f"acme/big-7b-GGUF/{stray.name}")


def test_a_repository_of_equal_models_is_not_guessed_at(hub, on_hub):
    for name in ("one-7b-Q8_0.gguf", "two-7b-Q8_0.gguf"):
        write_model(hub.root / "acme" / "various" / name, TINY_LLAMA, "Q8_0")
    with pytest.raises(Ambiguous) as caught:
        resolve("acme/various", on_hub)
    assert caught.value.choices == ("one-7b", "two-7b")
    assert "acme/various/one-7b-Q8_0.gguf" in (caught.value.hint or "")


def test_any_shard_of_a_repository_names_the_whole(hub, on_hub):
    write_model(hub.root / "acme" / "m-GGUF" / "BF16" / "m-BF16.gguf", TINY_LLAMA, "F16", shards=2)
    for file in ("m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf"):
        source, quantization = resolve(f"acme/m-GGUF/BF16/{file}", on_hub)
        assert quantization == "BF16"
        assert len(source.find("BF16").files) == 2


@pytest.mark.parametrize("text", ["acme/m-GGUF/m.Q8_0.gguf.part2of2", "acme/m-GGUF:Q8_0"])
def test_raw_pieces_end_in_one_clear_sentence(text, hub, on_hub):
    publish(hub, "acme/m-GGUF", quantizations=["Q4_0"])
    for number in (1, 2):
        (hub.root / "acme" / "m-GGUF" / f"m.Q8_0.gguf.part{number}of2").write_bytes(b"GGUF")

    def ask():
        source, quantization = resolve(text, on_hub)
        source.find(quantization)

    with pytest.raises(NotFound, match=r"raw piece of a file, which llama\.cpp cannot load") as caught:
        ask()
    assert "ggufdeploy run acme/m-GGUF --quant Q4_0" in (caught.value.hint or "")


def test_a_file_is_found_in_the_cache_when_the_hub_is_away(hub, on_hub):
    publish(hub, "acme/m-GGUF")
    source, _ = resolve("acme/m-GGUF", on_hub)
    source.fetch(source.find("Q8_0"), lambda progress: None)
    offline = dataclasses.replace(on_hub, offline=True)
    cached, _ = resolve("acme/m-GGUF/m-Q8_0.gguf", offline)
    assert [item.quantization for item in cached.artifacts] == ["Q8_0"]
    with pytest.raises(Unreachable):
        resolve("acme/m-GGUF/m-Q4_0.gguf", offline)


def test_a_file_name_in_a_hint_cannot_run_anything_when_pasted(hub, on_hub):
    for name in ("$(touch x)-7b-Q8_0.gguf", "two-7b-Q8_0.gguf"):
        write_model(hub.root / "acme" / "various" / name, TINY_LLAMA, "Q8_0")
    with pytest.raises(Ambiguous) as caught:
        resolve("acme/various", on_hub)
    assert caught.value.hint == "name a file of it: ggufdeploy run 'acme/various/$(touch x)-7b-Q8_0.gguf'"
