import pytest

from ggufdeploy.errors import BadGguf, Unreachable
from ggufdeploy.hub.catalog import GgufFile, list_repository
from ggufdeploy.hub.download import download_artifact
from ggufdeploy.hub.header import fetch_header, fetch_headers
from ggufdeploy.units import MIB
from tests.gguf_writer import TINY_LLAMA, GgufBuilder, write_model

pytestmark = pytest.mark.slow

REPO = "acme/model-GGUF"


@pytest.fixture
def folder(hub):
    folder = hub.root / REPO
    folder.mkdir()
    return folder


@pytest.fixture
def fetch(hub, client):
    def fetch(path):
        (artifact,) = [a for a in list_repository(REPO, None, client).artifacts if a.files[0].path == path]
        return fetch_header(client, REPO, hub.commit(REPO), artifact.files[0])

    return fetch


def with_vocabulary(n_bytes):
    words = ["x" * 96] * (n_bytes // 104)
    return GgufBuilder("llama").kv("tokenizer.ggml.tokens", words).tensor("t", (32, 4), "Q8_0").to_bytes()


def cdn_ranges(hub):
    return [request.range for request in hub.requests if request.server == "cdn"]


def test_a_small_header_takes_one_request(hub, folder, fetch):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    with (folder / "m.Q8_0.gguf").open("ab") as stream:
        stream.truncate(5 * MIB)
    got = fetch("m.Q8_0.gguf")
    assert got.header.metadata["general.architecture"] == "llama"
    assert got.raw == (folder / "m.Q8_0.gguf").read_bytes()[: got.header.data_offset]
    assert (got.requests, got.fetched_bytes, got.from_cache) == (1, MIB, False)
    assert cdn_ranges(hub) == ["bytes=0-1048575"]


def test_reads_grow_and_never_repeat_a_byte(hub, folder, fetch):
    (folder / "m.Q8_0.gguf").write_bytes(with_vocabulary(5 * MIB) + b"\0" * 9 * MIB)
    got = fetch("m.Q8_0.gguf")
    assert cdn_ranges(hub) == [
        f"bytes={start * MIB}-{end * MIB - 1}" for start, end in ((0, 1), (1, 2), (2, 4), (4, 8))
    ]
    assert (got.requests, got.fetched_bytes) == (4, 8 * MIB)
    assert len(got.raw) == got.header.data_offset > 5 * MIB


def test_the_second_time_comes_from_the_disk_even_under_another_commit(hub, folder, fetch):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    first = fetch("m.Q8_0.gguf")
    (folder / "README.md").write_text("a new commit")
    hub.requests.clear()
    second = fetch("m.Q8_0.gguf")
    assert (second.raw, second.header.tensors) == (first.raw, first.header.tensors)
    assert (second.from_cache, second.requests, second.fetched_bytes) == (True, 0, 0)
    assert cdn_ranges(hub) == []


def test_a_damaged_cache_entry_is_fetched_again(hub, folder, fetch, client):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    first = fetch("m.Q8_0.gguf")
    (entry,) = (client.settings.cache_dir / "headers").iterdir()
    entry.write_bytes(first.raw[:100])
    assert fetch("m.Q8_0.gguf").from_cache is False
    assert fetch("m.Q8_0.gguf").from_cache is True


def test_a_downloaded_file_answers_itself(hub, folder, fetch, client):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    catalogue = list_repository(REPO, None, client)
    download_artifact(client, REPO, catalogue.commit, catalogue.artifacts[0], on_progress=lambda _: None)
    hub.requests.clear()
    assert fetch("m.Q8_0.gguf").from_cache is True
    assert cdn_ranges(hub) == []


def test_all_shards_are_fetched_in_order(hub, folder, client):
    for shard in (1, 2, 3):
        write_model(folder / f"m.Q8_0-0000{shard}-of-00003.gguf", TINY_LLAMA, "Q8_0" if shard == 2 else "F16")
    catalogue = list_repository(REPO, None, client)
    got = fetch_headers(client, REPO, catalogue.commit, catalogue.artifacts[0])
    types = [{tensor.type.name for tensor in one.header.tensors} for one in got]
    assert ["Q8_0" in names for names in types] == [False, True, False]


def test_one_cut_connection_is_not_the_end(hub, folder, fetch):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    hub.fault("cut", "*.gguf", at=50)
    assert fetch("m.Q8_0.gguf").header.metadata["general.architecture"] == "llama"


def test_a_range_that_is_not_the_one_asked_for_is_refused(hub, folder, fetch):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    with (folder / "m.Q8_0.gguf").open("ab") as stream:
        stream.truncate(3 * MIB)
    hub.fault("wrong_range", "*.gguf", times=None)
    with pytest.raises(Unreachable, match="was asked for"):
        fetch("m.Q8_0.gguf")


def test_what_is_not_gguf_or_is_cut_says_so(hub, folder, fetch):
    (folder / "m.Q8_0.gguf").write_bytes(b"<html>" * 1000)
    with pytest.raises(BadGguf, match=r"acme/model-GGUF/m\.Q8_0\.gguf"):
        fetch("m.Q8_0.gguf")
    (folder / "m.F16.gguf").write_bytes(with_vocabulary(10_000)[:5_000])
    with pytest.raises(BadGguf, match="cut or damaged"):
        fetch("m.F16.gguf")
    write_model(folder / "m.BF16.gguf", TINY_LLAMA, "BF16")
    whole = (folder / "m.BF16.gguf").read_bytes()
    (folder / "m.BF16.gguf").write_bytes(whole[:-1])
    with pytest.raises(BadGguf, match="the file is cut"):
        fetch("m.BF16.gguf")


def test_an_endless_header_is_given_up(hub, folder, client, monkeypatch):
    monkeypatch.setattr("ggufdeploy.hub.header._CAP_BYTES", 2 * MIB)
    (folder / "m.Q8_0.gguf").write_bytes(with_vocabulary(5 * MIB))
    file = GgufFile("m.Q8_0.gguf", (folder / "m.Q8_0.gguf").stat().st_size, hub.oid(f"{REPO}/m.Q8_0.gguf"))
    with pytest.raises(BadGguf, match="larger than 2 MiB"):
        fetch_header(client, REPO, hub.commit(REPO), file)
