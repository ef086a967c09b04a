"""What the bundle learns from a refusal on the Messages route (bundle/cortex/refusals.py): fields to leave out."""

from __future__ import annotations

import pytest

from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits
from bundle.cortex.refusals import Refusals
from tests.messages import MARK, TOOL, adapted, body, call, result, said, says, text, user


def test_a_field_that_cortex_names_is_left_out_from_then_on() -> None:
    asked = body(
        user(text("go")),
        says(text("well"), call("a")),
        user(result("a", [text("x")], is_error=True)),
        tools=[TOOL],
        top_k=3,
    )
    refusals = Refusals()
    for path in ("top_k", "messages.2.content.0.tool_result.is_error", "tools.0.custom.description"):
        words = f"{path}: Extra inputs are not permitted"
        sent = adapted(asked, refusals=refusals)
        assert refusals.learn_messages(words, sent, []) != []
        assert refusals.learn_messages(words, sent, []) != []  # of a request that was already on its way
        again = adapted(asked, refusals=refusals)
        assert refusals.learn_messages(words, again, []) == []  # another try would not help
    out = adapted(asked, refusals=refusals)
    assert "top_k" not in out
    assert "is_error" not in said(out)
    assert out["tools"] == [{"name": "Bash", "input_schema": TOOL["input_schema"]}]
    assert out["messages"][1] == asked["messages"][1]


def test_the_type_name_inside_a_refused_path_is_skipped() -> None:
    refusals = Refusals()
    asked = {**body(user(text("hi", cache_control=MARK))), "thinking": {"type": "enabled", "budget_tokens": 1024}}
    asked["max_tokens"] = 3000
    for path in ("messages.0.content.0.text.cache_control", "thinking.enabled.budget_tokens"):
        assert refusals.learn_messages(f"{path}: Extra inputs are not permitted", asked, []) != []
    out, _, _ = messages_request(asked, limits=Limits(), refusals=refusals)
    assert out["messages"] == [user(text("hi"))]
    assert out["thinking"] == {"type": "enabled"}


def test_a_refused_effort_leaves_the_format_and_no_empty_field() -> None:
    for config in ({"effort": "low"}, {"effort": "low", "format": {"type": "json_schema", "schema": {}}}):
        asked = {**body(user(text("hi")), output_config=config), "model": "claude-opus-4-6"}
        refusals = Refusals()
        sent = messages_request(asked, limits=Limits(), refusals=refusals)[0]
        assert refusals.learn_messages("This model does not support the effort parameter.", sent, []) != []
        out = messages_request(asked, limits=Limits(), refusals=refusals)[0]
        assert out.get("output_config") == ({"format": config["format"]} if "format" in config else None)


def test_betas_that_were_refused_stay_away_with_what_needs_them() -> None:
    asked = {**body(user(text("hi")), output_config={"effort": "low"}), "model": "claude-opus-4-6"}
    refusals = Refusals()
    out, betas, _ = messages_request(asked, limits=Limits())
    assert "output_config" in out
    assert refusals.learn_messages("invalid beta flag", out, betas) == ["beta effort-2025-11-24"]
    out, betas, _ = messages_request(asked, limits=Limits(), refusals=refusals)
    assert betas == []
    assert "output_config" not in out


@pytest.mark.parametrize(
    "words", ["messages.0.role: Extra inputs are not permitted", "model: Extra inputs are not permitted", "no", ""]
)
def test_no_answer_of_cortex_takes_out_what_every_request_needs(words: str) -> None:
    assert Refusals().learn_messages(words, body(user(text("hi"))), ["a-beta"]) == []
