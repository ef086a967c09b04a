"""What a token costs on Cortex, from prices.yaml (docs/cortex.md#prices)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bundle.bootstrap import BUNDLE
from bundle.errors import ConfigError, printable

FILE = BUNDLE / "prices.yaml"


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
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))["prices"]
        return {str(model): _price(str(model), entry) for model, entry in listed.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
    except ValueError as error:
        why = str(error)
    raise ConfigError(f"cannot read {path}: {printable(why)}.\nTo see what was changed in it: git diff {path.name}")


def _price(model: str, entry: Mapping[str, Any]) -> Price:
    found = {kind: entry[kind] for kind in KINDS if entry.get(kind) is not None}
    for kind, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10_000:
            raise ValueError(f"{model}: {kind} must be a number of dollars")
    return Price(**found)
