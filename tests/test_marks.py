"""Cache marks where they count (bundle/cortex/marks.py), and what they save by the stand-in's own count."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence

import pytest

from bundle.cortex.marks import MAX_MARKS, REACH, by_importance, cache_marks, without_marks
from bundle.cortex.models import JSON, Limits
from bundle.cortex.requests import chat_request
from tests.conversations import GPT, LLAMA, assistant, call, cortex, marked, result, sent, system, text, tool, user
from tests.conversations import MARK as MARKED
from tests.cortex_charging import PromptCache, Usage, chat_blocks, messages_blocks
from tests.cortex_rules import Options, check_chat


def so(words: str, *ids: str, **more: object) -> JSON:
    """An assistant's message as Claude gets it: its text is a list of one block."""
    return assistant([text(words, **more)], *ids)


def test_a_mark_is_ephemeral_and_nothing_else() -> None:
    long = {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
    expected = [system(text("s", **MARKED)), user(text("x", **MARKED))]
    assert sent(system(text("s", **long)), user(text("x", **long))) == expected


def test_of_too_many_marks_the_last_of_the_system_and_the_newest_of_the_users_stay() -> None:
    messages = [system(text("s", **MARKED), text("t", **MARKED)), *[user("x", text("y", **MARKED))] * 5]
    assert marked(cache_marks(messages)) == [(0, 1), (3, 1), (4, 1), (5, 1)]


def test_room_that_the_users_leave_goes_to_the_rest_of_the_system() -> None:
    messages = [system(*[text("s", **MARKED)] * 5), user(text("x", **MARKED))]
    assert marked(cache_marks(messages)) == [(0, 2), (0, 3), (0, 4), (1, 0)]


def test_without_a_system_the_users_get_all_marks() -> None:
    assert marked(cache_marks([user(*[text("x", **MARKED)] * 5)])) == [(0, 1), (0, 2), (0, 3), (0, 4)]


TURN = [so("look", "a"), result("a")]


@pytest.mark.parametrize(
    "message",
    [assistant(None, **MARKED), assistant(None, tool_calls=[call("b", **MARKED)]), result("b", **MARKED)],
    ids=["message", "call", "result"],
)
def test_a_mark_that_cortex_would_ignore_moves_to_the_newest_text_before_it_and_to_the_newest_user(
    message: JSON,
) -> None:
    before = [system(text("s")), user("x", "y"), *TURN, so("and", "b"), result("b")]
    assert marked(cache_marks([*before, message])) == [(1, 1), (4, 0)]
    assert marked(cache_marks([message, user("z")])) == []


def test_a_mark_on_a_call_moves_to_the_text_beside_it() -> None:
    messages = [user("x"), *TURN, assistant([text("so")], tool_calls=[call("b", **MARKED)])]
    assert marked(cache_marks(messages)) == [(0, 0), (3, 0)]


def test_without_a_text_before_the_calls_the_mark_moves_to_the_user_only() -> None:
    silent = [assistant(None, "a"), result("a"), assistant(None, "b"), result("b", **MARKED)]
    assert marked(cache_marks([system(text("s")), user("x"), *silent])) == [(1, 0)]


def test_before_the_first_result_a_mark_moves_to_the_user_only() -> None:
    assert marked(cache_marks([user("x"), so("look", "a"), result("a", **MARKED)])) == [(0, 0)]


def test_the_results_of_a_split_turn_mark_the_text_before_all_its_calls() -> None:
    turn = [assistant("look", "a", "b"), result("a"), result("b", **MARKED)]
    out = sent(user("x"), *TURN, *turn, tools=[tool()])
    assert marked(out) == [(0, 0), (3, 0)]
    assert out[3] == so("look", "a_2", **MARKED)


def test_a_mark_inside_a_result_counts_as_one_on_it() -> None:
    out = sent(user("x"), assistant(None, "a"), result("a", [text("out", **MARKED)]))
    assert marked(out) == [(0, 0)]


def test_a_mark_on_an_assistant_s_text_stays_there() -> None:
    for message in (assistant("so", **MARKED), assistant([text("s"), text("o", **MARKED)])):
        assert sent(user("x"), message, user("y"))[1] == so("so", **MARKED)


def test_an_assistant_s_text_is_the_same_list_with_a_mark_and_without() -> None:
    for content in ("so", [text("so")], [text("s"), text("o", **MARKED)]):
        assert without_marks(sent(user("x"), assistant(content), user("y")))[1] == so("so")
    assert sent(user("x"), assistant(None, "a"), result("a"))[1]["content"] is None


def test_other_models_get_an_assistant_s_text_as_a_string() -> None:
    for model in (GPT, LLAMA):
        assert sent(user("x"), assistant([text("s"), text("o")]), user("y"), model=model)[1] == assistant("so")


def many(count: int, name: str) -> list[JSON]:
    ids = [f"{name}{number}" for number in range(count)]
    return [message for identity in ids for message in (assistant(None, identity), result(identity))]


def test_what_the_previous_request_marked_is_marked_again_when_the_newest_mark_would_not_find_it() -> None:
    shared = system(text("s", **MARKED), text("t", **MARKED))
    for calls, place in ((REACH // 2 - 1, (0, 0)), (REACH // 2 + 1, (4, 0))):
        turn = [so("more", "b"), result("b"), *many(calls, "c")]
        out = cache_marks([shared, user("x"), *TURN, *turn, so("last", "d"), result("d", **MARKED)])
        assert marked(out) == sorted([place, (0, 1), (1, 0), (len(out) - 2, 0)])


def test_after_a_long_turn_the_next_prompt_still_finds_what_the_turn_has_stored() -> None:
    messages = [user("x"), *TURN, so("more", "b"), result("b"), *many(9, "c"), so("done"), user(text("y", **MARKED))]
    assert marked(cache_marks(messages)) == [(3, 0), (len(messages) - 1, 0)]


def test_marks_of_the_client_come_before_what_the_previous_request_marked() -> None:
    prompts = [user(text(words, **MARKED)) for words in ("x", "y", "z")]
    turn = [*TURN, so("more", "b"), result("b"), *many(9, "c"), so("done")]
    out = cache_marks([system(text("s", **MARKED)), *prompts[:2], *turn, *prompts[2:]])
    assert marked(out) == [(0, 0), (1, 0), (2, 0), (len(out) - 1, 0)]


def test_a_prefix_that_has_lost_its_thinking_is_not_looked_for() -> None:
    details: JSON = {"reasoning_details": [{}]}
    messages = [user("x"), *TURN, {**so("more", "b"), **details}, result("b"), *many(9, "c"), so("done")]
    assert marked(cache_marks([*messages, user(text("y", **MARKED))]))[0] == (0, 0)


def test_marks_move_past_a_role_whose_marks_are_refused() -> None:
    messages = [system(text("s", **MARKED)), user("x"), *TURN, so("more", "b"), result("b", **MARKED)]
    assert marked(cache_marks(messages)) == [(0, 0), (1, 0), (4, 0)]
    assert marked(cache_marks(messages, ["assistant"])) == [(0, 0), (1, 0)]
    assert marked(cache_marks(messages, ["user"])) == [(0, 0), (4, 0)]
    assert marked(cache_marks(messages, ["system"])) == [(1, 0), (4, 0)]
    assert marked(cache_marks(messages, ["assistant", "user", "system"])) == []
    prompt = [system(text("s")), user("x"), *TURN, so("more"), user(text("y", **MARKED))]
    assert marked(cache_marks(prompt, ["user"])) == [(0, 0), (4, 0)]


def test_a_role_whose_marks_are_refused_is_named_when_it_makes_a_difference() -> None:
    body = {"model": "claude-sonnet-4-6", "messages": [user("x"), *TURN, so("more", "b"), result("b", **MARKED)]}
    for role, named in (("assistant", True), ("user", True), ("system", False)):
        out, _, left_out = chat_request(body, family="claude", limits=Limits(), refused={f"cache_control {role}"})
        assert left_out == ([f"cache_control {role}"] if named else [])
        assert check_chat({**out, "model": "claude-sonnet-4-6"}, Options(refused_marks=[role])) is None


def test_no_mark_is_sent_to_other_models() -> None:
    history = [
        system(text("s", **MARKED)),
        user(text("x", **MARKED)),
        assistant(None, tool_calls=[call("a", **MARKED)]),
    ]
    for model in (GPT, LLAMA):
        assert "cache_control" not in json.dumps(cortex(*history, result("a", **MARKED), model=model, tools=[tool()]))


# ------------------------------------------------------------------------------------------------- what a session costs

MODEL = "claude-sonnet-4-6"
SYSTEM = {
    "role": "system",
    "content": [text("Be good. " * 900, **MARKED), text("This is your folder. " * 900, **MARKED)],
}
Place = Callable[[Sequence[JSON]], list[JSON]]


def nearest_user(messages: Sequence[JSON]) -> list[JSON]:
    """The rule before this one: an ignored mark moves back to a block of a user, never to an assistant's text."""
    places: dict[tuple[int, int], None] = {}
    nearest = (0, 0)
    for position, message in enumerate(messages):
        if message["role"] in {"system", "user"}:
            nearest = (position, len(message["content"]) - 1)
            places |= {(position, at): None for at, block in enumerate(message["content"]) if "cache_control" in block}
        elif "cache_control" in message:
            places[nearest] = None
    out = copy.deepcopy(without_marks(messages))
    for position, at in by_importance([place for place in places if not place[0]], [p for p in places if p[0]])[:4]:
        out[position]["content"][at] |= MARKED
    return out


def requests_of(prompts: int, turns: int, calls: int, *, says: bool) -> Iterator[list[JSON]]:
    """The histories of a session's requests, split for Claude, with Claude Code's mark on the last block."""
    history: list[JSON] = []
    for prompt in range(prompts):
        history.append(user(f"Prompt {prompt}. " * 40))
        yield [*history[:-1], user(text(history[-1]["content"][0]["text"], **MARKED))]
        for turn in range(turns):
            name = f"p{prompt}t{turn}c"
            for number in range(calls):
                words = f"Step {turn}: I look at the next files." if says and not number else None
                history += [so(words, f"{name}{number}") if words else assistant(None, f"{name}{number}")]
                history.append(result(f"{name}{number}", f"line {number} of {turn}\n" * 150))
            yield [*history[:-1], {**history[-1], **MARKED}]
        history.append(so(f"Done with prompt {prompt}."))


def cost(bodies: list[list[JSON]], place: Place, *, covers: bool) -> float:
    cache, options = PromptCache(), Options(mark_covers_tool_results=covers)
    return price(
        cache.charge(MODEL, chat_blocks({"messages": place([SYSTEM, *body])}, options), 0.0) for body in bodies
    )


def cost_on_messages(bodies: list[list[JSON]]) -> float:
    cache = PromptCache()

    def block(message: JSON) -> list[JSON]:
        calls = [{"type": "tool_use", **each} for each in message.get("tool_calls") or ()]
        if message["role"] != "tool":
            return [*(message["content"] or ()), *calls]
        mark = {key: message[key] for key in MARKED if key in message}
        return [{"type": "tool_result", "content": message["content"], **mark}]

    prompts = [
        {"system": SYSTEM["content"], "messages": [{"role": "user", "content": block(each)} for each in body]}
        for body in bodies
    ]
    return price(cache.charge(MODEL, messages_blocks(prompt), 0.0) for prompt in prompts)


def price(charged: Iterator[Usage]) -> float:
    return sum(usage.input + 1.25 * usage.cache_write + 0.1 * usage.cache_read for usage in charged)


SESSIONS = {
    "one long turn": (1, 24, 2),
    "one call": (1, 1, 1),
    "two calls": (1, 2, 1),
    "several prompts": (5, 5, 2),
    "short turns": (8, 1, 1),
    "many calls at once": (2, 5, 14),
    "one turn of many calls": (3, 1, 14),
}


@pytest.mark.parametrize("says", [True, False], ids=["text", "silent"])
@pytest.mark.parametrize(("prompts", "turns", "calls"), SESSIONS.values(), ids=SESSIONS)
def test_where_a_mark_covers_no_result_no_session_costs_more_than_with_marks_on_users(
    prompts: int, turns: int, calls: int, says: bool
) -> None:
    bodies = list(requests_of(prompts, turns, calls, says=says))
    for end in range(1, len(bodies) + 1):  # wherever it ends
        assert cost(bodies[:end], cache_marks, covers=False) <= cost(bodies[:end], nearest_user, covers=False)


@pytest.mark.parametrize("name", ["one long turn", "several prompts"])
def test_where_a_mark_covers_results_a_session_costs_little_more_than_on_messages(name: str) -> None:
    bodies = list(requests_of(*SESSIONS[name], says=True))
    assert cost(bodies, cache_marks, covers=True) <= 1.25 * cost_on_messages(bodies)
    assert cost(bodies, nearest_user, covers=True) > 1.25 * cost_on_messages(bodies)


@pytest.mark.parametrize(("prompts", "turns", "calls"), SESSIONS.values(), ids=SESSIONS)
def test_every_request_has_at_most_four_marks_and_keeps_the_words_of_the_one_before(
    prompts: int, turns: int, calls: int
) -> None:
    before: list[JSON] = []
    for body in requests_of(prompts, turns, calls, says=True):
        out = cache_marks([SYSTEM, *body])
        assert 1 <= len(marked(out)) <= MAX_MARKS
        assert json.dumps(without_marks(out)[: len(before)]) == json.dumps(before)
        before = without_marks(out)
