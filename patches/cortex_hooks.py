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

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import litellm
import yaml
from litellm.integrations.custom_logger import CustomLogger
from litellm.types.utils import CallTypes, all_litellm_params

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # LiteLLM loads this file by its path

import auto_refresh  # noqa: E402
from patches import cortex_dialect  # noqa: E402

MARGIN_SECONDS = 60  # a token this close to its end could be dead when it arrives
NEW_TOKEN_SECONDS = 120  # a token refused this soon after its signature is refused for good: a newer one is no better


@dataclass
class Call:
    """What one request of Claude Code needs to remember between its hooks; the front door reads `error`."""

    facts: cortex_dialect.RequestFacts | None = None
    token: str = field(default="", repr=False)
    error: tuple[int, str] | None = None  # status and body, as Cortex sent them
    trouble: str | None = None  # a mistake in the settings that only shows now


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def log(line: str) -> None:
    print(line, flush=True)


# --------------------------------------------------------------------------------------------------------- live token


def token_times(token: str) -> tuple[int, int]:
    """(`iat`, `exp`) of a JWT in seconds since the epoch; (0, 0) for what is not one."""
    try:
        body = token.split(".")[1]
        payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return int(payload["iat"]), int(payload["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0, 0


class LiveConfig:
    """The token and the model rows of `litellm_config.yaml` as they are now, and a token signed here when that is dead.

    The refresher may be stopped or hang, the machine may have just woken, the disk may be full: whoever is dead, no
    request leaves with a dead token. What is signed here is kept in memory and written nowhere.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self.document: dict[str, Any] = {}
        self._stamp: auto_refresh.Stamp = ()
        self._written = ""
        self._signed = ""
        self._refused: set[str] = set()

    def reload(self) -> bool:
        """Read the file again if it changed; whether it did. A file that cannot be read leaves what was known."""
        stamp = auto_refresh.stamp([self.path])
        if stamp == self._stamp or not stamp:
            return False
        try:
            document = yaml.load(self.path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe loader
            token = next(row["litellm_params"]["api_key"] for row in document["model_list"] if is_cortex(row))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, StopIteration):
            return False  # half of somebody's edit: the refresher writes it anew within seconds
        self._stamp, self.document, self._written = stamp, document, str(token)
        return True

    def token(self) -> str:
        """A token that is live now; raises ConfigError when there is none and none can be signed."""
        self.reload()
        now = self._clock()
        for candidate in (self._written, self._signed):
            if candidate not in self._refused and _is_live(candidate, now):
                return candidate
        # No await from here to the end: the requests of a burst come one after the other, and the second finds
        # what the first has signed.
        token = auto_refresh.sign(auto_refresh.load_settings(), now)
        self._signed = token.value
        self._refused &= {self._written}
        log("the token in litellm_config.yaml is not usable: signed one in memory (is token-refresher running?)")
        return token.value

    def refuse(self, token: str) -> bool:
        """Note that Cortex answered 401 to `token`; return whether that is final, because it was a new one."""
        self._refused.add(token)
        issued, _ = token_times(token)
        return abs(self._clock() - issued) < NEW_TOKEN_SECONDS


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _is_live(token: str, now: float) -> bool:
    issued, expires = token_times(token)
    return issued <= now < expires - MARGIN_SECONDS


def is_cortex(row: dict[str, Any]) -> bool:
    return bool((row.get("model_info") or {}).get("cortex"))


# ----------------------------------------------------------------------------------------------------------- requests

# In the hook LiteLLM's own arguments stand beside the body's; all others would leak into the body.
_NOT_FOR_THE_WIRE = frozenset({*all_litellm_params, "extra_headers", "extra_body", "timeout", "base_url", "deployment_id"})


def limits_of(info: dict[str, Any]) -> cortex_dialect.Limits:
    """A row's `model_info` as the dialect takes it."""
    return cortex_dialect.Limits(
        max_output_tokens=info.get("max_output_tokens"), cache_tool_results=bool(info.get("cache_tool_results"))
    )


def to_cortex(kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """LiteLLM's arguments for one chat completion, with the body in Cortex's dialect, and what was changed."""
    family = cortex_dialect.family_of(kwargs["model"])
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
        except auto_refresh.ConfigError as error:
            call.trouble = str(error)
            raise
        out = {**kwargs, "api_key": call.token}
        # On the first call the body is still Anthropic's.
        if call_type == CallTypes.acompletion:
            out, notes = to_cortex(out)
            call.facts = cortex_dialect.RequestFacts.of(out)
            self._say(notes)
            listen_to_answers(self.live)
        return out

    def _say(self, notes: list[str]) -> None:
        # Once each: a session repeats its oddities with every turn.
        for note in notes:
            if note not in self._said:
                self._said.add(note)
                log(f"adapted for Cortex: {note}")


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
    source = response.aiter_bytes()  # decoded, should a company proxy have compressed it
