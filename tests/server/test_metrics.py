from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from pathlib import Path

import pytest

from ggufdeploy.engine.request import Delta, Finished, Stats
from ggufdeploy.errors import BadRequest, EngineCrashed
from ggufdeploy.server import meters
from ggufdeploy.server.exposition import Histogram, header, sample
from ggufdeploy.server.meters import Meters
from tests.fakes import FakeEngine, Script
from tests.server.conftest import MESSAGES, WatchedEngine, serving, soon

PATH = "/v1/chat/completions"
TIMES = ("time_to_first_token", "inter_token", "queue_wait", "request_duration")

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_SAMPLE = re.compile(rf"({_NAME})(\{{{_LABEL}(?:,{_LABEL})*\}})? (\S+)")


def parse(text: str) -> dict[str, float]:
    """Return values by name and labels; asserts the grammar, and one HELP and TYPE before the samples of a metric."""
    assert text.endswith("\n")
    values: dict[str, float] = {}
    kinds: dict[str, str] = {}
    helped: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped.append(line.split(" ", 3)[2])
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == helped[-1]
            kinds[name] = kind
        else:
            found = _SAMPLE.fullmatch(line)
            assert found is not None, line
            name, labels, value = found.groups()
            family = re.sub("_(bucket|sum|count)$", "", name) if kinds[helped[-1]] == "histogram" else name
            assert family == helped[-1], f"{name} stands below {helped[-1]}"
            assert (kinds[family] == "counter") == name.endswith("_total")
            assert name + (labels or "") not in values, f"{line} comes twice"
            values[name + (labels or "")] = float(value)
    assert len(helped) == len(set(helped)) == len(kinds)
    return values


def scrape(client) -> dict[str, float]:
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(response.text)


def histograms(values: dict[str, float]) -> dict[str, list[float]]:
    """Return the counts of buckets by metric, in the order they were written."""
    found = defaultdict(list)
    for key, value in values.items():
        if "_bucket{le=" in key:
            found[key.partition("_bucket")[0]].append(value)
    return found


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
def test_metrics_are_prometheus_text_with_and_without_v1(client, path):
    values = parse(client.get(path).text)
    assert values["ggufdeploy_slots"] == 4
    assert values["ggufdeploy_ready"] == 1
    assert set(histograms(values)) == {f"ggufdeploy_{name}_seconds" for name in TIMES}


def test_the_engines_statistics_are_passed_on(make_client):
    class Busy(FakeEngine):
        stats = Stats(running=3, waiting=2, kv_cells=4096, kv_cells_used=77, preemptions_total=5, restarts_total=1)

    values = scrape(make_client(engine=Busy(phase="restarting")))
    names = ("requests_running", "requests_waiting", "kv_cells_used", "preemptions_total", "engine_restarts_total")
    assert [values[f"ggufdeploy_{name}"] for name in names] == [3, 2, 77, 5, 1]
    assert values["ggufdeploy_ready"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_timed_once_per_text_and_token(client, stream):
    assert client.post(PATH, json={"messages": MESSAGES, "n": 2, "stream": stream}).status_code == 200
    values = scrape(client)
    counts = [values[f"ggufdeploy_{name}_seconds_count"] for name in TIMES]
    assert counts == [2, 4, 2, 2]  # two texts of three tokens
    assert values["ggufdeploy_queue_wait_seconds_sum"] == pytest.approx(0.01)
    assert 0 < values["ggufdeploy_time_to_first_token_seconds_sum"] <= values["ggufdeploy_request_duration_seconds_sum"]
    assert values['ggufdeploy_requests_ended_total{outcome="stop"}'] == 2


def test_buckets_are_cumulative_and_end_with_all(client):
    client.post(PATH, json={"messages": MESSAGES})
    values = scrape(client)
    for name, buckets in histograms(values).items():
        assert buckets == sorted(buckets)
        assert values[f'{name}_bucket{{le="+Inf"}}'] == values[f"{name}_count"] == buckets[-1]


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (Script(), "stop"),
        (Script(reason="length"), "length"),
        (Script(rejected=BadRequest("no")), "refused"),
        (Script(broken=EngineCrashed("it died", exit_code=-9)), "failed"),
    ],
)
def test_how_a_request_ended_is_counted(make_client, script, outcome):
    client = make_client(engine=FakeEngine(script))
    client.post(PATH, json={"messages": MESSAGES})
    ended = {key: value for key, value in scrape(client).items() if "requests_ended" in key}
    assert ended == {
        f'ggufdeploy_requests_ended_total{{outcome="{each}"}}': float(each == outcome) for each in meters.OUTCOMES
    }


async def test_a_client_that_leaves_counts_as_cancelled():
    engine = WatchedEngine()
    engine.hold()
    async with serving(engine) as live:
        _, writer = await live.connect(PATH, {"messages": MESSAGES})
        await soon(engine.wait_started())
        writer.close()
        await soon(engine.ended.get())
        await asyncio.sleep(0)
        _, _, body = await live.request("/metrics")
    values = parse(body.decode())
    assert values['ggufdeploy_requests_ended_total{outcome="cancelled"}'] == 1
    assert values["ggufdeploy_request_duration_seconds_count"] == 0


def test_an_open_file_shows_in_the_process_figures(client):
    before = scrape(client)
    with Path(__file__).open():
        after = scrape(client)
    assert after["process_open_fds"] == before["process_open_fds"] + 1
    assert after["process_resident_memory_bytes"] > 1 << 20
    assert after["process_start_time_seconds"] <= time.time()


def test_every_metric_is_documented_with_its_kind(client):
    kinds = dict(re.findall(r"# TYPE (\w+) (\w+)", client.get("/metrics").text))
    text = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`.*) \| (counter|gauge|histogram) \|", text, re.MULTILINE)
    assert {name: kind for names, kind in rows for name in re.findall(r"`(\w+)[`{]", names)} == kinds


def test_cached_prompt_tokens_add_up(make_client):
    client = make_client(engine=FakeEngine(Script(prompt_tokens=9, cached_tokens=7)))
    for _ in range(2):
        client.post(PATH, json={"messages": MESSAGES})
    assert scrape(client)["ggufdeploy_cached_prompt_tokens_total"] == 14


def test_a_model_name_cannot_break_out_of_its_label(make_client):
    text = make_client(model_id='a"b\\c\nd').get("/metrics").text
    assert 'ggufdeploy_info{model="a\\"b\\\\c\\nd",version=' in text
    parse(text)


def test_a_gap_before_several_tokens_is_divided_among_them(monkeypatch):
    clock = iter([10.0, 10.5, 10.75, 12.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    made = Meters()
    with made.time_request() as timer:
        timer.note(Delta("a", "x", 1))
        timer.note(Delta("a", "yz", 5))
        timer.note(Finished("a", "stop", 3, 6, 0, 0.1, 0.2, 0.25))
    values = parse("\n".join(made.lines()) + "\n")
    assert values["ggufdeploy_time_to_first_token_seconds_sum"] == 0.5
    assert values["ggufdeploy_inter_token_seconds_sum"] == pytest.approx(0.25)
    assert values["ggufdeploy_inter_token_seconds_count"] == 5
    assert values['ggufdeploy_inter_token_seconds_bucket{le="0.03"}'] == 0
    assert values['ggufdeploy_inter_token_seconds_bucket{le="0.05"}'] == 5  # 50 ms each: a bucket holds its upper end
    assert values["ggufdeploy_request_duration_seconds_sum"] == 2.0
    assert values["ggufdeploy_queue_wait_seconds_sum"] == 0.25


def test_the_format_escapes_what_it_must():
    assert list(header("a", "gauge", "one\nline \\ two")) == ["# HELP a one\\nline \\\\ two", "# TYPE a gauge"]
    assert sample("a", 1) == "a 1"
    assert sample("a", 0.5, {"x": "1", "y": "ü"}) == 'a{x="1",y="ü"} 0.5'


def test_a_histogram_without_observations_is_all_zero():
    lines = list(Histogram("h", "Help.", (0.1, 1.0)).lines())
    assert lines[2:] == [
        'h_bucket{le="0.1"} 0',
        'h_bucket{le="1.0"} 0',
        'h_bucket{le="+Inf"} 0',
        "h_sum 0.0",
        "h_count 0",
    ]
