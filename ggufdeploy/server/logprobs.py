"""Logprobs as OpenAI's two routes show them (platform.openai.com/docs/api-reference: chat and completions objects)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggufdeploy.engine.request import Alternative, TokenLogprob


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return `logprobs` of a chat choice or chunk. A token that is part of a character is exact in `bytes` alone."""
    content = [{**_entry(token), "top_logprobs": [_entry(each) for each in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return `logprobs` of a text choice or chunk. The chosen token is always among `top_logprobs`, as at OpenAI."""
    return {
        "tokens": [_text(token.data) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": [token.start_chars for token in tokens],
    }


def _entry(token: TokenLogprob | Alternative) -> dict[str, Any]:
    return {"token": _text(token.data), "logprob": token.logprob, "bytes": list(token.data)}


def _top(token: TokenLogprob) -> dict[str, float]:
    # Control tokens all read "", and halves of characters alike: the most likely one stands for them.
    top: dict[str, float] = {}
    for each in token.top:
        top.setdefault(_text(each.data), each.logprob)
    top.setdefault(_text(token.data), token.logprob)
    return top


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
