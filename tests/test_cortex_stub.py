"""The stand-in against the contract: a line of it is a row of a table here, or a test with its name."""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests import cortex_rules as rules
from tests import recorded
from tests.cortex_charging import Block, PromptCache, Usage
from tests.cortex_rules import JSON, BadRequest, Options, check_chat, check_messages, thinking_signature
from tests.cortex_scripts import Script, Turn, directives, next_turn, read_script
from tests.cortex_stub import CHAT, DEMO_NOTE, FAULTS, MESSAGES, STATEMENTS, CortexStub
from tests.cortex_tokens import load_public_key

CLAUDE, GPT, LLAMA = "claude-sonnet-4-5", "openai-gpt-5", "llama4-maverick"
KEY, OTHER_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
PIXEL = base64.b64encode(b"\x89PNG pixel").decode()


def pem(key: rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


PEM, OTHER_PEM = pem(KEY), pem(OTHER_KEY)


def token(key: rsa.RSAPrivateKey = KEY, algorithm: str = "RS256", **changes: Any) -> str:
    """A good token but for `changes` of its claims; None takes a claim out."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = base64.b64encode(hashlib.sha256(der).digest()).decode()
    now = int(time.time())
    claims = {"iss": f"ORG-ACC.ME.SHA256:{fingerprint}", "sub": "ORG-ACC.ME", "iat": now, "exp": now + 3600, **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, "x" * 64 if algorithm == "HS256" else key, algorithm)


@pytest.fixture
def stub() -> Iterator[CortexStub]:
    with CortexStub("org-acc", "me", [PEM]) as running:
        yield running


def post(stub: CortexStub, path: str, body: Any, bearer: str | None = None, **headers: str) -> httpx.Response:
    standard = {"Authorization": f"Bearer {bearer or token()}", "anthropic-version": "2023-06-01"}
    return httpx.post(stub.url + path, json=body, headers={**standard, **headers}, timeout=20)


def chat(text: str = "hello", model: str = CLAUDE, **fields: Any) -> JSON:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def native(text: str = "hello", model: str = CLAUDE, **fields: Any) -> JSON:
    return {"model": model, "max_tokens": 4000, "messages": [{"role": "user", "content": text}], **fields}


def events(response: httpx.Response) -> list[JSON]:
    """The JSON of each `data:` line of a stream, without `[DONE]`."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def tool(name: str = "Bash", **parameters: Any) -> JSON:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


def calls(*ids: str) -> JSON:
    made = [{"id": id_, "type": "function", "function": {"name": "Bash", "arguments": "{}"}} for id_ in ids]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(id_: str, content: Any = "out") -> JSON:
    return {"role": "tool", "tool_call_id": id_, "content": content}


USER: JSON = {"role": "user", "content": "hello"}
SYSTEM: JSON = {"role": "system", "content": "be brief"}


def said(*messages: JSON, model: str = CLAUDE, **fields: Any) -> JSON:
    return {"model": model, "messages": list(messages), **fields}


def parts(*content: JSON, **fields: Any) -> JSON:
    return said({"role": "user", "content": list(content)}, **fields)


def image(url: str = f"data:image/png;base64,{PIXEL}") -> JSON:
    return {"type": "image_url", "image_url": {"url": url}}


MARKED: JSON = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}

LOW = {"effort": "low"}


def thought(text: str, **detail: str) -> JSON:
    """An assistant's turn with its thinking, as it stands in an answer of chat completions."""
    details = [{"type": "reasoning.text", "format": "anthropic-claude-v1", "text": text, **detail}]
    return {"role": "assistant", "content": "so", "reasoning_details": details}


# --- Chat Completions: what is refused ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[JSON, str]] = {
    "max_tokens": (chat(max_tokens=5), "max_tokens is deprecated in favor of max_completion_tokens"),
    "both token limits": (chat(max_tokens=5, max_completion_tokens=5), "max_tokens is deprecated in favor of"),
    "service_tier": (chat(service_tier="auto"), "service_tier"),
    "store": (chat(store=False), "store"),
    "a file part": (parts({"type": "file", "file": {"file_id": "x"}}), "file is not supported"),
    "json_object on Claude": (
        chat(response_format={"type": "json_object"}),
        "json object response format is not supported",
    ),
    "an unknown model": (chat(model="claude-nobody-9"), "unknown model claude-nobody-9"),
    "a date suffix": (chat(model="claude-sonnet-4-5-20250929"), "unknown model claude-sonnet-4-5-20250929"),
    "a context suffix": (chat(model="claude-sonnet-4-5[1m]"), "unknown model"),
    "a provider prefix": (chat(model="openai/claude-sonnet-4-5"), "unknown model"),
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
    "GPT: an array without items": (
        chat(model=GPT, tools=[tool(properties={"a": {"type": "array"}})]),
        "array schema missing items",
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


@pytest.mark.parametrize("body", [None, [], "text", 7, {}])
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
        (Options(newest_temperature=True), REFUSED["a temperature on Opus 4.7"][0], None),
        (Options(prefill=True), REFUSED["a last assistant on Sonnet 4.6"][0], None),
        (Options(odd_tool_ids=True), REFUSED["a tool id of another provider"][0], None),
        (Options(refused_fields=["reasoning"]), ACCEPTED["reasoning"], "reasoning is not supported"),
        (Options(refused_marks=["assistant"]), ACCEPTED["a mark on an assistant's text"], "cache_control: Extra"),
    ],
)
def test_each_unsure_line_of_chat_is_a_switch(options: Options, body: JSON, words: str | None) -> None:
    default, switched = check_chat(body), check_chat(body, options)
    assert (default is None) == (words is not None)
    assert switched is None if words is None else words in str(switched)


# --- Messages: what is refused --------------------------------------------------------------------------------------

V = {"anthropic-version": "2023-06-01"}


def turns(*messages: tuple[str, Any], **fields: Any) -> JSON:
    return native(messages=[{"role": role, "content": content} for role, content in messages], **fields)


def use(id_: str, **extra: Any) -> JSON:
    return {"type": "tool_use", "id": id_, "name": "Bash", "input": {}, **extra}


def got(id_: str, **extra: Any) -> JSON:
    return {"type": "tool_result", "tool_use_id": id_, "content": "out", **extra}


def custom(**extra: Any) -> JSON:
    return {"name": "Bash", "input_schema": {"type": "object"}, **extra}


BUDGET = {"type": "enabled", "budget_tokens": 2000}
NATIVE_REFUSED: dict[str, tuple[JSON, str]] = {
    "a field of a tool": (
        native(tools=[custom(eager_input_streaming=True)]),
        "tools.0.custom.eager_input_streaming: Extra inputs are not permitted",
    ),
    "a mark on top": (native(cache_control={"type": "ephemeral"}), "cache_control: Extra inputs are not permitted"),
    "context_management without its beta": (native(context_management={}), "context_management: Extra inputs"),
    "an effort without its beta": (native(output_config={"effort": "low"}), "output_config.effort: Extra inputs"),
    "two calls of one id": (
        turns(
            ("user", "x"),
            ("assistant", [use("a")]),
            ("user", [got("a")]),
            ("assistant", [use("a")]),
            ("user", [got("a")]),
        ),
        "must be unique",
    ),
    "a tool id of another provider": (
        turns(("user", "x"), ("assistant", [use("call|1")]), ("user", [got("call|1")])),
        "should match pattern",
    ),
    "a last assistant on Sonnet 4.6": (
        turns(("user", "x"), ("assistant", "{"), model="claude-sonnet-4-6"),
        rules.NO_PREFILL,
    ),
    "service_tier": (native(service_tier="auto"), "service_tier: Extra inputs"),
    "max_completion_tokens": (native(max_completion_tokens=5), "max_completion_tokens: Extra inputs"),
    "a field of a message": (native(messages=[{**USER, "name": "x"}]), "messages.0.name: Extra inputs"),
    "a field of a block": (
        turns(("user", [{"type": "text", "text": "x", "citations": None}])),
        "messages.0.content.0.text.citations: Extra inputs",
    ),
    "a field of thinking": (
        native(model="claude-opus-4-6", thinking={"type": "adaptive", "display": "summarized"}),
        "thinking.adaptive.display: Extra inputs",
    ),
    "a field of metadata": (native(metadata={"user_id": "x", "y": 1}), "metadata.y: Extra inputs"),
    "an hour's cache": (
        native(system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]),
        "system.0.text.cache_control.ephemeral.ttl: Extra inputs",
    ),
    "no max_tokens": ({"model": CLAUDE, "messages": [USER]}, "max_tokens: Field required"),
    "too many tokens": (native(max_tokens=64_001), "max tokens of 64000 exceeded"),
    "GPT": (native(model=GPT), "not supported on this endpoint"),
    "an unknown model": (native(model="claude-nobody-9"), "unknown model claude-nobody-9"),
    "a budget on Opus 4.7": (native(model="claude-opus-4-7", thinking=BUDGET), "use adaptive"),
    "adaptive on Sonnet 4.5": (native(thinking={"type": "adaptive"}), "adaptive is not supported"),
    "a budget above max_tokens": (
        native(thinking={"type": "enabled", "budget_tokens": 4000}),
        "must be greater than `thinking.budget_tokens`",
    ),
    "a small budget": (native(thinking={"type": "enabled", "budget_tokens": 1000}), "greater than or equal to 1024"),
    "thinking with a temperature": (native(thinking=BUDGET, temperature=0), "may only be set to 1"),
    "a changed signature": (
        turns(
            ("user", "x"),
            ("assistant", [{"type": "thinking", "thinking": "hm", "signature": thinking_signature("hmm")}]),
            ("user", "y"),
        ),
        "Invalid `signature`",
    ),
    "a result a turn late": (
        turns(("user", "x"), ("assistant", [use("a")]), ("user", "wait"), ("assistant", "so"), ("user", [got("a")])),
        "without `tool_result` blocks immediately after",
    ),
    "a result missing of two": (
        turns(("user", "x"), ("assistant", [use("a"), use("b")]), ("user", [got("a")])),
        "immediately after: b",
    ),
    "a result without its call": (turns(("user", [got("a")])), "unexpected `tool_use_id`"),
    "a result after text": (
        turns(("user", "x"), ("assistant", [use("a")]), ("user", [{"type": "text", "text": "y"}, got("a")])),
        "must come first",
    ),
    "a system message inside": (turns(("system", "x"), ("user", "y")), "Input should be 'user' or 'assistant'"),
    "a server tool": (native(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "does not match 'custom'"),
    "an empty text block": (turns(("user", [{"type": "text", "text": ""}])), "non-empty"),
    "five marks": (turns(("user", [MARKED] * 5)), "A maximum of 4"),
    "21 images": (
        turns(
            (
                "user",
                [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}] * 21,
            )
        ),
        "too many images",
    ),
    "a document": (turns(("user", [{"type": "document", "source": {}}])), "document is not supported"),
}


@pytest.mark.parametrize("name", NATIVE_REFUSED)
def test_messages_refuses(name: str) -> None:
    body, words = NATIVE_REFUSED[name]
    refusal = check_messages(body, V)
    assert refusal is not None
    assert refusal.status == 400
    assert words in refusal.message


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": thinking_signature("hm")}
NATIVE_ACCEPTED: dict[str, JSON] = {
    "text": native(metadata={"user_id": "x"}, stop_sequences=["END"], system="be brief"),
    "parallel tools and their thinking": turns(
        ("user", "x"),
        ("assistant", [THOUGHT, use("a"), use("b")]),
        ("user", [got("a", cache_control={"type": "ephemeral"}), got("b", is_error=True), MARKED]),
        tools=[custom(description="d", cache_control={"type": "ephemeral"})],
        thinking=BUDGET,
    ),
    "both forms on 4.6": native(model="claude-opus-4-6", thinking=BUDGET),
    "adaptive on 4.6": native(model="claude-sonnet-4-6", thinking={"type": "adaptive"}),
    "adaptive on a newer one": native(model="claude-opus-5", thinking={"type": "adaptive"}),
    "an image in a result": turns(
        ("user", "x"),
        ("assistant", [use("a")]),
        (
            "user",
            [
                got(
                    "a",
                    content=[{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}],
                )
            ],
        ),
    ),
}


@pytest.mark.parametrize("name", NATIVE_ACCEPTED)
def test_messages_accepts(name: str) -> None:
    assert check_messages(NATIVE_ACCEPTED[name], V) is None


@pytest.mark.parametrize("beta", sorted(rules.BETAS))
def test_messages_accepts_the_documented_betas(beta: str) -> None:
    assert check_messages(native(), {**V, "anthropic-beta": beta}) is None


def test_messages_opens_fields_with_their_beta() -> None:
    betas = "context-management-2025-06-27, effort-2025-11-24,tool-examples-2025-10-29"
    body = native(context_management={}, output_config={}, tools=[custom(input_examples=[])])
    assert check_messages(body, {**V, "anthropic-beta": betas}) is None


@pytest.mark.parametrize("beta", ["new-2027-01-01", "claude-code-20250219", "dev-full-thinking-2025-05-14"])
def test_messages_refuses_other_betas(beta: str) -> None:
    assert check_messages(native(), {**V, "anthropic-beta": beta}) == BadRequest(400, "invalid beta flag")


def test_messages_wants_its_version_header() -> None:
    assert "anthropic-version" in str(check_messages(native(), {}))


def test_each_unsure_line_of_messages_is_a_switch() -> None:
    for beta, options in {
        "claude-code-20250219": Options(claude_code_beta=True),
        "dev-full-thinking-2025-05-14": Options(full_thinking_beta=True),
    }.items():
        assert check_messages(native(), {**V, "anthropic-beta": beta}, options) is None
    assert check_messages(NATIVE_REFUSED["an hour's cache"][0], V, Options(one_hour_ttl=True)) is None
    assert check_messages(NATIVE_REFUSED["a document"][0], V, Options(documents=True)) is None
    assert "max tokens of 1000" in str(check_messages(native(), V, Options(output_cap=1000)))
    refused = Options(refused_fields=["thinking"])
    assert "thinking: Extra inputs" in str(check_messages(native(thinking=BUDGET), V, refused))


# --- the token ------------------------------------------------------------------------------------------------------

NOW = int(time.time())
BAD_TOKENS: dict[str, tuple[Callable[[], str], str]] = {
    "no token at all": (lambda: "nonsense", "394300"),
    "another user": (lambda: token(sub="ORG-ACC.YOU"), "394300"),
    "a user in lower case": (lambda: token(sub="ORG-ACC.me"), "394300"),
    "another account": (lambda: token(sub="OTHER.ME"), "394307"),
    "an account in lower case": (lambda: token(sub="org-acc.ME"), "394307"),
    "an underscore for the hyphen": (lambda: token(sub="ORG_ACC.ME"), "394307"),
    "no iat": (lambda: token(iat=None), "394301"),
    "no exp": (lambda: token(exp=None), "394301"),
    "a broken second": (lambda: token(iat=NOW + 0.5), "394301"),
    "issued in an hour": (lambda: token(iat=NOW + 3600, exp=NOW + 7200), "394302"),
    "expired": (lambda: token(iat=NOW - 3600, exp=NOW), "394303"),
    "older than an hour, whatever exp says": (lambda: token(iat=NOW - 3601, exp=NOW + 86_400), "394303"),
    "a key that is not registered": (lambda: token(OTHER_KEY), "394304"),
    "no signature algorithm": (lambda: token(algorithm="HS256"), "394305"),
    "another algorithm of the same key": (lambda: token(algorithm="RS512"), "394305"),
    "a changed signature": (lambda: token()[:-8] + "AAAAAAAA", "394306"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_bad_token_is_401_and_only_sql_tells_why(stub: CortexStub, name: str) -> None:
    make, code = BAD_TOKENS[name]
    response = post(stub, CHAT, chat(), make())
    body = response.json()
    assert response.status_code == 401
    assert body["code"] == "390144"
    assert body["message"].startswith("JWT token is invalid. [")
    assert code not in response.text
    failure = body["message"].split("[")[1].rstrip("]")
    assert stub.login_failures[failure].startswith(code)
    told = post(stub, STATEMENTS, {"statement": f"SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{failure}')"}).json()
    assert json.loads(told["data"][0][0])["errorCode"] == code


def test_authentication_comes_before_the_body(stub: CortexStub) -> None:
    assert post(stub, CHAT, {"max_tokens": 1}, "nonsense").status_code == 401
    assert httpx.post(stub.url + CHAT, content=b"{").status_code == 401
    bearer = {"Authorization": f"Bearer {token()}"}
    assert httpx.post(stub.url + CHAT, content=b"{", headers=bearer).status_code == 400


def test_keys_rotate_through_two_slots(stub: CortexStub) -> None:
    old, new = token(), token(OTHER_KEY)
    assert [post(stub, CHAT, chat(), each).status_code for each in (old, new)] == [200, 401]
    stub.register_key("".join(OTHER_PEM.splitlines()[1:-1]), slot=2)
    assert [post(stub, CHAT, chat(), each).status_code for each in (old, new)] == [200, 200]
    stub.register_key(None, slot=1)
    assert [post(stub, CHAT, chat(), each).status_code for each in (old, new)] == [401, 200]


def test_a_clock_that_differs_is_seen_in_the_date_and_refuses_tokens(stub: CortexStub) -> None:
    stub.skew = -3600
    early = post(stub, CHAT, chat())
    stub.skew = 3600
    late = post(stub, CHAT, chat())
    assert [reason[:6] for reason in stub.login_failures.values()] == ["394302", "394303"]
    assert early.headers["date"] != late.headers["date"]


def test_underscores_in_the_claims_are_a_switch(stub: CortexStub) -> None:
    stub.underscores = True
    assert post(stub, CHAT, chat(), token(sub="ORG_ACC.ME")).status_code == 200


def test_a_login_name_may_have_periods() -> None:
    with CortexStub("org-acc", "jane.doe@example.com", [PEM]) as stub:
        name = "ORG-ACC.JANE.DOE@EXAMPLE.COM"
        fingerprint = load_public_key(PEM)[0]
        assert post(stub, CHAT, chat(), token(iss=f"{name}.{fingerprint}", sub=name)).status_code == 200


def test_another_token_type_is_refused(stub: CortexStub) -> None:
    kind = "X-Snowflake-Authorization-Token-Type"
    assert post(stub, CHAT, chat(), **{kind: "KEYPAIR_JWT"}).status_code == 200
    assert post(stub, CHAT, chat(), **{kind: "OAUTH"}).json()["code"] == "390303"


# --- paths, records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["responses", "models", "messages/count_tokens", "embeddings"])
def test_cortex_has_no_other_endpoint(stub: CortexStub, path: str) -> None:
    assert post(stub, f"/api/v2/cortex/v1/{path}", chat()).status_code == 404


def test_a_record_has_the_body_and_never_the_token(stub: CortexStub) -> None:
    bearer = token()
    post(stub, CHAT, chat("remember"), bearer)
    post(stub, CHAT, chat(max_tokens=1), bearer)
    good, bad = stub.requests
    assert good["body"]["messages"][0]["content"] == "remember"
    assert (good["status"], bad["status"]) == (200, 400)
    assert bad["refusal"].startswith("max_tokens is deprecated")
    assert good["token_id"] == hashlib.sha256(bearer.encode()).hexdigest()[:12]
    assert good["iat"] == jwt.decode(bearer, options={"verify_signature": False})["iat"]
    over_http = httpx.get(f"{stub.url}/_stub/requests").text
    for text in (json.dumps(stub.requests), over_http):
        assert bearer not in text
        assert bearer.rsplit(".", 1)[1] not in text


# --- answers --------------------------------------------------------------------------------------------------------

TWO_CALLS = '[[tools: Bash {"command": "echo [[1]]"} ; Read]] [[then: done]]'


def test_claude_answers_in_cortex_s_shape(stub: CortexStub) -> None:
    body = post(stub, CHAT, chat("hello\nthere")).json()
    assert body["id"] == ""
    (choice,) = body["choices"]
    assert choice["finish_reason"] == ""
    assert choice["message"]["content"] == "You said: hello there"


def shape(value: Any) -> Any:
    """A value with its lists cut to their first item and its texts, numbers and nulls told by kind only."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "text" if isinstance(value, str) else "number" if isinstance(value, int) else value


SHAPES: dict[str, tuple[JSON, JSON]] = {
    "claude": (recorded.CLAUDE_TEXT, chat()),
    "claude, a call": (recorded.CLAUDE_CALL, chat('[[tools: Bash {"a": 1}]]', tools=[tool()])),
    "claude, thinking before a call": (
        recorded.CLAUDE_THINKING_CALL,
        chat('[[thinking: hm]] [[tools: Bash {"a": 1}]]', tools=[tool()], reasoning=LOW, temperature=1),
    ),
    "gpt": (recorded.GPT_TEXT, chat(model=GPT)),
    "llama": (recorded.LLAMA_TEXT, chat(model=LLAMA)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_has_the_shape_that_was_recorded(stub: CortexStub, name: str) -> None:
    answer, body = SHAPES[name]
    assert shape(post(stub, CHAT, body).json()) == shape(answer)


@pytest.mark.parametrize("name", ["CLAUDE_STREAM", "CLAUDE_THINKING_STREAM"])
def test_a_stream_has_the_shapes_that_were_recorded(stub: CortexStub, name: str) -> None:
    body = chat("[[thinking: hm]] [[text: so]]", stream=True, stream_options={"include_usage": True})
    if "THINKING" in name:
        body |= {"reasoning": LOW, "temperature": 1}
    kinds = {json.dumps(shape(event), sort_keys=True) for event in events(post(stub, CHAT, body))}
    lines = getattr(recorded, name).splitlines()
    replayed = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert kinds == {json.dumps(shape(event), sort_keys=True) for event in replayed}


def test_a_recorded_answer_is_replayed_as_it_is(stub: CortexStub) -> None:
    stub.replay = [recorded.GPT_TEXT, recorded.CLAUDE_STREAM]
    assert post(stub, CHAT, chat()).json() == recorded.GPT_TEXT
    assert post(stub, CHAT, chat()).text == recorded.CLAUDE_STREAM
    assert post(stub, CHAT, chat()).json()["choices"][0]["message"]["content"] == "You said: hello"


def test_claude_streams_in_cortex_s_shape(stub: CortexStub) -> None:
    body = chat(TWO_CALLS, tools=[tool(), tool("Read")], stream=True, stream_options={"include_usage": True})
    response = post(stub, CHAT, body)
    assert response.text.endswith("data: [DONE]\n\n")
    *chunks, usage = events(response)
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > 0
    assert "finish_reason" not in response.text
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {("", 0)}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert {delta["role"] for delta in deltas} == {"assistant"}
    assert deltas[-1]["content"] == ""
    assert deltas[-1]["tool_calls"] is None
    fragments = [delta["tool_calls"][0] for delta in deltas if delta["tool_calls"]]
    assert {fragment["index"] for fragment in fragments} == {0}
    named = [fragment for fragment in fragments if "id" in fragment]
    assert [fragment["function"]["name"] for fragment in named] == ["Bash", "Read"]
    assert all(fragment["id"].startswith("toolu_bdrk_01") for fragment in named)
    arguments = "".join(fragment["function"]["arguments"] for fragment in fragments)
    assert arguments == '{"command": "echo [[1]]"}{}'


def test_without_include_usage_no_usage_is_streamed(stub: CortexStub) -> None:
    assert "usage" not in post(stub, CHAT, chat(stream=True)).text


def test_the_older_shape_is_a_switch(stub: CortexStub) -> None:
    stub.set_options(older_shapes=True)
    chunks = events(post(stub, CHAT, chat(TWO_CALLS, tools=[tool(), tool("Read")], stream=True)))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    fragments = [delta["tool_calls"][0] for delta in deltas if delta["tool_calls"]]
    assert {delta["role"] for delta in deltas} == {""}
    assert {fragment["type"] for fragment in fragments if "id" in fragment} == {""}
    assert fragments[-1]["function"] == {"name": "Read", "arguments": ""}


def test_gpt_answers_in_the_ordinary_shape(stub: CortexStub) -> None:
    body = chat(TWO_CALLS, GPT, tools=[tool(), tool("Read")])
    whole = post(stub, CHAT, body).json()
    assert whole["id"].startswith("chatcmpl-")
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    chunks = events(post(stub, CHAT, {**body, "stream": True}))
    indexes = [c["index"] for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert sorted(set(indexes)) == [0, 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert post(stub, CHAT, chat(model=GPT)).json()["choices"][0]["finish_reason"] == "stop"


def test_thinking_comes_when_it_is_asked_for(stub: CortexStub) -> None:
    prompt = "[[thinking: hm]] [[text: so]]"
    assert "reasoning_details" not in post(stub, CHAT, chat(prompt)).text
    body = chat(prompt, reasoning=LOW, temperature=1)
    (detail,) = post(stub, CHAT, body).json()["choices"][0]["message"]["reasoning_details"]
    assert detail == {
        "type": "reasoning.text",
        "format": "anthropic-claude-v1",
        "id": "reasoning-text-1",
        "index": 0,
        "signature": thinking_signature("hm"),
        "text": "hm",
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in events(post(stub, CHAT, {**body, "stream": True}))]
    details = [delta["reasoning_details"][0] for delta in deltas if "reasoning_details" in delta]
    assert "".join(part["text"] for part in details) == "hm"
    assert not any("signature" in part for part in details)
    stub.set_options(signed_streams=True)
    assert thinking_signature("hm") in post(stub, CHAT, {**body, "stream": True}).text


def test_empty_keys_in_a_stream_are_a_switch(stub: CortexStub) -> None:
    body = chat(TWO_CALLS, tools=[tool(), tool("Read")], stream=True)
    assert '"custom"' not in post(stub, CHAT, body).text
    stub.set_options(stream_extras=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in events(post(stub, CHAT, body))]
    assert all(call["custom"] == recorded.EMPTY_CUSTOM for delta in deltas for call in delta["tool_calls"] or ())
    assert all(delta["function_call"] == {"arguments": "", "name": ""} for delta in deltas)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_prompt_over_the_window_is_refused_in_cortex_s_words(stub: CortexStub, path: str) -> None:
    stub.set_options(windows={CLAUDE: 6000})
    body = chat("x" * 4 * 3000, max_completion_tokens=2000) if path == CHAT else native("x" * 4 * 3000, max_tokens=2000)
    assert post(stub, path, body).status_code == 200
    stub.set_options(windows={CLAUDE: 4000})
    assert post(stub, path, body).json()["message"] == "max tokens of 4000 exceeded"
    assert stub.requests[-1]["overflow"]
    stub.set_options(window_counts_output=False)
    assert post(stub, path, body).status_code == 200
    stub.set_options(windows={CLAUDE: 2000})
    assert post(stub, path, body).status_code == 400


def test_windows_are_as_documented() -> None:
    large = {name for name in rules.MODELS if Options().window(name) == 1_000_000}
    assert large == set(rules.LARGE)
    assert Options().window("claude-haiku-4-5") == 200_000


def test_an_answer_without_content_and_an_odd_stream_are_faults(stub: CortexStub) -> None:
    stub.fault("done_only", times=2, route="chat")
    assert post(stub, CHAT, chat(stream=True)).text == "data: [DONE]\n\n"
    assert post(stub, CHAT, chat()).json()["choices"][0]["message"]["content"] == ""
    stub.fault("done_only", times=1, route="messages")
    assert "content_block_delta" not in post(stub, MESSAGES, native(stream=True)).text
    stub.fault("odd_sse", times=1)
    odd = post(stub, CHAT, chat(stream=True)).text
    assert odd.startswith(": keep-alive\n\nevent: ping\n\ndata:\n\ndata: {")
    assert odd.endswith("data: [DONE]")


@pytest.mark.parametrize(("asked", "given"), [({}, 4096), ({"max_completion_tokens": 7}, 7)])
def test_an_answer_is_cut_at_the_token_limit(stub: CortexStub, asked: JSON, given: int) -> None:
    for model in (CLAUDE, GPT):
        body = post(stub, CHAT, chat("[[stream: 9000]]", model, **asked)).json()
        assert body["usage"]["completion_tokens"] == given
        assert len(body["choices"][0]["message"]["content"]) == given * 4
        assert body["choices"][0]["finish_reason"] == ("" if model == CLAUDE else "length")
    body = post(stub, MESSAGES, native("[[stream: 9000]]", max_tokens=given)).json()
    assert (body["stop_reason"], body["usage"]["output_tokens"]) == ("max_tokens", given)


def test_stop_on_claude_is_a_switch(stub: CortexStub) -> None:
    body = chat("[[text: one END two]]", stop="END")
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "one END two"
    stub.set_options(claude_stop="honoured")
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "one "


def test_messages_streams_thinking_text_and_tools(stub: CortexStub) -> None:
    prompt = f"[[thinking: hm]] {TWO_CALLS}"
    body = native(prompt, thinking=BUDGET, tools=[custom(), custom(name="Read")], stream=True)
    sent = events(post(stub, MESSAGES, body))
    assert [sent[0]["type"], sent[-2]["type"], sent[-1]["type"]] == ["message_start", "message_delta", "message_stop"]
    assert sent[-2]["delta"]["stop_reason"] == "tool_use"
    starts = [event["content_block"]["type"] for event in sent if event["type"] == "content_block_start"]
    assert starts == ["thinking", "tool_use", "tool_use"]
    deltas = [event["delta"] for event in sent if event["type"] == "content_block_delta"]
    assert [delta["signature"] for delta in deltas if "signature" in delta] == [thinking_signature("hm")]
    assert "".join(delta.get("partial_json", "") for delta in deltas) == '{"command": "echo [[1]]"}{}'
    whole = post(stub, MESSAGES, {**body, "stream": False}).json()
    again = copy.deepcopy(body)
    results = [got(block["id"]) for block in whole["content"] if block["type"] == "tool_use"]
    again["messages"] += [{"role": "assistant", "content": whole["content"]}, {"role": "user", "content": results}]
    assert post(stub, MESSAGES, {**again, "stream": False}).json()["content"][-1]["text"] == "done"


# --- scripts --------------------------------------------------------------------------------------------------------


def test_a_scripted_session_goes_on_when_parallel_calls_are_split(stub: CortexStub) -> None:
    body = chat(
        '[[tools: Bash ; Bash ; Bash]] [[tools: Bash {"command": "ls"}]] [[then: first]]',
        tools=[tool()],
    )
    seen = []
    for _ in range(3):
        message = post(stub, CHAT, body).json()["choices"][0]["message"]
        made = message["tool_calls"] or []
        seen.append(len(made) or message["content"])
        for call in made:
            body["messages"] += [{"role": "assistant", "tool_calls": [call]}, result(call["id"])]
    assert seen == [3, 1, "first"]
    body["messages"] += [{"role": "assistant", "content": "first"}, {"role": "user", "content": "now what"}]
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "You said: now what"
    body["messages"] += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "[[text: new]]"}]
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "new"


def test_a_script_answers_by_prompt_or_from_the_start() -> None:
    scripts = read_script([{"when": "fix it", "turns": ["fixing", {"tools": [["Bash", {"a": 1}]]}]}])
    assert next_turn(chat("please fix it"), scripts)[0] == Turn("fixing")
    assert next_turn(chat("something else"), scripts)[0] is None
    assert isinstance(scripts[0], Script)
    assert scripts[0].turns[1].tools[0].input == {"a": 1}
    plain = read_script(["one", "two"])
    later = said(USER, {"role": "assistant", "content": "one"}, USER)
    assert [next_turn(body, plain)[0] for body in (chat(), later)] == [Turn("one"), Turn("two")]


def test_side_calls_of_claude_code_do_not_take_a_turn() -> None:
    title = said({"role": "system", "content": "You are Claude Code. Write a title."}, *chat(TWO_CALLS)["messages"])
    assert next_turn(title, read_script(["one"]))[0] is None


def test_directives_may_hold_directives_for_a_sub_agent() -> None:
    inner = '[[tools: Bash {"command": "ls"}]] [[then: inner]]'
    (outer, last) = directives(f"[[tools: Task {json.dumps({'prompt': inner})}]] [[then: outer]]")
    assert outer.tools[0].input["prompt"] == inner
    assert last.text == "outer"


def test_a_held_stream_waits_for_its_release(stub: CortexStub) -> None:
    body = chat("[[hold: 2]] [[stream: 10]]", stream=True)
    bearer = {"Authorization": f"Bearer {token()}"}
    with httpx.stream("POST", stub.url + CHAT, json=body, headers=bearer, timeout=20) as response:
        stub.wait_for(lambda record: record.get("held"))
        assert not stub.requests[0].get("done")
        stub.release()
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_a_turn_s_error_comes_as_often_as_it_says(stub: CortexStub) -> None:
    body = chat('[[error: too_many {"times": 2}]] [[text: at last]]')
    assert [post(stub, CHAT, body).status_code for _ in range(3)] == [429, 429, 200]


# --- faults ---------------------------------------------------------------------------------------------------------

STATUSES = {
    "throttled": (400, "all requests were throttled by remote service"),
    "bad_token": (401, "JWT token is invalid. ["),
    "budget": (402, "budget exceeded"),
    "no_role": (403, "Not Authorized"),
    "trial": (403, "This account is not allowed to access this endpoint. Please contact Snowflake support."),
    "network_policy": (403, "is not allowed to access Snowflake"),
    "model_not_allowed": (403, f"Model {CLAUDE} not allowed"),
    "too_many": (429, "too many requests"),
    "internal": (500, "internal error"),
    "inference_timeout": (503, "inference timed out"),
    "not_in_region": (400, f"model {CLAUDE} is not available"),
    "expired_token": (401, "expired"),
    "wrong_token_type": (401, "OAuth"),
    "goaway": (503, "GOAWAY"),
    "goaway_200": (200, "GOAWAY"),
    "session_token": (200, "expired"),
    "unprocessable": (422, "invalid request parameters"),
    "too_long": (400, "max tokens of 200000 exceeded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_status_of_the_contract_is_a_switch(stub: CortexStub, name: str) -> None:
    status, words = STATUSES[name]
    for path, body in ((CHAT, chat(stream=True)), (MESSAGES, native())):
        stub.fault(name, times=1)
        response = post(stub, path, body)
        assert response.status_code == status
        assert words in response.json()["message"]
        assert response.json()["request_id"]
        assert not {"retry-after", "x-ratelimit-remaining"} & set(response.headers)
        assert post(stub, path, body).status_code == 200


def test_a_fault_lasts_until_it_is_cleared_and_keeps_to_its_route(stub: CortexStub) -> None:
    stub.fault("internal", route="messages")
    assert [post(stub, MESSAGES, native()).status_code for _ in range(3)] == [500, 500, 500]
    assert post(stub, CHAT, chat()).status_code == 200
    stub.clear_faults()
    assert post(stub, MESSAGES, native()).status_code == 200
    stub.fault("internal", main=True)
    assert post(stub, CHAT, chat()).status_code == 200
    assert post(stub, CHAT, chat(tools=[tool()])).status_code == 500
    with pytest.raises(ValueError, match="no fault 'nonsense'"):
        stub.fault("nonsense")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_cut_stream_has_no_terminal_event(stub: CortexStub, path: str) -> None:
    body = {**(chat if path == CHAT else native)("[[stream: 20]]"), "stream": True}
    stub.fault("cut", times=1, after=4, clean=True)
    text = post(stub, path, body).text
    assert text.count("data: ") == 4
    assert "[DONE]" not in text
    assert "message_stop" not in text
    stub.fault("cut", times=1, after=4)
    with pytest.raises(httpx.RemoteProtocolError):
        post(stub, path, body)
    assert stub.wait_for(lambda record: record.get("aborted") and record["done"])
    stub.fault("cut", times=1)
    with pytest.raises(httpx.RemoteProtocolError):
        post(stub, path, {**body, "stream": False})


def test_the_wire_breaks_in_each_way(stub: CortexStub) -> None:
    stub.fault("drop", times=1)
    with pytest.raises(httpx.HTTPError):
        post(stub, CHAT, chat())
    stub.fault("html", times=1)
    page = post(stub, CHAT, chat())
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    stub.fault("broken_json", times=1)
    with pytest.raises(json.JSONDecodeError):
        post(stub, CHAT, chat()).json()
    stub.fault("broken_sse", times=1, after=1)
    with pytest.raises(json.JSONDecodeError):
        events(post(stub, CHAT, chat(stream=True)))
    for name in ("slow_start", "slow_chunks"):
        stub.fault(name, times=1, seconds=0.01)
        assert post(stub, CHAT, chat(stream=True)).status_code == 200
        assert stub.requests[-1]["fault"] == name


def test_a_closed_port_refuses_and_opens_again(stub: CortexStub) -> None:
    with httpx.Client() as client:
        client.get(stub.url)
        stub.close_port()
        for url in (stub.url, stub.url):
            with pytest.raises(httpx.ConnectError):
                client.get(url)
        stub.open_port()
        assert client.get(stub.url).status_code == 404


def test_a_model_can_be_missing_in_the_region(stub: CortexStub) -> None:
    stub.missing_models = frozenset({CLAUDE})
    assert post(stub, CHAT, chat()).status_code == 400
    assert post(stub, CHAT, chat(model=GPT)).status_code == 200


# --- charging -------------------------------------------------------------------------------------------------------

LONG = "word " * 1200  # 1500 tokens


def test_usage_on_chat_excludes_cached_tokens_and_joins_reads_and_writes(stub: CortexStub) -> None:
    body = parts({**MARKED, "text": LONG}, {"type": "text", "text": "and now?"})
    first, second = (post(stub, CHAT, body).json()["usage"] for _ in range(2))
    charged = [record["usage"] for record in stub.requests]
    assert [(usage["cache_write"] > 1400, usage["cache_read"] > 1400) for usage in charged] == [
        (True, False),
        (False, True),
    ]
    for usage in (first, second):
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached > 1400
        assert usage["prompt_tokens"] < 20
        assert usage["total_tokens"] == usage["prompt_tokens"] + cached + usage["completion_tokens"]
    assert stub.totals()["requests"] == 2
    assert stub.totals()["cache_read"] == charged[1]["cache_read"] == charged[0]["cache_write"]


def test_on_chat_a_mark_on_a_tool_result_is_ignored_and_on_messages_it_counts(stub: CortexStub) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    post(stub, CHAT, said(USER, calls("a"), {**result("a", [{"type": "text", "text": LONG, **mark}]), **mark}))
    assert stub.totals()["cache_write"] == 0
    post(stub, MESSAGES, turns(("user", "x"), ("assistant", [use("a")]), ("user", [got("a", **mark, content=LONG)])))
    assert stub.totals()["cache_write"] > 1400


def test_whether_a_later_mark_covers_tool_results_is_a_switch(stub: CortexStub) -> None:
    history = (calls("a"), result("a", LONG), {"role": "user", "content": [MARKED]})
    body = said({"role": "system", "content": [{**MARKED, "text": LONG}]}, USER, *history)
    post(stub, CHAT, body)
    assert 1400 < stub.totals()["cache_write"] < 1600
    stub.set_options(mark_covers_tool_results=True)
    post(stub, CHAT, body)
    assert stub.totals()["cache_write"] > 2900


def marked(*texts: str) -> list[Block]:
    return [Block(text, mark=index == len(texts) - 1) for index, text in enumerate(texts)]


def test_the_prompt_cache_follows_its_rules() -> None:
    cache = PromptCache()
    assert cache.charge(CLAUDE, marked("x" * 4 * 1023), 0) == Usage(input=1023), "below the minimum"
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 0) == Usage(cache_write=1024)
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 299) == Usage(cache_read=1024)
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 598) == Usage(cache_read=1024), "a read prolongs it"
    assert cache.charge("claude-opus-5", marked("x" * 4 * 1024), 598) == Usage(cache_write=1024), "one cache a model"
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024, "y" * 8), 600) == Usage(cache_read=1024, cache_write=2)
    assert cache.charge(CLAUDE, [Block("z"), *marked("x" * 4 * 1024)], 600) == Usage(cache_write=1025), "a prefix only"
    far = ["x" * 4 * 1024, *["y"] * 21]
    assert cache.charge(CLAUDE, marked(*far[:-1]), 600).cache_read == 1024, "a mark looks back over twenty blocks"
    fresh = PromptCache()
    fresh.charge(CLAUDE, marked(far[0]), 600)
    assert fresh.charge(CLAUDE, marked(*far), 600).cache_read == 0, "and not over more"
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 2000) == Usage(cache_write=1024), "five minutes"
    assert cache.charge(GPT, marked("x" * 4 * 1024), 0) == Usage(input=1024)


def test_a_schema_or_argument_called_cache_control_is_no_mark() -> None:
    body = said(USER, calls("a"), result("a"))
    body["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"cache_control": 1}'
    assert check_chat(body) is None


# --- SQL ------------------------------------------------------------------------------------------------------------

QUERY = """
SELECT DATE(START_TIME) AS USAGE_DATE, MODEL_NAME, COUNT(*) AS TOTAL_REQUESTS, SUM(TOKENS) AS TOTAL_TOKENS,
  SUM(TOKENS_GRANULAR:input::NUMBER) AS TOTAL_INPUT_TOKENS, SUM(TOKENS_GRANULAR:output::NUMBER) AS TOTAL_OUTPUT_TOKENS
FROM SNOWFLAKE.ACCOUNT_USAGE.CORTEX_REST_API_USAGE_HISTORY
WHERE START_TIME >= DATEADD(day, -7, CURRENT_TIMESTAMP()) GROUP BY 1, 2 ORDER BY 1 DESC, 4 DESC
"""


def query(stub: CortexStub, statement: str = QUERY, **fields: Any) -> httpx.Response:
    return post(stub, STATEMENTS, {"statement": statement, "timeout": 60, **fields})


def test_the_usage_view_adds_up_what_was_charged(stub: CortexStub) -> None:
    for model in (CLAUDE, CLAUDE, GPT):
        post(stub, CHAT, chat(model=model))
    answer = query(stub).json()
    names = [column["name"] for column in answer["resultSetMetaData"]["rowType"]]
    rows = [dict(zip(names, row, strict=True)) for row in answer["data"]]
    assert answer["code"] == "090001"
    assert answer["resultSetMetaData"]["numRows"] == 2
    assert [(row["MODEL_NAME"], row["TOTAL_REQUESTS"]) for row in rows] == [(CLAUDE, "2"), (GPT, "1")]
    assert sum(int(row["TOTAL_TOKENS"]) for row in rows) == stub.totals()["input"] + stub.totals()["output"]
    assert rows[0]["USAGE_DATE"].isdigit()
    dated = query(stub, QUERY.replace("DATE(START_TIME)", "TO_CHAR(START_TIME, 'YYYY-MM-DD')")).json()["data"][0][0]
    assert dated == time.strftime("%Y-%m-%d", time.gmtime(stub.requests[0]["time"]))


def test_results_come_in_partitions(stub: CortexStub) -> None:
    stub.sql_rows, stub.sql_page = (["A"], [[str(number)] for number in range(5)]), 2
    first = query(stub).json()
    sizes = [part["rowCount"] for part in first["resultSetMetaData"]["partitionInfo"]]
    assert sizes == [2, 2, 1]
    bearer = {"Authorization": f"Bearer {token()}"}
    rows = first["data"]
    for number in (1, 2):
        more = httpx.get(f"{stub.url}{STATEMENTS}/{first['statementHandle']}?partition={number}", headers=bearer)
        assert more.headers["content-encoding"] == "gzip"
        rows += more.json()["data"]
    assert rows == [["0"], ["1"], ["2"], ["3"], ["4"]]


def test_a_long_statement_is_202_until_it_is_done(stub: CortexStub) -> None:
    stub.fault("sql_running", after=2)
    waiting = query(stub)
    assert waiting.status_code == 202
    url = stub.url + waiting.json()["statementStatusUrl"]
    bearer = {"Authorization": f"Bearer {token()}"}
    assert [httpx.get(url, headers=bearer).status_code for _ in range(3)] == [202, 200, 200]
    assert httpx.get(url + "x", headers=bearer).status_code == 404


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sql_failed", "SQL compilation error"),
        ("sql_no_privilege", "does not exist or not authorized"),
        ("sql_no_warehouse", "No active warehouse"),
    ],
)
def test_a_failed_statement_is_422(stub: CortexStub, name: str, words: str) -> None:
    stub.fault(name, times=1)
    failed = query(stub)
    assert failed.status_code == 422
    assert words in failed.json()["message"]


def test_the_usage_view_wants_a_warehouse(stub: CortexStub) -> None:
    stub.warehouse = None
    assert query(stub).status_code == 422
    assert query(stub, warehouse="WH").status_code == 200
    assert query(stub, "SELECT CURRENT_USER() AS ME, CURRENT_ACCOUNT(), 1").json()["data"] == [["ME", "ORG-ACC", "1"]]


def test_the_account_lists_its_models_in_upper_case(stub: CortexStub) -> None:
    stub.set_options(models={"claude-opus-5": 1, "openai-gpt-5": 1})
    answer = query(stub, "SHOW CORTEX BASE MODELS IN SCHEMA SNOWFLAKE.MODELS").json()
    names = [column["name"] for column in answer["resultSetMetaData"]["rowType"]]
    rows = [dict(zip(names, row, strict=True)) for row in answer["data"]]
    assert [row["name"] for row in rows] == ["CLAUDE-OPUS-5", "OPENAI-GPT-5"]
    assert json.loads(rows[0]["cross_region_availability"]) == ["ANY_REGION"]
    assert rows[0]["lifecycle_status"] == "GA"
    liked = query(stub, "SHOW CORTEX BASE MODELS LIKE 'claude%' IN SCHEMA SNOWFLAKE.MODELS").json()["data"]
    assert [row[1] for row in liked] == ["CLAUDE-OPUS-5"]
    assert query(stub, "SHOW CORTEX BASE MODELS").json()["data"] == [], "as seen on the service"


def test_the_account_tells_its_cross_region_setting(stub: CortexStub) -> None:
    stub.cross_region = "ANY_REGION"
    (row,) = query(stub, "SHOW PARAMETERS LIKE 'CORTEX_ENABLED_CROSS_REGION' IN ACCOUNT").json()["data"]
    assert row[:2] == ["CORTEX_ENABLED_CROSS_REGION", "ANY_REGION"]


def test_desc_user_shows_the_fingerprints(stub: CortexStub) -> None:
    rows = dict(query(stub, "DESC USER ME").json()["data"])
    assert rows["RSA_PUBLIC_KEY_FP"] == load_public_key(PEM)[0]
    assert rows["RSA_PUBLIC_KEY_2_FP"] is None
    assert query(stub, "DROP TABLE X").status_code == 422


# --- as a process ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(tmp_path: Path, *arguments: str) -> Iterator[str]:
    """The stand-in as a process, in a folder that is not the project's; its URL."""
    key = tmp_path / "key.pub"
    key.write_text(PEM)
    script = Path(__file__).with_name("cortex_stub.py")
    command = [sys.executable, str(script), "--account", "org-acc", "--user", "me", "--public-key", str(key)]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline().strip()
            assert line.startswith("listening on http://127.0.0.1:")
            yield line.removeprefix("listening on ")
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0


def test_as_a_process_it_is_scripted_faulted_and_read_over_http(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    bearer = {"Authorization": f"Bearer {token()}"}
    with (
        process(tmp_path, "--log", str(log)) as url,
        httpx.Client(base_url=url, headers=bearer) as client,
    ):
        client.post("/_stub/script", json=["from the script"]).raise_for_status()
        assert client.post(CHAT, json=chat()).json()["choices"][0]["message"]["content"] == "from the script"
        client.post("/_stub/faults", json={"name": "budget", "times": 1}).raise_for_status()
        assert client.post(CHAT, json=chat()).status_code == 402
        client.post("/_stub/options", json={"claude_stop": "refused"}).raise_for_status()
        assert client.post(CHAT, json=chat(stop="x")).status_code == 400
        client.post("/_stub/set", json={"skew": -3600}).raise_for_status()
        assert client.post(CHAT, json=chat()).status_code == 401
        client.post("/_stub/set", json={"skew": 0}).raise_for_status()
        client.post("/_stub/key", json={"public_key": OTHER_PEM}).raise_for_status()
        assert client.post(CHAT, json=chat()).status_code == 401
        assert [list(client.get("/_stub/failures").json().values())[at][:6] for at in (0, 1)] == ["394302", "394304"]
        assert client.get("/_stub/totals").json()["requests"] == 1
        assert len(client.get("/_stub/requests?since=3").json()["requests"]) == 2
        for path, body in (("faults", {"name": "x"}), ("set", {"url": "x"}), ("options", {"x": 1}), ("script", 7)):
            assert client.post(f"/_stub/{path}", json=body).status_code == 400
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 402, 400, 401, 401]
    assert bearer["Authorization"].split(".")[-1] not in log.read_text()
    assert os.stat(log).st_mode & 0o077 == 0  # noqa: PTH116


def test_the_demo_says_on_every_answer_that_it_is_no_model(tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {token()}"}
    with process(tmp_path, "--demo") as url, httpx.Client(base_url=url, headers=bearer) as client:
        for text in ("hello", "[[text: so]]", "[[tools: Bash]]"):
            answer = client.post(CHAT, json=chat(text)).json()["choices"][0]["message"]["content"]
            assert answer.startswith(DEMO_NOTE)
        assert client.get("/_stub/requests").status_code == 404
        assert client.post(CHAT, json=chat(max_tokens=1)).status_code == 400


def test_for_a_bench_it_answers_without_rules_and_without_keeping_bodies() -> None:
    with CortexStub("org-acc", "me", [PEM], bench=True) as stub:
        assert post(stub, CHAT, chat(max_tokens=1)).status_code == 200
        assert len(events(post(stub, CHAT, chat("[[stream: 200]]", stream=True)))) == 201
        assert events(post(stub, MESSAGES, native(stream=True)))[-1]["type"] == "message_stop"
        assert post(stub, CHAT, chat(), "nonsense").status_code == 401
        assert not any("body" in record for record in stub.requests)


def test_a_wrong_key_file_or_a_taken_port_is_one_clear_line(tmp_path: Path, stub: CortexStub) -> None:
    script = str(Path(__file__).with_name("cortex_stub.py"))
    bad, good = tmp_path / "bad.pub", tmp_path / "good.pub"
    bad.write_text("nonsense")
    good.write_text(PEM)
    for path, port, status in ((bad, 0, 2), (tmp_path / "none", 0, 1), (good, stub.port, 1)):
        command = [sys.executable, script, "--account", "A", "--user", "U", "--public-key", str(path)]
        ended = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True, timeout=30, check=False)
        assert ended.returncode == status
        assert ended.stderr.startswith("cortex_stub: ")
        assert ended.stderr.count("\n") == 1
