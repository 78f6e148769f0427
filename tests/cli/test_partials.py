"""Interrupted downloads: what Ctrl-C says, and `partials list` and `clean`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.layout import RepoCache
from ggufdeploy.units import MIB
from tests.cli.conftest import REPO

pytestmark = pytest.mark.slow

FILE = "tiny.Q5_0.gguf"
SIZE = 4 * MIB


@pytest.fixture
def big(hub, settings):
    """A file that takes a while, and where its partial will be."""
    (hub.root / REPO / FILE).write_bytes(os.urandom(SIZE))
    hub.rate_bytes_per_s = 1_000_000
    file = GgufFile(FILE, SIZE, hub.oid(f"{REPO}/{FILE}"))
    return RepoCache(settings.hf_cache_dir, REPO), file


def interrupted(hub, *args):
    """Run `pull`, interrupt it as Ctrl-C does once bytes flow, and return exit code, stdout and stderr."""
    command = [sys.executable, "-m", "ggufdeploy", "pull", f"{REPO}:Q5_0", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not any(request.server == "cdn" for request in hub.requests):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_ctrl_c_keeps_the_partial_and_prints_the_command_that_resumes(hub, big, run):
    cache, file = big
    code, out, err = interrupted(hub, "--revision", "main")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        f"hint: what was fetched is kept; this goes on from there: ggufdeploy pull {REPO}:Q5_0 --revision main"
    )
    assert "Traceback" not in err
    assert cache.partial(file).is_file()
    hub.rate_bytes_per_s = None
    assert 0 < run("pull", f"{REPO}:Q5_0", "--dry-run", "--json").document["missing_bytes"] < SIZE - 100_000
    hub.requests.clear()
    assert run("pull", f"{REPO}:Q5_0", "--revision", "main").code == 0
    (asked,) = [request.range for request in hub.requests if request.server == "cdn"]
    assert int(asked.removeprefix("bytes=").split("-")[0]) > 100_000


def test_ctrl_c_under_json_is_one_line_with_the_command(hub, big):
    code, out, err = interrupted(hub, "--json")
    assert (code, out) == (130, "")
    error = json.loads(err)["error"]
    assert error["type"] == "interrupted"
    assert error["hint"].endswith(f"ggufdeploy pull {REPO}:Q5_0 --json")


@pytest.fixture
def leftovers(hub, big):
    """An interrupted download, what huggingface_hub leaves, and a file that failed its check."""
    cache, file = big
    interrupted(hub)
    orphan = cache.blobs / f"{'ab' * 32}.0123abcd.incomplete"
    orphan.write_bytes(bytes(100_000))
    cache.damaged(GgufFile("x", 1, "cd" * 32)).write_bytes(bytes(50_000))
    (cache.blobs / f"{'ef' * 32}.downloadInProgress").write_bytes(bytes(10))
    return cache, file


def test_list_says_how_far_each_is_and_what_becomes_of_it(leftovers, run):
    done = run("partials", "list")
    assert done.code == 0
    rows = done.out.splitlines()[1:]
    assert len(rows) == 3
    (mine,) = [row for row in rows if FILE in row]
    assert "of 4.2 MB" in mine
    assert mine.endswith("goes on with pull")
    assert sum("nothing goes on with it" in row for row in rows) == 1
    assert sum("failed its check" in row for row in rows) == 1
    assert done.err.splitlines()[-1] == f"hint: ggufdeploy pull {REPO}/{FILE}"


def test_list_for_programs_names_kinds_and_bytes(leftovers, run):
    found = run("partials", "list", "--json").document["partials"]
    assert sorted(each["kind"] for each in found) == ["damaged", "orphan", "partial"]
    (mine,) = [each for each in found if each["kind"] == "partial"]
    assert (mine["repo"], mine["path"], mine["total_bytes"], mine["busy"]) == (REPO, FILE, SIZE, False)
    assert 100_000 < mine["done_bytes"] < SIZE


def test_list_of_models_mentions_unfinished_downloads(leftovers, run):
    assert "more in unfinished downloads: ggufdeploy partials list" in run("list").err


def test_clean_deletes_them_all_but_other_programs_own(leftovers, run):
    cache, _ = leftovers
    done = run("partials", "clean", "--yes", "--json")
    assert done.code == 0
    assert done.document["freed_bytes"] > 150_000
    assert [path.name for path in cache.blobs.iterdir()] == [f"{'ef' * 32}.downloadInProgress"]


def test_clean_leaves_what_is_being_fetched(leftovers, run):
    cache, file = leftovers
    with FileLock(cache.lock(file)):
        assert "being fetched now" in run("partials", "list").out
        done = run("partials", "clean", "--yes")
    assert f"{REPO}/{FILE} is being fetched and stays" in done.err
    assert cache.partial(file).is_file()
    assert cache.note(file).is_file()


def test_clean_asks_and_says_first_what_a_dry_run_would_free(leftovers, run):
    cache, file = leftovers
    assert run("partials", "clean", "--dry-run").out.startswith("would free ")
    done = run("partials", "clean")
    assert (done.code, "--yes" in done.err) == (2, True)
    assert cache.partial(file).is_file()


def test_clean_of_a_repository_without_any_names_the_nearest(leftovers, run):
    done = run("partials", "clean", "acme/tiny-GUF", "--yes")
    assert (done.code, f"did you mean {REPO}?" in done.err) == (3, True)


def test_nothing_unfinished_is_said_once(run, settings):
    assert run("partials", "list").err == "no unfinished downloads\n"
    assert run("partials", "list", "--json").document["partials"] == []
    assert run("partials", "clean", "--yes").out == "freed 0 B\n"


def test_nothing_is_advised_while_all_of_them_are_being_fetched(hub, big, run):
    cache, file = big
    interrupted(hub)
    with FileLock(cache.lock(file)):
        done = run("partials", "list")
    assert "being fetched now" in done.out
    assert done.err == ""
