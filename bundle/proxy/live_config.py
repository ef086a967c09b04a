"""The current token and the current model rows, for each request.

LiteLLM reads its configuration once, at start. `LiveConfig` checks `litellm_config.yaml` again on each request (one
`stat`). If the token in the file has expired, `LiveConfig` signs a new one in memory: the refresher may have stopped,
the machine may have just woken up, or the disk may be full. So every request is sent with a valid token.

The user's programmatic access token (PAT) has no end that is known here, and nothing can be signed in its place. After
a refusal, the settings are read again: another token may be there already. If not, the same one is sent with the next
request, because only Snowflake knows whether it has been enabled again.

This module also holds `Exchange`, the data that the hooks and the front door share for one request. `current_exchange`
cannot be in hooks.py: LiteLLM loads that file a second time, as another module.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from bundle import files
from bundle.bootstrap import state_folder
from bundle.cortex.answers import ChatAnswer, MessagesAnswer, RequestFacts
from bundle.cortex.cache_split import Seen
from bundle.credential import KEY_PAIR, PAT, TOKEN_TYPE
from bundle.errors import ConfigError, hide, say
from bundle.files import Stamp
from bundle.proxy.model_choice import RefusedModels
from bundle.render import is_cortex
from bundle.settings import Settings, load_settings
from bundle.tokens import Token, token_now, token_times

MARGIN_SECONDS = 60  # a token with less time left may expire before the request reaches Cortex
SECOND_TRY_SECONDS = 120  # a token that is signed so soon after a refusal is the second try

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Exchange:
    """What is known about one request and its answer."""

    asked: str = ""  # the model that the client has named
    session: str = ""  # the id of Claude Code's session
    started: float = field(default_factory=time.monotonic)
    asked_at: float = field(default_factory=time.time)
    first_at: float | None = None  # when the first byte of Cortex's answer came (monotonic)
    is_chat: bool = False  # the route: Chat Completions, or the Messages API
    prompt: Mapping[str, Any] | None = None  # the body of a chat completion for Claude, with its cache marks
    sent: bool = False  # whether the request has reached Cortex
    seen: Seen | None = None  # what this prompt has found in the cache
    reader: ChatAnswer | MessagesAnswer | None = None  # it knows how many tokens the answer has used
    facts: RequestFacts | None = None  # the parts of the request that are needed to read the answer
    stream: httpx.AsyncByteStream | None = None  # the answer of Cortex, if it is streamed
    betas: str = ""  # the value of the `anthropic-beta` header that is sent to Cortex
    refused: frozenset[str] = frozenset()  # the fields that were known to be refused when the request was sent
    final: bool = False  # the same request would fail again
    left_out: list[str] = field(default_factory=list)  # the fields removed because Cortex has refused them before
    model: str = ""  # the model that Cortex is asked for
    row: dict[str, Any] = field(default_factory=dict)  # the `model_info` of its row
    effort: str = ""  # the client's `output_config.effort`
    token: str = field(default="", repr=False)
    token_type: str = KEY_PAIR
    refused_again: bool = False  # Cortex refused a token that was signed after a refusal, or a PAT: no retry will help
    answer: tuple[int, str] | None = None  # an error of Cortex: status and body
    failure: str = ""  # what happened to the connection to Cortex, if it failed
    trouble: str | None = None  # the message about a mistake in the settings or a wrong clock


current_exchange: ContextVar[Exchange | None] = ContextVar("current_exchange", default=None)


class LiveConfig:
    """The current content of `litellm_config.yaml`. A token that is signed here is never written to a file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self.document: dict[str, Any] = {}
        self.refused = RefusedModels()
        self.settings: Settings | None = None  # the last valid settings
        self._stamp: Stamp = ()
        self._file_token, self._own_token = "", ""
        self._file_type, self._own_type = KEY_PAIR, KEY_PAIR
        self._refused: set[str] = set()
        self._refused_at = float("-inf")
        self._second_try = ""  # the token that was signed because Cortex had refused one

    def reload(self) -> bool:
        """Read the file if it has changed. Returns True if there is new content, False if the old content stays."""
        stamp = files.stamp([self.path])
        if stamp == self._stamp or not stamp:
            return False
        try:
            document = yaml.load(files.read_own(self.path), Loader=_LOADER)  # noqa: S506 - a safe loader
            params = next(row["litellm_params"] for row in document["model_list"] if is_cortex(row))
            token, token_type = str(params["api_key"]), (params.get("extra_headers") or {}).get(TOKEN_TYPE, KEY_PAIR)
        except (
            OSError,
            ConfigError,
            ValueError,
            yaml.YAMLError,
            LookupError,
            TypeError,
            AttributeError,
            StopIteration,
        ):
            return False  # probably somebody has edited the file; the refresher rewrites it within seconds
        if token != self._file_token:  # the file is newer than what was signed or read here
            self._own_token = ""
        self._stamp, self.document, self._file_token, self._file_type = stamp, document, token, token_type
        if token_type == PAT:
            hide(token)
        return True

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The model rows; empty if there is no valid file yet."""
        return list(self.document.get("model_list", ()))

    def is_live(self) -> bool:
        """Whether the token in the file can be used now."""
        return self._is_live(self._file_token, self._clock())

    def token_type(self, token: str) -> str:
        """The type of a token that `token` has just returned."""
        return self._own_type if token == self._own_token else self._file_type

    def _is_live(self, token: str, now: float, margin: int = MARGIN_SECONDS) -> bool:
        if self.token_type(token) == PAT:
            return bool(token)
        issued, expires = token_times(token)
        return issued <= now < expires - margin

    def token(self) -> str:
        """A token that can be used now. Raises ConfigError if there is none and none can be signed."""
        self.reload()
        now = self._clock()
        candidates = [token for token in (self._file_token, self._own_token) if token not in self._refused]
        for token in candidates:
            if self._is_live(token, now):
                return token
        # There must be no `await` below: with one, several concurrent requests could each sign a token.
        try:
            found = token_now(self._settings_now(), now)
        except ConfigError:
            for token in candidates:  # a token in its last minute is better than an error
                if self._is_live(token, now, margin=1):
                    return token
            raise
        return self._take(found, now)

    def _take(self, found: Token, now: float) -> str:
        if found.kind == KEY_PAIR:
            say("the token in litellm_config.yaml is not usable: signed one in memory")
        elif found.value not in {self._file_token, self._own_token}:
            say("the programmatic access token in litellm_config.yaml was replaced: using the new one")
        self._own_token, self._own_type = found.value, found.kind
        is_second_try = found.kind == KEY_PAIR and abs(now - self._refused_at) < SECOND_TRY_SECONDS
        self._second_try = found.value if is_second_try else ""
        self._refused &= {self._file_token}  # refusals of tokens that are not kept any more are forgotten
        return found.value

    def _settings_now(self) -> Settings:
        try:
            self.settings = load_settings()
        except ConfigError:  # the refresher's log shows the error
            if self.settings is None:
                raise
        return self.settings

    def accept(self, token: str) -> None:
        """Record that Cortex has taken `token`. If it is refused later, the refusal may pass."""
        if self.token_type(token) == PAT:
            self._refused.discard(token)
        if token == self._second_try:
            self._second_try = ""

    def refuse(self, token: str, date: str = "", token_type: str = KEY_PAIR) -> bool:
        """Record that Cortex answered 401 to `token`, so that another one is used, if there is one. `date` is the Date
        header of that answer. Returns whether a retry is useless: of two tokens that were signed, the second one was
        refused (one refusal may be a passing fault), or a PAT was refused and no other one is there."""
        self._refused.add(token)
        self._refused_at = now = self._clock()
        if token_type == PAT:
            return self._is_the_only_one(token, now)
        exchange = current_exchange.get()
        if exchange is not None and (message := clock_trouble(token, now, date)):
            exchange.trouble = message
        return token == self._second_try

    def _is_the_only_one(self, token: str, now: float) -> bool:
        try:
            return token_now(self._settings_now(), now).value == token
        except ConfigError:
            return True


def clock_trouble(token: str, now: float, date: str) -> str | None:
    """Explain a refusal if this machine's clock is the reason. `date` is the Date header of Snowflake's answer."""
    try:
        snowflake_now = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    issued, expires = token_times(token)
    if issued > snowflake_now:
        found = "ahead of Snowflake's, which takes no token from the future (394302)"
    elif now < expires <= snowflake_now:
        found = "behind Snowflake's, for which this token has ended (394303)"
    else:  # the clock is not the reason. (A token that expired on both clocks: the machine slept during the request.)
        return None
    return (
        f"This machine's clock is about {round(abs(now - snowflake_now) / 60) or 1} minutes {found}.\n"
        "Set it by the network: sudo timedatectl set-ntp true (macOS: sudo sntp -sS time.apple.com)"
    )


live_config = LiveConfig(state_folder(os.environ) / "litellm_config.yaml")
