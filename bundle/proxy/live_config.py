"""The token and the model rows as they are this second, for every request that passes.

LiteLLM reads its configuration once, at start. This looks at `litellm_config.yaml` again on each request (one `stat`),
and signs a token in memory when the file's is dead: the refresher may be stopped or hang, the machine may have just
woken, the disk may be full. So no request leaves with a dead token, whoever is dead.

Also here, because LiteLLM loads the callback's file as a module of its own: what one request's hooks share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import yaml

from bundle import files
from bundle.cortex.answers import RequestFacts
from bundle.errors import ConfigError, say
from bundle.files import Stamp
from bundle.render import is_cortex
from bundle.settings import Settings, load_settings, state_folder
from bundle.tokens import sign, token_times

MARGIN_SECONDS = 60  # a token this close to its end could be dead when it arrives
NEW_TOKEN_SECONDS = 120  # refused this soon after its signature, it is refused for good: a newer one is no better
# Snowflake's tolerance is not documented (docs/cortex.md#jwt-ahead); a clock set by the network is within a second.
SKEW_SECONDS = 30

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Exchange:
    """What the hooks on one request tell each other, and the front door."""

    facts: RequestFacts | None = None  # what was asked, as far as it decides how the answer reads
    betas: str = ""  # the only ones that may leave, as their header has them
    refused: frozenset[str] = frozenset()  # what the model was known to refuse when the request left
    final: bool = False  # another try would be of no use
    left_out: list[str] = field(default_factory=list)  # what Cortex has refused before, and this request is without
    token: str = field(default="", repr=False)
    token_was_new: bool = False  # when Cortex refused it: a newer one would be no better
    answer: tuple[int, str] | None = None  # an error of Cortex: status and body, as they came
    trouble: str | None = None  # a mistake in the settings that only shows now


current_exchange: ContextVar[Exchange | None] = ContextVar("current_exchange", default=None)


class LiveConfig:
    """The token and the model rows of `litellm_config.yaml` as they are now, and a token signed here when that is dead.

    The refresher may be stopped or hang, the machine may have just woken, the disk may be full: whoever is dead, no
    request leaves with a dead token. What is signed here is kept in memory and written nowhere.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self.document: dict[str, Any] = {}
        self.settings: Settings | None = None  # the last good ones
        self._stamp: Stamp = ()
        self._written = ""
        self._signed = ""
        self._refused: set[str] = set()

    def reload(self) -> bool:
        """Read the file again if it changed; whether it did. A file that cannot be read leaves what was known."""
        stamp = files.stamp([self.path])
        if stamp == self._stamp or not stamp:
            return False
        try:
            document = yaml.load(self.path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe loader
            token = next(row["litellm_params"]["api_key"] for row in document["model_list"] if is_cortex(row))
        except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError, StopIteration):
            return False  # half of somebody's edit: the refresher writes it anew within seconds
        self._stamp, self.document, self._written = stamp, document, str(token)
        return True

    def is_live(self) -> bool:
        """Whether the file's own token can be used now."""
        return _is_live(self._written, self._clock())

    def token(self) -> str:
        """A token that is live now; raises ConfigError when there is none and none can be signed."""
        self.reload()
        now = self._clock()
        candidates = [token for token in (self._written, self._signed) if token not in self._refused]
        for token in candidates:
            if _is_live(token, now):
                return token
        # No await from here to the end: the requests of a burst come one after the other, and the second finds
        # what the first has signed.
        try:
            signed = sign(self._settings_now(), now)
        except ConfigError:
            for token in candidates:  # the last minute of one, before the user hears of the mistake
                if _is_live(token, now, margin=1):
                    return token
            raise
        self._signed = signed.value
        self._refused &= {self._written}
        say("the token in litellm_config.yaml is not usable: signed one in memory")
        return signed.value

    def _settings_now(self) -> Settings:
        try:
            self.settings = load_settings()
        except ConfigError:  # a broken edit, which the refresher's log names
            if self.settings is None:
                raise
        return self.settings

    def refuse(self, token: str, date: str = "") -> bool:
        """Cortex answered 401 to `token`: use another from now on. Returns whether it was a new one.

        `date` is the answer's header of that name: where this machine's clock is the reason, the user is told so.
        """
        self._refused.add(token)
        now = self._clock()
        exchange = current_exchange.get()
        if exchange is not None and (trouble := clock_trouble(token, now, date)):
            exchange.trouble = trouble
        return abs(now - token_times(token)[0]) < NEW_TOKEN_SECONDS


def clock_trouble(token: str, now: float, date: str) -> str | None:
    """Why Snowflake, at whose `date` (an HTTP header) it refused the token, did so, if it is this machine's clock."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    issued, expires = token_times(token)
    if issued > theirs + SKEW_SECONDS:
        found = "ahead of Snowflake's, which takes no token from the future (394302)"
    elif now < expires <= theirs:  # where both say so, it ended on its way: the machine has slept
        found = "behind Snowflake's, for which this token has ended (394303)"
    else:
        return None
    return (
        f"This machine's clock is about {round(abs(now - theirs) / 60) or 1} minutes {found}.\n"
        "Set it by the network: sudo timedatectl set-ntp true (macOS: sudo sntp -sS time.apple.com)"
    )


def _is_live(token: str, now: float, margin: int = MARGIN_SECONDS) -> bool:
    issued, expires = token_times(token)
    return issued <= now < expires - margin


live_config = LiveConfig(state_folder(os.environ) / "litellm_config.yaml")
