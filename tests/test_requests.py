"""Requests as each model takes them (bundle/cortex/requests.py): length, thinking, temperature, fields."""

from __future__ import annotations

from typing import Any

import pytest

from bundle.cortex.models import JSON, Limits, family_of
from bundle.cortex.requests import BESIDE_REASONING, chat_request, stop_sequences
from tests.conversations import (
    CLAUDE,
    GPT,
    KEEP,
    LLAMA,
    MARK,
    assistant,
    cortex,
    marked,
    result,
    sent,
    shape,
    system,
    text,
    tool,
    user,
)


@pytest.mark.parametrize(
    ("choice", "stays"),
    [
        ("auto", True),
        ("none", True),
        ("required", True),
        ({"type": "function", "function": {"name": "Bash"}}, True),
        ({"type": "function", "function": {"name": "web_search"}}, False),
        ({"type": "function"}, False),
    ],
)
def test_a_choice_of_a_tool_stays_when_the_tool_does(choice: Any, stays: bool) -> None:
    out = cortex(user("x"), tools=[tool()], tool_choice=choice)
    assert out.get("tool_choice") == (choice if stays else None)
    assert "tool_choice" not in cortex(user("x"), tool_choice=choice)


@pytest.mark.parametrize(
    ("asked", "limit", "expected"),
    [
        ({"max_tokens": 32_000}, 64_000, {"max_tokens": 32_000}),
        ({"max_tokens": 128_000}, 64_000, {"max_tokens": 64_000}),
        ({"max_tokens": 200_000}, None, {"max_tokens": 131_072}),
        ({"max_tokens": 200_000}, 500_000, {"max_tokens": 131_072}),
        ({}, 64_000, {"max_tokens": 64_000}),
        ({"max_tokens": None}, 64_000, {"max_tokens": 64_000}),
        ({}, None, {}),
        ({"max_completion_tokens": 99_000}, 64_000, {"max_completion_tokens": 64_000}),
        ({"max_completion_tokens": 5, "max_tokens": 9}, None, {"max_completion_tokens": 5}),
    ],
)
def test_the_answers_length_is_within_the_models_limit(asked: JSON, limit: int | None, expected: JSON) -> None:
    out = cortex(user("x"), limits=Limits(max_output_tokens=limit), **asked)
    assert {key: value for key, value in out.items() if key.startswith("max_")} == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, None),
        ({"reasoning_effort": "none"}, None),
        ({"thinking": {"type": "adaptive"}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, "high"),
        ({"thinking": {"type": "adaptive"}, "reasoning_effort": "max"}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low"),
        ({"reasoning_effort": {"effort": "xhigh", "summary": "detailed"}}, "high"),
        ({"reasoning": {"effort": "minimal"}}, "low"),
    ],
)
def test_the_effort_arrives_in_the_models_own_field(asked: JSON, expected: str | None) -> None:
    claude = cortex(user("x"), temperature=1, top_p=0.9, **asked)
    assert claude.get("reasoning") == (expected and {"effort": expected})
    assert claude["temperature"] == 1
    assert ("top_p" in claude) == (expected is None)
    gpt = cortex(user("x"), model=GPT, temperature=1, **asked)
    assert gpt.get("reasoning_effort") == expected
    assert gpt["temperature"] == 1
    for out in (claude, gpt, cortex(user("x"), model=LLAMA, **asked)):
        assert not {"thinking", "output_config"} & out.keys()
    assert not {"reasoning", "reasoning_effort"} & cortex(user("x"), model=LLAMA, **asked).keys()


def test_only_a_gpt_that_reasons_is_told_an_effort() -> None:
    for model, with_tools, without in [
        ("openai-gpt-4.1", None, None),
        ("openai-gpt-5.2", "low", "low"),
        ("openai-gpt-5.6-terra", None, "low"),
        ("openai-gpt-5-6-luna", None, "low"),
        ("openai-1p-gpt-5.6-luna", None, "low"),
        ("openai-gpt-6-astra", "low", "low"),
        ("openai-gpt-5-chat", None, None),
        ("openai-gpt-5.1-chat", None, None),
        ("openai-gpt-5.6", None, "low"),
        ("openai-o4-mini", "low", "low"),
    ]:
        assert cortex(user("x"), model=model, reasoning_effort="low").get("reasoning_effort") == without
        out = cortex(user("x"), model=model, reasoning_effort="low", tools=[tool()])
        assert out.get("reasoning_effort") == with_tools


THINK: JSON = {"thinking": {"type": "adaptive"}, "tools": [tool()]}


@pytest.mark.parametrize(
    ("messages", "more", "thinks"),
    [
        ([user("x")], THINK, True),
        ([user("x"), assistant("y"), user("z")], THINK, True),
        ([user("x"), assistant(None, "a"), result("a"), assistant("y"), user("z")], THINK, True),
        ([user("x"), assistant(None, "a"), result("a")], THINK, False),
        ([user("x"), assistant(None, "a"), result("a"), assistant(""), user("z")], THINK, False),
        ([user("x"), assistant("{")], {"thinking": {"type": "adaptive"}}, False),
        ([user("x")], {**THINK, "tool_choice": "required"}, False),
        ([user("x")], {**THINK, "tool_choice": {"type": "function", "function": {"name": "Bash"}}}, False),
        ([user("x")], {**THINK, "tool_choice": "auto"}, True),
    ],
)
def test_claude_is_asked_to_think_only_where_it_may(messages: list[JSON], more: JSON, thinks: bool) -> None:
    assert ("reasoning" in cortex(*messages, **more)) == thinks


@pytest.mark.parametrize("asked", [None, 0.2, 1])
def test_thinking_goes_out_with_the_one_temperature_that_it_takes(asked: float | None) -> None:
    for model in (CLAUDE, "openai/claude-opus-4-7"):
        more: JSON = {} if asked is None else {"temperature": asked}
        out = cortex(user("x"), model=model, thinking={"type": "adaptive"}, max_tokens=4000, top_p=0.5, **more)
        assert out["reasoning"] == {"effort": "low"}
        assert out["temperature"] == 1
        assert "top_p" not in out


@pytest.mark.parametrize(
    ("room", "effort"), [(4096, "low"), (4097, "low"), (16_385, "medium"), (32_000, "high"), (None, "high")]
)
def test_an_effort_leaves_room_for_an_answer(room: int | None, effort: str) -> None:
    out = cortex(user("x"), thinking={"type": "enabled", "budget_tokens": 31_999}, max_tokens=room)
    assert out["reasoning"] == {"effort": effort}


@pytest.mark.parametrize("room", [1, 1024])
def test_an_answer_too_short_for_any_thinking_is_not_asked_to_think(room: int) -> None:
    assert "reasoning" not in cortex(user("x"), thinking={"type": "adaptive"}, max_tokens=room)
    assert "reasoning" in cortex(user("x"), thinking={"type": "adaptive"}, max_completion_tokens=1025)


@pytest.mark.parametrize(
    ("model", "stays"),
    [("claude-opus-4-6", True), ("claude-opus-4-7", False), ("claude-sonnet-5", False), ("openai-gpt-5", True)],
)
def test_a_temperature_is_sent_only_where_the_model_accepts_one(model: str, stays: bool) -> None:
    out = cortex(user("x"), model=f"openai/{model}", temperature=0.2, top_p=0.9)
    assert ("temperature" in out) == ("top_p" in out) == stays
    out = cortex(user("x"), model=f"openai/{model}", temperature=1, top_p=0.9)
    assert (out["temperature"], "top_p" in out) == (1, stays)


@pytest.mark.parametrize(
    ("model", "added"), [("claude-sonnet-4-5", False), ("claude-sonnet-4-6", True), ("claude-opus-5", True)]
)
def test_an_answer_that_was_begun_is_asked_for_by_the_user_where_claude_takes_no_prefill(
    model: str, added: bool
) -> None:
    out = sent(user("x"), assistant("{"), model=f"openai/{model}")
    assert shape(out) == ["user", "assistant", *(["user"] if added else [])]
    assert sent(user("x"), assistant("{"), model=GPT)[-1]["role"] == "assistant"


REFUSED_FIELDS: dict[str, JSON] = {
    "reasoning": {"thinking": {"type": "adaptive"}},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "stop": {"stop": ["x"]},
    "response_format": {"response_format": {"type": "json_schema", "json_schema": {}}},
    "tool_choice": {"tools": [tool()], "tool_choice": "auto"},
    "stream_options": {"stream": True},
}


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_a_refused_field_is_no_longer_sent_and_is_named(name: str) -> None:
    body = {"model": CLAUDE, "messages": [user("x")], **REFUSED_FIELDS[name]}
    assert name in chat_request(body, family="claude", limits=Limits())[0]
    out, _, left_out = chat_request(body, family="claude", limits=Limits(), refused={name, "logit_bias"})
    assert name not in out
    assert left_out == ([] if name == "stream_options" else [name])


def test_a_refused_temperature_keeps_the_thinking_and_refused_thinking_keeps_the_temperature() -> None:
    body = {"model": CLAUDE, "messages": [user("x")], "thinking": {"type": "adaptive"}, "temperature": 0.3}
    out, _, _ = chat_request(body, family="claude", limits=Limits(), refused={BESIDE_REASONING})
    assert (out.get("reasoning"), out.get("temperature")) == ({"effort": "medium"}, None)
    out, _, _ = chat_request(body, family="claude", limits=Limits(), refused={"temperature"})
    assert (out.get("reasoning"), out.get("temperature")) == ({"effort": "medium"}, 1)
    out, _, _ = chat_request(body, family="claude", limits=Limits(), refused={"reasoning"})
    assert (out.get("reasoning"), out.get("temperature")) == (None, 0.3)


def test_marks_that_a_model_has_refused_on_a_role_are_no_longer_sent() -> None:
    messages = [system(text("s", **MARK)), user(text("u", **MARK))]
    body = {"model": CLAUDE, "messages": messages}
    out, _, left_out = chat_request(body, family="claude", limits=Limits(), refused={"cache_control user"})
    assert marked(out["messages"]) == [(0, 0)]
    assert left_out == ["cache_control user"]


def test_only_known_fields_are_sent_and_what_is_dropped_is_named() -> None:
    taken = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["."], "custom_llm_provider": "openai"}
    dropped = {"service_tier": "auto", "store": False, "user": "me", "parallel_tool_calls": False, "top_k": 3}
    body = {"model": CLAUDE, "messages": [user("x")], "thinking": None, **taken, **dropped, "web_search_options": {}}
    out, notes, _ = chat_request(body, family="claude", limits=Limits(), keep=KEEP)
    assert out == {"model": CLAUDE, "messages": [user("x")], **taken}
    assert notes == [f"field {name} dropped" for name in (*dropped, "web_search_options")]


def test_at_most_four_stop_sequences_are_sent() -> None:
    notes: list[str] = []
    assert stop_sequences({"stop": ["a", "", "b", "c", "d", "e"]}, notes.append) == {"stop": ["a", "b", "c", "d"]}
    assert notes == ["stop sequences after the fourth dropped"]
    assert cortex(user("x"), stop="a")["stop"] == ["a"]
    assert "stop" not in cortex(user("x"), stop=[""])


def test_claude_is_not_asked_for_a_json_object() -> None:
    json_object, schema = {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    assert "response_format" not in cortex(user("x"), response_format=json_object)
    assert cortex(user("x"), response_format=schema)["response_format"] == schema
    assert cortex(user("x"), model=GPT, response_format=json_object)["response_format"] == json_object


def test_a_stream_always_asks_for_its_usage() -> None:
    assert cortex(user("x"), stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in cortex(user("x"), stream=False, stream_options={"include_usage": True})


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("openai/claude-sonnet-4-5", "claude"),
        ("claude-4-sonnet", "claude"),
        ("openai/openai-gpt-5", "openai"),
        ("openai-gpt-4.1", "openai"),
        ("openai/llama4-maverick", "other"),
        ("snowflake-llama-3.3-70b", "other"),
        ("gemini-3-pro", "other"),
    ],
)
def test_a_models_family_is_in_its_name(model: str, family: str) -> None:
    assert family_of(model) == family
