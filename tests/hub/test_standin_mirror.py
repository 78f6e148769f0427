"""The stand-in as a command: a mirror without the internet, and a stand-in for tests in other processes."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.standin_hub import StandinHub
from tests.standin_hub.checksums import Checksums

pytestmark = pytest.mark.slow

REPO, FILE = "acme/tiny-GGUF", "tiny.Q4_0.gguf"
WEIGHTS = bytes(range(256)) * 1000
COMMIT = "c0ffee" + "0" * 34


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mirror" / REPO
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(WEIGHTS)
    (folder / "README.md").write_text("# tiny\n")
    return tmp_path / "mirror"


@contextlib.contextmanager
def serving(root, *options):
    """Run the command; yield the endpoint it prints."""
    line = [sys.executable, "-m", "tests.standin_hub", str(root), *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("HF_ENDPOINT=http://127.0.0.1:")
            yield said.strip().partition("=")[2]
        finally:
            process.terminate()


def get(url, data=None):
    with urllib.request.urlopen(url, data=data, timeout=10) as response:
        return json.load(response)


def run(*line, **environment):
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hf_and_ggufdeploy_fetch_from_the_command(root, tmp_path):
    hf = str(Path(sys.executable).parent / "hf")
    with serving(root) as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_XET": "1"}
        run(hf, "download", REPO, FILE, "--local-dir", str(tmp_path / "one"), **environment)
        run(hf, "download", REPO, "--local-dir", str(tmp_path / "all"), **environment)
        pulled = run(sys.executable, "-m", "ggufdeploy", "pull", f"{REPO}:Q4_0", **environment).strip()
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "all" / FILE).read_bytes() == WEIGHTS
    assert (tmp_path / "all" / "README.md").read_text() == "# tiny\n"
    assert Path(pulled).read_bytes() == WEIGHTS


def test_faults_and_the_log_are_there_only_on_request(root):
    with serving(root, "--faults", "--redirect") as endpoint:
        fault = {"kind": "resolve_status", "pattern": "*.gguf", "status": 404}
        assert get(f"{endpoint}/_fault", json.dumps(fault).encode())["times"] == 1
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{endpoint}/{REPO}/resolve/main/{FILE}", timeout=10)
        urllib.request.urlopen(f"{endpoint}/{REPO}/resolve/main/{FILE}", timeout=10).close()
        assert [entry["server"] for entry in get(f"{endpoint}/_log")] == ["hub", "hub", "cdn"]
        with pytest.raises(urllib.error.HTTPError, match="400"):
            get(f"{endpoint}/_fault", b'{"kind": "nonsense"}')
        get(f"{endpoint}/_reset", b"")
        assert get(f"{endpoint}/_log") == []
    with serving(root) as endpoint:
        for path, data in (("_log", None), ("_fault", b"{}"), ("_reset", b"")):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(f"{endpoint}/{path}", data)


def test_checksums_are_computed_once_and_kept(root, monkeypatch):
    index, name = root / "index.json", f"{REPO}/{FILE}"
    right = hashlib.sha256(WEIGHTS).hexdigest()
    assert Checksums(root, index).sha256(name) == right

    def read(path):
        raise AssertionError(path)

    monkeypatch.setattr("tests.standin_hub.checksums._hash", read)
    assert Checksums(root, index).is_known(name)
    assert Checksums(root, index).sha256(name) == right
    os.utime(root / name, ns=(1, 1))
    assert not Checksums(root, index).is_known(name)
    with pytest.raises(AssertionError, match=FILE):
        Checksums(root, index).sha256(name)


def test_a_damaged_index_is_none(root):
    (root / "index.json").write_text("{")
    sums = Checksums(root, root / "index.json")
    assert sums.sha256(f"{REPO}/{FILE}") == hashlib.sha256(WEIGHTS).hexdigest()


def test_a_snapshot_of_a_cache_keeps_the_hubs_commit_and_checksum(tmp_path):
    cache = tmp_path / "cache" / "models--acme--tiny-GGUF"
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / ("ab" * 32)).write_bytes(b"damaged on its way here")
    (snapshot / FILE).symlink_to(f"../../blobs/{'ab' * 32}")
    with StandinHub(tmp_path / "mirror") as hub:
        (hub.root / "acme").mkdir()
        (hub.root / REPO).symlink_to(snapshot)
        assert get(f"{hub.url}/api/models/{REPO}")["sha"] == COMMIT
        (entry,) = get(f"{hub.url}/api/models/{REPO}/tree/{COMMIT}")
        assert entry["lfs"]["oid"] == "ab" * 32


def test_what_hf_downloaded_to_a_directory_keeps_the_hubs_checksum(root):
    notes = root / REPO / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / f"{FILE}.metadata").write_text(f"{COMMIT}\n{'cd' * 32}\n4102444800.0\n")
    with StandinHub(root) as hub:
        entries = {entry["path"]: entry for entry in get(f"{hub.url}/api/models/{REPO}/tree/main?recursive=true")}
    assert set(entries) == {FILE, "README.md"}
    assert entries[FILE]["lfs"]["oid"] == "cd" * 32
    (notes / f"{FILE}.metadata").write_text(f"{COMMIT}\n{'cd' * 32}\n1.0\n")
    assert Checksums(root, None).sha256(f"{REPO}/{FILE}") == hashlib.sha256(WEIGHTS).hexdigest()


def test_behind_a_proxy_that_ends_tls_pages_lead_back_to_it(root):
    with StandinHub(root, page_size=1) as hub:
        headers = {"Host": "models.example", "X-Forwarded-Proto": "https"}
        request = urllib.request.Request(f"{hub.url}/api/models/{REPO}/tree/main", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.headers["Link"].startswith("<https://models.example/api/models/")
