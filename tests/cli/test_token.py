"""The token reaches the endpoint it may reach, and neither another host, nor a terminal, nor a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import REPO
from tests.hub.network import listening, proxy
from tests.standin_hub.handlers import HubHandler

pytestmark = pytest.mark.slow

CANARY = "hf_" + "c4n4ry" * 6
MODEL = f"{REPO}:Q4_0"
ALWAYS = {"times": None}


@pytest.fixture(autouse=True)
def token(monkeypatch, hub):
    """Give the user a token, and let the stand-in have it."""
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("GGUFDEPLOY_TRUSTED_ENDPOINTS", hub.url)
    hub.tokens.add(CANARY)


@pytest.fixture
def thief():
    """A host that the token must not reach, under another name than the Hub's; yields its address and what it got."""
    heads = []

    def answer(client):
        heads.append(client.recv(65536).decode(errors="replace"))
        client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with listening(answer) as port:
        yield f"http://localhost:{port}", heads


def alone(*args, **environment):
    """Run the program with everything it can say switched on."""
    line = [sys.executable, "-X", "dev", "-W", "ignore", "-m", "ggufdeploy", *args]
    environment = {**os.environ, "HF_DEBUG": "1", **environment}
    return subprocess.run(line, capture_output=True, text=True, timeout=100, env=environment, check=False)


def check_secrecy(done, *folders, secrets=(CANARY, "Signature=")):
    """Check the output and every file below the folders; return how many there are."""
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    for secret in secrets:
        assert secret not in done.stdout + done.stderr
        assert [path for path in files if secret.encode() in path.read_bytes() + os.fsencode(path)] == []
    return len(files)


def sent_to(hub, server):
    return {request.authorization for request in hub.requests if request.server == server}


def test_a_download_sends_it_to_the_hub_only_and_leaves_no_trace(hub, sealed_home):
    hub.gated.add(REPO)
    done = alone("pull", MODEL, "-v")
    assert done.returncode == 0, done.stderr
    assert sent_to(hub, "hub") == {f"Bearer {CANARY}"}
    assert sent_to(hub, "cdn") == {None}
    assert check_secrecy(done, sealed_home) > 0


@pytest.mark.parametrize("mode", ["-v", "--json"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("status", {"status": 401}), ("status", {"status": 403}), ("status", {"status": 418}),
     ("status", {"status": 302, "headers": {"Location": "http://[::bad/x?Signature=1"}}),
     ("resolve_status", {"status": 404})],
)  # fmt: skip
def test_a_failure_does_not_show_it(hub, sealed_home, mode, kind, options):
    hub.fault(kind, f"{REPO}/*", **ALWAYS, **options)
    done = alone("pull", MODEL, mode)
    assert done.returncode in (3, 4, 6), done.stderr
    assert sent_to(hub, "hub") == {f"Bearer {CANARY}"}
    check_secrecy(done, sealed_home)


def test_a_download_that_is_killed_leaves_no_trace(hub, sealed_home):
    hub.fault("stall", "*.gguf", at=1000, **ALWAYS)
    line = [sys.executable, "-m", "ggufdeploy", "pull", MODEL, "-v"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not any(request.server == "cdn" for request in hub.requests):
            assert process.poll() is None
        process.kill()
        out, err = process.communicate()
    done = subprocess.CompletedProcess(line, process.returncode, out, err)
    assert check_secrecy(done, sealed_home) > 0


@pytest.mark.parametrize("kind", ["status", "resolve_status"])
def test_a_redirect_to_another_host_goes_without_it(hub, thief, sealed_home, kind):
    address, heads = thief
    hub.fault(kind, f"{REPO}/*", status=302, headers={"Location": f"{address}/x?Signature=s1"}, **ALWAYS)
    done = alone("pull", MODEL, "-v")
    assert done.returncode in (3, 4, 6), done.stderr
    assert heads, "the redirect was followed"
    assert CANARY not in "".join(heads)
    assert f"Bearer {CANARY}" in sent_to(hub, "hub")
    check_secrecy(done, sealed_home)


def test_a_next_page_on_another_host_is_asked_for_without_it(hub, thief, monkeypatch):
    address, heads = thief
    hub.page_size = 1
    monkeypatch.setattr(HubHandler, "base_url", lambda self: address)
    done = alone("pull", MODEL)
    assert done.returncode in (3, 4, 6), done.stderr
    assert [head.split(" ")[0] for head in heads] == ["GET"]
    assert CANARY not in "".join(heads)
    check_secrecy(done)


def test_a_mirror_that_is_not_trusted_does_not_get_it(hub, monkeypatch):
    monkeypatch.setenv("GGUFDEPLOY_TRUSTED_ENDPOINTS", "https://other.example")
    assert alone("pull", MODEL).returncode == 0
    assert sent_to(hub, "hub") == {None}


def test_a_plain_endpoint_elsewhere_does_not_get_it_even_when_trusted(hub):
    heads = []
    with proxy(heads) as address:
        far = "http://models.example:8090"
        done = alone("pull", MODEL, HF_ENDPOINT=far, GGUFDEPLOY_TRUSTED_ENDPOINTS=far, HTTP_PROXY=address, NO_PROXY="")
    assert done.returncode == 6
    assert heads
    assert all(head.startswith("GET http://models.example:8090/api/models/") for head in heads)
    assert CANARY not in "".join(heads)


def test_a_token_that_would_break_the_request_is_not_shown(hub):
    done = alone("pull", MODEL, "--json", HF_TOKEN=f"{CANARY}\nX-Injected: 1")
    assert done.returncode == 2
    assert hub.requests == []
    check_secrecy(done)
