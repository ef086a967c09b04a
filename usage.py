#!/usr/bin/env python3
"""Show the tokens that were spent on Cortex, by day and model.

Snowflake keeps the counts in a view of SNOWFLAKE.ACCOUNT_USAGE, for the whole account and up to two hours late. This
script reads that view through the SQL API, with the same credential as the proxy, and writes no file.

Exit status: 0 done, even if the view is empty; 1 the query failed; 78 a configuration error.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from bundle.bootstrap import EX_CONFIG, enter_venv

if __name__ == "__main__":
    enter_venv()

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from bundle.errors import ConfigError, printable, say
from bundle.settings import Settings, load_settings
from bundle.sql_api import DOCTOR, QueryError, query

NO_PRIVILEGE = "002003"  # Snowflake's code: the view does not exist, or this role may not read it
LAG = "The view lags: the last two hours may be missing."
NARROW = 72  # columns; a narrower terminal gets only the two most important numbers
Row = dict[str, Any]
NUMBERS = {  # name in the output: column of the SQL result
    "requests": "TOTAL_REQUESTS",
    "input": "TOTAL_INPUT_TOKENS",
    "output": "TOTAL_OUTPUT_TOKENS",
    "cache_read": "TOTAL_CACHE_READ_TOKENS",
    "cache_write": "TOTAL_CACHE_WRITE_TOKENS",
    "total": "TOTAL_TOKENS",
}


def statement(days: int) -> str:
    """The SQL for the last `days` times 24 hours (docs/cortex.md#sql-usage-view)."""
    return f"""\
SELECT
    TO_CHAR(START_TIME, 'YYYY-MM-DD') AS USAGE_DATE,
    MODEL_NAME AS MODEL_NAME,
    COUNT(*) AS TOTAL_REQUESTS,
    SUM(TOKENS) AS TOTAL_TOKENS,
    SUM(COALESCE(TOKENS_GRANULAR:input::NUMBER, 0)) AS TOTAL_INPUT_TOKENS,
    SUM(COALESCE(TOKENS_GRANULAR:output::NUMBER, 0)) AS TOTAL_OUTPUT_TOKENS,
    SUM(COALESCE(TOKENS_GRANULAR:cache_read_input::NUMBER, 0)) AS TOTAL_CACHE_READ_TOKENS,
    SUM(COALESCE(TOKENS_GRANULAR:cache_write_input::NUMBER, 0)) AS TOTAL_CACHE_WRITE_TOKENS
FROM SNOWFLAKE.ACCOUNT_USAGE.CORTEX_REST_API_USAGE_HISTORY
WHERE START_TIME >= DATEADD('day', -{days}, CURRENT_TIMESTAMP())
GROUP BY USAGE_DATE, MODEL_NAME
ORDER BY USAGE_DATE DESC, TOTAL_TOKENS DESC;"""  # noqa: S608 - `days` is a whole number


def grant_message(settings: Settings) -> str:
    """The message with the statements that let the user's default role read the view."""
    try:
        role = str(next(iter(query(settings, "SELECT CURRENT_ROLE() AS ROLE")[0].values())))
    except (QueryError, IndexError, StopIteration):
        role = "<default role>"
    role = printable(role, 255)
    role = role if re.fullmatch(r"[A-Z_][A-Z0-9_$]*|<.*>", role) else '"' + role.replace('"', '""') + '"'
    return (
        f"the role {role} of {settings.user} may not read the view. Run this as ACCOUNTADMIN (the narrow grant):\n"
        f"  GRANT DATABASE ROLE SNOWFLAKE.USAGE_VIEWER TO ROLE {role};\n"
        f"or, for all of ACCOUNT_USAGE:\n  GRANT IMPORTED PRIVILEGES ON DATABASE SNOWFLAKE TO ROLE {role};"
    )


def to_numbers(answer: Sequence[Mapping[str, str | None]]) -> list[Row]:
    """Convert Snowflake's rows (text or null) to rows with date, model and whole numbers."""
    return [
        {"date": printable(row.get("USAGE_DATE"), 20), "model": printable(row.get("MODEL_NAME") or "(unknown)", 200)}
        | {name: count(column, row.get(column, "nothing")) for name, column in NUMBERS.items()}
        for row in answer
    ]


def count(column: str, text: object) -> int:
    """A number of Snowflake's answer. Anything but a count (NaN, 1E9999999, -1, a word) is an error, and not a sum."""
    if found := re.fullmatch(r"([0-9]{1,18})(\.0{1,40})?", "0" if text is None else str(text)[:100]):
        return int(found[1])
    raise QueryError(f"Snowflake's answer has no count in {column}: {printable(text, 100)}.\n{DOCTOR}")


def harmless(cell: object) -> object:
    """The cell of a CSV file. A spreadsheet would run a text that starts like a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def short(number: int) -> str:
    """At most seven characters: 9,999, 45.7k, 12.3M."""
    for size, least, letter in ((10**9, 10**9, "B"), (10**6, 10**6, "M"), (10**3, 10**4, "k")):
        if number >= least:
            return f"{number / size:.1f}{letter}"
    return f"{number:,}"


def show(rows: Sequence[Row], days: int) -> None:
    """Print the table. A terminal with colour also gets colour, short numbers and bars."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    styled, narrow = _styled(sys.stdout), width < NARROW
    number = short if styled else "{:,}".format
    names = ("requests", "total") if narrow else tuple(NUMBERS)
    table = Table("date", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(name.replace("_", "\n" if styled else " "), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["date"], row["model"], *(number(row[name]) for name in names))
    table.add_row("all", "", *(number(sum(row[name] for row in rows)) for name in names), style="bold")
    console = Console(highlight=False, markup=False, width=width, force_terminal=styled)
    print(f"Tokens on Snowflake Cortex, whole account, last {days} days.\n{LAG}\n", flush=True)
    console.print(table)
    if styled and not narrow:
        console.print("", _bars(rows, min(50, width - 25)), sep="\n")


def _bars(rows: Sequence[Row], width: int) -> Table:
    """A bar for each day. The longest bar is `width` columns wide."""
    totals: Counter[str] = Counter()
    for row in rows:
        totals[row["date"]] += row["total"]
    chart = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for day, total in totals.items():
        chart.add_row(day, Bar(max(totals.values()) or 1, 0, total, width=width, color="cyan"), short(total))
    return chart


def _styled(stream: Any) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _progress() -> AbstractContextManager[object]:
    message = "Asking Snowflake; starting a suspended warehouse takes a minute …"
    if _styled(sys.stderr):
        return Console(stderr=True).status(message)
    if sys.stderr.isatty():
        print(message, file=sys.stderr)
    return nullcontext()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tokens spent on Cortex, by day and model.")
    parser.add_argument("--days", type=int, default=7, metavar="N", help="number of days (default 7, at most 365)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--json", action="store_true", help="print JSON, for scripts")
    choice.add_argument("--csv", action="store_true", help="print CSV, for spreadsheets")
    choice.add_argument("--sql", action="store_true", help="print the SQL statement, to run in Snowsight")
    options = parser.parse_args(arguments)
    if not 1 <= options.days <= 365:
        parser.error("--days must be from 1 to 365")
    if options.sql:
        print(statement(options.days))
        return 0
    try:
        settings = load_settings()
        with _progress():
            try:
                rows = to_numbers(query(settings, statement(options.days)))
            except QueryError as error:
                if error.code != NO_PRIVILEGE or "warehouse" in error.detail.lower():
                    raise
                raise QueryError(grant_message(settings)) from None
    except (ConfigError, QueryError) as error:
        say(f"usage.py: {error}", sys.stderr)
        return EX_CONFIG if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(rows, indent=2))
    elif options.csv:
        writer = csv.DictWriter(sys.stdout, ["date", "model", *NUMBERS], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: harmless(cell) for name, cell in row.items()} for row in rows)
    elif rows:
        show(rows, options.days)
    else:
        print(f"Cortex's REST API was not used in the last {options.days} days. {LAG}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
