"""Decides who may send requests to which routes of the proxy, and what a client sees of an error.

LiteLLM is a gateway for a company, with more than 600 routes, an admin page and permissive CORS. On a user's own
machine every web page in the browser can send requests to a port on loopback, and each request costs credits. So this
ASGI application runs in front of LiteLLM's application and lets through only two things: health checks, and Claude
Code's messages.

Security invariants
- A request is refused if its Host is not this machine (DNS rebinding), if a web page sent it (Origin), or without the
  key.
- A request is refused before LiteLLM sees it. LiteLLM sees only known headers, no query, and only known fields of a
  body (request_body.py).
- The proxy proves on request that it has the key, so that a client need not send the key to find out who listens.
- No error body or log line contains a token, whatever Cortex wrote into its answer. No client can forge log lines.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from bundle import proof
from bundle.bootstrap import BUNDLE, make, script
from bundle.cortex.catalogue import NEWEST
from bundle.cortex.errors import Explained, explain, explain_failure
from bundle.cortex.names import answering
from bundle.errors import SayOnce, printable, say
from bundle.proxy.bookkeeper import Bookkeeper
from bundle.proxy.live_config import Exchange, LiveConfig, current_exchange
from bundle.proxy.model_choice import entries, entry_of, page
from bundle.proxy.replies import CLIENT_LEFT, ErrorAnswer, Message, Reply, Send, counted_start, is_start, whole_answer
from bundle.proxy.request_body import BodyError, check, estimate_tokens, only_fields, parse, read_body
from bundle.settings import checked_key

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_REQUESTS = 500  # at the same time; each holds two descriptors (see connections.py for their limit)
LITELLM_ROUTES = {("GET", "/health/liveliness"), ("POST", "/v1/messages")}
MODELS, ONE_MODEL = "/v1/models", "/v1/models/{id}"
OWN_ROUTES = {("HEAD", "/"), ("GET", proof.PATH), ("POST", "/v1/messages/count_tokens")}
OWN_ROUTES |= {("GET", MODELS), ("GET", ONE_MODEL)}
WITHOUT_KEY = {("GET", "/health/liveliness"), ("HEAD", "/"), ("GET", proof.PATH)}  # they reveal and cost nothing
REFUSALS_A_MINUTE = 20  # how many are logged: a web page that repeats its request must not fill the log
MOST_FIELDS_LOGGED = 100  # clients choose the names of fields; the SDKs know some twenty that Cortex does not take
SESSION_HEADER = b"x-claude-code-session-id"
# LiteLLM itself ends the call only while it waits for the first word of a stream. If it is cancelled then, it forgets
# the task that reads the stream. So it gets this time to end the call, before it is cancelled.
LEAVING_SECONDS = 0.2
# What `make doctor` reads: the fields removed because Cortex refuses them, the model that answers, and if it stands in
# for a newer one, the status and the words with which Cortex has refused that one.
LEFT_OUT_HEADER, MODEL_HEADER, REFUSED_HEADER = b"x-cortex-left-out", b"x-cortex-model", b"x-cortex-refused"
STOPPING = "the proxy is stopping and cannot wait until this answer is complete"
KEPT_HEADERS = {b"content-type", b"content-length", b"cache-control", b"retry-after"}
# LiteLLM takes options from other headers (`x-litellm-timeout`) and from the query.
PASSED_HEADERS = {b"host", b"authorization", b"x-api-key", b"content-type", b"anthropic-beta", b"anthropic-version"}


def refusal(method: str, path: str, headers: dict[bytes, bytes], *, key: str, port: int) -> ErrorAnswer | None:
    """The error for a request that must not pass, or None. The names in `headers` are in lower case."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if host not in {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}:
        message = f"This proxy answers under 127.0.0.1:{port} only, not under {printable(host, 100)!r}."
        return ErrorAnswer(403, "permission_error", message)
    if b"origin" in headers or headers.get(b"sec-fetch-site", b"none") != b"none":
        return ErrorAnswer(403, "permission_error", "This proxy does not answer web pages.")
    route = (method, ONE_MODEL if _is_of_one_model(path) else path)
    if (method, path.removeprefix("/v1")) in LITELLM_ROUTES | OWN_ROUTES and path.startswith("/v1/v1/"):
        message = f"ANTHROPIC_BASE_URL must not end in /v1. Set it to http://127.0.0.1:{port}"
        return ErrorAnswer(400, "invalid_request_error", message)  # of a 404, Claude Code shows no words
    if route not in LITELLM_ROUTES | OWN_ROUTES:
        return ErrorAnswer(404, "not_found_error", f"There is no {printable(method, 20)} {printable(path, 100)} here.")
    if route not in WITHOUT_KEY and not has_key(headers, key):
        message = (
            "The key does not match this proxy's. "
            f"Start Claude Code with `{script('point_claude.py', '--run')}`, or take ANTHROPIC_AUTH_TOKEN from the "
            "proxy's .master_key. A saved claude.ai login does not work here."
        )
        return ErrorAnswer(401, "authentication_error", message)
    if method == "POST" and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        return ErrorAnswer(415, "invalid_request_error", "The content type must be application/json.")
    return None


def _is_of_one_model(path: str) -> bool:
    return path.startswith(f"{MODELS}/") and len(path) > len(MODELS) + 1


def has_key(headers: dict[bytes, bytes], key: str) -> bool:
    """Whether a request presents the proxy's key. An empty key never matches."""
    bearer = headers.get(b"authorization", b"")
    given = bearer[7:] if bearer[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
    return bool(key) and hmac.compare_digest(given.strip(), key.encode())


class FrontDoor:
    """ASGI application around LiteLLM's; `key` and `port` are the proxy's own, `books` counts what is spent. Raises
    ConfigError for a weak key."""

    def __init__(self, app: App, *, key: str, port: int, config: LiveConfig, books: Bookkeeper | None = None) -> None:
        self._app, self._key, self._port, self._config = app, checked_key(key), port, config
        self._books = books
        self._minute, self._refusals, self._running = 0, 0, 0
        self._after_error = False  # whether an error was logged, and no good answer has come since
        self._say_once = SayOnce(MOST_FIELDS_LOGGED)
        self.start_failure = ""  # why LiteLLM did not start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        reply = Reply(send)
        current_exchange.set(None)  # a pipelined request has the context of the one before it
        try:
            await self._answer(scope, receive, reply)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - LiteLLM's handlers of errors raise too
            if reply.has_ended:
                return
            stopped = isinstance(error, asyncio.CancelledError)
            cause = STOPPING if stopped else f"{type(error).__name__}: {error}"
            say(f"an answer was interrupted ({reply.id}): {printable(cause)}")
            text = "The proxy was stopped; trying again." if stopped else f"An error in the proxy. See: {make('logs')}"
            # After either error Claude Code sends the request again. Without an error, Claude Code would show an
            # incomplete answer as if it were complete.
            if not reply.has_started:
                await reply.send_error(ErrorAnswer(503 if stopped else 500, "api_error", text, final=False))
            elif reply.is_stream:
                await reply({"type": "http.response.body", "body": reply.error_event("api_error", text)})
        finally:
            exchange = current_exchange.get()
            if self._books is not None and exchange is not None and exchange.asked:
                self._books.note(exchange, reply)

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                # The message is a traceback of hundreds of lines. Only its last line gives the reason.
                self.start_failure = printable((message.get("message", "").strip().splitlines() or [""])[-1])
                message = {"type": message["type"]}
            await send(message)

        await self._app(scope, receive, send_on)

    async def _answer(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        method, path = scope["method"], scope["path"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        error = refusal(method, path, headers, key=self._key, port=self._port)
        with_key = (method, path) not in WITHOUT_KEY
        if error is None and with_key and self._running >= MAX_REQUESTS:
            message = f"The proxy is already answering {MAX_REQUESTS} requests; trying again."
            error = ErrorAnswer(529, "overloaded_error", message, final=False)
        if error is not None:
            await self._refuse(method, path, error, reply)
            return
        scope.setdefault("state", {})["with_key"] = with_key  # connections.py reads it
        self._running += with_key
        try:
            if method == "POST":
                await self._answer_post(scope, headers, receive, reply)
            elif (method, path) in LITELLM_ROUTES:
                await self._pass_on(scope, {}, b"", receive, reply)
            elif path == proof.PATH:
                answer = proof.proof(self._key, self._port, scope["query_string"])
                await reply.send_bytes(200 if answer else 400, answer or b"")
            elif path == "/":  # Claude Code looks whether anybody is there
                await reply.send_bytes(200, b"")
            else:
                await self._answer_about_models(path, scope["query_string"], reply)
        except BodyError as bad:
            await self._refuse(method, path, bad.answer, reply)
        finally:
            self._running -= with_key

    async def _answer_post(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, reply: Reply) -> None:
        # Read the whole body here: its size is limited, and LiteLLM would read all of it anyway.
        body, raw = parse(await read_body(receive, headers))
        counting = scope["path"] != "/v1/messages"
        check(body, counting=counting)
        if counting:  # LiteLLM would first send a request to {api_base}/responses/input_tokens, which Cortex lacks
            await reply.send_json({"input_tokens": estimate_tokens(body)})
            return
        if self._books is not None and (error := await self._books.refusal()):
            await self._refuse(scope["method"], scope["path"], error, reply)
            return
        current_exchange.set(Exchange(str(body["model"]), headers.get(SESSION_HEADER, b"").decode("latin-1")))
        body, raw = self._with_a_name_that_a_row_has(body, raw)
        body, raw, dropped = only_fields(body, raw)
        for name in dropped:
            self._say_once(f"adapted for Cortex: field {printable(name, 50)} dropped")
        scope["parsed_body"] = (tuple(body), body)  # so LiteLLM does not parse the bytes again
        await self._pass_on(scope, body, raw, receive, reply)

    def _with_a_name_that_a_row_has(self, body: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes]:
        """A body whose model has another provider's name, or a bare alias such as `opus`, gets the name of a row."""
        self._config.reload()
        asked = body["model"]
        name = answering(asked, [row["model_name"] for row in self._config.rows])
        if name == asked:
            return body, raw
        self._say_once(f"adapted for Cortex: model {printable(asked, 100)} answered as {printable(name, 100)}")
        body = {**body, "model": name}
        return body, orjson.dumps(body)

    async def _refuse(self, method: str, path: str, error: ErrorAnswer, reply: Reply) -> None:
        self._log_refusal(f"refused {printable(method, 20)} {printable(path, 100)} ({reply.id}): {error.message}")
        await reply.send_error(error)

    def _log_refusal(self, line: str) -> None:
        minute = int(time.monotonic()) // 60
        self._refusals = self._refusals + 1 if minute == self._minute else 1
        self._minute = minute
        if self._refusals <= REFUSALS_A_MINUTE:
            say(printable(line))
        elif self._refusals == REFUSALS_A_MINUTE + 1:
            say("… further refusals in this minute are not logged")

    async def _answer_about_models(self, path: str, query: bytes, reply: Reply) -> None:
        self._config.reload()
        if path == MODELS:
            await reply.send_json(page(entries(self._config.rows, self._config.refused), query.decode("latin-1")))
        elif entry := entry_of(asked := path[len(MODELS) + 1 :], self._config.rows, self._config.refused):
            await reply.send_json(entry)
        else:
            # No line in the log: to ask for a model that is not there is no fault.
            message = f"No model answers for the name {printable(asked, 100)}."
            await reply.send_error(ErrorAnswer(404, "not_found_error", message))

    async def _pass_on(
        self, scope: Scope, request: dict[str, Any], body: bytes, receive: Receive, reply: Reply
    ) -> None:
        """Let LiteLLM answer, and rewrite its answer in Anthropic's format. `body` is the `request` as bytes."""
        if (exchange := current_exchange.get()) is None:  # a health check
            current_exchange.set(exchange := Exchange())
        error_status: int | None = None
        held: Message | None = None  # the start of an answer that is not streamed: its length may change
        is_counted = False  # whether the bookkeeper knows that the answer has begun
        whole, has_begun = b"", False  # the body of an error or of an answer that is not streamed

        def count() -> int:
            return estimate_tokens(request) if request else 0

        async def send_on(message: Message) -> None:
            nonlocal error_status, held, whole, has_begun, is_counted
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    error_status = message["status"]
                    return
                kept = [(name, value) for name, value in message["headers"] if name.lower() in KEPT_HEADERS]
                start = {**message, "headers": [*kept, *_told(exchange, self._config)]}
                if any(value.startswith(b"text/event-stream") for _, value in kept):
                    await reply(start)
                else:
                    held = start
            elif held is not None or error_status is not None:
                whole += message.get("body", b"")
                if message.get("more_body"):
                    return
                if held is not None:
                    self._note_good_answer()
                    await reply.send_whole(held, whole_answer(whole))
                    return
                error = _error_answer(exchange, error_status or 500, whole, count)
                if error_status != CLIENT_LEFT:
                    say(f"error {error.status} to Claude Code ({reply.id}): {error.message}")
                    self._after_error = True
                await reply.send_error(error, _told(exchange, self._config))
            else:
                event = message.get("body", b"")
                if event.startswith(b"event: error"):
                    explained = _explain(exchange, 502, event.partition(b"data: ")[2], count)
                    say(f"error in the middle of an answer ({reply.id}): {explained.message}")
                    message = {**message, "body": reply.error_event(explained.kind, explained.message)}
                    self._after_error = True
                elif not has_begun and is_start(event):
                    has_begun, message = True, {**message, "body": counted_start(event, count)}
                elif not message.get("more_body"):
                    self._note_good_answer()
                if not is_counted and exchange.first_at is not None and self._books is not None:
                    is_counted = True
                    self._books.begun(exchange)
                await reply(message)

        headers = [pair for pair in scope["headers"] if pair[0] in PASSED_HEADERS]
        passed = {**scope, "headers": headers, "query_string": b""}
        await _while_connected(self._app, passed, body, receive, send_on)

    def _note_good_answer(self) -> None:
        if self._after_error:
            self._after_error = False
            say("answers again")  # `make status` then shows the error as over


def _told(exchange: Exchange, config: LiveConfig) -> list[tuple[bytes, bytes]]:
    """Headers for `make doctor`: which model answers, and what Cortex has refused."""
    told = {LEFT_OUT_HEADER: ", ".join(exchange.left_out), MODEL_HEADER: exchange.model}
    first = (exchange.row.get(NEWEST) or [exchange.model])[0]
    status, words = config.refused.words(first)
    if first != exchange.model and status:  # (the refusal may have been forgotten while this answer came)
        told[REFUSED_HEADER] = f"{status} {printable(words)}"
    # (uvicorn takes no header that ends with a space: the client would get no answer at all.)
    return [(name, text[:2_000].strip().encode("latin-1", "replace")) for name, text in told.items() if text]


async def _while_connected(app: App, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Let `app` answer, and cancel it when the client leaves (the user pressed Esc), and with it the call to Cortex."""
    body_message = iter([{"type": "http.request", "body": body, "more_body": False}])
    task, client_left, is_whole = asyncio.current_task(), asyncio.Event(), False

    async def receive_body() -> Message:
        if message := next(body_message, None):
            return message
        await client_left.wait()  # not `receive`, which gives each message only once, to the watcher
        return {"type": "http.disconnect"}

    async def send_on(message: Message) -> None:
        nonlocal is_whole
        is_whole = message["type"] == "http.response.body" and not message.get("more_body")
        await send(message)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        client_left.set()
        await asyncio.sleep(LEAVING_SECONDS)
        if task is not None and not is_whole:
            task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await app(scope, receive_body, send_on)
        if not is_whole:
            raise RuntimeError("LiteLLM ended without an answer")
    except (Exception, asyncio.CancelledError):
        if not client_left.is_set():  # otherwise nobody reads the error
            raise
    finally:
        watcher.cancel()


def _error_answer(exchange: Exchange, status: int, error_body: bytes, count: Callable[[], int]) -> ErrorAnswer:
    if exchange.trouble is not None:
        return ErrorAnswer(401, "authentication_error", exchange.trouble)
    explained = _explain(exchange, status, error_body, count)
    # A retry with a new token may succeed. If Cortex refuses that one too, it refuses the RSA key.
    final = exchange.refused_again if explained.status == 401 else not explained.retry
    return ErrorAnswer(explained.status, explained.kind, explained.message, final or exchange.final)


def _explain(exchange: Exchange, status: int, error_body: bytes, count: Callable[[], int]) -> Explained:
    """Explain the error of Cortex if Cortex has sent one, otherwise the error of LiteLLM."""
    if exchange.answer is not None:
        limit = exchange.facts.limit if exchange.facts else None
        return explain(*exchange.answer, BUNDLE, asked=limit, count=count)
    try:
        message = str(json.loads(error_body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = error_body.decode("utf-8", "replace")
    return explain_failure(status, message, exchange.failure, BUNDLE)
