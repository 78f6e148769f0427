"""Every family's format as the models write it: their templates write the history in the same notation."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.server.toolcalls import (
    deepseek,
    gemma,
    generic,
    glm,
    gpt_oss,
    granite,
    hermes,
    kimi,
    llama3,
    minimax,
    mistral,
    qwen_coder,
)
from ggufdeploy.server.toolcalls.choice import FirstCall, choose, family
from ggufdeploy.server.toolcalls.leading import Plain
from ggufdeploy.server.toolcalls.pieces import Call, Content, Parser, Reasoning, Tool
from ggufdeploy.server.toolcalls.reasoning import ReasoningParser

TOOLS = {
    "get_weather": Tool(
        "get_weather",
        {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "hourly": {"type": "boolean"},
            "units": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "where": {"type": "object"},
        },
    ),
    "write_file": Tool("write_file", {"path": {"type": "string"}, "content": {"type": "string"}}),
}
THINK = ("<think>", "</think>")
WEATHER = ("get_weather", {"city": "Zürich", "days": 3})
TIME = ("get_time", {})
HARMONY_CALL = (
    "<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.get_weather <|constrain|>json<|message|>{"city": "Zürich", "days": 3}'
)


def thinking(inside: bool = False) -> Parser:
    return ReasoningParser(THINK, hermes.parser(TOOLS), inside=inside)


# name: (a fresh parser, the text, content, reasoning, calls)
CASES = {
    "hermes": (
        lambda: hermes.parser(TOOLS),
        'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
        "Let me look.",
        "",
        [WEATHER, TIME],
    ),
    "hermes, the end left out": (
        lambda: hermes.parser(TOOLS),
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}',
        "",
        "",
        [WEATHER],
    ),
    "hermes, the closing marker inside an argument": (
        lambda: hermes.parser(TOOLS),
        '<tool_call>{"name": "write_file", "arguments": {"content": "a</tool_call>b"}}</tool_call>',
        "",
        "",
        [("write_file", {"content": "a</tool_call>b"})],
    ),
    "hermes, a line break inside a string": (
        lambda: hermes.parser(TOOLS),
        '<tool_call>{"name": "write_file", "arguments": {"content": "a\nb"}}</tool_call> done \n',
        "done \n",
        "",
        [("write_file", {"content": "a\nb"})],
    ),
    "hermes, broken JSON": (
        lambda: hermes.parser(TOOLS),
        'x <tool_call>{"name": get}</tool_call> y\n',
        'x <tool_call>{"name": get}</tool_call> y\n',
        "",
        [],
    ),
    "hermes, nested too deeply": (
        lambda: hermes.parser(TOOLS),
        "<tool_call>" + "[" * 20_000,
        "<tool_call>" + "[" * 20_000,
        "",
        [],
    ),
    "hermes, no call": (lambda: hermes.parser(TOOLS), " a < b <tool\n", " a < b <tool\n", "", []),
    "qwen coder": (
        lambda: qwen_coder.parser(TOOLS),
        "I will.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        "I will.",
        "",
        [WEATHER],
    ),
    "qwen coder, types from the schema": (
        lambda: qwen_coder.parser(TOOLS),
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n007\n</parameter>\n<parameter=hourly>\nTrue\n</parameter>\n"
        '<parameter=where>\n{"lat": 47.4}\n</parameter>\n<parameter=units>\n12\n</parameter>\n'
        "<parameter=other>\n5\n</parameter>\n</function>\n</tool_call>",
        "",
        "",
        [("get_weather", {"city": "007", "hourly": True, "where": {"lat": 47.4}, "units": "12", "other": "5"})],
    ),
    "qwen coder, without the outer marker": (
        lambda: qwen_coder.parser(TOOLS),
        "Now:\n<function=write_file>\n<parameter=content>\n\tif a:\n\t\tb</parameter>x\n</parameter>\n</function>\n"
        "</tool_call>",
        "Now:",
        "",
        [("write_file", {"content": "\tif a:\n\t\tb</parameter>x"})],
    ),
    "seed oss": (
        lambda: qwen_coder.parser(TOOLS),
        "<seed:tool_call>\n<function=get_time>\n</function>\n</seed:tool_call>",
        "",
        "",
        [TIME],
    ),
    "llama 3, bare": (
        lambda: llama3.parser(TOOLS),
        '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 3}}',
        "",
        "",
        [WEATHER],
    ),
    "llama 3, two bare calls": (
        lambda: llama3.parser(TOOLS),
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Zürich", "days": 3}}; '
        '{"name": "write_file", "parameters": {}}',
        "",
        "",
        [WEATHER, ("write_file", {})],
    ),
    "llama 3, JSON that is an answer": (
        lambda: llama3.parser(TOOLS),
        '{"name": "Ada", "born": 1815}',
        '{"name": "Ada", "born": 1815}',
        "",
        [],
    ),
    "llama 3, python tag with JSON": (
        lambda: llama3.parser(TOOLS),
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Zürich", "days": 3}}',
        "",
        "",
        [WEATHER],
    ),
    "llama 3, a built-in tool": (
        lambda: llama3.parser(TOOLS),
        '<|python_tag|>brave_search.call(query="price of \\"gold\\"")',
        "",
        "",
        [("brave_search", {"query": 'price of "gold"'})],
    ),
    "llama 3, code that is no call": (
        lambda: llama3.parser(TOOLS),
        "<|python_tag|>print(open('x'))",
        "<|python_tag|>print(open('x'))",
        "",
        [],
    ),
    "mistral nemo": (
        lambda: mistral.parser(TOOLS),
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}, "id": "abcdefghi"}, '
        '{"name": "get_time", "arguments": {}}]',
        "",
        "",
        [WEATHER, TIME],
    ),
    "mistral small 3.2": (
        lambda: mistral.parser(TOOLS),
        'Sure.[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Zürich", "days": 3}[TOOL_CALLS]get_time[ARGS]{}',
        "Sure.",
        "",
        [WEATHER, TIME],
    ),
    "mistral, its own marker inside an argument": (
        lambda: mistral.parser(TOOLS),
        '[TOOL_CALLS]write_file[ARGS]{"content": "[TOOL_CALLS]"}[TOOL_CALLS]get_time{}',
        "",
        "",
        [("write_file", {"content": "[TOOL_CALLS]"}), TIME],
    ),
    "deepseek r1": (
        lambda: deepseek.parser(TOOLS),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Zürich", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n'
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        "",
        [WEATHER, TIME],
    ),
    "deepseek v3.1": (
        lambda: deepseek.parser(TOOLS),
        'Ok.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Zürich", "days": 3}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Ok.",
        "",
        [WEATHER],
    ),
    "granite 3": (
        lambda: granite.parser(TOOLS),
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}]',
        "",
        "",
        [WEATHER],
    ),
    "gemma 4": (
        lambda: gemma.parser(TOOLS),
        '<|tool_call>call:get_weather{city:<|"|>Zürich<|"|>,days:3}<tool_call|><|tool_call>call:get_time{}<tool_call|>',
        "",
        "",
        [WEATHER, TIME],
    ),
    "gemma 4, nested values": (
        lambda: gemma.parser(TOOLS),
        '<|tool_call>call:f{a:[1,-2.5,true,null],b:{<|"|>k k<|"|>:<|"|>{,}:<|"|>,c:[]}}<tool_call|>',
        "",
        "",
        [("f", {"a": [1, -2.5, True, None], "b": {"k k": "{,}:", "c": []}})],
    ),
    "gemma 4, cut off": (
        lambda: gemma.parser(TOOLS),
        '<|tool_call>call:f{a:<|"|>Zür',
        '<|tool_call>call:f{a:<|"|>Zür',
        "",
        [],
    ),
    "glm": (
        lambda: glm.parser(TOOLS),
        "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>",
        "",
        "",
        [WEATHER, TIME],
    ),
    "kimi k2": (
        lambda: kimi.parser(TOOLS),
        "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Zürich", "days": 3}<|tool_call_end|><|tool_calls_section_end|>',
        "Hm.",
        "",
        [WEATHER],
    ),
    "minimax m2": (
        lambda: minimax.parser(TOOLS),
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Zürich</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="get_time">\n</invoke>\n</minimax:tool_call>',
        "",
        "",
        [WEATHER, TIME],
    ),
    "generic, a list": (
        lambda: generic.parser(TOOLS),
        '\n[ {"name": "get_weather", "arguments": "{\\"city\\": \\"Zürich\\", \\"days\\": 3}"} ]\n',
        "",
        "",
        [WEATHER],
    ),
    "generic, an answer": (lambda: generic.parser(TOOLS), "{braces} are fine", "{braces} are fine", "", []),
    "gpt-oss, an answer": (
        lambda: gpt_oss.HarmonyParser(),
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>2 < 3 <|\n",
        "2 < 3 <|\n",
        "Easy.",
        [],
    ),
    "gpt-oss, a call": (lambda: gpt_oss.HarmonyParser(), HARMONY_CALL, "", "Need the weather.", [WEATHER]),
    "gpt-oss, a preamble and the recipient before the channel": (
        lambda: gpt_oss.HarmonyParser(),
        "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant to=functions.get_time"
        "<|channel|>commentary json<|message|>{}<|call|>",
        "I look it up.",
        "",
        [TIME],
    ),
    "gpt-oss, a broken call": (
        lambda: gpt_oss.HarmonyParser(),
        '<|channel|>commentary to=functions.f<|message|>{"a": <|call|>',
        '{"a": ',
        "",
        [],
    ),
    "gpt-oss, no channel": (lambda: gpt_oss.HarmonyParser(), "Hello", "Hello", "", []),
    "gpt-oss, continued": (lambda: gpt_oss.HarmonyParser(in_body=True), " world", " world", "", []),
    "reasoning, then a call": (
        thinking,
        '<think>\nHm.\n\nYes.\n</think>\n\nOk <tool_call>{"name": "get_time"}</tool_call>',
        "Ok",
        "Hm.\n\nYes.",
        [TIME],
    ),
    "reasoning that the prompt began": (lambda: thinking(True), "Hm.\n</think>\n\nOk", "Ok", "Hm.", []),
    "reasoning that the prompt began and the model too": (
        lambda: thinking(True),
        "<think>\nHm.\n</think>\nOk\n",
        "Ok\n",
        "Hm.",
        [],
    ),
    "reasoning without an end": (lambda: thinking(True), "Hm </thin", "", "Hm </thin", []),
    "reasoning of nothing": (thinking, "<think>\n\n</think>\n\nOk", "Ok", "", []),
    "no reasoning": (thinking, "\nThe tag <think> opens it", "\nThe tag <think> opens it", "", []),
    "almost reasoning": (thinking, "<thin", "<thin", "", []),
    "reasoning of gemma": (
        lambda: ReasoningParser(("<|channel>thought\n", "<channel|>"), Plain(), inside=False),
        "<|channel>thought\nHm.\n<channel|>Ok",
        "Ok",
        "Hm.",
        [],
    ),
}


def read(parser: Parser, pieces: list[str]):
    found = [piece for text in pieces for piece in parser.feed(text)]
    found += parser.finish()
    content = "".join(piece.text for piece in found if isinstance(piece, Content))
    reasoning = "".join(piece.text for piece in found if isinstance(piece, Reasoning))
    return content, reasoning, [(call.name, json.loads(call.arguments)) for call in found if isinstance(call, Call)]


@pytest.mark.parametrize("name", CASES)
def test_a_whole_answer_is_read(name):
    make, text, content, reasoning, calls = CASES[name]
    assert read(make(), [text]) == (content, reasoning, calls)


@pytest.mark.parametrize("name", CASES)
def test_an_answer_in_single_characters_is_read_the_same(name):
    make, text, *expected = CASES[name]
    assert list(read(make(), list(text[:4000]))) == expected or len(text) > 4000


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(0, 400), max_size=12))
def test_any_cut_gives_the_same_result(name, cuts):
    make, text, *expected = CASES[name]
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    assert list(read(make(), [text[a:b] for a, b in pairwise(edges)])) == expected


MARKERS = ["<tool_call>", "</tool_call>", "<function=f>", "</function>", "[TOOL_CALLS]", "[ARGS]", "{}",
           '{"name": "f"}', "<think>", "</think>", "<|channel|>final", "<|message|>", "<|end|>", "<|python_tag|>",
           "<|tool_call>", "<tool_call|>", "call:f{", "}", "<", "\n", " ", "x", "ü"]  # fmt: skip
PARSERS = {
    **{each.__name__: each.parser for each in (deepseek, gemma, generic, glm, granite, hermes, kimi, llama3, minimax)},
    **{each.__name__: each.parser for each in (mistral, qwen_coder)},
    "gpt_oss": lambda tools: gpt_oss.HarmonyParser(),
    "thinking": lambda tools: thinking(),
    "thinking inside": lambda tools: thinking(True),
}


@given(st.sampled_from(sorted(PARSERS)), st.lists(st.sampled_from(MARKERS), max_size=12), st.data())
def test_any_cut_of_any_jumble_of_markers_gives_the_same_result(name, parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    cut = [text[a:b] for a, b in pairwise(edges)]
    assert read(PARSERS[name](TOOLS), cut) == read(PARSERS[name](TOOLS), [text])


def test_content_leaves_at_once_and_half_a_marker_never():
    parser = hermes.parser(TOOLS)
    assert parser.feed("Hello <tool") == [Content("Hello")]
    assert parser.feed("box>") == [Content(" <toolbox>")]
    assert parser.feed(" </") == [Content(" </")]


def test_reasoning_leaves_while_it_is_thought():
    parser = thinking()
    assert parser.feed("<think>Hm") == [Reasoning("Hm")]
    assert parser.feed(" so</") == [Reasoning(" so")]


def test_only_the_first_call_is_kept_when_calls_may_not_be_parallel():
    make, text, content, _, _ = CASES["hermes"]
    assert read(FirstCall(make()), [text]) == (content, "", [WEATHER])


@pytest.mark.parametrize(
    ("template", "module"),
    [
        ("<tool_call>\n{{ tool_call | tojson }}\n</tool_call>", hermes),
        ("<tool_call>\n<function=' + name + '>\n<parameter=", qwen_coder),
        ("<tool_call>{{ tc.name }}<arg_key>", glm),
        ("{{ '[TOOL_CALLS]' }}", mistral),
        ("<|start_header_id|>ipython {'\"parameters\": '}", llama3),
        ("<｜tool▁calls▁begin｜>", deepseek),
        ("respond only with <|tool_call|> followed by a JSON list", granite),
        ("{{- '<|tool_call>call:' + function['name'] + '{' -}}", gemma),
        ("<|tool_calls_section_begin|>", kimi),
        ("<minimax:tool_call>", minimax),
        ("{{ tools | tojson }}", generic),
    ],
)
def test_the_template_chooses_the_family(template, module):
    assert family(template) is module


def test_without_tools_and_reasoning_there_is_nothing_to_parse():
    assert choose("{{ messages }}{{ tools }}<tool_call>", {}) is None


@pytest.mark.parametrize(
    ("template", "prompt_end", "text", "expected"),
    [
        ("<think></think>", "assistant\n<think>\n", "Hm</think>Ok", ("Ok", "Hm", [])),
        ("<think></think>", "<think>\n\n</think>\n\n", "Ok", ("Ok", "", [])),
        ("<|channel|><|message|>", "<|start|>assistant", "<|channel|>final<|message|>Ok", ("Ok", "", [])),
        ("<|channel|><|message|>", "final<|message|>Once", " upon", (" upon", "", [])),
    ],
)
def test_the_end_of_the_prompt_tells_where_the_answer_begins(template, prompt_end, text, expected):
    make = choose(template, {})
    assert make is not None
    assert read(make(prompt_end), [text]) == expected
