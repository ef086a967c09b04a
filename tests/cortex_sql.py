"""The SQL API's statements that the bundle sends, answered from what the stand-in knows.

Sure: every value is a string or null, a failed statement is 422, reading `ACCOUNT_USAGE` takes a warehouse. The
codes and texts of the failures are guesses after Snowflake's documentation; nobody has measured them.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.cortex_rules import JSON

SQL_FAULTS: Mapping[str, tuple[int, JSON]] = {
    "sql_failed": (422, {"code": "001003", "sqlState": "42000", "message": "SQL compilation error"}),
    "sql_no_privilege": (
        422,
        {
            "code": "002003",
            "sqlState": "02000",
            "message": "SQL compilation error: Object 'SNOWFLAKE.ACCOUNT_USAGE.CORTEX_REST_API_USAGE_HISTORY' "
            "does not exist or not authorized.",
        },
    ),
    "sql_no_warehouse": (
        422,
        {
            "code": "000606",
            "sqlState": "57P03",
            "message": "No active warehouse selected in the current session. "
            "Select an active warehouse with the 'use warehouse' command.",
        },
    ),
    "sql_running": (202, {}),  # the answer is ready at the `after`th poll (the first one, unless given)
}


@dataclass(frozen=True)
class World:
    """What a statement can see: `rows` (columns and rows) replaces the view made of `requests`."""

    account: str
    user: str
    warehouse: str | None
    fingerprints: tuple[str | None, ...]
    failures: Mapping[str, str]
    requests: Sequence[JSON]
    rows: tuple[Sequence[str], Sequence[Sequence[str | None]]] | None = None
    models: Sequence[JSON] = ()  # what the account lists: each with a name, and with the columns that are not usual
    region: str = "AWS_US_WEST_2"
    cross_region: str = "DISABLED"


def run_statement(statement: str, world: World) -> tuple[int, JSON]:
    """200 with `columns` (name, type) and `rows`, or a failure's status and body."""
    text = " ".join(statement.split()).rstrip("; ")
    if match := re.search(r"SYSTEM\$GET_LOGIN_FAILURE_DETAILS\s*\(\s*'([^']*)'", text, re.IGNORECASE):
        code, _, message = world.failures.get(match.group(1), "").partition(" ")
        details = {"clientIP": "127.0.0.1", "username": world.user, "errorCode": code, "message": message}
        return _table([("DETAILS", "text")], [[json.dumps(details) if code else None]])
    if "CORTEX_REST_API_USAGE_HISTORY" in text.upper():
        if world.warehouse is None:
            return SQL_FAULTS["sql_no_warehouse"]
        if world.rows is not None:
            return _table([(name, "text") for name in world.rows[0]], world.rows[1])
        return usage_table(text, world.requests)
    if re.match(r"DESC(RIBE)? USER\b", text, re.IGNORECASE):
        names = ("NAME", "RSA_PUBLIC_KEY_FP", "RSA_PUBLIC_KEY_2_FP")
        rows = list(zip(names, (world.user, *world.fingerprints), strict=True))
        return _table([("property", "text"), ("value", "text")], rows)
    if re.match(r"SHOW CORTEX BASE MODELS\b", text, re.IGNORECASE):
        return base_models(text, world)
    if re.match(r"SHOW PARAMETERS LIKE 'CORTEX_ENABLED_CROSS_REGION' IN ACCOUNT$", text, re.IGNORECASE):
        columns = [(name, "text") for name in ("key", "value", "default", "level", "description", "type")]
        row = ["CORTEX_ENABLED_CROSS_REGION", world.cross_region, "DISABLED", "ACCOUNT", "", "STRING"]
        return _table(columns, [row])
    facts: dict[str, str | None] = {
        "CURRENT_ACCOUNT": world.account,
        "CURRENT_USER": world.user,
        "CURRENT_ROLE": "CORTEX_DEVELOPER",
        "CURRENT_WAREHOUSE": world.warehouse,
        "CURRENT_REGION": world.region,
        "CURRENT_VERSION": "10.0.0",
    }
    items = select_list(text)
    wanted = [re.match(r"(CURRENT_\w+)\s*\(\s*\)|(\d+)", item, re.IGNORECASE) for item in items]
    if items and all(match and (match.group(2) or match.group(1).upper() in facts) for match in wanted):
        values = [match.group(2) or facts[match.group(1).upper()] for match in wanted if match]
        return _table([(column_name(item), "text") for item in items], [values])
    return SQL_FAULTS["sql_failed"]


# The columns of SHOW CORTEX BASE MODELS, with what a model has that its region serves itself.
MODEL_COLUMNS: Mapping[str, str | None] = {
    "created_on": "2026-07-23 00:00:00.000 -0700",
    "name": None,
    "model_type": "CORTEX_BASE",
    "database_name": "SNOWFLAKE",
    "schema_name": "MODELS",
    "owner": "SNOWFLAKE",
    "lifecycle_status": "GA",
    "in_region_availability": None,
    "legacy_date": None,
    "eol_date": None,
    "cross_region_availability": '["ANY_REGION"]',
}


def base_models(statement: str, world: World) -> tuple[int, JSON]:
    """What the user's role may use (docs/cortex.md#sql-models); without its schema the list is empty. An array may be
    given as a list. A model without `in_region_availability` is in the account's own region."""
    pattern = re.search(r"\bLIKE '([^']*)'", statement, re.IGNORECASE)
    like = re.escape(pattern.group(1)).replace("%", ".*") if pattern else ".*"
    models = world.models if re.search(r"\bIN SCHEMA SNOWFLAKE\.MODELS$", statement, re.IGNORECASE) else ()
    if unknown := {name for model in models for name in model} - MODEL_COLUMNS.keys():
        raise ValueError(f"SHOW CORTEX BASE MODELS has no column {sorted(unknown)}")
    usual = {**MODEL_COLUMNS, "in_region_availability": [world.region]}
    rows = [
        [json.dumps(value) if isinstance(value, (list, tuple)) else value for value in row.values()]
        for model in models
        if re.fullmatch(like, model["name"], re.IGNORECASE)
        for row in [{**usual, **model, "name": model["name"].upper()}]
    ]
    return _table([(name, "text") for name in MODEL_COLUMNS], rows)


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str | None]]) -> tuple[int, JSON]:
    return 200, {"columns": columns, "rows": [list(row) for row in rows]}


def select_list(statement: str) -> list[str]:
    """The expressions of a statement's last SELECT outside parentheses."""
    outer, depth = [], 0
    for character in statement:
        depth += (character == "(") - (character == ")")
        outer.append(" " if depth and character in ",fFsS" else character)
    masked = "".join(outer)
    starts = [match.end() for match in re.finditer(r"\bSELECT\s", masked, re.IGNORECASE)]
    if not starts:
        return []
    end = re.search(r"\sFROM\s", masked[starts[-1] :], re.IGNORECASE)
    stop = starts[-1] + end.start() if end else len(masked)
    cuts = [at for at in range(starts[-1], stop) if masked[at] == ","]
    edges = zip([starts[-1], *(cut + 1 for cut in cuts)], [*cuts, stop], strict=True)
    return [statement[first:last].strip() for first, last in edges]


def column_name(expression: str) -> str:
    """The alias of an expression, else the expression, as Snowflake names its column."""
    match = re.search(r"(?:\bAS\s+|^)\"?(\w+)\"?$", expression, re.IGNORECASE)
    return match.group(1).upper() if match else expression.upper()


def usage_table(statement: str, records: Sequence[JSON]) -> tuple[int, JSON]:
    """What the view would say of these requests by day and model: newest day first, then the largest total.

    A column is recognised by its name; one that is not is null. As in Snowflake's JSON, a date is its number of days
    since 1970 in a string, unless the expression turns it into text.
    """
    groups: dict[tuple[datetime.date, str], dict[str, int]] = {}
    for record in records:
        if usage := record.get("usage"):
            day = datetime.datetime.fromtimestamp(record["time"], datetime.timezone.utc).date()
            sums = groups.setdefault((day, record["model"]), dict.fromkeys([*usage, "requests"], 0))
            for name, value in {**usage, "requests": 1}.items():
                sums[name] += value
    totals = {key: sum(sums.values()) - sums["requests"] for key, sums in groups.items()}
    items = select_list(statement)
    names = [column_name(item) for item in items]
    numbers = {"REQUEST": "requests", "READ": "cache_read", "WRITE": "cache_write"}
    numbers |= {"OUTPUT": "output", "INPUT": "input"}
    columns, rows = [], []
    for name, item in zip(names, items, strict=True):
        as_text = re.search(r"TO_(VAR)?CHAR|::\s*(VARCHAR|STRING|TEXT)", item, re.IGNORECASE)
        dated = re.search(r"DATE|DAY", name) and not as_text
        columns.append((name, "date" if dated else "text" if as_text or "MODEL" in name else "fixed"))
    for key in sorted(groups, key=lambda key: (key[0], totals[key]), reverse=True):
        row: list[str | None] = []
        for name, kind in columns:
            if re.search(r"DATE|DAY", name):
                days = (key[0] - datetime.date(1970, 1, 1)).days
                row.append(str(days) if kind == "date" else key[0].isoformat())
            elif "MODEL" in name:
                row.append(key[1])
            elif word := next((word for word in numbers if word in name), None):
                row.append(str(groups[key][numbers[word]]))
            else:
                row.append(str(totals[key]) if "TOKENS" in name else None)
        rows.append(row)
    return _table(columns, rows)
