"""Signed thinking that goes back to Claude on chat completions (bundle/cortex/thinking.py)."""

from __future__ import annotations

import json

import pytest

from bundle.cortex.models import JSON, Limits
from bundle.cortex.requests import chat_request
from bundle.cortex.thinking import DETAILS, signed_details
from bundle.cortex.turns import turn_start
from tests.conversations import GPT, LLAMA, assistant, cortex, result, system, text, thought, tool, user
from tests.cortex_rules import check_chat, thinking_signature
from tests.recorded import THINKING

THINK: JSON = {"thinking": {"type": "adaptive"}, "tools": [tool()]}


def thinks(words: str, *ids: str, says: str | None = None) -> JSON:
    """An assistant's message as LiteLLM hands it over."""
    block = {"type": "thinking", "thinking": words, "signature": thinking_signature(words)}
    return assistant(says, *ids, thinking_blocks=[block], reasoning_content=words)


def details(out: JSON) -> list[str]:
    """The thinking in a request."""
    return [detail["text"] for message in out["messages"] for detail in message.get(DETAILS) or ()]


def test_thinking_goes_back_in_the_form_that_was_recorded() -> None:
    block = {"type": "thinking", "thinking": THINKING["text"], "signature": THINKING["signature"]}
    assert signed_details(assistant(None, "a", thinking_blocks=[block])) == {DETAILS: [THINKING]}


def test_several_thoughts_are_counted() -> None:
    blocks = [{"type": "thinking", "thinking": words, "signature": "s"} for words in ("a", "b")]
    assert signed_details(assistant(None, thinking_blocks=blocks))[DETAILS] == [thought("a", "s"), thought("b", "s", 1)]


@pytest.mark.parametrize(
    "other",
    [
        {"type": "thinking", "thinking": "t", "signature": ""},
        {"type": "thinking", "thinking": "t"},
        {"type": "thinking", "thinking": None, "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
    ],
)
def test_thinking_of_which_a_part_has_no_signature_does_not_go_back(other: JSON) -> None:
    signed = {"type": "thinking", "thinking": "t", "signature": "s"}
    for blocks in ([other], [signed, other]):
        assert signed_details(assistant(None, "a", thinking_blocks=blocks)) == {}


def test_a_turn_goes_on_thinking_while_its_thinking_goes_back() -> None:
    history = [user("x"), thinks("one", "a"), result("a"), thinks("two", "b", says="so"), result("b")]
    for end, thoughts in ((1, []), (3, ["one"]), (5, ["one", "two"])):
        out = cortex(*history[:end], **THINK)
        assert out["reasoning"] == {"effort": "medium"}
        assert out["temperature"] == 1
        assert details(out) == thoughts


LATER: dict[str, list[JSON]] = {
    "after parallel calls, which are split": [thinks("two", "b", "c"), result("b"), result("c")],
    "after calls without thinking": [assistant("so", "b"), result("b")],
    "after thinking without a signature": [
        assistant("so", "b", thinking_blocks=[{"type": "thinking", "thinking": "t", "signature": ""}]),
        result("b"),
    ],
    "with a tool that is forced": [thinks("two", "b"), result("b")],
}


@pytest.mark.parametrize("name", LATER)
def test_a_request_that_may_not_think_has_no_thinking(name: str) -> None:
    more: JSON = {"tool_choice": "required"} if "forced" in name else {}
    out = cortex(user("x"), thinks("one", "a"), result("a"), *LATER[name], **THINK, **more)
    assert "reasoning" not in out
    assert details(out) == []
    assert check_chat({**out, "model": "claude-sonnet-4-5"}) is None


def test_a_request_that_does_not_ask_for_thinking_has_none() -> None:
    assert details(cortex(user("x"), thinks("one", "a"), result("a"), tools=[tool()])) == []


def test_thinking_of_a_request_that_was_rewritten_before_stays_as_it_is() -> None:
    once = cortex(user("x"), thinks("one", "a"), result("a"), **THINK)
    messages = once.pop("messages")
    assert cortex(*messages, **once) == {**once, "messages": messages}


def test_thinking_goes_back_in_its_own_turn_only() -> None:
    older = [user("x"), thinks("one", "a"), result("a"), thinks("two", says="done")]
    first = cortex(*older, user("y"), **THINK)
    assert (details(first), "reasoning" in first) == ([], True)
    later = cortex(*older, user("y"), thinks("three", "b"), result("b"), **THINK)
    assert details(later) == ["three"]
    assert json.dumps(later["messages"][:5]) == json.dumps(first["messages"])


def test_what_a_user_adds_to_results_belongs_to_the_same_turn() -> None:
    history = [user("x"), assistant(None, "a"), result("a"), user("a reminder"), assistant(None, "b"), result("b")]
    for end, start in ((1, 0), (3, 0), (4, 0), (6, 0)):
        assert turn_start(history[:end]) == start
    assert turn_start([*history, assistant("done"), user("y"), user("z")]) == 7
    assert turn_start([assistant("x")]) == 0
    assert turn_start([user("x"), assistant("so"), system(text("s")), assistant("so")]) == 0


def test_thinking_that_a_model_has_refused_is_no_longer_sent_and_is_named() -> None:
    messages = [user("x"), thinks("one", "a"), result("a")]
    body = {"model": "claude-sonnet-4-6", "messages": messages, **THINK}
    out, _, left_out = chat_request(body, family="claude", limits=Limits(), refused={DETAILS})
    assert ("reasoning" in out, details(out), left_out) == (False, [], [DETAILS])
    body["messages"] = [user("x")]
    out, _, left_out = chat_request(body, family="claude", limits=Limits(), refused={DETAILS})
    assert ("reasoning" in out, left_out) == (True, [])


def test_refused_reasoning_takes_the_thinking_with_it() -> None:
    body = {"model": "claude-sonnet-4-6", "messages": [user("x"), thinks("one", "a"), result("a")], **THINK}
    assert details(chat_request(body, family="claude", limits=Limits(), refused={"reasoning"})[0]) == []


def test_other_models_never_get_thinking() -> None:
    for model in (GPT, LLAMA):
        out = cortex(user("x"), thinks("one", "a", says="so"), result("a"), model=model, **THINK)
        assert details(out) == []
        assert "one" not in json.dumps(out["messages"])


def test_a_text_beside_thinking_stays() -> None:
    out = cortex(user("x"), thinks("one", "a", says="so"), result("a"), **THINK)
    assert out["messages"][1]["content"] == [text("so")]
