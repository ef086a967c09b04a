"""Checks of what was spent today, of the day's limit, of the ledger and of the prices."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from bundle import prices
from bundle.bootstrap import make
from bundle.checks.finding import Finding, Findings, Installation, finding_from_message, make_finding
from bundle.errors import ConfigError
from bundle.files import refuse_foreign
from bundle.ledger import FOLDER
from bundle.spending import WARN_SHARE, Spent, Sum, dollars, money, read_today

SPENT = "Spent today"
NAME = "BUDGET_USD_PER_DAY"
BLOCK_BYTES = 4096  # a disk with less than that takes no new line


def costs(installation: Installation) -> Findings:
    """The first finding is SPENT; it fails if the running proxy refuses requests."""
    settings = installation.settings
    spent = read_today(installation.folder, datetime.fromtimestamp(installation.now).astimezone())
    old = old_limit(installation, spent)
    limit = spent.limit if spent and old else settings.budget
    if spent is None and not settings.ledger:
        yield Finding(SPENT, "ok", "not known, because LEDGER is off")
    else:
        place = f"{NAME} of the running proxy" if old else f"{NAME} in {settings.budget_from}"
        today, unpriced = (spent.today, spent.without_price) if spent else (Sum(), [])
        yield of_today(today, limit, place, unpriced)
    if old:
        yield old
    if settings.ledger:
        yield ledger(installation, has_limit=limit is not None)
    try:
        prices.read_prices()
    except ConfigError as error:
        yield finding_from_message("Prices", error, "warn" if limit is None else "fail")


def reached_limit(installation: Installation) -> Finding | None:
    """The finding that says so, while the running proxy refuses requests because of the day's limit."""
    found = next(costs(installation))
    return found if found.state == "fail" else None


def of_today(today: Sum, limit: float | None, place: str, unpriced: Sequence[str]) -> Finding:
    """`place` says where the limit stands, `unpriced` names the models of today without a price."""
    state, found, fix = "ok", words(today, limit), list[str]()
    if limit is not None and today.usd >= WARN_SHARE * limit:
        restart = "" if "line " in place else f", then: {make('stop', 'start')}"  # an environment is read at the start
        fix = [f"To go on before midnight, raise or remove {place}{restart}", f"On what it was spent: {make('usage')}"]
        state = "warn"
        if today.usd >= limit:
            state, found = "fail", f"{found}: the proxy refuses requests until midnight, because of {place}"
    if limit is not None and unpriced:
        state = "warn" if state == "ok" else state
        found = f"{found}. The limit does not hold for {', '.join(unpriced)}: some tokens have no price"
        fix.append(f"Fill in the prices that are missing in {prices.FILE}")
    return Finding(SPENT, state, found, "\n".join(fix))


def old_limit(installation: Installation, spent: Spent | None) -> Finding | None:
    """A finding if the proxy that runs has another limit than the settings: it has those of its own environment."""
    settings = installation.settings
    if spent is None or spent.limit == settings.budget:
        return None
    with suppress(ConfigError):  # the check of the proxy shows the error
        if installation.listener().state == "ours":
            said = f"say {money(settings.budget)} ({settings.budget_from})" if settings.budget else "name none"
            uses = f"uses {money(spent.limit)}" if spent.limit else "has none"
            fix = f"To make it use the settings of this shell: {make('stop', 'start')}"
            return Finding("Limit", "warn", f"the running proxy {uses} for a day, but the settings {said}", fix)
    return None


def words(today: Sum, limit: float | None) -> str:
    """What was spent, such as "$1.23 of $5.00 (12 requests, 91 % of the prompts read from the cache)". A "~" before it
    says that it is an estimate, as in the status line."""
    if not today.requests:
        return "nothing yet"
    share = "" if today.cached_share is None else f", {today.cached_share:.0%} of the prompts read from the cache"
    about = "~" if today.high - today.low > 0.01 * today.high and not today.unpriced else ""
    of = "" if limit is None else f" of {money(limit)}"
    return f"{about}{dollars(today)}{of} ({today.requests} requests{share})"


# --------------------------------------------------------------------------------------------------------------- ledger


def ledger(installation: Installation, *, has_limit: bool) -> Finding:
    place = installation.folder / FOLDER
    if why := why_no_line(installation.folder, installation.now):
        then = "answers are not counted after a restart, also not for the limit" if has_limit else "no answer is kept"
        quoted = shlex.quote(str(place))
        fix = f"Look at it: ls -ld {quoted}; ls -l {quoted}; df -h {shlex.quote(str(installation.folder))}"
        return Finding("Ledger", "fail" if has_limit else "warn", f"{why}, so {then}", fix)
    return make_finding("Ledger", True, str(place), "")


def why_no_line(folder: Path, now: float) -> str:
    """Why the ledger in `folder` gets no new line; "" if it gets one. Nothing is written to find out."""
    place = folder / FOLDER
    path = place / f"{datetime.fromtimestamp(now, timezone.utc):%Y-%m}.jsonl"
    if (place.exists() or place.is_symlink()) and not place.is_dir():
        return f"{place} is no folder"
    nearest = place if place.exists() else folder
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            refuse_foreign(path, os.fstat(descriptor))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if not os.access(nearest, os.W_OK | os.X_OK):
            return f"{nearest} cannot be written"
    except OSError as error:
        return f"{path} cannot be written ({error.strerror})"
    except ConfigError as error:
        return str(error).partition("\n")[0].rstrip(".")
    return "" if shutil.disk_usage(nearest).free >= BLOCK_BYTES else f"the disk of {nearest} is full"
