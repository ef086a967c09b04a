"""The order of messages: each tool call with its result, one call in each turn, a user message at the end.

The problem: Cortex answers 400 to a tool call without its result, to a result without its call, and on Claude to two
calls in one turn; Claude Code sends such histories, for example after an interruption. The mechanism: functions that
reorder the messages, fill in what is missing, and turn into text what cannot stay (docs/cortex.md#chat-pairing).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest

from bundle.cortex.blocks import blocks_of, joined_text, mark_of, text_block
from bundle.cortex.models import JSON, Note, no_note

MAX_ID = 40  # OpenAI's limit for the id of a call; Bedrock, which runs Claude, allows 64 characters
# Texts for the model. They are constant: each of them becomes a part of the prefix that Cortex caches.
CONTINUE = "Continue."
NO_RESULT = "[no result: the call was interrupted]"
LOST_RESULT = "[Result of a tool, away from its call]"
NO_TOOLS = (
    "Tools are not available to this model on Snowflake Cortex. Answer in text. When the task needs a tool (reading or "
    "changing files, running commands, searching), tell the user that this model cannot use tools here and that a "
    "Claude or GPT model can."
)


def results_follow_calls(messages: Sequence[JSON], note: Note = no_note) -> list[JSON]:
    """docs/cortex.md#chat-pairing: a result without its call is a 400, and so is a call without its result.

    Afterwards each assistant message is followed by exactly the results of its calls, in the order of the calls. A
    missing result is filled in. A result without a call, or a second result for the same call, becomes user text. Each
    call gets a unique id and a JSON object as its arguments.
    """
    out: list[JSON] = []
    seen: dict[str, int] = {}
    for turn, following in _rounds(messages):
        waiting: defaultdict[str, deque[int]] = defaultdict(deque)  # the places of the results, by the call's id
        for place, message in enumerate(following):
            if message.get("role") == "tool":
                waiting[str(message.get("tool_call_id"))].append(place)
        used: set[int] = set()
        for message in turn:
            if not message.get("tool_calls"):
                out.append(message)
                continue
            calls, results = [], []
            for call in message["tool_calls"]:
                if places := waiting.get(str(call.get("id"))):
                    used.add(places[0])
                    result = following[places.popleft()]
                else:
                    note("missing tool result filled in")
                    result = {"role": "tool", "content": NO_RESULT}
                calls.append(_plain_call(call, seen))
                results.append({**result, "tool_call_id": calls[-1]["id"]})
            out += [{**message, "tool_calls": calls}, *results]
        for place, message in enumerate(following):
            if place in used:
                continue
            if message.get("role") == "tool":
                note("tool result without its call turned into text")
                out.append(_as_user(message, LOST_RESULT))
            else:
                out.append(message)
    return out


def _rounds(messages: Sequence[JSON]) -> Iterable[tuple[list[JSON], list[JSON]]]:
    """Each run of assistant messages, and the messages that follow it up to the next assistant message."""
    runs = [list(run) for _, run in groupby(messages, lambda message: message.get("role") == "assistant")]
    if messages and messages[0].get("role") != "assistant":
        runs.insert(0, [])
    return zip_longest(runs[::2], runs[1::2], fillvalue=[])


def _plain_call(call: JSON, seen: dict[str, int]) -> JSON:
    function = call.get("function") or {}
    plain = {"name": function.get("name") or "unknown", "arguments": _plain_arguments(function.get("arguments"))}
    return {"id": plain_id(call.get("id"), seen), "type": "function", "function": plain, **mark_of(call)}


def plain_id(given: object, seen: dict[str, int]) -> str:
    """An id for a call: letters, digits, `_` and `-`, and not in `seen`, to which it is added. The values of `seen` are
    the last numbers that repeated ids have got: to count from 1 each time would take too long.

    docs/cortex.md#chat-tool-ids, docs/cortex.md#messages-tool-ids. A call gets the same id on every turn, because
    its id depends only on the calls before it.
    """
    text = str(given or "call")
    base = re.sub(r"[^a-zA-Z0-9_-]", "_", text)
    if len(base) > MAX_ID:
        base = f"{base[: MAX_ID - 13]}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    identity, stem = base, base[: MAX_ID - 6]
    while identity in seen:
        seen[stem] = seen.get(stem, 1) + 1
        identity = f"{stem}_{seen[stem]}"
    seen.setdefault(identity, 1)
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
    """docs/cortex.md#chat-parallel-calls: two calls in one assistant turn of Claude are a 400; one call is accepted.

    `assistant[A, B], tool(A), tool(B)` becomes `assistant[A], tool(A), assistant[B], tool(B)`. The text stays with A.
    """
    out: list[JSON] = []
    later: Iterator[JSON] = iter(())
    for message in results_follow_calls(messages, note):
        if message.get("role") == "tool" and out[-1]["role"] == "tool":
            # This is not the first result of its turn, so its call has not been written yet.
            out.append({"role": "assistant", "content": None, "tool_calls": [next(later)]})
        calls = message.get("tool_calls") or ()
        if calls:
            later = iter(calls[1:])
        out.append({**message, "tool_calls": calls[:1]} if calls else message)
    return out


def tools_in_words(messages: Sequence[JSON]) -> list[JSON]:
    """docs/cortex.md#chat-tools-by-model: only OpenAI's models and Claude have tools. For other models, calls and
    results become text.

    A system block tells the model that it has no tools, so that it can tell the user.
    """
    names: dict[str, str] = {}
    out: list[JSON] = []
    for message in messages:
        if message.get("role") == "tool":
            out.append(_as_user(message, f"[Result of {names.get(message['tool_call_id'], 'a tool')}]"))
        elif calls := message.get("tool_calls"):
            names.update((call["id"], call["function"]["name"]) for call in calls)
            described = [f"[Called {call['function']['name']} with {call['function']['arguments']}]" for call in calls]
            text = joined_text(message.get("content"))
            out.append({"role": "assistant", "content": "\n".join([text, *described] if text else described)})
        else:
            out.append(message)
    if out and out[0].get("role") == "system":
        return [{**out[0], "content": [*blocks_of(out[0].get("content")), text_block(NO_TOOLS)]}, *out[1:]]
    return [{"role": "system", "content": [text_block(NO_TOOLS)]}, *out]


def turn_start(messages: Sequence[JSON]) -> int:
    """The position at which the current turn begins: the last messages of a user that do not follow results of tools.
    0 if there are none. (What a user adds to results, such as their images, belongs to the same turn.)"""
    start = position = 0
    for is_answer, run in groupby(messages, lambda message: message["role"] == "assistant"):
        roles = [message["role"] for message in run]
        if not is_answer and "user" in roles and "tool" not in roles:
            start = position
        position += len(roles)
    return start


def ends_with_user(messages: Sequence[JSON], note: Note = no_note) -> list[JSON]:
    """docs/cortex.md#chat-final-assistant, docs/cortex.md#chat-prefill: an assistant message at the end is a 400 if the
    request has tools, and always on Claude 4.6 and newer.

    Claude Code sends such a history to continue an unfinished answer, so the added user message says "Continue."
    """
    if messages and messages[-1]["role"] == "assistant":
        note("user message added after a final assistant message")
        return [*messages, {"role": "user", "content": [text_block(CONTINUE)]}]
    return list(messages)
