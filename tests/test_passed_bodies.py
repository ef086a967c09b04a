"""Bodies through the real proxy, on both routes: what reaches Cortex of them, and what comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bundle.proxy.replies import PROMPT_COUNTS
from tests.claude_home import on_messages_route
from tests.cortex_scripts import Call, Script, Turn
from tests.set_up import SetUp, events

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("route")]

MODEL = "claude-sonnet-4-6"
TOOL = {"name": "Bash", "description": "runs it", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module", params=["chat", "messages"])
def route(request: pytest.FixtureRequest, running: SetUp) -> Iterator[None]:
    """Each test on both routes."""
    if request.param == "chat":
        yield
        return
    with running.template(on_messages_route):
        yield


def send(running: SetUp, raw: bytes) -> httpx.Response:
    headers = {"Authorization": f"Bearer {running.master_key}", "Content-Type": "application/json"}
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.post(f"{running.url}/v1/messages", content=raw, headers=headers)


@pytest.mark.keeps("token-to-snowflake-only")
@pytest.mark.keeps("known-fields")
@pytest.mark.parametrize(
    "more",
    [
        {"headers": {"Host": "evil.example", "X-Mine": "1"}},
        {"extra_headers": {"Authorization": "Bearer mine", "X-Mine": "1"}},
        {"extra_body": {"model": "mine", "messages": []}},
        {"extra_query": {"mine": "1"}},
        {"api_base": "http://127.0.0.1:1"},
        {"base_url": "http://127.0.0.1:1"},
        {"api_key": "mine"},
        {"metadata": {"api_base": "http://127.0.0.1:1", "user_id": "mine", "headers": {"X-Mine": "1"}}},
        {"fallbacks": [{"model": "claude-haiku-4-5", "api_base": "http://127.0.0.1:1"}], "mock_response": "mine"},
        {"user_config": {"model_list": []}, "model_list": [], "timeout": 0.0001, "num_retries": 9},
    ],
)
def test_a_body_cannot_send_the_token_to_another_server_or_change_the_request(
    running: SetUp, more: dict[str, Any]
) -> None:
    before = len(running.stub.requests)
    answers = [running.ask("hello", model=MODEL, **each) for each in ({}, more)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    plain, changed = running.stub.requests[before:]
    assert changed["body"] == plain["body"]
    assert changed["headers"] == plain["headers"]
    assert "mine" not in answers[1].text


@pytest.mark.keeps("half-characters")
@pytest.mark.parametrize("stream", [False, True])
def test_half_an_emoji_in_a_history_reaches_cortex_as_a_whole_character(running: SetUp, stream: bool) -> None:
    half = "cut \ud83d"
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": half, half: [half]}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": half}
    messages = [{"role": "user", "content": half}, {"role": "assistant", "content": [call]}]
    messages.append({"role": "user", "content": [result, {"type": "text", "text": half}]})
    body = {"model": MODEL, "max_tokens": 99, "stream": stream, "system": half, "messages": messages}
    tools = [{**TOOL, "description": half}]
    before = len(running.stub.requests)
    assert send(running, json.dumps({**body, "tools": tools}).encode()).status_code == 200
    (record,) = running.stub.requests[before:]
    assert "cut \ufffd" in str(record["body"])
    json.dumps(record["body"], ensure_ascii=False).encode()  # an error if a half is left


@pytest.mark.keeps("half-characters")
@pytest.mark.parametrize("stream", [False, True])
def test_half_an_emoji_in_an_answer_is_an_answer(running: SetUp, stream: bool) -> None:
    turn = Turn(text="cut \ud83d and \U0001f600", tools=(Call("Bash", {"command": "echo \ude00"}),), chunks=1)
    running.stub.script = (Script((turn,), when="half an emoji"),)
    try:
        answer = running.ask("half an emoji", model=MODEL, stream=stream, tools=[TOOL])
    finally:
        running.stub.script = ()
    assert answer.status_code == 200, answer.text
    if not stream:
        text, call = answer.json()["content"]
        assert (text["text"], call["input"]) == ("cut \ufffd and \U0001f600", {"command": "echo \ufffd"})
        return
    deltas = [event.get("delta", {}) for event in events(answer)]
    assert "".join(delta.get("text", "") for delta in deltas) == "cut \ufffd and \U0001f600"
    arguments = "".join(delta.get("partial_json", "") for delta in deltas)
    # A half in the pieces of a call's arguments stays; the front door replaces it in the next request.
    assert json.loads(arguments)["command"].startswith("echo ")
    assert events(answer)[-1]["type"] == "message_stop"


@pytest.mark.keeps("bad-json")
def test_the_deepest_body_that_passes_the_door_is_no_error_of_litellm(running: SetUp) -> None:
    deep: Any = "x"
    for _ in range(90):
        deep = [deep]
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": deep}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"}
    schema: Any = {"type": "string"}
    for _ in range(45):
        schema = {"type": "object", "properties": {"a": schema}}
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 9, "tools": [{**TOOL, "input_schema": schema}]}
    body["messages"] = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": [call]}]
    body["messages"].append({"role": "user", "content": [result]})
    answer = running.post(body)
    assert answer.status_code == 200, answer.text


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": "five"}, "max_tokens: Input should be a valid integer"),
    ({"messages": "hi"}, "messages: Input should be a valid list"),
    ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content.0.type: Input tag 'hol"),
    ({"tools": [{"name": "x"}]}, "tools.0.custom.input_schema: Field required"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "give it as a custom tool of that name (bash)"),
    ({"thread": {"type": "create"}}, "thread: "),
]


@pytest.mark.keeps("bad-json")
def test_a_request_of_another_shape_is_refused_once_and_does_not_reach_cortex(running: SetUp) -> None:
    before = len(running.stub.requests)
    for wrong, words in WRONG:
        answer = running.ask("hello", **{"model": MODEL, **wrong})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
        assert words in answer.json()["error"]["message"]
    assert len(running.stub.requests) == before


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_what_anthropic_s_always_have(running: SetUp, stream: bool) -> None:
    asked = {"model": MODEL, "max_tokens": 99, "stream": stream, "tools": [TOOL], "system": "word " * 3_500}
    asked["messages"] = [{"role": "user", "content": "hello"}]
    counted = running.post(asked, "/v1/messages/count_tokens").json()["input_tokens"]
    answer = running.post(asked)
    charged = running.stub.requests[-1]["usage"]
    message = events(answer)[0]["message"] if stream else answer.json()
    assert (message["type"], message["role"], message["stop_sequence"]) == ("message", "assistant", None)
    assert re.fullmatch(r"msg_[\w-]{20,}", message["id"])
    assert {*PROMPT_COUNTS, "output_tokens"} <= message["usage"].keys()
    if stream:
        # A client shows how full the context is as soon as the answer begins.
        assert message["usage"]["input_tokens"] in {charged["input"], counted}
        last = events(answer)[-2]["usage"]
        assert (last["input_tokens"], last["output_tokens"]) == (charged["input"], charged["output"])
    else:
        assert message["usage"]["input_tokens"] == charged["input"]
    assert 0 < charged["input"] <= counted


def test_every_answer_has_an_id_and_the_line_of_the_log_about_it_too(running: SetUp) -> None:
    body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    answers = [running.post({**body, "stream": stream}) for stream in (False, True)]
    answers += [running.post(body, "/v1/messages/count_tokens"), running.post({**body, "max_tokens": 0})]
    log = len(running.log("claude_proxy.py"))
    running.stub.fault("budget", times=1)
    answers.append(running.post(body))
    running.stub.fault("cut", times=1)
    answers.append(running.post({**body, "stream": True}))
    ids = [answer.headers["request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"req_[0-9a-z]{24}", each) for each in ids)
    lines = running.log("claude_proxy.py")[log:]
    for answer, identity in list(zip(answers, ids, strict=True))[-2:]:
        assert f'"request_id": "{identity}"' in answer.text
        assert re.search(rf"error (402 to Claude Code|in the middle of an answer|502 .*) \({identity}\): ", lines)


def image(size: int) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": "A" * (size // 4 * 4)}
    return {"type": "image", "source": source}


@pytest.mark.keeps("body-limit")
def test_what_comes_in_may_be_larger_than_what_cortex_takes(running: SetUp) -> None:
    content = [*[image(1_400_000)] * 16, {"type": "text", "text": "hello"}]
    body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    assert len(json.dumps(body)) > 20 * 2**20
    assert running.post(body).status_code == 200


@pytest.mark.keeps("body-limit")
@pytest.mark.parametrize("stream", [False, True])
def test_what_leaves_for_cortex_is_at_most_20_mib_and_a_refusal_says_so(running: SetUp, stream: bool) -> None:
    before = len(running.stub.requests)
    answer = running.ask("x" * (21 * 2**20), model=MODEL, stream=stream)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (413, "false")
    error = answer.json()["error"]
    assert error["type"] == "request_too_large"
    assert "it has 21.0 MiB" in error["message"]
    assert "/compact" in error["message"]
    assert len(running.stub.requests) == before
