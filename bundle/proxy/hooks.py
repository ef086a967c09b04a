"""The callback with which LiteLLM can talk to Cortex: it adds the current token and adapts requests and answers.

LiteLLM reads its credential once, at start, and cannot reload it. Restarting LiteLLM once an hour would cut answers
and refuse requests. LiteLLM calls this callback for every request, after it has chosen a deployment and before it calls
the deployment. The callback sets the current token and passes the request to `cortex/requests.py` (models with
the prefix `openai/`: chat completions) or to `cortex/messages.py` (`snowflake/`: the Messages API). A response hook on
each route's HTTP client reads Cortex's answers before LiteLLM does, repairs them, and remembers what Cortex refused.

Security invariants
- The token goes from `litellm_config.yaml` (or from `LiveConfig`, which may have a newer one in memory) into the
  request's credential, and nowhere else: no log line, no error text, no file.
- Only rows that bundle/render.py has marked `cortex` get the token.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
from litellm.llms.openai.openai import OpenAIChatCompletion
from litellm.types.utils import CallTypes, all_litellm_params

from bundle.cortex.answers import (
    ChatAnswer,
    EmptyAnswerError,
    EventLines,
    IncompleteAnswerError,
    MessagesAnswer,
    RequestFacts,
    parsed,
)
from bundle.cortex.documents import for_translation
from bundle.cortex.errors import MAX_OUTPUT_TOKENS, as_pat, refuses_model, words_of
from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits, family_of
from bundle.cortex.refusals import Refusals, without
from bundle.cortex.requests import chat_request
from bundle.credential import PAT, TOKEN_TYPE
from bundle.errors import ConfigError, SayOnce, printable
from bundle.network import redirected
from bundle.proxy.live_config import Exchange, LiveConfig, current_exchange, live_config
from bundle.proxy.model_choice import bare, limits
from bundle.proxy.tool_schemas import ToolsError, repaired_tools
from bundle.proxy.upstream import (
    MAX_ERROR_BYTES,
    MAX_STREAM_BYTES,
    bounded,
    drain,
    noting_failures,
    read_answer,
    read_body,
    unpacked,
)
from bundle.render import is_cortex

# LiteLLM passes its own arguments and the fields of the body in one dict. Its own arguments must not be sent to Cortex.
_LITELLM_ARGUMENTS = frozenset(
    {*all_litellm_params, "extra_headers", "extra_body", "timeout", "base_url", "deployment_id", "drop_params"}
)
# Dropped without a log line, because every request of Claude Code has them: LiteLLM makes the first two from
# `metadata.user_id`. The third is the template's list of fields to drop, which is needed only without this callback;
# here it would drop the effort that GPT models use.
_DROPPED = frozenset({"user", "prompt_cache_key", "additional_drop_params"})
# A tuple: LiteLLM's arguments with an adapted body, log lines, and the removed fields (Cortex has refused them before).
Adapted = tuple[dict[str, Any], list[str], list[str]]


def limits_of(kwargs: dict[str, Any], refusals: Refusals) -> Limits:
    """The limits of the model that answers. If an error of Cortex has named a lower limit of the output, that one is
    used."""
    info, model = kwargs["model_info"], bare(kwargs["model"])
    known = [limit for limit in (limits(info, model)[1], refusals.limits.get(model)) if limit]
    return Limits(max_output_tokens=min(known, default=None))


def to_chat(kwargs: dict[str, Any], refusals: Refusals) -> Adapted:
    """Adapt LiteLLM's arguments for one chat completion."""
    model = bare(kwargs["model"])
    kwargs = {key: value for key, value in kwargs.items() if key not in _DROPPED}
    out, notes, left_out = chat_request(
        kwargs,
        family=family_of(model),
        limits=limits_of(kwargs, refusals),
        refused=refusals.chat.get(model, ()),
        keep=_LITELLM_ARGUMENTS,
    )
    if "reasoning" in out:  # OpenAI's API has no such parameter, so LiteLLM accepts it only in `extra_body`
        out["extra_body"] = {**(out.get("extra_body") or {}), "reasoning": out.pop("reasoning")}
    return out, notes, left_out


def to_messages(kwargs: dict[str, Any], refusals: Refusals, client: AsyncHTTPHandler) -> Adapted:
    """Adapt LiteLLM's arguments for one request to the Messages API. LiteLLM's `snowflake/` provider would convert the
    request to OpenAI's format and the answer back to Anthropic's. With `supported_endpoints` LiteLLM forwards request
    and answer unchanged, and sends the request to `{api_base}/v1/messages`."""
    kwargs = {key: value for key, value in kwargs.items() if key not in _DROPPED}
    client_headers = (kwargs.get("proxy_server_request") or {}).get("headers") or {}
    out, betas, notes = messages_request(
        kwargs,
        limits=limits_of(kwargs, refusals),
        betas=[beta.strip() for beta in client_headers.get("anthropic-beta", "").split(",") if beta.strip()],
        refusals=refusals,
        # On this route `metadata` comes from the client and identifies the user's device, so it must not be kept.
        keep=_LITELLM_ARGUMENTS - {"metadata"},
    )
    out["api_base"] = f"{out['api_base'].rstrip('/')}/cortex"
    out["extra_headers"] = {**(out.get("extra_headers") or {})}
    if betas:
        out["extra_headers"]["anthropic-beta"] = ",".join(betas)
    out["model_info"] = {**out["model_info"], "supported_endpoints": ["/v1/messages"]}
    out["client"] = client
    refused = refusals.fields.get(bare(kwargs["model"]), ())
    return out, notes, sorted(".".join(path) for path in refused if without(kwargs, path) != kwargs)


class MessagesClient(AsyncHTTPHandler):
    """LiteLLM's client for the Messages API. LiteLLM makes a second HTTP client when a connection fails."""

    def create_client(self, *args: Any, **kwargs: Any) -> httpx.AsyncClient:
        return bounded(super().create_client(*args, **kwargs))


class CortexHooks(CustomLogger):
    """The callback that `litellm_settings.callbacks` names."""

    def __init__(self, config: LiveConfig) -> None:
        super().__init__()
        self.config = config
        self.refusals = Refusals()
        self._log_once = SayOnce()
        self._client: AsyncHTTPHandler | None = None
        hooks: dict[str, list[Callable[..., Any]]] = {"request": [self.on_request], "response": [self.on_answer]}
        self._event_hooks = hooks

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: CallTypes | None
    ) -> dict[str, Any] | None:
        """Set the current token, and rewrite the body so that Cortex accepts it. LiteLLM calls this twice for a chat
        completion: with Anthropic's body, and then with OpenAI's body. In the first call the tools are repaired, and
        what LiteLLM's translation would lose becomes text; the second body is rewritten for Cortex. Only in the second
        call another model may be set: before that, LiteLLM looks up what is set for the row's model."""
        if not is_cortex(kwargs):
            return None
        exchange = current_exchange.get()
        if exchange is None:  # LiteLLM was started by its own command, without `FrontDoor`
            exchange = Exchange()
            current_exchange.set(exchange)
        try:
            exchange.token = self.config.token()
            exchange.token_type = self.config.token_type(exchange.token)
        except ConfigError as error:
            exchange.trouble = str(error)
            raise
        exchange.row = kwargs["model_info"]
        exchange.model = self.config.refused.answering(kwargs["model"], exchange.row)
        if call_type == CallTypes.anthropic_messages and kwargs.get("tools"):
            kwargs = {**kwargs, "tools": self._repaired_tools(kwargs["tools"], exchange.model)}
        out, notes = {**kwargs, "api_key": exchange.token}, list[str]()
        with_model = {**out, "model": kwargs["model"].removesuffix(bare(kwargs["model"])) + exchange.model}
        if str(kwargs["model"]).startswith("snowflake/"):
            if family_of(kwargs["model"]) != "claude":
                raise litellm.BadRequestError(
                    f"{kwargs['model']}: Cortex's Messages API has Claude models only. For another, "
                    f"litellm_config.template.yaml must say {kwargs['model'].replace('snowflake/', 'openai/', 1)}",
                    model=kwargs["model"],
                    llm_provider="snowflake",
                )
            out, notes, exchange.left_out = to_messages(with_model, self.refusals, self._messages_client())
            exchange.is_chat = False
            exchange.facts, exchange.betas = RequestFacts.of(out), out["extra_headers"].get("anthropic-beta", "")
        elif call_type == CallTypes.acompletion:
            exchange.refused = frozenset(self.refusals.chat.get(exchange.model, ()))
            if exchange.effort and family_of(exchange.model) == "openai":
                # LiteLLM drops it without `thinking`. GPT thinks in any case; Claude would begin to.
                with_model["output_config"] = {"effort": exchange.effort}
            out, notes, exchange.left_out = to_chat(with_model, self.refusals)
            exchange.facts, exchange.is_chat = RequestFacts.of(out), True
            exchange.prompt = out if family_of(exchange.model) == "claude" else None
            self._listen_to_chat()
        elif call_type == CallTypes.anthropic_messages:
            out = {key: value for key, value in out.items() if key != "cache_control"}  # (it is on the last block now)
            out |= for_translation(kwargs, notes.append)
            exchange.effort = str((kwargs.get("output_config") or {}).get("effort") or "")
        if (legacy := exchange.row.get("legacy")) and exchange.model == bare(kwargs["model"]):
            self._log_once(f"WARNING: {printable(legacy)}")
        for note in notes:
            self._note(note)
        return out

    def _note(self, note: str) -> None:
        self._log_once(f"adapted for Cortex: {printable(note, 100)}")

    def _repaired_tools(self, tools: list[Any], model: str) -> list[Any]:
        try:
            return repaired_tools(tools, family_of(model), self._note)
        except ToolsError as error:
            raise litellm.BadRequestError(str(error), model=model, llm_provider="snowflake") from None

    # Each route has one HTTP client for all tokens, so that connections stay open. The clients are created on the first
    # request, because there is no event loop earlier.

    def _listen_to_chat(self) -> None:
        if litellm.aclient_session is None:
            client = bounded(OpenAIChatCompletion.get_async_http_client())
            client.event_hooks = self._event_hooks
            litellm.aclient_session = client

    def _messages_client(self) -> AsyncHTTPHandler:
        if self._client is None:
            self._client = MessagesClient(event_hooks=self._event_hooks)
        return self._client

    async def on_request(self, request: httpx.Request) -> None:
        """Clear the error of an earlier attempt, and send only the betas that `to_messages` has chosen: LiteLLM adds
        betas for some fields, and Cortex refuses betas that it does not know. Say of which type the token is: LiteLLM
        knows only the type that the row had when LiteLLM read it."""
        if (exchange := current_exchange.get()) is None:
            return
        exchange.answer, exchange.failure, exchange.reader = None, "", None
        exchange.sent = exchange.facts is not None  # (else a row of the user's own, with another server)
        request.headers.pop("anthropic-beta", None)
        if exchange.betas:
            request.headers["anthropic-beta"] = exchange.betas
        if exchange.token and request.headers.get("authorization") == f"Bearer {exchange.token}":
            request.headers[TOKEN_TYPE] = exchange.token_type

    async def on_answer(self, response: httpx.Response) -> None:
        """Repair an answer of Cortex in place before LiteLLM reads it. Answers of other URLs are not changed."""
        exchange, path = current_exchange.get(), response.request.url.path
        if exchange is None or exchange.facts is None:
            return
        if path.endswith("/cortex/v1/messages"):
            reader: ChatAnswer | MessagesAnswer = MessagesAnswer()
        elif path.endswith("/cortex/v1/chat/completions"):
            reader = ChatAnswer(exchange.facts)
        else:
            return
        with noting_failures(exchange):
            if response.is_success:
                exchange.reader = reader
                self.config.accept(exchange.token)
                self.config.refused.accept(exchange.model)
                await repair(response, exchange, reader)
                return
            text = (await read_body(response, MAX_ERROR_BYTES)).decode("utf-8", "replace")
        status = response.status_code
        if status < 400:  # a redirect
            found = redirected(str(response.request.url), status, response.headers.get("location", ""))
            exchange.failure, exchange.final = ".\n".join(found), True
            response.status_code = 502
            return
        # LiteLLM would repeat a request after a 422, so turn the status into 400. (If Cortex refuses thinking that
        # another account has signed, LiteLLM repeats a Messages request without that thinking. This is useful.)
        status = 400 if status == 422 else 502 if status > 599 else status  # (LiteLLM answers nothing to a 999)
        if exchange.token_type == PAT:
            text = as_pat(status, text)
        exchange.answer = (status, text)
        if status == 401:
            date = response.headers.get("date", "")
            exchange.refused_again = self.config.refuse(exchange.token, date, exchange.token_type)
        elif refuses_model(status, text):
            self._learn_model(status, words_of(text)[1], exchange)
        elif status == 400:
            self._learn(response.request, text, exchange)
        response.status_code = status

    def _learn_model(self, status: int, message: str, exchange: Exchange) -> None:
        """Remember that Cortex refuses this model. If another one answers from now on, Claude Code tries again."""
        model, rows = exchange.model, self.config.rows
        if not (successor := self.config.refused.refuse(model, exchange.row, rows, (status, message))):
            return
        shown = f"{successor} answers from now on"
        self._log_once(f"Cortex refused {model}: {shown}. Cortex's message: {printable(message, 200)}")
        exchange.answer = (503, json.dumps({"message": f"{message}; {shown}"}))

    def _learn(self, request: httpx.Request, text: str, exchange: Exchange) -> None:
        message, sent = words_of(text)[1], json.loads(request.content)
        if request.url.path.endswith("/messages"):
            learned = self.refusals.learn_messages(message, sent, request.headers.get("anthropic-beta", "").split(","))
        else:
            learned = self.refusals.learn_chat(message, sent, exchange.refused)
        shown = printable(message, 200)
        for field in learned:
            self._log_once(f"Cortex refused {printable(field, 200)}: left out from now on. Cortex's message: {shown}")
        if learned:
            # Claude Code repeats a request after a 503. The repeated request will not have the field.
            exchange.answer = (503, json.dumps({"message": f"refused {', '.join(learned)}; left out from now on."}))


async def repair(response: httpx.Response, exchange: Exchange, reader: ChatAnswer | MessagesAnswer) -> None:
    """Repair one answer of Cortex in place. An answer that is incomplete becomes a 502, and so does a stream that
    nobody asked for, because LiteLLM would take it for text."""
    facts = exchange.facts or RequestFacts()
    if facts.stream and response.headers.get("content-type", "").startswith("text/event-stream"):
        response.stream = exchange.stream = RepairedStream(response, exchange, reader, most_events(facts))
        response.headers.pop("content-encoding", None)
        return
    raw = b""
    try:
        raw = await read_answer(response)
        exchange.first_at = time.monotonic()
        response._content = json.dumps(reader.answer(parsed(raw))).encode()
        return
    except IncompleteAnswerError as error:
        record_incomplete(response.request, exchange, error)
    except ValueError:
        exchange.answer = (502, raw[:MAX_ERROR_BYTES].decode("utf-8", "replace"))
    response.status_code = 502


def most_events(facts: RequestFacts) -> int:
    """How many events a stream may have: LiteLLM keeps 5 kB of each. A token seldom takes more than one."""
    return 2 * min(facts.limit or MAX_OUTPUT_TOKENS, MAX_OUTPUT_TOKENS) + 1_000


# (digest of a conversation, monotonic time of its empty answer). Claude Code may retry after one empty answer. After
# two, it is told not to.
_EMPTY_ANSWERS: deque[tuple[str, float]] = deque(maxlen=100)
EMPTY_SECONDS = 300


def record_incomplete(request: httpx.Request, exchange: Exchange, error: IncompleteAnswerError) -> None:
    """Store the error that the front door will send for an incomplete answer."""
    exchange.failure = str(error)
    if error.body:  # an error of Cortex
        exchange.answer = (502, error.body[:MAX_ERROR_BYTES])
    if isinstance(error, EmptyAnswerError):
        messages = json.dumps(json.loads(request.content)["messages"], sort_keys=True)
        digest = hashlib.sha256(messages.encode()).hexdigest()
        now = time.monotonic()
        exchange.final = any(digest == known and now - then < EMPTY_SECONDS for known, then in _EMPTY_ANSWERS)
        _EMPTY_ANSWERS.append((digest, now))
        exchange.answer = (502, json.dumps({"message": f"{error}{', twice' if exchange.final else ''}."}))


class RepairedStream(httpx.AsyncByteStream):
    """The events of Cortex's stream, repaired. A stream that ends too early is an error, never a short answer."""

    def __init__(
        self, response: httpx.Response, exchange: Exchange, reader: ChatAnswer | MessagesAnswer, most: int
    ) -> None:
        # Wrap the stream in a Response that decompresses it, because a company's proxy may compress answers.
        self._source = httpx.Response(200, headers=response.headers, stream=response.stream)
        self._request, self._exchange, self._reader, self._most = response.request, exchange, reader, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        lines, pieces, size, count = EventLines(), unpacked(self._source), 0, 0
        try:
            with noting_failures(self._exchange):
                async for piece in pieces:
                    size += len(piece)
                    self._exchange.first_at = self._exchange.first_at or time.monotonic()
                    if size > MAX_STREAM_BYTES:
                        raise IncompleteAnswerError(f"more than {MAX_STREAM_BYTES // 2**20} MiB")
                    events: list[bytes] = []
                    try:
                        for data in lines.feed(piece):
                            events += self._reader.feed(data)
                    finally:  # send the good events that came before a broken event in the same piece
                        if events:
                            yield b"".join(events)
                    count += len(events)
                    if count > self._most:
                        raise IncompleteAnswerError(f"more than {self._most} events")
                    if self._reader.is_over:
                        await drain(pieces)
                        return
            for data in lines.end():
                for event in self._reader.feed(data):
                    yield event
            for event in self._reader.end():
                yield event
        except IncompleteAnswerError as error:
            record_incomplete(self._request, self._exchange, error)
            raise httpx.RemoteProtocolError(f"the answer of Snowflake Cortex is not whole: {error}") from None
        finally:
            await self.aclose()  # LiteLLM does not close a stream that raises

    async def aclose(self) -> None:
        await self._source.aclose()


hooks = CortexHooks(live_config)
