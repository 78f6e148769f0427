from __future__ import annotations

import ctypes
import queue
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from ggufdeploy.engine.preparation import DeepThreads, PromptReader
from ggufdeploy.engine.request import ChatMessage, ChatPrompt, Decode, Encode, Render, TextPrompt
from ggufdeploy.errors import BadRequest, ContextOverflow
from tests.fakes import BOS, END, FakeBackend

CHAT = ChatPrompt((ChatMessage("user", "hi"),))


@pytest.fixture
def reader() -> Iterator[Callable[..., PromptReader]]:
    """Return a function that makes readers of 64 tokens; they are closed afterwards."""
    made: list[PromptReader] = []

    def make(backend: FakeBackend, template: str | None = None) -> PromptReader:
        made.append(PromptReader(backend, context_tokens=64, n_vocab=258, template=template))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_begin_of_sequence_token_comes_once_although_template_and_tokenizer_both_add_it(reader):
    backend = FakeBackend(chat_template="{{ bos_token }}{{ messages[0].content }}")
    backend.adds_bos = True
    assert reader(backend).read(CHAT) == [BOS, *b"hi"]


def test_a_begin_of_sequence_text_stays_when_the_tokenizer_adds_none(reader):
    backend = FakeBackend(chat_template="{{ bos_token }}{{ messages[0].content }}")
    assert reader(backend).read(CHAT) == list(b"<s>hi")


def test_a_given_template_replaces_the_models(reader):
    assert reader(FakeBackend(), "[{{ messages[0].content }}]").read(CHAT) == list(b"[hi]")


def test_a_broken_template_fails_chat_and_not_plain_text(reader):
    broken = reader(FakeBackend(chat_template="{% if %}"))
    with pytest.raises(BadRequest, match="broken"):
        broken.read(CHAT)
    assert broken.read(TextPrompt("hi")) == list(b"hi")


def test_a_text_that_can_never_fit_is_refused_before_it_is_tokenized(reader, monkeypatch):
    backend = FakeBackend()
    monkeypatch.setattr(backend, "tokenize", lambda *_, **__: pytest.fail("it was tokenized"))
    with pytest.raises(ContextOverflow):
        reader(backend).read(TextPrompt("x" * 64_000))


def test_questions_are_answered_in_the_terms_of_the_vocabulary(reader):
    backend = FakeBackend()
    backend.adds_bos = True
    asked = reader(backend)
    assert asked.answer(Encode("hé")) == tuple("hé".encode())
    assert asked.answer(Encode("h", add_special=True)) == (BOS, ord("h"))
    assert asked.answer(Decode((BOS, *"hé".encode(), 0xFF, END))) == "<s>hé\ufffd</s>"
    assert asked.answer(Render(CHAT)) == "user:hi;"


@pytest.mark.parametrize("token", [258, -1])
def test_a_token_the_model_does_not_have_has_no_text(reader, token):
    with pytest.raises(BadRequest, match="258 tokens") as caught:
        reader(FakeBackend()).answer(Decode((1, token)))
    assert caught.value.param == "tokens"


@pytest.mark.skipif(sys.platform != "linux", reason="pthread_getattr_np is glibc's")
def test_the_threads_have_a_large_stack_and_others_keep_theirs():
    sizes: queue.SimpleQueue[int] = queue.SimpleQueue()
    threads = DeepThreads("test")
    threads.call(lambda: sizes.put(_stack_bytes()))
    assert sizes.get(timeout=10) >= 1 << 29
    assert threading.stack_size() == 0
    threads.close()


def _stack_bytes() -> int:
    """Ask the C library for the calling thread's stack size."""
    libc = ctypes.CDLL(None)
    attributes, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    libc.pthread_self.restype = ctypes.c_void_p
    libc.pthread_getattr_np.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    assert libc.pthread_getattr_np(libc.pthread_self(), attributes) == 0
    assert libc.pthread_attr_getstacksize(attributes, ctypes.byref(size)) == 0
    return size.value
