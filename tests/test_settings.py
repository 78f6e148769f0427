"""What the environment means, name by name."""

from pathlib import Path

import pytest

from ggufdeploy.errors import BadConfig
from ggufdeploy.settings import Settings, endpoint_url

TOKEN = "hf_canary"


def read(tmp_path, **environ):
    return Settings.from_environment({"HF_HOME": str(tmp_path), **environ})


def test_the_cache_is_where_huggingface_hub_has_it(tmp_path):
    assert read(tmp_path).hf_cache_dir == tmp_path / "hub"
    assert read(tmp_path, HF_HUB_CACHE="/data/hub").hf_cache_dir == Path("/data/hub")
    assert read(tmp_path, HUGGINGFACE_HUB_CACHE="/old").hf_cache_dir == Path("/old")
    assert read(tmp_path, HF_HUB_CACHE="$SCRATCH/hub", SCRATCH="/big").hf_cache_dir == Path("/big/hub")
    assert read(tmp_path, HF_HOME="", XDG_CACHE_HOME="/xdg").hf_cache_dir == Path("/xdg/huggingface/hub")
    assert read(tmp_path, HF_HOME="~/hf").hf_cache_dir == Path("~/hf/hub").expanduser()


@pytest.mark.parametrize(
    ("environ", "offline"),
    [({}, False), ({"HF_HUB_OFFLINE": "1"}, True), ({"HF_HUB_OFFLINE": "no"}, False),
     ({"TRANSFORMERS_OFFLINE": "1"}, True), ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, False)],
)  # fmt: skip
def test_offline_mode_has_two_names(tmp_path, environ, offline):
    assert read(tmp_path, **environ).offline is offline


def test_the_token_comes_from_the_environment_before_the_files(tmp_path):
    (tmp_path / "token").write_text("hf_saved\n")
    (tmp_path / "other").write_text(" hf_other ")
    assert read(tmp_path).hf_token == "hf_saved"
    assert read(tmp_path, HF_TOKEN_PATH=str(tmp_path / "other")).hf_token == "hf_other"
    assert read(tmp_path, HF_TOKEN_PATH=str(tmp_path / "none")).hf_token is None
    assert read(tmp_path, HUGGING_FACE_HUB_TOKEN="hf_old").hf_token == "hf_old"
    assert read(tmp_path, HF_TOKEN="hf_new\n", HUGGING_FACE_HUB_TOKEN="hf_old").hf_token == "hf_new"
    assert read(tmp_path, HF_TOKEN="hf_new", HF_HUB_DISABLE_IMPLICIT_TOKEN="1").hf_token is None


@pytest.mark.parametrize("token", [f"{TOKEN} {TOKEN}", f"{TOKEN}\r\nX-Other: 1", f"{TOKEN}é"])
def test_what_no_token_can_be_is_refused_without_showing_it(tmp_path, token):
    with pytest.raises(BadConfig, match="HF_TOKEN holds characters that no token has") as caught:
        read(tmp_path, HF_TOKEN=token)
    assert TOKEN not in repr(caught.value)


def test_trusted_endpoints_are_urls_in_one_spelling(tmp_path):
    named = read(tmp_path, GGUFDEPLOY_TRUSTED_ENDPOINTS=" https://Mirror.Example/hub/ , http://10.0.0.5:8090,")
    assert named.trusted_endpoints == ("https://mirror.example/hub", "http://10.0.0.5:8090")
    assert read(tmp_path, HF_ENDPOINT="HTTPS://Mirror.example/hub/").hf_endpoint == named.trusted_endpoints[0]
    assert endpoint_url("nonsense") == "nonsense"


@pytest.mark.parametrize("value", ["mirror.example", "ftp://x", "https://", "https://me:pass@x"])
def test_a_trusted_endpoint_that_is_no_url_is_refused(tmp_path, value):
    with pytest.raises(BadConfig, match="not a URL") as caught:
        read(tmp_path, GGUFDEPLOY_TRUSTED_ENDPOINTS=value)
    assert "pass" not in str(caught.value)


def test_secrets_are_not_in_the_repr(tmp_path):
    assert TOKEN not in repr(read(tmp_path, HF_TOKEN=TOKEN, GGUFDEPLOY_API_KEY=TOKEN))
