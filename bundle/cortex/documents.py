"""Blocks of Anthropic's API that Cortex does not have (documents, search results, results of Anthropic's own tools), as
texts and images for the model.

The problem: Cortex's Messages API refuses a block that it does not know. On the way to Chat Completions, LiteLLM drops
such a block without a word. The mechanism: `plain_parts` replaces it by what the model can read, under a short line
that says what it was. The Messages route calls it for each content; for Chat Completions, `for_translation` rewrites
Anthropic's body before LiteLLM translates it. So a document reads the same on both routes.

The forms of the blocks are those of Anthropic's SDK 2.13 (docs/cortex.md#messages-blocks).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bundle.cortex.blocks import blocks_of, is_blank, mark_of, mark_within, text_block, unmarked
from bundle.cortex.models import JSON, MARK, Note

# The kinds of blocks that each place may hold: the message of a role, or the inside of a tool's result.
TAKEN: Mapping[str, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "tool_result": ("text", "image"),
}
PDF_PLACES = ("user", "tool_result")
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
PDF_TYPE = "application/pdf"
# Files of these types are text, although their name does not begin with `text/`.
_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/yaml", "application/javascript"})
# Texts for the model. They are constant: each of them becomes a part of the prefix that Cortex caches.
TOOL_FAILED = "[The tool failed]"
PDF_LEFT_OUT = (
    "[A PDF was attached here and left out: Snowflake Cortex does not read PDFs here. A tool may turn its pages into "
    "images or text: Claude Code's Read does, when it is called with `pages` and poppler-utils is installed. Otherwise "
    "tell the user that the PDF was not read and to convert it to text.]"
)
ENCRYPTED = "[A part of this is encrypted. Only Anthropic's servers can read it.]"
_ON_SERVERS = "It is on Anthropic's servers, which are not used here."

Piece = str | JSON  # a text, or an image block


def left_out(what: str) -> str:
    return f"[{what} was attached here and left out: Snowflake Cortex takes text and PNG, JPEG, GIF or WebP images.]"


def for_translation(body: Mapping[str, Any], note: Note) -> JSON:
    """The fields `messages` and `system` of an Anthropic body as LiteLLM can translate them to OpenAI's API without a
    loss. docs/cortex.md#chat-failed-results: a failed result (`is_error`) says so in its text. A client that marks the
    request for the cache means its last block."""
    messages = body["messages"]
    if body.get("cache_control"):
        messages = [*messages[:-1], _marked_at_end(messages[-1])]
    out: JSON = {"messages": [_translatable(message, note) for message in messages]}
    if isinstance(body.get("system"), list):
        out["system"] = plain_parts(body["system"], "system", note)
    return out


def _marked_at_end(message: JSON) -> JSON:
    blocks = blocks_of(message.get("content"))
    if not blocks or not isinstance(blocks[-1], dict) or "thinking" in str(blocks[-1].get("type")):
        return message
    return {**message, "content": [*blocks[:-1], {**blocks[-1], "cache_control": MARK}]}


def _translatable(message: JSON, note: Note) -> JSON:
    if not isinstance(message.get("content"), list):
        return message
    parts = plain_parts(message["content"], str(message.get("role")), note)
    if any(part.get("citations") for part in parts):
        note("text field citations dropped")
    return {**message, "content": [_result(part, note) if part["type"] == "tool_result" else part for part in parts]}


def _result(block: JSON, note: Note) -> JSON:
    content = plain_parts(blocks_of(block.get("content")), "tool_result", note)
    if block.get("is_error"):
        content = [text_block(TOOL_FAILED), *content]
    mark = mark_within(content) or mark_of(block)  # LiteLLM drops a mark inside a result
    kept = {key: value for key, value in block.items() if key != "is_error"}
    return {**kept, "content": [unmarked(part) for part in content], **mark}


def plain_parts(parts: Sequence[Any], place: str, note: Note, *, pdfs: bool = False) -> list[JSON]:
    """The blocks, with each one that this place does not take (see TAKEN) replaced by texts and images, in their order.
    The mark of such a block goes to the last of them. `pdfs`: a PDF stays a `document` block.

    The text beside it in an assistant's message may be joined without a separator (blocks.joined_text), so there it
    is between line breaks.
    """
    out: list[JSON] = []
    for number, part in enumerate(parts):
        block = part if isinstance(part, dict) else text_block(part)
        if _is_taken(block, place, pdfs=pdfs):
            out.append(block)
            continue
        kind = str(block.get("type") or "without a type")
        note("PDF replaced by words" if is_pdf(block) else f"block {kind} written as text")
        made = [*_merged(_pieces(block, place))]
        if made and place == "assistant":
            before, after = "\n" if number else "", "\n" if number < len(parts) - 1 else ""
            made = [text_block(f"{before}{made[0]['text']}{after}")]
        if made:
            made[-1] = {**made[-1], **mark_of(block)}
        out += made
    return out


def _is_taken(part: JSON, place: str, *, pdfs: bool) -> bool:
    kind = part.get("type")
    if kind == "document":
        return pdfs and place in PDF_PLACES and is_pdf(part)
    return kind in TAKEN.get(place, ("text",)) and (kind != "image" or is_image(part))


def source_of(part: JSON) -> JSON:
    source = part.get("source")
    return source if isinstance(source, dict) else {}


def media_type(part: JSON) -> str:
    media = str(source_of(part).get("media_type") or "")
    return "image/jpeg" if media == "image/jpg" else media


def is_image(part: JSON) -> bool:
    """Whether this is an image (or a document) with an image as Cortex takes it."""
    return media_type(part) in IMAGE_TYPES and _has_data(part)


def is_pdf(part: JSON) -> bool:
    return part.get("type") == "document" and media_type(part) == PDF_TYPE and _has_data(part)


def _has_data(part: JSON) -> bool:
    source = source_of(part)
    return source.get("type") == "base64" and isinstance(source.get("data"), str) and bool(source["data"])


def _merged(pieces: Iterable[Piece]) -> Iterator[JSON]:
    """Blocks: neighbouring texts become one block with a line for each."""
    for is_text, run in groupby(pieces, lambda piece: isinstance(piece, str)):
        if not is_text:
            yield from (piece for piece in run if isinstance(piece, dict))
        elif text := "\n".join(piece for piece in run if isinstance(piece, str) and not is_blank(piece)):
            yield text_block(text)


def _pieces(block: object, place: str) -> Iterator[Piece]:
    """What the model gets for one block in this place."""
    if isinstance(block, str):
        yield block
    elif not isinstance(block, dict):
        yield _as_json(block)
    elif block.get("type") == "text":
        yield str(block.get("text") or "")
    else:
        yield from _READERS.get(str(block.get("type")), _unknown)(block, place)


def _inner(content: object, place: str) -> Iterator[Piece]:
    for block in content if isinstance(content, list) else [content] if content else []:
        yield from _pieces(block, place)


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _labelled(block: JSON, *names: str) -> Iterator[Piece]:
    for name in names:
        value = block.get(name)
        if value not in (None, "", [], {}):
            yield f"{name}: {value if isinstance(value, str) else _as_json(value)}"


# --------------------------------------------------------------------------------- one function for each kind of block


def _unknown(block: JSON, place: str) -> Iterator[Piece]:
    kind = str(block.get("type") or "block without a type")
    text = block.get("text")
    inner = [*([text] if isinstance(text, str) else []), *_inner(block.get("content"), place)]
    if any(not isinstance(piece, str) or not is_blank(piece) for piece in inner):
        yield f"[{kind}]"
        yield from inner
    else:
        yield left_out(f"A {kind}")


def _document(block: JSON, place: str) -> Iterator[Piece]:
    title = block.get("title")
    source, media = source_of(block), media_type(block)
    kind, data = source.get("type"), source.get("data")
    yield f"[Document: {title}]" if title else "[Document]"
    yield from _labelled(block, "context")
    if kind == "content":
        yield from _inner(source.get("content"), place)
    elif kind == "text" and isinstance(data, str):
        yield data
    elif is_pdf(block):
        yield PDF_LEFT_OUT
    elif is_image(block):
        yield from _image({"type": "image", "source": source}, place)
    elif (media.startswith("text/") or media in _TEXT_TYPES) and (text := _decoded(data)) is not None:
        yield text
    else:
        yield _away(source) or left_out(f"A file ({media or kind})")


def _decoded(data: object) -> str | None:
    try:
        return base64.b64decode(data, validate=True).decode("utf-8", "replace") if isinstance(data, str) else None
    except binascii.Error:
        return None


def _away(source: JSON) -> str:
    """Words for a document or an image that is somewhere else; empty if the source is of another kind."""
    if source.get("type") == "url":
        return f"[The content at {source.get('url')} was attached here and left out: nothing is fetched from there.]"
    if source.get("type") == "file":
        return f"[The file {source.get('file_id')} was attached here and left out. {_ON_SERVERS}]"
    return ""


def _image(block: JSON, place: str) -> Iterator[Piece]:
    if not is_image(block):
        kind = media_type(block) or source_of(block).get("type")
        yield _away(source_of(block)) or left_out(f"An image ({kind})")
    elif "image" in TAKEN.get(place, ()):
        yield unmarked(block)
    else:
        yield "[An image was attached here and left out: it cannot be shown in this place.]"


def _search_result(block: JSON, place: str) -> Iterator[Piece]:
    yield f"[Search result: {block.get('title') or 'without a title'}]"
    yield from _labelled(block, "source")
    yield from _inner(block.get("content"), place)


def _call(block: JSON, _: str) -> Iterator[Piece]:
    server = f" of the MCP server {block['server_name']}" if block.get("server_name") else ""
    yield f"[Called {block.get('name')}{server} with {_as_json(block.get('input') or {})}]"


def _tool_result(block: JSON, place: str) -> Iterator[Piece]:
    yield TOOL_FAILED if block.get("is_error") else "[Result of a tool]"
    yield from _inner(block.get("content"), place)


def _server_result(block: JSON, place: str) -> Iterator[Piece]:
    """The result of a tool that has run on Anthropic's servers, such as `web_search_tool_result`."""
    name = str(block.get("type")).removesuffix("_tool_result").replace("_", " ")
    content = block.get("content")
    if isinstance(content, dict) and content.get("error_code"):
        yield f"[The tool {name} failed: {content['error_code']}]"
        yield from _labelled(content, "error_message")
    else:
        yield f"[Result of the tool {name}]"
        yield from _inner(content, place)


def _web_search_result(block: JSON, place: str) -> Iterator[Piece]:
    yield from _labelled(block, "title", "url", "page_age", "snippet")
    yield from _inner(block.get("content"), place)
    if block.get("encrypted_content"):
        yield ENCRYPTED


def _web_fetch_result(block: JSON, place: str) -> Iterator[Piece]:
    yield from _labelled(block, "url", "retrieved_at")
    yield from _inner(block.get("content"), place)


def _execution_result(block: JSON, place: str) -> Iterator[Piece]:
    yield from _labelled(block, "return_code", "stdout", "stderr")
    if block.get("encrypted_stdout"):
        yield ENCRYPTED
    yield from _inner(block.get("content"), place)


def _view_result(block: JSON, place: str) -> Iterator[Piece]:
    yield from _labelled(block, "start_line", "num_lines", "total_lines")
    if block.get("file_type") in {"image", "pdf"}:
        yield left_out(f"A file ({block['file_type']})")
    else:
        yield from _inner(block.get("content"), place)


def _file(block: JSON, _: str) -> Iterator[Piece]:
    yield f"[The file {block.get('file_id')} is left out. {_ON_SERVERS}]"


def _fields(*names: str) -> Callable[[JSON, str], Iterator[Piece]]:
    return lambda block, _: _labelled(block, *names)


def _advisor_result(block: JSON, place: str) -> Iterator[Piece]:
    yield from _inner(block.get("text"), place)
    if block.get("encrypted_content"):
        yield ENCRYPTED


def _tool_references(block: JSON, place: str) -> Iterator[Piece]:
    yield from _inner(block.get("tool_references"), place)


def _tool_reference(block: JSON, _: str) -> Iterator[Piece]:
    yield f"[tool {block.get('tool_name')}]"


def _compaction(block: JSON, place: str) -> Iterator[Piece]:
    content = block.get("content")
    if content or block.get("encrypted_content"):  # neither: a compaction that failed and means nothing
        yield "[Summary of the conversation so far]"
        yield from _inner(content, place)
        if not content:
            yield ENCRYPTED
    yield from _inner(block.get("tool_changes"), place)


def _tool_change(block: JSON, _: str) -> Iterator[Piece]:
    verb = "added" if block.get("type") == "tool_addition" else "removed"
    yield f"[A tool was {verb} here: {_as_json(block.get('tool'))}]"


def _tool_listing(block: JSON, _: str) -> Iterator[Piece]:
    tools = block.get("tools")
    names = [str(tool.get("name")) for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    yield f"[Tools of the MCP server {block.get('mcp_server_name')}: {', '.join(names)}]"


def _browser_state(block: JSON, _: str) -> Iterator[Piece]:
    yield "[State of the browser]"
    yield from _labelled(block, "tabs", "state_changes")


def _nothing(_block: JSON, _: str) -> Iterator[Piece]:
    """A block that Anthropic does not show to the model either."""
    return iter(())


_READERS: Mapping[str, Callable[[JSON, str], Iterator[Piece]]] = {
    "document": _document,
    "image": _image,
    "search_result": _search_result,
    "tool_use": _call,
    "server_tool_use": _call,
    "mcp_tool_use": _call,
    "tool_result": _tool_result,
    "mcp_tool_result": _tool_result,
    **dict.fromkeys(
        (
            *("web_search_tool_result", "web_fetch_tool_result", "advisor_tool_result", "tool_search_tool_result"),
            *("code_execution_tool_result", "bash_code_execution_tool_result"),
            "text_editor_code_execution_tool_result",
        ),
        _server_result,
    ),
    "web_search_result": _web_search_result,
    "web_fetch_result": _web_fetch_result,
    "code_execution_result": _execution_result,
    "encrypted_code_execution_result": _execution_result,
    "bash_code_execution_result": _execution_result,
    "code_execution_output": _file,
    "bash_code_execution_output": _file,
    "container_upload": _file,
    "text_editor_code_execution_view_result": _view_result,
    "text_editor_code_execution_create_result": _fields("is_file_update"),
    "text_editor_code_execution_str_replace_result": _fields(
        *("old_start", "old_lines", "new_start", "new_lines", "lines")
    ),
    "tool_search_tool_search_result": _tool_references,
    "tool_reference": _tool_reference,
    "advisor_result": _advisor_result,
    "advisor_redacted_result": _advisor_result,
    "compaction": _compaction,
    "tool_addition": _tool_change,
    "tool_removal": _tool_change,
    "mcp_tool_listing": _tool_listing,
    "browser_state": _browser_state,
    "fallback": _nothing,
}
