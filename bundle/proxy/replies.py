"""What the front door sends itself, and what it adds to LiteLLM's answers, in the form of Anthropic's API.

Each answer has an id (`request-id`), which is also in the log line about that request: so a user who reports an error
names the line. Of an answer of Chat Completions, LiteLLM leaves out what Anthropic always sends, and it starts a stream
with zeros, from which a client would conclude that the context is empty.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bundle.errors import clean

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

CLIENT_LEFT = 499  # LiteLLM's status after a client has disconnected (the user pressed Esc): not an error
PROMPT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_START = b"event: message_start\ndata: "


@dataclass(frozen=True)
class ErrorAnswer:
    """An answer that is not 200, in Anthropic's format. `details` is for programs (`error.details`)."""

    status: int
    kind: str
    message: str
    final: bool = True  # the same request would fail again, so Claude Code shows the message at once
    details: Mapping[str, str] | None = None


class Reply:
    """The answer to one request, with its id. It sends what it is called with."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.id = f"req_{secrets.token_hex(12)}"
        self.has_started = self.has_ended = self.is_stream = False
        self.status = 0  # 0: nothing was sent

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started, self.status = True, message["status"]
            self.is_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            message = {**message, "headers": [*message["headers"], (b"request-id", self.id.encode())]}
        else:
            self.has_ended = not message.get("more_body")
        await self._send(message)

    async def send_bytes(self, status: int, body: bytes, more: Headers = ()) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def send_whole(self, start: Message, body: bytes) -> None:
        """An answer of LiteLLM's with this start. The body may have another length than the start says."""
        kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await self({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await self({"type": "http.response.body", "body": body})

    async def send_json(self, content: Mapping[str, Any], status: int = 200, more: Headers = ()) -> None:
        await self.send_bytes(status, json.dumps(content).encode(), more)

    async def send_error(self, error: ErrorAnswer, more: Headers = ()) -> None:
        final = [(b"x-should-retry", b"false")] if error.final else []
        await self.send_json(self._error(error.kind, error.message, error.details), error.status, [*final, *more])

    def error_event(self, kind: str, message: str) -> bytes:
        """An error in the middle of a stream. In the ledger, the answer counts as failed."""
        self.status = 502
        return b"event: error\ndata: " + json.dumps(self._error(kind, message)).encode() + b"\n\n"

    def _error(self, kind: str, message: str, details: Mapping[str, str] | None = None) -> dict[str, Any]:
        error: dict[str, Any] = {"type": kind, "message": clean(message), **({"details": details} if details else {})}
        return {"type": "error", "error": error, "request_id": self.id}


def whole_answer(body: bytes) -> bytes:
    """An answer that is not streamed, with an id and counts as Anthropic's API has them. Whatever is not such an answer
    stays as it is."""
    try:
        answer = orjson.loads(body)
        usage = answer["usage"]
        complete = {**dict.fromkeys(PROMPT_COUNTS, 0), "output_tokens": 0, **usage}
        identity = answer["id"] if str(answer["id"]).startswith("msg_") else f"msg_{secrets.token_hex(12)}"
    except (ValueError, KeyError, TypeError):
        return body
    if complete == usage and identity == answer["id"]:
        return body
    return orjson.dumps({**answer, "id": identity, "usage": complete})


def is_start(event: bytes) -> bool:
    return event.startswith(_START)


def counted_start(event: bytes, count: Callable[[], int]) -> bytes:
    """The first event of a stream (`is_start`), with an estimate of the prompt's tokens if it has no number of them.
    The last event has the numbers of Cortex, which replace it."""
    data, newline, rest = event.removeprefix(_START).partition(b"\n")
    try:
        start = orjson.loads(data)
        usage = start["message"]["usage"]
        if any(usage.get(name) for name in PROMPT_COUNTS):
            return event
        usage["input_tokens"] = count()
    except (ValueError, KeyError, TypeError, AttributeError):
        return event
    return b"".join((_START, orjson.dumps(start), newline, rest))
