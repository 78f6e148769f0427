"""Every way the stand-in can misbehave, once and for good: the file arrives right, or the error says what is wrong."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from ggufdeploy import errors
from ggufdeploy.hub.catalog import list_repository
from ggufdeploy.hub.download import download_artifact
from ggufdeploy.hub.ranges import Fanout
from tests.hub.conftest import REPO, WEIGHTS
from tests.standin_hub import FaultKind

pytestmark = pytest.mark.slow

ONE = Fanout(connections=1)
FOUR = Fanout(connections=4, range_bytes=200_000, request_bytes=600_000)
OPTIONS = {
    "cut": {"at": 1_200_000},  # more than what counts as progress
    "stall": {"at": 10_000, "seconds": 2.0},
    "slow": {"seconds": 0.001},
    "short": {"at": 1_100_000},
    "corrupt": {"at": 1_234_567},
    "status": {"status": 503},
    "resolve_status": {"status": 502},
    "expiring": {"at": 1},
}
SURVIVED_FOR_GOOD = {
    "slow",
    "oversize",
    "ignore_range",
    "no_etag",
    "no_commit",
    "other_commit",
    "expiring",
    "cut",
    "short",
}
REPORTED = {
    "stall": (errors.Unreachable, "gave up at"),
    "corrupt": (errors.ChecksumMismatch, "is damaged: sha256"),
    "gzip": (errors.Unreachable, "compressed, which cannot be resumed"),
    "wrong_range": (errors.Unreachable, "was asked for"),
    "status": (errors.Unreachable, "answers 503 Service Unavailable"),
    "resolve_status": (errors.Unreachable, "answers 502 Bad Gateway"),
    "expired": (errors.Unreachable, "answers 403 Forbidden"),
    "wrong_etag": (errors.Unreachable, "another tiny.Q8_0.gguf now"),
    # What the client sees of a reset depends on what it was doing at that moment.
    "reset": (errors.Unreachable, "Connection reset by peer|Server disconnected"),
}


@pytest.fixture
def fetch(hub, client, monkeypatch):
    """Put a fault in force after the listing and download; return the file's contents."""
    from ggufdeploy.hub import http as hub_http

    monkeypatch.setitem(hub_http.TIMEOUTS_S, "read", 0.3)

    def fetch(kind, fanout, times):
        catalogue = list_repository(REPO, None, client)
        pattern = "cdn" if kind == "reset" else "*.gguf"
        hub.fault(kind, pattern, times=times, **OPTIONS.get(kind, {}))
        options = {"on_progress": lambda _: None, "fanout": fanout}
        (path,) = download_artifact(client, REPO, catalogue.commit, catalogue.find("Q8_0"), **options)
        return path.read_bytes()

    return fetch


def test_the_tables_name_every_fault():
    assert set(REPORTED) | SURVIVED_FOR_GOOD == set(get_args(FaultKind))


@pytest.mark.parametrize("fanout", [ONE, FOUR], ids=["one-connection", "four-connections"])
@pytest.mark.parametrize("kind", get_args(FaultKind))
def test_once_it_is_survived(fetch, kind, fanout):
    assert fetch(kind, fanout, times=1) == WEIGHTS


@pytest.mark.parametrize("fanout", [ONE, FOUR], ids=["one-connection", "four-connections"])
@pytest.mark.parametrize("kind", sorted(SURVIVED_FOR_GOOD))
def test_these_are_survived_for_good(fetch, kind, fanout):
    assert fetch(kind, fanout, times=None) == WEIGHTS


@pytest.mark.parametrize("fanout", [ONE, FOUR], ids=["one-connection", "four-connections"])
@pytest.mark.parametrize("kind", sorted(REPORTED))
def test_these_are_reported(fetch, kind, fanout):
    error, words = REPORTED[kind]
    if kind == "wrong_range" and fanout is ONE:
        assert fetch(kind, fanout, times=None) == WEIGHTS  # all of it is asked for without a range
        return
    with pytest.raises(error) as caught:
        fetch(kind, fanout, times=None)
    assert re.search(words, caught.value.message)
