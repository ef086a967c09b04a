"""What a token costs on Cortex, from prices.yaml (docs/cortex.md#prices)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from bundle.bootstrap import BUNDLE
from bundle.cortex.usage import Used
from bundle.errors import ConfigError, printable
from bundle.model_list import ModelList

FILE = BUNDLE / "prices.yaml"
MOST_DOLLARS = 10_000  # for a million tokens
REGIONAL = 1.1  # docs/cortex.md#prices-routing


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens of each kind; None: no price is known."""

    input: float | None = None
    cache_write: float | None = None
    cache_read: float | None = None
    output: float | None = None


@dataclass(frozen=True)
class Cost:
    """US dollars. `low` and `high` are the cost if all cached tokens whose split is an estimate were reads, or all were
    writes. `unpriced` is the number of tokens without a price: if there are any, each amount is only a part."""

    usd: float = 0.0
    low: float = 0.0
    high: float = 0.0
    unpriced: int = 0


@dataclass(frozen=True)
class Factor:
    """What the prices are multiplied with. `why` is a sentence for the user."""

    number: float
    why: str


KINDS = tuple(field.name for field in fields(Price))


def read_prices(path: Path = FILE) -> dict[str, Price]:
    """The price of each model. Raises ConfigError for a file that is missing or has a mistake."""
    git = f"git -C {shlex.quote(str(path.parent))}"
    fix = f"To see what was changed in it: {git} diff {path.name}"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        listed = document.get("prices") if isinstance(document, dict) else None
        if not isinstance(listed, dict):
            raise ValueError("there must be `prices:` with a line for each model")
        return {str(model): _price(str(model), entry) for model, entry in listed.items()}
    except FileNotFoundError as error:
        why, fix = error.strerror, f"To bring it back: {git} checkout {path.name}"
    except OSError as error:
        why, fix = error.strerror, f"Check with: ls -ld {shlex.quote(str(path))}"
    except RecursionError:
        why = "it is nested too deeply"
    except (ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
    raise ConfigError(f"cannot read {path}: {printable(why)}.\n{fix}")


def price_factor(given: float | None, listed: ModelList | None) -> Factor:
    """The factor of the account's routing (docs/cortex.md#prices-routing): PRICE_FACTOR if it is `given`, else what the
    kept list of the account says of its setting."""
    if given is not None:
        return Factor(given, f"The published prices times {given:g} (PRICE_FACTOR).")
    setting = listed.cross_region if listed else ""
    if not setting:
        why = "The published prices with global routing, because the account's setting is not known."
        return Factor(1.0, f"{why} With regional routing, set PRICE_FACTOR=1.1.")
    said = f"CORTEX_ENABLED_CROSS_REGION is {printable(setting, 100)}"
    if any(word == "ANY_REGION" or word.endswith("_GLOBAL") for word in setting.split(",")):
        return Factor(1.0, f"The published prices with global routing ({said}).")
    return Factor(REGIONAL, f"The published prices with regional routing, which is 10 % more ({said}).")


def cost(used: Used, price: Price | None, factor: float = 1.0, *, estimated: bool = False) -> Cost:
    """What these tokens cost. `factor` is 1.1 with regional routing (docs/cortex.md#prices). `estimated` says that the
    split of the cached tokens is an estimate: if one of the two prices is then missing, no cached token has a price,
    because each of them may be of that kind."""
    price, cached = price or Price(), used.cache_read + used.cache_write
    if estimated and None in {price.cache_read, price.cache_write}:
        price = replace(price, cache_read=None, cache_write=None)
    usd, unpriced = _sum(used, price)
    ends = (Used(used.input, cached, 0, used.output), Used(used.input, 0, cached, used.output))
    amounts = [_sum(end, price)[0] for end in ends] if estimated else [usd]
    return Cost(usd * factor, min(amounts) * factor, max(amounts) * factor, unpriced)


def _sum(used: Used, price: Price) -> tuple[float, int]:
    """(dollars, tokens without a price)"""
    numbers: Mapping[str, int] = {kind: getattr(used, kind) for kind in KINDS}
    dollars = sum(number * (getattr(price, kind) or 0) / 1_000_000 for kind, number in numbers.items())
    return dollars, sum(number for kind, number in numbers.items() if getattr(price, kind) is None)


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
