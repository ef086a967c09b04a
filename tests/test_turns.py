"""Tool calls and results in the order that Cortex wants (bundle/cortex/turns.py): for Claude one call per turn."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from bundle.cortex.models import JSON
from bundle.cortex.turns import (
    CONTINUE,
    LOST_RESULT,
    NO_RESULT,
    NO_TOOLS,
    ends_with_user,
    one_call_per_turn,
    plain_id,
    results_follow_calls,
)
from tests.conversations import (
    CLAUDE,
    GPT,
    LLAMA,
    assistant,
    call,
    cortex,
    image,
    result,
    sent,
    shape,
    system,
    text,
    told,
    tool,
    user,
)

CALLS = {
    "one call stays": (
        [user("x"), assistant("so", "a"), result("a"), user("y")],
        ["user", "assistant a", "tool a", "user"],
    ),
    "parallel calls": (
        [user("x"), assistant("so", "a", "b", "c"), result("a"), result("b"), result("c"), user("y")],
        ["user", "assistant a", "tool a", "assistant b", "tool b", "assistant c", "tool c", "user"],
    ),
    "results in another order": (
        [user("x"), assistant("so", "a", "b"), result("b"), result("a")],
        ["user", "assistant a", "tool a", "assistant b", "tool b"],
    ),
    "user text between the results": (
        [user("x"), assistant("so", "a", "b"), result("a"), user("y"), result("b"), user("z")],
        ["user", "assistant a", "tool a", "assistant b", "tool b", "user", "user"],
    ),
    "two parallel turns": (
        [assistant(None, "a", "b"), result("a"), result("b"), assistant(None, "c", "d"), result("c"), result("d")],
        ["assistant a", "tool a", "assistant b", "tool b", "assistant c", "tool c", "assistant d", "tool d"],
    ),
    "assistants in a row, then their results": (
        [assistant(None, "a"), assistant(None, "b"), result("a"), result("b")],
        ["assistant a", "tool a", "assistant b", "tool b"],
    ),
}


@pytest.mark.parametrize(("messages", "expected"), CALLS.values(), ids=CALLS)
def test_claude_is_told_one_call_per_turn_and_its_result(messages: list[JSON], expected: list[str]) -> None:
    assert shape(one_call_per_turn(messages)) == expected


def test_a_split_turn_keeps_its_text_with_the_first_call() -> None:
    split = one_call_per_turn([assistant("so", "a", "b"), result("a", "one"), result("b", "two")])
    assert [message["content"] for message in split] == ["so", "one", None, "two"]


PAIRING = {
    "parallel calls stay together": (
        [assistant("so", "a", "b"), result("b"), result("a"), user("y")],
        ["assistant a b", "tool a", "tool b", "user"],
    ),
    "a missing result is filled in": (
        [assistant(None, "a", "b"), result("b"), user("y")],
        ["assistant a b", "tool a", "tool b", "user"],
    ),
    "a last call without its result": ([user("x"), assistant(None, "a")], ["user", "assistant a", "tool a"]),
    "a result without its call becomes text": ([user("x"), result("a"), user("y")], ["user", "user", "user"]),
    "a second result becomes text": (
        [assistant(None, "a"), result("a"), result("a")],
        ["assistant a", "tool a", "user"],
    ),
    "a late result becomes text": (
        [assistant(None, "a"), user("y"), assistant("hm"), result("a")],
        ["assistant a", "tool a", "user", "assistant", "user"],
    ),
    "an id used twice is made unique": (
        [assistant(None, "a"), result("a"), assistant(None, "a"), result("a"), assistant(None, "a"), result("a")],
        ["assistant a", "tool a", "assistant a_2", "tool a_2", "assistant a_3", "tool a_3"],
    ),
    "a unique id that is already taken": (
        [assistant(None, "a_2"), result("a_2"), assistant(None, "a", "a"), result("a"), result("a")],
        ["assistant a_2", "tool a_2", "assistant a a_3", "tool a", "tool a_3"],
    ),
    "calls without an id": (
        [assistant(None, "", ""), result(""), result("")],
        ["assistant call call_2", "tool call", "tool call_2"],
    ),
}


@pytest.mark.parametrize(("messages", "expected"), PAIRING.values(), ids=PAIRING)
def test_each_call_is_followed_by_exactly_its_result(messages: list[JSON], expected: list[str]) -> None:
    assert shape(results_follow_calls(messages)) == expected


def test_results_stay_with_their_calls_when_ids_are_renamed() -> None:
    first, second = assistant(None, "a"), assistant(None, "a", "b")
    out = results_follow_calls([first, result("a", "1"), second, result("b", "3"), result("a", "2")])
    assert [message["content"] for message in out if message["role"] == "tool"] == ["1", "2", "3"]


def test_what_is_filled_in_or_moved_is_said() -> None:
    notes: list[str] = []
    calls, filled, orphan = results_follow_calls([assistant(None, "a"), result("b", "late")], notes.append)
    assert calls == assistant(None, "a")
    assert filled == result("a", NO_RESULT)
    assert orphan == user(LOST_RESULT, "late")
    assert notes == ["missing tool result filled in", "tool result without its call turned into text"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('{ "b":2, "a":1}', '{ "b":2, "a":1}'),
        ("", "{}"),
        (None, "{}"),
        ({"a": 1}, '{"a": 1}'),
        ("[1]", '{"arguments": "[1]"}'),
        ('{"cut', '{"arguments": "{\\"cut"}'),
        ("null", '{"arguments": "null"}'),
    ],
)
def test_arguments_are_a_json_object_and_keep_their_bytes(arguments: Any, expected: str) -> None:
    messages = [assistant(tool_calls=[call("a", arguments)]), result("a")]
    assert results_follow_calls(messages)[0]["tool_calls"][0]["function"]["arguments"] == expected


def test_gpt_keeps_parallel_calls_as_they_are() -> None:
    messages = [user("x"), assistant("so", "a", "b"), result("a"), result("b"), user("y")]
    assert sent(*messages, model=GPT, tools=[tool()]) == messages


def test_models_without_tools_are_told_calls_and_results_in_words() -> None:
    calls = assistant("so", tool_calls=[call("a", '{"command": "ls"}'), call("b", name="Read")])
    history = [system(text("Be brief.")), user("x"), calls, result("b"), result("a", "files")]
    out = cortex(*history, model=LLAMA, tools=[tool()], tool_choice="auto")
    assert "tools" not in out
    assert "tool_choice" not in out
    assert [(message["role"], told(message)) for message in out["messages"]] == [
        ("system", f"Be brief.\n{NO_TOOLS}"),
        ("user", "x"),
        ("assistant", 'so\n[Called Bash with {"command": "ls"}]\n[Called Read with {}]'),
        ("user", "[Result of Bash]\nfiles"),
        ("user", "[Result of Read]\nout"),
    ]


def test_a_model_without_tools_learns_so_without_a_system_text_too() -> None:
    first, second = sent(user("x"), model=LLAMA, tools=[tool()])
    assert first == system(text(NO_TOOLS))
    assert second == user("x")


def test_a_model_without_tools_is_told_nothing_when_there_were_none() -> None:
    assert sent(user("x"), assistant("y"), user("z"), model=LLAMA) == [user("x"), assistant("y"), user("z")]


def test_images_in_results_stay_with_models_without_tools() -> None:
    out = sent(assistant(None, "a"), result("a", [text("seen"), image()]), model=LLAMA)
    assert out[2] == user("[Result of Bash]", "seen", image())


def test_with_tools_the_last_message_is_the_users() -> None:
    for model in (CLAUDE, GPT):
        assert sent(user("x"), assistant("half an answ"), model=model, tools=[tool()])[2:] == [user(CONTINUE)]


@pytest.mark.parametrize(
    "messages", [[user("x")], [user("x"), assistant(None, "a"), result("a")], [user("x"), assistant("y"), user("z")]]
)
def test_a_conversation_that_ends_well_is_not_carried_on(messages: list[JSON]) -> None:
    assert ends_with_user(messages) == messages


def test_without_tools_an_answer_may_be_begun_for_the_model() -> None:
    begun = assistant([text("{")])
    assert sent(user("x"), assistant("{")) == [user("x"), begun]
    assert sent(user("x"), assistant("{"), tools=[{"type": "bash_20250124", "name": "bash"}])[-1] == begun


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["call|1:abc.x"], ["call_1_abc_x"]),
        (["a|b", "a:b"], ["a_b", "a_b_2"]),
        (["ünï", ""], ["_n_", "call"]),
        (["x" * 200], ["x" * 27 + "_" + hashlib.sha256(b"x" * 200).hexdigest()[:12]]),
        (["toolu_bdrk_01AbcDefGhiJklMnoPqrStu1"], ["toolu_bdrk_01AbcDefGhiJklMnoPqrStu1"]),
    ],
)
def test_ids_of_another_provider_become_ones_that_cortex_takes(given: list[str], expected: list[str]) -> None:
    seen: dict[str, int] = {}
    assert [plain_id(identity, seen) for identity in given] == expected
    assert all(len(identity) <= 40 for identity in seen)
    messages = [user("x")]
    for identity in given:
        messages += [assistant(None, identity), result(identity)]
    out = sent(*messages)
    assert [m["tool_calls"][0]["id"] for m in out if "tool_calls" in m] == expected
    assert [m["tool_call_id"] for m in out if m["role"] == "tool"] == expected
    assert sent(*messages, user("more"))[: len(out)] == out, "the same on every turn"


def test_ids_that_are_long_stay_apart() -> None:
    seen: dict[str, int] = {}
    made = [plain_id("y" * 40, seen) for _ in range(12)]
    assert len(set(made)) == 12
    assert all(len(identity) <= 40 for identity in made)
