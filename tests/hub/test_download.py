import dataclasses
import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from msgspec import structs

from ggufdeploy import errors
from ggufdeploy.hub.catalog import GgufFile, list_repository
from ggufdeploy.hub.download import DownloadStopped, download_artifact
from ggufdeploy.hub.layout import RepoCache
from ggufdeploy.hub.ranges import Fanout, Ranges
from ggufdeploy.hub.session import HubClient
from ggufdeploy.hub.sidecar import new_sidecar, read_sidecar, write_sidecar
from ggufdeploy.hub.verify import Follower
from tests.hub.conftest import QUICK, REPO, WEIGHTS

pytestmark = pytest.mark.slow

NAME = f"{REPO}/tiny.Q8_0.gguf"
MANY = Fanout(connections=4, range_bytes=200_000, request_bytes=600_000)


@pytest.fixture(autouse=True)
def every_report(monkeypatch):
    monkeypatch.setattr("ggufdeploy.hub.progress._INTERVAL_S", 0.0)


@pytest.fixture
def cache(client):
    return RepoCache(client.settings.hf_cache_dir, REPO)


@pytest.fixture
def file(hub):
    return GgufFile("tiny.Q8_0.gguf", len(WEIGHTS), hub.oid(NAME))


@pytest.fixture
def reports():
    return []


@pytest.fixture
def download(client, reports):
    """Download one quantization and return its paths; reports collects what it told."""

    def download(quantization="Q8_0", by=client, **options):
        catalogue = list_repository(REPO, None, by)
        options.setdefault("on_progress", reports.append)
        return download_artifact(by, REPO, catalogue.commit, catalogue.find(quantization), **options)

    return download


def cdn_ranges(hub):
    return [request.range for request in hub.requests if request.server == "cdn"]


def leftovers(cache):
    return sorted(path.name.partition(".")[2] for path in cache.blobs.iterdir() if "." in path.name)


@pytest.fixture
def interrupted(hub, download, cache, file):
    """Run a slow download that is interrupted when `at` bytes are there; return how many it kept."""

    def interrupted(at, error=KeyboardInterrupt):
        def interrupt(report):
            if report.phase in ("downloading", "checking") and report.done_bytes >= at:
                raise error

        slow = hub.fault("slow", "*.gguf", seconds=0.02, times=None)
        with pytest.raises(error):
            download(on_progress=interrupt)
        slow.times = 0
        return kept(cache, file)

    return interrupted


def kept(cache, file):
    return read_sidecar(cache.note(file), file.n_bytes).trusted_bytes


def test_the_file_arrives_verified_and_linked(hub, download, cache, file, reports):
    (path,) = download()
    assert path == cache.snapshots / hub.commit(REPO) / "tiny.Q8_0.gguf"
    assert path.read_bytes() == WEIGHTS
    assert path.resolve() == cache.blobs / hashlib.sha256(WEIGHTS).hexdigest()
    assert cache.read_ref("main") == hub.commit(REPO)
    assert leftovers(cache) == []
    assert (reports[-1].phase, reports[-1].done_bytes, reports[-1].total_bytes) == ("done", 3_000_000, 3_000_000)
    counts = [report.done_bytes for report in reports]
    assert counts == sorted(counts)


def test_huggingface_hub_understands_the_cache(hub, download, client):
    from huggingface_hub import hf_hub_download, scan_cache_dir

    (path,) = download()
    root = client.settings.hf_cache_dir
    found = hf_hub_download(REPO, "tiny.Q8_0.gguf", cache_dir=root, local_files_only=True)
    assert Path(found) == path
    scan = scan_cache_dir(root)
    assert scan.warnings == []
    (repo,) = scan.repos
    (revision,) = repo.revisions
    assert (repo.repo_id, repo.size_on_disk) == (REPO, 3_000_000)
    assert (revision.commit_hash, revision.refs) == (hub.commit(REPO), {"main"})
    assert [entry.file_path for entry in revision.files] == [path]


def test_what_huggingface_hub_downloaded_is_adopted_and_hashed_once(hub, download, client, reports):
    from huggingface_hub import HfApi

    HfApi(hub.url, token=False).hf_hub_download(REPO, "tiny.Q8_0.gguf", cache_dir=client.settings.hf_cache_dir)
    hub.requests.clear()
    download()
    assert cdn_ranges(hub) == []
    assert "checking" in [report.phase for report in reports]
    reports.clear()
    download()
    assert [report.phase for report in reports] == ["done"]


def test_a_blob_that_another_program_damaged_is_fetched_again(hub, download, cache, file):
    cache.blobs.mkdir(parents=True)
    cache.blob(file).write_bytes(b"\0" + WEIGHTS[1:])
    (path,) = download()
    assert path.read_bytes() == WEIGHTS
    assert leftovers(cache) == []


def test_a_file_changed_after_its_verification_is_noticed(hub, download, cache, file):
    (path,) = download()
    with path.open("r+b") as stream:
        stream.write(b"oops")
    os.utime(path, ns=(0, 0))
    (path,) = download()
    assert path.read_bytes() == WEIGHTS


def test_a_verified_file_that_cannot_be_remembered_is_no_failure(hub, download, client):
    client.settings.cache_dir.mkdir(parents=True)
    (client.settings.cache_dir / "verified").write_text("a file where a folder should be")
    assert download()[0].read_bytes() == WEIGHTS
    assert download()[0].read_bytes() == WEIGHTS


def test_a_complete_artifact_needs_no_network(hub, download, client):
    download("F16")
    catalogue = list_repository(REPO, None, client)
    offline = HubClient(dataclasses.replace(client.settings, offline=True))
    hub.requests.clear()
    paths = download_artifact(offline, REPO, catalogue.commit, catalogue.find("F16"), on_progress=lambda _: None)
    assert [path.stat().st_size for path in paths] == [1_000_000, 2_000_000]
    assert hub.requests == []


def test_a_cut_connection_is_continued_where_it_ended(hub, download, reports):
    hub.fault("cut", "*.gguf", at=2_500_000)
    (path,) = download()
    assert path.read_bytes() == WEIGHTS
    first, second = cdn_ranges(hub)
    assert first is None
    offset = int(second.removeprefix("bytes=").removesuffix("-2999999"))
    assert 2_000_000 < offset <= 2_500_000
    assert "trying again" in next(report.detail for report in reports if report.phase == "retrying")


@pytest.mark.parametrize("at", [1, 1_400_000])
def test_an_interrupted_download_is_continued_by_the_next_call(hub, download, cache, reports, at, interrupted):
    had = interrupted(at)
    assert at <= had < 3_000_000
    hub.requests.clear()
    (path,) = download()
    assert path.read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == [f"bytes={had}-2999999"]
    assert (reports[0].done_bytes, leftovers(cache)) == (had, [])


def test_a_partial_that_is_whole_is_only_checked(hub, download, cache, file):
    cache.blobs.mkdir(parents=True)
    cache.partial(file).write_bytes(WEIGHTS)
    note = new_sidecar(REPO, "0" * 40, "tiny.Q8_0.gguf", len(WEIGHTS))
    write_sidecar(cache.note(file), structs.replace(note, written=((0, len(WEIGHTS)),)))
    assert download()[0].read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == []
    assert leftovers(cache) == []


def test_parts_of_a_file_come_over_several_connections(hub, download, reports):
    hub.fault("slow", "*.gguf", seconds=0.005, times=None)
    (path,) = download(fanout=MANY)
    assert path.read_bytes() == WEIGHTS
    asked = [tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in cdn_ranges(hub)]
    assert len(asked) >= 4
    assert sorted(asked)[0][0] == 0
    assert sum(end + 1 - start for start, end in asked) < 1.3 * len(WEIGHTS)
    counts = [report.done_bytes for report in reports]
    assert counts == sorted(counts)


@pytest.mark.parametrize("kind", ["cut", "status", "expired", "wrong_range", "gzip", "wrong_etag", "corrupt"])
def test_one_failure_among_several_connections_is_survived(hub, download, kind):
    hub.fault("slow", "*.gguf", seconds=0.002, times=None)
    hub.fault(kind, "*.gguf", at=100_000)
    assert download(fanout=MANY)[0].read_bytes() == WEIGHTS


def test_a_slow_connection_is_helped_by_those_that_are_done(hub, download):
    hub.fault("slow", "*.gguf", seconds=0.2, times=1)
    download(fanout=dataclasses.replace(MANY, range_bytes=100_000, request_bytes=1_500_000, connections=2))
    asked = [tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in cdn_ranges(hub)]
    # Either of the two may be the slow one: part of what it asked for is asked for again.
    assert any(start < other < end for start, end in asked for other, _ in asked)


def test_when_asked_to_wait_fewer_connections_go_on(hub, download):
    hub.fault("slow", "*.gguf", seconds=0.002, times=None)
    hub.fault("status", "*.gguf", status=429, headers={"Retry-After": "1"}, times=3)
    assert download(fanout=MANY)[0].read_bytes() == WEIGHTS


KILLED = """
import os, signal, sys
from ggufdeploy.hub.catalog import list_repository
from ggufdeploy.hub.download import download_artifact
from ggufdeploy.hub.ranges import Fanout, Ranges
from ggufdeploy.hub.session import HubClient
from ggufdeploy.settings import Settings

def die(report):
    if report.done_bytes > 1_000_000:
        os.kill(os.getpid(), signal.SIGKILL)

client = HubClient(Settings.from_environment(os.environ))
catalogue = list_repository(sys.argv[1], None, client)
fanout = Fanout(range_bytes=500_000, connections=1)
download_artifact(client, catalogue.repo, catalogue.commit, catalogue.find("Q8_0"), on_progress=die, fanout=fanout)
"""


def test_a_killed_process_leaves_a_partial_that_the_next_one_continues(hub, download, cache, file):
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    hub.fault("slow", "*.gguf", seconds=0.02)
    ended = subprocess.run([sys.executable, "-c", KILLED, REPO], env=environment, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    had = kept(cache, file)
    assert 500_000 < had < 3_000_000
    assert read_sidecar(cache.note(file)).path == "tiny.Q8_0.gguf"
    hub.requests.clear()
    (path,) = download()
    assert path.read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == [f"bytes={had}-2999999"]


@pytest.mark.parametrize("kind", ["status", "expired", "wrong_range", "gzip", "wrong_etag", "ignore_range"])
def test_one_failure_of_every_kind_after_a_resume_is_survived(hub, download, kind, interrupted):
    interrupted(1_500_000)
    hub.fault(kind, "*.gguf")
    (path,) = download()
    assert path.read_bytes() == WEIGHTS


def test_an_expired_link_is_resolved_again(hub, download):
    hub.fault("expired", "*.gguf", times=2)
    hub.requests.clear()
    download()
    assert [r.server for r in hub.requests if "api" not in r.path] == ["hub", "cdn"] * 3


def test_a_server_that_ignored_the_range_once_is_asked_again(hub, download, interrupted):
    had = interrupted(1_500_000)
    hub.requests.clear()
    hub.fault("ignore_range", "*.gguf")
    assert download()[0].read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == [f"bytes={had}-2999999"] * 2


def test_a_server_without_ranges_sends_the_whole_file_again_once(hub, download, interrupted):
    had = interrupted(1_500_000)
    hub.requests.clear()
    hub.fault("ignore_range", "*.gguf", times=None)
    assert download(fanout=MANY)[0].read_bytes() == WEIGHTS
    assert f"bytes={had}-2999999" in cdn_ranges(hub)
    assert len(cdn_ranges(hub)) <= 1 + MANY.connections


def test_a_body_longer_than_the_file_is_cut_to_its_size(hub, download):
    hub.fault("oversize", "*.gguf")
    assert download()[0].read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == [None]


def test_giving_up_says_how_far_it_came_and_keeps_it(hub, download, cache, file, interrupted):
    had = interrupted(2_000_000)
    hub.fault("status", "*.gguf", status=503, times=None)
    with pytest.raises(errors.Unreachable) as caught:
        download()
    assert f"gave up at {had / 1e6:.1f} MB of 3.0 MB after 4 failures" in caught.value.message
    assert "answers 503" in caught.value.message
    assert kept(cache, file) == had
    assert "goes on from there" in caught.value.hint


def test_failures_in_a_row_count_only_without_progress(hub, download, client):
    client.downloads = dataclasses.replace(QUICK, tries=2)
    hub.fault("cut", "*.gguf", at=400_000, times=2)
    with pytest.raises(errors.Unreachable, match="after 2 failures"):
        download()
    hub.fault("cut", "*.gguf", at=1_050_000, times=2)
    assert download()[0].read_bytes() == WEIGHTS


def test_a_stalled_connection_is_left_and_continued(hub, download, monkeypatch):
    from ggufdeploy.hub import http as hub_http

    monkeypatch.setitem(hub_http.TIMEOUTS_S, "read", 0.2)
    hub.fault("stall", "*.gguf", at=1_000_000)
    assert download()[0].read_bytes() == WEIGHTS


def test_one_wrong_byte_leads_to_a_second_full_try(hub, download, cache, reports):
    hub.fault("corrupt", "*.gguf", at=1_234_567)
    (path,) = download()
    assert path.read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == [None, None]
    assert leftovers(cache) == []


def test_wrong_bytes_twice_are_an_error_and_nothing_is_linked(hub, download, cache, client):
    hub.fault("corrupt", "*.gguf", at=1_234_567, times=None)
    with pytest.raises(errors.ChecksumMismatch) as caught:
        download()
    assert caught.value.expected == hashlib.sha256(WEIGHTS).hexdigest()
    assert cdn_ranges(hub) == [None, None]
    assert not cache.snapshots.exists()
    assert leftovers(cache) == ["ggufdeploy-damaged"]


def test_a_poisoned_partial_is_caught_by_the_checksum(hub, download, cache, file):
    cache.blobs.mkdir(parents=True)
    cache.partial(file).write_bytes(b"poison" * 100_000)
    note = new_sidecar(REPO, "0" * 40, "tiny.Q8_0.gguf", len(WEIGHTS))
    write_sidecar(cache.note(file), structs.replace(note, written=((0, 600_000),)))
    (path,) = download()
    assert path.read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == ["bytes=600000-2999999", None]


def test_a_partial_whose_note_is_missing_or_damaged_is_started_again(hub, download, cache, file):
    cache.blobs.mkdir(parents=True)
    for note in (None, b"{", b'{"written": [[0, 600000]]}'):
        cache.partial(file).write_bytes(b"poison" * 100_000)
        if note is not None:
            cache.note(file).write_bytes(note)
        assert download()[0].read_bytes() == WEIGHTS
        cache.blob(file).unlink()
    assert cdn_ranges(hub) == [None] * 3


def test_after_a_restart_of_the_machine_only_what_was_synced_counts(hub, download, cache, file, interrupted):
    interrupted(2_000_000)
    note = read_sidecar(cache.note(file))
    write_sidecar(cache.note(file), structs.replace(note, boot="another", synced=((0, 1_000_000),)))
    hub.requests.clear()
    assert download()[0].read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == ["bytes=1000000-2999999"]


def test_a_partial_longer_than_the_file_is_started_again(hub, download, cache, file):
    cache.blobs.mkdir(parents=True)
    cache.partial(file).write_bytes(bytes(4_000_000))
    assert download()[0].read_bytes() == WEIGHTS


def test_a_link_in_place_of_the_partial_is_not_followed(hub, download, cache, file, tmp_path):
    cache.blobs.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache.partial(file).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        download()
    assert victim.read_bytes() == b"precious"


def disk_with(monkeypatch, free):
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr("ggufdeploy.hub.download.shutil.disk_usage", lambda path: usage)


def test_too_small_a_disk_is_refused_before_the_first_byte_of_any_shard(hub, download, monkeypatch):
    disk_with(monkeypatch, 2_500_000)
    with pytest.raises(errors.NoDiskSpace, match=r"2\.5 MB free; 3\.1 MB are needed") as caught:
        download("F16")
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (3_150_000, 2_500_000)
    assert "HF_HUB_CACHE" in caught.value.hint
    assert cdn_ranges(hub) == []


def test_what_is_there_already_counts_against_the_space_needed(hub, download, monkeypatch, interrupted):
    interrupted(2_000_000)
    disk_with(monkeypatch, 1_050_000)
    assert download()[0].read_bytes() == WEIGHTS


def test_a_disk_that_fills_keeps_the_partial_and_says_so(hub, download, cache, file):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_700_000, hard))
    try:
        with pytest.raises(errors.NoDiskSpace) as caught:
            download()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    had = kept(cache, file)
    assert 1_600_000 < had <= 1_700_000
    assert caught.value.needed_bytes == 3_000_000 - had
    hub.requests.clear()
    assert download()[0].read_bytes() == WEIGHTS
    assert cdn_ranges(hub) == [f"bytes={had}-2999999"]


def test_a_full_disk_does_not_forget_what_filled_it(hub, download, cache, file, monkeypatch):
    """A new note has no room there, so the present one is overwritten."""
    write = os.pwrite
    open_ = Path.open
    full = threading.Event()

    def pwrite(descriptor, data, at):
        if at > 1_500_000:
            full.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, at)

    def open_while_there_is_room(path, *args, **options):
        if full.is_set() and path.name.endswith(".new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_(path, *args, **options)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(Path, "open", open_while_there_is_room)
    with pytest.raises(errors.NoDiskSpace):
        download()
    assert 1_400_000 < kept(cache, file) <= 1_600_000


def test_stop_ends_it_and_keeps_what_came(hub, download, cache, file, reports):
    hub.fault("slow", "*.gguf", seconds=0.01)
    with pytest.raises(DownloadStopped, match="stopped at"):
        download(stop=lambda: any(report.done_bytes > 1_000_000 for report in reports))
    assert 1_000_000 < kept(cache, file) < 3_000_000


def test_a_set_of_shards_is_linked_only_when_all_are_there(hub, download, cache):
    broken = hub.fault("status", "*-00002-of-00002.gguf", times=None)
    with pytest.raises(errors.Unreachable):
        download("F16")
    assert not cache.snapshots.exists()
    broken.times = 0
    hub.requests.clear()
    assert [path.name for path in download("F16")] == [f"tiny.F16-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert all("00002-of" in r.path for r in hub.requests if r.server == "cdn")


def test_a_second_process_waits_says_for_whom_and_downloads_nothing(hub, download, client, reports):
    halfway, go_on = threading.Event(), threading.Event()

    def first(report):
        if report.done_bytes > 1_000_000:
            halfway.set()
            go_on.wait(30)

    def second(report):
        reports.append(report)
        if report.phase == "waiting":
            go_on.set()

    hub.fault("slow", "*.gguf", seconds=0.01)
    thread = threading.Thread(target=download, kwargs={"on_progress": first})
    thread.start()
    assert halfway.wait(30)
    (path,) = download(on_progress=second)
    thread.join()
    assert path.read_bytes() == WEIGHTS
    assert len(cdn_ranges(hub)) == 1
    waiting = [report.detail for report in reports if report.phase == "waiting"]
    assert f"process {os.getpid()} on " in waiting[0]


def test_waiting_for_another_process_can_be_stopped(hub, download, cache, file):
    from filelock import FileLock

    cache.lock(file).parent.mkdir(parents=True)
    with FileLock(cache.lock(file)):
        seen = []
        with pytest.raises(DownloadStopped):
            download(on_progress=seen.append, stop=lambda: bool(seen))
    assert "another program" in seen[0].detail


def test_a_gated_file_is_refused_at_once(hub, download):
    hub.gated.add(REPO)
    with pytest.raises(errors.AccessDenied):
        download()
    assert len([request for request in hub.requests if "resolve" in request.path]) == 1


def test_a_file_outside_lfs_is_verified_by_gits_checksum(hub, client, cache, monkeypatch):
    monkeypatch.setattr("tests.standin_hub.StandinHub.is_lfs", staticmethod(lambda path: False))
    catalogue = list_repository(REPO, None, client)
    artifact = catalogue.find("Q8_0")
    assert (artifact.files[0].sha256, len(artifact.files[0].git_oid)) == (None, 40)
    (path,) = download_artifact(client, REPO, catalogue.commit, artifact, on_progress=lambda _: None)
    assert path.resolve().name == artifact.files[0].git_oid
    assert path.read_bytes() == WEIGHTS


def test_a_marker_that_denies_the_file_is_removed(hub, download, cache):
    from huggingface_hub import try_to_load_from_cache

    marker = cache.folder / ".no_exist" / hub.commit(REPO) / "tiny.Q8_0.gguf"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (path,) = download()
    assert try_to_load_from_cache(REPO, "tiny.Q8_0.gguf", cache_dir=cache.root) == str(path)


def test_a_tag_is_recorded_under_its_own_name_only(hub, client, cache, monkeypatch):
    commit = hub.commit(REPO)
    resolve = hub.resolve_commit
    monkeypatch.setattr(hub, "resolve_commit", lambda repo, name: commit if name == "v1" else resolve(repo, name))
    catalogue = list_repository(REPO, "v1", client)
    download_artifact(client, REPO, catalogue.commit, catalogue.find("Q8_0"), on_progress=lambda _: None)
    assert (cache.read_ref("v1"), cache.read_ref("main")) == (commit, None)


def test_a_hostile_path_or_commit_never_becomes_a_place_on_disk(cache):
    for commit, path in (("0" * 40, "../x.gguf"), ("0" * 40, "/x.gguf"), ("main", "x.gguf"), ("../" * 13 + "x", "x")):
        with pytest.raises(ValueError, match="not a path in a snapshot"):
            cache.entry(commit, path)
    with pytest.raises(errors.NotFound, match="no checksum"):
        cache.blob(GgufFile("x.gguf", 1, "../../etc/passwd"))


def test_what_is_whole_can_be_used_from_a_disk_that_cannot_be_written(hub, download, cache, client, monkeypatch):
    (path,) = download()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for change in ("mkdir", "write_text", "symlink_to", "unlink", "replace"):
        monkeypatch.setattr(Path, change, refuse)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr(Path, "mkdir", lambda path, **_: path.is_dir() or refuse())
    assert download() == [path]


def test_the_note_goes_only_after_the_file_has_its_name(hub, download, cache, file, monkeypatch):
    """A process killed in between must not leave a whole file that nothing vouches for."""
    there = []
    unlink = Path.unlink

    def watched(path, missing_ok=False):
        if path == cache.note(file):
            there.append(cache.blob(file).is_file())
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    download()
    assert there == [True]


def test_a_file_system_that_says_only_when_syncing_that_it_is_full_ends_the_download(hub, download, monkeypatch):
    hub.fault("slow", "*.gguf", seconds=0.02, times=None)
    monkeypatch.setattr("ggufdeploy.hub.transfer._SYNC_S", 0.05)

    def full_later(_descriptor):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full_later)
    with pytest.raises(errors.NoDiskSpace):
        download()


def test_a_partial_that_becomes_shorter_ends_the_hashing_with_an_error(file, tmp_path):
    partial = tmp_path / "partial"
    partial.write_bytes(WEIGHTS[:1_000_000])
    follower = Follower(file, partial, Ranges(len(WEIGHTS), [(0, len(WEIGHTS))]))
    follower.start()
    assert follower.done.wait(10)
    assert isinstance(follower.error, OSError)


@pytest.mark.timeout(20)
def test_asked_to_wait_while_alone_with_a_server_without_ranges_it_waits(hub, download, monkeypatch):
    """The others are leaving for its sake, so it must not leave for theirs."""
    hub.fault("ignore_range", "*.gguf", times=None)
    hub.fault("slow", "*.gguf", seconds=0.05, times=None)
    open_range, calls = HubClient.open_range, []

    def refused_once(client, repo, commit, file, start, end):
        calls.append(start)
        if end == file.n_bytes and len(calls) > 4:
            monkeypatch.setattr(HubClient, "open_range", open_range)
            hub.faults.find(NAME, "slow").times = 0
            raise errors.RateLimited(hub.url, "too many requests", retry_after_s=0.2)
        return open_range(client, repo, commit, file, start, end)

    monkeypatch.setattr(HubClient, "open_range", refused_once)
    assert download(fanout=MANY)[0].read_bytes() == WEIGHTS
    assert len(hub.requests) < 60


def test_a_failure_of_all_connections_at_once_is_said_once(hub, download, reports):
    hub.fault("status", "*.gguf", status=503, times=6)
    download(fanout=MANY)
    assert len([report for report in reports if report.phase == "retrying"]) == 1


def test_a_refused_download_leaves_nothing_unfinished(hub, download, cache):
    hub.gated.add(REPO)
    with pytest.raises(errors.AccessDenied):
        download()
    assert list(cache.blobs.iterdir()) == []
