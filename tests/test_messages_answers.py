"""An answer on the Messages route is whole, or it is an error (`MessagesAnswer` in bundle/cortex/answers.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bundle.cortex.answers import IncompleteAnswerError, MessagesAnswer


def test_an_answer_is_whole_with_its_last_event_only() -> None:
    stream = MessagesAnswer()
    data = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}'
    assert list(stream.feed(data)) == [b"event: content_block_delta\ndata: " + data + b"\n\n"]
    with pytest.raises(IncompleteAnswerError, match="in the middle"):
        list(stream.end())
    assert list(stream.feed(b'{"type":"message_stop"}'))
    assert list(stream.end()) == []


SAID = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}'
THOUGHT = b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"a"}}'
CALLED = b'{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"a","name":"T","input":{}}}'


def stopped(reason: str | None) -> bytes:
    return json.dumps({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}}).encode()


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], "end_turn"),
        ([], "tool_use"),
        ([], None),
        ([THOUGHT], "end_turn"),
        ([b'{"type":"content_block_start","content_block":{"type":"text"}}'], "end_turn"),
    ],
)
def test_an_answer_with_neither_text_nor_call_is_none(events: list[bytes], reason: str | None) -> None:
    stream = MessagesAnswer()
    for event in [*events, stopped(reason)]:
        list(stream.feed(event))
    with pytest.raises(IncompleteAnswerError, match="without content"):
        list(stream.feed(b'{"type":"message_stop"}'))
    blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": ""}]
    with pytest.raises(IncompleteAnswerError, match="without content"):
        MessagesAnswer().answer({"content": blocks, "stop_reason": reason})


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (SAID, "end_turn"),
        (CALLED, "tool_use"),
        (THOUGHT, "max_tokens"),
        (THOUGHT, "stop_sequence"),
        (THOUGHT, "refusal"),
    ],
)
def test_an_answer_that_something_explains_passes(event: bytes, reason: str) -> None:
    stream = MessagesAnswer()
    for data in (event, stopped(reason), b'{"type":"message_stop"}'):
        assert list(stream.feed(data))
    assert list(stream.end()) == []


@pytest.mark.parametrize("data", [b"{}", b"[DONE]", b'{"status": "busy"}'])
def test_events_without_meaning_and_events_after_the_end_are_left_out(data: bytes) -> None:
    stream = MessagesAnswer()
    sent = [
        event for each in (data, SAID, data, b'{"type":"message_stop"}', data, b"odd") for event in stream.feed(each)
    ]
    assert len(sent) == 2
    assert list(stream.end()) == []


ERROR = b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy", "code": "392606"}}'


@pytest.mark.parametrize("data", [b'{"message": "inference timed out"}', b'{"typ', b"[]", ERROR])
def test_what_is_no_event_of_a_message_is_never_sent_on(data: bytes) -> None:
    with pytest.raises(IncompleteAnswerError):
        list(MessagesAnswer().feed(data))


@pytest.mark.parametrize("answer", [{"message": "oh"}, {"content": None}, [], None, "text"])
def test_what_is_no_message_is_no_answer(answer: Any) -> None:
    with pytest.raises(IncompleteAnswerError):
        MessagesAnswer().answer(answer)
