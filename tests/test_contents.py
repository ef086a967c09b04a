"""Contents of messages as Cortex takes them (bundle/cortex/contents.py): plain blocks, few images."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable

import pytest

from bundle.cortex.contents import (
    EMPTY,
    IMAGE_TOO_OLD,
    IMAGES_ABOVE,
    IMAGES_BELOW,
    MAX_IMAGE_BYTES,
    NO_OUTPUT,
    excess_images,
    limit_images,
    plain_contents,
    text_only_results,
)
from bundle.cortex.marks import cache_marks, without_marks
from bundle.cortex.models import JSON, no_note
from bundle.cortex.thinking import of_this_turn, without_details
from bundle.cortex.turns import ends_with_user, one_call_per_turn, results_follow_calls, tools_in_words
from tests.conversations import (
    MARK,
    assistant,
    image,
    result,
    sent,
    shape,
    system,
    text,
    thought,
    tool,
    urls,
    user,
)

CONTENTS: dict[str, tuple[JSON, list[JSON]]] = {
    "a user's string": ({"role": "user", "content": "x"}, [user("x")]),
    "a user's block": (user("x"), [user("x")]),
    "a system's string": ({"role": "system", "content": "x"}, [system(text("x"))]),
    "a developer is the system": ({"role": "developer", "content": "x"}, [system(text("x"))]),
    "an empty text block": (user("", "x", "  \n"), [user("x")]),
    "an empty text": ({"role": "user", "content": ""}, []),
    "an empty list": ({"role": "user", "content": []}, []),
    "no content": ({"role": "user", "content": None}, []),
    "an assistant's blocks": (assistant([text("x", **MARK), text("y")]), [assistant("xy", **MARK)]),
    "an empty answer": (assistant(""), []),
    "no text beside calls": (assistant("", "a"), [assistant(None, "a")]),
    "white space beside calls": (assistant(" \n", "a"), [assistant(None, "a")]),
    "thinking": (
        assistant("x", thinking_blocks=[{"type": "thinking", "thinking": "t"}], reasoning_content="t"),
        [assistant("x")],
    ),
    "signed thinking": (
        assistant("x", "a", thinking_blocks=[{"type": "thinking", "thinking": "t", "signature": "s"}]),
        [assistant("x", "a", reasoning_details=[thought("t", "s")])],
    ),
    "nothing but thinking": (assistant("", reasoning_content="t", thinking_blocks=[{"type": "thinking"}]), []),
    "a refusal": (assistant(None, refusal="No."), [assistant("No.")]),
    "a mark on a message": (user("x", "y", **MARK), [user("x", text("y", **MARK))]),
    "fields of other makers": (user({**text("x"), "prompt_cache_breakpoint": True}, name="me"), [user("x")]),
    "an image": (user(image(kind="image/webp")), [user(image(kind="image/webp"))]),
    "an image by its other name": (user(image(kind="image/jpg")), [user(image(kind="image/jpeg"))]),
    "an image with details": (
        user({"type": "image_url", "image_url": {"url": image()["image_url"]["url"], "detail": "low"}}),
        [user(image())],
    ),
}


@pytest.mark.parametrize(("message", "expected"), CONTENTS.values(), ids=CONTENTS)
def test_contents_are_plain(message: JSON, expected: list[JSON]) -> None:
    first = user("first")
    assert plain_contents([first, message]) == [first, *expected]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (image("JVBERi0=", "application/pdf"), "A file (application/pdf) was"),
        (image("PHN2Zz4=", "image/svg+xml"), "A file (image/svg+xml) was"),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a"}}, "A file (https://example.com/a)"),
        ({"type": "image_url", "image_url": "https://example.com/a.pdf"}, "A file (https://example.com/a.pdf)"),
        ({"type": "file", "file": {"file_id": "x"}}, "A file was"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "A input_audio was"),
    ],
)
def test_what_cortex_does_not_take_is_told_in_words(part: JSON, words: str) -> None:
    for message in (user(part), result("a", [part])):
        notes: list[str] = []
        (block,) = plain_contents([user("x"), message], notes.append)[1]["content"]
        assert words in block["text"]
        assert len(notes) == 1
        assert "replaced by words" in notes[0]
    assert plain_contents([user({**part, **MARK})])[0]["content"][0]["cache_control"] == MARK["cache_control"]


def test_a_request_that_says_nothing_still_has_a_user() -> None:
    assert sent({"role": "user", "content": ""}) == [user(EMPTY)]
    assert sent(system(text("x")), user(" ")) == [system(text("x")), user(EMPTY)]


RESULTS: dict[str, tuple[list[JSON], list[JSON]]] = {
    "a text": ([result("a", [text("out")])], [result("a", "out")]),
    "texts": ([result("a", [text("one"), text("two")])], [result("a", "one\ntwo")]),
    "nothing": ([result("a", [])], [result("a", NO_OUTPUT)]),
    "an image": ([result("a", [image()])], [result("a", IMAGES_BELOW), user(IMAGES_ABOVE, image())]),
    "text and image": (
        [result("a", [text("out"), image()]), user("x")],
        [result("a", "out"), user(IMAGES_ABOVE, image()), user("x")],
    ),
    "images of a run of results": (
        [result("a", [image("QQ==")]), result("b", [text("out")]), result("c", [image("Qg==")])],
        [
            *(result("a", IMAGES_BELOW), result("b", "out"), result("c", IMAGES_BELOW)),
            user(IMAGES_ABOVE, image("QQ=="), image("Qg==")),
        ],
    ),
}


@pytest.mark.parametrize(("messages", "expected"), RESULTS.values(), ids=RESULTS)
def test_results_are_text_and_images_follow_them(messages: list[JSON], expected: list[JSON]) -> None:
    assert text_only_results(messages) == expected


def test_between_the_calls_of_a_split_turn_images_follow_their_own_result() -> None:
    out = sent(user("x"), assistant(None, "a", "b"), result("a", [image()]), result("b", [image()]), tools=[tool()])
    assert shape(out) == ["user", "assistant a", "tool a", "user", "assistant b", "tool b", "user"]


def test_twenty_images_pass_untouched() -> None:
    messages = [user("x", *[image()] * 19), user(image(**MARK))]
    assert limit_images(messages) == messages


@pytest.mark.parametrize(("count", "left"), [(21, 11), (30, 20), (31, 11)])
def test_of_too_many_images_the_oldest_go_ten_at_a_time(count: int, left: int) -> None:
    each = [image(base64.b64encode(b"%d" % n).decode()) for n in range(count)]
    notes: list[str] = []
    messages = [user("x", *each[:7]), assistant([text("y")]), user(*each[7:])]
    out = limit_images(messages, notes.append)
    assert sent(*messages) == out
    assert urls(out) == urls([user(*each[count - left :])])
    assert json.dumps(out).count(IMAGE_TOO_OLD) == count - left
    assert notes == [f"{count - left} oldest images replaced by words"]


def test_images_over_the_size_of_a_body_go_oldest_first() -> None:
    large = image("A" * (5 * 1024 * 1024))
    out = limit_images([user(large), user(large), user("x", large), user(large)])
    assert len(urls(out)) == 2
    assert out[0] == user(IMAGE_TOO_OLD)


@pytest.mark.parametrize("size", [1_000_000, 1_900_000, 3_000_000])
def test_images_over_the_size_of_a_body_go_in_steps(size: int) -> None:
    excesses = [excess_images([size] * count, no_note) for count in range(1, 300)]
    kept = [(count - excess) * size for count, excess in enumerate(excesses, 1)]
    assert max(kept) <= MAX_IMAGE_BYTES
    assert min(kept[len(kept) // 2 :]) > MAX_IMAGE_BYTES // 2 - 2 * size  # not more than needed for a step
    assert excesses == sorted(excesses)
    changes = len(set(excesses)) - 1
    assert changes * 2 <= excesses[-1]  # several at a time


@pytest.mark.parametrize(
    ("mebibytes", "left"), [([17], 0), ([1, 15.9], 1), ([15.9, 1], 1), ([17, 1], 1), ([1, 17], 0), ([16], 1), ([], 0)]
)
def test_the_newest_image_goes_only_if_it_is_too_large_itself(mebibytes: list[float], left: int) -> None:
    sizes = [int(each * 2**20) for each in mebibytes]
    assert len(sizes) - excess_images(sizes, no_note) == left


def test_an_image_that_goes_leaves_its_mark() -> None:
    out = limit_images([user(image(**MARK), *[image()] * 20)])
    assert out[0]["content"][0] == text(IMAGE_TOO_OLD, **MARK)


@pytest.mark.parametrize(
    "function",
    [
        *(results_follow_calls, one_call_per_turn, tools_in_words, ends_with_user),
        *(plain_contents, text_only_results, limit_images),
        *(cache_marks, without_marks, of_this_turn, without_details),
    ],
)
def test_no_function_changes_the_messages_it_is_given(function: Callable[[list[JSON]], list[JSON]]) -> None:
    results = [result("a", [text("out", **MARK), image()], **MARK), result("b", []), result("c", [text("late")])]
    messages = [system(text("s", **MARK)), user(*[image(**MARK)] * 21), assistant("so", "a", "b", **MARK), *results]
    before = copy.deepcopy(messages)
    function(messages)
    assert messages == before
