"""From a prompt to tokens, beside the engine's thread: rendering and tokenizing take long for long prompts."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from ggufdeploy.engine.backend import Vocabulary
from ggufdeploy.engine.rendering import Renderer
from ggufdeploy.engine.request import ChatPrompt, Decode, Encode, Prompt, Question, TextPrompt, TokenPrompt
from ggufdeploy.engine.templates import missing_template
from ggufdeploy.errors import BadRequest, ContextOverflow

# Some tokenizers recurse for every character (std::regex): 30,000 times "a" overflows the usual 8 MiB and kills the
# process. This is address space, not memory.
_STACK_BYTES = 1 << 29
_THREADS = 2

# No tokenizer makes a token of more bytes, so longer texts cannot fit and are refused before they cost anything.
_MAX_BYTES_PER_TOKEN = 512


class DeepThreads:
    """A few daemon threads with a large stack that run what they are handed, first come first served."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        before = threading.stack_size(_STACK_BYTES)
        try:
            for index in range(_THREADS):
                threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True).start()
        finally:
            threading.stack_size(before)

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` soon; it must not raise."""
        self._calls.put(function)

    def close(self) -> None:
        """End the threads once they have run what was handed in before."""
        for _ in range(_THREADS):
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class PromptReader:
    """Renders and tokenizes. Thread-safe; call it on a thread with a large stack, and `close` it at the end."""

    def __init__(self, vocabulary: Vocabulary, *, context_tokens: int, n_vocab: int, template: str | None) -> None:
        self._vocabulary = vocabulary
        self._context_tokens = context_tokens
        self._n_vocab = n_vocab
        source = template or vocabulary.chat_template
        self._renderer = (
            Renderer(source, bos_text=vocabulary.bos_text, eos_text=vocabulary.eos_text) if source else None
        )

    def start(self) -> None:
        """Start what the first chat request would have to wait for."""
        if self._renderer is not None:
            self._renderer.start()

    def close(self) -> None:
        """End the template's process; what another thread is rendering fails."""
        if self._renderer is not None:
            self._renderer.close()

    def read(self, prompt: Prompt) -> list[int]:
        """Return the prompt's tokens, at least one and fewer than the context holds.

        Raises BadRequest, ContextOverflow.
        """
        if isinstance(prompt, TokenPrompt):
            tokens = self._checked(prompt.tokens, "prompt")
        elif isinstance(prompt, TextPrompt):
            tokens = self.tokenize(prompt.text, add_special=True)
        else:
            tokens = self.tokenize(self._render(prompt), add_special=True)
        if not tokens:
            raise BadRequest("The prompt is empty.", param="prompt")
        if len(tokens) >= self._context_tokens:
            raise ContextOverflow(len(tokens), self._context_tokens)
        return tokens

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return the tokens of `text`. Raises ContextOverflow for one that could never fit, before reading it."""
        least_tokens = len(text) // _MAX_BYTES_PER_TOKEN
        if least_tokens > self._context_tokens:
            raise ContextOverflow(least_tokens, self._context_tokens)
        return self._vocabulary.tokenize(text, add_special=add_special)

    def answer(self, question: Question) -> tuple[int, ...] | str:
        """Return token ids for Encode, text for Decode and Render. Raises BadRequest, ContextOverflow."""
        if isinstance(question, Encode):
            return tuple(self.tokenize(question.text, add_special=question.add_special))
        if isinstance(question, Decode):
            pieces = map(self._vocabulary.token_spelling, self._checked(question.tokens, "tokens"))
            return b"".join(pieces).decode("utf-8", errors="replace")
        return self._render(question.prompt)

    def _render(self, prompt: ChatPrompt) -> str:
        if self._renderer is None:
            raise missing_template()
        text = self._renderer.render(prompt.messages, tools=prompt.tools, continue_last=prompt.continue_last)
        bos_text = self._vocabulary.bos_text
        if self._vocabulary.adds_bos and bos_text and text.startswith(bos_text):
            return text[len(bos_text) :]  # the tokenizer puts it there again
        return text

    def _checked(self, tokens: Sequence[int], param: str) -> list[int]:
        for token in tokens:
            if not 0 <= token < self._n_vocab:
                raise BadRequest(f"The {param} has token {token}, the model has {self._n_vocab:,} tokens.", param=param)
        return list(tokens)
