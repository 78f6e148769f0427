"""Dry runs remembered on disk."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from ggufdeploy.deploy import answers
from ggufdeploy.deploy.answers import RememberedDryRun
from ggufdeploy.deploy.oracle import engine_config
from ggufdeploy.deploy.sources import local_headers
from ggufdeploy.engine.dryrun import DeviceMemory, DryRun, DryRunAnswer
from ggufdeploy.errors import EngineError
from ggufdeploy.planner.placement import Placement, on_cpu
from ggufdeploy.planner.request import PlanRequest
from tests.deploy.conftest import ggufdeploy
from tests.gguf_shapes import TINY_LLAMA
from tests.gguf_writer import write_model

REQUEST = PlanRequest(context_tokens=512, slots=2)
HOST = DeviceMemory("CPU", 100, 50, 10, 20, 30)


@pytest.fixture
def headers(tmp_path):
    return local_headers([write_model(tmp_path / "m.F16.gguf", TINY_LLAMA, "F16")])


@pytest.fixture
def asked(monkeypatch):
    """Every question that llama.cpp would get."""
    questions = []

    def ask(self, config):
        questions.append(config)
        return DryRunAnswer((), msgspec.structs.replace(HOST, kv_bytes=len(questions)))

    monkeypatch.setattr(DryRun, "ask", ask)
    return questions


def ask(folder, headers, request=REQUEST, placement=None, devices="", path="/m", **config) -> DryRunAnswer:
    with RememberedDryRun(folder, devices) as dry_run:
        dry_run.about(path, headers)
        question = engine_config(request, placement or on_cpu(2, 0), path)
        return dry_run.ask(msgspec.structs.replace(question, **config))


def test_the_same_question_is_asked_once_wherever_the_file_lies(tmp_path, headers, asked):
    first = ask(tmp_path / "a", headers)
    assert ask(tmp_path / "a", headers, path="/elsewhere") == first
    assert ask(tmp_path / "a", headers, threads=7) == first
    assert len(asked) == 1


def test_whatever_can_change_the_answer_makes_another_question(tmp_path, headers, asked, monkeypatch):
    ask(tmp_path, headers)
    ask(tmp_path, headers, replace(REQUEST, context_tokens=1024))
    ask(tmp_path, headers, replace(REQUEST, kv_type="q8_0"))
    ask(tmp_path, headers, placement=Placement(2, (3,)), devices="gpu CUDA0 A")
    ask(tmp_path, headers, placement=Placement(2, (3,)), devices="gpu CUDA0 B")
    other = replace(headers, shards=(replace(headers.shards[0], n_bytes=headers.shards[0].n_bytes + 1),))
    ask(tmp_path, other)
    monkeypatch.setattr(answers, "build_fingerprint", lambda: "another build")
    ask(tmp_path, headers)
    assert len(asked) == 7


def test_devices_do_not_matter_where_none_is_used(tmp_path, headers, asked):
    ask(tmp_path, headers, devices="gpu CUDA0 A")
    ask(tmp_path, headers, devices="")
    assert len(asked) == 1


def test_a_file_that_was_not_introduced_is_asked_about_every_time(tmp_path, asked):
    question = engine_config(REQUEST, on_cpu(2, 0), "/m")
    with RememberedDryRun(tmp_path, "") as dry_run:
        assert dry_run.ask(question) != dry_run.ask(question)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_remembered(headers, asked):
    assert ask(None, headers) != ask(None, headers)


def test_a_damaged_answer_is_asked_again(tmp_path, headers, asked):
    ask(tmp_path, headers)
    for path in tmp_path.glob("*.json"):
        path.write_text('{"devices": ')
    ask(tmp_path, headers)
    ask(tmp_path, headers)
    assert len(asked) == 2


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path, headers, asked):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    assert ask(blocked, headers).host.name == "CPU"
    assert blocked.read_text() == "a file where a folder should be"


def test_a_refusal_is_not_remembered(tmp_path, headers, monkeypatch):
    def refuse(self, config):
        raise EngineError("no")

    monkeypatch.setattr(DryRun, "ask", refuse)
    with pytest.raises(EngineError):
        ask(tmp_path / "a", headers)
    assert not (tmp_path / "a").exists()


def test_old_answers_make_room(tmp_path, headers, asked, monkeypatch):
    monkeypatch.setattr(answers, "_KEPT_FILES", 4)
    for tokens in range(256, 256 * 9, 256):
        ask(tmp_path, headers, replace(REQUEST, context_tokens=tokens))
    assert len(list(tmp_path.iterdir())) <= 5
    ask(tmp_path, headers, replace(REQUEST, context_tokens=256 * 8))
    assert len(asked) == 8


@pytest.mark.engine
def test_a_second_plan_starts_no_engine_and_says_the_same(mixtral_hub, monkeypatch):
    command = ("plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ram", "256GiB", "--ctx", "4k")
    first = ggufdeploy(*command)

    def start(self):
        raise AssertionError("the answer is on disk")

    monkeypatch.setattr(DryRun, "_start", start)
    second = ggufdeploy(*command)
    assert (second.code, second.stdout) == (0, first.stdout)
