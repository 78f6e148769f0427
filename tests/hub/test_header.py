import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ggufdeploy.errors import BadGguf, Unreachable
from ggufdeploy.gguf.shape import PREFIX_BYTES
from ggufdeploy.hub.catalog import GgufFile, list_repository
from ggufdeploy.hub.download import download_artifact
from ggufdeploy.hub.header import HeaderReader
from ggufdeploy.units import MIB
from tests.gguf_writer import TINY_LLAMA, GgufBuilder, write_mixtral_8x22b, write_model

pytestmark = pytest.mark.slow

REPO = "acme/model-GGUF"


@pytest.fixture
def folder(hub):
    folder = hub.root / REPO
    folder.mkdir()
    return folder


class Fetch:
    """Reads headers as a new process would each time. reader: of the last call."""

    def __init__(self, hub, client):
        self.hub, self.client = hub, client

    def _prepare(self, path):
        artifacts = list_repository(REPO, None, self.client).artifacts
        (artifact,) = [a for a in artifacts if a.files[0].path == path]
        self.reader = HeaderReader(self.client, REPO, self.hub.commit(REPO))
        return artifact

    def __call__(self, path):
        file = self._prepare(path).files[0]
        return self.reader.header(file)

    def all(self, path):
        artifact = self._prepare(path)
        return self.reader.headers(artifact)

    def prefix(self, path):
        file = self._prepare(path).files[0]
        return self.reader.prefix(file)

    @property
    def traffic(self):
        return self.reader.requests, self.reader.fetched_bytes


@pytest.fixture
def fetch(hub, client):
    return Fetch(hub, client)


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
    assert (*fetch.traffic, got.from_cache) == (1, MIB, False)
    assert cdn_ranges(hub) == ["bytes=0-1048575"]


def test_reads_grow_and_never_repeat_a_byte(hub, folder, fetch):
    (folder / "m.Q8_0.gguf").write_bytes(with_vocabulary(5 * MIB) + b"\0" * 9 * MIB)
    got = fetch("m.Q8_0.gguf")
    assert cdn_ranges(hub) == [
        f"bytes={start * MIB}-{end * MIB - 1}" for start, end in ((0, 1), (1, 2), (2, 4), (4, 8))
    ]
    assert fetch.traffic == (4, 8 * MIB)
    assert len(got.raw) == got.header.data_offset > 5 * MIB


def test_the_second_time_comes_from_the_disk_even_under_another_commit(hub, folder, fetch):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    first = fetch("m.Q8_0.gguf")
    (folder / "README.md").write_text("a new commit")
    hub.requests.clear()
    second = fetch("m.Q8_0.gguf")
    assert (second.raw, second.header.tensors) == (first.raw, first.header.tensors)
    assert (second.from_cache, *fetch.traffic) == (True, 0, 0)
    assert cdn_ranges(hub) == []


def cached(client):
    return sorted((client.settings.cache_dir / "headers").iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped where it still parses", "another header"])
def test_a_damaged_cache_entry_is_fetched_again(hub, folder, fetch, client, damage):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    first = fetch("m.Q8_0.gguf")
    (entry,) = cached(client)
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        del content[100:]
    elif damage == "another header":
        content = bytearray(GgufBuilder("llama").tensor("t", (32, 4), "Q8_0").header())
    else:
        content[content.index(b"tiny-llama")] ^= 1
    entry.write_bytes(content)
    again = fetch("m.Q8_0.gguf")
    assert (again.from_cache, again.raw) == (False, first.raw)
    assert fetch("m.Q8_0.gguf").from_cache is True


def test_a_cache_that_cannot_be_written_does_not_end_a_plan(hub, folder, fetch, client):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    client.settings.cache_dir.mkdir(parents=True)
    (client.settings.cache_dir / "headers").write_text("a file where the folder belongs")
    assert fetch("m.Q8_0.gguf").from_cache is False
    assert fetch.prefix("m.Q8_0.gguf").metadata["llama.block_count"] == TINY_LLAMA.n_layers


def test_many_that_write_the_same_entry_leave_one_whole_entry(hub, folder, fetch, client):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    (artifact,) = list_repository(REPO, None, client).artifacts
    readers = [HeaderReader(client, REPO, hub.commit(REPO)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda reader: reader.header(artifact.files[0]).raw, readers))
    assert len(set(got)) == 1
    assert len(cached(client)) == 1
    assert fetch("m.Q8_0.gguf").from_cache is True


def test_the_shape_takes_64_kib_which_the_whole_header_does_not_fetch_again(hub, folder, fetch, client):
    (folder / "m.Q8_0.gguf").write_bytes(with_vocabulary(5 * MIB) + b"\0" * 9 * MIB)
    prefix = fetch.prefix("m.Q8_0.gguf")
    assert fetch.traffic == (1, PREFIX_BYTES)
    assert prefix.metadata["general.architecture"] == "llama"
    assert prefix.complete is False
    got = fetch("m.Q8_0.gguf")
    assert fetch.traffic == (4, 8 * MIB - PREFIX_BYTES)
    assert got.raw == (folder / "m.Q8_0.gguf").read_bytes()[: got.header.data_offset]
    assert cdn_ranges(hub)[:2] == ["bytes=0-65535", "bytes=65536-1048575"]
    hub.requests.clear()
    assert fetch.prefix("m.Q8_0.gguf").metadata == prefix.metadata
    assert fetch.traffic == (0, 0)
    assert cdn_ranges(hub) == []


def test_a_start_that_was_damaged_on_its_way_is_fetched_again_with_the_header(hub, folder, fetch):
    content = with_vocabulary(2 * MIB) + b"\0" * 2 * MIB
    (folder / "m.Q8_0.gguf").write_bytes(content)
    last_length = content.rindex((96).to_bytes(8, "little"), 0, PREFIX_BYTES)
    hub.fault("corrupt", "*.gguf", at=last_length)
    assert fetch.prefix("m.Q8_0.gguf").metadata["general.architecture"] == "llama"
    got = fetch("m.Q8_0.gguf")
    assert got.raw == content[: got.header.data_offset]
    assert cdn_ranges(hub)[-3:] == ["bytes=0-1048575", "bytes=1048576-2097151", "bytes=2097152-4194303"]


def test_later_shards_begin_with_64_kib(hub, folder, fetch):
    write_mixtral_8x22b(folder, "Q4_K_S", shards=2)
    fetch.all("Mixtral-8x22B-Instruct-v0.1.Q4_K_S-00001-of-00002.gguf")
    assert sorted(cdn_ranges(hub)) == ["bytes=0-1048575", "bytes=0-65535"]


def test_a_downloaded_file_answers_itself(hub, folder, fetch, client):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    catalogue = list_repository(REPO, None, client)
    download_artifact(client, REPO, catalogue.commit, catalogue.artifacts[0], on_progress=lambda _: None)
    hub.requests.clear()
    assert fetch("m.Q8_0.gguf").from_cache is True
    assert cdn_ranges(hub) == []


def test_all_shards_are_fetched_in_order(hub, folder, fetch):
    for shard in (1, 2, 3):
        write_model(folder / f"m.Q8_0-0000{shard}-of-00003.gguf", TINY_LLAMA, "Q8_0" if shard == 2 else "F16")
    got = fetch.all("m.Q8_0-00001-of-00003.gguf")
    types = [{tensor.type.name for tensor in one.header.tensors} for one in got]
    assert ["Q8_0" in names for names in types] == [False, True, False]


def test_one_cut_connection_is_not_the_end(hub, folder, fetch):
    write_model(folder / "m.Q8_0.gguf", TINY_LLAMA, "Q8_0")
    size = (folder / "m.Q8_0.gguf").stat().st_size
    hub.fault("cut", "*.gguf", at=50)
    assert fetch("m.Q8_0.gguf").header.metadata["general.architecture"] == "llama"
    assert cdn_ranges(hub) == [None, f"bytes=50-{size - 1}"]
    assert fetch.traffic == (2, size)


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
        HeaderReader(client, REPO, hub.commit(REPO)).header(file)


INTERRUPTED = """
import os, signal, sys, threading
from ggufdeploy.hub.catalog import list_repository
from ggufdeploy.hub.header import HeaderReader
from ggufdeploy.hub.session import HubClient
from ggufdeploy.settings import Settings

client = HubClient(Settings.from_environment(os.environ))
catalogue = list_repository(sys.argv[1], None, client)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
HeaderReader(client, catalogue.repo, catalogue.commit).headers(catalogue.find("F16"))
"""


def test_ctrl_c_does_not_wait_for_a_server_that_does_not_answer(hub):
    hub.fault("stall", "*.gguf", at=10, times=None)
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    command = [sys.executable, "-c", INTERRUPTED, "acme/tiny-GGUF"]
    ended = subprocess.run(command, env=environment, timeout=20, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGINT
