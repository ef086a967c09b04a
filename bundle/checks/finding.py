"""The result of a check, and the installation that the checks examine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bundle.bootstrap import state_folder
from bundle.errors import ConfigError, clean, printable
from bundle.proof import Listener, listener
from bundle.settings import Settings, load_settings, saved_key


@dataclass(frozen=True)
class Finding:
    """One result. `state` is ok, warn, fail or skip; `fix` says what to do, with a command or SQL statement."""

    name: str
    state: str
    found: str
    fix: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        # Names and words of servers, models, files and programs are in the texts, and they are shown in a terminal.
        for name, text in (
            ("name", printable(self.name)),
            ("found", printable(self.found, 2_000)),
            ("fix", clean(self.fix)),
        ):
            object.__setattr__(self, name, text)


class NotConfiguredError(Exception):
    """A check needs the settings, but they are not valid. The check `account` shows the error."""


@dataclass(frozen=True)
class Installation:
    """What the checks examine. `now` is in seconds since the epoch. `settings_error` is empty if settings are valid."""

    folder: Path
    environ: Mapping[str, str]
    now: float
    valid_settings: Settings | None = None
    settings_error: str = ""

    @property
    def settings(self) -> Settings:
        if self.valid_settings is None:
            raise NotConfiguredError
        return self.valid_settings

    @property
    def master_key(self) -> str:
        """The proxy's key, or "". `settings.master_key` would create a key, but a check must not change anything."""
        return saved_key(self.settings)

    def listener(self) -> Listener:
        """Who listens on the proxy's port. Only "ours" may be sent the key."""
        return listener(self.settings.proxy_port, self.master_key)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The model rows of litellm_config.yaml; empty if the file is missing or damaged."""
        try:
            document = yaml.safe_load((self.folder / "litellm_config.yaml").read_text(encoding="utf-8"))
            return [row for row in document["model_list"] if row["litellm_params"]["model"] and row["model_name"]]
        except (OSError, yaml.YAMLError, LookupError, TypeError):
            return []


def read_installation(environ: Mapping[str, str], now: float) -> Installation:
    folder = state_folder(environ)
    try:
        return Installation(folder, environ, now, load_settings(environ))
    except ConfigError as error:
        return Installation(folder, environ, now, settings_error=str(error))


Findings = Iterator[Finding]


def make_finding(name: str, is_ok: bool, found: str, fix: str, bad_state: str = "fail") -> Finding:
    return Finding(name, "ok", found) if is_ok else Finding(name, bad_state, found, fix)


def finding_from_message(name: str, message: object, state: str = "fail") -> Finding:
    """A finding from a message whose first line says what is wrong, and whose other lines say what fixes it."""
    found, _, fix = str(message).partition("\n")
    return Finding(name, state, found, fix)


def duration(seconds: float) -> str:
    """A duration in the largest unit of which there are two or more, rounded down."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60))
    unit, size = next((pair for pair in units if seconds >= 2 * pair[1]), ("seconds", 1))
    return f"{max(0, int(seconds // size))} {unit}"
