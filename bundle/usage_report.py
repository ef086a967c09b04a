"""What `make usage` says of the ledger: rows by day, model, session or hour, the three sums, and the sentences.

Days and hours are on this machine's clock. "The last 7 days" are today and the six days before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import Any

from bundle.ledger import ESTIMATED, Line
from bundle.prices import Factor, Price
from bundle.spending import TOKENS, Sum, money, sums, total

WEEK = 7  # days
OFF = "LEDGER is off: the proxy counts nothing any more."
LOW_SHARE, LEAST_REQUESTS, LEAST_PROMPT = 0.5, 10, 200_000  # when the share of the cache is worth a sentence
# What each row is for, in the order of the output for scripts.
KEYS: Mapping[str, tuple[str, ...]] = {
    "day": ("date", "model"),
    "model": ("model",),
    "session": ("date", "began", "session", "model"),
    "hour": ("date", "hour", "model"),
}


@dataclass(frozen=True)
class Row:
    """What was spent on one thing: `keys` say which. `tokens` is None if it is the sum's own."""

    keys: Mapping[str, str]
    amount: Sum
    tokens: int | None = None

    @property
    def total(self) -> int:
        return self.amount.tokens if self.tokens is None else self.tokens


@dataclass(frozen=True)
class Spending:
    """What the ledger says, as `summed_up` makes it: a row for each hour, session, model, route and kind of split.
    `sessions` has the first and the last time of each session, the newest session at the end."""

    parts: Sequence[Row]
    sessions: dict[str, tuple[datetime, datetime]]
    factor: Factor
    today: date

    def since(self, days: int) -> Spending:
        first = f"{self.today - timedelta(days=days - 1):%Y-%m-%d}"
        return self.only(lambda keys: keys["date"] >= first)

    def of_session(self, session: str) -> Spending:
        return self.only(lambda keys: keys["session"] == session)

    def only(self, wanted: Callable[[Mapping[str, str]], bool]) -> Spending:
        return replace(self, parts=[part for part in self.parts if wanted(part.keys)])

    def sum(self) -> Sum:
        return total(part.amount for part in self.parts)

    def newest_session(self) -> str:
        """Its name; empty if no client has named one."""
        return next((session for session in reversed(self.sessions) if session), "")

    def rows(self, by: str, *extra: str) -> list[Row]:
        """The newest first, then the dearest. `extra` are further names of keys."""
        names, groups = (*KEYS[by], *extra), dict[tuple[str, ...], list[Sum]]()
        for part in self.parts:
            keys = dict(part.keys)
            if by == "session":
                first, _ = self.sessions[keys["session"]]
                keys |= {"date": f"{first:%Y-%m-%d}", "began": f"{first:%H:%M}"}
            groups.setdefault(tuple(keys[name] for name in names), []).append(part.amount)
        rows = [Row(dict(zip(names, key, strict=True)), total(amounts)) for key, amounts in groups.items()]
        when = ("date", "began", "hour", "session")
        rows = dearest_first(row for row in rows if row.amount.requests)
        return sorted(rows, key=lambda row: [row.keys.get(name, "") for name in when], reverse=True)


def summed_up(lines: Iterable[Line], prices: Mapping[str, Price], factor: Factor, today: date) -> Spending:
    """Each line is looked at once, because a month can have a hundred thousand."""
    sessions: dict[str, tuple[datetime, datetime]] = {}

    def key(line: Line) -> tuple[str, ...]:
        at = line.at()
        if line.used:
            first, last = sessions.get(line.session, (at, at))
            sessions[line.session] = (min(first, at), max(last, at))
        return f"{at:%Y-%m-%d}", f"{at:%H}:00", line.session, line.model, line.route, line.split

    names = ("date", "hour", "session", "model", "route", "split")
    found = sums(lines, key, prices, factor.number)
    parts = [Row(dict(zip(names, values, strict=True)), each) for values, each in found.items()]
    return Spending(parts, dict(sorted(sessions.items(), key=lambda item: item[1][1])), factor, today)


def first_moment(today: date, days: int) -> datetime:
    """When the last `days` days have begun on this machine's clock."""
    return datetime.combine(today - timedelta(days=days - 1), time()).astimezone()


def as_json(row: Row) -> dict[str, Any]:
    """A row for a script. `usd` and `usd_high` are None if a part has no price: `usd_low` is then the rest."""
    amount, is_whole = row.amount, not row.amount.unpriced
    return {
        **row.keys,
        "requests": amount.requests,
        **{name: getattr(amount, name) for name in TOKENS},
        "usd": usd(amount),
        "usd_low": round(amount.low, 6),
        "usd_high": round(amount.high, 6) if is_whole else None,
    }


def usd(amount: Sum) -> float | None:
    """The dollars; None if a part has no price."""
    return None if amount.unpriced else round(amount.usd, 6)


def overview(spending: Spending) -> list[Row]:
    """The three sums: today, this week, the newest session."""
    found = {"today": spending.since(1), f"last {WEEK} days": spending.since(WEEK)}
    if session := spending.newest_session():
        found["newest session"] = spending.of_session(session)
    return [Row({"of": name}, each.sum()) for name, each in found.items()]


def about_newest_session(spending: Spending) -> str:
    """When the newest session was, and which models answered; "" if there is none."""
    session = spending.newest_session()
    if not session:
        return ""
    first, last = spending.sessions[session]
    day = "today" if first.date() == spending.today else f"{first:%Y-%m-%d}"
    until = "" if last.date() == first.date() else "today " if last.date() == spending.today else f"{last:%Y-%m-%d} "
    models = ", ".join(row.keys["model"] for row in spending.of_session(session).rows("model"))
    return f"The newest session: {day} {first:%H:%M} to {until}{last:%H:%M}, with {models}."


def sentences(spending: Spending, days: int) -> list[str]:
    """What a reader must know of what was spent in the last `days` days, and what can be done about it."""
    amount = spending.sum()
    found = [low_share(spending), estimate(spending, days), unknown(amount), spending.factor.why if amount.usd else ""]
    return [sentence for sentence in (*found, without_price(spending.rows("model"))) if sentence]


def nothing(spending: Spending, days: int) -> str:
    """What is said in place of this machine's part."""
    found = (f"This machine's proxy has counted no answer in {period(days)}.", unknown(spending.sum()))
    return " ".join(sentence for sentence in found if sentence)


def low_share(spending: Spending) -> str:
    """What to do if little was read from the cache: Claude's cache, because that is what a user can influence."""
    claude = spending.only(lambda keys: keys["model"].startswith("claude"))
    periods = {"today": claude.since(1), f"in the last {WEEK} days": claude.since(WEEK)}
    if session := spending.newest_session():
        periods = {"in the newest session": claude.of_session(session), **periods}
    for words, each in periods.items():
        amount, share = each.sum(), each.sum().cached_share
        if share is None or amount.requests < LEAST_REQUESTS or amount.prompt < LEAST_PROMPT or share >= LOW_SHARE:
            continue
        routes = {part.keys["route"] for part in each.parts}
        way = ", and CLAUDE_ROUTE=messages can cache more of a session (docs/routes.md)" if "chat" in routes else ""
        return (
            f"Only {percent(share)} of the prompts {words} came from the cache, where a token costs a tenth: "
            f"a pause of more than five minutes ends the cache{way}."
        )
    return ""


def estimate(spending: Spending, days: int) -> str:
    """How the split of the chat route's cache is known, and between which amounts the truth is."""
    if not any(part.keys["split"] == ESTIMATED for part in spending.parts):
        return ""
    amount = spending.sum()
    way = (
        "On chat completions, Cortex tells reads and writes of the cache as one number, so the split is an estimate: "
        "what the proxy has sent in the five minutes before counts as read"
    )
    low, high = money(amount.low), money(amount.high)
    if low == high:
        return f"{way}."
    least = "at least " if amount.unpriced else ""
    return f"{way} ({period(days)} cost {least}{low} if all was read, and {least}{high} if all was written)."


def period(days: int) -> str:
    return f"the last {days} days" if days > 1 else "the last 24 hours"


def unknown(amount: Sum) -> str:
    if not amount.unknown:
        return ""
    answers = "1 answer" if amount.unknown == 1 else f"{amount.unknown:,} answers"
    why = "ended before Cortex said all tokens"
    return f"{answers} {why}: these are not, or not wholly, counted, and may have cost something."


def without_price(rows: Iterable[Row]) -> str:
    """Which models of these rows have tokens without a price."""
    models = list(dict.fromkeys(row.keys["model"] for row in rows if row.amount.unpriced))
    if not models:
        return ""
    return f"No price is known for some tokens of {', '.join(models)}: prices.yaml can be filled in."


def percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.0f} %"


def range_of(amount: Sum) -> str:
    """The range of the estimate; "" if there is none, and if its upper end is not known because a part has no price."""
    low, high = money(amount.low), money(amount.high)
    return "" if amount.unpriced or low == high else f"{low} to {high}"


def added_by(name: str, rows: Iterable[Row]) -> list[Row]:
    """The rows added up for each day ("date") or "model", in the order in which these come first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.keys[name], []).append(row)
    return [added(each, {name: value}) for value, each in groups.items()]


def dearest_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.amount.usd, row.total), reverse=True)


def added(rows: Sequence[Row], keys: Mapping[str, str]) -> Row:
    return Row(keys, total(row.amount for row in rows), sum(row.total for row in rows))
