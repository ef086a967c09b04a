"""The proxy's front door: who may come in, to which routes, and what an error looks like from outside.

LiteLLM is a gateway for a company, with some 600 routes, an admin page and permissive CORS. On a user's own machine
every web page in their browser can send requests to a port on loopback, and each one spends credits. So this ASGI
application stands before LiteLLM's and lets through two things: health checks, and Claude Code's messages.

Security invariants
- Nothing is served under a foreign Host name (DNS rebinding), to a web page (Origin), or without the key.
- A request is refused before LiteLLM sees it, a body is bounded before it is parsed.
- No error body or log line contains a token, whatever Cortex wrote into its answer, and no line of the log is made up
  by who sends a request.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from bundle.cortex.errors import Explained, explain, explain_failure
from bundle.errors import say
from bundle.proxy.live_config import Exchange, LiveConfig, current_exchange

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 20 * 2**20  # Cortex refuses more
LITELLM_ROUTES = {("GET", "/health/liveliness"), ("POST", "/v1/messages")}
OWN_ROUTES = {("HEAD", "/"), ("GET", "/v1/models"), ("POST", "/v1/messages/count_tokens")}
WITHOUT_KEY = {("GET", "/health/liveliness"), ("HEAD", "/")}  # they tell nothing and cost nothing
REFUSALS_A_MINUTE = 20  # in the log: a web page that tries again and again must not push out everything else
CLIENT_LEFT = 499  # LiteLLM's word for somebody who pressed Esc: nobody reads the answer, and nothing is wrong
LEFT_OUT_HEADER = b"x-cortex-left-out"  # what the answer was asked without, because Cortex refuses it; doctor reads it
KEPT_HEADERS = {b"content-type", b"content-length", b"cache-control", b"retry-after"}

# A request of Claude Code's WebSearch: its only tool is one that Anthropic's servers would run.
_SERVER_TOOL = re.compile(rb'"type": ?"(web_search|web_fetch|code_execution|advisor)_\d')
_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")


@dataclass(frozen=True)
class ErrorAnswer:
    """An answer that is not 200, in Anthropic's terms."""

    status: int
    kind: str
    message: str
    final: bool = True  # whether trying again is of no use; Claude Code then shows the message at once


def refusal(method: str, path: str, headers: dict[bytes, bytes], *, key: str, port: int) -> ErrorAnswer | None:
    """Why a request must not pass, or None. `headers` by lower-case name."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if host not in {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}:
        return ErrorAnswer(
            403, "permission_error", f"This proxy answers under 127.0.0.1:{port} only, not under {host!r}."
        )
    if b"origin" in headers or headers.get(b"sec-fetch-site", b"none") != b"none":
        return ErrorAnswer(403, "permission_error", "This proxy does not answer web pages.")
    route = (method, path)
    if route not in LITELLM_ROUTES | OWN_ROUTES:
        return ErrorAnswer(404, "not_found_error", f"There is no {method} {path} here.")
    if route not in WITHOUT_KEY and not has_key(headers, key):
        return ErrorAnswer(
            401,
            "authentication_error",
            "The key does not match this proxy's. Start Claude Code with `make claude`, or take ANTHROPIC_AUTH_TOKEN "
            "from the proxy's .master_key. A saved claude.ai login is no key for it.",
        )
    if method == "POST" and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        return ErrorAnswer(415, "invalid_request_error", "The content type must be application/json.")
    return None


def server_tools_only(body: bytes) -> ErrorAnswer | None:
    """Why a request must not pass whose tools would all run on Anthropic's servers: Cortex would make an answer up.

    Claude Code hands the message to its model as the tool's result, and the model tells the user.
    """
    with suppress(ValueError, TypeError, AttributeError):
        kinds = [str(tool.get("type") or "custom") for tool in json.loads(body).get("tools") or ()]
        if kinds and "custom" not in kinds:
            message = (
                f"Snowflake Cortex does not have this tool ({', '.join(kinds)}). Tell the user so, and do without it."
            )
            return ErrorAnswer(400, "invalid_request_error", message)
    return None


def has_key(headers: dict[bytes, bytes], key: str) -> bool:
    """Whether a request presents the proxy's key. Nobody has an empty one."""
    bearer = headers.get(b"authorization", b"")
    given = bearer[7:] if bearer[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
    return bool(key) and hmac.compare_digest(given.strip(), key.encode())


BYTES_PER_TOKEN = 3.5  # Claude's tokens are shorter than others' in code: rather too many than a late compaction
IMAGE_TOKENS = 1600  # the most that Anthropic charges for one


def estimate_tokens(body: Any) -> int:
    """About how many input tokens a Messages request has. Raises TypeError or KeyError for what is none."""
    size, images = 0.0, 0
    waiting = [body["messages"], body.get("system"), body.get("tools")]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            # (A tuple, not a set: in a tool's schema `type` may be a property, and its value an object.)
            if node.get("type") in ("image", "document") and "source" in node:
                images += 1
            else:
                size += 4 * len(node)
                waiting += node.values()
        elif isinstance(node, list):
            waiting += node
        elif isinstance(node, str):
            size += len(node.encode())
    return int(size / BYTES_PER_TOKEN) + images * IMAGE_TOKENS + 1


class FrontDoor:
    """ASGI application around LiteLLM's; `key` and `port` are the proxy's own."""

    def __init__(self, app: App, *, key: str, port: int, config: LiveConfig) -> None:
        self._app, self._key, self._port, self._config = app, key, port, config
        self._minute, self._refusals = 0, 0
        self.start_failure = ""  # why LiteLLM did not start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        sent = ended = streams = False

        async def send_on(message: Message) -> None:
            nonlocal sent, ended, streams
            if message["type"] == "http.response.start":
                sent, streams = True, any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            else:
                ended = not message.get("more_body")
            await send(message)

        try:
            await self._answer(scope, receive, send_on)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - LiteLLM's handlers of errors raise too
            if ended:
                return
            stopped = isinstance(error, asyncio.CancelledError)
            why = "the time for it to finish is over" if stopped else f"{type(error).__name__}: {printable(str(error))}"
            say(f"an answer is broken off: {why}")
            words = "The proxy was stopped; trying again." if stopped else "An error in the proxy: see make logs"
            # Claude Code asks again after either; after a connection that just ends it shows half an answer.
            if not sent:
                await _send_error(send, ErrorAnswer(503 if stopped else 500, "api_error", words, final=False))
            elif streams:
                await send({"type": "http.response.body", "body": _error_event("api_error", words)})

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                # A traceback of hundreds of lines; its last one says why.
                self.start_failure = printable((message.get("message", "").strip().splitlines() or [""])[-1])
                message = {"type": message["type"]}
            await send(message)

        await self._app(scope, receive, send_on)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        refused = refusal(method, path, headers, key=self._key, port=self._port)
        body = b""
        if refused is None and method == "POST":
            # The whole body at once: it is bounded, counted here, and LiteLLM would collect it anyway.
            body, refused = await _read_body(receive, headers)
            if refused is None and body[:100].lstrip()[:1] != b"{":
                refused = ErrorAnswer(400, "invalid_request_error", "The body is not a JSON object.")
        if refused is None and path == "/v1/messages" and _SERVER_TOOL.search(body):
            refused = server_tools_only(body)
        if refused is not None:
            self._say_refused(f"refused {method} {path}: {refused.message}")
            await _send_error(send, refused)
        elif (method, path) in LITELLM_ROUTES:
            await self._pass_on(scope, body, receive, send)
        elif path == "/v1/models":
            await _send_json(send, 200, self._models())
        elif path == "/v1/messages/count_tokens":
            # LiteLLM would ask {api_base}/responses/input_tokens first, which Cortex does not have.
            await self._count(body, send)
        else:
            await _send_json(send, 200, None)

    def _say_refused(self, line: str) -> None:
        minute = int(time.monotonic()) // 60
        self._refusals = self._refusals + 1 if minute == self._minute else 1
        self._minute = minute
        if self._refusals <= REFUSALS_A_MINUTE:
            say(printable(line).replace("\n", " ")[:500])
        elif self._refusals == REFUSALS_A_MINUTE + 1:
            say("… and more that are refused in this minute")

    def _models(self) -> dict[str, Any]:
        self._config.reload()
        names = dict.fromkeys(row["model_name"] for row in self._config.document.get("model_list", ()))
        data = [
            {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
            for name in names
            if "*" not in name
        ]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"data": data, "has_more": False, **ends}

    async def _count(self, body: bytes, send: Send) -> None:
        try:
            count = estimate_tokens(json.loads(body))
        except (ValueError, TypeError, AttributeError, KeyError):
            await _send_error(send, ErrorAnswer(400, "invalid_request_error", "The body is not a Messages request."))
            return
        await _send_json(send, 200, {"input_tokens": count})

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let LiteLLM answer; its errors are collected and said again in Anthropic's shape."""
        exchange = Exchange()
        current_exchange.set(exchange)
        sent_body = False

        async def receive_body() -> Message:
            nonlocal sent_body
            if not sent_body:
                sent_body = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        def count() -> int:
            try:
                return estimate_tokens(json.loads(body))
            except (ValueError, TypeError, AttributeError, KeyError):
                return 0

        failed: int | None = None
        collected = b""

        async def send_on(message: Message) -> None:
            nonlocal failed, collected
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    failed = message["status"]
                    return
                kept = [(name, value) for name, value in message["headers"] if name.lower() in KEPT_HEADERS]
                if exchange.left_out:
                    kept.append((LEFT_OUT_HEADER, ", ".join(exchange.left_out).encode()))
                await send({**message, "headers": kept})
            elif failed is None:
                if message.get("body", b"").startswith(b"event: error"):
                    error, words = _broken_off(message["body"], exchange, count)
                    say(f"error in the middle of an answer: {words}")
                    message = {**message, "body": error}
                await send(message)
            else:
                collected += message.get("body", b"")
                if not message.get("more_body"):
                    refused = self._explained(exchange, failed, collected, count)
                    if failed != CLIENT_LEFT:
                        say(f"error {refused.status} to Claude Code: {printable(refused.message)}")
                    await _send_error(send, refused)

        # On loopback, compression costs time and saves nothing.
        kept_headers = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
        await self._app({**scope, "headers": kept_headers}, receive_body, send_on)

    def _explained(self, exchange: Exchange, status: int, body: bytes, count: Callable[[], int]) -> ErrorAnswer:
        if exchange.trouble is not None:
            return ErrorAnswer(401, "authentication_error", exchange.trouble)
        told = _told(exchange, count) or explain_failure(status, _message_of(body))
        refused = _refusal_of(told, is_new_token=exchange.token_was_new)
        return replace(refused, final=refused.final or exchange.final)


def _told(exchange: Exchange, count: Callable[[], int]) -> Explained | None:
    """What Cortex's own answer means, where it gave one; `count` estimates the tokens of the prompt."""
    if exchange.answer is None:
        return None
    return explain(*exchange.answer, asked=exchange.facts.limit if exchange.facts else None, count=count)


def _refusal_of(told: Explained, *, is_new_token: bool) -> ErrorAnswer:
    # A 401 on an older token is worth another try, with a new one; on a new one it is the key that is not accepted.
    final = is_new_token if told.status == 401 else not told.retry
    return ErrorAnswer(told.status, told.kind, told.message, final)


def _message_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")


def _broken_off(event: bytes, exchange: Exchange, count: Callable[[], int]) -> tuple[bytes, str]:
    """LiteLLM's `event: error` in the middle of a stream, said again in our words, and these."""
    told = _told(exchange, count) or explain_failure(502, _message_of(event.partition(b"data: ")[2]))
    return _error_event(told.kind, redact(told.message)), printable(told.message)


def _error_event(kind: str, words: str) -> bytes:
    error = {"type": "error", "error": {"type": kind, "message": words}}
    return b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"


def redact(text: str) -> str:
    """The text without anything that looks like a token."""
    return _TOKEN.sub("[token]", text)


def printable(text: str) -> str:
    """The text for the log: without tokens, and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in redact(text))


async def _read_body(receive: Receive, headers: dict[bytes, bytes]) -> tuple[bytes, ErrorAnswer | None]:
    too_large = ErrorAnswer(
        413, "request_too_large", "The request is over 20 MiB, more than Snowflake Cortex takes. Try /compact."
    )
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        return b"", too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body), None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return b"", too_large
        if not message.get("more_body"):
            return bytes(body), None


async def _send_error(send: Send, refused: ErrorAnswer) -> None:
    error = {"type": refused.kind, "message": redact(refused.message)}
    retry = [(b"x-should-retry", b"false")] if refused.final else []
    await _send_json(send, refused.status, {"type": "error", "error": error}, retry)


async def _send_json(
    send: Send, status: int, content: dict[str, Any] | None, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = b"" if content is None else json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(more or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
