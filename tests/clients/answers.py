"""Checks of the Python SDK: messages, streams, tools, thinking, and how an answer ends."""

from __future__ import annotations

import json
from typing import Any

from anthropic import beta_async_tool
from pydantic import BaseModel

from tests.clients.asked import IN_PART, NOT, OTHER_TOOL, TOOL, YES, Asked, Check, calls_of, said, text_of
from tests.cortex_rules import JSON

ADAPTIVE = "claude-sonnet-4-6"  # the first Claude that thinks adaptively, and takes no prefill
STRICT = "claude-opus-4-7"  # the first Claude with a fixed temperature


async def message(a: Asked) -> str:
    answer = await a.ask("[[text: hello]]")
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert text_of(answer) == "hello"
    assert answer.model
    assert answer.id.startswith("msg_"), answer.id
    return YES


async def usage(a: Asked) -> str:
    used = (await a.ask("[[text: hello]]")).usage
    assert used.input_tokens > 0
    assert used.output_tokens > 0
    assert used.cache_creation_input_tokens is not None, "no cache_creation_input_tokens"
    assert used.cache_read_input_tokens is not None, "no cache_read_input_tokens"
    return YES


async def system_prompt(a: Asked) -> str:
    for system in ("be short", [{"type": "text", "text": "be short"}, {"type": "text", "text": "be kind"}]):
        await a.ask(system=system)
        body = a.received()
        told = body["system"] if a.route == "messages" else body["messages"][0]
        assert "be short" in json.dumps(told)
        assert ("be kind" in json.dumps(told)) == isinstance(system, list)
        assert a.route == "messages" or told["role"] == "system"
    return YES


async def stream(a: Asked) -> str:
    async with a.client.messages.stream(**a.body("[[text: one two three four five six seven eight]]")) as events:
        kinds = [event.type async for event in events]
        final = await events.get_final_message()
    assert text_of(final) == "one two three four five six seven eight"
    assert kinds.count("text") > 1, kinds
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert final.stop_reason == "end_turn"
    assert final.id.startswith("msg_"), final.id
    return YES


async def stream_usage(a: Asked) -> str:
    first: Any = None
    async for event in await a.client.messages.create(**a.body("[[text: hello]]"), stream=True):
        first = first or event.message.usage
        if event.type == "message_delta":
            assert event.usage.output_tokens > 0
    assert first.input_tokens > 0, "message_start says 0 input tokens"
    return YES


async def stream_tool_call(a: Asked) -> str:
    script = '[[tools: weather {"town": "a town whose name is long enough for many pieces"}]]'
    async with a.client.messages.stream(**a.body(script, tools=[TOOL])) as events:
        deltas = [event.partial_json async for event in events if event.type == "input_json"]
        final = await events.get_final_message()
    (call,) = calls_of(final)
    assert (call.name, call.input) == ("weather", {"town": "a town whose name is long enough for many pieces"})
    assert json.loads("".join(deltas)) == call.input
    assert final.stop_reason == "tool_use"
    return YES


async def parallel_tool_calls(a: Asked) -> str:
    script = " ; ".join(f'weather {{"town": "{town}"}}' for town in ("A", "B", "C"))
    asked = a.body(f"[[tools: {script}]] [[text: all three]]", tools=[TOOL])
    answer = await a.client.messages.create(**asked)
    calls = calls_of(answer)
    assert [call.input["town"] for call in calls] == ["A", "B", "C"]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"sun in {call.input['town']}"} for call in calls
    ]
    history = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    last = await a.client.messages.create(**{**asked, "messages": [*asked["messages"], *history]})
    assert text_of(last) == "all three"
    for town in "ABC":
        assert f"sun in {town}" in said(a.received())
    return YES


async def tool_choice(a: Asked) -> str:
    named = {"type": "function", "function": {"name": "weather"}}
    chat = {"auto": "auto", "any": "required", "tool": named, "none": "none"}
    for kind, expected in chat.items():
        choice = {"type": kind, **({"name": "weather"} if kind == "tool" else {})}
        await a.ask("[[text: ok]]", tools=[TOOL, OTHER_TOOL], tool_choice=choice)
        got = a.received().get("tool_choice")
        assert got == (expected if a.is_chat else choice), got
    return YES


async def tool_schema(a: Asked) -> str:
    """A property of the schema may be `true`, which means anything (case C10)."""
    schema = {"type": "object", "properties": {"anything": True, "town": {"type": "string"}}}
    beta = {"betas": ["context-management-2025-06-27"], "context_management": {"edits": []}}
    for more in ({}, beta):
        asked = a.body('[[tools: weather {"town": "A"}]]', tools=[{**TOOL, "input_schema": schema}], **more)
        answer: Any = await a.client.beta.messages.create(**asked)
        assert calls_of(answer)[0].input == {"town": "A"}
    return YES


async def tool_runner(a: Asked) -> str:
    ran = []

    @beta_async_tool
    async def weather(town: str) -> str:
        """Tells the weather of a town."""
        ran.append(town)
        return f"sun in {town}"

    script = '[[tools: weather {"town": "A"}]] [[tools: weather {"town": "B"}]] [[text: done]]'
    last = await a.client.beta.messages.tool_runner(**a.body(script, tools=[weather])).until_done()
    assert ran == ["A", "B"], ran
    assert text_of(last) == "done"
    assert "sun in A" in said(a.received())
    assert "sun in B" in said(a.received())
    return YES


async def structured_output(a: Asked) -> str:
    class Town(BaseModel):
        name: str

    answer = await a.client.messages.parse(**a.body('[[text: {"name": "A"}]]'), output_format=Town)
    assert isinstance(answer.parsed_output, Town)
    assert answer.parsed_output.name == "A"
    body = a.received()
    wanted = body.get("response_format") if a.is_chat else body.get("output_config", {}).get("format")
    assert wanted, f"no schema reached Cortex: {sorted(body)}"
    assert wanted["type"] == "json_schema"
    assert '"name"' in json.dumps(wanted)
    return YES


async def thinking(a: Asked) -> str:
    """Asked for with a budget, and adaptively."""
    for model, asked in (("claude-haiku-4-5", {"type": "enabled", "budget_tokens": 2000}), (ADAPTIVE, {})):
        wanted = asked or {"type": "adaptive"}
        body = a.body("[[thinking: deep]] [[text: so]]", thinking=wanted, max_tokens=9000)
        answer = await a.client.messages.create(**{**body, "model": a.model(model)})
        assert text_of(answer) == "so"
        kinds = [block.type for block in answer.content]
        sent = a.received()
        if a.route == "gpt":
            assert kinds == ["text"], kinds
            assert not {"reasoning", "thinking"} & sent.keys()
            continue
        assert kinds == ["thinking", "text"], kinds
        first: Any = answer.content[0]
        assert first.thinking == "deep"
        assert first.signature
        assert "reasoning" in sent or sent["thinking"] == wanted
    return NOT if a.route == "gpt" else YES


def _thinks_and_calls(a: Asked) -> JSON:
    script = '[[thinking: deep]] [[tools: weather {"town": "A"}]] [[text: done]]'
    budget = {"type": "enabled", "budget_tokens": 2000}
    return a.body(script, tools=[TOOL], thinking=budget, max_tokens=9000)


async def thinking_sent_back(a: Asked) -> str:
    asked = _thinks_and_calls(a)
    answer = await a.client.messages.create(**asked)
    return await _next_turn(a, asked, answer)


async def thinking_of_a_stream_sent_back(a: Asked) -> str:
    asked = _thinks_and_calls(a)
    async with a.client.messages.stream(**asked) as events:
        answer = await events.get_final_message()
    assert a.route == "gpt" or answer.content[0].type == "thinking"
    return await _next_turn(a, asked, answer)


async def _next_turn(a: Asked, asked: JSON, answer: Any) -> str:
    (call,) = calls_of(answer)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun"}
    history = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    last = await a.client.messages.create(**{**asked, "messages": [*asked["messages"], *history]})
    assert text_of(last) == "done"
    sent = a.received()
    assert "sun" in said(sent)
    return YES if "deep" in said(sent) and "signature" in said(sent) else NOT


async def effort(a: Asked) -> str:
    field = {"chat": "reasoning", "messages": "output_config", "gpt": "reasoning_effort"}[a.route]
    reached = []
    thinks: list[JSON] = [{"thinking": {"type": "adaptive"}}, {}]
    for more in thinks:
        body = a.body(output_config={"effort": "low"}, max_tokens=9000, **more)
        await a.client.messages.create(**{**body, "model": a.model(ADAPTIVE, "openai-gpt-5.1")})
        reached.append(a.received().get(field) == ("low" if a.route == "gpt" else {"effort": "low"}))
    assert reached[0], a.received()
    return YES if reached[1] else IN_PART


async def stop_sequences(a: Asked) -> str:
    answer = await a.ask("[[text: one two three]]", stop_sequences=["two"])
    sent = a.received()
    assert sent["stop" if a.is_chat else "stop_sequences"] == ["two"]
    if text_of(answer) == "one two three":
        assert answer.stop_reason == "end_turn"
        return NOT
    assert text_of(answer) == "one "
    return YES if answer.stop_reason == "stop_sequence" else IN_PART


async def max_tokens(a: Asked) -> str:
    long = "[[text: " + "word " * 100 + "]]"
    answer = await a.ask(long, max_tokens=5)
    assert answer.stop_reason == "max_tokens", answer.stop_reason
    assert answer.usage.output_tokens <= 5
    async with a.client.messages.stream(**a.body(long, max_tokens=5)) as events:
        assert (await events.get_final_message()).stop_reason == "max_tokens"
    return YES


async def sampling(a: Asked) -> str:
    asked = {"temperature": 0.2, "top_p": 0.9, "top_k": 5}
    await a.ask(extra_body=asked)
    sent = a.received()
    got = {name: sent[name] for name in asked if name in sent}
    assert {**got, "top_k": 5} == asked, got
    return YES if got == asked else IN_PART


async def sampling_of_newer_models(a: Asked) -> str:
    await a.client.messages.create(**{**a.body(extra_body={"temperature": 0.2}), "model": a.model(STRICT)})
    return YES if a.received().get("temperature") == 0.2 else NOT


async def _prefilled(a: Asked, model: str) -> str:
    """Whether the beginning of an answer is still the last message when it reaches Cortex. It is never lost."""
    asked = {**a.body("[[text: a]] [[text: b]]"), "model": model}
    last = {"role": "assistant", "content": "{"}
    await a.client.messages.create(**{**asked, "messages": [*asked["messages"], last]})
    messages = a.received()["messages"]
    (begun,) = [message for message in messages if message["role"] == "assistant"]
    assert "{" in json.dumps(begun["content"])
    return YES if messages[-1] is begun else NOT


async def prefill(a: Asked) -> str:
    return await _prefilled(a, a.model())


async def prefill_of_newer_models(a: Asked) -> str:
    return await _prefilled(a, a.model(ADAPTIVE))


CHECKS: dict[str, Check] = {
    each.__name__: each
    for each in (
        *(message, usage, system_prompt, stream, stream_usage, stream_tool_call, parallel_tool_calls, tool_choice),
        *(tool_schema, tool_runner, structured_output, thinking, thinking_sent_back, thinking_of_a_stream_sent_back),
        *(effort, stop_sequences, max_tokens, sampling, sampling_of_newer_models, prefill, prefill_of_newer_models),
    )
}
