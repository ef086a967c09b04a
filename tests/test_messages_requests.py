"""A Messages request as Cortex takes it (bundle/cortex/messages.py): its contents, calls, marks, thinking and tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bundle.cortex.contents import EMPTY, NO_OUTPUT
from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits, version_of
from bundle.cortex.turns import CONTINUE, NO_RESULT
from tests.cortex_rules import JSON, MODELS, is_claude
from tests.messages import IMAGE, MARK, TOOL, adapted, body, call, result, said, says, text, thought, user


def test_a_body_that_nobody_has_heard_of_is_accepted_after_filtering() -> None:
    asked = body(
        user(
            text("hi", citations=[], colour="red"),
            {"type": "hologram", "source": {"type": "beam"}},
            {"type": "richer_text", "text": "still words"},
        ),
        says(
            {**thought("hm"), "depth": 3},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            call("a", caller={"type": "direct"}),
        ),
        user(result("a", [text("x", mood="good"), {"type": "tool_reference", "tool_name": "Read"}], durability=1)),
        system=[text("be kind", scope="global")],
        tools=[
            {**TOOL, "eager_input_streaming": True, "defer_loading": True, "strict": True, "type": "custom"},
            {"type": "web_search_20250305", "name": "web_search"},
            {"type": "telepathy_20270101", "name": "telepathy"},
        ],
        thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        tool_choice={"type": "auto", "whim": True},
        service_tier="auto",
        context_management={"edits": [{"type": "clear_thinking_20251015"}]},
        metadata={"user_id": "u"},
        mcp_servers=[],
        speed="fast",
        output_config={"effort": "high", "format": {"type": "json_schema"}},
        container="c",
        telepathy={"on": True},
        cache_control=MARK,
        max_tokens=2000,
    )
    out, betas, notes = messages_request(
        asked, limits=Limits(), betas=["claude-code-20250219", "context-1m-2025-08-07", "telepathy-2027-01-01"]
    )
    adapted(asked, "telepathy-2027-01-01")
    assert betas == []
    assert out["tools"] == [TOOL]
    assert "still words" in said(out)
    assert "hologram" in said(out)
    assert "[tool Read]" in said(out)
    for name in (
        "field telepathy",
        "field service_tier",
        "beta telepathy-2027-01-01",
        "tool telepathy",
        "tool field strict",
        "text field colour",
        "tool_use field caller",
        "tool_result field durability",
        "thinking field display",
        "tool_choice field whim",
    ):
        assert f"{name} dropped" in notes


def test_what_cortex_takes_passes_unchanged() -> None:
    asked = body(
        user(text("look"), IMAGE),
        says(thought("hm"), text("I see"), call("a", input={"x": [1]}), call("b")),
        user(result("a", [text("one"), IMAGE]), result("b", [text("two")], is_error=True, cache_control=MARK)),
        says({"type": "redacted_thinking", "data": "secret"}, text("done")),
        user(text("more", cache_control=MARK)),
        system=[text("be kind", cache_control=MARK)],
        tools=[{**TOOL, "cache_control": MARK}],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        temperature=0.5,
        stream=True,
    )
    assert adapted(asked) == asked


def test_a_client_s_own_kind_of_text_and_null_fields_are_no_trouble() -> None:
    asked = {**body({"role": "user", "content": "hi"}), "system": "be kind", "tools": [], "tool_choice": None}
    out = adapted({**asked, "stop_sequences": [], "thinking": None, "temperature": None})
    assert out == body(user(text("hi")), system=[text("be kind")])


def test_empty_texts_go_and_what_is_left_empty_with_them() -> None:
    out = adapted(body(user(text(" \n")), says(text("")), user(text(""), text("hi")), system=[text("")]))
    assert out["messages"] == [user(text("hi"))]
    assert "system" not in out
    assert adapted(body(user(text(""))))["messages"] == [user(text(EMPTY))]


def test_a_system_message_among_the_others_becomes_a_reminder_and_keeps_its_mark() -> None:
    reminder = {"role": "system", "content": [text("mind the time", cache_control=MARK)]}
    out = adapted(body(user(text("go")), says(call("a")), reminder, user(result("a"))))
    assert [block["type"] for block in out["messages"][2]["content"]] == ["tool_result", "text"]
    assert out["messages"][2]["content"][1] == text(
        "<system-reminder>\nmind the time\n</system-reminder>", cache_control=MARK
    )


def test_the_line_about_claude_code_s_version_does_not_split_the_cache() -> None:
    line = text("x-anthropic-billing-header: cc_version=2.1.197.5d9; cc_entrypoint=cli;")
    assert adapted(body(user(text("hi")), system=[line, text("be kind")]))["system"] == [text("be kind")]


def test_a_jpg_is_a_jpeg() -> None:
    jpg = {**IMAGE, "source": {**IMAGE["source"], "media_type": "image/jpg"}}
    out = adapted(body(user(jpg)))
    assert out["messages"][0]["content"][0]["source"]["media_type"] == "image/jpeg"


def test_of_too_many_images_the_oldest_are_told_in_words_also_in_results() -> None:
    first = [user(text("go")), says(call("a")), user(result("a", [IMAGE] * 5)), says(text("ok"))]
    out = adapted(body(*first, user(*[IMAGE] * 17)))
    assert said(out).count('"image"') == 12
    assert [block["type"] for block in out["messages"][2]["content"][0]["content"]] == ["text"] * 5


def test_results_come_first_in_the_next_turn_and_every_call_has_one() -> None:
    out = adapted(
        body(
            user(text("go")),
            says(call("a"), call("b"), call("c")),
            user(text("by the way"), result("c"), result("lost", "found"), result("a")),
            user(result("a", "again")),
            says(call("d")),
        )
    )
    first, last = out["messages"][2], out["messages"][-1]
    assert [block.get("tool_use_id") for block in first["content"][:3]] == ["c", "a", "b"]
    assert "by the way" in said(out)
    assert "found" in said(out)
    assert "again" in said(out)
    assert NO_RESULT in json.dumps(last)


def test_the_mark_on_the_result_that_came_last_stays_last() -> None:
    results = user(result("b", [text("quick")]), result("a", [text("slow")], cache_control=MARK))
    assert adapted(body(user(text("go")), says(call("a"), call("b")), results))["messages"][2] == results


@pytest.mark.parametrize("content", ["", None, [], [text("")]])
def test_a_result_without_output_says_so(content: Any) -> None:
    out = adapted(body(user(text("go")), says(call("a")), user(result("a", content))))
    assert out["messages"][2]["content"][0]["content"] == [text(NO_OUTPUT)]


@pytest.mark.parametrize(
    ("model", "more", "goes_on"),
    [
        ("claude-sonnet-4-5", {}, False),
        ("claude-sonnet-4-5", {"tools": [TOOL]}, True),
        ("claude-sonnet-4-6", {}, True),
    ],
)
def test_an_unfinished_answer_stays_last_only_where_a_model_takes_it(model: str, more: JSON, goes_on: bool) -> None:
    begun = [user(text("count")), says(text("1, 2"))]
    thinking = {"type": "enabled", "budget_tokens": 2000}
    out = adapted({**body(*begun, thinking=thinking, max_tokens=9000, **more), "model": model})
    assert out["messages"] == [*begun, *([user(text(CONTINUE))] if goes_on else [])]
    assert ("thinking" in out) == goes_on


def test_unsigned_thinking_stays_here() -> None:
    out = adapted(
        body(
            user(text("go")),
            says({"type": "thinking", "thinking": "hm", "signature": ""}, text("ok")),
            user(text("and?")),
        )
    )
    assert "hm" not in said(out)


def test_at_most_four_marks_are_left_and_they_are_the_useful_ones() -> None:
    marked = [user(text(f"{n}", cache_control={"type": "ephemeral", "ttl": "1h"})) for n in range(6)]
    asked = body(
        *[message for pair in zip(marked, [says(text("ok"))] * 6, strict=True) for message in pair],
        user(text("now")),
        system=[text("a", cache_control=MARK), text("b", cache_control=MARK)],
        tools=[{**TOOL, "cache_control": MARK}],
    )
    out = adapted(asked)
    assert "cache_control" not in json.dumps(out["tools"])
    assert [("cache_control" in block) for block in out["system"]] == [False, True]
    where = [n for n, message in enumerate(out["messages"]) if "cache_control" in json.dumps(message)]
    assert where == [6, 8, 10]
    assert "ttl" not in json.dumps(out)


def test_a_mark_on_the_request_itself_moves_to_its_last_block() -> None:
    out = adapted(body(user(text("go")), says(call("a")), user(result("a"), result("b")), cache_control=MARK))
    assert out["messages"][-1]["content"][-1]["cache_control"] == MARK
    assert "cache_control" not in out


def test_a_mark_inside_a_result_is_the_result_s() -> None:
    out = adapted(body(user(text("go")), says(call("a")), user(result("a", [text("x", cache_control=MARK)]))))
    assert out["messages"][2]["content"] == [result("a", [text("x")], cache_control=MARK)]


def test_a_longer_session_begins_as_the_shorter_one_did() -> None:
    turns: list[JSON] = [user(text("go"))]
    before: list[JSON] = []
    for n in range(8):
        parallel = [call(f"{n}-{k}") for k in range(1 + n % 3)]
        turns += [
            says(thought(f"{n}"), text(f"step {n}"), *parallel),
            user(*[result(block["id"], [text("out"), IMAGE]) for block in parallel], text("", cache_control=MARK)),
            *([{"role": "system", "content": "a reminder"}] if n % 2 else []),
        ]
        now = adapted(body(*turns))["messages"]
        assert now[: len(before)] == before
        before = now


@pytest.mark.parametrize("asked", [None, "disabled", "enabled", "adaptive", "in a way of 2027"])
def test_every_model_gets_thinking_in_the_form_that_it_takes(asked: str | None) -> None:
    thinking: JSON | None = {"type": asked, "budget_tokens": 31_999, "display": "omitted"} if asked else None
    for model in filter(is_claude, MODELS):
        out = adapted(
            {**body(user(text("hi")), thinking=thinking, temperature=0.2, max_tokens=32_000), "model": model},
            limit=MODELS[model],
        )
        if asked in {None, "disabled"}:
            assert out.get("thinking") == (thinking and {"type": "disabled"})
            assert out.get("temperature") == (0.2 if version_of(model) < (4, 7) else None)
        else:
            adaptive = version_of(model) >= (4, 6)
            assert out["thinking"]["type"] == ("adaptive" if adaptive else "enabled"), model
            assert "temperature" not in out


def test_a_name_of_no_known_kind_counts_as_the_newest_model() -> None:
    names = {
        "claude-opus-4-7": (4, 7),
        "snowflake/claude-4-sonnet": (4,),
        "claude-sonnet-4-5-20250929": (4, 5),
        "claude-sonnet-4-20250514": (4,),
        "claude-opus-5": (5,),
        "claude-aria": (99,),
    }
    assert {name: version_of(name) for name in names} == names


@pytest.mark.parametrize(
    ("asked", "max_tokens", "budget"),
    [
        ({"type": "enabled", "budget_tokens": 31_999}, 32_000, 31_999),
        ({"type": "enabled", "budget_tokens": 31_999}, 5_000, 4_999),
        ({"type": "enabled", "budget_tokens": 10}, 5_000, 1_024),
        ({"type": "adaptive"}, 64_000, 16_384),
        ({"type": "adaptive"}, 5_000, 2_499),
        ({"type": "enabled", "budget_tokens": 31_999}, 1_024, None),
        ({"type": "enabled", "budget_tokens": 31_999}, 200_000, 31_999),
    ],
)
def test_a_budget_is_below_the_most_output_tokens(asked: JSON, max_tokens: int, budget: int | None) -> None:
    out = adapted(body(user(text("hi")), thinking=asked, max_tokens=max_tokens))
    assert out.get("thinking", {}).get("budget_tokens") == budget
    assert out["max_tokens"] == min(max_tokens, 64_000)


def test_an_effort_goes_to_the_models_that_take_one_and_sets_the_budget_of_others() -> None:
    asked = body(user(text("hi")), thinking={"type": "adaptive"}, output_config={"effort": "low"}, max_tokens=32_000)
    assert adapted(asked)["thinking"]["budget_tokens"] == 4_096
    assert "output_config" not in adapted(asked)
    newer = adapted({**asked, "model": "claude-opus-4-6"})
    assert newer["output_config"] == {"effort": "low"}
    assert newer["thinking"] == {"type": "adaptive"}
    usual = {**asked, "model": "claude-opus-4-6", "output_config": {"effort": "high"}}
    assert "output_config" not in adapted(usual)


def test_the_beta_for_thinking_between_calls_goes_where_it_does_something() -> None:
    asked = body(user(text("hi")), thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=3000)
    beta = "interleaved-thinking-2025-05-14"
    assert messages_request(asked, limits=Limits(), betas=[beta])[1] == [beta]
    assert messages_request(asked, limits=Limits())[1] == []
    assert messages_request({**asked, "model": "claude-opus-4-7"}, limits=Limits(), betas=[beta])[1] == []


def test_no_thinking_beside_a_forced_tool_or_in_the_middle_of_a_turn_without() -> None:
    asked = body(
        user(text("go")),
        tools=[TOOL],
        thinking={"type": "enabled", "budget_tokens": 1024},
        tool_choice={"type": "tool", "name": "Bash"},
        max_tokens=3000,
    )
    assert "thinking" not in adapted(asked)
    begun = body(user(text("go")), says(call("a")), user(result("a")), thinking=asked["thinking"], max_tokens=3000)
    assert "thinking" not in adapted(begun)
    begun["messages"][1]["content"].insert(0, thought("hm"))
    assert "thinking" in adapted(begun)


def test_a_choice_of_a_tool_that_went_goes_too() -> None:
    asked = body(user(text("hi")), tool_choice={"type": "tool", "name": "web_search"})
    server_tool = {"type": "web_search_20250305", "name": "web_search"}
    assert "tool_choice" not in adapted({**asked, "tools": [server_tool, TOOL, TOOL]})
    assert adapted({**asked, "tools": [server_tool]}) == body(user(text("hi")))


def test_of_two_tools_with_one_name_the_first_stays() -> None:
    out = adapted(body(user(text("hi")), tools=[TOOL, {**TOOL, "description": "another"}]))
    assert out["tools"] == [TOOL]


def test_a_schema_with_alternatives_at_its_top_becomes_one_object() -> None:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": [{"properties": {"a": {}}}]}
    out = adapted(body(user(text("hi")), tools=[{"name": "T", "input_schema": schema}, {"name": "U"}]))
    assert [tool["input_schema"]["type"] for tool in out["tools"]] == ["object", "object"]
    assert "$schema" not in json.dumps(out["tools"])
