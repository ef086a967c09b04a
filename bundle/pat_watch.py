"""Asks Snowflake for the refresher whether it takes the programmatic access token in use: nothing here can tell.

Asked for each new token, and then as often as a key pair would sign one. The question is an empty request to Cortex,
which costs nothing, in a thread of its own. So `make status` shows a token that has ended before somebody needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import httpx

from bundle.bootstrap import BUNDLE
from bundle.cortex.errors import as_pat, explain
from bundle.errors import ConfigError
from bundle.host_check import PATH
from bundle.network import transport_to
from bundle.settings import Settings
from bundle.tokens import auth_headers, token_now

SECONDS = 15.0
AGAIN_SECONDS = 60  # after a refusal: somebody may enable the token again, or set a network policy


def refusal_of(settings: Settings, now: float) -> str | None:
    """Why Snowflake refuses the token, with the remedy; "" if it does not. None: that is not known now."""
    try:
        headers = auth_headers(token_now(settings, now))
        with httpx.Client(transport=transport_to(settings.base_url), timeout=SECONDS) as client:
            answer = client.post(settings.base_url + PATH, json={}, headers=headers)
            return explain(401, as_pat(401, answer.text), BUNDLE).message if answer.status_code == 401 else ""
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ConfigError):
        return None


class PatWatch:
    """What is known about the token in use. `refusal` is the first line of why it is refused; None if it is not."""

    def __init__(self, log: Callable[[str], None], ask: Callable[[Settings, float], str | None] = refusal_of) -> None:
        self._log, self._ask = log, ask
        self._asked_at = float("-inf")
        self._thread: threading.Thread | None = None
        self.refusal: str | None = None

    def new(self) -> None:
        """Another token may be in use: ask again at the next look."""
        self._asked_at, self.refusal = float("-inf"), None

    def ask_if_due(self, settings: Settings, now: float) -> None:
        """Start to ask, if that is due. Returns at once."""
        pause = AGAIN_SECONDS if self.refusal else settings.refresh_seconds
        if settings.pat is None or 0 <= now - self._asked_at < pause:
            return
        if self._thread is None or not self._thread.is_alive():
            self._asked_at = now
            self._thread = threading.Thread(target=self._look, args=(settings, now), daemon=True)
            with suppress(RuntimeError):  # the machine has no thread left: tried again later
                self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the answer is there."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _look(self, settings: Settings, now: float) -> None:
        found = self._ask(settings, now)
        if found is None or self._asked_at != now:  # not known, or about a token that was replaced meanwhile
            return
        if found and not self.refusal:
            self._log(f"WARNING: {found}")
        elif self.refusal and not found:
            self._log("Snowflake takes the programmatic access token again")
        self.refusal = found.partition("\n")[0] or None
