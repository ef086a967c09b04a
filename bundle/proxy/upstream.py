"""The connection to Cortex: how long it may be silent, how much of an answer is read, and why it failed.

LiteLLM waits ten minutes for each byte, reads a body of any size, follows redirects (with the whole prompt), and keeps
of a failure only some words. The functions here are used on the HTTP clients of both routes (hooks.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress

import httpx

from bundle.cortex.answers import IncompleteAnswerError
from bundle.proxy.live_config import Exchange, current_exchange

MAX_REQUEST_BYTES = 20 * 2**20  # Cortex takes no more (docs/cortex.md#chat-size)
CONNECT_SECONDS = 10
# A model that thinks may send nothing for minutes, and no source says whether Cortex then sends pings. Five minutes is
# also when many networks forget a silent connection. A dead host is noticed earlier, by TCP keep-alive (server.py).
SILENCE_SECONDS = 300
WHOLE_ANSWER_SECONDS = 600  # an answer that is not streamed comes at once at its end; Claude Code waits no longer
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
DRAIN_SECONDS = 1  # for the last bytes after the end of a stream; without them the connection cannot be used again
MAX_ERROR_BYTES = 64 * 2**10
LITELLM_ERROR_BYTES = 2 * 2**10  # LiteLLM takes half a second for 64 kB, and meanwhile no session goes on
MAX_BODY_BYTES = 4 * 2**20  # of an answer that is not streamed; the longest one has about one
MAX_STREAM_BYTES = 64 * 2**20  # the longest answer has 131,072 tokens, and an event for each takes 300 bytes


class Upstream(httpx.AsyncBaseTransport):
    """LiteLLM's transport, with bounds on the time and the size of each request to Cortex."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = current_exchange.get()
        if exchange is None or exchange.facts is None:
            return await self._inner.handle_async_request(request)
        size = int(request.headers.get("content-length", 0))
        if size > MAX_REQUEST_BYTES:
            exchange.sent = False
            message = f"the request was not sent: it has {size / 2**20:.1f} MiB"
            return httpx.Response(413, json={"message": message}, request=request)
        # Set here, because LiteLLM sets it for each request. `pool` also bounds the look-up of the host's name.
        timeout = httpx.Timeout(patience(exchange), connect=CONNECT_SECONDS, pool=2 * CONNECT_SECONDS)
        request.extensions["timeout"] = timeout.as_dict()
        with noting_failures(exchange):
            try:
                # Once more, because LiteLLM's transport does not bound how long a large request is being sent.
                return await asyncio.wait_for(self._inner.handle_async_request(request), patience(exchange))
            except asyncio.TimeoutError as error:
                raise httpx.ReadTimeout("no answer") from error

    async def aclose(self) -> None:
        await self._inner.aclose()


def bounded(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """The client, with bounds on its requests to Cortex, and without redirects."""
    client.follow_redirects = False
    client._transport = Upstream(client._transport)
    # Through a SOCKS proxy LiteLLM uses httpx itself, which has a transport for each variable of a proxy.
    client._mounts = {pattern: inner and Upstream(inner) for pattern, inner in client._mounts.items()}
    return client


def patience(exchange: Exchange) -> float:
    """For how many seconds Cortex may send nothing."""
    return SILENCE_SECONDS if exchange.facts is not None and exchange.facts.stream else WHOLE_ANSWER_SECONDS


@contextmanager
def noting_failures(exchange: Exchange) -> Iterator[None]:
    """Keep the reason of a failed connection for the front door, by the class of the error: LiteLLM keeps only words,
    and its own errors have similar words."""
    try:
        yield
    except httpx.RequestError as error:
        exchange.failure = exchange.failure or why(error, patience(exchange))
        exchange.sent = exchange.sent and not isinstance(error, NOT_CONNECTED)
        raise


def why(error: httpx.RequestError, seconds: float) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS} seconds"
    if isinstance(error, httpx.TimeoutException):
        return f"it sent nothing for {seconds:g} seconds"
    return " ".join(str(error).split())[:300] or type(error).__name__


def unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """The pieces of a body. A company's proxy may pack it, once; packed twice, a few bytes can become gigabytes."""
    if response.headers.get("content-encoding", "").strip().lower() not in {"gzip", "deflate"}:
        response.headers.pop("content-encoding", None)
    return response.aiter_bytes()


async def read_body(response: httpx.Response, limit: int) -> bytes:
    """The body, or a byte more than its first `limit` bytes. LiteLLM sees only its beginning."""
    body = bytearray()
    async with aclosing(unpacked(response)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            body += piece
            if len(body) > limit:
                break
    await response.aclose()
    response._content = bytes(body[:LITELLM_ERROR_BYTES])
    return bytes(body[: limit + 1])


async def read_answer(response: httpx.Response) -> bytes:
    """The body of an answer that is not streamed. Raises IncompleteAnswerError if it is too large."""
    body = await read_body(response, MAX_BODY_BYTES)
    if len(body) > MAX_BODY_BYTES:
        raise IncompleteAnswerError(f"more than {MAX_BODY_BYTES // 2**20} MiB")
    return body


async def drain(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows the end of a stream, if it is little and comes soon."""

    async def read() -> None:
        size = 0
        async for piece in pieces:
            size += len(piece)
            if size > MAX_ERROR_BYTES:
                return

    with suppress(httpx.RequestError, asyncio.TimeoutError):
        await asyncio.wait_for(read(), DRAIN_SECONDS)
