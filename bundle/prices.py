"""What a token costs on Cortex, from prices.yaml (docs/cortex.md#prices)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bundle.bootstrap import BUNDLE
from bundle.errors import ConfigError, printable

FILE = BUNDLE / "prices.yaml"
MOST_DOLLARS = 10_000  # for a million tokens


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens of each kind; None: no price is known."""

    input: float | None = None
    cache_write: float | None = None
    cache_read: float | None = None
    output: float | None = None


KINDS = tuple(field.name for field in fields(Price))


def read_prices(path: Path = FILE) -> dict[str, Price]:
    """The price of each model. Raises ConfigError for a file that is missing or has a mistake."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        listed = document.get("prices") if isinstance(document, dict) else None
        if not isinstance(listed, dict):
            raise ValueError("there must be `prices:` with a line for each model")
        return {str(model): _price(str(model), entry) for model, entry in listed.items()}
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
    see = f"git -C {shlex.quote(str(path.parent))} diff {path.name}"
    raise ConfigError(f"cannot read {path}: {printable(why)}.\nTo see what was changed in it: {see}")


def _price(model: str, entry: Any) -> Price:
    """Raises ValueError for what is no price."""
    if not isinstance(entry, dict):
        raise ValueError(f"{model}: a price looks like {{ input: 2.00, output: 10.00 }}")
    if unknown := [str(key) for key in entry if key not in {*KINDS, "source", "date"}]:
        raise ValueError(f"{model}: {unknown[0]} is not known. The kinds are {', '.join(KINDS)}")
    found = {kind: entry[kind] for kind in KINDS if entry.get(kind) is not None}
    for kind, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MOST_DOLLARS:
            raise ValueError(f"{model}: {kind} must be a number of dollars from 0 to {MOST_DOLLARS:,}")
    return Price(**found)
