"""Work on what others send grows in line with it: ten times the input never takes a hundred times as long."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bundle.cortex.contents import limit_images
from bundle.cortex.errors import MAX_CHARACTERS, explain, explain_failure, words_of
from bundle.cortex.marks import cache_marks
from bundle.cortex.messages import plain_messages, results_after_calls
from bundle.cortex.models import JSON, Limits, no_note
from bundle.cortex.refusals import Refusals
from bundle.cortex.requests import chat_request
from bundle.cortex.schemas import object_schema
from bundle.cortex.turns import one_call_per_turn
from bundle.errors import printable, redact

MARK = {"cache_control": {"type": "ephemeral"}}
TINY = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def best_time(work: Callable[[], object]) -> float:
    """The CPU time of the best of three, without the garbage collector: its work depends on what other tests left."""
    times = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            begun = time.process_time()
            work()
            times.append(time.process_time() - begun)
            if times[-1] > 1:  # too much for noise
                break
    finally:
        gc.enable()
    return min(times)


def chat_history(ids: Sequence[str]) -> list[JSON]:
    calls = [{"id": each, "type": "function", "function": {"name": "Read", "arguments": "{}"}} for each in ids]
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": each, "content": "ok"} for each in reversed(ids)),
    ]


def messages_history(ids: Sequence[str]) -> list[JSON]:
    uses = [{"type": "tool_use", "id": each, "name": "Read", "input": {}} for each in ids]
    return [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": uses},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": each, "content": []} for each in ids]},
    ]


def learn(words: str, sent: JSON) -> None:
    Refusals().learn_messages(words, sent, ())
    Refusals().learn_chat(words, {"messages": [], **sent}, ())


def ask(model: str) -> JSON:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "low"}
    return chat_request(body, family="openai", limits=Limits())[0]


def marked(number: int) -> list[JSON]:
    return [{"role": "user", "content": [{"type": "text", "text": "a", **MARK}] * number}]


# (a function, and what makes its input of a size)
TEXTS: dict[str, tuple[Callable[[str], object], str]] = {
    "token starts": (printable, "eyJ"),
    "token starts, redacted": (redact, "eyJ"),
    "token heads": (redact, "eyJa."),
    "one long word": (redact, "a"),
    "no healthy deployment": (lambda text: explain_failure(500, text), "model="),
    "a model that is not allowed": (lambda text: explain(403, text), "Model "),
    "a class name": (lambda text: explain_failure(500, text), "x"),
    "extra inputs": (lambda text: learn(text, {"model": "m"}), "a."),
    "one long field": (lambda text: learn(text, {"model": "m"}), "a"),
    "a tool without an end": (lambda text: learn(text + "not supported", {"temperature": 0}), "tool '"),
    "the name of a model": (lambda text: ask(text + "-chat"), "gpt-5"),
}
HISTORIES: dict[str, tuple[Callable[[Any], object], Callable[[int], Any]]] = {
    "calls and results": (one_call_per_turn, lambda n: chat_history([f"id{i}" for i in range(n)])),
    "calls of one id": (one_call_per_turn, lambda n: chat_history(["same"] * n)),
    "uses and results": (lambda h: results_after_calls(h, no_note), lambda n: messages_history(["same"] * n)),
    "messages of one role": (
        lambda h: plain_messages(h, no_note),
        lambda n: [{"role": "user", "content": "a"} for _ in range(4 * n)],
    ),
    "marked blocks": (cache_marks, marked),
    "marked blocks of the system": (cache_marks, lambda n: [{**marked(n)[0], "role": "system"}, *marked(n)]),
    "marked turns": (
        cache_marks,
        lambda n: [*marked(n), *({"role": "assistant", "content": "a", **MARK} for _ in range(n))],
    ),
    "marked calls": (cache_marks, lambda n: [{"role": "assistant", "content": None, **MARK} for _ in range(n)]),
    "images": (limit_images, lambda n: [{"role": "user", "content": [TINY] * n}]),
    "alternatives of a schema": (
        object_schema,
        lambda n: {"anyOf": [{"properties": {f"p{i}": {}}, "required": [f"p{i}"]} for i in range(n)]},
    ),
}


def grows_in_line(work: Callable[[Any], object], make: Callable[[int], Any]) -> bool:
    """Whether ten times the input takes about ten times as long: 40 is generous, a square would be 100."""
    small, large = make(1), make(10)
    return any(best_time(lambda: work(large)) < 40 * best_time(lambda: work(small)) + 0.002 for _ in range(3))


@pytest.mark.keeps("time-in-line")
@pytest.mark.parametrize(("work", "piece"), TEXTS.values(), ids=TEXTS)
def test_the_time_for_a_text_from_outside_grows_in_line_with_it(work: Callable[[str], object], piece: str) -> None:
    assert grows_in_line(work, lambda factor: piece * (factor * 6_000 // len(piece)))


@pytest.mark.keeps("time-in-line")
@pytest.mark.parametrize(("work", "make"), HISTORIES.values(), ids=HISTORIES)
def test_the_time_for_a_history_grows_in_line_with_it(
    work: Callable[[Any], object], make: Callable[[int], Any]
) -> None:
    assert grows_in_line(work, lambda factor: make(factor * 1_000))


def test_words_from_outside_are_one_short_line() -> None:
    for body in ('{"message": "a\\nb\\u001b[31m %s"}' % ("x" * 10_000), "a\nb" * 10_000):
        words = words_of(body)[1]
        assert len(words) <= MAX_CHARACTERS
        assert words.isprintable()
