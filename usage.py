#!/usr/bin/env python3
"""What was spent on Cortex, by day and model, from the account's own view.

Snowflake counts tokens itself, in SNOWFLAKE.ACCOUNT_USAGE. This asks that view through the SQL API, with the same key
pair as everything else here: the token is signed in memory, nothing is written. The view covers the whole account and
lags by up to two hours.

    python usage.py [--days N]          a table with bars in a terminal, plain text in a pipe
    python usage.py --json | --csv      for scripts
    python usage.py --sql               the statement, to run in Snowsight

Exit status: 0, also for an empty view; 1 when Snowflake could not be asked or refused; 78 for a configuration error.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from typing import Any
from urllib.parse import urljoin, urlsplit

from bundle.bootstrap import EX_CONFIG, enter_venv

if __name__ == "__main__":
    enter_venv()

import httpx
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from auto_refresh import ConfigError, Settings, load_settings, sign

STATEMENTS = "/api/v2/statements"
PATIENCE_SECONDS = 600  # a warehouse that must wake up and a large view take minutes, not hours
NO_PRIVILEGE = "002003"
DOCTOR = "Look closer with: python3 doctor.py"
STRANGE = f"something that is not from Snowflake's SQL API: a login page of the network, or a proxy?\n{DOCTOR}"
LAG = "The view lags: the last two hours may be missing."

Row = dict[str, Any]
NUMBERS = {  # our name: the statement's column
    "requests": "TOTAL_REQUESTS",
    "input": "TOTAL_INPUT_TOKENS",
    "output": "TOTAL_OUTPUT_TOKENS",
    "cache_read": "TOTAL_CACHE_READ_TOKENS",
    "cache_write": "TOTAL_CACHE_WRITE_TOKENS",
    "total": "TOTAL_TOKENS",
}


def statement(days: int) -> str:
    """The SQL for the last `days` times 24 hours: newest day first, in it the largest total first
    (docs/cortex.md#sql-usage-view)."""
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


# ------------------------------------------------------------------------------------------------------------ SQL API


class QueryError(Exception):
    """Snowflake could not be asked or refused; `str()` is the whole message with the remedy. `code` is Snowflake's."""

    def __init__(self, message: str, code: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.code, self.detail = code, detail


def query(settings: Settings, sql: str, sleep: Callable[[float], None] = time.sleep) -> list[dict[str, str | None]]:
    """Run one statement as the configured user; one mapping of column to text a row. Raises QueryError, ConfigError."""
    token = sign(settings, time.time()).value
    headers = {
        "Authorization": f"Bearer {token}",
        "X-Snowflake-Authorization-Token-Type": "KEYPAIR_JWT",
        "Accept": "application/json",
        "User-Agent": "claude-code-on-snowflake-cortex",
    }
    body = {"statement": sql, "timeout": PATIENCE_SECONDS}
    if settings.warehouse:
        body["warehouse"] = settings.warehouse
    try:
        # HTTPS_PROXY and SSL_CERT_FILE count, but a stand-in on this machine is never behind a proxy.
        https = settings.base_url.startswith("https:")
        with httpx.Client(headers=headers, timeout=60, trust_env=https) as client:
            answer = client.post(settings.base_url + STATEMENTS, json=body)
            waited, pause = 0.0, 0.5
            while answer.status_code == 202:
                if waited >= PATIENCE_SECONDS:
                    raise QueryError(f"the query is still running after {PATIENCE_SECONDS} s: ask for fewer --days.")
                sleep(pause)
                waited, pause = waited + pause, min(pause * 1.5, 5.0)
                answer = client.get(_own_url(settings, _document(settings, answer).get("statementStatusUrl")))
            first = _document(settings, answer)
            meta, rows = first["resultSetMetaData"], list(first["data"])
            for number in range(1, len(meta.get("partitionInfo", [None]))):
                url = _own_url(settings, f"{STATEMENTS}/{first['statementHandle']}")
                rows += _document(settings, client.get(url, params={"partition": number}))["data"]
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise QueryError(unreachable(settings, error)) from None
    except (KeyError, TypeError, AttributeError):
        raise QueryError(f"{settings.base_url} answered with {STRANGE}") from None
    names = [column["name"] for column in meta["rowType"]]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _own_url(settings: Settings, path: object) -> str:
    url = urljoin(settings.base_url, str(path or ""))
    if urlsplit(url)[:2] != urlsplit(settings.base_url)[:2]:  # the token must not follow a link to somewhere else
        raise QueryError(f"{settings.base_url} sends the query on to another host; not followed.\n{DOCTOR}")
    return url


def _document(settings: Settings, answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if answer.status_code in {200, 202} and isinstance(document, dict):
        return document
    if not isinstance(document, dict) and answer.status_code != 404:
        raise QueryError(f"{settings.base_url} answered {answer.status_code} with {STRANGE}")
    found = document if isinstance(document, dict) else {}
    code, detail = str(found.get("code", "")), " ".join(str(found.get("message", "")).split())
    raise QueryError(remedy(settings, answer.status_code, code, detail), code, detail)


def remedy(settings: Settings, status: int, code: str, detail: str) -> str:
    """What a failed call means and what mends it, from the HTTP status and Snowflake's code and message."""
    host, user = urlsplit(settings.base_url).hostname, settings.user
    if status == 401:
        return (
            f"Snowflake refused the key of {settings.account}.{user}: {detail}\n"
            f"Register it with the statement that this prints: python3 auto_refresh.py --public-key\n{DOCTOR}"
        )
    if status == 403:
        return (
            f"Snowflake does not let {user} in: {code} {detail}\n"
            f"A network policy, or a proxy on the way, may be the reason: ask an administrator. {DOCTOR}"
        )
    if status == 404:
        return f"there is no Snowflake account at {host}. Check SNOWFLAKE_ACCOUNT (it came from {settings.origin})."
    if "warehouse" in detail.lower():
        given = f"the warehouse {settings.warehouse} is not usable" if settings.warehouse else "no warehouse is set"
        return (
            f"the query needs a warehouse, and {given}: {detail}\n"
            f"Name one that {user}'s default role may use, in .env: SNOWFLAKE_WAREHOUSE=COMPUTE_WH"
        )
    if status == 429:
        return "Snowflake has too many requests from this account. Try again in a minute."
    return f"Snowflake failed the query with {status} {code}: {detail or 'no message'}\n{DOCTOR}"


def unreachable(settings: Settings, error: Exception) -> str:
    """What a call that got no answer means."""
    proxy = next((name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY") if os.environ.get(name)), None)
    through = f"through the proxy in {proxy}" if proxy else "directly; behind a company proxy, set HTTPS_PROXY"
    return (
        f"cannot reach {settings.base_url} ({through}): {error or type(error).__name__}\n"
        f"Check the account ({settings.account}, from {settings.origin}) and the network. {DOCTOR}"
    )


def grant(settings: Settings) -> str:
    """The statements that let the user's default role read the view."""
    try:
        role = str(next(iter(query(settings, "SELECT CURRENT_ROLE() AS ROLE")[0].values())))
    except (QueryError, IndexError, StopIteration):
        role = "<default role>"
    role = role if re.fullmatch(r"[A-Z_][A-Z0-9_$]*|<.*>", role) else '"' + role.replace('"', '""') + '"'
    return (
        f"the role {role} of {settings.user} may not read the view. As ACCOUNTADMIN, the narrow grant:\n"
        f"  GRANT DATABASE ROLE SNOWFLAKE.USAGE_VIEWER TO ROLE {role};\n"
        f"or, for all of ACCOUNT_USAGE:\n  GRANT IMPORTED PRIVILEGES ON DATABASE SNOWFLAKE TO ROLE {role};"
    )


# ------------------------------------------------------------------------------------------------------------- output


def usage(answer: Sequence[Mapping[str, str | None]]) -> list[Row]:
    """Snowflake's rows (all text or null) as date, model and whole numbers, in the statement's order."""
    return [
        {"date": row["USAGE_DATE"], "model": row["MODEL_NAME"] or "(unknown)"}
        | {name: int(Decimal(row[column] or 0)) for name, column in NUMBERS.items()}
        for row in answer
    ]


def cells(rows: Sequence[Row], number: Callable[[int], str]) -> list[list[str]]:
    """Header, rows and sum as text."""
    header = [name.replace("_", " ") for name in ("date", "model", *NUMBERS)]
    sums = {name: sum(row[name] for row in rows) for name in NUMBERS}
    lines = [*rows, {"date": "all", "model": "", **sums}]
    return [header, *([row["date"], row["model"], *(number(row[name]) for name in NUMBERS)] for row in lines)]


def short(number: int) -> str:
    """At most seven characters: 9,999, 45.7k, 12.3M."""
    for size, least, letter in ((10**9, 10**9, "B"), (10**6, 10**6, "M"), (10**3, 10**4, "k")):
        if number >= least:
            return f"{number / size:.1f}{letter}"
    return f"{number:,}"


def plain(table: Sequence[Sequence[str]], columns: int | None) -> str:
    """Aligned columns; where `columns` characters do not hold them, a paragraph for each row."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if columns and sum(widths) + 2 * len(widths) > columns:
        paragraphs = [
            [" ".join(filter(None, row[:2])), *(f"  {name}: {cell}" for name, cell in zip(table[0], row, strict=True))]
            for row in table[1:]
        ]
        return "\n".join(line for title, _, _, *lines in paragraphs for line in (title, *lines))
    aligned = [
        [
            cell.rjust(width) if at >= 2 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in table
    ]
    return "\n".join("  ".join(row) for row in aligned)


def show(rows: Sequence[Row], days: int) -> None:
    """The table for people; colour, short numbers and bars only in a terminal that wants them."""
    width = shutil.get_terminal_size().columns
    print(f"Tokens on Snowflake Cortex, whole account, last {days} days.\n{LAG}\n")
    if not _styled(sys.stdout) or width < 72:
        print(plain(cells(rows, "{:,}".format), width if sys.stdout.isatty() else None))
        return
    table = cells(rows, short)
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for at, column in enumerate(zip(*table, strict=True)):
        least = max(map(len, column[1:])) if at != 1 else None  # long names of models may wrap
        drawn.add_column(
            column[0].replace(" ", "\n"), justify="left" if at < 2 else "right", min_width=least, overflow="fold"
        )
    for line in table[1:-1]:
        drawn.add_row(*line)
    drawn.add_row(*table[-1], style="bold")
    totals: dict[str, int] = {}
    for row in rows:
        totals[row["date"]] = totals.get(row["date"], 0) + row["total"]
    chart = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for day, total in totals.items():
        chart.add_row(
            day, Bar(max(totals.values()) or 1, 0, total, width=min(50, width - 25), color="cyan"), short(total)
        )
    Console(highlight=False, markup=False).print(drawn, "", chart, sep="\n")


def _styled(stream: Any) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _progress() -> AbstractContextManager[object]:
    words = "Asking Snowflake; a sleeping warehouse takes a minute …"
    if _styled(sys.stderr):
        return Console(stderr=True).status(words)
    if sys.stderr.isatty():
        print(words, file=sys.stderr)
    return nullcontext()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tokens spent on Cortex, by day and model.")
    parser.add_argument("--days", type=int, default=7, metavar="N", help="how far back (7; the view keeps 365)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--json", action="store_true", help="for scripts")
    choice.add_argument("--csv", action="store_true", help="for spreadsheets")
    choice.add_argument("--sql", action="store_true", help="print the statement, to run in Snowsight")
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
                rows = usage(query(settings, statement(options.days)))
            except QueryError as error:
                if error.code != NO_PRIVILEGE or "warehouse" in error.detail.lower():
                    raise
                raise QueryError(grant(settings)) from None
    except ConfigError as error:
        print(f"usage.py: {error}", file=sys.stderr)
        return EX_CONFIG
    except QueryError as error:
        print(f"usage.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(rows, indent=2))
    elif options.csv:
        writer = csv.DictWriter(sys.stdout, ["date", "model", *NUMBERS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif rows:
        show(rows, options.days)
    else:
        print(f"No use of Cortex's REST API in the last {options.days} days. {LAG}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
