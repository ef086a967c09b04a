"""The second route: one word in a row, `openai/` to `snowflake/`, and Cortex's Messages API answers.

First the pure functions, then the real LiteLLM against the strict stand-in, and the real Claude Code where that is the
point. The running proxy is the other tests' own, with an edited template: that it follows is the first promise here.
"""

from __future__ import annotations

import base64
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.cortex.answers import IncompleteAnswerError, WholeAnswer
from bundle.cortex.contents import EMPTY, NO_OUTPUT
from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits, version_of
from bundle.cortex.refusals import Refusals
from bundle.cortex.turns import CONTINUE, NO_RESULT
from bundle.files import write_private
from bundle.settings import load_settings
from bundle.tokens import sign
from tests import cortex_messages_rules
from tests.conftest import SetUp, events
from tests.cortex_rules import JSON, MODELS, Options, check_messages, is_claude, thinking_signature
from tests.cortex_stub import FAULTS, MESSAGES

MODEL = "claude-sonnet-4-5"
PNG = base64.b64encode(b"\x89PNG not looked at any closer").decode()
IMAGE: JSON = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
TOOL: JSON = {"name": "Bash", "description": "runs it", "input_schema": {"type": "object", "properties": {}}}
MARK = {"type": "ephemeral"}


def text(words: str, **more: Any) -> JSON:
    return {"type": "text", "text": words, **more}


def user(*blocks: JSON) -> JSON:
    return {"role": "user", "content": list(blocks)}


def says(*blocks: JSON) -> JSON:
    return {"role": "assistant", "content": list(blocks)}


def call(identity: str, **more: Any) -> JSON:
    return {"type": "tool_use", "id": identity, "name": "Bash", "input": {}, **more}


def result(identity: str, content: Any = "out", **more: Any) -> JSON:
    return {"type": "tool_result", "tool_use_id": identity, "content": content, **more}


def thought(words: str) -> JSON:
    return {"type": "thinking", "thinking": words, "signature": thinking_signature(words)}


def body(*messages: JSON, **more: Any) -> JSON:
    return {"model": MODEL, "max_tokens": 1000, "messages": list(messages), **more}


def adapted(
    asked: JSON, *betas: str, refusals: Refusals | None = None, options: Options | None = None, limit: int = 64_000
) -> JSON:
    """The body as it leaves, after the stand-in has accepted it and the promises of every request were kept."""
    before = copy.deepcopy(asked)
    out, sent, _ = messages_request(asked, limits=Limits(limit), betas=betas, refusals=refusals)
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": ",".join(sent)}
    assert check_messages(out, headers, options or Options()) is None
    assert asked == before
    assert messages_request(out, limits=Limits(limit), betas=sent, refusals=refusals)[0] == out
    return out


def said(out: JSON) -> str:
    return json.dumps(out["messages"])


# ---------------------------------------------------------------------------------------------------------- the body


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
        user(result("a", [text("one"), IMAGE], is_error=True), result("b", [text("two")], cache_control=MARK)),
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


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}, "A PDF"),
        ({"type": "document", "source": {"type": "text", "data": "the letter"}}, "the letter"),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}, "image (url)"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/bmp", "data": "Qk0="}}, "image/bmp"),
        ({"novelty": {}}, "block without a type"),
    ],
)
@pytest.mark.parametrize("inside_a_result", [False, True])
def test_what_cortex_cannot_see_is_told_in_words(block: JSON, words: str, inside_a_result: bool) -> None:
    here = [user(text("go")), says(call("a")), user(result("a", [block]))] if inside_a_result else [user(block)]
    assert words in said(adapted(body(*here)))


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


def test_an_unfinished_answer_is_asked_to_go_on() -> None:
    out = adapted(body(user(text("count")), says(text("1, 2"))))
    assert out["messages"][-1] == user(text(CONTINUE))


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


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("model", [model for model in MODELS if is_claude(model)])
@pytest.mark.parametrize("asked", [None, "disabled", "enabled", "adaptive", "in a way of 2027"])
def test_every_model_gets_thinking_in_the_form_that_it_takes(model: str, asked: str | None) -> None:
    thinking: JSON | None = {"type": asked, "budget_tokens": 31_999, "display": "omitted"} if asked else None
    out = adapted(
        {**body(user(text("hi")), thinking=thinking, temperature=0.2, max_tokens=32_000), "model": model},
        limit=MODELS[model],
    )
    if asked in {None, "disabled"}:
        assert out.get("thinking") == (thinking and {"type": "disabled"})
        assert out.get("temperature") == (0.2 if version_of(model) < (4, 7) else None)
    else:
        adaptive = version_of(model) >= (4, 6)
        assert out["thinking"]["type"] == ("adaptive" if adaptive else "enabled")
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


# ------------------------------------------------------------------------------------------- what Cortex itself names


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
        assert refusals.learn_messages(words, sent, []) != []  # of a request that was under way
        again = adapted(asked, refusals=refusals)
        assert refusals.learn_messages(words, again, []) == []  # another try would be of no use
    out = adapted(asked, refusals=refusals)
    assert "top_k" not in out
    assert "is_error" not in said(out)
    assert out["tools"] == [{"name": "Bash", "input_schema": TOOL["input_schema"]}]
    assert out["messages"][1] == asked["messages"][1]


def test_a_step_that_names_a_kind_is_passed_over_where_the_block_has_a_field_of_that_name() -> None:
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


# ----------------------------------------------------------------------------------------------------------- answers


def test_an_answer_is_whole_with_its_last_event_only() -> None:
    stream = WholeAnswer()
    data = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}'
    assert list(stream.feed(data)) == [b"event: content_block_delta\ndata: " + data + b"\n\n"]
    with pytest.raises(IncompleteAnswerError, match="in the middle"):
        list(stream.end())
    assert list(stream.feed(b'{"type":"message_stop"}'))
    assert list(stream.end()) == []


SAID = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}'
THOUGHT = b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"a"}}'
CALLED = b'{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"a","name":"T","input":{}}}'


def stopped(reason: str | None) -> bytes:
    return json.dumps({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}}).encode()


@pytest.mark.parametrize("reason", ["end_turn", "tool_use", None])
@pytest.mark.parametrize("events", [[], [THOUGHT], [b'{"type":"content_block_start","content_block":{"type":"text"}}']])
def test_an_answer_with_neither_text_nor_call_is_none(events: list[bytes], reason: str | None) -> None:
    stream = WholeAnswer()
    for event in [*events, stopped(reason)]:
        list(stream.feed(event))
    with pytest.raises(IncompleteAnswerError, match="without content"):
        list(stream.feed(b'{"type":"message_stop"}'))
    blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": ""}]
    with pytest.raises(IncompleteAnswerError, match="without content"):
        WholeAnswer().answer({"content": blocks, "stop_reason": reason})


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (SAID, "end_turn"),
        (CALLED, "tool_use"),
        (THOUGHT, "max_tokens"),
        (THOUGHT, "stop_sequence"),
        (THOUGHT, "refusal"),
    ],
)
def test_an_answer_that_something_explains_passes(event: bytes, reason: str) -> None:
    stream = WholeAnswer()
    for data in (event, stopped(reason), b'{"type":"message_stop"}'):
        assert list(stream.feed(data))
    assert list(stream.end()) == []


@pytest.mark.parametrize("data", [b"{}", b"[DONE]", b'{"status": "busy"}'])
def test_what_says_nothing_is_left_out_and_so_is_what_comes_after_the_end(data: bytes) -> None:
    stream = WholeAnswer()
    sent = [
        event for each in (data, SAID, data, b'{"type":"message_stop"}', data, b"odd") for event in stream.feed(each)
    ]
    assert len(sent) == 2
    assert list(stream.end()) == []


ERROR = b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy", "code": "392606"}}'


@pytest.mark.parametrize("data", [b'{"message": "inference timed out"}', b'{"typ', b"[]", ERROR])
def test_what_is_no_event_of_a_message_is_never_sent_on(data: bytes) -> None:
    with pytest.raises(IncompleteAnswerError):
        list(WholeAnswer().feed(data))


@pytest.mark.parametrize("answer", [{"message": "oh"}, {"content": None}, [], None, "text"])
def test_what_is_no_message_is_no_answer(answer: Any) -> None:
    with pytest.raises(IncompleteAnswerError):
        WholeAnswer().answer(answer)


# --------------------------------------------------------------------------- the real LiteLLM, the strict stand-in


def to_snowflake(template: str) -> str:
    """The edit of a user who wants every Claude model on the second route, and a row where that cannot be."""
    changed = template.replace("model: openai/claude", "model: snowflake/claude")
    row = "  - model_name: mistaken\n    litellm_params: { <<: *cortex, model: snowflake/llama4-maverick }\n"
    return changed.replace("litellm_settings:", f"{row}    model_info: {{ <<: *info }}\n\nlitellm_settings:", 1)


@pytest.fixture(scope="module")
def route(running: SetUp) -> Iterator[SetUp]:
    with running.template(to_snowflake):
        yield running


def newest(route: SetUp, since: int = 0) -> list[JSON]:
    """What Cortex was asked, from that request on."""
    return route.stub.requests[since:]


real = pytest.mark.real


@real
def test_the_running_proxy_follows_an_edited_row_to_the_other_route(route: SetUp) -> None:
    answer = route.ask("[[text: hello]]", system=[text("a " * 5000, cache_control=MARK)])
    assert answer.json()["content"] == [text("hello")]
    asked = newest(route)[-1]
    assert asked["path"] == MESSAGES
    assert asked["headers"]["x-snowflake-authorization-token-type"] == "KEYPAIR_JWT"
    assert "x-api-key" not in asked["headers"]
    assert route.master_key not in json.dumps(asked)


@real
@pytest.mark.parametrize("stream", [True, False])
def test_usage_comes_through_whole(route: SetUp, stream: bool) -> None:
    first = [text(f"{stream} " + "b " * 5000, cache_control=MARK)]
    for _ in range(2):
        answer = route.ask("[[text: counted]]", system=first, stream=stream)
        charged = newest(route)[-1]["usage"]
        usage = events(answer)[-2]["usage"] if stream else answer.json()["usage"]
        assert {
            "input": usage["input_tokens"],
            "cache_write": usage["cache_creation_input_tokens"],
            "cache_read": usage["cache_read_input_tokens"],
            "output": usage["output_tokens"],
        } == charged
    assert charged["cache_read"] > 2000
    if stream:
        assert events(answer)[0]["message"]["usage"]["cache_read_input_tokens"] == charged["cache_read"]


@real
def test_an_unheard_of_body_is_answered_and_what_was_dropped_is_said_once(route: SetUp) -> None:
    asked = body(
        user(text("hi", novelty=1), {"type": "hologram"}),
        tools=[{**TOOL, "novelty": True}],
        novelty={"a": 1},
        metadata={"user_id": "of this machine"},
        cache_control=MARK,
        thinking={"type": "adaptive", "novelty": 1},
    )
    for _ in range(2):
        answer = route.post(asked, **{"anthropic-beta": "novelty-2027-01-01,claude-code-20250219"})
        assert answer.status_code == 200, answer.text
    assert "metadata" not in newest(route)[-1]["body"]
    log = route.log("claude_proxy.py")
    for line in ("field novelty", "tool field novelty", "beta novelty-2027-01-01"):
        assert log.count(f"adapted for Cortex: {line} dropped") == 1


@real
def test_a_row_for_a_model_that_this_api_does_not_have_says_what_to_write(route: SetUp) -> None:
    answer = route.ask("hi", model="mistaken")
    assert answer.status_code == 400
    assert "openai/llama4-maverick" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


@real
def test_a_new_token_is_taken_on_the_next_request_and_open_streams_go_on(route: SetUp) -> None:
    before = len(newest(route))
    with httpx.Client(trust_env=False, timeout=30) as client:
        asked = {**body(user(text("[[hold: 4]] [[stream: 20]]"))), "stream": True}
        headers = {"Authorization": f"Bearer {route.master_key}"}
        with client.stream("POST", route.url + "/v1/messages", json=asked, headers=headers) as answer:
            held = route.stub.wait_for(lambda record: record["number"] >= before and record.get("held"))
            settings = load_settings(route.environ)
            token = sign(settings, time.time() - 10).value
            config = route.config.read_text()
            old = next(line for line in config.splitlines() if "api_key: eyJ" in line).split()[-1]
            write_private(route.config, config.replace(old, token))
            assert route.ask("[[text: next]]").status_code == 200
            route.stub.release()
            whole = answer.read().decode()
    assert "message_stop" in whole
    assert held["token_id"] != newest(route)[-1]["token_id"]
    assert newest(route)[-1]["iat"] < held["iat"]


@real
def test_a_refused_token_is_replaced_on_the_next_request(route: SetUp) -> None:
    assert route.ask("hi").status_code == 200
    first = newest(route)[-1]["token_id"]
    route.stub.fault("bad_token", times=1, route="messages")
    assert route.ask("hi").status_code == 401
    assert route.ask("hi").status_code == 200
    assert newest(route)[-1]["token_id"] != first


REMEDY = {
    "throttled": (429, "busy"),
    "not_in_region": (400, "CORTEX_ENABLED_CROSS_REGION"),
    "bad_token": (401, "auto_refresh.py --public-key"),
    "budget": (402, "administrator"),
    "no_role": (403, "GRANT DATABASE ROLE"),
    "trial": (403, "Trial accounts"),
    "network_policy": (403, "NETWORK POLICY"),
    "model_not_allowed": (403, "CORTEX_MODELS_ALLOWLIST"),
    "too_many": (429, "limits how much"),
    "internal": (500, "/compact"),
    "inference_timeout": (503, "too long"),
}


@real
@pytest.mark.parametrize("fault", REMEDY)
@pytest.mark.parametrize("stream", [True, False])
def test_each_error_of_cortex_comes_with_its_remedy_as_on_the_chat_route(
    route: SetUp, fault: str, stream: bool
) -> None:
    before = len(newest(route))
    route.stub.fault(fault, times=1, route="messages")
    answer = route.ask("hi", stream=stream)
    status, words = REMEDY[fault]
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert FAULTS[fault][1]["message"].partition("{")[0] in answer.json()["error"]["message"]
    assert words in answer.json()["error"]["message"]
    assert ("x-should-retry" in answer.headers) == (fault == "bad_token" or status in {400, 402, 403})
    assert len(newest(route)) == before + 1


@real
@pytest.mark.parametrize(
    ("fault", "settings", "stream"),
    [
        ("cut", {"after": 0}, True),
        ("cut", {"after": 4}, True),
        ("cut", {"after": 4, "clean": True}, True),
        ("cut", {}, False),
        ("broken_sse", {"after": 4}, True),
        *((fault, {}, stream) for fault in ("html", "broken_json", "drop") for stream in (True, False)),
    ],
)
def test_an_answer_that_is_not_whole_never_looks_complete(
    route: SetUp, fault: str, settings: JSON, stream: bool
) -> None:
    route.stub.fault(fault, times=1, route="messages", **settings)
    answer = route.ask("[[stream: 30]]", stream=stream)
    if answer.status_code == 200:
        kinds = [event["type"] for event in events(answer)]
        assert kinds[-1] == "error"
        assert "message_stop" not in kinds
    else:
        assert answer.status_code == 502
        assert answer.json()["type"] == "error"
        assert "x-should-retry" not in answer.headers


@real
def test_a_client_that_goes_away_ends_the_call_to_cortex(route: SetUp) -> None:
    before = len(newest(route))
    with httpx.Client(trust_env=False, timeout=30) as client:
        asked = {**body(user(text("[[stream: 400 0.05]]"))), "stream": True}
        headers = {"Authorization": f"Bearer {route.master_key}"}
        with client.stream("POST", route.url + "/v1/messages", json=asked, headers=headers) as answer:
            next(answer.iter_bytes())
    route.stub.wait_for(lambda record: record["number"] >= before and record.get("aborted"), 5)


@real
def test_a_session_goes_on_when_cortex_does_not_take_its_signatures(route: SetUp) -> None:
    asked = body(
        user(text("go")),
        says({**thought("hm"), "signature": "of another account"}, text("ok")),
        user(text("[[text: on]]")),
    )
    assert route.post(asked).json()["content"] == [text("on")]
    assert "thinking" not in said(newest(route)[-1]["body"])
    asked["messages"][-1] = user(text("[[error: drop]] [[text: on]]"))
    assert "broke off" in route.post(asked).json()["error"]["message"]  # of the second try, not of the first


# ------------------------------------------------------------------------------------------- the real Claude Code


def tools(*names: str) -> str:
    calls = " ; ".join(f'Bash {{"command": "echo {name}"}}' for name in names)
    return f"[[tools: {calls}]]"


@real
@pytest.mark.parametrize("model", ["claude-sonnet-4-6", "claude-sonnet-4-5"], ids=["adaptive", "with a budget"])
def test_parallel_tools_pictures_and_thinking_in_one_session(route: SetUp, tmp_path: Path, model: str) -> None:
    before = len(newest(route))
    picture = tmp_path / "dot.png"
    picture.write_bytes(base64.b64decode(A_PIXEL))
    session = " ".join(
        [
            f"[[thinking: two]] {tools('one', 'two')}",
            f"[[thinking: three]] {tools('three', 'four', 'five')}",
            f"[[thinking: five]] {tools('a', 'b', 'c', 'd', 'e')}",
            f'[[tools: Read {{"file_path": "{picture}"}}]]',
            "[[thinking: done]] [[text: all done]]",
        ]
    )
    done = route.claude(session, "--model", model, "--allowedTools", "Bash,Read")
    assert done["result"] == "all done"
    asked = [record for record in newest(route, before) if record["body"].get("tools")]
    assert [record["status"] for record in asked] == [200] * 5
    assert {record["path"] for record in asked} == {MESSAGES}

    last = asked[-1]["body"]
    kinds = [[block["type"] for block in message["content"]] for message in last["messages"]]
    assert [kind for kind in kinds if "tool_use" in kind] == [
        ["thinking", "tool_use", "tool_use"],
        ["thinking", *["tool_use"] * 3],
        ["thinking", *["tool_use"] * 5],
        ["thinking", "tool_use"],
    ]
    assert [kind.count("tool_result") for kind in kinds if "tool_result" in kind] == [2, 3, 5, 1]
    thoughts = [block for message in last["messages"] for block in message["content"] if block["type"] == "thinking"]
    assert thoughts[0] == thought("two")
    assert last["thinking"]["type"] == ("adaptive" if model == "claude-sonnet-4-6" else "enabled")

    for record in asked[1:]:  # each time the newest result is marked, whichever of the parallel ones that is
        results = [block for block in record["body"]["messages"][-1]["content"] if block["type"] == "tool_result"]
        assert ["cache_control" in block for block in results] == [*[False] * (len(results) - 1), True]
    assert [block["type"] for block in results[-1]["content"]].count("image") == 1
    assert all(record["usage"]["cache_read"] > 10_000 for record in asked[1:])
    usage = done["usage"]
    for name, key in (
        ("input", "input_tokens"),
        ("cache_read", "cache_read_input_tokens"),
        ("output", "output_tokens"),
    ):
        assert usage[key] == sum(record["usage"][name] for record in asked)


A_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


@real
def test_claude_code_repeats_a_turn_that_was_cut(route: SetUp) -> None:
    for clean in (False, True):
        route.stub.fault("cut", times=1, main=True, route="messages", after=4, clean=clean)
        done = route.claude(f"[[stream: 30]] clean={clean}")
        assert done["result"].split() == [f"w{number}" for number in range(30)]


@real
def test_what_cortex_refuses_costs_one_retry_that_nobody_sees_and_is_remembered(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a set-up of its own: its proxy knows these refusals until it ends."""
    monkeypatch.setattr(cortex_messages_rules, "TOP", cortex_messages_rules.TOP - {"top_k", "thinking"})
    monkeypatch.setattr(cortex_messages_rules, "BETAS", frozenset[str]())
    set_up.start("auto_refresh.py")
    set_up.start_proxy()
    asked: JSON = {"top_k": 3, "output_config": {"effort": "low"}, "model": "claude-opus-4-6"}
    with set_up.template(to_snowflake):
        answers = [set_up.ask("hi", **asked) for _ in range(4)]
        done = set_up.claude("[[text: through]]", "--model", "claude-sonnet-4-6")
    assert [answer.status_code for answer in answers] == [503, 503, 200, 200]
    assert "beta effort-2025-11-24" in answers[0].json()["error"]["message"]
    assert "field top_k" in answers[1].json()["error"]["message"]
    assert all("x-should-retry" not in answer.headers for answer in answers)
    assert done["result"] == "through"
    assert [record["status"] for record in newest(set_up, 4)] == [400, 200]
    assert set_up.log("claude_proxy.py").count("Cortex refused") == 3
