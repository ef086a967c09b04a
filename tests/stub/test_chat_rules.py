"""The rules of Chat Completions: what is refused and in which words, what is accepted, and each switch of `Options`.

A line of the contract (docs/cortex.md) is a row of a table here, or a test with its name.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests import cortex_rules as rules
from tests.cortex_rules import JSON, BadRequest, Options, check_chat, check_messages, thinking_signature
from tests.stub.sending import (
    GPT,
    LLAMA,
    LOW,
    MARKED,
    PIXEL,
    SYSTEM,
    USER,
    calls,
    chat,
    image,
    parts,
    result,
    said,
    thought,
    tool,
)

REFUSED: dict[str, tuple[JSON, str]] = {
    "max_tokens": (chat(max_tokens=5), "max_tokens is deprecated in favor of max_completion_tokens"),
    "service_tier": (chat(service_tier="auto"), "service_tier"),
    "store": (chat(store=False), "store"),
    "a file part": (parts({"type": "file", "file": {"file_id": "x"}}), "file is not supported"),
    "json_object on Claude": (
        chat(response_format={"type": "json_object"}),
        "json object response format is not supported",
    ),
    "an unknown model": (chat(model="claude-nobody-9"), "unknown model claude-nobody-9"),
    "a date suffix": (chat(model="claude-sonnet-4-5-20250929"), "unknown model claude-sonnet-4-5-20250929"),
    "more than the model's limit": (chat(max_completion_tokens=64_001), "max tokens of 64000 exceeded"),
    "more than any limit": (chat(model="openai-gpt-5", max_completion_tokens=131_073), "max tokens of 128000"),
    "parallel calls": (said(USER, calls("a", "b"), result("a"), result("b")), rules.TOOL_PAIRING),
    "a result without its call": (said(USER, result("a")), rules.TOOL_PAIRING),
    "a result twice": (said(USER, calls("a"), result("a"), result("a")), rules.TOOL_PAIRING),
    "a call without its result": (said(USER, calls("a"), USER), rules.TOOL_PAIRING),
    "a last call without its result": (said(USER, calls("a")), rules.TOOL_PAIRING),
    "GPT: a call without its result": (
        said(USER, calls("a", "b"), result("a"), USER, result("b"), model=GPT),
        rules.TOOL_PAIRING,
    ),
    "a last assistant with tools": (
        said(USER, {"role": "assistant", "content": "so"}, tools=[tool()]),
        rules.FINAL_ASSISTANT,
    ),
    "an empty text block": (parts({"type": "text", "text": ""}), "non-empty"),
    "an empty system text": (said({"role": "system", "content": ""}, USER), "non-empty"),
    "an empty tool result": (said(USER, calls("a"), result("a", "")), "non-empty"),
    "an empty content list": (parts(), "must not be empty"),
    "five marks": (parts(*[MARKED] * 5), "A maximum of 4 blocks with cache_control"),
    "five marks, one ignored": (
        said({"role": "user", "content": [MARKED] * 4}, {**calls("a"), "cache_control": {}}, result("a")),
        "A maximum of 4",
    ),
    "21 images": (parts(*[image()] * 21), "too many images"),
    "an image by address": (parts(image("https://example.com/a.png")), "only base64 data URLs"),
    "a PDF as an image": (parts(image(f"data:application/pdf;base64,{PIXEL}")), "unsupported media type"),
    "an image that is no base64": (parts(image("data:image/png;base64,%%%")), "not base64"),
    "an image in a tool result": (said(USER, calls("a"), result("a", [image()])), "not supported for role tool"),
    "a server tool": (chat(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "only function"),
    "tools on Llama": (chat(model=LLAMA, tools=[tool()]), "tools are not supported for model llama4-maverick"),
    "a tool with a space": (chat(tools=[tool("a b")]), "should match pattern"),
    "a tool name of 65 letters": (chat(tools=[tool("a" * 65)]), "should match pattern"),
    "a tool twice": (chat(tools=[tool(), tool()]), "must be unique"),
    "a schema that is no object": (chat(tools=[tool(type="string")]), "Input should be 'object'"),
    "a schema with a choice on top": (chat(tools=[tool(anyOf=[])]), "does not support oneOf, allOf, or anyOf"),
    "a schema with an odd key": (chat(tools=[tool(properties={"a b": {}})]), "Property keys should match"),
    "a schema of draft 4": (
        chat(tools=[tool(properties={"a": {"minimum": 0, "exclusiveMinimum": True}})]),
        "tools.0.function.parameters: JSON schema is invalid. It must match JSON Schema draft 2020-12",
    ),
    "GPT: a schema of draft 7": (
        chat(model=GPT, tools=[tool(properties={"a": {"type": "array", "items": []}})]),
        "Invalid schema for function 'Bash': [] is not of type 'object', 'boolean'",
    ),
    "GPT: a choice on top": (chat(model=GPT, tools=[tool(enum=[])]), "'enum'/'not' at the top level"),
    "GPT: no object": (chat(model=GPT, tools=[tool(type="array")]), "must be a JSON Schema of 'type: \"object\"'"),
    **{
        f"GPT: an array without items, {name}": (
            chat(model=GPT, tools=[tool(properties={"a": array})]),
            "array schema missing items",
        )
        for name, array in {
            "plain": {"type": "array"},
            "or null": {"type": ["array", "null"]},
            "tuple": {"type": "array", "prefixItems": [{}]},
            "named default": {"properties": {"default": {"type": "array"}}},
        }.items()
    },
    "GPT: a pattern of JavaScript": (
        chat(model=GPT, tools=[tool(properties={"a": {"pattern": "\\p{L}"}})]),
        "is not a 'regex'",
    ),
    "GPT: lookaround": (
        chat(model=GPT, tools=[tool(properties={"a": {"pattern": "^(?!b)"}})]),
        "regex lookaround is not supported. Found at $.properties.a",
    ),
    "GPT: 129 tools": (
        chat(model=GPT, tools=[tool(f"t{number}") for number in range(129)]),
        "Expected an array with maximum length 128, but got an array with length 129 instead",
    ),
    "no tools in tools": (chat(tools=[]), "tools: must not be empty"),
    "a choice without tools": (chat(tool_choice="auto"), "only allowed when tools"),
    "a choice that is not there": (
        chat(tools=[tool()], tool_choice={"type": "function", "function": {"name": "Read"}}),
        "tool_choice",
    ),
    "gpt-5.6 with tools and effort": (
        chat(model="openai-gpt-5.6-sol", tools=[tool()], reasoning_effort="low"),
        "not supported together with tools",
    ),
    "reasoning with a temperature": (chat(reasoning=LOW, temperature=0.5), rules.THINKING_TEMPERATURE),
    "reasoning without a temperature": (chat(reasoning=LOW), rules.THINKING_TEMPERATURE),
    "reasoning of an unknown effort": (chat(reasoning={"effort": "max"}, temperature=1), "low, medium or high"),
    "reasoning by effort and by tokens": (chat(reasoning={**LOW, "max_tokens": 2000}, temperature=1), "either"),
    "reasoning with a forced tool": (
        chat(reasoning=LOW, temperature=1, tools=[tool()], tool_choice="required"),
        rules.THINKING_FORCED,
    ),
    "reasoning after calls without it": (
        said(USER, calls("a"), result("a"), reasoning=LOW, temperature=1),
        rules.THINKING_FIRST,
    ),
    "thinking that was changed": (
        said(USER, thought("hm", signature=thinking_signature("ah")), USER),
        "Invalid `signature`",
    ),
    "thinking in the history without reasoning": (
        said(USER, {**calls("a"), **thought("hm", signature=thinking_signature("hm"))}, result("a")),
        rules.THINKING_ALONE,
    ),
    "a temperature on Opus 4.7": (chat(model="claude-opus-4-7", temperature=0.2), "`temperature` is not supported"),
    "a last assistant on Sonnet 4.6": (
        said(USER, {"role": "assistant", "content": "{"}, model="claude-sonnet-4-6"),
        rules.NO_PREFILL,
    ),
    "a tool id of another provider": (said(USER, calls("call|1:a.x"), result("call|1:a.x")), "should match pattern"),
    "a tool id twice": (said(USER, calls("a"), result("a"), calls("a"), result("a")), "must be unique"),
    "gpt-5-6 in its other spelling": (
        chat(model="openai-1p-gpt-5.6-sol", tools=[tool()], reasoning_effort="low"),
        "not supported together with tools",
    ),
    "no model": (said(USER, model=""), "model"),
    "no messages": (said(), "messages: must not be empty"),
    "an unknown role": (said({"role": "robot", "content": "x"}), "unknown role"),
    "content that is a number": (said({"role": "user", "content": 7}), "must be a string"),
    "a temperature of 3": (chat(temperature=3), "temperature"),
    "stream_options without stream": (chat(stream_options={"include_usage": True}), "only allowed when stream"),
    "arguments that are no JSON": (
        said(USER, {"role": "assistant", "tool_calls": [{**calls("a")["tool_calls"][0], "function": {
            "name": "Bash", "arguments": "{"}}]}, result("a")),
        "JSON object in a string",
    ),
}  # fmt: skip
WITH_56 = Options(models={**rules.MODELS, "openai-gpt-5.6-sol": 128_000, "openai-1p-gpt-5.6-sol": 128_000})


@pytest.mark.parametrize("name", REFUSED)
def test_chat_refuses(name: str) -> None:
    body, words = REFUSED[name]
    refusal = check_chat(body, WITH_56)
    assert refusal is not None
    assert refusal.status == 400
    assert words in refusal.message


@pytest.mark.parametrize("body", [None, [], {}])
def test_chat_refuses_what_is_no_request(body: Any) -> None:
    assert check_chat(body) is not None
    assert check_messages(body, {}) is not None


def test_chat_refuses_more_than_20_mib() -> None:
    assert check_chat(chat("x" * (20 * 1024 * 1024))) == BadRequest(400, "request body exceeds 20 MiB")
    assert check_chat(chat(), size=20 * 1024 * 1024 + 1) is not None
    assert check_chat(chat(), size=20 * 1024 * 1024) is None


ACCEPTED: dict[str, JSON] = {
    "text": chat(),
    "one call after the other": said(USER, calls("a"), result("a"), calls("b"), result("b")),
    "parallel calls of GPT": said(USER, calls("a", "b"), result("b"), result("a"), model=GPT),
    "what Claude ignores": chat(
        reasoning_effort="high",
        parallel_tool_calls=False,
        metadata={"a": "b"},
        n=1,
        logprobs=True,
        presence_penalty=1,
        prompt_cache_key="x",
        verbosity="low",
        user="me",
        seed=7,
        speed="fast",
    ),
    "stop": chat(stop=["END"]),
    "json_object on GPT": chat(model=GPT, response_format={"type": "json_object"}),
    "reasoning": chat(reasoning=LOW, temperature=1),
    "reasoning by tokens": chat(reasoning={"max_tokens": 2000}, temperature=1),
    "reasoning on, after a signed thought and its call": said(
        USER,
        {**calls("a"), **thought("hm", signature=thinking_signature("hm"))},
        result("a"),
        reasoning=LOW,
        temperature=1,
    ),
    "a mark on an assistant's text": said(USER, {"role": "assistant", "content": [MARKED]}, USER),
    "a temperature of 1 on Opus 4.7": chat(model="claude-opus-4-7", temperature=1),
    "four marks": parts(*[MARKED] * 4),
    "ignored marks": said(
        SYSTEM, USER, {**calls("a"), "cache_control": {"type": "ephemeral"}}, {**result("a"), "cache_control": {}}
    ),
    "twenty images": parts(*[image()] * 20),
    "a last assistant without tools": said(USER, {"role": "assistant", "content": "so"}),
    "no arguments": said(
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "Bash", "arguments": ""}}],
        },
        result("a"),
    ),
    "thinking in the history": said(
        USER, {"role": "assistant", "content": "so", "thinking_blocks": [], "reasoning_content": "x"}, USER
    ),
    "a nested choice in a schema": chat(tools=[tool(properties={"a": {"anyOf": [{"type": "string"}]}})]),
    "any pattern on Claude": chat(tools=[tool(properties={"a": {"pattern": r"^(?!x)\p{L}"}})]),
    "GPT: what is no schema": chat(model=GPT, tools=[tool(properties={"a": {"default": {"type": "array"}}})]),
    "129 tools on Claude": chat(tools=[tool(f"t{number}") for number in range(129)]),
    "a schema property called cache_control": chat(
        tools=[tool(str(n), properties={"cache_control": {}}) for n in range(9)]
    ),
    "the whole limit": chat(max_completion_tokens=64_000),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_chat_accepts(name: str) -> None:
    before = copy.deepcopy(ACCEPTED[name])
    assert check_chat(ACCEPTED[name]) is None
    assert ACCEPTED[name] == before, "the rules only look"


@pytest.mark.parametrize(
    ("options", "body", "words"),
    [
        (Options(output_cap=16_384), chat(max_completion_tokens=16_385), "max tokens of 16384 exceeded"),
        (Options(claude_stop="refused"), chat(stop="END"), "stop is not supported"),
        (Options(whitespace_is_empty=True), chat(" \n"), "non-empty"),
        (Options(empty_tool_result=True), said(USER, calls("a"), result("a", "")), None),
        (Options(models={"claude-nobody-9": 10}), chat(model="claude-nobody-9"), None),
        (Options(thinking_needs_temperature=False), REFUSED["reasoning without a temperature"][0], None),
        (Options(thinking_mid_turn=True), REFUSED["reasoning after calls without it"][0], None),
        (Options(details_alone=True), REFUSED["thinking in the history without reasoning"][0], None),
        (Options(newest_temperature=True), REFUSED["a temperature on Opus 4.7"][0], None),
        (Options(prefill=True), REFUSED["a last assistant on Sonnet 4.6"][0], None),
        (Options(odd_tool_ids=True), REFUSED["a tool id of another provider"][0], None),
        (Options(lookaround=True), REFUSED["GPT: lookaround"][0], None),
        (Options(refused_fields=["reasoning"]), ACCEPTED["reasoning"], "reasoning is not supported"),
        (Options(refused_marks=["assistant"]), ACCEPTED["a mark on an assistant's text"], "cache_control: Extra"),
    ],
)
def test_each_unsure_line_of_chat_is_a_switch(options: Options, body: JSON, words: str | None) -> None:
    default, switched = check_chat(body), check_chat(body, options)
    assert (default is None) == (words is not None)
    assert switched is None if words is None else words in str(switched)


def test_a_schema_or_argument_called_cache_control_is_no_mark() -> None:
    body = said(USER, calls("a"), result("a"))
    body["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"cache_control": 1}'
    assert check_chat(body) is None
