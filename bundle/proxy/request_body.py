"""The body of a request of Claude Code: how it is read, and what of it LiteLLM may see.

LiteLLM takes its own options from a body, next to the fields of Anthropic's API: `extra_headers` would replace the
token, `extra_body` the model, `headers` the host, and each release has more of them. So only the fields that Cortex
needs are passed on.

Security invariants
- LiteLLM sees no field at the top of a body that is not in FIELDS.
- A body is bounded in size, depth and time before LiteLLM sees it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from bundle.cortex.surrogates import without_halves

# Images are taken out before a request goes to Cortex, which takes 20 MiB, so more than that may come in.
MAX_BODY_BYTES = 64 * 2**20
MAX_DEPTH = 100  # LiteLLM and the hooks copy a body by recursion, and Python allows about 1000 calls inside each other
MAX_NODES = 300_000  # objects and lists; a million tokens of a session have some ten thousand
BODY_SECONDS = 60  # from this machine a body comes in milliseconds
# The fields that pass, with their types (None is as good as no field): those that Cortex takes, `cache_control` (a
# client marks the whole prompt for the cache) and `output_format` (of older clients). `metadata` names the user's
# device and is not needed. LiteLLM answers 500 to another type, and Claude Code repeats a request after a 500.
FIELDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "system": (str, list),
    "stream": (bool,),
    **dict.fromkeys(("messages", "tools", "stop_sequences"), (list,)),
    **dict.fromkeys(("tool_choice", "thinking", "output_config", "output_format", "cache_control"), (dict,)),
    **dict.fromkeys(("max_tokens", "top_k"), (int,)),
    **dict.fromkeys(("top_p", "temperature"), (int, float)),
}
SILENT_FIELDS = frozenset({"metadata", "context_management"})  # Claude Code sends them in every request
# Low, because code has short tokens, and with an estimate that is too low Claude Code compacts too late.
BYTES_PER_TOKEN = 3.5
IMAGE_TOKENS = 1600  # Anthropic's maximum for one image
# A page of a PDF has 1,500 to 3,000 tokens (docs/cortex.md#messages-pdf-limits), and often 50 to 100 kB as base64.
PDF_BYTES_PER_TOKEN = 30


class BodyError(Exception):
    """A body that must not pass; `str()` says why."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


async def read_body(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], headers: dict[bytes, bytes]) -> bytes:
    """The whole body of a request. Raises BodyError if it is too large or too slow."""
    try:
        return await asyncio.wait_for(_read(receive, headers), BODY_SECONDS)
    except asyncio.TimeoutError:
        message = f"The request was not complete after {BODY_SECONDS} seconds."
        raise BodyError(message, status=408, kind="timeout_error") from None


async def _read(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], headers: dict[bytes, bytes]) -> bytes:
    announced = headers.get(b"content-length", b"0")
    size, body, more = int(announced[:20]) if announced.isdigit() else 0, bytearray(), True
    while more and size <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyError("The client left before its request was complete.", status=499)
        body += message.get("body", b"")
        more, size = message.get("more_body", False), len(body)
    if size > MAX_BODY_BYTES:
        body.clear()  # the error's traceback would keep it
        words = f"The request is over {MAX_BODY_BYTES // 2**20} MiB. Try /compact."
        raise BodyError(words, status=413, kind="request_too_large")
    return bytes(body)


def parse(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The body as an object, and as bytes that every reader of JSON takes. Raises BodyError."""
    try:
        try:
            body = orjson.loads(raw)  # it refuses halves of characters
        except ValueError:
            body = orjson.loads(raw := without_halves(raw))
    except ValueError as error:
        deep = "depth limit" in str(error)
        raise BodyError(_TOO_DEEP if deep else f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(body, dict):
        raise BodyError("The body is not a JSON object.")
    if _is_deeper(body, MAX_DEPTH):
        raise BodyError(_TOO_DEEP)
    return body, raw


_TOO_DEEP = f"The body is nested more than {MAX_DEPTH} levels deep. Start again with /clear."


def _is_deeper(body: dict[str, Any], most: int) -> bool:
    level: list[Any] = [body]
    count = 0
    for _ in range(most):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [node for nodes in inner for node in nodes if isinstance(node, (dict, list))]
        if not level:
            return False
        count += len(level)
        if count > MAX_NODES:
            raise BodyError(f"The body has more than {MAX_NODES} objects and lists. Try /compact.")
    return True


def check_shapes(body: dict[str, Any]) -> None:
    """Raises BodyError for a field that has another type than Anthropic's API takes."""
    for name, types in FIELDS.items():
        if body.get(name) is not None and not isinstance(body[name], types):
            raise BodyError(f"{name}: must be {' or '.join(kind.__name__ for kind in types)}.")
    messages = body.get("messages")
    if not (messages and _are_objects(messages) and all(isinstance(each.get("role"), str) for each in messages)):
        raise BodyError("messages: must be a list of objects with a role, and not empty.")
    contents = [each.get("content") for each in messages]
    for blocks in (body.get("system"), body.get("tools"), *contents):
        if isinstance(blocks, list) and not _are_objects(blocks):
            raise BodyError("messages, system and tools: each block must be an object.")


def _are_objects(items: list[Any]) -> bool:
    return all(isinstance(item, dict) for item in items)


def only_fields(body: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes, list[str]]:
    """The body with the fields of FIELDS only, as an object and as bytes, and the names of the others."""
    dropped = [name for name in body if name not in FIELDS]
    if not dropped:
        return body, raw, []
    kept = {name: value for name, value in body.items() if name in FIELDS}
    return kept, orjson.dumps(kept), [name for name in dropped if name not in SILENT_FIELDS]


def estimate_tokens(body: bytes) -> int | None:
    """An estimate of the input tokens of a Messages request; None if the body is not such a request."""
    size, images, pdfs = 0.0, 0, 0
    try:
        request = json.loads(body)
        waiting = [request["messages"], request.get("system"), request.get("tools")]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                source = node.get("source")
                media = source.get("media_type") if isinstance(source, dict) else None
                if node.get("type") == "image" and source:
                    images += 1
                elif isinstance(source, dict) and node.get("type") == "document" and media == "application/pdf":
                    pdfs += max(IMAGE_TOKENS, len(source["data"]) // PDF_BYTES_PER_TOKEN)
                else:  # (also a document with a text)
                    size += 4 * len(node)
                    waiting += node.values()
            elif isinstance(node, list):
                waiting += node
            elif isinstance(node, str):
                size += len(node.encode())
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
    return int(size / BYTES_PER_TOKEN) + images * IMAGE_TOKENS + pdfs + 1
