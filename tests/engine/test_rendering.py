from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from ggufdeploy.engine.rendering import Renderer
from ggufdeploy.engine.request import ChatMessage, ToolCall, ToolSpec
from ggufdeploy.errors import BadRequest

USER = ChatMessage("user", "hi ü")
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
ENDLESS_FOR_LOOP = "{% if messages[0].content == 'loop' %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"


@pytest.fixture
def renderer() -> Iterator[Callable[..., Renderer]]:
    """Return a function that makes renderers, which are closed afterwards."""
    made: list[Renderer] = []

    def make(source: str, **options: object) -> Renderer:
        made.append(Renderer(source, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_it_renders_as_the_template_does(renderer):
    chat = renderer("{{ bos_token }}{{ messages[0].content }}|", bos_text="<s>")

    assert chat.render([USER]) == "<s>hi ü|"
    assert chat.render([ChatMessage("assistant", "Sure")], continue_last=True) == "<s>Sure"


def test_tools_and_calls_reach_the_other_process(renderer):
    chat = renderer("{{ tools[0].function.name }}{{ messages[0].tool_calls[0].function.arguments.x }}")
    called = ChatMessage("assistant", "", tool_calls=(ToolCall("id", "f", '{"x": 1}'),))

    assert chat.render([called], tools=[ToolSpec("f")]) == "f1"


def test_a_broken_template_is_told_at_every_request(renderer):
    chat = renderer("a\n{% if %}")

    for _ in range(2):
        with pytest.raises(BadRequest, match="line 2"):
            chat.render([USER])


@pytest.mark.slow
@pytest.mark.parametrize("source", [ENDLESS, "{{ 9 ** (9 ** 9) }}"], ids=["rendering", "compiling"])
def test_a_template_without_end_is_one_failed_request_and_no_process(renderer, source):
    before = set(psutil.Process().children())  # other tests may keep a deployment running
    chat = renderer(source, timeout_s=1.0)

    with pytest.raises(BadRequest, match="did not finish within 1 s"):
        chat.render([USER])

    assert chat.pid is None
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("source", ["{{ 'a' * 20000000000 }}", "{{ 'a' | center(9999999999) }}"])
def test_a_template_that_wants_all_memory_is_refused(renderer, source):
    with pytest.raises(BadRequest, match="MemoryError"):
        renderer(source).render([USER])


def test_a_template_nested_too_deeply_is_refused(renderer):
    with pytest.raises(BadRequest, match="broken"):
        renderer("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}").render([USER])


@pytest.mark.slow
def test_after_a_rendering_without_end_the_next_one_works(renderer):
    chat = renderer(ENDLESS_FOR_LOOP, timeout_s=5.0)

    with pytest.raises(BadRequest, match="did not finish"):
        chat.render([ChatMessage("user", "loop")])

    assert chat.render([USER]) == "hi ü"


def test_the_child_may_die_between_requests(renderer):
    chat = renderer("{{ messages[0].content }}")
    chat.render([USER])
    psutil.Process(chat.pid).kill()
    psutil.Process(chat.pid).wait(10)

    with pytest.raises(BadRequest, match="ended its process"):
        chat.render([USER])
    assert chat.render([USER]) == "hi ü"


def test_closing_ends_a_rendering_at_once(renderer):
    chat = renderer(ENDLESS, timeout_s=60.0)
    failed = threading.Event()

    def render() -> None:
        with pytest.raises(BadRequest, match="ended its process"):
            chat.render([USER])
        failed.set()

    thread = threading.Thread(target=render)
    thread.start()
    deadline = time.monotonic() + 30
    while chat.pid is None:
        assert time.monotonic() < deadline
    chat.close()

    assert failed.wait(10)
    thread.join()
    with pytest.raises(BadRequest):
        chat.render([USER])


def test_closing_while_the_child_is_being_started_does_not_wait_for_its_time_limit(renderer, monkeypatch):
    chat = renderer(ENDLESS, timeout_s=30.0)
    started, popen = threading.Event(), subprocess.Popen

    def slow_start(*args, **options):
        started.set()
        time.sleep(0.2)
        return popen(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", slow_start)
    outcome: list[str] = []

    def render() -> None:
        try:
            chat.render([USER])
        except BadRequest as error:
            outcome.append(error.message)

    thread = threading.Thread(target=render)
    thread.start()
    assert started.wait(10)
    begun = time.monotonic()
    chat.close()
    thread.join(10)
    assert time.monotonic() - begun < 10
    assert outcome == ["The model's chat template ended its process."]
    assert chat.pid is None
