"""The stand-in's answers have the shapes of the recorded ones, whole and streamed, on both endpoints."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests import recorded
from tests.cortex_rules import JSON, thinking_signature
from tests.cortex_stub import CHAT, MESSAGES, CortexStub
from tests.stub.sending import BUDGET, CLAUDE, GPT, LLAMA, LOW, TWO_CALLS, chat, custom, events, got, native, post, tool


def test_claude_answers_in_cortex_s_shape(stub: CortexStub) -> None:
    body = post(stub, CHAT, chat("hello\nthere")).json()
    assert body["id"] == ""
    (choice,) = body["choices"]
    assert choice["finish_reason"] == ""
    assert choice["message"]["content"] == "You said: hello there"


def shape(value: Any) -> Any:
    """A value with its lists cut to their first item and its texts, numbers and nulls told by kind only."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "text" if isinstance(value, str) else "number" if isinstance(value, int) else value


SHAPES: dict[str, tuple[JSON, JSON]] = {
    "claude": (recorded.CLAUDE_TEXT, chat()),
    "claude, a call": (recorded.CLAUDE_CALL, chat('[[tools: Bash {"a": 1}]]', tools=[tool()])),
    "claude, thinking before a call": (
        recorded.CLAUDE_THINKING_CALL,
        chat('[[thinking: hm]] [[tools: Bash {"a": 1}]]', tools=[tool()], reasoning=LOW, temperature=1),
    ),
    "gpt": (recorded.GPT_TEXT, chat(model=GPT)),
    "llama": (recorded.LLAMA_TEXT, chat(model=LLAMA)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_has_the_shape_that_was_recorded(stub: CortexStub, name: str) -> None:
    answer, body = SHAPES[name]
    assert shape(post(stub, CHAT, body).json()) == shape(answer)


@pytest.mark.parametrize("name", ["CLAUDE_STREAM", "CLAUDE_THINKING_STREAM"])
def test_a_stream_has_the_shapes_that_were_recorded(stub: CortexStub, name: str) -> None:
    body = chat("[[thinking: hm]] [[text: so]]", stream=True, stream_options={"include_usage": True})
    if "THINKING" in name:
        body |= {"reasoning": LOW, "temperature": 1}
    kinds = {json.dumps(shape(event), sort_keys=True) for event in events(post(stub, CHAT, body))}
    lines = getattr(recorded, name).splitlines()
    replayed = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert kinds == {json.dumps(shape(event), sort_keys=True) for event in replayed}


def test_a_recorded_answer_is_replayed_as_it_is(stub: CortexStub) -> None:
    stub.replay = [recorded.GPT_TEXT, recorded.CLAUDE_STREAM]
    assert post(stub, CHAT, chat()).json() == recorded.GPT_TEXT
    assert post(stub, CHAT, chat()).text == recorded.CLAUDE_STREAM
    assert post(stub, CHAT, chat()).json()["choices"][0]["message"]["content"] == "You said: hello"


def test_claude_streams_in_cortex_s_shape(stub: CortexStub) -> None:
    body = chat(TWO_CALLS, tools=[tool(), tool("Read")], stream=True, stream_options={"include_usage": True})
    response = post(stub, CHAT, body)
    assert response.text.endswith("data: [DONE]\n\n")
    *chunks, usage = events(response)
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > 0
    assert "finish_reason" not in response.text
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {("", 0)}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert {delta["role"] for delta in deltas} == {"assistant"}
    assert deltas[-1]["content"] == ""
    assert deltas[-1]["tool_calls"] is None
    fragments = [delta["tool_calls"][0] for delta in deltas if delta["tool_calls"]]
    assert {fragment["index"] for fragment in fragments} == {0}
    named = [fragment for fragment in fragments if "id" in fragment]
    assert [fragment["function"]["name"] for fragment in named] == ["Bash", "Read"]
    assert all(fragment["id"].startswith("toolu_bdrk_01") for fragment in named)
    arguments = "".join(fragment["function"]["arguments"] for fragment in fragments)
    assert arguments == '{"command": "echo [[1]]"}{}'


def test_without_include_usage_no_usage_is_streamed(stub: CortexStub) -> None:
    assert "usage" not in post(stub, CHAT, chat(stream=True)).text


def test_the_older_shape_is_a_switch(stub: CortexStub) -> None:
    stub.set_options(older_shapes=True)
    chunks = events(post(stub, CHAT, chat(TWO_CALLS, tools=[tool(), tool("Read")], stream=True)))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    fragments = [delta["tool_calls"][0] for delta in deltas if delta["tool_calls"]]
    assert {delta["role"] for delta in deltas} == {""}
    assert {fragment["type"] for fragment in fragments if "id" in fragment} == {""}
    assert fragments[-1]["function"] == {"name": "Read", "arguments": ""}


def test_gpt_answers_in_the_ordinary_shape(stub: CortexStub) -> None:
    body = chat(TWO_CALLS, GPT, tools=[tool(), tool("Read")])
    whole = post(stub, CHAT, body).json()
    assert whole["id"].startswith("chatcmpl-")
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    chunks = events(post(stub, CHAT, {**body, "stream": True}))
    indexes = [c["index"] for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert sorted(set(indexes)) == [0, 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert post(stub, CHAT, chat(model=GPT)).json()["choices"][0]["finish_reason"] == "stop"


def test_thinking_comes_when_it_is_asked_for(stub: CortexStub) -> None:
    prompt = "[[thinking: hm]] [[text: so]]"
    assert "reasoning_details" not in post(stub, CHAT, chat(prompt)).text
    body = chat(prompt, reasoning=LOW, temperature=1)
    (detail,) = post(stub, CHAT, body).json()["choices"][0]["message"]["reasoning_details"]
    assert detail == {
        "type": "reasoning.text",
        "format": "anthropic-claude-v1",
        "id": "reasoning-text-1",
        "index": 0,
        "signature": thinking_signature("hm"),
        "text": "hm",
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in events(post(stub, CHAT, {**body, "stream": True}))]
    details = [delta["reasoning_details"][0] for delta in deltas if "reasoning_details" in delta]
    assert "".join(part["text"] for part in details) == "hm"
    assert not any("signature" in part for part in details)
    stub.set_options(signed_streams=True)
    assert thinking_signature("hm") in post(stub, CHAT, {**body, "stream": True}).text


def test_empty_keys_in_a_stream_are_a_switch(stub: CortexStub) -> None:
    body = chat(TWO_CALLS, tools=[tool(), tool("Read")], stream=True)
    assert '"custom"' not in post(stub, CHAT, body).text
    stub.set_options(stream_extras=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in events(post(stub, CHAT, body))]
    assert all(call["custom"] == recorded.EMPTY_CUSTOM for delta in deltas for call in delta["tool_calls"] or ())
    assert all(delta["function_call"] == {"arguments": "", "name": ""} for delta in deltas)


@pytest.mark.parametrize(("asked", "given"), [({}, 4096), ({"max_completion_tokens": 7}, 7)])
def test_an_answer_is_cut_at_the_token_limit(stub: CortexStub, asked: JSON, given: int) -> None:
    for model in (CLAUDE, GPT):
        body = post(stub, CHAT, chat("[[stream: 9000]]", model, **asked)).json()
        assert body["usage"]["completion_tokens"] == given
        assert len(body["choices"][0]["message"]["content"]) == given * 4
        assert body["choices"][0]["finish_reason"] == ("" if model == CLAUDE else "length")
    body = post(stub, MESSAGES, native("[[stream: 9000]]", max_tokens=given)).json()
    assert (body["stop_reason"], body["usage"]["output_tokens"]) == ("max_tokens", given)


def test_stop_on_claude_is_a_switch(stub: CortexStub) -> None:
    body = chat("[[text: one END two]]", stop="END")
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "one END two"
    stub.set_options(claude_stop="honoured")
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "one "


def test_messages_streams_thinking_text_and_tools(stub: CortexStub) -> None:
    prompt = f"[[thinking: hm]] {TWO_CALLS}"
    body = native(prompt, thinking=BUDGET, tools=[custom(), custom(name="Read")], stream=True)
    sent = events(post(stub, MESSAGES, body))
    assert [sent[0]["type"], sent[-2]["type"], sent[-1]["type"]] == ["message_start", "message_delta", "message_stop"]
    assert sent[-2]["delta"]["stop_reason"] == "tool_use"
    starts = [event["content_block"]["type"] for event in sent if event["type"] == "content_block_start"]
    assert starts == ["thinking", "tool_use", "tool_use"]
    deltas = [event["delta"] for event in sent if event["type"] == "content_block_delta"]
    assert [delta["signature"] for delta in deltas if "signature" in delta] == [thinking_signature("hm")]
    assert "".join(delta.get("partial_json", "") for delta in deltas) == '{"command": "echo [[1]]"}{}'
    whole = post(stub, MESSAGES, {**body, "stream": False}).json()
    again = copy.deepcopy(body)
    results = [got(block["id"]) for block in whole["content"] if block["type"] == "tool_use"]
    again["messages"] += [{"role": "assistant", "content": whole["content"]}, {"role": "user", "content": results}]
    assert post(stub, MESSAGES, {**again, "stream": False}).json()["content"][-1]["text"] == "done"
