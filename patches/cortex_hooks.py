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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # LiteLLM loads this file by its path

from auto_refresh import ConfigError, say
from patches import cortex_dialect, cortex_messages
from patches.cortex_answers import (
    EmptyAnswerError,
    EventLines,
    IncompleteAnswerError,
    RequestFacts,
    StreamFix,
    fix_answer,
)
from patches.cortex_errors import words_of
from patches.cortex_refusals import Refusals, without
from patches.front_door import printable
from patches.live_config import Call, LiveConfig, current_call, is_cortex, live

# ----------------------------------------------------------------------------------------------------------- requests

# In the hook LiteLLM's own arguments stand beside the body's; all others would leak into the body.
_NOT_FOR_THE_WIRE = frozenset(
    {*all_litellm_params, "extra_headers", "extra_body", "timeout", "base_url", "deployment_id", "drop_params"}
)
# In every request of Claude Code, so that dropping them is no news: the first two LiteLLM makes of `metadata.user_id`.
# The third is the row's list for a LiteLLM without this hook; here it would drop the effort that a GPT honours.
_DROPPED = frozenset({"user", "prompt_cache_key", "additional_drop_params"})


def limits_of(info: dict[str, Any], learned: int | None = None) -> cortex_dialect.Limits:
    """A row's `model_info` as the dialect takes it; `learned` is a limit of the output that Cortex itself has named."""
    known = [limit for limit in (info.get("max_output_tokens"), learned) if limit]
    return cortex_dialect.Limits(
        max_output_tokens=min(known, default=None), cache_tool_results=bool(info.get("cache_tool_results"))
    )


def bare(model: str) -> str:
    """A model's name as Cortex knows it, without the provider prefix of its row."""
    return model.partition("/")[2] or model


def to_chat(kwargs: dict[str, Any], refusals: Refusals) -> tuple[dict[str, Any], list[str], list[str]]:
    """LiteLLM's arguments for one chat completion, with the body in Cortex's dialect, what was changed, and what was
    left out because Cortex has refused it before."""
    model = bare(kwargs["model"])
    kwargs = {key: value for key, value in kwargs.items() if key not in _DROPPED}
    out, notes, left_out = cortex_dialect.to_cortex(
        kwargs,
        family=cortex_dialect.family_of(model),
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
    out, betas, notes = cortex_messages.to_cortex(
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

    def __init__(self, live: LiveConfig) -> None:
        super().__init__()
        self.live = live
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
        call = current_call.get()
        if call is None:  # LiteLLM was started without our front door
            call = Call()
            current_call.set(call)
        try:
            call.token = self.live.token()
        except ConfigError as error:
            call.trouble = str(error)
            raise
        out = {**kwargs, "api_key": call.token}
        if str(kwargs["model"]).startswith("snowflake/"):
            if cortex_dialect.family_of(kwargs["model"]) != "claude":
                raise litellm.BadRequestError(
                    f"{kwargs['model']}: Cortex's Messages API has Claude models only. For another, "
                    f"litellm_config.template.yaml must say {kwargs['model'].replace('snowflake/', 'openai/', 1)}",
                    model=kwargs["model"],
                    llm_provider="snowflake",
                )
            out, notes, call.left_out = to_messages(out, self.refusals, self._messages_client())
            call.facts, call.betas = RequestFacts.of(out), out["extra_headers"].get("anthropic-beta", "")
        elif call_type == CallTypes.acompletion:
            call.refused = frozenset(self.refusals.chat.get(bare(out["model"]), ()))
            out, notes, call.left_out = to_chat(out, self.refusals)
            call.facts = RequestFacts.of(out)
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
        if (call := current_call.get()) is None:
            return
        call.answer = None
        request.headers.pop("anthropic-beta", None)
        if call.betas:
            request.headers["anthropic-beta"] = call.betas

    async def on_answer(self, response: httpx.Response) -> None:
        """Look at one answer of Cortex before anybody has read it, and repair it in place; others pass as they are."""
        call = current_call.get()
        path = response.request.url.path
        if call is None or call.facts is None:
            return
        if path.endswith("/cortex/v1/messages"):
            route: Route = cortex_messages.WholeAnswer()
        elif path.endswith("/cortex/v1/chat/completions"):
            route = ChatAnswer(call.facts)
        else:
            return
        if response.status_code < 400:
            await repair(response, call, route)
            return
        await response.aread()
        # After a 422 LiteLLM asks again by itself. (So it does on Messages for thinking that was signed for another
        # account, without it, and that is welcome.)
        status = 400 if response.status_code == 422 else response.status_code
        call.answer = (status, response.text)
        if status == 401:
            call.token_was_new = self.live.refuse(call.token, response.headers.get("date", ""))
        elif status == 400:
            self._learn(response, call)
        response.status_code = status

    def _learn(self, response: httpx.Response, call: Call) -> None:
        request = response.request
        words, sent = words_of(response.text)[1], json.loads(request.content)
        if request.url.path.endswith("/messages"):
            learned = self.refusals.learn_messages(words, sent, request.headers.get("anthropic-beta", "").split(","))
        else:
            learned = self.refusals.learn_chat(words, sent, call.refused)
        told = printable(words[:200]).replace("\n", " ")
        for what in learned:
            self._say_once(f"Cortex refused {what}: left out from now on. Its words: {told}")
        if learned:
            # Worth another try, which Claude Code makes by itself on this status.
            call.answer = (503, json.dumps({"message": f"refused {', '.join(learned)}; left out from now on."}))


class Route(Protocol):
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


async def repair(response: httpx.Response, call: Call, route: Route) -> None:
    """Rewrite one answer of Cortex in place."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        response.stream = RepairedStream(response, call, route)
        response.headers.pop("content-encoding", None)
        return
    raw = await response.aread()
    try:
        response._content = json.dumps(route.answer(json.loads(raw))).encode()
    except IncompleteAnswerError as error:
        not_whole(response.request, call, error)
        response.status_code = 502
    except ValueError:
        call.answer = (502, response.text)
        response.status_code = 502


# The conversations that got an empty answer in the last minutes, by digest, and when (monotonic). One more try is worth
# it; a model that has nothing to say twice says nothing a third time.
_EMPTY: deque[tuple[str, float]] = deque(maxlen=100)
EMPTY_SECONDS = 300


def not_whole(request: httpx.Request, call: Call, error: IncompleteAnswerError) -> None:
    """Keep what the front door is to say of an answer that is none."""
    if error.body:  # the service's own words
        call.answer = (502, error.body)
    if isinstance(error, EmptyAnswerError):
        asked = json.dumps(json.loads(request.content)["messages"], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        now = time.monotonic()
        call.final = any(digest == known and now - then < EMPTY_SECONDS for known, then in _EMPTY)
        _EMPTY.append((digest, now))
        call.answer = (502, json.dumps({"message": f"{error}{', twice' if call.final else ''}."}))


class RepairedStream(httpx.AsyncByteStream):
    """The events of Cortex's stream, repaired. What ends too early is an error, never a short answer."""

    def __init__(self, response: httpx.Response, call: Call, route: Route) -> None:
        # A response of its own on the same connection: it undoes the compression of a company's proxy.
        self._source = httpx.Response(200, headers=response.headers, stream=response.stream)
        self._request, self._call, self._route = response.request, call, route

    async def __aiter__(self) -> AsyncIterator[bytes]:
        lines = EventLines()
        try:
            async for piece in self._source.aiter_bytes():
                events: list[bytes] = []
                try:
                    for data in lines.feed(piece):
                        events += self._route.feed(data)
                finally:  # what came before a broken event, in the same piece, counts
                    if events:
                        yield b"".join(events)
            for data in lines.end():
                for event in self._route.feed(data):
                    yield event
            for event in self._route.end():
                yield event
        except IncompleteAnswerError as error:
            not_whole(self._request, self._call, error)
            raise httpx.RemoteProtocolError(f"the answer of Snowflake Cortex is not whole: {error}") from None

    async def aclose(self) -> None:
        await self._source.aclose()


hooks = CortexHooks(live)
