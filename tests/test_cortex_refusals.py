"""What the proxy learns from a refusal, on chat completions. (On Messages: test_messages_refusals.py.)"""

from __future__ import annotations

import time
from typing import Any

import pytest

from bundle.cortex.errors import MAX_CHARACTERS
from bundle.cortex.refusals import FIELDS, Refusals
from bundle.cortex.requests import BESIDE_REASONING
from bundle.cortex.thinking import DETAILS
from tests.cortex_rules import (
    FINAL_ASSISTANT,
    NO_PREFILL,
    THINKING_ALONE,
    THINKING_FIRST,
    THINKING_TEMPERATURE,
    TOOL_PAIRING,
)

JSON = dict[str, Any]
MODEL = "claude-sonnet-4-6"
MARKED = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]
BODY: JSON = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": MARKED},
        {"role": "user", "content": MARKED},
        {"role": "assistant", "content": "y"},
    ],
    "max_completion_tokens": 64_000,
    "temperature": 1,
    "top_p": 0.5,
    "reasoning": {"effort": "low"},
    "reasoning_effort": "low",
    "stop": ["x"],
    "response_format": {"type": "json_schema"},
    "tools": [{"type": "function", "function": {"name": name}} for name in ("temperature_probe", "mcp__thinking")],
    "tool_choice": "auto",
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.mark.parametrize(
    ("words", "learned"),
    [
        ("temperature is not supported for this model", BESIDE_REASONING),
        ("Unsupported parameter: 'top_p'", "top_p"),
        ("stop is not supported", "stop"),
        ("stop_sequences: Extra inputs are not permitted", "stop"),
        ("json schema response format is not supported", "response_format"),
        ("`tool_choice` is not yet supported", "tool_choice"),
        ("stream_options is not permitted", "stream_options"),
        ("reasoning_effort is not supported together with tools", "reasoning_effort"),
    ],
)
def test_a_field_that_an_answer_names_is_left_out_for_that_model(words: str, learned: str) -> None:
    refusals = Refusals()
    assert refusals.learn_chat(words, BODY) == [f"{learned} for {MODEL}"]
    assert refusals.chat == {MODEL: {learned}}
    assert refusals.learn_chat(words, {**BODY, "model": "claude-opus-5"}) != [], "another model is another matter"


@pytest.mark.parametrize(
    "words",
    [
        "invalid request parameters: messages.3: Invalid `signature` in `thinking` block",
        "messages.1: Invalid signature of the thinking",
        "Expected `thinking` or `redacted_thinking`, but found `text`",
        "messages.1.reasoning_details: Extra inputs are not permitted",
        "`thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified",
        THINKING_ALONE,
        THINKING_FIRST,
    ],
)
def test_thinking_that_was_sent_back_is_left_out_when_an_answer_is_about_it(words: str) -> None:
    refusals = Refusals()
    thinking = {"role": "assistant", "content": None, "tool_calls": [], DETAILS: [{"text": "t", "signature": "s"}]}
    sent = {"model": MODEL, "messages": [thinking], "reasoning": {"effort": "low"}}
    assert refusals.learn_chat(words, sent) == [f"{DETAILS} for {MODEL}"]
    assert refusals.chat == {MODEL: {DETAILS}}
    assert DETAILS not in str(refusals.learn_chat(words, BODY)), "nothing was sent back"


def test_an_answer_that_refuses_all_thinking_leaves_out_all_thinking() -> None:
    sent = {"model": MODEL, "messages": [{"role": "assistant", DETAILS: []}], "reasoning": {"effort": "low"}}
    assert Refusals().learn_chat("reasoning is not supported here", sent) == [f"reasoning for {MODEL}"]


@pytest.mark.parametrize("words", ["reasoning is not supported here", "thinking is not available", THINKING_FIRST])
def test_thinking_is_left_out_by_either_of_its_names(words: str) -> None:
    refusals = Refusals()
    sent = {key: value for key, value in BODY.items() if key != "reasoning_effort"}
    assert refusals.learn_chat(words, sent) == [f"reasoning for {MODEL}"]


def test_of_thinking_with_a_temperature_first_the_temperature_is_left_out_and_then_thinking() -> None:
    refusals = Refusals()
    sent = {key: value for key, value in BODY.items() if key != "reasoning_effort"}
    assert refusals.learn_chat(THINKING_TEMPERATURE, sent) == [f"{BESIDE_REASONING} for {MODEL}"]
    del sent["temperature"]
    assert refusals.learn_chat(THINKING_TEMPERATURE, sent) == [f"reasoning for {MODEL}"]
    del sent["reasoning"]
    assert refusals.learn_chat(THINKING_TEMPERATURE, sent) == [], "nothing is left: another try would be of no use"


def test_requests_that_were_under_way_together_teach_the_same_thing() -> None:
    refusals = Refusals()
    sent = {key: value for key, value in BODY.items() if key != "reasoning_effort"}
    assert refusals.learn_chat(THINKING_TEMPERATURE, sent) == refusals.learn_chat(THINKING_TEMPERATURE, sent) != []
    assert refusals.chat == {MODEL: {BESIDE_REASONING}}


def test_a_field_that_was_left_out_already_and_is_refused_again_is_not_tried_again() -> None:
    refusals = Refusals()
    words = "reasoning is not supported"
    sent = {key: value for key, value in BODY.items() if key != "reasoning_effort"}
    assert refusals.learn_chat(words, sent, before=()) != []
    assert refusals.learn_chat(words, sent, before={"reasoning"}) == []


def test_a_temperature_that_is_refused_alone_stays_beside_thinking() -> None:
    refusals = Refusals()
    sent = {key: value for key, value in BODY.items() if "reasoning" not in key}
    assert refusals.learn_chat("`temperature` is deprecated for this model", sent) == [f"temperature for {MODEL}"]
    assert refusals.chat == {MODEL: {"temperature"}}


@pytest.mark.parametrize(
    ("words", "roles"),
    [
        ("messages.0.content.0.cache_control: Extra inputs are not permitted", ["system"]),
        ("messages[1]: cache_control is not supported", ["user"]),
        ("cache_control is not supported for role user", ["user"]),
        ("cache points are not supported", ["system", "user"]),
        ("messages.99: cache_control is not permitted", ["system", "user"]),
    ],
)
def test_a_refused_mark_is_left_out_on_that_role(words: str, roles: list[str]) -> None:
    refusals = Refusals()
    assert refusals.learn_chat(words, BODY) == [f"cache_control on {role} for {MODEL}" for role in roles]
    assert refusals.chat[MODEL] == {f"cache_control {role}" for role in roles}


@pytest.mark.parametrize(
    "words",
    [
        # A value is the client's to change.
        "temperature: must be a number from 0 to 1",
        "`temperature` and `top_p` cannot both be specified for this model",
        "response_format: additionalProperties must be false",
        "tool_choice: must be none, auto, required or one of the tools",
        "reasoning.effort: must be low, medium or high",
        "the answer was rejected by the safety system while thinking",
        "tool 'mcp__sequential-thinking__x' has a schema that is not supported",
        "temperature_probe: a tool like this is not supported",
        TOOL_PAIRING,
        FINAL_ASSISTANT,
        NO_PREFILL,
        "all requests were throttled by remote service",
        "unknown model temperature",
        "not available in your region, thinking or not",
        "Invalid `signature` in `thinking` block",
        "max tokens of 200000 exceeded",
        "max tokens of 64000 exceeded",
        "tools.0.function.parameters.properties.temperature: invalid",
        "Invalid schema for function 'temperature': stop",
        "prompt is too long, thinking included",
        "something about nothing",
        "",
    ],
)
def test_what_is_about_something_else_teaches_nothing(words: str) -> None:
    refusals = Refusals()
    found = refusals.learn_chat(words, {key: BODY[key] for key in BODY if key != "stop"})
    assert found == []
    assert not any(refusals.chat.values())
    assert refusals.limits == {}


NATIVE: JSON = {
    "model": MODEL,
    "max_tokens": 64_000,
    "system": MARKED,
    "messages": [{"role": "user", "content": MARKED}],
    "thinking": {"type": "adaptive"},
    "temperature": 1,
    "output_config": {"effort": "low", "format": {"type": "json_schema"}},
    "tools": [{"name": "T", "input_schema": {"type": "object"}}],
}


@pytest.mark.parametrize(
    ("words", "learned"),
    [
        ("thinking.type: adaptive is not supported for model claude-sonnet-4-6", ["field thinking"]),
        ("`temperature` is deprecated for this model.", ["field temperature"]),
        (
            "cache_control is not supported",
            ["field messages.*.content.*.cache_control", "field system.*.cache_control"],
        ),
        ("thinking: Extra inputs are not permitted", ["field thinking"]),
        ("This model does not support the effort parameter.", ["field output_config.effort"]),
        ("temperature: must be 1", []),
        ("system: Extra inputs are not permitted", []),
        ("tools.0.custom.name: Extra inputs are not permitted", []),
    ],
)
def test_on_messages_a_field_is_left_out_by_other_words_too(words: str, learned: list[str]) -> None:
    refusals = Refusals()
    assert refusals.learn_messages(words, NATIVE, []) == [f"{one} for {MODEL}" for one in learned]
    assert refusals.learn_messages(words, {**NATIVE, "model": "claude-opus-5"}, []) == [
        f"{one} for claude-opus-5" for one in learned
    ]


@pytest.mark.parametrize("route", ["chat", "messages"])
@pytest.mark.parametrize("words", ["max tokens of 16384 exceeded", "max_tokens: 64000 > 16384, the most there is"])
def test_a_lower_limit_of_the_output_is_learnt(route: str, words: str) -> None:
    refusals = Refusals()
    sent = BODY if route == "chat" else {"model": MODEL, "messages": [], "max_tokens": 64_000}
    learned = refusals.learn_chat(words, sent) if route == "chat" else refusals.learn_messages(words, sent, [])
    assert learned == [f"more than 16384 output tokens for {MODEL}"]
    assert refusals.limits == {MODEL: 16_384}


def test_no_answer_takes_out_what_every_request_needs() -> None:
    assert not FIELDS.keys() & {"model", "messages", "tools", "stream", "max_tokens", "max_completion_tokens", "system"}
    assert Refusals().learn_chat("messages and model are not supported", {"model": MODEL, "messages": []}) == []


def test_a_text_without_end_takes_no_longer() -> None:
    def seconds(text: str) -> float:
        start = time.process_time()
        for _ in range(20):
            Refusals().learn_chat(text, BODY)
            Refusals().learn_messages(text, {"model": MODEL, "messages": [], "max_tokens": 5}, [])
        return time.process_time() - start

    text = "a.b-c." * (MAX_CHARACTERS // 6)
    assert seconds(text * 100) < 20 * seconds(text) + 0.2
