"""Every fault of the stand-in Hub does what it says, seen by a plain HTTP client."""

import gzip
import http.client
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest

from tests.standin_hub import Fault, FaultKind, StandinHub

REPO, FILE = "acme/tiny-GGUF", "tiny.Q4_0.gguf"
NAME = f"{REPO}/{FILE}"
WEIGHTS = random.Random(3).randbytes(300_000)
RESOLVE = f"/{REPO}/resolve/main/{FILE}"


@pytest.fixture
def hub(tmp_path):
    with StandinHub(tmp_path / "hub") as hub:
        (hub.root / REPO).mkdir(parents=True)
        (hub.root / NAME).write_bytes(WEIGHTS)
        yield hub


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool


def ask(url, path="", *, method="GET", **headers):
    """Ask once, without following anything; `cut`: the body ended before its announced length."""
    parts = urlsplit(url + path)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request(method, f"{parts.path}?{parts.query}".rstrip("?"), headers=headers)
        response = connection.getresponse()
        try:
            body, cut = response.read(), False
        except http.client.IncompleteRead as error:
            body, cut = error.partial, True
        return Answer(response.status, dict(response.getheaders()), body, cut)
    finally:
        connection.close()


def fetch(hub, **headers):
    """Ask the Hub where the file is and the CDN for it."""
    return ask(ask(hub.url, RESOLVE).headers["Location"], **headers)


def test_without_faults_the_body_and_its_ranges_are_exact(hub):
    whole, part = fetch(hub), fetch(hub, Range="bytes=1000-1999")
    assert (whole.status, whole.body, whole.cut) == (200, WEIGHTS, False)
    assert (part.status, part.body) == (206, WEIGHTS[1000:2000])
    assert part.headers["Content-Range"] == "bytes 1000-1999/300000"
    assert fetch(hub, Range="bytes=300000-").status == 416
    assert fetch(hub, Range="bytes=-5").body == WEIGHTS[-5:]


def test_the_cdn_has_an_etag_of_its_own(hub):
    linked, own = ask(hub.url, RESOLVE, method="HEAD").headers["X-Linked-Etag"], fetch(hub).headers["ETag"]
    assert linked == f'"{hub.oid(NAME)}"'
    assert own != linked


def test_a_cut_body_ends_early(hub):
    hub.fault("cut", FILE, at=100_000)
    answer = fetch(hub)
    assert (answer.cut, answer.body) == (True, WEIGHTS[:100_000])
    assert fetch(hub).body == WEIGHTS


def test_a_stalled_body_waits_and_then_ends(hub):
    hub.fault("stall", FILE, at=1000, seconds=0.2)
    started = time.monotonic()
    answer = fetch(hub)
    assert (answer.cut, answer.body) == (True, WEIGHTS[:1000])
    assert time.monotonic() - started >= 0.2


def test_a_slow_body_arrives_whole(hub):
    hub.fault("slow", FILE, seconds=0.02)
    started = time.monotonic()
    assert fetch(hub).body == WEIGHTS
    assert time.monotonic() - started >= 5 * 0.02


def test_a_short_body_looks_complete(hub):
    hub.fault("short", FILE, at=10)
    answer = fetch(hub, Range="bytes=100-199")
    assert (answer.status, answer.cut, answer.body) == (206, False, WEIGHTS[100:110])
    assert (answer.headers["Content-Length"], answer.headers["Content-Range"]) == ("10", "bytes 100-199/300000")


def test_a_corrupt_byte_is_at_its_place_in_the_file(hub):
    hub.fault("corrupt", FILE, at=1500, times=None)
    part = fetch(hub, Range="bytes=1000-1999").body
    assert [i for i, (a, b) in enumerate(zip(part, WEIGHTS[1000:2000], strict=True)) if a != b] == [500]
    assert fetch(hub, Range="bytes=0-999").body == WEIGHTS[:1000]


def test_an_oversize_body_has_more_than_was_asked_for(hub):
    hub.fault("oversize", FILE)
    assert fetch(hub, Range="bytes=0-9").body == WEIGHTS[:10] + bytes(1000)


def test_a_compressed_body_is_really_compressed(hub):
    hub.fault("gzip", FILE)
    answer = fetch(hub)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(answer.body) == WEIGHTS


def test_ranges_are_ignored_or_named_wrongly(hub):
    hub.fault("ignore_range", FILE)
    ignored = fetch(hub, Range="bytes=5-9")
    assert (ignored.status, ignored.body) == (200, WEIGHTS)
    hub.fault("wrong_range", FILE)
    wrong = fetch(hub, Range="bytes=5-9")
    assert (wrong.headers["Content-Range"], wrong.body) == ("bytes 6-10/300000", WEIGHTS[5:10])


def test_statuses_with_headers_come_from_the_server_meant(hub):
    hub.fault("status", FILE, status=429, headers={"Retry-After": "7"})
    hub.fault("resolve_status", FILE, status=503)
    assert ask(hub.url, RESOLVE).status == 503
    limited = fetch(hub)
    assert (limited.status, limited.headers["Retry-After"]) == (429, "7")
    assert fetch(hub).status == 200


def test_one_link_is_expired(hub):
    hub.fault("expired", FILE)
    assert [fetch(hub).status for _ in range(2)] == [403, 200]


def test_links_expire_after_a_number_of_requests(hub):
    hub.fault("expiring", FILE, at=2)
    first, second = (ask(hub.url, RESOLVE).headers["Location"] for _ in range(2))
    assert [ask(first).status for _ in range(3)] == [200, 200, 403]
    assert ask(second).status == 200


def test_links_expire_after_a_time(hub):
    hub.fault("expiring", FILE, seconds=0.1)
    link = ask(hub.url, RESOLVE).headers["Location"]
    assert ask(link).status == 200
    time.sleep(0.15)
    assert ask(link).status == 403


def test_identities_are_wrong_or_missing(hub):
    def head():
        return ask(hub.url, RESOLVE, method="HEAD").headers

    right = head()
    for kind in ("wrong_etag", "no_etag", "no_commit", "other_commit"):
        hub.fault(kind, FILE)
    faulty = head()
    assert not {"ETag", "X-Linked-Etag", "X-Repo-Commit"} & set(faulty)
    hub.reset()
    hub.fault("wrong_etag", FILE)
    hub.fault("other_commit", FILE)
    wrong = head()
    assert len(wrong["X-Linked-Etag"]) == len(right["X-Linked-Etag"])
    assert wrong["X-Linked-Etag"] != right["X-Linked-Etag"]
    assert wrong["X-Repo-Commit"] != right["X-Repo-Commit"] == hub.commit(REPO)


def test_files_may_change_between_two_requests(hub):
    seen = []

    def change(request):
        seen.append(request.server)
        if request.server == "cdn":
            (hub.root / NAME).write_bytes(b"new")

    before = hub.commit(REPO)
    hub.on_request = change
    assert fetch(hub).body == b"new"
    assert seen == ["hub", "cdn"]
    assert hub.commit(REPO) != before


def test_connections_are_reset_or_refused(hub):
    hub.fault("reset", "cdn")
    with pytest.raises(ConnectionResetError):
        fetch(hub)
    assert fetch(hub).status == 200
    with hub.refusing("cdn"), pytest.raises(ConnectionRefusedError):
        fetch(hub)
    assert fetch(hub).status == 200


def test_an_unknown_fault_is_refused():
    with pytest.raises(ValueError, match="no fault is called 'cuts'"):
        Fault("cuts")


def test_every_kind_of_fault_is_shown_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in get_args(FaultKind) if f'"{kind}"' not in text] == []


def test_nothing_outside_the_directory_is_served(hub):
    (hub.root.parent / "secret").mkdir()
    (hub.root.parent / "secret" / "key.gguf").write_bytes(b"key")
    for path in ("/../secret/resolve/main/key.gguf", "/api/models/../secret", "/acme/../resolve/main/hub",
                 f"/{REPO}/resolve/main/..%2F..%2F..%2Fsecret%2Fkey.gguf"):  # fmt: skip
        answer = ask(hub.url, path)
        assert (answer.status in (401, 404), b"key" in answer.body.replace(b"key.gguf", b"")) == (True, False), path
    for path in (
        "/blob/../secret/key.gguf",
        "/blob/..%2Fsecret%2Fkey.gguf",
        f"/blob/{REPO}/..%2F..%2F..%2Fsecret/key.gguf",
    ):
        assert ask(hub.cdn_url, path).status == 404


def test_thirty_two_ranges_at_once_are_all_right(hub):
    link = ask(hub.url, RESOLVE).headers["Location"]
    wrong = []

    def one(start):
        if ask(link, Range=f"bytes={start}-{start + 8999}").body != WEIGHTS[start : start + 9000]:
            wrong.append(start)

    threads = [threading.Thread(target=one, args=(start,)) for start in range(0, 32 * 9000, 9000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []


@pytest.mark.slow
def test_a_link_has_its_rate_per_connection_and_its_latency(tmp_path):
    with StandinHub(tmp_path / "hub", rate_bytes_per_s=2_000_000, latency_s=0.05) as hub:
        (hub.root / REPO).mkdir(parents=True)
        (hub.root / NAME).write_bytes(bytes(2_000_000))
        link = ask(hub.url, RESOLVE).headers["Location"]
        took = []

        def one():
            started = time.monotonic()
            ask(link)
            took.append(time.monotonic() - started)

        threads = [threading.Thread(target=one) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert all(seconds >= 1.05 * 0.95 for seconds in took), took
    assert min(took) < 1.05 * 1.05, took
