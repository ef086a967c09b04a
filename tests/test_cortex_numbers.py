"""Numbers and lines of an answer that no service should send: they cost no exception and make no false JSON."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from bundle.cortex.answers import ChatAnswer, EventLines, IncompleteAnswerError, MessagesAnswer, RequestFacts, parsed

ODD = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1E9999999",
    "-5",
    "true",
    '"12"',
    "1" + "0" * 30,
    "9" * 5000,
    "[1]",
    "{}",
    "null",
]
odd = pytest.mark.parametrize("number", ODD, ids=lambda number: str(number)[:12])


def strict(text: bytes | str) -> Any:
    """Read JSON as every other reader does: without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_an_odd_number_elsewhere_becomes_null() -> None:
    assert parsed('[NaN, -Infinity, 1E999, 1E3, 7, "NaN"]') == [None, None, None, 1000.0, 7, "NaN"]
    assert parsed("9" * 5000) is None
    with pytest.raises(ValueError, match="nested too deep"):
        parsed("[" * 100_000 + "]" * 100_000)


@pytest.mark.keeps("numbers")
@odd
def test_an_odd_number_in_a_usage_of_chat_completions_counts_as_none(number: str) -> None:
    usage = (
        f'{{"prompt_tokens": {number}, "completion_tokens": {number}, "total_tokens": {number}, '
        f'"prompt_tokens_details": {{"cached_tokens": {number}}}, "completion_tokens_details": {number}}}'
    )
    none = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    whole = f'{{"choices": [{{"message": {{"content": "a"}}}}], "created": 7, "usage": {usage}}}'
    answer = ChatAnswer(RequestFacts(limit=9)).answer(parsed(whole))
    assert strict(json.dumps(answer))["usage"] == none
    stream = ChatAnswer(RequestFacts(limit=9))
    events = [*stream.feed(b'{"choices": [{"delta": {"content": "a"}}]}')]
    events += stream.feed(f'{{"choices": [], "created": {number}, "usage": {usage}}}'.encode())
    events += stream.feed(b"[DONE]")
    assert [strict(event[6:]).get("usage") for event in events[:-1]][-1] == none


@odd
def test_a_usage_that_is_none_is_left_out(number: str) -> None:
    if number == "{}":
        return
    whole = f'{{"choices": [{{"message": {{"content": "a"}}}}], "usage": {number}}}'
    assert "usage" not in ChatAnswer(RequestFacts()).answer(parsed(whole))
    body = MessagesAnswer().answer(parsed(f'{{"content": [{{"text": "a"}}], "usage": {number}}}'))
    assert body["usage"] == {}


@pytest.mark.keeps("numbers")
@odd
def test_an_odd_number_in_a_usage_of_messages_counts_as_none(number: str) -> None:
    usage = (
        f'{{"input_tokens": {number}, "output_tokens": {number}, "cache_read_input_tokens": {number}, '
        f'"cache_creation": {{"ephemeral_5m_input_tokens": {number}}}, "service_tier": "standard"}}'
    )

    def check(cleaned: dict[str, Any]) -> None:
        counts = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens"), 0)
        nested = {"cache_creation": {"ephemeral_5m_input_tokens": 0}}
        assert cleaned == {**counts, **nested, "service_tier": "standard"}

    whole = f'{{"content": [{{"text": "a"}}], "stop_reason": "end_turn", "usage": {usage}}}'
    check(strict(json.dumps(MessagesAnswer().answer(parsed(whole))))["usage"])
    stream = MessagesAnswer()
    sent = list(stream.feed(f'{{"type": "message_start", "message": {{"usage": {usage}}}}}'.encode()))
    sent += stream.feed(b'{"type": "content_block_delta", "index": 0, "delta": {"text": "a"}}')
    sent += stream.feed(f'{{"type": "message_delta", "delta": {{}}, "odd": {number}, "usage": {usage}}}'.encode())
    events = [strict(line[6:]) for line in b"".join(sent).splitlines() if line.startswith(b"data: ")]
    check(events[0]["message"]["usage"])
    check(events[-1]["usage"])


def test_a_count_that_can_be_stays_as_it_is() -> None:
    usage = {"input_tokens": 3, "output_tokens": 10**6, "cache_creation": {"ephemeral_5m_input_tokens": 7}}
    usage |= {"service_tier": None, "server_tool_use": None}
    assert MessagesAnswer().answer({"content": [{"text": "a"}], "usage": dict(usage)})["usage"] == usage


@pytest.mark.keeps("answer-limit")
@pytest.mark.parametrize("end", [b"x", b"x\n"])
def test_a_line_without_an_end_is_an_error_at_its_bound(end: bytes) -> None:
    lines = EventLines()
    for _ in range(8 * 2**10):
        assert lines.feed(b"x" * 2**10) == []
    with pytest.raises(IncompleteAnswerError, match="a line of more than 8 MiB"):
        lines.feed(end)


def test_a_long_line_costs_time_in_proportion_to_its_length() -> None:
    def seconds(size: int) -> float:
        lines, began = EventLines(), time.process_time()
        for _ in range(size):
            lines.feed(b"x" * 1024)
        assert lines.feed(b"\n") == []
        return time.process_time() - began

    seconds(500)
    short, long = (min(seconds(size) for _ in range(5)) for size in (500, 5000))
    assert long < 40 * short


def test_lines_are_the_same_however_they_are_cut() -> None:
    text = b'event: a\ndata: {"x": 1}\r\n\ndata: 2\n: comment\n\nevent: ping\ndata: 3\n\ndata: 4'
    for size in range(1, len(text)):
        lines = EventLines()
        found = [data for at in range(0, len(text), size) for data in lines.feed(text[at : at + size])]
        assert [*found, *lines.end()] == [b'{"x": 1}', b"2", b"4"]
