"""Odd answers of the service, through the real proxy: told once, and asked again where that may help."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.claude_home import on_messages_route
from tests.cortex_rules import JSON
from tests.session import OLD, Session, ask, call, work_all_day
from tests.set_up import SetUp, events
from tests.upstream import CHAT_END, CHAT_TEXT, MESSAGES_END, MESSAGES_TEXT

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("route")]
ON_CHAT = pytest.mark.parametrize("route", ["chat"], indirect=True)

MODEL = "claude-sonnet-4-6"
TOOL: JSON = {"name": "Bash", "description": "runs it", "input_schema": {"type": "object", "properties": {}}}
THINKING: JSON = {"thinking": {"type": "adaptive"}, "max_tokens": 4000}
ROUTES = ["chat", "messages"]


@pytest.fixture(scope="module", params=ROUTES)
def route(request: pytest.FixtureRequest, running: SetUp) -> Iterator[str]:
    """Each test on both routes."""
    if request.param == "chat":
        yield "chat"
        return
    with running.template(on_messages_route):
        yield "messages"


def asked_since(running: SetUp, before: int) -> list[JSON]:
    return running.stub.requests[before:]


# ---------------------------------------------------------------------------------------------------- what is no answer


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_without_content_is_an_error_that_may_be_asked_again(running: SetUp, stream: bool) -> None:
    running.stub.fault("done_only", times=1)
    answer = running.ask(f"said at {time.time()}", MODEL, stream=stream)
    # LiteLLM has begun to answer before it reads a stream of chat completions: there the error is an event.
    error = events(answer)[-1] if answer.status_code == 200 else answer.json()
    assert error["type"] == "error"
    assert "without content" in error["error"]["message"]
    assert stream or answer.status_code == 502
    assert "x-should-retry" not in answer.headers
    assert running.ask("[[text: now]]", MODEL).json()["content"][0]["text"] == "now"


def test_a_model_that_has_nothing_to_say_twice_is_not_asked_for_ever(running: SetUp) -> None:
    running.stub.fault("done_only", times=2)
    words = f"say nothing at {time.time()}"
    answers = [running.ask(words, MODEL) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [502, 502]
    assert ["x-should-retry" in answer.headers for answer in answers] == [False, True]
    assert "was empty twice" in answers[1].json()["error"]["message"]


def test_an_error_in_a_stream_is_told_in_words_and_without_a_token(running: SetUp) -> None:
    token = "eyJ" + "a" * 20 + ".eyJ" + "b" * 20 + ".c"
    error = {"type": "error", "error": {"type": "api_error", "code": "392606", "message": f"gone {token}"}}
    running.stub.replay = [f"event: error\ndata: {json.dumps(error)}\n\n"]
    answer = running.ask("hello", MODEL, stream=True).text
    assert "trying another" in answer
    assert token not in answer
    full = {"type": "error", "error": {"type": "api_error", "message": "max tokens of 1000000 exceeded"}}
    running.stub.replay = [f"event: error\ndata: {json.dumps(full)}\n\n"]
    assert "> 1000000 maximum" in running.ask("hello", MODEL, stream=True).text


def test_the_user_of_claude_code_does_not_notice_an_answer_without_content(running: SetUp) -> None:
    before = len(running.stub.requests)
    running.stub.fault("done_only", times=1, main=True)
    assert running.claude(ask([call("Bash", command="true")], "done"))["result"] == "done"
    assert len(asked_since(running, before)) <= 4


def test_a_stream_may_hold_pings_comments_and_no_newline_at_its_end(running: SetUp) -> None:
    running.stub.fault("odd_sse", times=2)
    answer = events(running.ask("[[text: all of it]]", MODEL, stream=True))
    assert "".join(event.get("delta", {}).get("text", "") for event in answer) == "all of it"
    assert answer[-1]["type"] == "message_stop"
    tools = events(running.ask('[[tools: Bash {"a": 1}]]', MODEL, stream=True, tools=[TOOL]))
    assert tools[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["goaway", "goaway_200", "session_token"])
def test_a_server_that_goes_away_is_asked_again(running: SetUp, fault: str, stream: bool) -> None:
    running.stub.fault(fault, times=1)
    answer = running.ask("hello", MODEL, stream=stream)
    assert answer.status_code == 503
    assert "x-should-retry" not in answer.headers
    words = {"session_token": "session behind this token"}.get(fault, "GOAWAY")
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b'data: {"code": "392606", "message": "GOAWAY"}\n\n'])
def test_a_server_that_goes_away_in_a_stream_is_named(running: SetUp, body: bytes) -> None:
    running.stub.replay = [body.decode()]
    answer = running.ask("hello", MODEL, stream=True)
    error = answer.json()["error"] if answer.status_code != 200 else events(answer)[-1]["error"]
    assert "GOAWAY" in error["message"]
    assert "trying another" in error["message"]


def test_an_answer_that_repeats_itself_arrives_whole(running: SetUp, route: str) -> None:
    if route != "chat":
        pytest.skip("LiteLLM translates nothing on this route")
    line = json.dumps({"choices": [{"index": 0, "delta": {"content": "a | "}}]})
    end = 'data: {"choices": [], "usage": {"completion_tokens": 9}}\n\ndata: [DONE]\n\n'
    running.stub.replay = [f"data: {line}\n\n" * 150 + end]
    answer = events(running.ask("hi", MODEL, stream=True))
    assert "".join(event.get("delta", {}).get("text", "") for event in answer) == "a | " * 150
    assert answer[-1]["type"] == "message_stop"


@pytest.mark.parametrize("stream", [True, False])
def test_a_422_is_one_call_and_told_once(running: SetUp, stream: bool) -> None:
    before = len(running.stub.requests)
    running.stub.fault("unprocessable", times=1)
    answer = running.ask("hello", MODEL, stream=stream)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "invalid request parameters" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert len(asked_since(running, before)) == 1


@pytest.mark.keeps("numbers")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1E9999999", "-1", "true", '"many"', "9" * 5000])
def test_a_count_of_tokens_that_is_none_costs_no_answer(running: SetUp, route: str, number: str) -> None:
    sent = {
        "chat": CHAT_TEXT + CHAT_END.replace(b'_tokens":1', b'_tokens":%b' % number.encode()),
        "messages": MESSAGES_TEXT + MESSAGES_END.replace(b'_tokens":3', b'_tokens":%b' % number.encode()),
    }
    running.stub.replay = [sent[route].decode()]
    answer = running.ask("hello", MODEL, stream=True)
    assert not re.search("NaN|Infinity|many", answer.text)
    assert events(answer)[-2]["usage"]["output_tokens"] == 0
    assert events(answer)[-1]["type"] == "message_stop"


@ON_CHAT
def test_a_refusal_of_gpt_in_pieces_arrives_whole(running: SetUp) -> None:
    pieces = ["I can", "not help", " with that."]
    chunks = [{"choices": [{"index": 0, "delta": {"refusal": piece}}], "id": "x", "model": ""} for piece in pieces]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "id": "x", "model": ""})
    running.stub.replay = ["".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"]
    answer = events(running.ask("hello", MODEL, stream=True))
    assert "".join(event.get("delta", {}).get("text", "") for event in answer) == "I cannot help with that."
    assert answer[-2]["delta"]["stop_reason"] == "refusal"


# ------------------------------------------------------------------------------------------------- what must not differ


@ON_CHAT
@pytest.mark.parametrize("stream", [True, False])
def test_a_call_with_empty_keys_arrives_streamed_or_not(running: SetUp, stream: bool) -> None:
    running.stub.set_options(stream_extras=True)
    try:
        answer = running.ask('[[tools: Bash {"a": 1} ; Bash]]', MODEL, stream=stream, tools=[TOOL])
    finally:
        running.stub.set_options(stream_extras=False)
    blocks = [event.get("content_block") for event in events(answer)] if stream else answer.json()["content"]
    assert [block["name"] for block in blocks if block] == ["Bash", "Bash"]


@ON_CHAT
def test_claude_code_goes_on_with_a_call_that_it_asked_for_again_not_streamed(running: SetUp) -> None:
    before = len(running.stub.requests)
    running.stub.fault("cut", times=1, main=True, after=0)
    assert (
        running.claude(ask([call("Bash", command="echo 1"), call("Bash", command="echo 2")], "done"))["result"]
        == "done"
    )
    streamed = [record["body"].get("stream", False) for record in asked_since(running, before)]
    assert streamed[0]
    assert len(streamed) <= 4


@ON_CHAT
def test_thinking_is_asked_for_in_the_form_that_was_recorded(running: SetUp) -> None:
    for stream in (True, False):
        assert running.ask("hello", MODEL, stream=stream, **THINKING).status_code == 200
        body = running.stub.requests[-1]["body"]
        assert (body["reasoning"], body["temperature"]) == ({"effort": "low"}, 1)


@pytest.mark.parametrize("model", ["claude-opus-4-7", "claude-sonnet-4-6"])
def test_an_answer_that_was_begun_is_taken_where_no_prefill_is(running: SetUp, model: str) -> None:
    body = {"model": model, "max_tokens": 100, "temperature": 0.2}
    body["messages"] = [{"role": "user", "content": "[[text: so]]"}, {"role": "assistant", "content": "{"}]
    assert running.post(body).status_code == 200


def test_ids_of_another_provider_are_taken_and_stay_the_same(running: SetUp) -> None:
    def use(identity: str) -> list[JSON]:
        asked = {"type": "tool_use", "id": identity, "name": "Bash", "input": {}}
        told = {"type": "tool_result", "tool_use_id": identity, "content": f"of {identity}"}
        return [{"role": "assistant", "content": [asked]}, {"role": "user", "content": [told]}]

    history: list[JSON] = [{"role": "user", "content": "go"}, *use("call|1:abc.x"), *use("twice"), *use("twice")]
    sent = []
    for _ in range(2):
        asked: JSON = {"model": MODEL, "max_tokens": 100, "messages": history, "tools": [TOOL]}
        assert running.post(asked).status_code == 200
        sent.append(running.stub.requests[-1]["body"]["messages"])
        more = [{"role": "assistant", "content": "well"}, {"role": "user", "content": "[[text: more]]"}]
        history = [*history, *more]
    text = json.dumps(sent[0])
    assert text.count('"call_1_abc_x"') == 2
    assert text.count('"twice_2"') == 2
    assert sent[1][: len(sent[0])] == sent[0]


@pytest.mark.parametrize("key", ["output_config", "output_format"])
def test_structured_output_reaches_cortex_on_either_route(running: SetUp, key: str) -> None:
    schema: JSON = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wanted = {"type": "json_schema", "schema": schema}
    running.ask("hello", MODEL, **({key: {"format": wanted}} if key == "output_config" else {key: wanted}))
    record = running.stub.requests[-1]
    assert record["status"] == 200, record
    sent = record["body"].get("response_format", record["body"].get("output_config"))
    assert sent.get("json_schema", sent.get("format"))["schema"] == schema


# -------------------------------------------------------------------------------------------------- what Cortex refuses


@pytest.fixture(scope="module")
def choosy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    """A set-up of its own: what its proxy has learnt stays."""
    made = SetUp(tmp_path_factory.mktemp("choosy"))
    made.start("auto_refresh.py")
    made.start_proxy()
    yield made
    made.close()


@ON_CHAT
def test_no_session_ends_on_what_a_model_refuses_on_chat(choosy: SetUp, tmp_path: Any) -> None:
    """Thinking, stop sequences, long answers and marks: each is refused once, and said."""
    refused = ["reasoning", "stop", "response_format"]
    choosy.stub.set_options(refused_fields=refused, refused_marks=["user", "assistant"], output_cap=16_384)
    session = Session(choosy, tmp_path / "project")
    work_all_day(session)
    again = choosy.ask("[[text: so]]", "claude-sonnet-5", stop_sequences=["x"], temperature=0.5)
    assert again.status_code == 503
    assert again.json()["error"]["message"].endswith("left out from now on.\nTrying again without that field.")
    assert "x-should-retry" not in again.headers
    log = choosy.log("claude_proxy.py")
    for what in ("reasoning", "cache_control on user", "cache_control on assistant", "more than 16384 output tokens"):
        assert log.count(f"Cortex refused {what} for claude-sonnet-5") == 1
    answer = choosy.ask("[[text: so]]", "claude-sonnet-5", **THINKING)
    assert (
        answer.headers["x-cortex-left-out"] == "cache_control user, reasoning"
        or "reasoning" in answer.headers["x-cortex-left-out"]
    )
    plain = choosy.ask("[[text: so]]", "claude-sonnet-5")
    assert "reasoning" not in plain.headers.get("x-cortex-left-out", "")


@ON_CHAT
def test_no_session_ends_on_what_a_model_refuses_on_messages(choosy: SetUp, tmp_path: Any) -> None:
    choosy.stub.set_options(refused_fields=["thinking"], refused_marks=[], output_cap=16_384)
    with choosy.template(on_messages_route):
        session = Session(choosy, tmp_path / "project")
        assert session.say(ask([call("Bash", command="true")], "one")) == "one"
        assert session.say(ask([call("Bash", command="true")], "two"), model=OLD) == "two"
        answer = choosy.ask("[[text: so]]", "claude-sonnet-5", **THINKING)
        assert answer.headers["x-cortex-left-out"] == "thinking"


@ON_CHAT
def test_no_session_ends_on_thinking_that_another_account_has_signed(choosy: SetUp) -> None:
    choosy.stub.set_options(refused_fields=[], refused_marks=[])
    foreign = {"type": "thinking", "thinking": "so", "signature": "of another account"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}
    told = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "out"}
    history: list[JSON] = [
        {"role": "user", "content": "[[text: on]]"},
        {"role": "assistant", "content": [foreign, use]},
    ]
    body = {"model": "claude-opus-4-6", "messages": [*history, {"role": "user", "content": [told]}], "tools": [TOOL]}
    assert choosy.post({**body, **THINKING}).status_code == 503
    again = choosy.post({**body, **THINKING})
    assert (again.status_code, again.headers["x-cortex-left-out"]) == (200, "reasoning_details")
    assert choosy.log("claude_proxy.py").count("Cortex refused reasoning_details for claude-opus-4-6") == 1
