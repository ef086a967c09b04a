"""Calls of tools and their results, in the order that Cortex takes (docs/cortex.md#chat-pairing)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence

from bundle.cortex.blocks import blocks_of, joined_text, mark_of, text_block
from bundle.cortex.models import JSON, Note, no_note

MAX_ID = 40  # OpenAI's limit for a call's id; Bedrock, where Claude runs, takes 64
CONTINUE = "Continue."
NO_RESULT = "[no result: the call was interrupted]"
LOST_RESULT = "[Result of a tool, away from its call]"
NO_TOOLS = (
    "Tools are not available to this model on Snowflake Cortex. Answer in text. When the task needs a tool (reading or "
    "changing files, running commands, searching), tell the user that this model cannot use tools here and that a "
    "Claude or GPT model can."
)


def results_follow_calls(messages: Sequence[JSON], note: Note = no_note) -> list[JSON]:
    """docs/cortex.md#chat-pairing: a result without its call, or a call without its result, is a 400.

    After each assistant message come exactly the results of its calls, in their order. A missing result is filled in,
    a result without its call (or a second one) becomes user text, ids are made unique and arguments a JSON object.
    """
    out: list[JSON] = []
    seen: set[str] = set()
    for turn, rest in _rounds(messages):
        for message in turn:
            if not message.get("tool_calls"):
                out.append(message)
                continue
            calls, results = [], []
            for call in message["tool_calls"]:
                found = next((i for i, m in enumerate(rest) if _answers(m, call)), None)
                renamed = _plain_call(call, seen)
                if found is None:
                    note("missing tool result filled in")
                    results.append({"role": "tool", "tool_call_id": renamed["id"], "content": NO_RESULT})
                else:
                    results.append({**rest.pop(found), "tool_call_id": renamed["id"]})
                calls.append(renamed)
            out += [{**message, "tool_calls": calls}, *results]
        for message in rest:
            if message.get("role") == "tool":
                note("tool result without its call turned into text")
                out.append(_as_user(message, LOST_RESULT))
            else:
                out.append(message)
    return out


def _rounds(messages: Sequence[JSON]) -> Iterator[tuple[list[JSON], list[JSON]]]:
    """Each run of assistant messages, with all that follows it up to the next one."""
    turn: list[JSON] = []
    rest: list[JSON] = []
    for message in messages:
        if message.get("role") != "assistant":
            rest.append(message)
            continue
        if rest:
            yield turn, rest
            turn, rest = [], []
        turn.append(message)
    yield turn, rest


def _answers(message: JSON, call: JSON) -> bool:
    return message.get("role") == "tool" and message.get("tool_call_id") == call.get("id")


def _plain_call(call: JSON, seen: set[str]) -> JSON:
    function = call.get("function") or {}
    identity = plain_id(call.get("id"), seen)
    plain = {"name": function.get("name") or "unknown", "arguments": _plain_arguments(function.get("arguments"))}
    return {"id": identity, "type": "function", "function": plain, **mark_of(call)}


def plain_id(given: object, seen: set[str]) -> str:
    """A call's id of letters, digits, `_` and `-` that no call before it has; `seen` gets it.

    docs/cortex.md#chat-tool-ids, docs/cortex.md#messages-tool-ids. The same id comes out on every turn, because it
    follows from the calls before it alone.
    """
    text = str(given or "call")
    wanted = re.sub(r"[^a-zA-Z0-9_-]", "_", text)
    if len(wanted) > MAX_ID:
        wanted = f"{wanted[: MAX_ID - 13]}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    identity, number = wanted, 1
    while identity in seen:
        number += 1
        identity = f"{wanted[: MAX_ID - 6]}_{number}"
    seen.add(identity)
    return identity


def _plain_arguments(arguments: object) -> str:
    if not arguments:
        return "{}"
    if isinstance(arguments, str):
        try:
            if isinstance(json.loads(arguments), dict):
                return arguments
        except ValueError:
            pass
    return json.dumps(arguments if isinstance(arguments, dict) else {"arguments": arguments})


def _as_user(message: JSON, heading: str) -> JSON:
    return {"role": "user", "content": [text_block(heading), *blocks_of(message.get("content"))], **mark_of(message)}


def one_call_per_turn(messages: Sequence[JSON], note: Note = no_note) -> list[JSON]:
    """docs/cortex.md#chat-parallel-calls: two calls in one assistant turn of Claude are a 400, call by call is taken.

    `assistant[A, B], tool(A), tool(B)` becomes `assistant[A], tool(A), assistant[B], tool(B)`. Text stays with A.
    """
    out: list[JSON] = []
    later: Iterator[JSON] = iter(())
    for message in results_follow_calls(messages, note):
        if message.get("role") == "tool" and out[-1]["role"] == "tool":
            # Not the first result of its turn: its call comes here.
            out.append({"role": "assistant", "content": None, "tool_calls": [next(later)]})
        calls = message.get("tool_calls") or ()
        if calls:
            later = iter(calls[1:])
        out.append({**message, "tool_calls": calls[:1]} if calls else message)
    return out


def tools_in_words(messages: Sequence[JSON]) -> list[JSON]:
    """docs/cortex.md#chat-tools-by-model: only OpenAI's models and Claude have tools; for others, text tells of them.

    A system block tells the model that it has no tools, so that it can tell its user.
    """
    names: dict[str, str] = {}
    out: list[JSON] = []
    for message in messages:
        if message.get("role") == "tool":
            out.append(_as_user(message, f"[Result of {names.get(message['tool_call_id'], 'a tool')}]"))
        elif calls := message.get("tool_calls"):
            names.update((call["id"], call["function"]["name"]) for call in calls)
            told = [f"[Called {call['function']['name']} with {call['function']['arguments']}]" for call in calls]
            text = joined_text(message.get("content"))
            out.append({"role": "assistant", "content": "\n".join([text, *told] if text else told)})
        else:
            out.append(message)
    if out and out[0].get("role") == "system":
        return [{**out[0], "content": [*blocks_of(out[0].get("content")), text_block(NO_TOOLS)]}, *out[1:]]
    return [{"role": "system", "content": [text_block(NO_TOOLS)]}, *out]


def ends_with_user(messages: Sequence[JSON], note: Note = no_note) -> list[JSON]:
    """docs/cortex.md#chat-final-assistant, docs/cortex.md#chat-prefill: an assistant message at the end is a 400 where
    tools are given, and with Claude 4.6 and newer always.

    Claude Code asks that way to have an unfinished answer carried on, so that is what the added message says.
    """
    if messages and messages[-1]["role"] == "assistant":
        note("user message added after a final assistant message")
        return [*messages, {"role": "user", "content": [text_block(CONTINUE)]}]
    return list(messages)
