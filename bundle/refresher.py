"""The refresher: when a new token is due, what happens if it cannot be made, and the state file for `--status`."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bundle.bootstrap import PM2
from bundle.claude_settings import follow_template, old_models
from bundle.errors import ConfigError, say
from bundle.files import Stamp, stamp, write_private
from bundle.model_list import FILE as MODEL_LIST
from bundle.model_list import ModelList
from bundle.model_query import ask_models
from bundle.model_watch import ModelWatch
from bundle.model_watch import status_lines as model_lines
from bundle.pat_watch import PatWatch
from bundle.render import render_config
from bundle.settings import Settings, key_file, master_key
from bundle.tokens import Token, token_now

STATE_FILE = ".refresher.json"
RETRY_CEILING_SECONDS = 60.0
ERROR_SECONDS = 600  # when the token has less time left, a failed refresh is logged as an error


def remove_leftovers(settings: Settings) -> None:
    """Remove temporary files of a refresher that was killed while writing. Call this only while holding the lock."""
    for name in (settings.config_path.name, STATE_FILE, MODEL_LIST):
        for leftover in settings.folder.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class Written:
    """The last refresh: the times of its token, and the stamps of the files that it read and wrote."""

    issued_at: int
    expires_at: int | None  # None: a programmatic access token, whose end is not known here
    refresh_seconds: int
    sources: Stamp
    config: Stamp


def due(now: float, last: Written | None, sources: Stamp, config: Stamp) -> str | None:
    """Why a refresh is due, or None. `now` is time.time(): the monotonic clock stops while a laptop is suspended."""
    if last is None:
        return "the refresher has started"
    if last.expires_at is not None and now < last.issued_at:
        return "the clock went back"
    if last.expires_at is not None and now >= last.issued_at + last.refresh_seconds:
        return f"the token is {int(now - last.issued_at) // 60} minutes old"
    if not config:
        return "litellm_config.yaml was deleted"
    if config != last.config:
        return "litellm_config.yaml was altered by something else (edits belong in litellm_config.template.yaml)"
    if sources != last.sources:
        changed = sorted({Path(entry[0]).name for entry in set(sources) ^ set(last.sources)})
        return f"{' and '.join(changed)} changed"
    return None


def _stamp_of_sources(settings: Settings) -> Stamp:
    paths = [*settings.sources, settings.template_path, settings.private_key_path, key_file(settings)]
    return stamp(paths)


def refresh(settings: Settings, now: float) -> tuple[Token, Written]:
    """Write the configuration with a token of this moment. Raises ConfigError, and the old file stays in that case."""
    master_key(settings)  # made here, if there is none: made later, it would count as an edit
    sources = _stamp_of_sources(settings)  # before reading the files: an edit made meanwhile causes another refresh
    token = token_now(settings, now)
    write_private(settings.config_path, render_config(settings, token))
    config = stamp([settings.config_path])
    return token, Written(token.issued_at, token.expires_at, settings.refresh_seconds, sources, config)


def retry_delay(failures: int, jitter: float) -> float:
    """Seconds until the next try: 1, 2, 4 … 60, multiplied by 0.75 to 1.25 as `jitter` goes from 0 to 1."""
    return min(RETRY_CEILING_SECONDS, 2.0 ** min(failures - 1, 10)) * (0.75 + jitter / 2)


@dataclass
class RefresherState:
    """The content of `.refresher.json` for `--status` and doctor. Times are in seconds since the epoch. No secrets."""

    pid: int
    issued: int | None = None
    expires: int | None = None
    next_refresh: int | None = None
    last_error: str | None = None
    last_error_at: int | None = None
    key_fingerprint: str | None = None
    access_token: str | None = None  # where the programmatic access token stands, if one is in use
    refusal: str | None = None  # why Snowflake refuses it
    account: str | None = None
    user: str | None = None
    models: dict[str, Any] = field(default_factory=dict)  # what ModelWatch.follow returns


class Refresher:
    """The refresh loop's state and its step: what was written last, what failed, when to try again."""

    def __init__(
        self,
        load: Callable[[], Settings],
        clock: Callable[[], float] = time.time,
        log: Callable[[str], None] = say,
        environ: Mapping[str, str] = os.environ,
        ask: Callable[[Settings, float], ModelList] = ask_models,
    ) -> None:
        self._load, self._clock, self._log, self._environ = load, clock, log, environ
        self.settings = load()
        self.watch = ModelWatch(log, read_state(self.settings.folder).get("models"), ask)
        self.pat_watch = PatWatch(log)
        self.last: Written | None = None
        self.state = RefresherState(pid=os.getpid())
        self._forced = False  # a signal asked for a refresh, and none has succeeded since
        self._failures = 0
        self._retry_at = 0.0
        self._failed_sources: Stamp = ()
        self._logged_error: str | None = None
        self._told = ""  # what was logged last about Claude Code's own settings

    def step(self, *, force: bool = False) -> bool:
        """Refresh if a refresh is due; return whether a new configuration was written. Never raises ConfigError."""
        now = self._clock()
        self.watch.ask_if_due(self.settings, now)
        self._look_at_pat(now)
        sources = _stamp_of_sources(self.settings)
        self._forced = self._forced or force
        config = stamp([self.settings.config_path])
        reason = "a signal (SIGHUP) asked for it" if self._forced else due(now, self.last, sources, config)
        reason = reason or self.watch.reason(self.settings)
        if reason is None:
            if self.watch.has_news:
                self.state.models = self.watch.follow(now)
                self._save_state()
            self._clear_error()
            return False
        # (The lower bound: if the clock has gone back, do not wait until it is at _retry_at again.)
        waiting = self._failures and self._retry_at - RETRY_CEILING_SECONDS * 2 < now < self._retry_at
        if waiting and sources == self._failed_sources and not force:
            return False
        try:
            self.refresh(now, reason)
        except Exception as error:  # noqa: BLE001 - nothing may end the loop: the old token is better than none
            self._record_failure(now, sources, error)
            return False
        return True

    def refresh(self, now: float, reason: str) -> None:
        """Refresh, log it and write the state file; errors pass through."""
        before = self.settings
        read = stamp(before.sources)  # before they are read: an edit made meanwhile causes another refresh
        self.settings = self._load()
        if before.proxy_port != self.settings.proxy_port:
            self._log(f"PROXY_PORT changed: takes effect with `{PM2} restart claude-proxy`")
        self.watch.look(self.settings)
        token, written = refresh(self.settings, now)
        others = tuple(entry for entry in written.sources if Path(entry[0]) not in before.sources)
        self.last = replace(written, sources=read + others)
        self._forced, self._failures, self._logged_error = False, 0, None
        self.pat_watch.new()
        self.state = RefresherState(
            pid=os.getpid(),
            issued=token.issued_at,
            expires=token.expires_at,
            next_refresh=None if token.expires_at is None else token.issued_at + self.settings.refresh_seconds,
            key_fingerprint=token.fingerprint or None,
            access_token=self.settings.pat.place if self.settings.pat else None,
            account=self.settings.account,
            user=self.settings.user,
        )
        self._log(f"new token, {what_is_new(self.settings, token)}, because {reason}")
        self.state.models = self.watch.follow(now)
        self._save_state()
        self._follow_template()

    def _look_at_pat(self, now: float) -> None:
        """Whether Snowflake refuses the programmatic access token goes into the state file."""
        self.pat_watch.ask_if_due(self.settings, now)
        if self.state.refusal != self.pat_watch.refusal:
            self.state.refusal = self.pat_watch.refusal
            self._save_state()

    def _follow_template(self) -> None:
        """Claude Code's aliases follow the template. Nothing that fails here may count as a failed refresh."""
        with suppress(ConfigError, OSError):
            follow_template(self.settings)
            told, self._told = self._told, old_models(self.settings, self._environ)
            if self._told and self._told != told:
                self._log(self._told)

    def _record_failure(self, now: float, sources: Stamp, error: Exception) -> None:
        self._failures += 1
        self._failed_sources = sources
        self._retry_at = now + retry_delay(self._failures, random.random())  # noqa: S311 - spreads retries, no secret
        message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        left = 0.0 if self.last is None else ERROR_SECONDS
        if self.last and self.last.expires_at is not None:
            left = self.last.expires_at - now
        if left < ERROR_SECONDS:
            self._log(f"ERROR: no new token, and the last one ends in {max(0, int(left)) // 60} minutes: {message}")
        elif message != self._logged_error:
            self._log(f"WARNING: the last good configuration stays, trying again: {message}")
        self._logged_error = message
        self.state.last_error, self.state.last_error_at = message, int(now)
        self._save_state()

    def _clear_error(self) -> None:
        # After the user undid a wrong edit, no refresh is due, so only this removes the error from --status.
        if self._failures:
            self._failures, self._logged_error = 0, None
            self.state.last_error = self.state.last_error_at = None
            self._log("the configuration is good again")
            self._save_state()

    def _save_state(self) -> None:
        with suppress(ConfigError):  # only people read the state: a full disk must not count as a failed refresh
            write_private(self.settings.folder / STATE_FILE, json.dumps(asdict(self.state), indent=2) + "\n")


def what_is_new(settings: Settings, token: Token) -> str:
    """What can be said of a token that was just written: its end, or where it stands."""
    if token.expires_at is not None:
        return f"valid until {clock_time(token.expires_at)}"
    return f"a programmatic access token from {settings.pat.place if settings.pat else ''}"


def works(state: Mapping[str, Any], now: float) -> bool:
    """Whether the refresher's last token can be used now, as far as is known here."""
    if state.get("access_token"):
        return not state.get("refusal")
    return (state.get("expires") or 0) > now


def clock_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def read_state(folder: Path) -> dict[str, Any]:
    """The state that the refresher saved last; empty if the file is missing or damaged."""
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _jwt_lines(state: Mapping[str, Any], now: float) -> list[str]:
    left = int(state["expires"] - now)
    live = f"{left // 60} minutes left" if left > 0 else "EXPIRED"
    return [
        f"token:    issued {clock_time(state['issued'])}, expires {clock_time(state['expires'])} ({live})",
        f"next:     {clock_time(state['next_refresh'])}",
    ]


def _pat_lines(state: Mapping[str, Any]) -> list[str]:
    since = clock_time(state["issued"])
    lines = [f"token:    programmatic access token from {state['access_token']}, in use since {since}"]
    return [*lines, f"REFUSED:  {state['refusal']}"] if state.get("refusal") else lines


def status_lines(state: Mapping[str, Any], now: float) -> list[str]:
    """What `--status` prints."""
    if not state.get("expires") and not state.get("access_token"):
        lines = ["token:    none yet"]
    else:
        lines = [
            *(_pat_lines(state) if state.get("access_token") else _jwt_lines(state, now)),
            f"identity: {state['account']}.{state['user']}",
            *([f"key:      {state['key_fingerprint']}"] if state.get("key_fingerprint") else []),
            *model_lines(state.get("models")),
        ]
    if state.get("last_error"):
        lines.append(f"error:    {state['last_error']} (at {clock_time(state['last_error_at'])})")
    return lines
