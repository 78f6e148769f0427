"""Every way in which fetching fails has its own exit code, sentence and hint, through the command line."""

import collections
import errno
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from ggufdeploy.hub import http as hub_http
from ggufdeploy.hub import session
from ggufdeploy.hub.retry import RetryPolicy
from tests.cli.conftest import REPO, Done
from tests.hub.network import listening, make_certificate, proxy, tls_in_front_of

pytestmark = pytest.mark.slow

TOKEN = "hf_" + "t0ken0" * 6
MODEL = f"{REPO}:Q4_0"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Do not wait long between tries."""
    policy = RetryPolicy(tries=2, first_wait_s=0.001, longest_wait_s=0.002, patience_s=0.0)
    for function in (session.HubClient.__init__,):
        monkeypatch.setitem(function.__kwdefaults__, "questions", policy)
        monkeypatch.setitem(function.__kwdefaults__, "downloads", policy)


@pytest.fixture
def fails(run):
    """Run a command that must fail; return its exit code, type, message and hint, the same in words and as JSON."""

    def fails_(*args):
        text, error = run(*args), run(*args, "--json").error
        assert text.out == ""
        assert text.err.splitlines()[-2:] == [f"error: {error['message']}", f"hint: {error['hint']}"]
        return text.code, error["type"], error["message"], error["hint"]

    return fails_


def alone(*args, **environment):
    """Run the program as a process of its own, for what is read once per process: proxies and certificates."""
    line = [sys.executable, "-m", "ggufdeploy", *args]
    environment = {"NO_PROXY": "", **environment}
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_repository_that_is_not_there(hub, fails, monkeypatch):
    code, kind, message, hint = fails("pull", "acme/none:Q4_0")
    assert (code, kind) == (3, "not_found")
    assert message == f"the mirror {hub.url} has no repository acme/none"
    assert "HF_ENDPOINT=https://huggingface.co ggufdeploy show acme/none" in hint


def test_a_mirror_without_the_file(hub, fails):
    hub.fault("resolve_status", "*.gguf", status=404, times=None, headers={"X-Error-Code": "EntryNotFound"})
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (3, "not_found")
    assert message == f"the mirror {hub.url} has {REPO}, but not that file of it"
    assert "HF_ENDPOINT=https://huggingface.co" in hint


def test_a_gated_repository_without_and_with_a_token(hub, fails, monkeypatch):
    hub.gated.add(REPO)
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (4, "access_denied")
    assert message == f"{REPO} is gated: its conditions must be accepted first"
    assert hint == f"accept them on {hub.url}/{REPO}, then run `hf auth login` or set HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "your token is not sent" in fails("pull", MODEL)[3]
    monkeypatch.setenv("GGUFDEPLOY_TRUSTED_ENDPOINTS", hub.url)
    assert fails("pull", MODEL)[3].endswith("check that your token may read it: hf auth whoami")


def test_a_token_that_is_missing_or_wrong(hub, fails, monkeypatch):
    said = {"X-Error-Message": "Invalid credentials in Authorization header"}
    hub.fault("status", f"{REPO}/*", status=401, headers=said, times=None)
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (4, "access_denied")
    assert message.endswith(f"refuses access to {REPO}: Invalid credentials in Authorization header")
    assert "hf auth login" in hint


def test_offline_with_nothing_here(hub, fails, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind, hint) == (6, "offline", "unset HF_HUB_OFFLINE")
    assert message == f"HF_HUB_OFFLINE is set and {REPO} is not in the cache, which holds no model"


def test_offline_names_other_models_that_can_run(hub, run, fails, monkeypatch):
    run("pull", MODEL)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    code, kind, message, hint = fails("pull", "acme/other:Q4_0")
    assert (code, kind) == (6, "offline")
    assert message == "HF_HUB_OFFLINE is set and acme/other is not in the cache"
    assert hint == f"unset HF_HUB_OFFLINE, or run what is here: {MODEL}"


def test_offline_with_another_quantization_here(hub, run, fails, monkeypatch):
    run("pull", MODEL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    for command in (("pull", f"{REPO}:Q8_0"), ("plan", REPO, "--quant", "Q8_0"), ("show", f"{REPO}:Q8_0")):
        code, kind, message, hint = fails(*command)
        assert (code, kind) == (6, "offline")
        assert message == f"HF_HUB_OFFLINE is set, and of {REPO} only this is in the cache: Q4_0"
        assert hint == f"ggufdeploy run {MODEL}"
    assert hub.requests == []


def test_a_rate_limit_says_how_long(hub, fails):
    hub.fault("status", f"{REPO}/*", status=429, headers={"Retry-After": "77"}, times=None)
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (6, "rate_limited")
    assert "asks to wait for 77 s" in message
    assert "try again later" in hint


def test_a_full_disk_before_the_first_byte(hub, fails, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1000))
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (7, "no_disk_space")
    assert "1.0 kB free" in message
    assert "HF_HUB_CACHE" in hint
    assert [request for request in hub.requests if request.server == "cdn"] == []


def test_a_checksum_that_stays_wrong(hub, fails):
    hub.fault("corrupt", "*.gguf", at=50_000, times=None)
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (1, "checksum_mismatch")
    assert "is damaged: sha256" in message
    assert hint


def test_a_name_that_cannot_be_looked_up(run, fails, monkeypatch):
    def lookup(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (6, "unreachable")
    assert message.startswith("hub.invalid cannot be reached: its name, or its proxy's, cannot be looked up")
    assert "HF_HUB_OFFLINE=1" in hint


def test_a_login_page_instead_of_the_hub(fails, monkeypatch):
    page = b"<html>please log in</html>"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"

    def answer(client):
        client.recv(65536)
        client.sendall(head.encode() + page)

    with listening(answer) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (6, "blocked")
    assert f"the mirror http://127.0.0.1:{port} does not answer like a Hub" in message
    assert "login" in hint


def test_a_login_page_instead_of_a_file(hub, fails):
    hub.fault("resolve_status", "*.gguf", status=200, headers={"Content-Type": "text/html"}, times=None)
    code, kind, message, _ = fails("pull", MODEL)
    assert (code, kind) == (6, "blocked")
    assert "answers with a web page instead of tiny.Q4_0.gguf" in message


def test_json_that_is_not_a_hubs(hub, fails):
    hub.fault("status", f"{REPO}/*", status=200, times=None)
    code, kind, message, _ = fails("pull", MODEL)
    assert (code, kind) == (6, "blocked")
    assert "does not answer like a Hub" in message


def test_an_answer_that_drips_for_ever_is_given_up(run, monkeypatch):
    def answer(client):
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while True:
            client.sendall(b" ")
            time.sleep(0.02)

    monkeypatch.setattr(hub_http, "ANSWER_S", 0.2)
    with listening(answer) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        done = run("pull", MODEL)
    assert done.code == 6
    assert "did not end its answer in time" in done.err


def test_an_endpoint_that_is_not_encrypted(fails, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://10.255.255.1:8090")
    code, kind, message, hint = fails("pull", MODEL)
    assert (code, kind) == (2, "bad_value")
    assert "is not encrypted" in message
    assert "GGUFDEPLOY_TRUSTED_ENDPOINTS=http://10.255.255.1:8090" in hint


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program")
    return make_certificate(tmp_path)


def test_a_certificate_nobody_here_trusts_and_one_that_is(hub, certificate):
    with tls_in_front_of(hub.port("hub"), certificate) as endpoint:
        refused = alone("pull", MODEL, "--json", HF_ENDPOINT=endpoint)
        trusted = alone("pull", MODEL, HF_ENDPOINT=endpoint, SSL_CERT_FILE=str(certificate.certificate))
    assert (refused.code, refused.error["type"]) == (6, "blocked")
    assert "certificate that this machine does not trust" in refused.error["message"]
    assert "SSL_CERT_FILE" in refused.error["hint"]
    assert (trusted.code, trusted.out.strip()[-14:]) == (0, "tiny.Q4_0.gguf"), trusted.err


def test_proxies_are_used_unless_no_proxy_says_otherwise(hub, certificate):
    heads = []
    with tls_in_front_of(hub.port("hub"), certificate) as endpoint, proxy(heads) as address:
        https = {"HF_ENDPOINT": endpoint, "HTTPS_PROXY": address, "SSL_CERT_FILE": str(certificate.certificate)}
        assert alone("show", REPO, **https).code == 0
        assert {head.split(" ")[0] for head in heads} == {"CONNECT"}
        heads.clear()
        assert alone("show", REPO, HTTP_PROXY=address).code == 0
        assert {head.split(" ")[0] for head in heads} == {"GET"}
        heads.clear()
        assert alone("show", REPO, HTTP_PROXY=address, NO_PROXY="127.0.0.1").code == 0
        assert heads == []


def test_a_proxy_that_wants_a_login(hub, certificate):
    heads = []
    with proxy(heads, refusal="407 Proxy Authentication Required") as address:
        secret = address.replace("//", "//me:hunter2@")
        for environment in ({"HTTP_PROXY": secret}, {"HTTPS_PROXY": secret, "HF_ENDPOINT": "https://127.0.0.1:1"}):
            done = alone("pull", MODEL, "--json", **environment)
            assert (done.code, done.error["type"]) == (6, "blocked")
            assert "the proxy does not let us reach 127.0.0.1" in done.error["message"]
            assert "407" in done.error["message"]
            assert "HTTPS_PROXY" in done.error["hint"]
            assert "hunter2" not in done.err
    assert len(heads) == 2, "nothing is tried again that a login is needed for"


def test_a_disk_that_fills_during_the_download_stops_at_once(hub, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    done = run("pull", MODEL)
    assert done.code == 7
    assert "hint: free some space" in done.err
