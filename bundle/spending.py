"""Sums of the ledger's lines in tokens and dollars, and what this day has cost so far (`.spent.json`).

The proxy keeps the sums of today and of each session while it runs, and writes them after each answer: so the status
line, which has 50 milliseconds, and `make status` read one small file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bundle.cortex.usage import Used
from bundle.errors import ConfigError
from bundle.files import read_own
from bundle.ledger import ESTIMATED, Line
from bundle.prices import Cost, Price, cost

FILE = ".spent.json"
MOST_SESSIONS = 100  # the newest; a status line shows its own
MOST_MODELS = 20  # of a session
KEPT_DAYS = 7  # at a start of the proxy, a session's sum begins with its answers of these days
MOST_DAYS = 10  # whose sums are kept
WARN_SHARE = 0.8  # of the day's limit
TOKENS = ("input", "cache_read", "cache_write", "output")


@dataclass
class Sum:
    """What some answers have used; those that Cortex has refused cost nothing, and are not counted. `unknown` is the
    number of answers whose tokens are not, or not all, known, because they ended too early. Dollars: see `prices.Cost`.
    """

    requests: int = 0
    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    usd: float = 0.0
    low: float = 0.0
    high: float = 0.0
    unpriced: int = 0
    unknown: int = 0

    def add(self, line: Line, spent: Cost) -> None:
        used = line.used
        self.unknown += used is None or line.output is None
        if used is None or (line.status >= 400 and used == Used()):
            return
        self.requests += 1
        for name in TOKENS:
            setattr(self, name, getattr(self, name) + getattr(used, name))
        for each in fields(Cost):
            setattr(self, each.name, getattr(self, each.name) + getattr(spent, each.name))

    @property
    def prompt(self) -> int:
        """All tokens of the prompts."""
        return self.input + self.cache_read + self.cache_write

    @property
    def tokens(self) -> int:
        return self.prompt + self.output

    @property
    def cached_share(self) -> float | None:
        """The share of the prompts that was read from the cache, from 0 to 1; None: there was no prompt."""
        return self.cache_read / self.prompt if self.prompt else None


def cost_of(line: Line, prices: Mapping[str, Price], factor: float) -> Cost:
    used = line.used
    return cost(used, prices.get(line.model), factor, estimated=line.split == ESTIMATED) if used else Cost()


def sums(
    lines: Iterable[Line], key: Callable[[Line], Any], prices: Mapping[str, Price], factor: float
) -> dict[Any, Sum]:
    """The sum of the lines of each key, in the order in which the keys come first."""
    found: dict[Any, Sum] = {}
    for line in lines:
        found.setdefault(key(line), Sum()).add(line, cost_of(line, prices, factor))
    return found


def total(amounts: Iterable[Sum]) -> Sum:
    every = list(amounts)
    return Sum(**{each.name: sum(getattr(amount, each.name) for amount in every) for each in fields(Sum)})


def dollars(amount: Sum) -> str:
    """$1.23, "at least $1.23" if some tokens have no price, or "no price" if none has one."""
    if amount.unpriced and not amount.usd:
        return "no price"
    return f"{'at least ' if amount.unpriced else ''}{money(amount.usd)}"


def money(usd: float) -> str:
    """$1,234, $12.34, $0.0123; less than $0.0001 is rounded up to it, because only what costs nothing is $0.00."""
    return f"${usd:,.0f}" if usd >= 1_000 else f"${usd:.2f}" if usd >= 0.1 or not usd else f"${max(usd, 0.0001):.4f}"


@dataclass
class Session:
    """What one session of Claude Code has cost. `models` has, for each model that was asked for, the one that has
    answered, the newest answer at the end."""

    spent: Sum = field(default_factory=Sum)
    models: dict[str, str] = field(default_factory=dict)

    def add(self, line: Line, spent: Cost) -> None:
        self.spent.add(line, spent)
        if line.used:
            self.models.pop(line.asked, None)
            self.models[line.asked] = line.model
            for first in list(self.models)[:-MOST_MODELS]:
                del self.models[first]


@dataclass
class Spent:
    """What was spent on a day and in each session, as the running proxy knows it. `day` is the date on this machine's
    clock, `limit` the dollars that may be spent on it (None: no limit), `without_price` the models whose tokens of this
    day do not all have a price."""

    day: str = ""
    today: Sum = field(default_factory=Sum)
    sessions: dict[str, Session] = field(default_factory=dict)
    limit: float | None = None
    without_price: list[str] = field(default_factory=list)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


class Sums:
    """The sums of the last days and sessions. A day is one of this machine's clock, which may also be set back."""

    def __init__(self) -> None:
        self._days: dict[str, Sum] = {}
        self._without_price: dict[str, set[str]] = {}  # by day
        self._sessions: dict[str, Session] = {}

    def add(self, line: Line, spent: Cost) -> None:
        day = f"{line.at():%Y-%m-%d}"
        self._days.setdefault(day, Sum()).add(line, spent)
        if spent.unpriced:
            self._without_price.setdefault(day, set()).add(line.model)
        for old in sorted(self._days)[:-MOST_DAYS]:
            del self._days[old]
            self._without_price.pop(old, None)
        if line.session:
            session = self._sessions.pop(line.session, None) or Session()
            session.add(line, spent)
            self._sessions[line.session] = session  # at the end: the newest
            for first in list(self._sessions)[:-MOST_SESSIONS]:
                del self._sessions[first]

    def of(self, day: str, limit: float | None) -> Spent:
        without = sorted(self._without_price.get(day, ()))
        return Spent(day, self._days.get(day, Sum()), self._sessions, limit, without)


def first_day(now: datetime) -> datetime:
    """From when on the ledger is read for these sums."""
    return now - timedelta(days=KEPT_DAYS)


def read_today(folder: Path, now: datetime) -> Spent | None:
    """What was spent today; None if nothing is known of today."""
    try:
        kept = json.loads(read_own(folder / FILE))
        names = [each.name for each in fields(Sum)]
        today = Sum(**{name: kept["today"][name] for name in names})
        without = [str(name) for name in kept["without_price"]]
        spent = Spent(str(kept["day"]), today, limit=kept["limit"], without_price=without)
    except (OSError, ConfigError, ValueError, TypeError, LookupError):
        return None
    return spent if spent.day == f"{now:%Y-%m-%d}" else None
