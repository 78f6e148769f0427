import dataclasses
import http.server
import socket
import threading
import time

import pytest

from ggufdeploy import errors
from ggufdeploy.hub.catalog import GgufFile, list_repository
from ggufdeploy.hub.retry import RetryPolicy, retrying
from ggufdeploy.hub.session import HubClient, search_names
from tests.hub.conftest import QUICK, REPO, WEIGHTS

pytestmark = pytest.mark.slow

SECRET = "hf_topsecret"


def file_of(hub, path="tiny.Q8_0.gguf"):
    return GgufFile(path, (hub.root / REPO / path).stat().st_size, hub.oid(f"{REPO}/{path}"))


def read_range(client, commit, file, start, end):
    """Read a part of a file as headers are read: again from its start after a failure."""

    def attempt():
        with client.open_range(REPO, commit, file, start, end) as body:
            return b"".join(body.chunks)[start - body.offset :][: end - start]

    return retrying(client.questions, attempt)


def client_with(settings, **changes):
    changed = dataclasses.replace(settings, **changes)
    return HubClient(changed, questions=QUICK, downloads=QUICK)


def test_a_range_is_read_from_the_cdn_at_the_pinned_commit(hub, client):
    commit = hub.commit(REPO)
    assert read_range(client, commit, file_of(hub), 1000, 5000) == WEIGHTS[1000:5000]
    (asked, sent) = hub.requests
    assert asked.path == f"/{REPO}/resolve/{commit}/tiny.Q8_0.gguf"
    assert (asked.range, sent.server, sent.range) == ("bytes=1000-4999", "cdn", "bytes=1000-4999")


def test_the_address_is_resolved_again_for_every_attempt(hub, client):
    hub.fault("expired", "*.gguf", times=2)
    assert read_range(client, hub.commit(REPO), file_of(hub), 0, 10) == WEIGHTS[:10]
    assert [request.server for request in hub.requests] == ["hub", "cdn"] * 3


@pytest.mark.parametrize("kind", ["cut", "status", "wrong_range", "gzip", "wrong_etag"])
def test_a_range_survives_one_failure_of_every_kind(hub, client, kind):
    hub.fault(kind, "*.gguf", at=5)
    assert read_range(client, hub.commit(REPO), file_of(hub), 100, 200) == WEIGHTS[100:200]


@pytest.mark.parametrize("kind", ["cut", "status", "wrong_range", "gzip", "wrong_etag"])
def test_a_failure_that_stays_ends_as_unreachable(hub, client, kind):
    hub.fault(kind, "*.gguf", at=5, times=None)
    with pytest.raises(errors.Unreachable):
        read_range(client, hub.commit(REPO), file_of(hub), 100, 200)
    assert len([r for r in hub.requests if r.server == "hub"]) == QUICK.tries


def test_a_server_that_ignores_ranges_still_gives_the_right_bytes(hub, client):
    hub.fault("ignore_range", "*.gguf")
    assert read_range(client, hub.commit(REPO), file_of(hub), 70_000, 140_000) == WEIGHTS[70_000:140_000]


def test_a_missing_repository_revision_and_file_are_not_found(hub, client):
    with pytest.raises(errors.NotFound, match="no repository acme/none") as caught:
        client.resolve_commit("acme/none")
    assert "hf auth login" in caught.value.hint
    assert "HF_ENDPOINT=https://huggingface.co" in caught.value.hint
    with pytest.raises(errors.NotFound, match="no such branch, tag or commit"):
        client.resolve_commit(REPO, "v9")
    with pytest.raises(errors.NotFound, match="but not that file of it") as caught:
        read_range(client, hub.commit(REPO), GgufFile("none.gguf", 10, "0" * 64), 0, 10)
    assert caught.value.kind == "file"


def test_a_gated_repository_says_where_to_accept_and_how_to_log_in(hub, client):
    hub.gated.add(REPO)
    assert len(list_repository(REPO, None, client).artifacts) == 2
    with pytest.raises(errors.AccessDenied) as caught:
        read_range(client, hub.commit(REPO), file_of(hub), 0, 10)
    assert caught.value.gated
    assert f"{hub.url}/{REPO}" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint
    assert len(hub.requests) == 3


def test_a_token_stays_here_unless_the_endpoint_is_trusted_by_name(hub, hub_settings):
    hub.gated.add(REPO)
    hub.tokens.add(SECRET)
    distrusting = client_with(hub_settings, hf_token=SECRET)
    with pytest.raises(errors.AccessDenied) as caught:
        read_range(distrusting, hub.commit(REPO), file_of(hub), 0, 10)
    assert "not sent" in caught.value.hint
    assert {request.authorization for request in hub.requests} == {None}
    trusting = client_with(hub_settings, hf_token=SECRET, trusted_endpoints=(hub.url,))
    assert read_range(trusting, hub.commit(REPO), file_of(hub), 0, 10) == WEIGHTS[:10]
    list_repository(REPO, None, trusting)
    sent = {(r.server, r.authorization) for r in hub.requests if r.authorization}
    assert sent == {("hub", f"Bearer {SECRET}")}
    assert {r.authorization for r in hub.requests if r.server == "cdn"} == {None}


@pytest.mark.parametrize(
    ("endpoint", "trusted", "goes"),
    [("https://huggingface.co", (), True), ("https://hf.co", (), True), ("https://mirror.example", (), False),
     ("https://huggingface.co.example", (), False), ("http://127.0.0.1:1", (), False),
     ("https://mirror.example", ("https://mirror.example",), True),
     ("https://mirror.example", ("https://mirror.example:8443", "https://example"), False),
     ("http://127.0.0.1:1", ("http://127.0.0.1:1",), True), ("http://10.0.0.5:1", ("http://10.0.0.5:1",), False)],
)  # fmt: skip
def test_who_gets_the_token(settings, endpoint, trusted, goes):
    client = client_with(settings, hf_token=SECRET, hf_endpoint=endpoint, trusted_endpoints=trusted)
    assert (client._token == SECRET) is goes
    assert SECRET not in repr(client) + repr(client.settings)


@pytest.mark.parametrize("endpoint", ["http://huggingface.co", "http://10.0.0.5:8090", "ftp://x", "huggingface.co", ""])
def test_an_endpoint_without_encryption_is_refused_unless_it_is_this_machine(settings, endpoint):
    with pytest.raises(errors.BadValue, match="HF_ENDPOINT"):
        client_with(settings, hf_endpoint=endpoint)


def test_a_password_in_the_endpoint_is_refused_and_not_shown(settings):
    with pytest.raises(errors.BadValue, match="not supported") as caught:
        client_with(settings, hf_endpoint="https://me:pass@mirror.example")
    assert "pass@" not in str(caught.value) + str(caught.value.hint)


def test_too_many_requests_are_waited_for_when_that_is_short(hub, client):
    hub.fault("status", f"{REPO}/*", status=429, headers={"Retry-After": "0"})
    assert client.resolve_commit(REPO) == hub.commit(REPO)


@pytest.mark.parametrize("header", [{"Retry-After": "55"}, {"RateLimit": '"api";r=0;t=55'}])
def test_too_many_requests_for_a_minute_are_reported_at_once(hub, client, header):
    hub.fault("status", f"{REPO}/tree", status=429, headers=header, times=None)
    started = time.monotonic()
    with pytest.raises(errors.RateLimited, match="asks to wait for 55 s") as caught:
        list_repository(REPO, None, client)
    assert caught.value.retry_after_s == 55
    assert time.monotonic() - started < 5


def test_a_bad_gateway_is_asked_again(hub, client):
    hub.fault("status", f"{REPO}/*", status=502, times=2)
    assert len(list_repository(REPO, None, client).artifacts) == 2


def test_nothing_listening_is_reported_without_minutes_of_retries(settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1 cannot be reached") as caught:
        client_with(settings, hf_endpoint=endpoint).resolve_commit(REPO)
    assert time.monotonic() - started < 5
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_server_that_never_answers_does_not_hang_the_listing(settings, monkeypatch):
    from ggufdeploy.hub import http as hub_http

    monkeypatch.setitem(hub_http.TIMEOUTS_S, "read", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        client = client_with(settings, hf_endpoint=f"http://127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(errors.Unreachable, match="did not answer in time"):
            client.list_files(REPO, "0" * 40)


class _Portal(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<html>please log in to the hotel's network</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


def test_a_captive_portal_is_not_mistaken_for_a_hub(settings):
    with http.server.HTTPServer(("127.0.0.1", 0), _Portal) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            client = client_with(settings, hf_endpoint=f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(errors.Unreachable, match="does not answer like a Hub"):
                client.resolve_commit(REPO)
        finally:
            server.shutdown()
            thread.join()


def test_offline_asks_nobody(hub, hub_settings):
    offline = client_with(hub_settings, offline=True)
    for question in (
        lambda: offline.resolve_commit(REPO),
        lambda: search_names("tiny", offline),
        lambda: read_range(offline, "0" * 40, file_of(hub), 0, 1),
    ):
        with pytest.raises(errors.Offline, match="HF_HUB_OFFLINE is set"):
            question()
    assert hub.requests == []


def test_search_finds_repositories_for_did_you_mean(hub, client):
    (hub.root / "acme" / "Tiny-Instruct-GGUF").mkdir()
    assert search_names("tiny-instruct", client, 5) == ["acme/Tiny-Instruct-GGUF"]
    assert search_names("tiny", client, 1) == ["acme/Tiny-Instruct-GGUF"]
    assert search_names("no-such-thing", client) == []
    assert search_names("///", client) == []


def test_errors_never_show_a_signed_link(hub, client):
    hub.fault("expired", "*.gguf", times=None)
    with pytest.raises(errors.Unreachable) as caught:
        read_range(client, hub.commit(REPO), file_of(hub), 0, 10)
    assert "403" in caught.value.message
    assert "Signature" not in caught.value.message


def test_waits_double_up_to_a_limit_and_end():
    policy = RetryPolicy(tries=6, first_wait_s=1, longest_wait_s=4, patience_s=10)
    cut = errors.Unreachable("x", "cut")
    waits = [policy.wait_s(failures, cut) for failures in range(1, 7)]
    assert waits[-1] is None
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, (1, 2, 4, 4, 4), strict=False))
    asked = errors.RateLimited("x", "wait", retry_after_s=9.0)
    assert policy.wait_s(1, asked) == 9.0
    assert policy.wait_s(1, errors.RateLimited("x", "wait", retry_after_s=11.0)) is None
    assert policy.wait_s(1, errors.Offline("x", "offline")) is None
