"""Makes LiteLLM faster: skips work that is not needed here, and sends two test requests before the port opens.

LiteLLM is a gateway with which a company bills its teams. Most of the time that it adds to a request goes into prices,
records for a database and limits, none of which are used here. Its first request also loads modules for a second. Each
step below replaces one attribute of LiteLLM or of OpenAI's SDK and explains why that is safe. No step changes what
LiteLLM does to a request or to its answer. `make bench ARGS=--steps` measures what each step saves (the numbers below
are for LiteLLM 1.106.2).

The proxy also works without the steps. If a release of LiteLLM has no such attribute, the step is skipped. `warmed`
sends two test requests through LiteLLM, which this process answers: no request reaches Cortex, so nothing is billed. If
an answer is wrong, all steps are undone.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Iterator, MutableMapping
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import httpx

from bundle.errors import printable, say
from bundle.proxy.front_door import has_key
from bundle.proxy.live_config import LiveConfig, current_exchange
from bundle.render import is_cortex

App = Callable[[Any, Any, Any], Awaitable[None]]
Chunks = AsyncGenerator[Any, None]

MANY_CHUNKS = 2_000
CHUNKS_AHEAD = 64  # more would only help a client that is slower than the model
WARM_UP_SECONDS = 30  # the test requests take one second; they must not block the start
_CORE = "litellm.litellm_core_utils"


class Changes:
    """The attributes that were replaced, with their original values."""

    def __init__(self) -> None:
        self.originals: list[tuple[Any, str, Any]] = []

    def replace(self, module: str, name: str, new: Callable[[Any], Any]) -> None:
        """Replace `name` (or `Class.name`) of `module` by `new(old)`; an error if there is none."""
        owner: Any = importlib.import_module(module)
        *path, name = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        old = getattr(owner, name)
        setattr(owner, name, new(old))
        self.originals.append((owner, name, old))

    def take_back(self, *, keep: int = 0) -> None:
        """Undo all replacements except the first `keep`."""
        while len(self.originals) > keep:
            setattr(*self.originals.pop())


@contextmanager
def importing(paths: Container[str]) -> Iterator[None]:
    """Import LiteLLM's proxy without garbage collection, and with only those of its 670 routes that are in `paths`.
    Garbage collection takes a quarter of the import's time and frees nothing, because imported modules stay. FastAPI
    takes another tenth to build models of each route's parameters and answers."""

    def only_wanted(add: Callable[..., None]) -> Callable[..., None]:
        def add_wanted(router: Any, path: str, *args: Any, **kwargs: Any) -> None:
            if path in paths:
                add(router, path, *args, **kwargs)

        return add_wanted

    changes = Changes()
    gc.disable()
    try:
        with suppress(ImportError, AttributeError):
            changes.replace("fastapi.routing", "APIRouter.add_api_route", only_wanted)
        yield
    finally:
        changes.take_back()
        gc.enable()
        gc.freeze()


def no_prices(changes: Changes) -> None:
    """Snowflake bills Cortex (see `usage.py`), and LiteLLM's price list does not have Cortex's models. LiteLLM looks
    for the price three times, and prepares a warning each time. Saves 4 ms a request."""
    changes.replace(f"{_CORE}.litellm_logging", "Logging.response_cost_calculator", lambda _: _nothing)


def no_records(changes: Changes) -> None:
    """LiteLLM records successful requests for callbacks, and no callback here uses these records. (Records of failures
    stay: LiteLLM takes the text of an error from them.) Saves 0.5 ms a request."""
    changes.replace("litellm.utils", "_dispatch_success_logging", lambda _: _nothing)
    changes.replace(f"{_CORE}.litellm_logging", "Logging.dispatch_success_handlers", lambda _: _async_nothing)
    changes.replace("litellm.router", "Router.increment_deployment_usage_for_response", lambda _: _async_nothing)


def no_company_hooks(changes: Changes) -> None:
    """LiteLLM's hooks for limits per key and team, for skills and for ids of the Responses API are not used here. They
    process each chunk of a stream, and put the whole stream together again at its end. Saves 1.5 ms of a stream."""
    changes.replace("litellm.proxy.utils", "PROXY_HOOKS", lambda _: {})


def one_user(changes: Changes) -> None:
    """There is one key. LiteLLM would look for the team, project, budget and customers of the key's owner. This step
    still checks the key, as the front door does, and that a body names no other server. Saves 1.3 ms a request."""
    from fastapi import Request  # noqa: PLC0415
    from litellm.proxy import proxy_server  # noqa: PLC0415
    from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth  # noqa: PLC0415
    from litellm.proxy.auth.auth_utils import pre_db_read_auth_checks  # noqa: PLC0415
    from litellm.proxy.auth.user_api_key_auth import user_api_key_auth  # noqa: PLC0415
    from litellm.proxy.common_utils.http_parsing_utils import _read_request_body  # noqa: PLC0415

    async def the_user(request: Request) -> UserAPIKeyAuth:
        if not has_key(dict(request.headers.raw), str(proxy_server.master_key or "")):
            raise ProxyException("The key does not match this proxy's.", "auth_error", None, 401)
        body = await _read_request_body(request)
        try:
            await pre_db_read_auth_checks(request, body, request.url.path)
        except ValueError as error:
            raise ProxyException(str(error), "invalid_request_error", None, 400) from None
        return UserAPIKeyAuth(api_key="claude-proxy", user_role=LitellmUserRoles.PROXY_ADMIN)

    the_user.__annotations__ = {"request": Request}  # FastAPI would look for a quoted name in this module
    changes.replace("litellm.proxy.proxy_server", "app.dependency_overrides", lambda _: {user_api_key_auth: the_user})


def bodies_as_they_are(changes: Changes) -> None:
    """OpenAI's SDK goes through the whole body to rename fields and to encode files. A chat completion needs neither,
    because LiteLLM's body is already JSON. Saves 50 ms of a 500 kB request, more than half of its time."""
    from openai._utils import is_given  # noqa: PLC0415

    async def given_fields(body: dict[str, Any], _: object) -> dict[str, Any]:
        return {key: value for key, value in body.items() if is_given(value)}

    changes.replace("openai.resources.chat.completions.completions", "async_maybe_transform", lambda _: given_fields)


def chunks_by_pydantic(changes: Changes) -> None:
    """OpenAI's SDK builds each chunk's object in Python, so that it can accept chunks of other shapes. Most chunks have
    the documented shape, and pydantic builds their objects ten times faster. Saves 0.09 ms a chunk."""
    from openai.types.chat import ChatCompletionChunk  # noqa: PLC0415
    from pydantic import ValidationError  # noqa: PLC0415

    def new(old: Callable[..., Any]) -> Callable[..., Any]:
        def process(client: Any, *, data: object, cast_to: Any, response: Any) -> Any:
            if cast_to is ChatCompletionChunk:
                with suppress(ValidationError):
                    return ChatCompletionChunk.model_validate(data)
            return old(client, data=data, cast_to=cast_to, response=response)

        return process

    changes.replace("openai", "AsyncOpenAI._process_response_data", new)


def usage_from_the_end(changes: Changes) -> None:
    """At the end of a stream LiteLLM builds the whole answer again from its chunks, while the client waits. Only the
    usage of that answer is needed, and the last chunks have it. Saves 0.14 ms a chunk."""

    def new(old: Callable[..., Any]) -> Callable[..., Any]:
        def build(chunks: list[Any], *args: Any, **kwargs: Any) -> Any:
            ends = [chunk for chunk in chunks[-5:] if any(choice.finish_reason for choice in chunk.choices)]
            usages = [chunk for chunk in chunks[-5:] if getattr(chunk, "usage", None)]
            # Without a usage, LiteLLM counts the words of all chunks. For a long answer that would stop all sessions.
            few = [*ends, *usages] if usages else chunks[-5:] if len(chunks) > MANY_CHUNKS else chunks
            return old(few, *args, **kwargs)

        return build

    def without_thread(work: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return work(*args, **kwargs)

        return call

    changes.replace("litellm", "stream_chunk_builder", new)
    # The remaining work takes less time than a thread would.
    changes.replace(f"{_CORE}.streaming_handler", "asyncify", lambda _: without_thread)


def pings_by_a_timer(changes: Changes) -> None:
    """LiteLLM starts a task for each chunk, so that it can send a ping after 15 seconds without a chunk. Here one task
    reads the whole stream, and a timer sends the ping. Saves 0.08 ms a chunk."""
    changes.replace("litellm.proxy.common_utils.sse_keepalive", "_keepalive_ping_stream", lambda _: pinged)


async def pinged(*, stream: Chunks, ping_interval_seconds: float, ping_chunk: str) -> Chunks:
    """The chunks of `stream` as they come, a ping for each interval without a chunk, and the error of `stream`. At most
    CHUNKS_AHEAD are read before the client takes them, so that no answer fills the memory. If the client goes away, the
    stream is cancelled, and with it the request to Cortex."""
    loop, end = asyncio.get_running_loop(), object()
    queue: asyncio.Queue[Any] = asyncio.Queue()
    first_chunk_sent, room = asyncio.Event(), asyncio.Semaphore(CHUNKS_AHEAD)

    async def read() -> Exception | None:
        try:
            async with aclosing(stream):
                async for chunk in stream:
                    await room.acquire()
                    queue.put_nowait(chunk)
                    await first_chunk_sent.wait()  # so that the first chunk leaves before the rest is read
        except Exception as error:  # noqa: BLE001 - raised below, after the chunks before it
            return error
        finally:
            exchange = current_exchange.get()
            if exchange is not None and exchange.stream is not None:
                # If the client has left, `stream` was closed at a yield. LiteLLM then leaves the call to Cortex open.
                await exchange.stream.aclose()
        return None

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: queue.put_nowait(end))
    try:
        while True:
            timer = loop.call_later(ping_interval_seconds, queue.put_nowait, ping_chunk)
            try:
                chunk = await queue.get()
            finally:
                timer.cancel()
            if chunk is end:
                break
            yield chunk
            first_chunk_sent.set()
            if chunk is not ping_chunk:
                room.release()
        if error := await reader:
            raise error
    finally:
        reader.cancel()


STEPS: tuple[Callable[[Changes], None], ...] = (
    no_prices,
    no_records,
    no_company_hooks,
    one_user,
    bodies_as_they_are,
    chunks_by_pydantic,
    usage_from_the_end,
    pings_by_a_timer,
)


def _nothing(*_: Any, **__: Any) -> None:
    pass


async def _async_nothing(*_: Any, **__: Any) -> None:
    pass


def apply() -> Changes:
    """Apply every step that fits the installed LiteLLM."""
    changes = Changes()
    for step in STEPS:
        before = len(changes.originals)
        try:
            step(changes)
        except (ImportError, AttributeError) as error:
            changes.take_back(keep=before)
            say(f"lean_litellm.py does not fit this LiteLLM: it runs without {step.__name__} ({printable(error)})")
    return changes


def warmed(app: App, changes: Changes, *, key: str, config: LiveConfig) -> App:
    """LiteLLM's application, which answers a plain and a streamed test request before it reports that it has started.
    The requests are for a model on chat completions. Without such a model or a valid token no requests are sent."""

    async def outer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_on(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.complete" and (error := await _warm_up(app, key, config)):
                say(f"the test requests failed; undoing the steps of lean_litellm.py: {printable(error)}")
                changes.take_back()
                await _warm_up(app, key, config)
            await send(message)

        await app(scope, receive, send_on if scope["type"] == "lifespan" else send)

    return outer


async def _warm_up(app: App, key: str, config: LiveConfig) -> str:
    """Send the test requests. Returns the error, or "" if there is none."""
    try:
        rows = [row for row in config.document["model_list"] if is_cortex(row) and "*" not in row["model_name"]]
        names = [row["model_name"] for row in rows if row["litellm_params"]["model"].startswith("openai/")]
        if not (names and config.is_live()):
            return ""
        return await asyncio.wait_for(_ask(app, key, names[0]), WARM_UP_SECONDS)
    except Exception as error:  # noqa: BLE001 - LiteLLM raises many kinds, and none may keep it from starting
        return f"{type(error).__name__}: {error}"


async def _ask(app: App, key: str, model: str) -> str:
    import litellm  # noqa: PLC0415 - this file must not import LiteLLM before its patch

    in_place_of_cortex = httpx.AsyncClient(transport=httpx.MockTransport(_answer))
    to_litellm = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
    expected = ('"text":"ready"', '"name":"Bash"', '"stop_reason":"tool_use"', '"output_tokens":7')
    litellm.aclient_session = in_place_of_cortex
    try:
        async with in_place_of_cortex, to_litellm:
            for stream in (False, True):
                body = {**_REQUEST, "model": model, "stream": stream}
                answer = await to_litellm.post("/v1/messages", json=body, headers={"Authorization": f"Bearer {key}"})
                text = "".join(answer.text.split())
                if answer.status_code != 200 or not all(part in text for part in expected):
                    return f"{answer.status_code} {answer.text[:1000]}"
    finally:
        litellm.aclient_session = None
        # LiteLLM keeps a client for each token. Remove the one that has the HTTP client of this test.
        litellm.in_memory_llm_clients_cache.flush_cache()
    return ""


_TOOL_RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "done"}]}
_REQUEST = {
    "max_tokens": 100,
    "system": [{"type": "text", "text": "You are warm.", "cache_control": {"type": "ephemeral"}}],
    "tools": [{"name": "Bash", "description": "Run", "input_schema": {"type": "object", "properties": {}}}],
    "messages": [
        {"role": "user", "content": "Are you?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}]},
        {"role": "user", "content": [_TOOL_RESULT]},
    ],
}


def _answer(request: httpx.Request) -> httpx.Response:
    """The answer in place of Cortex's, in OpenAI's format: a text and a tool call, 7 tokens."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "Bash", "arguments": "{}"}}
    message = {"role": "assistant", "content": "ready"}
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
    head = {"id": "warm-up", "created": 0, "model": "warm-up"}
    if not json.loads(request.content).get("stream"):
        choice = {"index": 0, "message": {**message, "tool_calls": [call]}, "finish_reason": "tool_calls"}
        return httpx.Response(200, json={**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": usage},
    ]
    lines = [json.dumps({**head, "object": "chat.completion.chunk", **event}) for event in events]
    text = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=text)
