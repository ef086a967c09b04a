"""LiteLLM without the work that nobody here reads, and warm before anybody waits for it.

The problem: LiteLLM is a gateway with which a company bills its teams. Most of the time that it adds to a request goes
into prices, records for a database and limits that are not set here, and its first request loads modules for a second.
The mechanism: each step below replaces one name in LiteLLM or in OpenAI's SDK, and says why it may; what LiteLLM does
to a request and to its answer stays its own work. What a step saves is what `make bench ARGS=--steps` shows: a request
without it costs so much more (LiteLLM 1.106.2).

Nothing depends on a step. Where a release has moved the name, the step is left out. Before the port opens, two requests
go all the way through and are answered in this process (`warmed`): no call to Cortex, nothing to pay. When one of them
comes back otherwise than it should, every step is taken back.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from bundle.errors import say
from bundle.proxy.front_door import has_key, printable
from bundle.proxy.live_config import LiveConfig
from bundle.render import is_cortex

App = Callable[[Any, Any, Any], Awaitable[None]]

WARM_UP_SECONDS = 30  # it takes one; a start may not hang on it


# ---------------------------------------------------------------------------------------------------------------- steps


class Changes:
    """Names that were replaced, and what they stood for."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def replace(self, module: str, name: str, new: Callable[[Any], Any]) -> None:
        """Put `new(old)` in the place of `module`'s `name` (or `Class.name`); raises where there is none."""
        owner: Any = importlib.import_module(module)
        *path, name = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        old = getattr(owner, name)
        setattr(owner, name, new(old))
        self._before.append((owner, name, old))

    def __len__(self) -> int:
        return len(self._before)

    def take_back(self, *, keep: int = 0) -> None:
        """Undo all but the first `keep`."""
        while len(self._before) > keep:
            setattr(*self._before.pop())


@contextmanager
def importing(paths: Container[str]) -> Iterator[None]:
    """For the import of LiteLLM's proxy: no garbage collection, and of its 670 routes only those under `paths`.

    What is imported stays, so a quarter of the import's time goes into collecting nothing. A tenth more goes into what
    FastAPI prepares for each route: models of its parameters and of its answers.
    """

    def only_wanted(add: Callable[..., None]) -> Callable[..., None]:
        def add_wanted(router: Any, path: str, *more: Any, **named: Any) -> None:
            if path in paths:
                add(router, path, *more, **named)

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
    """Cortex is billed by Snowflake (`usage.py` shows it), and LiteLLM's price list does not have its models: it looks
    for the price three times, and each time works out a warning about not finding it. Saves 4 ms a request."""
    changes.replace(
        "litellm.litellm_core_utils.litellm_logging", "Logging.response_cost_calculator", lambda _: _nothing
    )


def no_records(changes: Changes) -> None:
    """Successes are recorded for callbacks that ask for them; there are none. (Failures are left alone: they are where
    an error's words come from.) Saves 0.5 ms a request."""
    changes.replace("litellm.utils", "_dispatch_success_logging", lambda _: _nothing)
    changes.replace(
        "litellm.litellm_core_utils.litellm_logging", "Logging.dispatch_success_handlers", lambda _: _async_nothing
    )
    changes.replace("litellm.router", "Router.increment_deployment_usage_for_response", lambda _: _async_nothing)


def no_company_hooks(changes: Changes) -> None:
    """Limits per key and team, skills, ids of the Responses API: with them on, each chunk of a stream passes through
    them all, and the whole stream is put together once more at its end. Saves 1.5 ms of a stream."""
    changes.replace("litellm.proxy.utils", "PROXY_HOOKS", lambda _: {})


def one_user(changes: Changes) -> None:
    """There is one key. LiteLLM would look for its owner's team, project, budget and customers. The key itself is still
    checked here, apart from the front door, and so is that a body names no other server. Saves 1.3 ms a request."""
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

    the_user.__annotations__ = {"request": Request}  # FastAPI looks for the names in this module
    changes.replace("litellm.proxy.proxy_server", "app.dependency_overrides", lambda _: {user_api_key_auth: the_user})


def bodies_as_they_are(changes: Changes) -> None:
    """OpenAI's SDK walks through the whole body to rename fields and to encode files. A chat completion has neither:
    LiteLLM's body is JSON already. Saves 50 ms of a 500 kB request, more than half of it."""
    changes.replace("openai.resources.chat.completions.completions", "async_maybe_transform", lambda _: _given)


async def _given(body: dict[str, Any], _: object) -> dict[str, Any]:
    from openai._utils import is_given  # noqa: PLC0415

    return {key: value for key, value in body.items() if is_given(value)}


def chunks_by_pydantic(changes: Changes) -> None:
    """OpenAI's SDK builds each chunk's object in Python, so that a chunk of another shape passes too. Most have the
    documented shape, and pydantic itself builds those ten times faster. Saves 0.09 ms a chunk."""

    def new(old: Callable[..., Any]) -> Callable[..., Any]:
        from openai.types.chat import ChatCompletionChunk  # noqa: PLC0415
        from pydantic import ValidationError  # noqa: PLC0415

        def process(client: Any, *, data: object, cast_to: Any, response: Any) -> Any:
            if cast_to is ChatCompletionChunk:
                try:
                    return ChatCompletionChunk.model_validate(data)
                except ValidationError:
                    pass
            return old(client, data=data, cast_to=cast_to, response=response)

        return process

    changes.replace("openai", "AsyncOpenAI._process_response_data", new)


def usage_from_the_end(changes: Changes) -> None:
    """At the end of a stream LiteLLM builds the whole answer again from its chunks, and the client waits for it. All
    that is used of it is the usage, which the last chunks say. Saves 0.14 ms a chunk."""

    def new(old: Callable[..., Any]) -> Callable[..., Any]:
        def build(chunks: list[Any], *more: Any, **named: Any) -> Any:
            ends = [chunk for chunk in chunks[-5:] if any(choice.finish_reason for choice in chunk.choices)]
            usages = [chunk for chunk in chunks[-5:] if getattr(chunk, "usage", None)]
            return old([*ends, *usages] if usages else chunks, *more, **named)

        return build

    changes.replace("litellm", "stream_chunk_builder", new)
    # What is left to do is not worth a thread.
    changes.replace("litellm.litellm_core_utils.streaming_handler", "asyncify", lambda _: _at_once)


def pings_by_a_timer(changes: Changes) -> None:
    """LiteLLM makes a task of each chunk, so that it can send a ping when none has come for 15 seconds. Here one task
    reads the whole stream, and a timer sends the ping. Saves 0.08 ms a chunk."""
    changes.replace("litellm.proxy.common_utils.sse_keepalive", "_keepalive_ping_stream", lambda _: pinged)


async def pinged(
    *, stream: AsyncGenerator[Any, None], ping_interval_seconds: float, ping_chunk: str
) -> AsyncGenerator[Any, None]:
    """The chunks of `stream` and its error as they come, and a ping for each interval without one.

    It reads on while the client is slow: an answer is bounded. Closed, it cancels the stream, and with it the call.
    """
    loop, end = asyncio.get_running_loop(), object()
    came: asyncio.Queue[Any] = asyncio.Queue()
    first_has_left = asyncio.Event()

    async def read() -> Exception | None:
        try:
            async for chunk in stream:
                came.put_nowait(chunk)
                await first_has_left.wait()
        except Exception as error:  # noqa: BLE001 - raised below, after the chunks before it
            return error
        return None

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: came.put_nowait(end))
    try:
        while True:
            timer = loop.call_later(ping_interval_seconds, came.put_nowait, ping_chunk)
            try:
                chunk = await came.get()
            finally:
                timer.cancel()
            if chunk is end:
                break
            yield chunk
            first_has_left.set()
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


def _at_once(work: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def do(*more: Any, **named: Any) -> Any:
        return work(*more, **named)

    return do


def apply() -> Changes:
    """Take every step that fits the installed LiteLLM."""
    changes = Changes()
    for step in STEPS:
        before = len(changes)
        try:
            step(changes)
        except (ImportError, AttributeError) as error:
            changes.take_back(keep=before)
            say(f"this LiteLLM is not what lean_litellm.py was written for: without {step.__name__} ({error})")
    return changes


# -------------------------------------------------------------------------------------------------------------- warm-up


def warmed(app: App, changes: Changes, *, key: str, config: LiveConfig) -> App:
    """LiteLLM's application, which has answered a request of each kind before it says that it has started.

    Asked for is a row that goes to Cortex's chat completions. There is no warm-up without one, or without a live token.
    """

    async def outer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_on(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.complete" and (trouble := await _warm_up(app, key, config)):
                say(f"the warm-up failed; taking the steps of lean_litellm.py back: {printable(trouble)}")
                changes.take_back()
                await _warm_up(app, key, config)
            await send(message)

        await app(scope, receive, send_on if scope["type"] == "lifespan" else send)

    return outer


async def _warm_up(app: App, key: str, config: LiveConfig) -> str:
    """Let `app` answer a request of each kind. What is wrong with it, or ""."""
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

    # LiteLLM keeps a client per token, with the HTTP client that it was made with: the one made here ends here.
    forget_clients = litellm.in_memory_llm_clients_cache.flush_cache
    in_place_of_cortex = httpx.AsyncClient(transport=httpx.MockTransport(_answer))
    door = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
    litellm.aclient_session = in_place_of_cortex
    try:
        async with in_place_of_cortex, door:
            for stream in (False, True):
                body = {**_QUESTION, "model": model, "stream": stream}
                came = await door.post("/v1/messages", json=body, headers={"Authorization": f"Bearer {key}"})
                said = "".join(came.text.split())
                wanted = ('"text":"ready"', '"name":"Bash"', '"stop_reason":"tool_use"', '"output_tokens":7')
                if came.status_code != 200 or not all(part in said for part in wanted):
                    return f"{came.status_code} {came.text[:1000]}"
    finally:
        litellm.aclient_session = None
        forget_clients()
    return ""


_TOOL = {"name": "Bash", "description": "Run a command", "input_schema": {"type": "object", "properties": {}}}
_CALL = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}
_RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "done"}]}
_QUESTION = {
    "max_tokens": 100,
    "system": [{"type": "text", "text": "You are warm.", "cache_control": {"type": "ephemeral"}}],
    "tools": [_TOOL],
    "messages": [
        {"role": "user", "content": "Are you?"},
        {"role": "assistant", "content": [_CALL]},
        {"role": "user", "content": [_RESULT]},
    ],
}


def _answer(request: httpx.Request) -> httpx.Response:
    """A text and a call, in 7 tokens, as OpenAI says it."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "Bash", "arguments": "{}"}}
    said = {"role": "assistant", "content": "ready"}
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
    head: dict[str, Any] = {"id": "warm-up", "created": 0, "model": "warm-up", "object": "chat.completion"}
    if not json.loads(request.content).get("stream"):
        choice = {"index": 0, "message": {**said, "tool_calls": [call]}, "finish_reason": "tool_calls"}
        return httpx.Response(200, json={**head, "choices": [choice], "usage": usage})
    parts: list[tuple[dict[str, Any], str | None]] = [(said, None), ({"tool_calls": [call]}, None), ({}, "tool_calls")]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in parts]
    events = [
        {**chunk, "object": "chat.completion.chunk"} for chunk in [*chunks, {**head, "choices": [], "usage": usage}]
    ]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=text + "data: [DONE]\n\n")
