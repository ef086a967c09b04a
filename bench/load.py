"""The load: requests as bytes, and a client that costs much less than what it measures.

The client writes a whole request at once, looks only for the end of the answer, and keeps its connection. It speaks as
much HTTP as the servers here answer: a Content-Length, or chunks whose last one is on its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

JSON = dict[str, Any]
PATIENCE_SECONDS = 120  # a round that takes longer hangs, and ends the run with an error


@dataclass(frozen=True)
class Target:
    """Who is asked: the stand-in itself, or a proxy before it."""

    port: int
    path: str
    headers: Mapping[str, str]

    def request(self, body: JSON) -> bytes:
        """The bytes of a request with `body` to this target."""
        content = json.dumps(body, ensure_ascii=False).encode()
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


@dataclass(frozen=True)
class Answer:
    """Seconds from the request's first byte to the answer's first byte of content and to its last."""

    first: float
    total: float


class Client(asyncio.Protocol):
    """A connection that sends one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is not a class of asyncio

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its whole answer. Raise ConnectionError for any status but 200."""
        assert self._transport is not None
        self._head, self._tail, self._left = b"", b"", -1
        self._first = 0.0
        self._done = asyncio.get_running_loop().create_future()
        self._start = time.perf_counter()
        self._transport.write(request)
        return await self._done

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            return
        if not self._first:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._done.set_exception(ConnectionError(self._head[:500].decode("latin-1")))
                return
            if self._left < 0:
                _, found, length = head.lower().partition(b"content-length:")
                self._left = int(length.split(b"\r\n")[0]) if found else 0
                self._chunked = not found
            if not data:
                return
            self._first = time.perf_counter() - self._start
        if self._chunked:
            self._tail = (self._tail + data)[-7:]
            ended = self._tail.endswith(b"\r\n0\r\n\r\n")
        else:
            self._left -= len(data)
            ended = self._left <= 0
        if ended:
            self._done.set_result(Answer(self._first, time.perf_counter() - self._start))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("the connection was closed before the answer's end"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def run_load(target: Target, body: JSON, *, count: int, at_once: int = 1) -> tuple[list[Answer], float]:
    """Send `count` requests, `at_once` at the same time. Return the answers, and the seconds for all of them."""
    request = target.request(body)
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(Client, "127.0.0.1", target.port))[1] for _ in range(at_once)]
    waiting = iter(range(count))
    answers: list[Answer] = []

    async def work(client: Client) -> None:
        for _ in waiting:
            answers.append(await client.ask(request))  # noqa: PERF401 - as they come, from all clients

    start = time.perf_counter()
    try:
        await asyncio.wait_for(asyncio.gather(*map(work, clients)), PATIENCE_SECONDS)
        return answers, time.perf_counter() - start
    finally:
        for client in clients:
            client.close()


# ------------------------------------------------------------------------------------------------------------- bodies


def small_body(*, stream: bool = False) -> JSON:
    """A question without tools."""
    return {
        "model": "claude-sonnet-4-5",
        "max_tokens": 1000,
        "stream": stream,
        "messages": [{"role": "user", "content": "Say hello."}],
    }


def long_answer_body(chunks: int, pause: float = 0) -> JSON:
    """A question that the stand-in answers with so many chunks, `pause` seconds apart."""
    return {
        **small_body(stream=True),
        "max_tokens": 64_000,
        "messages": [{"role": "user", "content": f"[[stream: {chunks} {pause}]]"}],
    }


def session_body(*, stream: bool = False, rounds: int = 60, tools: int = 25) -> JSON:
    """A long session of Claude Code: about 100 k tokens (500 kB), tools, and results of calls."""
    words = random.Random(7)  # noqa: S311 - the same text on every run

    def text(size: int) -> str:
        line = "    return self.{}({}, timeout={})  # \u2192 see {}\n"
        lines = (line.format(*(words.choice(_WORDS) for _ in range(4))) for _ in range(max(1, size // 65)))
        return "".join(lines)

    messages: list[JSON] = []
    for number in range(rounds):
        call = f"toolu_{number:04d}"
        use = {"type": "tool_use", "id": call, "name": f"Tool{number % tools}", "input": {"path": text(60)}}
        result = {"type": "tool_result", "tool_use_id": call, "content": [{"type": "text", "text": text(6000)}]}
        messages += [
            {"role": "user", "content": [{"type": "text", "text": f"Question {number}. {text(130)}"}]},
            {"role": "assistant", "content": [{"type": "text", "text": text(130)}, use]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": [{"type": "text", "text": text(400)}]},
        ]
    cached = {"cache_control": {"type": "ephemeral"}}
    messages.append({"role": "user", "content": [{"type": "text", "text": "Go on.", **cached}]})
    return {
        **small_body(stream=stream),
        "system": [{"type": "text", "text": text(14_000), **cached}],
        "messages": messages,
        "tools": [
            {
                "name": f"Tool{number}",
                "description": text(1500),
                "input_schema": {
                    "type": "object",
                    "properties": {word: {"type": "string", "description": text(65)} for word in _WORDS[:6]},
                    "required": list(_WORDS[:2]),
                },
            }
            for number in range(tools)
        ],
    }


_WORDS = ("path", "pattern", "command", "offset", "limit", "content", "session", "request", "answer", "refresh")
