"""What LiteLLM is given at run time so that it can talk to Cortex: the live token, and Cortex's dialect.

LiteLLM reads its credential once, at start, and has no way to reload it; restarting it once an hour cuts answers and
refuses requests. This callback runs after LiteLLM has chosen a deployment and before it calls it, on every request:
it puts in the token that is live now, and hands the request to `cortex_dialect`. A response hook on the HTTP client
repairs Cortex's answers before the OpenAI SDK reads them.

Security invariants
- The token goes from `litellm_config.yaml` (or a signature made here, in memory) into the request's credential, and
  nowhere else: no log line, no error text, no file.
- Only deployments that the renderer marked `cortex` get it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.llms.openai.openai import OpenAIChatCompletion
from litellm.types.utils import CallTypes, all_litellm_params

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # LiteLLM loads this file by its path

from auto_refresh import ConfigError, say  # noqa: E402
from patches import cortex_dialect  # noqa: E402
from patches.cortex_answers import IncompleteAnswerError, RequestFacts, StreamFix, fix_answer  # noqa: E402
from patches.live_config import Call, LiveConfig, current_call, is_cortex, live  # noqa: E402

# ----------------------------------------------------------------------------------------------------------- requests

# In the hook LiteLLM's own arguments stand beside the body's; all others would leak into the body.
_NOT_FOR_THE_WIRE = frozenset(
    {*all_litellm_params, "extra_headers", "extra_body", "timeout", "base_url", "deployment_id", "drop_params"}
)
# In every request of Claude Code, so that dropping them is no news: the first two LiteLLM makes of `metadata.user_id`.
# The third is the row's list for a LiteLLM without this hook; here it would drop the effort that a GPT honours.
_DROPPED = frozenset({"user", "prompt_cache_key", "additional_drop_params"})


def limits_of(info: dict[str, Any]) -> cortex_dialect.Limits:
    """A row's `model_info` as the dialect takes it."""
    return cortex_dialect.Limits(
        max_output_tokens=info.get("max_output_tokens"), cache_tool_results=bool(info.get("cache_tool_results"))
    )


def to_cortex(kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """LiteLLM's arguments for one chat completion, with the body in Cortex's dialect, and what was changed."""
    family = cortex_dialect.family_of(kwargs["model"])
    kwargs = {key: value for key, value in kwargs.items() if key not in _DROPPED}
    out, notes = cortex_dialect.to_cortex(
        kwargs, family=family, limits=limits_of(kwargs["model_info"]), keep=_NOT_FOR_THE_WIRE
    )
    if "reasoning" in out:  # not a parameter of OpenAI's API: LiteLLM takes it as an extra only
        out["extra_body"] = {**(out.get("extra_body") or {}), "reasoning": out.pop("reasoning")}
    return out, notes


class CortexHooks(CustomLogger):
    """The callback that `litellm_settings.callbacks` names."""

    def __init__(self, live: LiveConfig) -> None:
        super().__init__()
        self.live = live
        self._said: set[str] = set()

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: CallTypes | None
    ) -> dict[str, Any] | None:
        """Put in the live token; on the second of its two calls per request, translate the body as well."""
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
        # On the first call the body is still Anthropic's.
        if call_type == CallTypes.acompletion:
            out, notes = to_cortex(out)
            call.facts = RequestFacts.of(out)
            self._say(notes)
            listen_to_answers(self.live)
        return out

    def _say(self, notes: list[str]) -> None:
        # Once each: a session repeats its oddities with every turn.
        for note in notes:
            if note not in self._said:
                self._said.add(note)
                say(f"adapted for Cortex: {note}")


# ------------------------------------------------------------------------------------------------------------ answers


def listen_to_answers(live: LiveConfig) -> None:
    """Give LiteLLM an HTTP client that repairs Cortex's answers; one for all tokens, so that connections are kept."""
    if litellm.aclient_session is None:
        client = OpenAIChatCompletion.get_async_http_client()

        async def on_answer(response: httpx.Response) -> None:
            await repair(response, live)

        client.event_hooks = {"request": [], "response": [on_answer]}
        litellm.aclient_session = client


async def repair(response: httpx.Response, live: LiveConfig) -> None:
    """Rewrite one answer of Cortex in place, before anybody has read it; answers of others pass as they are."""
    call = current_call.get()
    if call is None or call.facts is None or not response.request.url.path.endswith("/cortex/v1/chat/completions"):
        return
    if response.status_code >= 400:
        await response.aread()
        call.answer = (response.status_code, response.text)
        if response.status_code == 401:
            call.token_was_new = live.refuse(call.token)
        return
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        response.stream = RepairedStream(response, call.facts)
        response.headers.pop("content-encoding", None)
        return
    raw = await response.aread()
    try:
        response._content = json.dumps(fix_answer(json.loads(raw), call.facts)).encode()
    except (ValueError, IncompleteAnswerError):
        call.answer = (502, response.text)
        response.status_code = 502


class RepairedStream(httpx.AsyncByteStream):
    """The events of Cortex's stream, repaired. What ends too early is an error, never a short answer."""

    def __init__(self, response: httpx.Response, facts: RequestFacts) -> None:
        # A response of its own on the same connection: it undoes the compression of a company's proxy.
        self._source = httpx.Response(200, headers=response.headers, stream=response.stream)
        self._fix = StreamFix(facts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        try:
            async for piece in self._source.aiter_bytes():
                *lines, rest = (rest + piece).split(b"\n")
                datas = [line[5:].strip() for line in lines if line.startswith(b"data:")]
                if events := [b"data: %b\n\n" % event for data in datas for event in self._fix.feed(data)]:
                    yield b"".join(events)
            for event in self._fix.end():
                yield b"data: %b\n\n" % event
        except IncompleteAnswerError as error:
            raise httpx.RemoteProtocolError(f"the answer of Snowflake Cortex is not whole: {error}") from None

    async def aclose(self) -> None:
        await self._source.aclose()


hooks = CortexHooks(live)
