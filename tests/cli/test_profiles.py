"""`ggufdeploy profiles`."""

from __future__ import annotations

import json

import pytest

MINE = """
name = "mine"
description = "A model of my own"
license = "MIT"
repos = ["me/mine-GGUF"]
aliases = ["my-model"]
source = "https://example.org/mine"
default_context_tokens = 4096

[facts]
architecture = "llama"
n_layers = 2
n_params = 1_500_000_000
context_train_tokens = 8192

[quantizations]
Q8_0 = 1_600_000_000

[sampling]
temperature = 0.0

[presets.long]
description = "Everything it has"
min_context_tokens = 8192
"""


@pytest.fixture
def mine(settings):
    path = settings.user_profiles_dir / "mine.toml"
    path.parent.mkdir(parents=True)
    path.write_text(MINE)
    return path


def test_list_names_shipped_and_own_models(run, mine):
    done = run("profiles", "list")

    rows = [line.split(maxsplit=3) for line in done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert rows[0] == ["NAME", "PARAMETERS", "FROM", "DESCRIPTION"]
    assert ["mine", "1.5B", "user", "A model of my own"] in rows
    assert any(row[0] == "mixtral-8x22b" and "active" in " ".join(row) for row in rows)


def test_list_for_programs_and_for_shells(run, mine):
    document = run("profiles", "list", "--json").document
    entry = next(entry for entry in document["profiles"] if entry["name"] == "mine")

    assert document["schema_version"] == 1
    assert entry == {
        "name": "mine",
        "aliases": ["my-model"],
        "description": "A model of my own",
        "repos": ["me/mine-GGUF"],
        "n_params": 1_500_000_000,
        "origin": "user",
        "path": str(mine),
    }
    assert run("profiles", "list", "-q").out.splitlines() == [entry["name"] for entry in document["profiles"]]


def test_show_tells_facts_defaults_and_presets_and_leaves_out_the_unknown(run, mine):
    text = run("profiles", "show", "my-model").out

    assert text.startswith("mine\n")
    for line in (
        "n layers              2",
        "context tokens  4,096",
        "temperature     0.0",
        "Q8_0  1.6 GB",
        "preset long",
    ):
        assert line in text
    assert str(mine) in text
    assert "n experts" not in text
    assert "None" not in text


def test_show_for_programs_keeps_unknown_facts_as_null(run, mine):
    document = run("profiles", "show", "mine", "--json").document

    assert document["path"] == str(mine)
    assert document["profile"]["facts"]["n_experts"] is None
    assert document["profile"]["presets"][0]["min_context_tokens"] == 8192


def test_a_misspelt_model_names_the_nearest(run):
    done = run("profiles", "show", "mixtrl-8x22b")

    assert done.code == 3
    assert done.err.splitlines()[0] == "error: model not found: mixtrl-8x22b"
    assert done.err.splitlines()[1].startswith("hint: did you mean mixtral-8x22b?")


def test_a_name_that_means_several_models_lists_them(run):
    done = run("profiles", "show", "mixtral", "--json")

    assert done.code == 3
    assert done.error["type"] == "ambiguous"
    assert "mixtral-8x22b" in done.error["message"]


def test_path_is_where_own_profiles_belong_or_where_one_is(run, settings, mine):
    assert run("profiles", "path").out == f"{settings.user_profiles_dir}\n"
    assert run("profiles", "path", "my-model").out == f"{mine}\n"
    assert run("profiles", "path", "--json").document == {
        "schema_version": 1,
        "path": str(settings.user_profiles_dir),
    }


def test_a_broken_profile_of_the_user_is_named(run, mine):
    mine.write_text(MINE.replace("license", "licence"))

    done = run("profiles", "show", "mine")

    assert done.code == 2
    assert "unknown key licence" in done.err
    assert "hint: did you mean license?" in done.err


def test_json_is_ascii_and_parses(run):
    text = run("profiles", "list", "--json").out
    assert text.isascii()
    json.loads(text)
