"""Calls and arguments out of JSON, and out of text whose type only the tool's schema tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from ggufdeploy.server.toolcalls.pieces import Call, Tool, Tools

_NAMES = ("name", "function", "tool_name")
_ARGUMENTS = ("arguments", "parameters", "args")
_WORDS = {"true": True, "false": False, "none": None}  # as Python spells them


def load(text: str) -> Any:
    """Return what JSON `text` says; line breaks inside strings are allowed, as models write them.

    Raises ValueError, also for NaN, and for what is nested too deeply.
    """
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def split_calls(section: str, begin: str, end: str) -> list[str]:
    """Return what stands between the markers of each call in a section. Raises ValueError for none."""
    calls = [each for each in section.replace(end, "").split(begin) if each.strip()]
    if not calls:
        raise ValueError("an empty section")
    return calls


def load_many(text: str) -> list[Any]:
    """Return the JSON values in `text`, which blanks, commas or semicolons separate. Raises ValueError."""
    decoder = json.JSONDecoder(strict=False, parse_constant=_refuse)
    values: list[Any] = []
    text = text.strip(" \t\r\n;,")
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        values.extend(value if isinstance(value, list) else [value])
        text = text[end:].lstrip(" \t\r\n;,")
    return values


def dump(arguments: Mapping[str, Any]) -> str:
    """Return the arguments as the JSON text clients expect."""
    return json.dumps(arguments, ensure_ascii=False)


def json_calls(text: str) -> list[Call]:
    """Read one object, several, or a list: {"name", "arguments" or "parameters"}. Raises ValueError."""
    calls = [call_of(value) for value in load_many(text)]
    if not calls:
        raise ValueError("no call")
    return calls


def call_of(value: Any) -> Call:
    """Read one call object; {"type": "function", "function": {...}} is unwrapped. Raises ValueError."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise ValueError("a call is an object")
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), "")
    return named_call(name, next((value[key] for key in _ARGUMENTS if key in value), {}))


def named_call(name: str, arguments: Any) -> Call:
    """Return the call; arguments may be an object or its JSON text. Raises ValueError."""
    name = name.strip()
    if isinstance(arguments, str):
        arguments = load(arguments) if arguments.strip() else {}
    if not name or not isinstance(arguments or {}, dict):
        raise ValueError("a call has a name and an object of arguments")
    return Call(name, dump(arguments or {}))


def typed(text: str, parameter: str, tool: Tool | None) -> Any:
    """Return what `text` means for a parameter: the type its schema names, the text itself where that is none."""
    schema = tool.properties.get(parameter) if tool else None
    kinds = _kinds(schema)
    if schema is None or kinds == {"string"}:
        return text
    try:
        value = load(text)
    except ValueError:
        return text if "string" in kinds else _WORDS.get(text.strip().lower(), text)
    if isinstance(value, (dict, list)):
        return value
    is_text = not kinds or ("string" in kinds and value is not None)
    return text if is_text else value


def _kinds(schema: Any) -> set[str]:
    """Return the JSON types a schema names, also in its alternatives."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    kinds = {kind for kind in (named if isinstance(named, list) else [named]) if isinstance(kind, str)}
    for key in ("anyOf", "oneOf"):
        alternatives = schema.get(key)
        for each in alternatives if isinstance(alternatives, list) else []:
            kinds |= {each["type"]} if isinstance(each, dict) and isinstance(each.get("type"), str) else set()
    return kinds


def text_call(name: str, arguments: list[tuple[str, str]], tools: Tools) -> Call:
    """Return a call whose values were written as text. Raises ValueError without a name."""
    tool = tools.get(name.strip())
    return named_call(name, {key: typed(value, key, tool) for key, value in arguments})


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
