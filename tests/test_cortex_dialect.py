"""Requests in Cortex's dialect: a test per function and line of the contract, then promises for any conversation.

The conversations of the second half are Anthropic's, made at random and translated by LiteLLM's own adapter, so that
what is tested is what the callback is really handed. What comes out is judged by the rules of the stand-in.
"""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import importlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundle.cortex.contents import (
    EMPTY,
    END_OF_RESULTS,
    IMAGE_TOO_OLD,
    IMAGES_ABOVE,
    IMAGES_BELOW,
    MAX_IMAGES,
    NO_OUTPUT,
    cache_marks,
    limit_images,
    marks_after_results,
    plain_contents,
    text_only_results,
    without_marks,
)
from bundle.cortex.models import JSON, Limits, family_of
from bundle.cortex.requests import BESIDE_REASONING, chat_request, stop_sequences
from bundle.cortex.schemas import cortex_tools, object_schema
from bundle.cortex.turns import (
    CONTINUE,
    LOST_RESULT,
    NO_RESULT,
    NO_TOOLS,
    ends_with_user,
    one_call_per_turn,
    plain_id,
    results_follow_calls,
    tools_in_words,
)
from tests.cortex_rules import MODELS, Options, check_chat

CLAUDE, GPT, LLAMA, GEMINI = "openai/claude-sonnet-4-5", "openai/openai-gpt-5", "openai/llama4-maverick", "gemini-3-pro"
MARK: JSON = {"cache_control": {"type": "ephemeral"}}
PIXEL = base64.b64encode(b"\x89PNG pixel").decode()
# Some of LiteLLM's own arguments: the callback keeps them, and they are not for the wire.
KEEP = frozenset({"custom_llm_provider", "metadata", "model_info"})


def text(words: str, **more: Any) -> JSON:
    return {"type": "text", "text": words, **more}


def image(data: str = PIXEL, kind: str = "image/png", **more: Any) -> JSON:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}, **more}


def system(*content: JSON, **more: Any) -> JSON:
    return {"role": "system", "content": list(content), **more}


def user(*content: JSON | str, **more: Any) -> JSON:
    return {"role": "user", "content": [text(c) if isinstance(c, str) else c for c in content], **more}


def assistant(content: Any = None, *ids: str, **more: Any) -> JSON:
    return {"role": "assistant", "content": content, **({"tool_calls": [*map(call, ids)]} if ids else {}), **more}


def call(identity: str, arguments: Any = "{}", name: str = "Bash", **more: Any) -> JSON:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def result(identity: str, content: Any = "out", **more: Any) -> JSON:
    return {"role": "tool", "tool_call_id": identity, "content": content, **more}


def tool(name: str = "Bash", parameters: Any = None, **more: Any) -> JSON:
    parameters = {"type": "object", "properties": {}} if parameters is None else parameters
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def cortex(*messages: JSON, model: str = CLAUDE, limits: Limits | None = None, **fields: Any) -> JSON:
    """What `to_cortex` makes of a request."""
    body = {"model": model, "messages": list(messages), **fields}
    return chat_request(body, family=family_of(model), limits=limits or Limits(), keep=KEEP)[0]


def sent(*messages: JSON, **fields: Any) -> list[JSON]:
    made: list[JSON] = cortex(*messages, **fields)["messages"]
    return made


def shape(messages: Sequence[JSON]) -> list[str]:
    """A conversation at a glance: `user`, `assistant a b` (with its calls), `tool a`."""
    ids = ([c["id"] for c in m.get("tool_calls") or ()] + [m[k] for k in ("tool_call_id",) if k in m] for m in messages)
    return [" ".join([message["role"], *found]) for message, found in zip(messages, ids, strict=True)]


def marked(messages: Sequence[JSON]) -> list[tuple[int, int]]:
    """Message and block of each mark; block -1 is a mark beside the content."""
    found = []
    for position, message in enumerate(messages):
        blocks = message["content"] if isinstance(message["content"], list) else []
        found += [(position, -1) for item in (message, *message.get("tool_calls", ())) if "cache_control" in item]
        found += [(position, number) for number, block in enumerate(blocks) if "cache_control" in block]
    return found


def urls(messages: Sequence[JSON]) -> list[str]:
    contents = [m["content"] for m in messages if isinstance(m.get("content"), list)]
    return [block["image_url"]["url"] for content in contents for block in content if block["type"] == "image_url"]


def told(message: JSON) -> str:
    """All text of a message."""
    content = message["content"]
    return "\n".join(b.get("text", "") for b in content) if isinstance(content, list) else content or ""


# --- Calls and results ----------------------------------------------------------------------------------------------

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


# --- Models without tools -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [LLAMA, GEMINI])
def test_models_without_tools_are_told_calls_and_results_in_words(model: str) -> None:
    calls = assistant("so", tool_calls=[call("a", '{"command": "ls"}'), call("b", name="Read")])
    history = [system(text("Be brief.")), user("x"), calls, result("b"), result("a", "files")]
    out = cortex(*history, model=model, tools=[tool()], tool_choice="auto")
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


# --- The last message -----------------------------------------------------------------------------------------------


def test_with_tools_the_last_message_is_the_users() -> None:
    for model in (CLAUDE, GPT):
        assert sent(user("x"), assistant("half an answ"), model=model, tools=[tool()])[2:] == [user(CONTINUE)]


@pytest.mark.parametrize(
    "messages", [[user("x")], [user("x"), assistant(None, "a"), result("a")], [user("x"), assistant("y"), user("z")]]
)
def test_a_conversation_that_ends_well_is_not_carried_on(messages: list[JSON]) -> None:
    assert ends_with_user(messages) == messages


def test_without_tools_an_answer_may_be_begun_for_the_model() -> None:
    assert sent(user("x"), assistant("{")) == [user("x"), assistant("{")]
    assert sent(user("x"), assistant("{"), tools=[{"type": "bash_20250124", "name": "bash"}])[-1] == assistant("{")


# --- Contents -------------------------------------------------------------------------------------------------------

CONTENTS: dict[str, tuple[JSON, list[JSON]]] = {
    "a user's string": ({"role": "user", "content": "x"}, [user("x")]),
    "a user's block": (user("x"), [user("x")]),
    "a system's string": ({"role": "system", "content": "x"}, [system(text("x"))]),
    "a developer is the system": ({"role": "developer", "content": "x"}, [system(text("x"))]),
    "an empty text block": (user("", "x", "  \n"), [user("x")]),
    "an empty text": ({"role": "user", "content": ""}, []),
    "an empty list": ({"role": "user", "content": []}, []),
    "no content": ({"role": "user", "content": None}, []),
    "an assistant's blocks": (assistant([text("x", **MARK), text("y")]), [assistant("xy", **MARK)]),
    "an empty answer": (assistant(""), []),
    "no text beside calls": (assistant("", "a"), [assistant(None, "a")]),
    "white space beside calls": (assistant(" \n", "a"), [assistant(None, "a")]),
    "thinking": (
        assistant("x", thinking_blocks=[{"type": "thinking", "thinking": "t"}], reasoning_content="t"),
        [assistant("x")],
    ),
    "nothing but thinking": (assistant("", reasoning_content="t", thinking_blocks=[{"type": "thinking"}]), []),
    "a refusal": (assistant(None, refusal="No."), [assistant("No.")]),
    "a mark on a message": (user("x", "y", **MARK), [user("x", text("y", **MARK))]),
    "fields of other makers": (user({**text("x"), "prompt_cache_breakpoint": True}, name="me"), [user("x")]),
    "an image": (user(image(kind="image/webp")), [user(image(kind="image/webp"))]),
    "an image by its other name": (user(image(kind="image/jpg")), [user(image(kind="image/jpeg"))]),
    "an image with details": (
        user({"type": "image_url", "image_url": {"url": image()["image_url"]["url"], "detail": "low"}}),
        [user(image())],
    ),
    "a tool's name": (
        result("a", [{"type": "tool_reference", "tool_name": "Read"}]),
        [result("a", [text("[tool Read]")])],
    ),
}


@pytest.mark.parametrize(("message", "expected"), CONTENTS.values(), ids=CONTENTS)
def test_contents_are_plain(message: JSON, expected: list[JSON]) -> None:
    first = user("first")
    assert plain_contents([first, message]) == [first, *expected]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (image("JVBERi0=", "application/pdf"), "A PDF was"),
        (image("PHN2Zz4=", "image/svg+xml"), "A file (image/svg+xml) was"),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a"}}, "A file (https://example.com/a)"),
        ({"type": "image_url", "image_url": "https://example.com/a.pdf"}, "A file (https://example.com/a.pdf)"),
        ({"type": "file", "file": {"file_id": "x", "filename": "a.doc"}}, "A file (a.doc) was"),
        ({"type": "file", "file": {"file_id": "x"}}, "A file (unnamed) was"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "A input_audio was"),
    ],
)
def test_what_cortex_does_not_take_is_told_in_words(part: JSON, words: str) -> None:
    for message in (user(part), result("a", [part])):
        notes: list[str] = []
        (block,) = plain_contents([user("x"), message], notes.append)[1]["content"]
        assert words in block["text"]
        assert len(notes) == 1
        assert "replaced by words" in notes[0]
    assert plain_contents([user({**part, **MARK})])[0]["content"][0]["cache_control"] == MARK["cache_control"]


def test_a_request_that_says_nothing_still_has_a_user() -> None:
    assert sent({"role": "user", "content": ""}) == [user(EMPTY)]
    assert sent(system(text("x")), user(" ")) == [system(text("x")), user(EMPTY)]


# --- Results in text, images ----------------------------------------------------------------------------------------

RESULTS: dict[str, tuple[list[JSON], list[JSON]]] = {
    "a text": ([result("a", [text("out")])], [result("a", "out")]),
    "texts": ([result("a", [text("one"), text("two")])], [result("a", "one\ntwo")]),
    "nothing": ([result("a", [])], [result("a", NO_OUTPUT)]),
    "an image": ([result("a", [image()])], [result("a", IMAGES_BELOW), user(IMAGES_ABOVE, image())]),
    "text and image": (
        [result("a", [text("out"), image()]), user("x")],
        [result("a", "out"), user(IMAGES_ABOVE, image()), user("x")],
    ),
    "images of a run of results": (
        [result("a", [image("QQ==")]), result("b", [text("out")]), result("c", [image("Qg==")])],
        [
            *(result("a", IMAGES_BELOW), result("b", "out"), result("c", IMAGES_BELOW)),
            user(IMAGES_ABOVE, image("QQ=="), image("Qg==")),
        ],
    ),
}


@pytest.mark.parametrize(("messages", "expected"), RESULTS.values(), ids=RESULTS)
def test_results_are_text_and_images_follow_them(messages: list[JSON], expected: list[JSON]) -> None:
    assert text_only_results(messages) == expected


def test_between_the_calls_of_a_split_turn_images_follow_their_own_result() -> None:
    out = sent(user("x"), assistant(None, "a", "b"), result("a", [image()]), result("b", [image()]), tools=[tool()])
    assert shape(out) == ["user", "assistant a", "tool a", "user", "assistant b", "tool b", "user"]


def test_twenty_images_pass_untouched() -> None:
    messages = [user("x", *[image()] * 19), user(image(**MARK))]
    assert limit_images(messages) == messages


@pytest.mark.parametrize(("count", "left"), [(21, 11), (30, 20), (31, 11), (45, 15)])
def test_of_too_many_images_the_oldest_go_ten_at_a_time(count: int, left: int) -> None:
    each = [image(base64.b64encode(b"%d" % n).decode()) for n in range(count)]
    notes: list[str] = []
    out = limit_images([user("x", *each[:7]), assistant("y"), user(*each[7:])], notes.append)
    assert sent(user("x", *each[:7]), assistant("y"), user(*each[7:])) == out
    assert urls(out) == urls([user(*each[count - left :])])
    assert json.dumps(out).count(IMAGE_TOO_OLD) == count - left
    assert notes == [f"{count - left} oldest images replaced by words"]


def test_images_over_the_size_of_a_body_go_oldest_first() -> None:
    large = image("A" * (6 * 1024 * 1024))
    out = limit_images([user(large), user("x", large), user(large)])
    assert len(urls(out)) == 2
    assert out[0] == user(IMAGE_TOO_OLD)


def test_an_image_that_goes_leaves_its_mark() -> None:
    out = limit_images([user(image(**MARK), *[image()] * 20)])
    assert out[0]["content"][0] == text(IMAGE_TOO_OLD, **MARK)


# --- Cache marks ----------------------------------------------------------------------------------------------------

CACHED = Limits(cache_tool_results=True)


def test_a_mark_is_ephemeral_and_nothing_else() -> None:
    long = {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
    expected = [system(text("s", **MARK)), user(text("x", **MARK))]
    assert sent(system(text("s", **long)), user(text("x", **long))) == expected


def test_of_too_many_marks_the_last_of_the_system_and_the_newest_of_the_users_stay() -> None:
    messages = [system(text("s", **MARK), text("t", **MARK)), *[user("x", text("y", **MARK))] * 5]
    assert marked(cache_marks(messages)) == [(0, 1), (3, 1), (4, 1), (5, 1)]


def test_room_that_the_users_leave_goes_to_the_rest_of_the_system() -> None:
    messages = [system(*[text("s", **MARK)] * 5), user(text("x", **MARK))]
    assert marked(cache_marks(messages)) == [(0, 2), (0, 3), (0, 4), (1, 0)]


def test_without_a_system_the_users_get_all_marks() -> None:
    assert marked(cache_marks([user(*[text("x", **MARK)] * 5)])) == [(0, 1), (0, 2), (0, 3), (0, 4)]


@pytest.mark.parametrize(
    "message",
    [
        assistant("so", **MARK),
        assistant("so", tool_calls=[call("a", **MARK)]),
        result("a", **MARK),
    ],
    ids=["assistant", "call", "result"],
)
def test_a_mark_that_cortex_would_ignore_moves_back_to_where_it_counts(message: JSON) -> None:
    out = cache_marks([system(text("s")), user("x", "y"), message, user("z")])
    assert marked(out) == [(1, 1)]
    assert marked(cache_marks([message, user("z")])) == []


def test_a_mark_inside_a_result_counts_as_one_on_it() -> None:
    out = sent(user("x"), assistant(None, "a"), result("a", [text("out", **MARK)]))
    assert marked(out) == [(0, 0)]


def test_a_block_that_is_already_marked_is_marked_once() -> None:
    messages = [user(text("x", **MARK)), assistant("so", **MARK)]
    assert marked(cache_marks(messages)) == [(0, 0)]


def test_marks_on_users_and_system_arrive_whether_or_not_results_are_cached() -> None:
    before = [system(text("s", **MARK)), user(text("x", **MARK))]
    for limits in (Limits(), CACHED):
        out = sent(*before, assistant(None, "a"), result("a"), user(text("y", **MARK)), limits=limits)
        blocks = [out[position]["content"][number] for position, number in marked(out)]
        assert blocks == [text("s", **MARK), text("x", **MARK), text("y", **MARK)]


def test_a_mark_that_moves_on_leaves_the_words_as_they_were() -> None:
    plain = [user("x"), assistant("yz"), {"role": "user", "content": "x"}, {"role": "system", "content": "x"}]
    marked_then = [
        user(text("x", **MARK)),
        assistant([text("y"), text("z", **MARK)]),
        user(text("x", **MARK)),
        system(text("x", **MARK)),
    ]
    assert without_marks(sent(*marked_then)) == sent(*plain)


def test_no_mark_is_sent_to_other_models() -> None:
    history = [system(text("s", **MARK)), user(text("x", **MARK)), assistant(None, tool_calls=[call("a", **MARK)])]
    for model in (GPT, LLAMA):
        assert "cache_control" not in json.dumps(cortex(*history, result("a", **MARK), model=model, tools=[tool()]))


def test_a_run_of_results_may_end_in_a_constant_block_that_takes_the_mark() -> None:
    history = [user("x"), assistant(None, "a"), result("a", **MARK)]
    assert sent(*history, limits=CACHED)[3:] == [user(text(END_OF_RESULTS, **MARK))]
    later = sent(*history[:2], result("a"), assistant(None, "b"), result("b", **MARK), limits=CACHED)
    assert later[3:6] == [user(END_OF_RESULTS), assistant(None, "b"), result("b")]
    assert later[6:] == [user(text(END_OF_RESULTS, **MARK))]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([result("a", **MARK), user("x", "y")], [user(text(END_OF_RESULTS, **MARK)), user("x", "y")]),
        ([result("a", [image()], **MARK)], [user(IMAGES_ABOVE, image(**MARK))]),
        ([result("a", [image()], **MARK), user("x")], [user(IMAGES_ABOVE, image(**MARK)), user("x")]),
    ],
    ids=["before the user's text", "after the images", "between images and the user's text"],
)
def test_the_mark_of_a_result_moves_to_what_ends_the_results(messages: list[JSON], expected: list[JSON]) -> None:
    assert sent(user("x"), assistant(None, "a"), *messages, limits=CACHED)[3:] == expected


@pytest.mark.parametrize(
    "function",
    [
        *(results_follow_calls, one_call_per_turn, tools_in_words, ends_with_user),
        *(plain_contents, text_only_results, limit_images),
        *(marks_after_results, cache_marks, without_marks),
    ],
)
def test_no_function_changes_the_messages_it_is_given(function: Callable[[list[JSON]], list[JSON]]) -> None:
    results = [result("a", [text("out", **MARK), image()], **MARK), result("b", []), result("c", [text("late")])]
    messages = [system(text("s", **MARK)), user(*[image(**MARK)] * 21), assistant("so", "a", "b", **MARK), *results]
    before = copy.deepcopy(messages)
    function(messages)
    assert messages == before


# --- Tools ----------------------------------------------------------------------------------------------------------


def test_only_functions_pass_and_only_what_cortex_reads_of_them() -> None:
    notes: list[str] = []
    tools = [
        {**tool("Read", description="reads", strict=True), **MARK, "eager_input_streaming": True},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "code_execution_20250522"},
        {"googleSearch": {}},
        tool("Read", description="another"),
        {"type": "function", "function": {"name": "Bare"}},
    ]
    assert cortex_tools(tools, notes.append) == [tool("Read", description="reads"), tool("Bare")]
    dropped = ("bash", "code_execution_20250522", "None", "Read")
    assert notes == [f"tool {name} dropped" for name in dropped]


def test_a_request_whose_tools_are_all_dropped_has_none() -> None:
    out = cortex(user("x"), tools=[{"type": "bash_20250124", "name": "bash"}], tool_choice="required")
    assert out.keys() == {"model", "messages"}


PROPERTIES: JSON = {"a": {"type": "string"}}
SCHEMAS: dict[str, tuple[Any, JSON]] = {
    "none": (None, {"type": "object", "properties": {}}),
    "empty": ({}, {"type": "object", "properties": {}}),
    "no type": ({"properties": PROPERTIES}, {"type": "object", "properties": PROPERTIES}),
    "another type": ({"type": "string"}, {"type": "object", "properties": {}}),
    "a list of types": (
        {"type": ["object", "null"], "properties": PROPERTIES},
        {"type": "object", "properties": PROPERTIES},
    ),
    "no properties": ({"type": "object", "properties": None}, {"type": "object", "properties": {}}),
    "required in the old way": (
        {"type": "object", "properties": PROPERTIES, "required": True},
        {"type": "object", "properties": PROPERTIES},
    ),
    "alternatives": (
        {"anyOf": [{"properties": {"a": {"type": "string"}}, "required": ["a", "b"]}, {"required": ["b"]}]},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
    ),
    "what every alternative requires": (
        {"oneOf": [{"properties": {"a": {}, "b": {}}, "required": ["a", "b"]}, {"required": ["b"]}]},
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]},
    ),
    "all of": (
        {"properties": {"a": {}}, "required": ["a"], "allOf": [{"properties": {"b": {}}, "required": ["b"]}, True]},
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
    ),
    "alternatives of alternatives": (
        {"anyOf": [{"allOf": [{"properties": {"a": {}}}]}, {"properties": {"b": {}}}]},
        {"type": "object", "properties": {"a": {}, "b": {}}},
    ),
    "the schema's own words win": (
        {"properties": {"a": {"type": "string"}}, "anyOf": [{"properties": {"a": {"type": "number"}}}]},
        {"type": "object", "properties": {"a": {"type": "string"}}},
    ),
    "a property's name that is refused": (
        {"type": "object", "properties": {"$filter": {}, "a": {}}, "required": ["$filter", "a"]},
        {"type": "object", "properties": {"a": {}}, "required": ["a"]},
    ),
}


@pytest.mark.parametrize(("schema", "expected"), SCHEMAS.values(), ids=SCHEMAS)
def test_a_tools_parameters_are_one_object(schema: Any, expected: JSON) -> None:
    assert object_schema(schema) == expected


def test_a_good_schema_passes_as_it_is() -> None:
    schema = {"type": "object", "properties": {"a": {"anyOf": [{}]}}, "required": ["z", "a"], "$defs": {}}
    assert object_schema(schema) is schema


def test_gpt_is_told_what_an_array_holds() -> None:
    array: JSON = {"type": "array"}
    schema = {"type": "object", "properties": {"a": array, "b": {"anyOf": [array]}, "c": {"default": array}}}
    (gpt,) = cortex(user("x"), model=GPT, tools=[tool("T", schema)])["tools"]
    assert gpt["function"]["parameters"]["properties"] == {
        "a": {"type": "array", "items": {}},
        "b": {"anyOf": [{"type": "array", "items": {}}]},
        "c": {"default": array},
    }
    (claude,) = cortex(user("x"), tools=[tool("T", schema)])["tools"]
    assert claude["function"]["parameters"] == schema


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


# --- Settings -------------------------------------------------------------------------------------------------------


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
def test_a_temperature_leaves_only_where_the_model_takes_one(model: str, stays: bool) -> None:
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
def test_what_a_model_has_refused_leaves_no_more_and_is_told(name: str) -> None:
    body = {"model": CLAUDE, "messages": [user("x")], **REFUSED_FIELDS[name]}
    assert name in chat_request(body, family="claude", limits=Limits())[0]
    out, _, left_out = chat_request(body, family="claude", limits=Limits(), refused={name, "logit_bias"})
    assert name not in out
    assert left_out == ([] if name == "stream_options" else [name])


def test_a_refused_temperature_leaves_the_thinking_and_refused_thinking_leaves_the_temperature() -> None:
    body = {"model": CLAUDE, "messages": [user("x")], "thinking": {"type": "adaptive"}, "temperature": 0.3}
    out, _, _ = chat_request(body, family="claude", limits=Limits(), refused={BESIDE_REASONING})
    assert (out.get("reasoning"), out.get("temperature")) == ({"effort": "medium"}, None)
    out, _, _ = chat_request(body, family="claude", limits=Limits(), refused={"temperature"})
    assert (out.get("reasoning"), out.get("temperature")) == ({"effort": "medium"}, 1)
    out, _, _ = chat_request(body, family="claude", limits=Limits(), refused={"reasoning"})
    assert (out.get("reasoning"), out.get("temperature")) == (None, 0.3)


def test_marks_that_a_model_has_refused_on_a_role_leave_no_more() -> None:
    messages = [system(text("s", **MARK)), user(text("u", **MARK))]
    body = {"model": CLAUDE, "messages": messages}
    out, _, left_out = chat_request(body, family="claude", limits=Limits(), refused={"cache_control user"})
    assert marked(out["messages"]) == [(0, 0)]
    assert left_out == ["cache_control user"]


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
    seen: set[str] = set()
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
    seen: set[str] = set()
    made = [plain_id("y" * 40, seen) for _ in range(12)]
    assert len(set(made)) == 12
    assert all(len(identity) <= 40 for identity in made)


def test_only_known_fields_leave_and_what_is_dropped_is_said() -> None:
    taken = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["."], "custom_llm_provider": "openai"}
    dropped = {"service_tier": "auto", "store": False, "user": "me", "parallel_tool_calls": False, "top_k": 3}
    body = {"model": CLAUDE, "messages": [user("x")], "thinking": None, **taken, **dropped, "web_search_options": {}}
    out, notes, _ = chat_request(body, family="claude", limits=Limits(), keep=KEEP)
    assert out == {"model": CLAUDE, "messages": [user("x")], **taken}
    assert notes == [f"field {name} dropped" for name in (*dropped, "web_search_options")]


def test_at_most_four_stop_sequences_leave() -> None:
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
    ],
)
def test_a_models_family_is_in_its_name(model: str, family: str) -> None:
    assert family_of(model) == family


# --- Any conversation -----------------------------------------------------------------------------------------------

WORDS = ["Read it.", "naïve ✓ 漢字", "  led by blanks", "two\n\nparagraphs\n", '{"json": [1]}', "</system-reminder>"]
ARRAY: JSON = {"type": "array"}
ODD_SCHEMAS: list[Any] = [
    {},
    {"type": "object"},
    {"type": "object", "properties": None, "required": None},
    {"type": "object", "required": ["a", 1, ""]},
    {"type": "object", "properties": {"a": ARRAY}, "required": ["a"]},
    {"type": ["object", "null"], "properties": {"$top": {}, "a": {"items": ARRAY}}, "required": ["$top"]},
    {"anyOf": [{"type": "object", "properties": {"a": {}}}, {"$ref": "#/$defs/x"}], "$defs": {"x": ARRAY}},
    {"oneOf": [{"allOf": [{"properties": {"b": ARRAY}, "required": ["b"]}]}], "additionalProperties": False},
]
SERVER_TOOLS: list[JSON] = [
    {"type": "web_search_20250305", "name": "web_search"},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "code_execution_20250825", "name": "code_execution"},
    {"type": "memory_20250818", "name": "memory"},
]
SETTINGS: dict[str, list[Any]] = {
    "thinking": [{"type": "adaptive"}, {"type": "enabled", "budget_tokens": 9_000}, {"type": "disabled"}],
    "output_config": [{"effort": "max"}, {"format": {"type": "json_schema", "schema": {"type": "object"}}}],
    "tool_choice": [{"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": "Read"}],
    "temperature": [0, 1],
    "top_p": [0.9],
    "top_k": [5],
    "stop_sequences": [["."], ["a", "", "b", "c", "d", "e"]],
    "stream": [True, False],
    "metadata": [{"user_id": "me"}],
    "service_tier": ["auto"],
}


@dataclass
class Maker:
    """Draws the parts of one Anthropic conversation. Texts and calls have a label, by which they are found again."""

    draw: st.DrawFn
    marks: bool
    labels: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    late: list[JSON] = field(default_factory=list)

    def chance(self, one_in: int) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def text(self) -> str:
        words = self.draw(st.sampled_from(["", " \n", *WORDS, *WORDS]))
        return f"{words}#{next(self.labels)}#" if words.strip() else words

    def mark(self) -> JSON:
        if not self.marks or not self.chance(2):
            return {}
        return {"cache_control": {"type": "ephemeral", **({"ttl": "1h"} if self.chance(3) else {})}}

    def image(self, kind: str = "image/png") -> JSON:
        data = base64.b64encode(f"{kind} #{next(self.labels)}#".encode()).decode()
        block = "document" if kind == "application/pdf" else "image"
        return {"type": block, "source": {"type": "base64", "media_type": kind, "data": data}}

    def attachment(self) -> JSON:
        kind = self.draw(st.sampled_from(["image/png", "image/jpeg", "image", "application/pdf", "document"]))
        if "/" in kind:
            return self.image(kind)
        return {"type": kind, "source": {"type": "url", "url": f"https://example.com/#{next(self.labels)}#"}}

    def blocks(self, most: int, *, attachments: bool = True) -> list[JSON]:
        return [
            {**(self.attachment() if attachments and self.chance(4) else text(self.text())), **self.mark()}
            for _ in range(self.draw(st.integers(0, most)))
        ]

    def result(self, identity: str) -> JSON:
        content = self.draw(st.sampled_from(["text", "blocks", "reference", "none"]))
        made: JSON = {"type": "tool_result", "tool_use_id": identity, **self.mark()}
        if content == "text":
            made["content"] = self.text()
        elif content == "blocks":
            made["content"] = self.blocks(3)
        elif content == "reference":
            made["content"] = [{"type": "tool_reference", "tool_name": f"Tool#{next(self.labels)}#"}]
        return made

    def assistant(self) -> tuple[JSON, list[str]]:
        """A message and the ids of its calls."""
        if self.chance(6):
            return {"role": "assistant", "content": self.text()}, []
        content: list[JSON] = []
        if self.chance(3):
            content.append({"type": "thinking", "thinking": "secret", "signature": "c2lnbmVk"})
        if self.chance(8):
            content.append({"type": "redacted_thinking", "data": "c2VjcmV0"})
        content += self.blocks(2, attachments=False)
        if self.chance(8):
            content.append({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}})
            content.append({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []})
        ids = [f"toolu_{next(self.labels)}" for _ in range(self.draw(st.integers(0, 3)))]
        if ids and self.chance(4):
            ids[0] = self.draw(st.sampled_from(["call_0", "functions.Bash:0"]))  # other makers count anew in each turn
        for identity in ids:
            name = self.draw(st.sampled_from(["Read", "Bash", "mcp__" + "x" * 70]))
            given = {"path": f"#{next(self.labels)}#"}
            content.append({"type": "tool_use", "id": identity, "name": name, "input": given, **self.mark()})
        return {"role": "assistant", "content": content}, ids

    def user(self, ids: Sequence[str] = ()) -> list[JSON]:
        """What follows an assistant message with these calls: one message, or two."""
        results: list[JSON] = []
        if ids:  # after calls, so that an answer lies between the late result and its call
            results, self.late = self.late, []
        fates = [self.draw(st.sampled_from(["answered"] * 6 + ["missing", "late", "twice"])) for _ in ids]
        for identity, fate in zip(ids, fates, strict=True):
            made = [self.result(identity) for _ in range({"missing": 0, "twice": 2}.get(fate, 1))]
            if fate == "late":
                self.late += made
            else:
                results += made
        if self.chance(10):
            results.append(self.result("toolu_unknown"))
        results = self.draw(st.permutations(results)) if len(results) > 1 else results
        rest = self.blocks(2)
        if {"missing", "late"} & {*fates}:
            # A client says what happened. Were the message empty, two turns would run into one and share their results.
            rest.append(text(f"Interrupted.#{next(self.labels)}#"))
        if not results and not rest and self.chance(2):
            messages: list[JSON] = [{"role": "user", "content": self.text()}]
        else:
            messages = [{"role": "user", "content": [*rest, *results] if self.chance(5) else [*results, *rest]}]
        if self.chance(8):
            messages.append({"role": "user", "content": self.blocks(2)})
        if self.chance(8):
            reminder = {"role": "system", "content": self.text() if self.chance(2) else [text(self.text())]}
            messages.insert(self.draw(st.integers(0, len(messages))), reminder)
        return messages

    def not_empty(self, message: JSON) -> JSON:
        blocks = [text(message["content"])] if isinstance(message["content"], str) else message["content"]
        silent = {"thinking", "redacted_thinking", "server_tool_use"}
        if any(block["text"].strip() if block["type"] == "text" else block["type"] not in silent for block in blocks):
            return message
        return {**message, "content": f"Well.#{next(self.labels)}#"}

    def system(self) -> JSON:
        if self.chance(3):
            return {}
        return {"system": self.text() if self.chance(2) else self.blocks(3, attachments=False)}

    def tools(self) -> list[JSON]:
        made = [
            {
                "name": name,
                "input_schema": copy.deepcopy(self.draw(st.sampled_from(ODD_SCHEMAS))),
                **({"description": "does it"} if self.chance(2) else {}),
                **({"type": "custom"} if self.chance(4) else {}),
                **({"defer_loading": True} if self.chance(6) else {}),
                **self.mark(),
            }
            for name in self.draw(st.sampled_from([[], ["Read"], ["Read", "Bash"], ["Read", "mcp__" + "x" * 70]]))
        ]
        if self.chance(6):
            made.append({"name": "NoSchema"})
        return made + [dict(server) for server in SERVER_TOOLS if self.chance(6)]


@st.composite
def requests(draw: st.DrawFn) -> JSON:
    make = Maker(draw, marks=draw(st.booleans()))
    messages = make.user() if not make.chance(10) else []
    for _ in range(draw(st.integers(0, 4))):
        message, ids = make.assistant()
        messages += [message, *make.user(ids)]
    if not messages or make.chance(5):
        messages.append(make.assistant()[0])
    if make.chance(8):
        messages.append({"role": "user", "content": [make.image() for _ in range(draw(st.integers(18, 34)))]})
    fields = {name: draw(st.sampled_from(values)) for name, values in SETTINGS.items() if make.chance(3)}
    fields["max_tokens"] = draw(st.sampled_from([1, 8_192, 32_000, 200_000]))
    return {"messages": messages, **make.system(), "tools": make.tools(), **fields}


@st.composite
def sessions(draw: st.DrawFn) -> list[JSON]:
    """The requests of one session, each of which has what the one before had and more.

    No message of it is empty: LiteLLM drops those, and orders what comes before and after as if it were one turn.
    """
    make = Maker(draw, marks=draw(st.booleans()))
    fixed = {"max_tokens": 32_000, "tools": [{"name": "Read", "input_schema": {"type": "object"}}], **make.system()}
    messages = [{"role": "user", "content": "Hello."}, *map(make.not_empty, make.user())]
    asked = []

    def ask() -> None:
        # The client marks the newest block, which moves on with every turn.
        asked.append({**fixed, "messages": newest_marked(messages)})

    ask()
    for _ in range(draw(st.integers(1, 4))):
        message, ids = make.assistant()
        messages.append(make.not_empty(message))
        if not ids and make.chance(2):
            ask()
        messages += map(make.not_empty, make.user(ids))
        ask()
    return asked


def newest_marked(messages: Sequence[JSON]) -> list[JSON]:
    *before, last = messages
    blocks = [text(last["content"])] if isinstance(last["content"], str) else last["content"]
    if not blocks or blocks[-1]["type"] in {"thinking", "redacted_thinking"}:
        return list(messages)
    return [*before, {**last, "content": [*blocks[:-1], {**blocks[-1], **MARK}]}]


@functools.cache
def adapter() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """LiteLLM's own first look at the messages, and its translation to the arguments of `litellm.acompletion`."""
    # Otherwise the import asks a server for a newer price list.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm = importlib.import_module("litellm")
    package = "litellm.llms.anthropic.pass_through"
    handler = importlib.import_module(f"{package}.adapters.handler").LiteLLMMessagesToCompletionTransformationHandler
    first = importlib.import_module(f"{package}.messages.utils").normalize_native_messages
    # As the template's rows say it: otherwise thinking goes to the model `responses/NAME`.
    plain = {"litellm_provider": "openai", "mode": "chat", "supports_reasoning": False}
    litellm.register_model(dict.fromkeys((CLAUDE, GPT, LLAMA), plain))
    return first, handler._prepare_completion_kwargs


@dataclass(frozen=True)
class Deployment:
    """A model, and what happens to a request on its way there."""

    model: str
    cache_tool_results: bool = False

    def litellm(self, asked: JSON) -> JSON:
        """The arguments that LiteLLM hands to the callback for an Anthropic request."""
        first, translate = adapter()
        request = copy.deepcopy(asked)
        messages = first(request.pop("messages")) or [{"role": "user", "content": ""}]
        extra: JSON = {"custom_llm_provider": "openai"}
        extra |= {key: request.pop(key) for key in ("output_config", "service_tier") if key in request}
        translated: JSON = translate(model=self.model, messages=messages, extra_kwargs=extra, **request)[0]
        return translated

    def dialect(self, body: JSON) -> tuple[JSON, list[str]]:
        limits = Limits(MODELS[self.model.removeprefix("openai/")], self.cache_tool_results)
        return chat_request(body, family=family_of(self.model), limits=limits, keep=KEEP)[:2]


def wire(body: JSON) -> JSON:
    """The body as it leaves: LiteLLM's own arguments and the provider's prefix taken off, the length renamed."""
    out = {key: value for key, value in body.items() if key not in KEEP}
    out["model"] = out["model"].removeprefix("openai/")
    if "max_tokens" in out:
        out.setdefault("max_completion_tokens", out.pop("max_tokens"))
    return out


def labels(value: object) -> list[str]:
    return re.findall(r"#\d+#", json.dumps(value, ensure_ascii=False))


every_model = pytest.mark.parametrize(
    "deployment",
    [Deployment(CLAUDE), Deployment(CLAUDE, cache_tool_results=True), Deployment(GPT), Deployment(LLAMA)],
    ids=["claude", "claude-caching-results", "gpt", "llama"],
)
anything = settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@every_model
@anything
@given(asked=requests())
def test_cortex_takes_whatever_claude_code_asks(deployment: Deployment, asked: JSON) -> None:
    body = wire(deployment.dialect(deployment.litellm(asked))[0])
    assert check_chat(body) is None
    assert check_chat(body, Options(whitespace_is_empty=True)) is None


@every_model
@anything
@given(asked=requests())
def test_no_text_no_call_and_no_result_is_lost(deployment: Deployment, asked: JSON) -> None:
    before = deployment.litellm(asked)
    after = deployment.dialect(before)[0]
    assert Counter(labels(after["messages"])) == Counter(labels(before["messages"]))
    for role in ("system", "user", "assistant"):
        said, heard = (
            [label for message in body["messages"] if message["role"] == role for label in labels(message["content"])]
            for body in (before, after)
        )
        assert [label for label in heard if label in said] == said


@every_model
@anything
@given(asked=requests())
def test_calls_keep_their_order_and_their_results(deployment: Deployment, asked: JSON) -> None:
    before = deployment.litellm(asked)
    after = deployment.dialect(before)[0]
    if deployment.model == LLAMA:
        words = "\n".join(told(message) for message in after["messages"] if message["role"] == "assistant")
        assert re.findall(r'\[Called (\S+) with (\{"path": "#\d+#"\})\]', words) == all_calls(before)
        return
    assert all_calls(after) == all_calls(before)
    answered, answers = results_of(before["messages"]), results_of(after["messages"])
    assert {call: answers.get(call) for call in answered} == answered


def all_calls(body: JSON) -> list[tuple[str, str]]:
    functions = [call["function"] for message in body["messages"] for call in message.get("tool_calls") or ()]
    return [(function["name"], function["arguments"]) for function in functions]


def results_of(messages: Sequence[JSON]) -> dict[str, list[str]]:
    """By the label of a call, the labels of the result that answers it before the next turn."""
    waiting: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for message in messages:
        if message["role"] == "assistant":
            waiting = {call["id"]: labels(call)[-1] for call in message.get("tool_calls") or ()}
        elif message["role"] == "tool" and (label := waiting.pop(message["tool_call_id"], None)):
            found[label] = labels(message["content"])
    return found


@every_model
@anything
@given(asked=requests())
def test_no_image_is_lost_up_to_twenty(deployment: Deployment, asked: JSON) -> None:
    before = deployment.litellm(asked)
    after = deployment.dialect(before)[0]
    images = [url for url in urls(before["messages"]) if url.startswith("data:image/")]
    if len(images) <= MAX_IMAGES:
        assert Counter(urls(after["messages"])) == Counter(images)


@every_model
@anything
@given(asked=requests())
def test_a_second_pass_changes_nothing(deployment: Deployment, asked: JSON) -> None:
    once = deployment.dialect(deployment.litellm(asked))[0]
    twice, notes = deployment.dialect(once)
    assert json.dumps(twice) == json.dumps(once)
    assert notes == []


@every_model
@anything
@given(asked=requests())
def test_the_input_is_never_changed(deployment: Deployment, asked: JSON) -> None:
    body = deployment.litellm(asked)
    before = json.dumps(body)
    deployment.dialect(body)
    assert json.dumps(body) == before


@every_model
@anything
@given(session=sessions())
def test_a_session_that_grows_keeps_its_prefix(deployment: Deployment, session: list[JSON]) -> None:
    outs = [deployment.dialect(deployment.litellm(asked))[0]["messages"] for asked in session]
    for this, following in itertools.pairwise(outs):
        if IMAGE_TOO_OLD in json.dumps(following):
            continue
        # What is added after an unfinished answer is at the end of one request only.
        kept = this[:-1] if this[-1] == user(CONTINUE) else this
        assert all(position < len(kept) for position, _ in marked(this))
        plain, longer = (json.dumps(without_marks(messages[: len(kept)])) for messages in (this, following))
        assert longer == plain
