from __future__ import annotations

import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import CREATED, MODEL


@pytest.mark.parametrize(
    ("engine", "status", "body"),
    [
        (FakeEngine(), 200, {"status": "ok"}),
        (FakeEngine(phase="loading", progress=0.5), 503, {"status": "loading", "progress": 0.5}),
        (FakeEngine(phase="loading"), 503, {"status": "loading", "progress": None}),
        (
            FakeEngine(phase="restarting", progress=0.25, error="it died"),
            503,
            {"status": "restarting", "progress": 0.25, "error": "it died"},
        ),
        (FakeEngine(phase="failed", error="no memory"), 503, {"status": "failed", "error": "no memory"}),
        (FakeEngine(phase="stopped"), 503, {"status": "stopping"}),
    ],
)
def test_health_follows_the_engine_and_liveness_does_not(make_client, engine, status, body):
    client = make_client(engine=engine)
    for path in ("/health", "/v1/health"):
        response = client.get(path)
        assert (response.status_code, response.json()) == (status, body)
    assert client.get("/livez").status_code == 200


def test_the_plan_stands_beside_what_was_loaded(make_client):
    client = make_client(plan_json=b'{"schema_version": 1, "kv_cache": {"bytes": 5}}')
    body = client.get("/plan").json()
    assert body["plan"] == {"schema_version": 1, "kv_cache": {"bytes": 5}}
    assert body["actual"]["context_tokens"] == 4096
    loading = make_client(engine=FakeEngine(phase="loading")).get("/plan").json()
    assert loading == {"plan": {"schema_version": 1}, "actual": None, "memory": None}


def test_a_plan_made_anew_is_shown_and_changes_the_fingerprint(make_client):
    client = make_client()
    shown = client.app.state.shown
    before = shown.fingerprint
    shown.show(b'{"schema_version": 1, "slots": 2}', {"gpu_share": 0.5})
    body = client.get("/plan").json()
    assert (body["plan"]["slots"], body["memory"]) == (2, {"gpu_share": 0.5})
    assert shown.fingerprint != before


def test_the_model_is_listed_once_whatever_its_aliases(make_client):
    client = make_client(aliases=("gpt-4o",))
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    assert body["data"] == [
        {"id": MODEL, "object": "model", "created": CREATED, "owned_by": "ggufdeploy", "max_model_len": 4096}
    ]


@pytest.mark.parametrize("path", [f"/v1/models/{MODEL}", f"/models/{MODEL}/", "/v1/models/owner%2Fmodel:Q4_K_M"])
def test_a_model_whose_id_has_a_slash_is_found(client, path):
    assert client.get(path).json()["id"] == MODEL


def test_an_unknown_model_is_a_404(client):
    response = client.get("/v1/models/../etc/passwd")
    assert response.status_code == 404
    response = client.get("/v1/models/other/model")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_models_are_listed_while_loading(make_client):
    data = make_client(engine=FakeEngine(phase="loading")).get("/v1/models").json()["data"]
    assert [model["max_model_len"] for model in data] == [None]
