"""Recorded answers of the real Cortex, replayed through the running proxy and read by Anthropic's own SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests import recorded
from tests.recorded import JSON
from tests.set_up import SetUp

pytestmark = pytest.mark.real

MODEL, GPT = "claude-sonnet-4-6", "openai-gpt-4.1"
THINKING: Any = {"type": "adaptive"}
TOOL: Any = {
    "name": "read_gauge",
    "description": "reads a gauge",
    "input_schema": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
}
ASKED: Any = [{"role": "user", "content": "What does the gauge say?"}]


@pytest.fixture(scope="module")
def client(running: SetUp) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, auth_token=running.master_key, api_key=None, max_retries=0) as made:
        yield made


def ask(client: anthropic.Anthropic, running: SetUp, answer: JSON, model: str = MODEL, **more: Any) -> Any:
    running.stub.replay = [answer]
    return client.messages.create(model=model, max_tokens=4000, messages=ASKED, **more)


def test_text_arrives(client: anthropic.Anthropic, running: SetUp) -> None:
    message = ask(client, running, recorded.CLAUDE_TEXT)
    assert [block.text for block in message.content] == ["Seven."]
    assert (message.stop_reason, message.role) == ("end_turn", "assistant")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (19, 6)


@pytest.mark.parametrize("name", ["CLAUDE_CALL", "CLAUDE_THINKING_CALL"])
def test_a_call_that_was_not_streamed_arrives(client: anthropic.Anthropic, running: SetUp, name: str) -> None:
    message = ask(client, running, getattr(recorded, name), tools=[TOOL], thinking=THINKING)
    call = message.content[-1]
    assert (call.type, call.name, call.input) == ("tool_use", "read_gauge", {"room": "boiler"})
    assert call.id.startswith("toolu_bdrk_01AbcDef")
    assert message.stop_reason == "tool_use"
    others = [(block.type, getattr(block, block.type)) for block in message.content[:-1]]
    thought = [("thinking", recorded.THINKING["text"]), ("text", "I will look at the gauge.")]
    assert others == (thought if "THINKING" in name else [])


def test_a_result_goes_back_to_the_call_that_was_recorded(client: anthropic.Anthropic, running: SetUp) -> None:
    """The second request of test_snowflake_tool_calling.yaml: a call with content null, then its result."""
    first = ask(client, running, recorded.CLAUDE_CALL, tools=[TOOL])
    running.stub.replay = [recorded.CLAUDE_TEXT]
    call = first.content[0]
    history: Any = [
        *ASKED,
        {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "7 bar"}]},
    ]
    client.messages.create(model=MODEL, max_tokens=4000, messages=history, tools=[TOOL])
    _, assistant, result = running.stub.requests[-1]["body"]["messages"]
    function = {"name": "read_gauge", "arguments": '{"room": "boiler"}'}
    assert assistant.get("content") is None
    assert assistant["tool_calls"] == [{"id": call.id, "type": "function", "function": function}]
    assert result == {"role": "tool", "tool_call_id": call.id, "content": "7 bar"}


def test_what_claude_thinks_is_asked_for_as_it_was_recorded(client: anthropic.Anthropic, running: SetUp) -> None:
    ask(client, running, recorded.CLAUDE_TEXT, thinking=THINKING)
    body = running.stub.requests[-1]["body"]
    assert {"effort"} == body["reasoning"].keys()
    assert body["temperature"] == 1


@pytest.mark.parametrize("name", ["CLAUDE_STREAM", "CLAUDE_THINKING_STREAM"])
def test_a_stream_arrives(client: anthropic.Anthropic, running: SetUp, name: str) -> None:
    running.stub.replay = [getattr(recorded, name)]
    thinking: Any = {"thinking": THINKING} if "THINKING" in name else {}
    with client.messages.stream(model=MODEL, max_tokens=4000, messages=ASKED, **thinking) as stream:
        message = stream.get_final_message()
    found = [(block.type, getattr(block, block.type)) for block in message.content]
    thought = [("thinking", "Three and four"), ("text", "It is **seven**.")]
    assert found == (thought if "THINKING" in name else [("text", "Seven.")])
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == (66 if "THINKING" in name else 6)


@pytest.mark.parametrize("kind", ["output_config", "older"])
def test_structured_output_is_asked_for_as_it_was_recorded(
    client: anthropic.Anthropic, running: SetUp, kind: str
) -> None:
    schema = {
        "type": "object",
        "properties": {"river": {"type": "string"}, "length_km": {"type": "integer"}},
        "required": ["river", "length_km"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "schema": schema}
    body = {"output_config": {"format": wanted}} if kind == "output_config" else {"output_format": wanted}
    message = ask(client, running, recorded.CLAUDE_STRUCTURED, extra_body=body)
    assert json.loads(message.content[0].text) == {"river": "Ilz", "length_km": 65}
    sent = running.stub.requests[-1]["body"]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == schema


def test_gpt_and_llama_arrive(client: anthropic.Anthropic, running: SetUp) -> None:
    def rows(template: str) -> str:
        row = "  - model_name: {0}\n    litellm_params: {{ <<: *cortex, model: openai/{0} }}\n    model_info: *info\n"
        more = "".join(row.format(name) for name in (GPT, "llama3.1-8b"))
        return template.replace("model_list:\n", f"model_list:\n{more}", 1)

    with running.template(rows):
        message = ask(client, running, recorded.GPT_TEXT, GPT)
        assert ([block.text for block in message.content], message.model) == (["Seven."], GPT)
        message = ask(client, running, recorded.LLAMA_TEXT, "llama3.1-8b")
        assert json.loads(message.content[0].text)["river"] == "Ilz"


def test_a_key_that_nobody_knows_yet_breaks_nothing(client: anthropic.Anthropic, running: SetUp) -> None:
    """The next release of the service may send what this one does not: at every depth, whole and streamed."""

    def with_news(node: Any) -> Any:
        if isinstance(node, dict):
            return {**{key: with_news(value) for key, value in node.items()}, "novelty": {"kind": ["new"]}}
        return [with_news(item) for item in node] if isinstance(node, list) else node

    message = ask(client, running, with_news(recorded.CLAUDE_THINKING_CALL), tools=[TOOL], thinking=THINKING)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    events = [line[6:] for line in recorded.CLAUDE_THINKING_STREAM.splitlines() if line.startswith("data: {")]
    news = "".join(f"data: {json.dumps(with_news(json.loads(event)))}\n\n" for event in events)
    running.stub.replay = [news + "data: [DONE]\n\n"]
    with client.messages.stream(model=MODEL, max_tokens=4000, messages=ASKED, thinking=THINKING) as stream:
        assert stream.get_final_text() == "It is **seven**."
