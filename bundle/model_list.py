"""The models that the account lists, as the refresher keeps them beside its state: `.models.json`.

The refresher and models.py write this file, whole. Everybody else reads it. It has no secret in it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from bundle.cortex.catalogue import ENDED, LEGACY, Listed
from bundle.errors import ConfigError
from bundle.files import read_own, write_private
from bundle.settings import Settings

FILE = ".models.json"


@dataclass(frozen=True)
class ModelList:
    """What an account lists. `asked_at` is in seconds since the epoch. `region` is the account's own region, and
    `cross_region` its CORTEX_ENABLED_CROSS_REGION; "" if Snowflake did not say."""

    account: str
    host: str
    asked_at: int
    models: tuple[Listed, ...] = ()
    region: str = ""
    cross_region: str = ""

    def find(self, name: str) -> Listed | None:
        return next((model for model in self.models if model.name == name), None)

    def needs_cross_region(self, model: Listed) -> bool:
        """Whether the account's region does not serve a model itself (docs/cortex.md#sql-models-region)."""
        return bool(self.region) and self.region not in model.regions

    def reaches(self, model: Listed) -> bool | None:
        """Whether the account can use a model where it runs; None: not known (docs/cortex.md#sql-models-region)."""
        if not self.region or not self.cross_region:
            return None
        return self.region in model.regions or bool({*self.cross_region.split(",")} & {*model.scopes})


def save(settings: Settings, listed: ModelList) -> None:
    """Write the list. Raises ConfigError."""
    write_private(settings.folder / FILE, json.dumps(asdict(listed), indent=1) + "\n")


def read(settings: Settings) -> ModelList | None:
    """The list that was kept for this account; None if there is none, or if the file is damaged or somebody else's."""
    try:
        kept = json.loads(read_own(settings.folder / FILE))
        texts = {name: str(kept[name]) for name in ("account", "host", "region", "cross_region")}
        listed = ModelList(**texts, asked_at=int(kept["asked_at"]), models=tuple(map(_model, kept["models"])))
    except (OSError, ConfigError, ValueError, TypeError, LookupError):
        return None
    return listed if (listed.account, listed.host) == (settings.account, settings.base_url) else None


def _model(kept: dict[str, Any]) -> Listed:
    texts = {name: str(kept[name]) for name in ("name", "stage", "legacy", "ends")}
    return Listed(**texts, regions=tuple(map(str, kept["regions"])), scopes=tuple(map(str, kept["scopes"])))


def warnings(models: Collection[str], listed: ModelList | None) -> list[str]:
    """A sentence for each of these models that is past its legacy date, or that has ended."""
    found = [model for name in dict.fromkeys(models) if listed and (model := listed.find(name))]
    return [sentence for model in found if listed and (sentence := _warning(model, listed.asked_at))]


def _warning(model: Listed, asked_at: int) -> str:
    """docs/cortex.md#sql-models-stages. The list is at most a day old, so its day is as good as today."""
    day, past = time.strftime("%Y-%m-%d", time.gmtime(asked_at)), _as_date(model.legacy)
    if model.stage == ENDED:
        return f"{model.name} has ended on Cortex{f' ({model.ends})' if model.ends else ''}"
    if model.stage != LEGACY and not (past and past <= day):
        return ""
    since = f" since {model.legacy}" if model.legacy else ""
    ends = f"it ends on {model.ends}" if _as_date(model.ends) else f"its end: {model.ends or 'not dated yet'}"
    return f"{model.name} is a legacy model{since}; {ends}"


def _as_date(text: str) -> str:
    """YYYY-MM-DD if a free text of Snowflake is just a date, else ""."""
    found = re.fullmatch(r"(\d{4})[-/](\d{2})[-/](\d{2})", text.strip())
    return "-".join(found.groups()) if found else ""
