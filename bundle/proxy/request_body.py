"""The body of a request of Claude Code: how it is read, which one is refused, and what of it LiteLLM may see.

LiteLLM takes its own options from a body, next to the fields of Anthropic's API: `extra_headers` would replace the
token, `extra_body` the model, `headers` the host, and each release has more of them. So only the fields that Cortex
needs are passed on.

Security invariants
- LiteLLM sees no field at the top of a body that is not in FIELDS.
- A body is bounded in size, depth and time, and has the shape of Anthropic's API, before LiteLLM sees it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import orjson

from bundle.cortex.surrogates import without_halves
from bundle.errors import printable
from bundle.proxy.replies import ErrorAnswer
from bundle.proxy.request_shape import fault

# Images are taken out before a request goes to Cortex, which takes 20 MiB, so more than that may come in.
MAX_BODY_BYTES = 64 * 2**20
MAX_DEPTH = 100  # LiteLLM and the hooks copy a body by recursion, and Python allows about 1000 calls inside each other
MAX_NODES = 300_000  # objects and lists; a million tokens of a session have some ten thousand
BODY_SECONDS = 60  # from this machine a body comes in milliseconds
# The fields that pass: those that Cortex takes, `cache_control` (a client marks the whole prompt for the cache) and
# `output_format` (of older clients). `metadata` names the user's device and is not needed.
FIELDS = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "max_tokens", "stream", "stop_sequences", "temperature"}
    | {"top_k", "top_p", "thinking", "output_config", "output_format", "cache_control"}
)
SILENT_FIELDS = frozenset({"metadata", "context_management"})  # Claude Code sends them in every request
# Low, because code has short tokens, and with an estimate that is too low Claude Code compacts too late.
BYTES_PER_TOKEN = 3.5
IMAGE_TOKENS = 1600  # Anthropic's maximum for one image
# Tools that the client runs itself, and whose schema only Anthropic's models know.
_CLIENT_TOOLS = re.compile(r"(bash|text_editor|memory|computer)_\d+")
# A page of a PDF has 1,500 to 3,000 tokens (docs/cortex.md#messages-pdf-limits), and often 50 to 100 kB as base64.
PDF_BYTES_PER_TOKEN = 30


class BodyError(Exception):
    """A body that must not pass; `answer` says why."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        final: bool = True,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.answer = ErrorAnswer(status, kind, message, final, details)


async def read_body(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], headers: dict[bytes, bytes]) -> bytes:
    """The whole body of a request. Raises BodyError if it is too large or too slow."""
    try:
        return await asyncio.wait_for(_read(receive, headers), BODY_SECONDS)
    except asyncio.TimeoutError:
        message = f"The request was not complete after {BODY_SECONDS} seconds."
        raise BodyError(message, status=408, kind="timeout_error", final=False) from None


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


def check(body: dict[str, Any], *, counting: bool = False) -> None:
    """Raises BodyError for a request that Cortex cannot answer. `counting`: it only asks for a number of tokens."""
    if body.get("thread") is not None:
        # Anthropic's SDKs fall back on this code: they send the whole conversation again, without the field. Dropping
        # the field would not do, because the next request has the new messages only.
        message = "thread: Snowflake Cortex keeps no conversation. Send all messages, without `thread`."
        raise BodyError(message, details={"error_code": "thread_unsupported_request"})
    if found := fault(body, counting=counting):
        raise BodyError(found)
    if not counting:
        _refuse_foreign_tools(body.get("tools") or ())


def _refuse_foreign_tools(tools: Sequence[dict[str, Any]]) -> None:
    """Raises BodyError if there are tools, and Cortex has none of them. The model would invent their results. (Claude
    Code gives this message to its model as the result of its WebSearch.) Next to a custom tool they are dropped."""
    kinds = [tool.get("type") or "custom" for tool in tools]
    if not kinds or "custom" in kinds:
        return
    message = f"Snowflake Cortex does not have this tool ({printable(', '.join(kinds), 200)})."
    own = [str(tool.get("name") or kind) for tool, kind in zip(tools, kinds, strict=True) if _CLIENT_TOOLS.match(kind)]
    if own:
        names = printable(", ".join(own), 200)
        message += f" Your program runs it: give it as a custom tool of that name ({names}), with an input_schema."
    if len(own) < len(tools):
        message += " Tell the user so, and do without it."
    raise BodyError(message)


def only_fields(body: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes, list[str]]:
    """The body with its FIELDS only, as an object and as bytes, and the names of the others."""
    dropped = [name for name in body if name not in FIELDS]
    if not dropped:
        return body, raw, []
    kept = {name: value for name, value in body.items() if name in FIELDS}
    return kept, orjson.dumps(kept), [name for name in dropped if name not in SILENT_FIELDS]


def estimate_tokens(body: dict[str, Any]) -> int:
    """An estimate of the input tokens of a Messages request that has passed `check`."""
    size, files = 0, 0
    waiting: list[Any] = [body["messages"], body.get("system"), body.get("tools")]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            source = node.get("source")
            # (In a tool's schema `type` may be a dict, which a set cannot look up.)
            if isinstance(source, dict) and node.get("type") in ("image", "document") and _is_attached(source):
                is_pdf = source.get("media_type") == "application/pdf"
                files += max(IMAGE_TOKENS, len(source.get("data", "")) // PDF_BYTES_PER_TOKEN if is_pdf else 0)
            else:  # (also a document with a text)
                size += 4 * len(node)
                waiting += node.values()
        elif isinstance(node, list):
            waiting += node
        elif isinstance(node, str):
            size += len(node) if node.isascii() else len(node.encode())
    return int(size / BYTES_PER_TOKEN) + files + 1


def _is_attached(source: dict[str, Any]) -> bool:
    """Whether this is the source of an image or a PDF, whose size in bytes says little. Other documents are texts."""
    media = str(source.get("media_type") or "")
    return source.get("type") == "base64" and (media.startswith("image/") or media == "application/pdf")
