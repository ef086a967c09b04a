"""Follows the account's list of models for the refresher: asks for it once a day, and says what has changed by it.

The list is asked for in a thread of its own, so no token ever waits for it. Without a list, the one that was kept is
used, and without that, the documentation (cortex/catalogue.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from bundle.errors import ConfigError, SayOnce, printable
from bundle.files import Stamp, stamp
from bundle.model_list import FILE, ModelList, read, save, warnings
from bundle.render import is_cortex, model_of, newest_models, template_rows
from bundle.settings import Settings
from bundle.sql_api import QueryError

DAY_SECONDS = 24 * 3600
RETRY_SECONDS = 3600  # after a failure
MOST_CHANGES = 2  # that are kept and shown


class ModelWatch:
    """What the refresher knows of the account's models. `kept` is what `state` has given before, perhaps damaged."""

    def __init__(
        self,
        log: Callable[[str], None],
        kept: Mapping[str, Any] | None,
        ask: Callable[[Settings, float], ModelList],
    ) -> None:
        self._log, self._ask, self._say_once = log, ask, SayOnce(log=log)
        self._rows: list[dict[str, Any]] = []
        self._listed: ModelList | None = None
        self._seen: Stamp = ()
        self._thread: threading.Thread | None = None
        self._tried_at, self._tried_for = float("-inf"), ("", "", "")
        self._error = ""
        self.has_news = False  # the list, or the reason why there is none, has changed since the last `follow`
        self._state: dict[str, Any] = {
            "rows": _dict(kept, "rows"),
            "changes": _list(kept, "changes"),
            "warnings": [],
            "source": "",
        }

    # ---------------------------------------------------------------------------------------------------- asking for it

    def ask_if_due(self, settings: Settings, now: float) -> None:
        """Start to ask, if the kept list is older than a day or belongs to another account. Returns at once."""
        who = (settings.account, settings.user, settings.base_url)
        tried_lately = who == self._tried_for and 0 <= now - self._tried_at < RETRY_SECONDS
        if tried_lately or (self._thread is not None and self._thread.is_alive()):
            return
        self._tried_at, self._tried_for = now, who
        kept = read(settings)
        if kept is None or not 0 <= now - kept.asked_at < DAY_SECONDS:
            self._thread = threading.Thread(target=self._renew, args=(settings, now), daemon=True)
            with suppress(RuntimeError):  # the machine has no thread left: tried again in an hour
                self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the list that is being asked for is there."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _renew(self, settings: Settings, now: float) -> None:
        try:
            save(settings, self._ask(settings, now))
            error = ""
        except (ConfigError, QueryError) as caught:
            error = str(caught).partition("\n")[0]
        except Exception as caught:  # noqa: BLE001 - a traceback of a thread helps nobody
            error = f"{type(caught).__name__}: {printable(caught)}"
        if error and error != self._error:
            self._log(f"the account's list of models cannot be read, trying again in an hour: {error}")
        self.has_news = self.has_news or error != self._error
        self._error = error

    # --------------------------------------------------------------------------------------------- what follows from it

    def reason(self, settings: Settings) -> str | None:
        """Why the list needs a new configuration, or None. The list is read only after it has changed."""
        found = stamp([settings.folder / FILE])
        if found == self._seen:
            return None
        with suppress(ConfigError):
            if template_rows(settings, settings.claude_route) != self._rows:
                return "the account's list of models changed"
        self._seen, self._listed, self.has_news = found, read(settings), True
        return None

    def look(self, settings: Settings) -> None:
        """Before a refresh: take note of the list and of the rows that it makes. A list that comes during the refresh
        then causes another one. Raises ConfigError for a mistake in the template."""
        self._seen, self._listed = stamp([settings.folder / FILE]), read(settings)
        self._rows = template_rows(settings, settings.claude_route)

    def follow(self, now: float) -> dict[str, Any]:
        """After a refresh: log which model took over from which, and each model in use that will end. Returns what
        `--status` needs to know."""
        listed, self.has_news = self._listed, False
        before, rows = self._state["rows"], newest_models(self._rows)
        for change in changes(before, rows):
            self._log(change)
            minute = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
            self._state["changes"] = [*self._state["changes"], f"{minute} {change}"][-MOST_CHANGES:]
        found = warnings([*rows.values(), *_chosen(self._rows)], listed)
        for warning in found:
            self._say_once(f"WARNING: {warning}")
        source = "the account's list" if listed and listed.models else "Snowflake's documentation"
        self._state |= {"rows": rows, "warnings": found, "source": source, "error": self._error}
        return self._state


def changes(before: Mapping[str, str], rows: Mapping[str, str]) -> list[str]:
    """A sentence for each model that took over from another one. `before` and `rows` are the rows with their models."""
    moved: dict[tuple[str, str], list[str]] = {}
    for name, model in rows.items():
        if before.get(name, model) != model:
            moved.setdefault((before[name], model), []).append(name)
    return [f"{' and '.join(names)}: {new} took over from {old}" for (old, new), names in moved.items()]


def _chosen(rows: list[dict[str, Any]]) -> list[str]:
    """The models that answer under another name: somebody has chosen them."""
    return [model_of(row) for row in rows if is_cortex(row) and not row["model_name"].startswith(model_of(row))]


def _dict(kept: Mapping[str, Any] | None, name: str) -> dict[str, str]:
    value = (kept or {}).get(name)
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else {}


def _list(kept: Mapping[str, Any] | None, name: str) -> list[str]:
    value = (kept or {}).get(name)
    return [str(text) for text in value] if isinstance(value, list) else []


def status_lines(models: object) -> list[str]:
    """What `--status` prints about the models: `models` is the state that `ModelWatch.follow` has returned."""
    kept = models if isinstance(models, dict) else {}
    rows = _dict(kept, "rows")
    if not rows:
        return []
    shown = [f"{name.removeprefix('claude-').rstrip('-*') or 'others'} {model}" for name, model in rows.items()]
    lines = [f"models:   {', '.join(shown)} (newest of {kept.get('source')})"]
    lines += [f"changed:  {change}" for change in _list(kept, "changes")]
    return [*lines, *(f"warning:  {warning}" for warning in _list(kept, "warnings"))]
