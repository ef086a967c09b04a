"""Where the marks of the prompt cache go (`cache_control`) in a chat completion for Claude.

The problem: Claude Code marks the last block of a request, which is most often the result of a tool. Cortex ignores a
mark there. The mechanism: an ignored mark moves back to the nearest blocks that can carry one. These are two places,
because nobody knows whether a mark also covers the tool results before it (docs/cortex.md#chat-cache-results):

- The nearest block before it, most often the assistant's text before the call. If a mark covers results, the next
  request reads everything up to there from the cache.
- The nearest block of a user (or of the system). If a mark does not cover results, only marks before the first result
  count, and this is the last one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from bundle.cortex.blocks import blocks_of, mark_of, mark_within, text_block, unmarked
from bundle.cortex.models import JSON, MARK
from bundle.cortex.thinking import DETAILS
from bundle.cortex.turns import turn_start

MAX_MARKS = 4
# A mark finds a stored prefix that ends at most 20 blocks before it (docs/cortex.md#chat-cache-least). The difference
# is a margin, because nobody knows how Cortex counts blocks.
REACH = 15
Place = tuple[int, int]  # the position of a message, and the number of its block
T = TypeVar("T")


def cache_marks(messages: Sequence[JSON], refused: Collection[str] = ()) -> list[JSON]:
    """docs/cortex.md#chat-marks, docs/cortex.md#chat-cache: more than 4 marks are a 400, and only marks on blocks of
    system, user and assistant messages have an effect. No mark goes on a message of a role in `refused`.

    An assistant's text becomes a list of one block, with or without a mark: the message must stay the same on every
    turn, or the cached prefix would end before it.
    """
    listed = [_listed(message) for message in messages]
    out = without_marks(listed)
    for position, number in chosen_places(listed, {"system", "user", "assistant"} - {*refused}):
        blocks = list(out[position]["content"])
        blocks[number] = {**blocks[number], "cache_control": MARK}
        out[position] = {**out[position], "content": blocks}
    return out


def _listed(message: JSON) -> JSON:
    """An assistant's text and the mark beside it become one block. Other messages stay as they are."""
    if message["role"] != "assistant" or not isinstance(message.get("content"), str):
        return message
    return {**unmarked(message), "content": [{**text_block(message["content"]), **mark_of(message)}]}


def chosen_places(messages: Sequence[JSON], roles: Collection[str]) -> list[Place]:
    """At most four places for marks, on messages of these roles, the most important first:

    1. The last mark that all requests share (in the system prompt).
    2. The other marks, newest first.
    3. The place that the request before has marked, if it is out of reach of the newest mark.
    4. The rest of the shared marks, last first: new sessions in other folders read them.
    """
    ends = carriers(messages, roles)
    marked: set[Place] = set()
    nearest: Place | None = None
    nearest_user: Place | None = None  # or of the system
    for position, message in enumerate(messages):
        if position in ends:
            nearest = (position, ends[position])
            nearest_user = nearest_user if message["role"] == "assistant" else nearest
        numbers = [number for number, block in enumerate(blocks_of(message.get("content"))) if mark_of(block)]
        if message["role"] in roles:
            marked |= {(position, number) for number in numbers}
            numbers = []
        if numbers or mark_of(message) or mark_within(message.get("tool_calls")):  # ignored there
            marked |= {place for place in (nearest, nearest_user) if place}
    shared = sorted(place for place in marked if messages[place[0]]["role"] == "system")
    others = sorted(marked - {*shared})
    before = out_of_reach(messages, ends, others[-1]) if others else None
    return by_importance(shared, others, [before] if before and before not in others else [])[:MAX_MARKS]


def by_importance(shared: list[T], others: list[T], before: Sequence[T] = ()) -> list[T]:
    """The places of marks in the order in which they are kept; each list is in the order of the prompt.

    First comes the last one that all requests share (in the tools or the system prompt). Then come the others, newest
    first: the second newest marks what the previous turn has written to the cache. `before` marks that too if the
    newest one cannot find it. The rest of the shared ones comes last; a session in another folder reads them.
    """
    return [*shared[-1:], *others[::-1], *before, *shared[-2::-1]]


def carriers(messages: Sequence[JSON], roles: Collection[str]) -> dict[int, int]:
    """The positions of the messages that can carry a mark, and the number of the last block of each.

    An assistant's text before the first result of the conversation is not one of them: a mark there covers hardly more
    than one on the user's block before it, and in a short session it costs more than it saves.
    """
    first = next((position for position, message in enumerate(messages) if message["role"] == "tool"), len(messages))
    return {
        position: len(message["content"]) - 1
        for position, message in enumerate(messages)
        if message["role"] in roles
        and blocks_of(message.get("content"))
        and (message["role"] != "assistant" or position > first)
    }


def out_of_reach(messages: Sequence[JSON], ends: dict[int, int], newest: Place) -> Place | None:
    """The place that the previous request has most likely marked, if the newest mark would not find it. A request ends
    with a user's block or with results, so that place is on a user or on a text before a call."""
    turn = turn_start(messages)
    distance = newest[1] + 1  # in blocks
    for position in range(newest[0] - 1, -1, -1):
        message = messages[position]
        distance += len(message.get("tool_calls") or ())
        # An older turn is sent without its thinking, so nothing finds what its marks have stored.
        changed = position < turn and DETAILS in message
        if position in ends and (message["role"] == "user" or message.get("tool_calls")) and not changed:
            return (position, ends[position]) if distance > REACH else None
        distance += len(blocks_of(message.get("content")))
    return None


def without_marks(messages: Sequence[JSON]) -> list[JSON]:
    """The messages without any mark: on themselves, on their blocks and on their calls."""
    return [_without_marks(message) for message in messages]


def _without_marks(message: JSON) -> JSON:
    lists = {key: message[key] for key in ("content", "tool_calls") if isinstance(message.get(key), list)}
    return {**unmarked(message), **{key: [unmarked(item) for item in items] for key, items in lists.items()}}
