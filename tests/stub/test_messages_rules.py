"""The rules of Messages: what is refused and in which words, what is accepted, and each switch of `Options`.

A line of the contract (docs/cortex.md) is a row of a table here, or a test with its name.
"""

from __future__ import annotations

import pytest

from tests import cortex_rules as rules
from tests.cortex_rules import JSON, BadRequest, Options, check_messages, thinking_signature
from tests.messages import IMAGE, PDF
from tests.stub.sending import BUDGET, CLAUDE, GPT, MARKED, PIXEL, USER, V, custom, got, native, turns, use

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
    "a schema of draft 4": (
        native(tools=[custom(input_schema={"type": "object", "properties": {"a": {"exclusiveMaximum": True}}})]),
        "tools.0.custom.input_schema: JSON schema is invalid. It must match JSON Schema draft 2020-12",
    ),
    "a tool with a dot": (
        native(tools=[custom(name="a.b")]),
        "tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'",
    ),
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
    "a document": (turns(("user", [PDF])), "Input tag 'document' found using 'type' does not match"),
    "an image in a failed result": (
        turns(
            ("user", "x"),
            ("assistant", [use("a")]),
            ("user", [{"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": [IMAGE]}]),
        ),
        "all content must be type",
    ),
    "a blank stop sequence": (native(stop_sequences=[" "]), "must contain non-whitespace"),
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


def test_messages_accepts_the_documented_betas() -> None:
    assert check_messages(native(), {**V, "anthropic-beta": ",".join(rules.BETAS)}) is None


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
    text = {**PDF, "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    assert "only base64 PDFs" in str(check_messages(turns(("user", [text])), V, Options(documents=True)))
    failed = NATIVE_REFUSED["an image in a failed result"][0]
    assert check_messages(failed, V, Options(images_in_failed_results=True)) is None
    assert "max tokens of 1000" in str(check_messages(native(), V, Options(output_cap=1000)))
    refused = Options(refused_fields=["thinking"])
    assert "thinking: Extra inputs" in str(check_messages(native(thinking=BUDGET), V, refused))
