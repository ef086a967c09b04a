"""Whole sessions: the real Claude Code, the real LiteLLM and the stand-in, in the shape that was recorded.

What nobody knows of the service is a switch of the stand-in (`Options`). A session runs on the strict position of all
of them and on the other one; what the proxy learns from refusals is in test_odd_answers.py.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from bundle.ledger import ESTIMATED, Line, read_lines
from bundle.spending import TOKENS
from tests.claude_home import on_messages_route, with_model
from tests.cortex_rules import JSON, Options, thinking_signature
from tests.cortex_stub import CHAT, FAULTS, MESSAGES
from tests.session import FUTURE, OLD, Session, ask, call, work_all_day
from tests.set_up import SetUp, events, wait_until

pytestmark = pytest.mark.real


PATHS = {"chat": CHAT, "messages": MESSAGES}


# The other position of each switch that could break a session; `refused_…` and `output_cap` are learnt.
OTHERWISE = {
    "claude_stop": "refused",
    "older_shapes": True,
    "mark_covers_tool_results": True,
    "whitespace_is_empty": True,
    "empty_tool_result": True,
    "claude_code_beta": True,
    "full_thinking_beta": True,
    "one_hour_ttl": True,
    "documents": True,
    "images_in_failed_results": True,
    "thinking_needs_temperature": False,
    "thinking_mid_turn": True,
    "signed_streams": True,
    "details_alone": True,
    "stream_extras": True,
    "prefill": True,
    "newest_temperature": True,
    "odd_tool_ids": True,
    "lookaround": True,
    "window_counts_output": False,
}
ELSEWHERE = {"models", "windows", "output_cap", "refused_fields", "refused_marks"}


def test_every_switch_is_tried_in_both_positions() -> None:
    strict = Options()
    assert OTHERWISE.keys() | ELSEWHERE == {field.name for field in dataclasses.fields(Options)}
    assert not [name for name, value in OTHERWISE.items() if getattr(strict, name) == value]


@pytest.fixture(
    scope="module", params=[(route, way) for route in PATHS for way in ("strict", "otherwise")], ids="-".join
)
def session(request: pytest.FixtureRequest, running: SetUp, tmp_path_factory: pytest.TempPathFactory) -> Session:
    route, way = request.param
    made = Session(running, tmp_path_factory.mktemp("home") / "project", route=PATHS[route])
    before = running.stub.options
    running.stub.set_options(**(OTHERWISE if way == "otherwise" else {}))
    try:
        with running.template(on_messages_route) if route == "messages" else nullcontext():
            lines = len([*read_lines(running.folder)])
            work_all_day(made)
            made.lines = wait_until(lambda: _written(made, lines), 10)
    finally:
        running.stub.options = before
    return made


def test_a_day_s_work_meets_no_refusal(session: Session) -> None:
    refused = [(record.get("refusal"), record["status"]) for record in session.requests if record["status"] != 200]
    assert refused == []
    assert len(session.requests) >= 25
    assert {record["path"] for record in session.requests} == {session.route}
    assert {record["model"] for record in session.requests} >= {
        "claude-sonnet-5",
        "claude-opus-5",
        "claude-haiku-4-5",
        "claude-sonnet-4-5",
    }


def test_claude_code_counts_what_the_stand_in_charged(session: Session) -> None:
    shown = {"input": 0, "cached": 0, "output": 0}
    for run in session.runs:
        for usage in run["modelUsage"].values():
            shown["input"] += usage["inputTokens"]
            shown["cached"] += usage["cacheReadInputTokens"] + usage["cacheCreationInputTokens"]
            shown["output"] += usage["outputTokens"]
    charged = [record["usage"] for record in session.requests]
    # Of a prompt that is all from the cache, a stream of chat completions counts one token as new (`with_new_tokens`).
    least = 1 if session.route == PATHS["chat"] else 0
    assert shown == {
        "input": sum(max(usage["input"], least) for usage in charged),
        "cached": sum(usage["cache_read"] + usage["cache_write"] for usage in charged),
        "output": sum(usage["output"] for usage in charged),
    }
    assert shown["cached"] > shown["input"]


def _written(session: Session, before: int) -> list[Line]:
    """The lines of the ledger about this session, when all are there."""
    lines = [*read_lines(session.set_up.folder)][before:]
    return lines if len(lines) >= len(session.requests) else []


def test_the_ledger_says_what_the_stand_in_charged(session: Session) -> None:
    """To the token, but for the split of the cached tokens on chat, which is within 2 %."""
    charged = [record["usage"] for record in session.requests]
    assert len(session.lines) == len(session.requests)
    said = {kind: sum(getattr(line, kind) for line in session.lines) for kind in TOKENS}
    sent = {kind: sum(usage[kind] for usage in charged) for kind in TOKENS}
    cached = sent["cache_read"] + sent["cache_write"]
    if session.route == CHAT:
        assert {line.split for line in session.lines} == {ESTIMATED}
        assert (said["input"], said["output"]) == (sent["input"], sent["output"])
        assert said["cache_read"] + said["cache_write"] == cached
        assert said["cache_read"] == pytest.approx(sent["cache_read"], rel=0.02)
        assert said["cache_write"] == pytest.approx(sent["cache_write"], rel=0.02)
    else:
        assert said == sent
    assert {line.model for line in session.lines} == {record["model"] for record in session.requests}
    assert {line.status for line in session.lines} == {200}
    assert all(line.session and line.ms and line.first_ms and line.first_ms <= line.ms for line in session.lines)


def plain(messages: list[JSON]) -> list[str]:
    """Messages as text without their cache marks."""

    def unmarked(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: unmarked(value) for key, value in node.items() if key != "cache_control"}
        return [unmarked(item) for item in node] if isinstance(node, list) else node

    return [json.dumps(unmarked(message), sort_keys=True) for message in messages]


def up_to_newest_mark(messages: list[JSON]) -> list[str]:
    marked = [index for index, message in enumerate(messages) if "cache_control" in json.dumps(message)]
    return plain(messages[: marked[-1] + 1]) if marked else []


def test_what_is_cached_stays_a_prefix_of_the_next_request(session: Session) -> None:
    """Within one run of Claude Code: between runs it rewrites its own reminders, and /compact the whole history."""
    pairs = 0
    before: JSON | None = None
    for record in session.requests:
        body = record["body"]
        if len(body.get("tools", ())) < 10:  # a side call
            continue
        if before is not None and record["turn"] and plain(before["messages"])[:2] == plain(body["messages"])[:2]:
            prefix = up_to_newest_mark(before["messages"])
            assert prefix
            assert plain(body["messages"])[: len(prefix)] == prefix
            pairs += 1
        before = body
    assert pairs >= 12


@pytest.mark.parametrize("model", [OLD, FUTURE])
def test_a_turn_goes_on_thinking_if_its_thinking_comes_with_a_signature(running: SetUp, model: str) -> None:
    calls = [[call("Bash", command=f"echo {number}")] for number in range(3)]
    for signed in (True, False):
        before = len(running.stub.requests)
        running.stub.set_options(signed_streams=signed)
        try:
            assert running.claude(ask(*calls, "done"), "--model", model)["result"] == "done"
        finally:
            running.stub.set_options(signed_streams=False)
        asked = running.stub.requests[before:]
        assert [record["status"] for record in asked] == [200] * 4
        bodies = [record["body"] for record in asked]
        assert [bool(body.get("reasoning")) for body in bodies] == [True, signed, signed, signed]
        assert bodies[0]["temperature"] == 1
        sent_back = [sum("reasoning_details" in message for message in body["messages"]) for body in bodies]
        assert sent_back == ([0, 1, 2, 3] if signed else [0] * 4)


def test_signed_thinking_of_a_turn_with_parallel_calls_and_of_an_older_turn_is_refused_nowhere(
    running: SetUp, tmp_path: Path
) -> None:
    session = Session(running, tmp_path / "project")
    one, two = call("Bash", command="echo 1"), call("Bash", command="echo 2")
    running.stub.set_options(signed_streams=True)
    try:
        assert session.say(ask([one], [one, two], [one], "first")) == "first"
        assert session.say(ask([one], "second")) == "second"
    finally:
        running.stub.set_options(signed_streams=False)
    assert {record["status"] for record in session.requests} == {200}
    bodies = [record["body"] for record in session.requests if record["turn"] is not None]
    assert [bool(body.get("reasoning")) for body in bodies] == [True, True, False, False, True, True]
    sent_back = [sum("reasoning_details" in message for message in body["messages"]) for body in bodies]
    assert sent_back == [0, 1, 0, 0, 0, 1]


def test_litellm_hands_over_signed_thinking_unchanged(running: SetUp) -> None:
    words = '  naïve ✓ 漢字 "quoted" \\ back\n\n</thinking> \u2028 end \n'
    thinking = {"type": "thinking", "thinking": words, "signature": thinking_signature(words)}
    use = {"type": "tool_use", "id": "toolu_1", "name": "T", "input": {}}
    messages = [
        {"role": "user", "content": "[[text: so]]"},
        {"role": "assistant", "content": [thinking, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "out"}]},
    ]
    body = {"model": "claude-sonnet-4-6", "max_tokens": 4000, "messages": messages, "thinking": {"type": "adaptive"}}
    answer = running.post({**body, "tools": [{"name": "T", "input_schema": {"type": "object", "properties": {}}}]})
    assert answer.status_code == 200
    (detail,) = running.stub.requests[-1]["body"]["messages"][1]["reasoning_details"]
    assert (detail["text"], detail["signature"]) == (words, thinking["signature"])


def test_the_mark_of_a_result_arrives_on_the_text_before_its_call(running: SetUp) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}

    def turn(words: str, **more: Any) -> list[JSON]:
        use = {"type": "tool_use", "id": f"toolu_{words}", "name": "T", "input": {}}
        told = {"type": "tool_result", "tool_use_id": f"toolu_{words}", "content": "out", **more}
        return [
            {"role": "assistant", "content": [{"type": "text", "text": words}, use]},
            {"role": "user", "content": [told]},
        ]

    messages = [{"role": "user", "content": "[[text: so]]"}, *turn("one"), *turn("two", **mark)]
    body = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": messages}
    assert running.post({**body, "tools": [{"name": "T", "input_schema": {"type": "object"}}]}).status_code == 200
    sent = [message["content"] for message in running.stub.requests[-1]["body"]["messages"]]
    assert sent[0] == [{"type": "text", "text": "[[text: so]]", **mark}]
    assert sent[1] == [{"type": "text", "text": "one"}]
    assert sent[3] == [{"type": "text", "text": "two", **mark}]


@pytest.mark.parametrize("signed", [False, True])
def test_thinking_is_shown_with_the_signature_that_came(running: SetUp, signed: bool) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1500}
    running.stub.set_options(signed_streams=signed)
    try:
        answer = running.ask("[[thinking: hm]] [[text: so]]", stream=True, max_tokens=3000, thinking=thinking)
    finally:
        running.stub.set_options(signed_streams=False)
    kinds = [event["delta"]["type"] for event in events(answer) if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta", *(["signature_delta"] if signed else []), "text_delta"]


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_was_cut_at_its_limit_says_so(running: SetUp, stream: bool) -> None:
    answer = running.ask("[[stream: 400]]", stream=stream, max_tokens=50)
    reason = events(answer)[-2]["delta"]["stop_reason"] if stream else answer.json()["stop_reason"]
    assert reason == "max_tokens"


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("stream", [True, False])
def test_five_calls_at_once_arrive_as_five(running: SetUp, stream: bool, older: bool) -> None:
    running.stub.set_options(older_shapes=older)
    try:
        tool = {"name": "T", "description": "t", "input_schema": {"type": "object", "properties": {}}}
        calls = " ; ".join(f'T {{"n": {number}}}' for number in range(4))
        answer = running.ask(f"[[tools: {calls} ; T]]", stream=stream, tools=[tool])
    finally:
        running.stub.set_options(older_shapes=False)
    if stream:
        found = events(answer)
        starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
        inputs: dict[int, str] = {}
        for event in found:
            if event["type"] == "content_block_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + event["delta"]["partial_json"]
        arguments = [json.loads(inputs.get(index) or "{}") for index in range(5)]
        assert found[-2]["delta"]["stop_reason"] == "tool_use"
    else:
        starts = answer.json()["content"]
        arguments = [block["input"] for block in starts]
        assert answer.json()["stop_reason"] == "tool_use"
    assert [block["type"] for block in starts] == ["tool_use"] * 5
    assert len({block["id"] for block in starts}) == 5
    assert arguments == [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}, {}]


@pytest.mark.parametrize("clean", [False, True])
def test_a_stream_that_is_cut_before_its_first_word_is_asked_for_again(running: SetUp, clean: bool) -> None:
    running.stub.fault("cut", times=1, main=True, after=0, clean=clean)
    result = running.claude(f"[[stream: 30]] clean={clean}")
    assert result["result"].split() == [f"w{number}" for number in range(30)]


def test_a_stream_that_is_cut_after_words_were_shown_is_an_error_and_never_a_short_answer(running: SetUp) -> None:
    # Claude Code does not ask again once its user has seen a part: it says that the answer broke off.
    running.stub.fault("cut", times=1, main=True, after=3, clean=True)
    result = running.claude("[[stream: 30]]")
    assert result["is_error"]
    assert "broke off" in result["result"]


def test_web_search_is_refused_in_words_that_the_model_can_pass_on(running: SetUp) -> None:
    before = len(running.stub.requests)
    done = running.claude(ask([call("WebSearch", query="news")], "told"), "--allowedTools", "WebSearch")
    assert done["result"] == "told"
    asked = running.stub.requests[before:]
    assert len(asked) == 2
    assert "does not have this tool" in json.dumps(asked[1]["body"]["messages"][-1])


@pytest.mark.parametrize("model", ["openai-gpt-5.2", "llama4-maverick"])
def test_other_models_answer_through_the_same_proxy(running: SetUp, model: str) -> None:
    with running.template(lambda text: with_model(text, model)):
        result = running.claude(
            ask([call("Bash", command="true"), call("Bash", command="true")], "done"), "--model", model
        )
    assert not result["is_error"]
    asked = [record["body"] for record in running.stub.requests if record.get("model") == model]
    if model.startswith("openai"):
        assert result["result"] == "done"
        assert [len(message["tool_calls"]) for message in asked[-1]["messages"] if message.get("tool_calls")] == [2]
    else:
        assert all("tools" not in body for body in asked)
        assert "cannot use tools here" in json.dumps(asked[-1]["messages"][0])


# ------------------------------------------------------------------------------------------------- errors, as they show

FINAL = ["not_in_region", "budget", "no_role", "trial", "network_policy", "model_not_allowed", "bad_token"]
REMEDY = {
    "not_in_region": "CORTEX_ENABLED_CROSS_REGION",
    "budget": "administrator can raise it",
    "no_role": "GRANT DATABASE ROLE SNOWFLAKE.CORTEX_USER",
    "trial": "Trial accounts",
    "network_policy": "NETWORK POLICY",
    "model_not_allowed": "CORTEX_MODELS_ALLOWLIST",
    "bad_token": "auto_refresh.py --public-key",
}


@pytest.mark.parametrize("fault", FINAL)
def test_what_only_the_user_can_fix_is_shown_at_once_with_its_remedy(running: SetUp, fault: str) -> None:
    before = len(running.stub.requests)
    running.stub.fault(fault)
    try:
        result = running.claude("[[text: never]]")
    finally:
        running.stub.clear_faults()
    # A 401 earns one more try with a new token. (Claude Code may have two requests open at that time.)
    assert len(running.stub.requests) - before <= (3 if fault == "bad_token" else 1)
    assert result["is_error"]
    assert str(FAULTS[fault][0]) in result["result"]
    assert REMEDY[fault] in result["result"]


@pytest.mark.parametrize("fault", ["throttled", "too_many", "internal", "inference_timeout", "drop"])
def test_what_passes_by_itself_costs_the_user_a_moment(running: SetUp, fault: str) -> None:
    running.stub.fault(fault, times=1, main=True)
    assert running.claude(f"[[text: through]] {fault}")["result"] == "through"


# ---------------------------------------------------------------------------------------------------- counting, listing


def test_count_tokens_is_answered_here_and_is_not_too_small(running: SetUp) -> None:
    set_up = running
    # A parameter may be called `type`, as in a tool of Claude Code's own.
    schema = {"type": "object", "properties": {"type": {"type": "string"}, "source": {"type": "string"}}}
    body = {
        "model": "claude-sonnet-4-5",
        "system": [{"type": "text", "text": "You are helpful. " * 200}],
        "messages": [{"role": "user", "content": f"{Path(__file__).read_text()} [[text: ok]]"}],
        "tools": [{"name": "T", "description": "t" * 500, "input_schema": schema}],
    }
    before = len(set_up.stub.requests)
    counted = set_up.post(body, "/v1/messages/count_tokens").json()["input_tokens"]
    assert len(set_up.stub.requests) == before
    assert set_up.post({**body, "max_tokens": 10}).status_code == 200
    usage = set_up.stub.requests[-1]["usage"]
    charged = usage["input"] + usage["cache_read"] + usage["cache_write"]
    assert charged <= counted <= 1.5 * charged


def test_the_models_of_the_template_are_listed(running: SetUp) -> None:
    import httpx  # noqa: PLC0415

    answer = httpx.get(
        f"{running.url}/v1/models?limit=1000", headers={"x-api-key": running.master_key}, trust_env=False
    ).json()
    names = [model["id"] for model in answer["data"]]
    assert {"claude-sonnet-4-5", "claude-opus-4-7"} <= set(names)
    assert not [name for name in names if "*" in name]
