"""Each kind of block that Cortex does not have, and the text for the model (bundle/cortex/documents.py)."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from bundle.cortex.documents import ENCRYPTED, TOOL_FAILED, for_translation
from bundle.cortex.models import no_note
from tests.cortex_rules import JSON
from tests.messages import body, call, result, says, text, user


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
