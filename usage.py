#!/usr/bin/env python3
"""Show what was spent on Cortex, in dollars and tokens: first by this machine, then by the whole account.

What this machine has spent is in the proxy's own ledger: it is live, and nobody is asked. What the account has spent is
in a view of SNOWFLAKE.ACCOUNT_USAGE, up to two hours late: this script reads it through the SQL API, with the same
credential as the proxy. It writes no file.

Exit status: 0 something was shown, even if it is empty; 1 the query failed, and this machine has nothing to show;
78 the same for a configuration error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from bundle.bootstrap import EX_CONFIG, enter_venv, make, state_folder

if __name__ == "__main__":
    enter_venv()

from rich.console import Console

from bundle import account_usage, model_list, usage_report
from bundle.account_usage import LAG
from bundle.errors import ConfigError, printed, say
from bundle.ledger import read_lines
from bundle.prices import Factor, Price, price_factor, read_prices
from bundle.settings import Settings, load_settings
from bundle.spending import TOKENS
from bundle.sql_api import QueryError
from bundle.usage_report import KEYS, WEEK, Row, Spending, added_by, dearest_first, period
from bundle.usage_tables import PIPE, Page

HELP = """\
The first part is this machine's, from the proxy's own ledger, with days and hours of this machine's clock; the last 7
days are today and the six days before it. The second part is the account's, from Snowflake's view. The view knows days
and models only: --by session and --by hour change nothing in the second part, and need --local with --json or --csv."""


@dataclass(frozen=True)
class Known:
    """What both parts need; in place of settings there may be what is wrong with them."""

    settings: Settings | ConfigError
    prices: Mapping[str, Price]
    factor: Factor

    @property
    def off(self) -> str:
        """A sentence if the ledger is off, else ""."""
        return usage_report.OFF if isinstance(self.settings, Settings) and not self.settings.ledger else ""

    def spending(self, days: int) -> Spending:
        """What the ledger has of the last `days` days, and of this week. Raises ConfigError."""
        folder = self.settings.folder if isinstance(self.settings, Settings) else state_folder(os.environ)
        today = datetime.now(timezone.utc).astimezone().date()
        lines = read_lines(folder, usage_report.first_moment(today, max(days, WEEK)))
        return usage_report.summed_up(lines, self.prices, self.factor, today)

    def of_account(self, days: int) -> list[Row]:
        """Raises ConfigError, QueryError."""
        if isinstance(self.settings, ConfigError):
            raise self.settings
        with _progress():
            answer = account_usage.ask(self.settings, days)
        return account_usage.with_prices(answer, self.prices, self.factor.number)


def read_known() -> Known:
    try:
        prices = read_prices()
    except ConfigError as error:
        say(f"usage.py: {error}\nUntil then, tokens are shown without dollars.", sys.stderr)
        prices = {}
    try:
        settings = load_settings()
    except ConfigError as error:
        return Known(error, prices, price_factor(None, None))
    return Known(settings, prices, price_factor(settings.price_factor, model_list.read(settings)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What was spent on Cortex, by this machine and by the whole account.", epilog=HELP
    )
    parser.add_argument("--days", type=int, default=7, metavar="N", help="number of days (default 7, at most 365)")
    parser.add_argument("--by", choices=KEYS, default="day", help="what a row is for, beside its model (default day)")
    parser.add_argument("--local", action="store_true", help="only what this machine has spent: nobody is asked")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--json", action="store_true", help="print the account's rows, or with --local this machine's")
    choice.add_argument("--csv", action="store_true", help="the same for spreadsheets")
    choice.add_argument("--sql", action="store_true", help="print the SQL statement, to run in Snowsight")
    options = parser.parse_args(arguments)
    if not 1 <= options.days <= 365:
        parser.error("--days must be from 1 to 365")
    if (options.json or options.csv) and not options.local and options.by in {"session", "hour"}:
        parser.error(f"the account's view knows no {options.by}; for the rows of this machine, add --local")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.sql:
        print(account_usage.statement(options.days))
        return 0
    try:
        return local(options) if options.local else both(options)
    except KeyboardInterrupt:
        return 130


def local(options: argparse.Namespace) -> int:
    """Show this machine's part alone."""
    known = read_known()
    try:
        spending = known.spending(options.days)
    except ConfigError as error:
        say(f"usage.py: {error}", sys.stderr)
        return EX_CONFIG
    if isinstance(known.settings, ConfigError):
        say(f"usage.py: {known.settings}", sys.stderr)
    if options.json or options.csv:
        names = [*KEYS[options.by], "route", "requests", *TOKENS, "usd", "usd_low", "usd_high"]
        rows = spending.since(options.days).rows(options.by, "route")
        dump([usage_report.as_json(row) for row in rows], names, as_csv=options.csv)
    elif spending.sum().requests:
        show_local(_page(), spending, known.off, options)
    else:
        show_nothing(_page(), spending, known.off, options)
    return 0


def both(options: argparse.Namespace) -> int:
    """Show this machine's part, and then the account's; scripts get the account's rows."""
    known, page, spending = read_known(), _page(), None
    is_text = not (options.json or options.csv)
    if is_text:
        try:
            spending = known.spending(options.days)
        except ConfigError as error:
            say(f"usage.py: {error}", sys.stderr)
    has_local = bool(spending and spending.sum().requests)
    if spending and has_local:
        show_local(page, spending, known.off, options)
    try:
        rows = known.of_account(options.days)
    except (ConfigError, QueryError) as error:
        if not has_local:
            say(f"usage.py: {error}", sys.stderr)
            return EX_CONFIG if isinstance(error, ConfigError) else 1
        leave = f"To leave that part out: {make('usage', 'ARGS=--local')}"
        say(f"\nusage.py: what the whole account has spent is not known: {error}\n{leave}", sys.stderr)
        return 0
    if options.by == "model":
        rows = dearest_first(added_by("model", rows))
    if not is_text:
        names = [*(["date"] if options.by == "day" else []), "model", *account_usage.NUMBERS, "usd"]
        dump([account_usage.as_json(row) for row in rows], names, as_csv=options.csv)
        return 0
    if spending and not has_local:
        show_nothing(page, spending, known.off, options)
    show_account(page, rows, options)
    if not has_local and any(row.amount.usd for row in rows):
        page.say(known.factor.why)
    return 0


def show_nothing(page: Page, spending: Spending, off: str, options: argparse.Namespace) -> None:
    page.say(usage_report.nothing(spending, max(options.days, WEEK)))
    page.say(off)


def show_local(page: Page, spending: Spending, off: str, options: argparse.Namespace) -> None:
    page.say("What this machine has spent, as its proxy counts it (live).")
    page.say(off)
    page.sums(usage_report.overview(spending))
    page.say(usage_report.about_newest_session(spending))
    shown = spending.since(options.days)
    if shown.sum().requests:
        by = "model" if options.by == "model" else f"{options.by} and model"
        page.say(f"By {by}, {period(options.days) if options.days > 1 else 'today'}:")
        page.table(shown.rows(options.by), options.by)
        page.bars(added_by("date", shown.rows("day")))
    for sentence in usage_report.sentences(spending, max(options.days, WEEK)):
        page.say(sentence)


def show_account(page: Page, rows: Sequence[Row], options: argparse.Namespace) -> None:
    if not rows:
        page.say(f"Cortex's REST API was not used in {period(options.days)}, says the account's view. {LAG}")
        return
    page.say(f"What the whole account has spent, {period(options.days)}, from Snowflake's view. {LAG}")
    page.table(rows, "model" if options.by == "model" else "day")
    if options.by != "model":
        page.bars(added_by("date", rows))
    page.say(usage_report.without_price(rows))


def dump(rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, as_csv: bool) -> None:
    if not as_csv:
        print(json.dumps(rows, indent=2))
        return
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(cell) for name, cell in row.items()} for row in rows)


def harmless(cell: object) -> object:
    """The cell of a CSV file. A spreadsheet would run a text that starts like a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _page() -> Page:
    return Page(shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE, styled=_styled(sys.stdout))


def _styled(stream: Any) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _progress() -> AbstractContextManager[object]:
    message = "Asking Snowflake (a suspended warehouse takes a minute) …"
    if _styled(sys.stderr):
        return Console(stderr=True).status(message)
    if sys.stderr.isatty():
        print(message, file=sys.stderr)
    return nullcontext()


if __name__ == "__main__":
    sys.exit(printed("usage.py", main))
