"""Cortex's answers as the OpenAI SDK and LiteLLM get them: a line of the contract is a test."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from bundle.cortex.answers import (
    ChatAnswer,
    EventLines,
    IncompleteAnswerError,
    MessagesAnswer,
    RequestFacts,
    fix_answer,
)
from bundle.cortex.usage import openai_usage

JSON = dict[str, Any]
CALL = {"id": "toolu_bdrk_01a", "type": "function", "function": {"name": "Bash", "arguments": '{"command":"ls"}'}}
THOUGHT = {"type": "reasoning.text", "format": "anthropic-claude-v1", "id": "reasoning-text-1", "index": 0}


def whole(message: JSON, usage: JSON | None = None, reason: str = "") -> JSON:
    """An answer of Chat Completions as Cortex gives it for Claude."""
    message = {"role": "assistant", "content": "", "refusal": "", "tool_calls": None, **message}
    body = {"id": "", "model": "claude", "choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    return {**body, "usage": usage} if usage else body


def usage_of(prompt: int, completion: int, cached: int = 0, total: int | None = None) -> JSON:
    total = prompt + cached + completion if total is None else total
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return {**counts, "prompt_tokens_details": {"cached_tokens": cached}}


def only(body: JSON) -> JSON:
    (choice,) = body["choices"]
    return dict(choice)


# --------------------------------------------------------------------------------------------------------- not streamed


@pytest.mark.parametrize(
    ("message", "completion", "limit", "reason"),
    [
        ({"content": "hello"}, 5, 100, "stop"),
        ({"content": "hello"}, 100, 100, "length"),
        ({"content": "hello"}, 100, None, "stop"),
        ({"tool_calls": [CALL]}, 5, 100, "tool_calls"),
        ({"tool_calls": [CALL]}, 100, 100, "length"),
    ],
)
def test_the_reason_that_cortex_leaves_out_is_worked_out(
    message: JSON, completion: int, limit: int | None, reason: str
) -> None:
    answer = fix_answer(whole(message, usage_of(7, completion)), RequestFacts(limit))
    assert only(answer)["finish_reason"] == reason


def test_a_reason_that_is_there_stays() -> None:
    assert only(fix_answer(whole({"content": "a"}, reason="stop"), RequestFacts(1)))["finish_reason"] == "stop"


def test_empty_fields_are_no_content() -> None:
    message = only(fix_answer(whole({"tool_calls": [CALL]}), RequestFacts()))["message"]
    assert message == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_a_call_without_arguments_has_an_empty_object() -> None:
    call = {**CALL, "function": {"name": "TaskList", "arguments": ""}}
    message = only(fix_answer(whole({"tool_calls": [call]}), RequestFacts()))["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_thinking_comes_with_its_signature() -> None:
    details = [{**THOUGHT, "text": "hm", "signature": "sig"}]
    message = only(fix_answer(whole({"content": "a", "reasoning_details": details}), RequestFacts()))["message"]
    assert message["thinking_blocks"] == [{"type": "thinking", "thinking": "hm", "signature": "sig"}]
    assert "reasoning_details" not in message


def test_the_prompt_includes_what_was_cached() -> None:
    # The one call that was recorded from the real service: prompt 7, cached 4805, completion 6, total 4818.
    assert openai_usage(usage_of(7, 6, 4805))["prompt_tokens"] == 4812


def test_a_usage_that_is_right_already_stays() -> None:
    right = usage_of(4812, 6, 4805, total=4818)
    assert openai_usage(right) == right
    assert openai_usage(None) == {}


@pytest.mark.parametrize("body", [{"message": "what"}, {"choices": [{}]}, {"choices": None}, {"choices": []}])
def test_what_is_no_answer_is_said_to_be_none(body: JSON) -> None:
    with pytest.raises(IncompleteAnswerError):
        fix_answer(body, RequestFacts())


# ------------------------------------------------------------------------------------------------------------- streamed

HEAD = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": "claude"}


def delta(**fields: Any) -> bytes:
    return json.dumps({**HEAD, "choices": [{"index": 0, "delta": {"role": "assistant", **fields}}]}).encode()


def counted(usage: JSON) -> bytes:
    return json.dumps({**HEAD, "choices": [], "usage": usage}).encode()


def fixed(events: Iterable[bytes], limit: int | None = 100) -> list[Any]:
    """The events after the repair, parsed; `[DONE]` as it is."""
    fix = ChatAnswer(RequestFacts(limit))
    lines = b"".join([out for event in events for out in fix.feed(event)] + list(fix.end()))
    data = [line.removeprefix(b"data: ") for line in lines.split(b"\n\n") if line]
    return [event if event == b"[DONE]" else json.loads(event) for event in data]


def reasons(events: list[Any]) -> list[str]:
    found = [choice.get("finish_reason") for event in events if event != b"[DONE]" for choice in event["choices"]]
    return [reason for reason in found if reason]


@pytest.mark.parametrize(
    ("fields", "completion", "reason"),
    [
        ({"content": "hello"}, 5, "stop"),
        ({"content": "hello"}, 100, "length"),
        ({"tool_calls": [{"index": 0, **CALL}]}, 5, "tool_calls"),
        ({"tool_calls": [{"index": 0, **CALL}]}, 100, "length"),
    ],
)
def test_a_stream_gets_its_reason_before_its_numbers(fields: JSON, completion: int, reason: str) -> None:
    events = fixed([delta(content="first"), delta(**fields), counted(usage_of(7, completion, 50)), b"[DONE]"])
    assert reasons(events) == [reason]
    assert reasons(events[-3:-2]) == [reason]
    assert events[-2]["usage"]["prompt_tokens"] == 57
    assert events[-1] == b"[DONE]"


def test_at_least_one_token_of_a_prompt_is_not_from_the_cache() -> None:
    # Otherwise Claude Code would add the estimate of the stream's first event to the tokens from the cache.
    for usage in (usage_of(0, 5, 50), {**usage_of(0, 5, 50), "prompt_tokens": 20}):
        assert fixed([delta(content="a"), counted(usage), b"[DONE]"])[-2]["usage"]["prompt_tokens"] == 51


def test_only_what_openai_s_schema_has_and_somebody_reads_is_passed_on() -> None:
    odd = {"novelty": {"a": [1]}, "logprobs": {"content": None}, "annotations": None, "audio": {"data": ""}}
    call = {**CALL, "custom": {"input": "", "name": ""}, "novelty": 1}
    answer = whole({"content": "a", "tool_calls": [call], "function_call": {"arguments": "", "name": ""}, **odd})
    answer["choices"][0] |= odd
    fixed_answer = fix_answer({**answer, **odd, "service_tier": "", "usage": usage_of(7, 5)}, RequestFacts())
    assert fixed_answer == {
        "id": "",
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "tool_calls": [CALL]},
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }
    event = json.loads(delta(tool_calls=[{"index": 0, **call}], content="", refusal="", **odd))
    event["choices"][0] |= odd
    (first, *_) = fixed([json.dumps({**event, **odd}).encode(), b"[DONE]"])
    choice = {"role": "assistant", "tool_calls": [{"index": 0, **CALL}]}
    assert first == {**HEAD, "choices": [{"index": 0, "delta": choice, "finish_reason": None}]}


def test_an_answer_without_a_model_s_name_gets_the_one_that_was_asked() -> None:
    answer = fix_answer({**whole({"content": "a"}), "model": ""}, RequestFacts(model="openai-gpt-5"))
    assert answer["model"] == "openai-gpt-5"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("completion", "limit", "stops", "empty"),
    [(0, 100, False, True), (5, 100, False, True), (100, 100, False, False), (0, 100, True, False)],
)
def test_an_answer_with_neither_text_nor_call_is_none(
    stream: bool, completion: int, limit: int, stops: bool, empty: bool
) -> None:
    facts = RequestFacts(limit, stops)
    thought = [{**THOUGHT, "text": "hm"}]

    def read() -> object:
        if not stream:
            return fix_answer(whole({"reasoning_details": thought}, usage_of(7, completion)), facts)
        fix = ChatAnswer(facts)
        events = [delta(content="", reasoning_details=thought), delta(content=""), counted(usage_of(7, completion))]
        return [out for event in [*events, b"[DONE]"] for out in fix.feed(event)]

    if empty:
        with pytest.raises(IncompleteAnswerError, match="without content"):
            read()
        with pytest.raises(IncompleteAnswerError, match="without content"):
            fix_answer(whole({"reasoning_details": thought}, reason="tool_calls"), facts)
    else:
        assert read()


def test_a_stream_of_its_end_only_is_no_answer() -> None:
    with pytest.raises(IncompleteAnswerError, match="without content"):
        fixed([b"[DONE]"])


def test_a_refusal_in_pieces_arrives_whole_and_says_what_it_is() -> None:
    events = fixed([delta(refusal="I can"), delta(refusal="not do"), delta(refusal=" that."), b"[DONE]"])
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(one.get("content", "") for one in deltas) == "I cannot do that."
    assert reasons(events) == ["content_filter"]
    message = only(fix_answer(whole({"refusal": "I cannot."}, reason="stop"), RequestFacts()))["message"]
    assert message == {"role": "assistant", "content": None, "refusal": "I cannot."}


def test_a_service_s_own_error_in_a_stream_is_kept_for_who_explains_it() -> None:
    with pytest.raises(IncompleteAnswerError) as error:
        fixed([b'{"message": "GOAWAY received", "code": "392606"}'])
    assert json.loads(error.value.body) == {"message": "GOAWAY received", "code": "392606"}
    assert fixed([delta(content="a"), b"{}", b'{"type": "ping"}', b'{"status": "busy"}', b"[DONE]", b"{}", b"odd"])
    with pytest.raises(IncompleteAnswerError) as error:
        fixed([b'{"error_code": "392606", "error": {"message": "gone"}}'])
    assert json.loads(error.value.body) == {"error_code": "392606", "error": {"message": "gone"}}


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_stream_s_lines_are_read_however_they_are_cut_and_ended(size: int) -> None:
    said = [
        b": hello",
        b"data:",
        b"event: ping\ndata: {}",
        b"data: a\r\n\r",
        b"event: message\ndata:b",
        b"id: 3\ndata: c",
    ]
    text, lines = b"\n\n".join(said), EventLines()
    found = [data for at in range(0, len(text), size) for data in lines.feed(text[at : at + size])]
    assert [*found, *lines.end()] == [b"a", b"b", b"c"]
    assert lines.end() == []


def test_text_that_talks_about_usage_is_still_text() -> None:
    words = 'its "usage": {"total_tokens": 5}'
    events = fixed([delta(content=words), b"[DONE]"])
    assert events[0]["choices"][0]["delta"]["content"] == words
    assert not [event for event in events[:-1] if "usage" in event]


def test_a_signature_comes_after_its_thinking_in_an_event_of_its_own() -> None:
    events = fixed(
        [
            delta(content="", reasoning_details=[{**THOUGHT, "text": "h"}]),
            delta(content="", reasoning_details=[{**THOUGHT, "text": "m", "signature": "sig"}]),
            delta(content="so"),
            b"[DONE]",
        ]
    )
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(one.get("reasoning_content", "") for one in deltas) == "hm"
    (signed,) = [one["thinking_blocks"][0]["signature"] for one in deltas if "thinking_blocks" in one]
    assert signed == "sig"
    assert [index for index, one in enumerate(deltas) if "thinking_blocks" in one] == [2]


def test_a_stream_of_openai_s_stays_as_it_is() -> None:
    last = {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    events = fixed([delta(content="a"), json.dumps(last).encode(), counted(usage_of(7, 5)), b"[DONE]"])
    assert reasons(events) == ["length"]


def test_a_stream_that_ends_with_its_numbers_is_whole_without_a_word() -> None:
    events = fixed([delta(content="a"), counted(usage_of(7, 5))])
    assert (reasons(events), events[-1]) == (["stop"], b"[DONE]")


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([delta(content="a")], "ended in the middle"),
        ([], "ended in the middle"),
        ([delta(content="a"), b'{"choices": [{"del'], "not JSON"),
        ([b"[]"], "not JSON"),
        ([delta(content="a"), b'{"message": "internal error", "code": "1"}'], "internal error"),
        ([delta(content="a"), b'{"error": {"message": "out of luck"}}'], "out of luck"),
    ],
)
def test_a_stream_that_breaks_off_is_never_a_short_answer(events: list[bytes], words: str) -> None:
    with pytest.raises(IncompleteAnswerError, match=words):
        fixed(events)


def test_the_limit_is_read_under_both_names() -> None:
    assert RequestFacts.of({"max_tokens": 5}) == RequestFacts.of({"max_completion_tokens": 5}) == RequestFacts(5)
    assert RequestFacts.of({}) == RequestFacts(None)
    assert RequestFacts.of({"model": "openai/a-b", "stop": ["x"]}) == RequestFacts(None, True, "a-b")


def test_an_answer_of_more_parts_than_any_model_gives_is_an_error() -> None:
    many = [{**CALL, "id": str(number)} for number in range(1_001)]
    with pytest.raises(IncompleteAnswerError, match="more than 1000 parts"):
        fix_answer(whole({"tool_calls": many}), RequestFacts())
    with pytest.raises(IncompleteAnswerError, match="more than 1000 parts"):
        fixed([delta(tool_calls=many)])
    with pytest.raises(IncompleteAnswerError, match="more than 1000 parts"):
        MessagesAnswer().answer({"content": [{"type": "text", "text": "a"}] * 1_001})
