"""What the whole account has spent, from Snowflake's own view: by day and model, up to two hours late.

The view is in SNOWFLAKE.ACCOUNT_USAGE (docs/cortex.md#sql-usage-view). It needs a warehouse and a role that may.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bundle.cortex.usage import Used
from bundle.errors import printable
from bundle.prices import Price, cost
from bundle.settings import Settings
from bundle.spending import TOKENS, Sum
from bundle.sql_api import DOCTOR, QueryError, query
from bundle.usage_report import Row, usd

NO_PRIVILEGE = "002003"  # Snowflake's code: the view does not exist, or this role may not read it
LAG = "The view lags: the last two hours may be missing."
Numbers = dict[str, Any]
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


def ask(settings: Settings, days: int) -> list[Numbers]:
    """The rows of the view, newest day first: date, model and NUMBERS. Raises QueryError, ConfigError."""
    try:
        return to_numbers(query(settings, statement(days)))
    except QueryError as error:
        if error.code != NO_PRIVILEGE or "warehouse" in error.detail.lower():
            raise
    raise QueryError(grant_message(settings))


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


def to_numbers(answer: Sequence[Mapping[str, str | None]]) -> list[Numbers]:
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


def with_prices(answer: Iterable[Numbers], prices: Mapping[str, Price], factor: float) -> list[Row]:
    """What each row has cost. (The total of its tokens is Snowflake's own number.)"""
    found = []
    for row in answer:
        tokens = {name: row[name] for name in TOKENS}
        # (In Snowflake's list of models the names are in upper case.)
        spent = cost(Used(**tokens), prices.get(row["model"].lower()), factor)
        keys = {"date": row["date"], "model": row["model"]}
        found.append(Row(keys, Sum(requests=row["requests"], **tokens, **asdict(spent)), row["total"]))
    return found


def as_json(row: Row) -> dict[str, Any]:
    """A row for a script; `usd` is None if a part has no price."""
    numbers = {name: getattr(row.amount, name) for name in NUMBERS if name != "total"}
    return {**row.keys, **numbers, "total": row.total, "usd": usd(row.amount)}
