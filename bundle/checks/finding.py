"""What a check finds, and what the checks look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bundle.errors import ConfigError
from bundle.settings import Settings, load_settings, state_folder


@dataclass(frozen=True)
class Finding:
    """`state` is ok, warn, fail or skip; `fix` is what to do, with a command or SQL statement in it."""

    name: str
    state: str
    found: str
    fix: str = ""
    group: str = ""


class NotConfiguredError(Exception):
    """A check needs the settings, and there are none: another check says why."""


@dataclass(frozen=True)
class Installation:
    """What the checks look at; `now` in seconds since the epoch. Without settings, `trouble` says why."""

    folder: Path
    environ: Mapping[str, str]
    now: float
    given: Settings | None = None
    trouble: str = ""

    @property
    def settings(self) -> Settings:
        if self.given is None:
            raise NotConfiguredError
        return self.given

    @property
    def master_key(self) -> str:
        """Unlike `auto_refresh.master_key` this makes none: looking must not change what is looked at."""
        path = self.folder / ".master_key"
        return self.settings.given_master_key or (path.read_text(encoding="ascii").strip() if path.exists() else "-")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The model rows of litellm_config.yaml; none when it is not there or damaged."""
        try:
            document = yaml.safe_load((self.folder / "litellm_config.yaml").read_text(encoding="utf-8"))
            return [row for row in document["model_list"] if row["litellm_params"]["model"] and row["model_name"]]
        except (OSError, yaml.YAMLError, LookupError, TypeError):
            return []


def read_installation(environ: Mapping[str, str], now: float) -> Installation:
    folder = state_folder(environ)
    try:
        return Installation(folder, environ, now, given=load_settings(environ))
    except ConfigError as error:
        return Installation(folder, environ, now, trouble=str(error))


Findings = Iterator[Finding]


def verdict(name: str, good: bool, found: str, fix: str, otherwise: str = "fail") -> Finding:
    return Finding(name, "ok", found) if good else Finding(name, otherwise, found, fix)


def from_message(name: str, message: object, state: str = "fail") -> Finding:
    """A message whose first line says what is wrong, and the others what fixes it."""
    found, _, fix = str(message).partition("\n")
    return Finding(name, state, found, fix)


def span(seconds: float) -> str:
    """A length of time in its largest unit, cut."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60))
    unit, size = next((pair for pair in units if seconds >= 2 * pair[1]), ("seconds", 1))
    return f"{max(0, int(seconds // size))} {unit}"
