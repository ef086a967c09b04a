"""Blocks that Cortex does not have reach the model as text, the same on both routes (bundle/cortex/documents.py)."""

from __future__ import annotations

import base64
import copy
import json
import re
import typing
from typing import Any

import pytest
from anthropic.types import beta as sdk
from anthropic.types.beta import beta_tool_result_block_param

from bundle.cortex.documents import ENCRYPTED, PDF_LEFT_OUT, TAKEN, TOOL_FAILED, for_translation, plain_parts
from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits, no_note
from bundle.cortex.refusals import Refusals
from bundle.cortex.turns import LOST_RESULT
from tests.conversations import pdf
from tests.cortex_rules import JSON, Options
from tests.messages import IMAGE, MARK, adapted, body, call, result, said, says, text, user

PDF = pdf("one")
PDFS = Options(documents=True)


def document(kind: str = "text", **source: Any) -> JSON:
    return {"type": "document", "source": {"type": kind, **source}}


def base64_of(words: str) -> str:
    return base64.b64encode(words.encode()).decode()


def done(kind: str, content: Any) -> JSON:
    return {"type": f"{kind}_tool_result", "tool_use_id": "srvtoolu_1", "content": content}


def failed(kind: str, **more: Any) -> JSON:
    return done(kind, {"type": f"{kind}_tool_result_error", "error_code": "unavailable", **more})


def output(kind: str, **more: Any) -> JSON:
    return done(kind, {"type": f"{kind}_result", "return_code": 3, "stdout": "out\n", "stderr": "bad", **more})


LETTER = document(media_type="text/plain", data="Dear Ann,\nhello.")
NOTE: JSON = {"type": "tool_reference", "name": "Look"}
# Each kind of block, and the text that the model gets for it.
BLOCKS: list[tuple[JSON, str]] = [
    (LETTER, "[Document]\nDear Ann,\nhello."),
    ({**LETTER, "title": "T", "context": "C"}, "[Document: T]\ncontext: C\nDear Ann,\nhello."),
    ({**LETTER, "title": None, "citations": {"enabled": True}}, "[Document]\nDear Ann,\nhello."),
    (document("base64", media_type="text/plain", data=base64_of("naïve ✓")), "[Document]\nnaïve ✓"),
    (document("base64", media_type="application/json", data=base64_of("[1]")), "[Document]\n[1]"),
    (document("base64", media_type="text/plain", data="=no"), "A file (text/plain) was"),
    (document("base64", media_type="application/msword", data="QQ=="), "A file (application/msword) was"),
    (document("content", content="all of it"), "[Document]\nall of it"),
    (document("content", content=[text("one"), text("two")]), "[Document]\none\ntwo"),
    (document("url", url="https://example.com/a.pdf"), "The content at https://example.com/a.pdf was"),
    (document("file", file_id="file_7"), "[The file file_7 was attached here and left out."),
    (document("beam"), "A file (beam) was"),
    ({"type": "document"}, "A file (None) was"),
    (
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a"}},
        "The content at https://example.com",
    ),
    ({"type": "image", "source": {"type": "file", "file_id": "file_8"}}, "The file file_8 was"),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "image/bmp", "data": "Qk0="}},
        "An image (image/bmp)",
    ),
    (
        {"type": "search_result", "title": "T", "source": "https://s", "content": [text("one"), text("two")]},
        "[Search result: T]\nsource: https://s\none\ntwo",
    ),
    (
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "ü"}},
        '[Called web_search with {"query": "ü"}]',
    ),
    (
        {"type": "mcp_tool_use", "id": "m", "name": "look", "server_name": "S", "input": {}},
        "[Called look of the MCP server S with {}]",
    ),
    (
        {"type": "mcp_tool_result", "tool_use_id": "m", "content": [text("seen")], "is_error": False},
        "[Result of a tool]\nseen",
    ),
    (
        {"type": "mcp_tool_result", "tool_use_id": "m", "content": "no", "is_error": True},
        f"{TOOL_FAILED}\nno",
    ),
    (
        done("web_search", [{"type": "web_search_result", "title": "T", "url": "u", "encrypted_content": "x"}]),
        f"[Result of the tool web search]\ntitle: T\nurl: u\n{ENCRYPTED}",
    ),
    (failed("web_search"), "[The tool web search failed: unavailable]"),
    (
        done("web_fetch", {"type": "web_fetch_result", "url": "u", "content": {**LETTER, "title": "T"}}),
        "[Result of the tool web fetch]\nurl: u\n[Document: T]\nDear Ann,\nhello.",
    ),
    (failed("web_fetch"), "[The tool web fetch failed: unavailable]"),
    (
        output("code_execution", content=[{"type": "code_execution_output", "file_id": "file_9"}]),
        "[Result of the tool code execution]\nreturn_code: 3\nstdout: out\n\nstderr: bad\n[The file file_9 is",
    ),
    (
        done("code_execution", {"type": "encrypted_code_execution_result", "encrypted_stdout": "x", "stderr": "bad"}),
        f"stderr: bad\n{ENCRYPTED}",
    ),
    (failed("code_execution"), "[The tool code execution failed: unavailable]"),
    (
        output("bash_code_execution", content=[{"type": "bash_code_execution_output", "file_id": "file_9"}]),
        "[Result of the tool bash code execution]\nreturn_code: 3\nstdout: out\n\nstderr: bad\n[The file file_9",
    ),
    (failed("bash_code_execution"), "[The tool bash code execution failed: unavailable]"),
    (
        done(
            "text_editor_code_execution",
            {"type": "text_editor_code_execution_view_result", "file_type": "text", "content": "abc", "start_line": 5},
        ),
        "[Result of the tool text editor code execution]\nstart_line: 5\nabc",
    ),
    (
        done(
            "text_editor_code_execution",
            {"type": "text_editor_code_execution_view_result", "file_type": "pdf", "content": "JVBE"},
        ),
        "A file (pdf) was",
    ),
    (
        done(
            "text_editor_code_execution",
            {"type": "text_editor_code_execution_create_result", "is_file_update": False},
        ),
        "is_file_update: false",
    ),
    (
        done(
            "text_editor_code_execution",
            {"type": "text_editor_code_execution_str_replace_result", "old_start": 2, "lines": ["-a", "+b"]},
        ),
        'old_start: 2\nlines: ["-a", "+b"]',
    ),
    (
        failed("text_editor_code_execution", error_message="no such file"),
        "[The tool text editor code execution failed: unavailable]\nerror_message: no such file",
    ),
    (
        done(
            "tool_search",
            {
                "type": "tool_search_tool_search_result",
                "tool_references": [{"type": "tool_reference", "tool_name": "Read"}],
            },
        ),
        "[Result of the tool tool search]\n[tool Read]",
    ),
    (failed("tool_search"), "[The tool tool search failed: unavailable]"),
    (done("advisor", {"type": "advisor_result", "text": "wait"}), "[Result of the tool advisor]\nwait"),
    (done("advisor", {"type": "advisor_redacted_result", "encrypted_content": "x"}), ENCRYPTED),
    (failed("advisor"), "[The tool advisor failed: unavailable]"),
    ({"type": "container_upload", "file_id": "file_3"}, "[The file file_3 is left out."),
    ({"type": "compaction", "content": "so far"}, "[Summary of the conversation so far]\nso far"),
    ({"type": "compaction", "content": None, "encrypted_content": "x"}, ENCRYPTED),
    ({"type": "tool_addition", "tool": NOTE}, f"[A tool was added here: {json.dumps(NOTE)}]"),
    ({"type": "tool_removal", "tool": NOTE}, f"[A tool was removed here: {json.dumps(NOTE)}]"),
    (
        {"type": "mcp_tool_listing", "mcp_server_name": "S", "tools": [{"name": "look"}, {"name": "go"}]},
        "[Tools of the MCP server S: look, go]",
    ),
    ({"type": "tool_reference", "tool_name": "Read"}, "[tool Read]"),
    (
        {"type": "browser_state", "tabs": [{"tab_id": "1", "title": "T", "url": "u", "active": True}]},
        '[State of the browser]\ntabs: [{"tab_id": "1", "title": "T", "url": "u", "active": true}]',
    ),
    ({"type": "richer_text", "text": "still words"}, "[richer_text]\nstill words"),
    ({"type": "parcel", "content": [text("inside")]}, "[parcel]\ninside"),
    ({"type": "hologram", "source": {"type": "beam"}}, "A hologram was"),
    ({"novelty": {}}, "A block without a type was"),
]
NOTHING: list[JSON] = [  # Anthropic does not show these to the model either
    {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
    {"type": "compaction", "content": None},
]


def on_chat(asked: JSON) -> JSON:
    """What LiteLLM gets to translate, after the promises of every request were kept."""
    before = copy.deepcopy(asked)
    out = {**asked, **for_translation(asked, no_note)}
    assert asked == before
    assert {**out, **for_translation(out, no_note)} == out
    return out


def both(asked: JSON, **more: Any) -> list[JSON]:
    return [on_chat(asked), adapted(asked, **more)]


def in_place(place: str, *blocks: JSON) -> JSON:
    if place == "assistant":
        return body(user(text("go")), says(*blocks), user(text("on")))
    if place == "system":
        return body(user(text("go")), system=list(blocks))
    if place == "tool_result":
        return body(user(text("go")), says(call("a")), user(result("a", list(blocks))))
    if place == "a system message":
        return body(user(text("go")), {"role": "system", "content": list(blocks)})
    return body(user(*blocks))


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


# -------------------------------------------------------------------------------- PDFs


@pytest.mark.parametrize("place", ["user", "tool_result"])
def test_a_pdf_goes_to_the_messages_api_as_it_is(place: str) -> None:
    titled = {**PDF, "title": "T", "context": "C"}
    asked = in_place(place, {**titled, "citations": {"enabled": True}})
    out = adapted(asked, options=PDFS)
    assert json.dumps(titled) in said(out)
    assert PDF_LEFT_OUT in said(on_chat(asked))


@pytest.mark.parametrize("place", ["assistant", "system"])
def test_where_no_file_may_be_a_pdf_is_told_in_words(place: str) -> None:
    for out in both(in_place(place, PDF)):
        assert PDF_LEFT_OUT in json.dumps(out)


@pytest.mark.parametrize(
    "words",
    [
        "messages.0.content.0: Input tag 'document' found using 'type' does not match any of the expected tags",
        "messages.0.content.0.document: Extra inputs are not permitted",
        "document blocks are not supported; use text, image, thinking",
        "This model doesn't support PDF input",
    ],
)
def test_a_model_that_refuses_pdfs_gets_words_from_then_on(words: str) -> None:
    asked = body(user(PDF, text("read it")), thinking={"type": "adaptive"}, max_tokens=3000)
    refusals = Refusals()
    sent = messages_request(asked, limits=Limits(), refusals=refusals)[0]
    assert refusals.learn_messages(words, sent, []) == ["PDFs for claude-sonnet-4-5"]
    out = adapted(asked, refusals=refusals)
    assert PDF_LEFT_OUT in said(out)
    assert out["thinking"] == sent["thinking"]
    assert "PDFs" not in str(refusals.learn_messages(words, out, []))  # another try would not help
    other = messages_request({**asked, "model": "claude-opus-5"}, limits=Limits(), refusals=refusals)[0]
    assert '"document"' in said(other)


@pytest.mark.parametrize(
    "words",
    [
        "messages.0.content.0.document.source.base64.data: A maximum of 100 PDF pages may be provided.",
        "messages.0.content.0.document.source.base64: The PDF specified is password protected.",
        "messages.0.content.0.document.source.base64: The PDF specified was not valid.",
        "internal error",
    ],
)
def test_an_error_about_one_pdf_is_the_client_s_to_mend(words: str) -> None:
    sent = messages_request(body(user(PDF)), limits=Limits())[0]
    refusals = Refusals()
    assert refusals.learn_messages(words, sent, []) == []
    assert not refusals.documents


def test_a_refused_field_of_a_document_is_left_out_and_the_document_stays() -> None:
    refusals = Refusals()
    asked = body(user({**PDF, "title": "T"}))
    sent = messages_request(asked, limits=Limits(), refusals=refusals)[0]
    assert refusals.learn_messages("messages.0.content.0.document.title: Extra inputs are not permitted", sent, [])
    assert adapted(asked, refusals=refusals, options=PDFS)["messages"] == [user(PDF)]


def test_the_oldest_pdfs_go_when_a_request_would_be_too_large() -> None:
    large = {**PDF, "source": {**PDF["source"], "data": "A" * (7 * 2**20)}, "cache_control": MARK}
    out = adapted(body(user(large), says(text("ok")), user(large, large)), options=PDFS)
    (first,) = out["messages"][0]["content"]
    assert "An older PDF was left out" in first["text"]
    assert first["cache_control"] == MARK
    assert said(out).count('"document"') == 1  # they go in steps (excess_images)
