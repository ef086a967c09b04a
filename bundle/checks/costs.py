"""Checks of what was spent today, and of the prices."""

from __future__ import annotations

from datetime import datetime

from bundle.bootstrap import make
from bundle.checks.finding import Finding, Findings, Installation, finding_from_message
from bundle.errors import ConfigError
from bundle.prices import read_prices
from bundle.spending import WARN_SHARE, Sum, dollars, money, read_today


def costs(installation: Installation) -> Findings:
    settings = installation.settings
    if not settings.ledger:
        yield Finding("Spent today", "ok", "not known, because LEDGER is off")
        return
    limit, today = settings.budget, spent_today(installation)
    if limit is None or today.usd < WARN_SHARE * limit:
        yield Finding("Spent today", "ok", words(today, limit))
    else:
        state, then = ("fail", "the proxy refuses requests until midnight") if today.usd >= limit else ("warn", "")
        raise_it = f"To spend more today, raise or remove BUDGET_USD_PER_DAY in {settings.budget_from}"
        fix = f"{raise_it}\nOn what it was spent: {make('usage')}"
        yield Finding("Spent today", state, ": ".join(filter(None, [words(today, limit), then])), fix)
    try:
        read_prices()
    except ConfigError as error:
        yield finding_from_message("Prices", error, "warn")


def spent_today(installation: Installation) -> Sum:
    spent = read_today(installation.folder, datetime.fromtimestamp(installation.now).astimezone())
    return spent.today if spent else Sum()


def words(today: Sum, limit: float | None) -> str:
    """What was spent, such as "$1.23 of $5.00 (12 requests, 91 % of the prompts read from the cache)"."""
    if not today.requests:
        return "nothing yet"
    share = "" if today.cached_share is None else f", {today.cached_share:.0%} of the prompts read from the cache"
    of = "" if limit is None else f" of {money(limit)}"
    return f"{dollars(today)}{of} ({today.requests} requests{share})"
