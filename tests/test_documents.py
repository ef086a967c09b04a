"""Blocks that Cortex does not have reach the model as text, the same on both routes (bundle/cortex/documents.py)."""

from __future__ import annotations

import json
import re
import typing
from typing import Any

import pytest
from anthropic.types import beta as sdk
from anthropic.types.beta import beta_tool_result_block_param

from bundle.cortex.documents import TAKEN, TOOL_FAILED, for_translation, plain_parts
from bundle.cortex.models import no_note
from bundle.cortex.turns import LOST_RESULT
from tests.cortex_rules import JSON
from tests.foreign import BLOCKS, LETTER, NOTHING, document, in_place, on_chat
from tests.messages import IMAGE, MARK, PDF, adapted, body, call, result, said, says, text, user


def both(asked: JSON, **more: Any) -> list[JSON]:
    return [on_chat(asked), adapted(asked, **more)]


PLACES = ["user", "assistant", "tool_result", "system", "a system message"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("block", "words"), BLOCKS, ids=[str(block.get("type")) for block, _ in BLOCKS])
def test_the_model_gets_each_kind_of_block_as_text_alike_on_both_routes(block: JSON, words: str, place: str) -> None:
    shown = [json.dumps(out, ensure_ascii=False) for out in both(in_place(place, {**block, "cache_control": MARK}))]
    wanted = json.dumps(words, ensure_ascii=False)[1:-1]
    for out in shown:
        assert wanted in out
        assert '"cache_control"' in out
    texts = [re.findall(r'"text": "((?:[^"\\]|\\.)*)"', out) for out in shown]
    if place != "a system message":  # (it gets another frame on each route)
        assert texts[0] == texts[1]


@pytest.mark.parametrize("block", NOTHING)
def test_what_anthropic_does_not_show_to_the_model_is_not_shown(block: JSON) -> None:
    for out in both(in_place("assistant", text("one"), block, text("two"))):
        assert out["messages"][1]["content"] == [text("one"), text("two")]


def kinds(block: object) -> set[str]:
    """The values of `type` in a union of the SDK's blocks."""
    found: set[str] = set()
    for option in typing.get_args(block):
        if isinstance(option, type) and "type" in (hints := typing.get_type_hints(option)):
            found |= {kind for kind in typing.get_args(hints["type"]) if isinstance(kind, str)}
    return found


def test_every_block_of_anthropic_s_sdk_is_in_this_table() -> None:
    known = {str(block.get("type")) for block, _ in BLOCKS} | {str(block["type"]) for block in NOTHING}
    known |= {kind for place in TAKEN.values() for kind in place}
    asked = kinds(sdk.BetaContentBlockParam) | kinds(beta_tool_result_block_param.Content)
    assert len(asked) > 25
    assert asked - known == set()


def test_images_of_a_document_stay_images_where_there_may_be_some() -> None:
    album = document("content", content=[text("left"), IMAGE, text("right")])
    for place in ("user", "tool_result"):
        made = plain_parts([album, text("after")], place, no_note)
        assert made == [text("[Document]\nleft"), IMAGE, text("right"), text("after")]
    (block,) = plain_parts([album], "assistant", no_note)
    assert re.fullmatch(r"\[Document\]\nleft\n\[An image .*\]\nright", block["text"])
    whole = {**IMAGE, "type": "document", "cache_control": MARK}
    assert plain_parts([whole], "user", no_note) == [text("[Document]"), {**IMAGE, "cache_control": MARK}]


def test_in_an_answer_words_stand_on_lines_of_their_own() -> None:
    searched = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    made = plain_parts([text("I look."), searched, text("Found.")], "assistant", no_note)
    assert "".join(block["text"] for block in made) == "I look.\n[Called web_search with {}]\nFound."
    assert plain_parts([searched], "assistant", no_note) == [text("[Called web_search with {}]")]


def test_a_block_in_the_message_of_the_wrong_role_is_told_too() -> None:
    for out in both(in_place("user", call("a", input={"x": "y"}))):
        assert '[Called Bash with {\\"x\\": \\"y\\"}]' in said(out)
    for out in both(in_place("assistant", text("well"), result("a", "seen", is_error=True))):
        assert f"{TOOL_FAILED}\\nseen" in said(out)
    for out in both(in_place("assistant", IMAGE)):
        assert "cannot be shown in this place" in said(out)


def test_a_longer_message_of_the_session_does_not_change_an_older_one() -> None:
    turns = [user(LETTER, text("go")), says(*[block for block, _ in BLOCKS[16:30]], call("a"))]
    turns += [user(result("a", [block for block, _ in BLOCKS]))]
    shorter = both(body(*turns))
    longer = both(body(*turns, says(text("ok")), user(LETTER)))
    for short, long in zip(shorter, longer, strict=True):
        assert long["messages"][: len(short["messages"])] == short["messages"]


def test_what_needs_no_change_is_passed_as_it_is() -> None:
    plain = body(
        {"role": "user", "content": "go"},
        says({"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}),
        {"role": "system", "content": "mind"},
        user(IMAGE, text("on", cache_control=MARK)),
        system="be kind",
    )
    assert {**plain, **for_translation(plain, no_note)} == plain


def test_what_happens_is_noted() -> None:
    notes: list[str] = []
    cited = text("so", citations=[{"type": "char_location", "cited_text": "x"}])
    for_translation(body(user(LETTER, PDF, {"novelty": 1}), says(cited)), notes.append)
    assert notes == [
        "block document written as text",
        "PDF replaced by words",
        "block without a type written as text",
        "text field citations dropped",
    ]


# -------------------------------------------------------------------------------- results of failed tools


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no such file", [text(TOOL_FAILED), text("no such file")]),
        ([text("no such file")], [text(TOOL_FAILED), text("no such file")]),
        ([text("see"), IMAGE], [text(TOOL_FAILED), text("see"), IMAGE]),
        ([LETTER], [text(TOOL_FAILED), text("[Document]\nDear Ann,\nhello.")]),
        ("", [text(TOOL_FAILED)]),
        ([], [text(TOOL_FAILED)]),
        (None, [text(TOOL_FAILED)]),
    ],
)
def test_on_chat_the_text_of_a_result_says_that_the_tool_failed(content: Any, told: list[JSON]) -> None:
    asked = body(user(text("go")), says(call("a")), user(result("a", content, is_error=True, cache_control=MARK)))
    (block,) = on_chat(asked)["messages"][2]["content"]
    assert block == result("a", told, cache_control=MARK)
    asked["messages"][2]["content"][0]["is_error"] = False
    assert TOOL_FAILED not in said(on_chat(asked))


def test_a_mark_inside_a_result_is_not_lost_in_the_translation() -> None:
    asked = body(user(text("go")), says(call("a")), user(result("a", [text("x"), {**LETTER, "cache_control": MARK}])))
    (block,) = on_chat(asked)["messages"][2]["content"]
    assert block["cache_control"] == MARK
    assert "cache_control" not in json.dumps(block["content"])


def test_on_messages_a_failed_result_stays_the_field_and_with_an_image_it_is_told_in_words() -> None:
    asked = body(user(text("go")), says(call("a")), user(result("a", [text("no")], is_error=True)))
    assert adapted(asked) == asked
    asked["messages"][2]["content"][0]["content"].append(IMAGE)
    (block,) = adapted(asked)["messages"][2]["content"]
    assert block == result("a", [text(TOOL_FAILED), text("no"), IMAGE])


def test_a_failed_result_without_its_call_still_says_so() -> None:
    out = adapted(body(user(text("go"), result("a", "no", is_error=True))))
    assert out["messages"][0]["content"] == [text("go"), text(LOST_RESULT), text(TOOL_FAILED), text("no")]


@pytest.mark.parametrize("last", ["go", [text("a"), text("b")], [result("a", "out"), LETTER], [IMAGE]])
def test_a_mark_on_the_request_moves_to_its_last_block_also_on_chat(last: Any) -> None:
    asked = body(user(text("go")), says(call("a")), {"role": "user", "content": last})
    plain, marked = on_chat(asked), on_chat({**asked, "cache_control": MARK})
    assert plain["messages"][:-1] == marked["messages"][:-1]
    assert "cache_control" not in json.dumps(plain["messages"])
    *others, block = marked["messages"][-1]["content"]
    assert block["cache_control"] == MARK
    assert "cache_control" not in json.dumps(others)
