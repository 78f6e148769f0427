from __future__ import annotations

import json

import pytest

from ggufdeploy.engine.request import ChatMessage, ToolCall, ToolSpec
from ggufdeploy.engine.templates import MAX_TEMPLATE_BYTES, ChatTemplate
from ggufdeploy.errors import BadRequest

USER = ChatMessage("user", 'Hi <b>&"ü"')
CHATML = (
    "{% for message in messages %}\n"
    "    {% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system must be first') }}{% endif %}\n"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_blocks_leave_no_blank_lines_and_the_assistant_is_prompted():
    assert ChatTemplate(CHATML).render([USER]) == ('<|im_start|>user\nHi <b>&"ü"<|im_end|>\n<|im_start|>assistant\n')


def test_continuing_the_last_message_ends_inside_it():
    messages = [USER, ChatMessage("assistant", "Sure, ")]
    assert ChatTemplate(CHATML).render(messages, continue_last=True).endswith("<|im_start|>assistant\nSure,")


def test_a_template_that_changes_the_last_message_cannot_be_continued():
    with pytest.raises(BadRequest, match="cannot be continued"):
        ChatTemplate("{{ messages[-1].content | upper }}").render([ChatMessage("assistant", "abc")], continue_last=True)


def test_what_the_template_refuses_is_a_bad_request_with_its_words():
    with pytest.raises(BadRequest, match="system must be first") as caught:
        ChatTemplate(CHATML).render([USER, ChatMessage("system", "x")])
    assert caught.value.param == "messages"


def test_tojson_neither_escapes_html_nor_non_ascii():
    assert ChatTemplate("{{ messages[0].content | tojson }}").render([USER]) == '"Hi <b>&\\"ü\\""'


def test_the_template_sees_tokens_no_tools_and_the_date():
    template = ChatTemplate(
        "{{ bos_token }}{{ tools is none }}{{ strftime_now('%Y') | length }}{{ eos_token }}",
        bos_text="<s>",
        eos_text="</s>",
    )
    assert template.render([USER]) == "<s>True4</s>"


def test_generation_blocks_and_loop_controls_are_understood():
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}"
    )
    assert ChatTemplate(source).render([USER, USER]) == "user"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.clear() }}",
        "{{ messages[0].update(a=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_hostile_or_broken_template_is_refused_and_harmless(source):
    with pytest.raises(BadRequest):
        ChatTemplate(source).render([USER])


def test_a_template_that_is_not_jinja_says_where():
    with pytest.raises(BadRequest, match="line 2"):
        ChatTemplate("a\n{% if %}")


def test_an_oversized_template_is_refused_unread():
    with pytest.raises(BadRequest, match="262,145"):
        ChatTemplate("x" * (MAX_TEMPLATE_BYTES + 1))


def test_no_messages_is_a_bad_request():
    with pytest.raises(BadRequest, match="empty"):
        ChatTemplate(CHATML).render([])


TOOL = ToolSpec("f", "Does it", '{"type":"object","properties":{"x":{"type":"integer"}}}')
CALLED = ChatMessage("assistant", "", tool_calls=(ToolCall("id1", "f", '{"x": 1}'),), reasoning="Hm")


def test_the_template_sees_tools_in_openais_shape():
    template = ChatTemplate("{% for tool in tools %}{{ tool | tojson }}{% endfor %}")
    assert json.loads(template.render([USER], tools=[TOOL])) == {
        "type": "function",
        "function": {
            "name": "f",
            "description": "Does it",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        },
    }
    assert '"parameters": {"type": "object", "properties": {}}' in template.render([USER], tools=[ToolSpec("g")])


def test_the_template_sees_calls_their_results_and_reasoning():
    template = ChatTemplate(
        "{% for m in messages %}{% if m.tool_calls is defined %}{% for call in m.tool_calls %}"
        "{{ call.id }} {{ call.function.name }}{% for k, v in call.function.arguments | items %} {{ k }}={{ v + 1 }}"
        "{% endfor %}{% endfor %} {{ m.reasoning_content }} {{ m.thinking }}"
        "{% elif m.role == 'tool' %} {{ m.tool_call_id }}:{{ m.content }}{% endif %}{% endfor %}"
    )
    messages = [USER, CALLED, ChatMessage("tool", "42", tool_call_id="id1")]
    assert template.render(messages) == "id1 f x=2 Hm Hm id1:42"


def test_a_template_that_wants_arguments_as_text_gets_text():
    template = ChatTemplate("{{ '```json\n' + messages[-1].tool_calls[0].function.arguments }}")
    assert template.render([CALLED]) == '```json\n{"x": 1}'


def test_what_refuses_arguments_in_both_forms_says_why_first():
    with pytest.raises(BadRequest, match="only one at a time"):
        ChatTemplate("{{ raise_exception('only one at a time') }}").render([CALLED])


def test_a_template_may_keep_a_queue_and_changes_nothing_for_the_next_rendering():
    template = ChatTemplate("{% set _ = messages.append(messages[0]) %}{{ messages | length }}")
    assert [template.render([USER]), template.render([USER])] == ["2", "2"]
