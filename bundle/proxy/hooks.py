"""What LiteLLM is given at run time so that it can talk to Cortex: the live token, and what Cortex takes.

LiteLLM reads its credential once, at start, and has no way to reload it; restarting it once an hour cuts answers and
refuses requests. This callback runs after LiteLLM has chosen a deployment and before it calls it, on every request:
it puts in the token that is live now, and hands the request to `cortex_dialect` (a row with `openai/`, chat
completions) or to `cortex_messages` (a row with `snowflake/`, the Messages API). A response hook on the HTTP client of
each route sees Cortex's answers before anybody else has read them, and learns from what they refuse.

Security invariants
- The token goes from `litellm_config.yaml` (or a signature made here, in memory) into the request's credential, and
  nowhere else: no log line, no error text, no file.
- Only deployments that the renderer marked `cortex` get it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
from litellm.llms.openai.openai import OpenAIChatCompletion
from litellm.types.utils import CallTypes, all_litellm_params

from bundle.cortex.answers import WholeAnswer
from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits, family_of
from bundle.cortex.requests import chat_request

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # LiteLLM loads this file by its path

from bundle.cortex.answers import (
    EmptyAnswerError,
    EventLines,
    IncompleteAnswerError,
    RequestFacts,
    StreamFix,
    fix_answer,
)
from bundle.cortex.errors import words_of
from bundle.cortex.refusals import Refusals, without
from bundle.errors import ConfigError, say
from bundle.proxy.front_door import printable
from bundle.proxy.live_config import Exchange, LiveConfig, current_exchange, live_config
from bundle.render import is_cortex

# ----------------------------------------------------------------------------------------------------------- requests

# In the hook LiteLLM's own arguments stand beside the body's; all others would leak into the body.
_NOT_FOR_THE_WIRE = frozenset(
    {*all_litellm_params, "extra_headers", "extra_body", "timeout", "base_url", "deployment_id", "drop_params"}
)
# In every request of Claude Code, so that dropping them is no news: the first two LiteLLM makes of `metadata.user_id`.
# The third is the row's list for a LiteLLM without this hook; here it would drop the effort that a GPT honours.
_DROPPED = frozenset({"user", "prompt_cache_key", "additional_drop_params"})


def limits_of(info: dict[str, Any], learned: int | None = None) -> Limits:
    """A row's `model_info` as the dialect takes it; `learned` is a limit of the output that Cortex itself has named."""
    known = [limit for limit in (info.get("max_output_tokens"), learned) if limit]
    return Limits(max_output_tokens=min(known, default=None), cache_tool_results=bool(info.get("cache_tool_results")))


def bare(model: str) -> str:
    """A model's name as Cortex knows it, without the provider prefix of its row."""
    return model.partition("/")[2] or model


def to_chat(kwargs: dict[str, Any], refusals: Refusals) -> tuple[dict[str, Any], list[str], list[str]]:
    """LiteLLM's arguments for one chat completion, with the body in Cortex's dialect, what was changed, and what was
    left out because Cortex has refused it before."""
    model = bare(kwargs["model"])
    kwargs = {key: value for key, value in kwargs.items() if key not in _DROPPED}
    out, notes, left_out = chat_request(
        kwargs,
        family=family_of(model),
        limits=limits_of(kwargs["model_info"], refusals.limits.get(model)),
        refused=refusals.chat.get(model, ()),
        keep=_NOT_FOR_THE_WIRE,
    )
    if "reasoning" in out:  # not a parameter of OpenAI's API: LiteLLM takes it as an extra only
        out["extra_body"] = {**(out.get("extra_body") or {}), "reasoning": out.pop("reasoning")}
    return out, notes, left_out


def to_messages(
    kwargs: dict[str, Any], refusals: Refusals, client: AsyncHTTPHandler
) -> tuple[dict[str, Any], list[str], list[str]]:
    """LiteLLM's arguments for one request to the Messages API, with a body that Cortex takes, what was changed, and
    what was left out because Cortex has refused it before.

    Left alone, LiteLLM's `snowflake/` provider turns Anthropic's request into OpenAI's and that into Anthropic's again.
    `supported_endpoints` makes it pass the body on instead, to `{api_base}/v1/messages`, and the answer back.
    """
    kwargs = {key: value for key, value in kwargs.items() if key not in _DROPPED}
    out, betas, notes = messages_request(
        kwargs,
        limits=limits_of(kwargs["model_info"], refusals.limits.get(bare(kwargs["model"]))),
        betas=_betas_of(kwargs),
        refusals=refusals,
        # Here it is the client's own field (LiteLLM's is `litellm_metadata`), and names the user's device.
        keep=_NOT_FOR_THE_WIRE - {"metadata"},
    )
    headers = {**(out.get("extra_headers") or {}), **({"anthropic-beta": ",".join(betas)} if betas else {})}
    return (
        {
            **out,
            "api_base": f"{out['api_base'].rstrip('/')}/cortex",
            "extra_headers": headers,
            "model_info": {**out["model_info"], "supported_endpoints": ["/v1/messages"]},
            "client": client,
        },
        notes,
        sorted(
            ".".join(path) for path in refusals.fields.get(bare(kwargs["model"]), ()) if without(kwargs, path) != kwargs
        ),
    )


def _betas_of(kwargs: dict[str, Any]) -> list[str]:
    headers = (kwargs.get("proxy_server_request") or {}).get("headers") or {}
    return [beta.strip() for beta in headers.get("anthropic-beta", "").split(",") if beta.strip()]


class CortexHooks(CustomLogger):
    """The callback that `litellm_settings.callbacks` names."""

    def __init__(self, config: LiveConfig) -> None:
        super().__init__()
        self.config = config
        self.refusals = Refusals()
        self._said: set[str] = set()
        self._client: AsyncHTTPHandler | None = None

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: CallTypes | None
    ) -> dict[str, Any] | None:
        """Put in the live token, and bring the body inside what Cortex takes.

        A chat completion passes here twice: as Anthropic's body, and as OpenAI's, which is the one to translate.
        """
        if not is_cortex(kwargs):
            return None
        exchange = current_exchange.get()
        if exchange is None:  # LiteLLM was started without our front door
            exchange = Exchange()
            current_exchange.set(exchange)
        try:
            exchange.token = self.config.token()
        except ConfigError as error:
            exchange.trouble = str(error)
            raise
        out = {**kwargs, "api_key": exchange.token}
        if str(kwargs["model"]).startswith("snowflake/"):
            if family_of(kwargs["model"]) != "claude":
                raise litellm.BadRequestError(
                    f"{kwargs['model']}: Cortex's Messages API has Claude models only. For another, "
                    f"litellm_config.template.yaml must say {kwargs['model'].replace('snowflake/', 'openai/', 1)}",
                    model=kwargs["model"],
                    llm_provider="snowflake",
                )
            out, notes, exchange.left_out = to_messages(out, self.refusals, self._messages_client())
            exchange.facts, exchange.betas = RequestFacts.of(out), out["extra_headers"].get("anthropic-beta", "")
        elif call_type == CallTypes.acompletion:
            exchange.refused = frozenset(self.refusals.chat.get(bare(out["model"]), ()))
            out, notes, exchange.left_out = to_chat(out, self.refusals)
            exchange.facts = RequestFacts.of(out)
            self._listen_to_chat()
        else:
            notes = []
        for note in notes:
            self._say_once(f"adapted for Cortex: {note}")
        return out

    def _say_once(self, line: str) -> None:
        # A session repeats its oddities with every turn.
        if line not in self._said:
            self._said.add(line)
            say(line)

    # One HTTP client a route for all tokens, so that connections are kept. Made on the first request: not before is
    # there an event loop.

    def _listen_to_chat(self) -> None:
        if litellm.aclient_session is None:
            client = OpenAIChatCompletion.get_async_http_client()
            client.event_hooks = {"request": [self.on_request], "response": [self.on_answer]}
            litellm.aclient_session = client

    def _messages_client(self) -> AsyncHTTPHandler:
        if self._client is None:
            self._client = AsyncHTTPHandler(event_hooks={"request": [self.on_request], "response": [self.on_answer]})
        return self._client

    # -------------------------------------------------------------------------------------------------------- answers

    async def on_request(self, request: httpx.Request) -> None:
        """Forget the answer to a try before this one: what this one meets counts, also when that is no answer.

        LiteLLM adds betas of its own to some fields, and Cortex refuses those that it does not know: ours alone leave.
        """
        if (exchange := current_exchange.get()) is None:
            return
        exchange.answer = None
        request.headers.pop("anthropic-beta", None)
        if exchange.betas:
            request.headers["anthropic-beta"] = exchange.betas

    async def on_answer(self, response: httpx.Response) -> None:
        """Look at one answer of Cortex before anybody has read it, and repair it in place; others pass as they are."""
        exchange = current_exchange.get()
        path = response.request.url.path
        if exchange is None or exchange.facts is None:
            return
        if path.endswith("/cortex/v1/messages"):
            reader: AnswerReader = WholeAnswer()
        elif path.endswith("/cortex/v1/chat/completions"):
            reader = ChatAnswer(exchange.facts)
        else:
            return
        if response.status_code < 400:
            await repair(response, exchange, reader)
            return
        await response.aread()
        # After a 422 LiteLLM asks again by itself. (So it does on Messages for thinking that was signed for another
        # account, without it, and that is welcome.)
        status = 400 if response.status_code == 422 else response.status_code
        exchange.answer = (status, response.text)
        if status == 401:
            exchange.token_was_new = self.config.refuse(exchange.token, response.headers.get("date", ""))
        elif status == 400:
            self._learn(response, exchange)
        response.status_code = status

    def _learn(self, response: httpx.Response, exchange: Exchange) -> None:
        request = response.request
        words, sent = words_of(response.text)[1], json.loads(request.content)
        if request.url.path.endswith("/messages"):
            learned = self.refusals.learn_messages(words, sent, request.headers.get("anthropic-beta", "").split(","))
        else:
            learned = self.refusals.learn_chat(words, sent, exchange.refused)
        told = printable(words[:200]).replace("\n", " ")
        for what in learned:
            self._say_once(f"Cortex refused {what}: left out from now on. Its words: {told}")
        if learned:
            # Worth another try, which Claude Code makes by itself on this status.
            exchange.answer = (503, json.dumps({"message": f"refused {', '.join(learned)}; left out from now on."}))


class AnswerReader(Protocol):
    """How one answer of a route is repaired, or found not to be whole (IncompleteAnswerError)."""

    def answer(self, body: Any) -> Any:
        """One that was not streamed."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events of a stream, for one line of data."""

    def end(self) -> Iterator[bytes]:
        """What is still to be said when the connection ends."""


class ChatAnswer:
    """Chat completions."""

    def __init__(self, facts: RequestFacts) -> None:
        self._facts, self._fix = facts, StreamFix(facts)

    def answer(self, body: Any) -> Any:
        return fix_answer(body, self._facts)

    def feed(self, data: bytes) -> Iterator[bytes]:
        return (b"data: %b\n\n" % event for event in self._fix.feed(data))

    def end(self) -> Iterator[bytes]:
        return (b"data: %b\n\n" % event for event in self._fix.end())


async def repair(response: httpx.Response, exchange: Exchange, reader: AnswerReader) -> None:
    """Rewrite one answer of Cortex in place."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        response.stream = RepairedStream(response, exchange, reader)
        response.headers.pop("content-encoding", None)
        return
    raw = await response.aread()
    try:
        response._content = json.dumps(reader.answer(json.loads(raw))).encode()
    except IncompleteAnswerError as error:
        not_whole(response.request, exchange, error)
        response.status_code = 502
    except ValueError:
        exchange.answer = (502, response.text)
        response.status_code = 502


# The conversations that got an empty answer in the last minutes, by digest, and when (monotonic). One more try is worth
# it; a model that has nothing to say twice says nothing a third time.
_EMPTY: deque[tuple[str, float]] = deque(maxlen=100)
EMPTY_SECONDS = 300


def not_whole(request: httpx.Request, exchange: Exchange, error: IncompleteAnswerError) -> None:
    """Keep what the front door is to say of an answer that is none."""
    if error.body:  # the service's own words
        exchange.answer = (502, error.body)
    if isinstance(error, EmptyAnswerError):
        asked = json.dumps(json.loads(request.content)["messages"], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        now = time.monotonic()
        exchange.final = any(digest == known and now - then < EMPTY_SECONDS for known, then in _EMPTY)
        _EMPTY.append((digest, now))
        exchange.answer = (502, json.dumps({"message": f"{error}{', twice' if exchange.final else ''}."}))


class RepairedStream(httpx.AsyncByteStream):
    """The events of Cortex's stream, repaired. What ends too early is an error, never a short answer."""

    def __init__(self, response: httpx.Response, exchange: Exchange, reader: AnswerReader) -> None:
        # A response of its own on the same connection: it undoes the compression of a company's proxy.
        self._source = httpx.Response(200, headers=response.headers, stream=response.stream)
        self._request, self._exchange, self._reader = response.request, exchange, reader

    async def __aiter__(self) -> AsyncIterator[bytes]:
        lines = EventLines()
        try:
            async for piece in self._source.aiter_bytes():
                events: list[bytes] = []
                try:
                    for data in lines.feed(piece):
                        events += self._reader.feed(data)
                finally:  # what came before a broken event, in the same piece, counts
                    if events:
                        yield b"".join(events)
            for data in lines.end():
                for event in self._reader.feed(data):
                    yield event
            for event in self._reader.end():
                yield event
        except IncompleteAnswerError as error:
            not_whole(self._request, self._exchange, error)
            raise httpx.RemoteProtocolError(f"the answer of Snowflake Cortex is not whole: {error}") from None

    async def aclose(self) -> None:
        await self._source.aclose()


hooks = CortexHooks(live_config)
