"""The shape of a request: what a client has built wrong is named in one sentence; what Claude Code sends passes."""

from __future__ import annotations

import json
import re
import time
from typing import Any, get_args

import pytest
from anthropic.types import beta, content_block_param
from anthropic.types.beta import beta_content_block_param, beta_tool_result_block_param
from hypothesis import HealthCheck, given, settings
from typing_extensions import get_type_hints, is_typeddict

from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits
from bundle.proxy.request_shape import MAX_WORDS, Block, ResultBlock, fault
from tests.conversations import mutated, requests

GOOD: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
PNG = {"type": "base64", "media_type": "image/png", "data": "AAAA"}


def said(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*blocks]}]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [fields]}


def use(**more: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "a", "name": "b", "input": {}, **more}


def result(content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "a", "content": content}


def document(source: Any) -> dict[str, Any]:
    return said({"type": "document", "source": source})


IN_BLOCK = "messages.0.content.0"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": "five"}, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
    ({"model": None}, "model: Input should be a valid string"),
    ({"messages": "hi"}, "messages: Input should be a valid list"),
    ({"messages": [5]}, "messages.0: Input should be a valid dictionary"),
    ({"messages": []}, "messages: at least one message is required"),
    ({"messages": [{"content": "x"}]}, "messages.0.role: Field required"),
    (
        {"messages": [*GOOD["messages"], {"role": "tool", "content": "x"}]},
        "messages.1.role: Input should be 'user', 'assistant' or 'system'",
    ),
    ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content: Input should be a valid string or list"),
    (said({"type": "text", "text": "a"}, 5), "messages.0.content.1: Input should be a valid dictionary"),
    (said({"type": "hologram"}), f"{IN_BLOCK}.type: Input tag 'hologram' is not known"),
    (said({"type": {"a": None}}), f"{IN_BLOCK}.type: Input should be a valid string"),
    (said({"text": "a"}), f"{IN_BLOCK}.type: Field required"),
    (said({"type": "text", "text": 5}), f"{IN_BLOCK}.text.text: Input should be a valid string"),
    (said({"type": "tool_result"}), f"{IN_BLOCK}.tool_result.tool_use_id: Field required"),
    (said(result([use()])), f"{IN_BLOCK}.tool_result.content.0.type: Input tag 'tool_use' is not known. Expected one"),
    (said(result([[]])), f"{IN_BLOCK}.tool_result.content.0: Input should be a valid dictionary"),
    (said(use(input="ls")), f"{IN_BLOCK}.tool_use.input: Input should be a valid dictionary"),
    (said(use(cache_control="yes")), f"{IN_BLOCK}.tool_use.cache_control: Input should be a valid dictionary"),
    (
        said({"type": "image", "source": {"type": "base64", "data": ""}}),
        ".image.source.base64.media_type: F",
    ),
    (said({"type": "image", "source": "AAAA"}), f"{IN_BLOCK}.image.source: Input should be a valid dictionary"),
    (
        document({"type": "content", "content": [{"type": "image", "source": {"type": "url"}}]}),
        "source.url.url: F",
    ),
    (document({"type": "x"}), ".source.type: Input tag 'x' is not known. Expected one of 'base64', 'text', 'content'"),
    ({"system": 5}, "system: Input should be a valid string or list"),
    ({"system": [{"type": "image", "source": PNG}]}, "system.0.type: Input should be 'text'"),
    ({"stream": "yes"}, "stream: Input should be a valid boolean"),
    ({"temperature": "hot"}, "temperature: Input should be a valid number"),
    ({"temperature": 5}, "temperature: Input should be less than or equal to 1"),
    ({"top_k": -1}, "top_k: Input should be greater than or equal to 0"),
    ({"stop_sequences": [1]}, "stop_sequences.0: Input should be a valid string"),
    ({"tools": "no"}, "tools: Input should be a valid list"),
    ({"tools": [5]}, "tools.0.custom: Input should be a valid dictionary"),
    (tool(input_schema={}), "tools.0.custom.name: Field required"),
    (tool(name="x"), "tools.0.custom.input_schema: Field required"),
    (tool(type=["x"], name="x"), "tools.0.type: Input should be a valid string"),
    ({"tool_choice": {"type": "x"}}, "tool_choice.type: Input tag 'x' is not known. Expected one of 'auto', 'any', 'n"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.tool.name: Field required"),
    ({"thinking": {"type": "x"}}, "thinking.type: Input tag 'x' is not known. Expected one of 'enabled', 'adaptive'"),
    ({"thinking": {"type": "enabled"}}, "thinking.enabled.budget_tokens: Field required"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: Field required"),
    (
        {"output_format": {"type": "json_schema", "schema": {"properties": {"a": {"anyOf": None}}}}},
        "output_format.schema.properties.a.anyOf: Input should be a valid list",
    ),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_a_client_has_built_wrong_is_named_as_anthropic_names_it(wrong: dict[str, Any], words: str) -> None:
    assert words in fault({**GOOD, **wrong})


@pytest.mark.parametrize("name", GOOD)
def test_a_field_that_is_missing_is_named(name: str) -> None:
    found = fault({key: value for key, value in GOOD.items() if key != name})
    assert found == f"{name}: Field required"


def test_counting_needs_no_max_tokens_and_knows_the_same_blocks() -> None:
    asked = {"model": "m", "messages": GOOD["messages"]}
    assert fault(asked, counting=True) == ""
    assert fault({**asked, **said({"type": "hologram"})}, counting=True).startswith("messages.0.content.0.type")


PASSES: list[dict[str, Any]] = [
    dict.fromkeys(("system", "tools", "tool_choice", "thinking", "stream", "temperature", "cache_control")),
    {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": []},
            {"role": "user", "content": ""},
        ]
    },
    said({"type": "text", "text": "", "cache_control": None}, result(None), result([]), {**use(), "caller": {}}),
    said(
        {"type": "thinking", "thinking": ""}, {"type": "image", "source": {**PNG, "media_type": "image/x", "data": ""}}
    ),
    said({"type": "text", "text": "x", "novelty": 1, "cache_control": {"type": "ephemeral", "scope": "global"}}),
    {"tools": [{"type": "web_search_2030", "name": None, "max_uses": 8}, {"name": "a" * 200, "input_schema": {}}]},
    {"temperature": 1, "top_p": 0, "novelty": {}, "thinking": {"type": "adaptive", "display": "omitted"}},
]


@pytest.mark.parametrize("asked", PASSES)
def test_what_the_bundle_repairs_or_drops_passes(asked: dict[str, Any]) -> None:
    assert fault({**GOOD, **asked}) == ""


@pytest.mark.keeps("log-limit")
@pytest.mark.parametrize(
    "wrong",
    [
        said({"type": "x\n\x1b[2J\u202e" + "y" * 10_000}),
        {"tool_choice": {"type": "y" * 10_000}},
        {"messages": [{"role": "y" * 10_000, "content": "x"}]},
        {"messages": [5] * 100_000},
        said(*[{"type": "text"}] * 100_000),
        said(*[result([{"type": "text", "text": "x" * 10_000, "cache_control": "y" * 10_000}])] * 1_000),
    ],
)
def test_a_fault_is_one_short_line_at_once_however_much_is_wrong(wrong: dict[str, Any]) -> None:
    began = time.monotonic()
    found = fault({**GOOD, **wrong})
    assert time.monotonic() - began < 0.2
    assert found
    assert found.isprintable()
    assert len(found) <= MAX_WORDS + 1
    assert "y" * 100 not in found


def types(kind: Any) -> set[str]:
    """The values of `type` in all parts of a union of objects."""
    if is_typeddict(kind):
        return {*get_args(get_type_hints(kind)["type"])}
    if hasattr(kind, "model_fields"):  # a block of an answer, which a client sends back
        return {*get_args(kind.model_fields["type"].annotation)}
    return {found for part in get_args(kind) for found in types(part)}


def test_every_type_of_block_in_the_sdk_is_known() -> None:
    ours, inside = types(Block), types(ResultBlock)
    assert len(inside) > 5
    assert types(beta_content_block_param.BetaContentBlockParam) <= ours, "a new release of the SDK has more"
    assert types(beta_tool_result_block_param.Content) <= inside
    assert types(content_block_param.ContentBlockParam) <= ours


def test_every_choice_and_kind_of_thinking_in_the_sdk_is_known() -> None:
    kinds, choices = types(beta.BetaThinkingConfigParam), types(beta.BetaToolChoiceParam)
    assert {"adaptive", "tool"} <= kinds | choices
    for kind in kinds:
        assert fault({**GOOD, "thinking": {"type": kind, "budget_tokens": 1024}}) == ""
    for kind in choices:
        assert fault({**GOOD, "tool_choice": {"type": kind, "name": "x"}}) == ""


PYTHON = re.compile(
    r"Traceback|TypedDict|function-|Error\b|object has no|NoneType|\bNone\b|<\w+>|pydantic|tagged-union"
)


@settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(asked=mutated())
def test_whatever_has_the_shape_can_be_rewritten_and_whatever_has_not_is_named(asked: dict[str, Any]) -> None:
    before = json.dumps(asked)
    found = fault(asked)
    assert json.dumps(asked) == before
    if found:
        assert not PYTHON.search(found), found
        assert not found.startswith(":")
    else:
        messages_request(asked, limits=Limits(64_000))


@settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(asked=requests())
def test_whatever_claude_code_sends_has_the_shape(asked: dict[str, Any]) -> None:
    asked["tools"] = [each for each in asked["tools"] if each["name"] != "NoSchema"]
    assert fault({"model": "m", **asked}) == ""
