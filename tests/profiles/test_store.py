import pytest

from ggufdeploy.errors import Ambiguous, BadConfig, NotFound
from ggufdeploy.profiles.store import load_profiles
from ggufdeploy.settings import Settings

BASE = """
name = "{name}"
description = "Shipped {name}"
license = "mit"
aliases = {aliases}
repos = ["someone/{name}-GGUF"]
source = "its card"
default_slots = 3

[facts]
architecture = "llama"
n_layers = 2
context_train_tokens = 65536

[presets.chat]
description = "Chat"
min_context_tokens = 8192
"""


class Store:
    """Two directories of profiles, as a user has them."""

    def __init__(self, root):
        self.shipped, self.config = root / "shipped", root / "config"
        self.user = self.config / "profiles"
        self.settings = Settings(self.config, root, root, root)
        for directory in (self.shipped, self.user):
            directory.mkdir(parents=True)

    def ship(self, name, aliases="[]"):
        (self.shipped / f"{name}.toml").write_text(BASE.format(name=name, aliases=aliases))

    def write(self, name, text):
        (self.user / f"{name}.toml").write_text(text)

    def load(self):
        return load_profiles(self.settings, shipped_dir=self.shipped)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.ship("big-8x22b", '["big:8x22b"]')
    store.ship("big-8x7b")
    store.ship("small")
    return store


@pytest.mark.parametrize("name", ["big-8x22b", "Big-8x22B", "big:8x22b", "BIG:8X22B", "  big:8x22b "])
def test_a_profile_is_found_by_name_or_alias_in_any_case(store, name):
    assert store.load().find(name).name == "big-8x22b"


def test_finding_a_name_reads_that_file_only(store):
    (store.shipped / "broken.toml").write_text("this is not TOML")
    profiles = store.load()
    assert profiles.find("small").name == "small"
    with pytest.raises(BadConfig, match=r"broken\.toml"):
        profiles.profiles()


def test_names_are_sorted_and_include_the_user_s(store):
    store.write("mine", BASE.format(name="mine", aliases="[]"))
    assert store.load().names() == ("big-8x22b", "big-8x7b", "mine", "small")
    assert [profile.name for profile in store.load().profiles()] == ["big-8x22b", "big-8x7b", "mine", "small"]


def test_an_unknown_name_is_refused_with_the_nearest(store):
    with pytest.raises(NotFound) as caught:
        store.load().find("smal")
    assert caught.value.kind == "model"
    assert "did you mean small?" in (caught.value.hint or "")
    assert "ggufdeploy profiles list" in (caught.value.hint or "")


def test_the_beginning_of_several_names_is_ambiguous(store):
    with pytest.raises(Ambiguous) as caught:
        store.load().find("big")
    assert caught.value.choices == ("big-8x22b", "big-8x7b")


def test_no_profiles_at_all_is_not_a_crash(tmp_path):
    empty = load_profiles(Settings(tmp_path, tmp_path, tmp_path, tmp_path), shipped_dir=tmp_path / "none")
    assert empty.names() == ()
    with pytest.raises(NotFound):
        empty.find("small")


def test_a_user_s_file_of_the_same_name_replaces_the_shipped_one(store):
    store.write("small", BASE.format(name="small", aliases='["tiny"]').replace("Shipped", "My"))
    profiles = store.load()
    assert profiles.find("small").description == "My small"
    assert profiles.find("tiny").description == "My small"
    assert profiles.path("small").parent == store.user


def test_a_user_may_change_single_fields_of_a_shipped_profile(store):
    store.write("big-8x22b", 'extends = "big-8x22b"\ndefault_slots = 1\n[presets.mine]\ndescription = "Mine"\n')
    profile = store.load().find("big:8x22b")
    assert profile.default_slots == 1
    assert profile.description == "Shipped big-8x22b"
    assert [preset.name for preset in profile.presets] == ["chat", "mine"]
    assert profile.facts.n_layers == 2


def test_a_user_may_derive_a_profile_under_a_new_name_without_taking_the_aliases(store):
    store.write("my-big", 'extends = "big-8x22b"\n[facts]\nn_layers = 4\n')
    profiles = store.load()
    derived = profiles.find("my-big")
    assert (derived.name, derived.facts.n_layers, derived.facts.architecture) == ("my-big", 4, "llama")
    assert derived.aliases == ()
    assert profiles.find("big:8x22b").name == "big-8x22b"
    assert profiles.find("big-8x22b").facts.n_layers == 2


def test_derivation_goes_through_several_files(store):
    store.write("a", 'extends = "b"\ndefault_slots = 7\n')
    store.write("b", 'extends = "small"\ndefault_context_tokens = 1024\n')
    profile = store.load().find("a")
    assert (profile.default_slots, profile.default_context_tokens) == (7, 1024)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a": 'extends = "b"', "b": 'extends = "a"'}, "leads back"),
        ({"a": 'extends = "a"'}, "leads back"),
        ({"a": 'extends = "smalll"'}, "is no profile"),
        ({"a": "extends = 3"}, "must be the name"),
    ],
)
def test_a_derivation_that_cannot_be_followed_is_refused(store, files, says):
    for name, text in files.items():
        store.write(name, text)
    with pytest.raises(BadConfig, match=says) as caught:
        store.load().find("a")
    assert caught.value.name == "extends"
    assert ".toml" in caught.value.message


def test_a_wrong_key_in_a_derived_profile_names_the_user_s_file(store):
    store.write("small", 'extends = "small"\ndefault_slot = 1\n')
    with pytest.raises(BadConfig, match=r"config/profiles/small\.toml: unknown key default_slot"):
        store.load().find("small")


def test_one_alias_in_two_files_is_refused_with_file_and_key(store):
    store.ship("other", '["x", "big:8x22b"]')
    with pytest.raises(BadConfig) as caught:
        store.load().profiles()
    assert caught.value.name == "aliases[1]"
    assert "other.toml" in caught.value.message
    assert "already means big-8x22b" in caught.value.message


def test_an_alias_that_is_another_profile_s_name_is_refused(store):
    store.ship("other", '["small"]')
    with pytest.raises(BadConfig, match="already means small"):
        store.load().profiles()


def test_a_user_s_alias_hides_a_shipped_one(store):
    store.write("mine", BASE.format(name="mine", aliases='["big:8x22b"]'))
    assert store.load().find("big:8x22b").name == "mine"


def test_a_file_whose_name_differs_from_its_profile_is_refused(store):
    store.write("mine", BASE.format(name="yours", aliases="[]"))
    with pytest.raises(BadConfig, match="differs from the file's name"):
        store.load().find("mine")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused_by_name(store, content):
    (store.user / "mine.toml").write_bytes(content)
    with pytest.raises(BadConfig, match=r"mine\.toml is not TOML"):
        store.load().find("mine")


def test_a_repository_leads_to_the_profile_that_names_it(store):
    profiles = store.load()
    assert profiles.by_repo("Someone/BIG-8x7b-gguf").name == "big-8x7b"
    assert profiles.by_repo("someone/else") is None


def test_a_repository_is_looked_up_only_in_files_that_can_name_it(store):
    (store.shipped / "small.toml").write_text("not = [a profile")
    store.write("mine", 'name = "mine"\nextends = "big-8x22b"\ndescription = "Mine"\nrepos = ["me/mine-GGUF"]\n')
    profiles = store.load()
    assert profiles.by_repo("Someone/BIG-8x7b-gguf").name == "big-8x7b"
    assert profiles.by_repo("me/mine-gguf").name == "mine"
    with pytest.raises(BadConfig):
        profiles.profiles()
