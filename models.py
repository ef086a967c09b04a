#!/usr/bin/env python3
"""Show which models this account has, and which row of the template uses each of them.

Snowflake lists the models that the user's default role may use. This script reads that list through the SQL API: this
needs no warehouse and costs nothing. The list also goes to token-refresher, which fills in the rows that say `newest`.

Exit status: 0 done; 1 Snowflake did not answer, or lists no model; 78 a configuration error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from bundle.bootstrap import EX_CONFIG, enter_venv, make

if __name__ == "__main__":
    enter_venv()

from rich.console import Console
from rich.table import Table

from bundle.checks.connections import stand_ins
from bundle.checks.finding import read_installation
from bundle.cortex.catalogue import LEGACY
from bundle.errors import ConfigError, printed, say
from bundle.model_list import save
from bundle.model_query import ask_models
from bundle.model_table import NOT_LISTED, by_model
from bundle.prices import read_prices
from bundle.render import template_rows
from bundle.settings import load_settings
from bundle.sql_api import QueryError

STAGES = {"GA": "GA", "PUPR": "preview", "PRPR": "private preview", "LEGACY": "legacy", "EOL": "ended"}
WIDE = 110  # columns; in a narrower terminal, each name has a line of its own
ENABLE = "ALTER ACCOUNT SET CORTEX_ENABLED_CROSS_REGION = 'ANY_REGION';"


def stage(row: dict[str, Any]) -> str:
    """The stage of a model in words, with its dates."""
    words = STAGES.get(row["stage"], row["stage"].lower() or "not said")
    begins = "since" if row["stage"] == LEGACY else "legacy from"
    dates = [f"{begins} {row['legacy']}"] if row["legacy"] else []
    dates += [f"ends {row['ends']}"] if row["ends"] else []
    return f"{words} ({', '.join(dates)})" if dates else words


def dollars(row: dict[str, Any]) -> str:
    price = row["price"] or {}
    shown = [price.get("input"), price.get("output")]
    if shown == [None, None]:
        return "no price"
    return " / ".join("?" if number is None else f"{number:.2f}" for number in shown)


def region(row: dict[str, Any]) -> str:
    if row["stage"] == NOT_LISTED:
        return ""
    if row["reachable"] is False:
        return "not enabled"
    return {True: "cross-region", False: "own region", None: "not known"}[row["cross_region"]]


def names(row: dict[str, Any]) -> str:
    """The names for which a model answers, its own name in words."""
    others = [name for name in row["rows"] if name != row["model"]]
    return ", ".join([*(["its name"] if len(others) < len(row["rows"]) else []), *others])


def table(rows: Sequence[dict[str, Any]], width: int) -> None:
    """Print the table. A narrow terminal gets a line below it in place of the column `runs`."""
    wide = width >= WIDE
    shown = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False)
    for title in ("model", "stage", "window", "$ in / out", *(["runs"] if wide else []), "answers for"):
        right = title in {"window", "$ in / out"}
        shown.add_column(
            title, justify="right" if right else "left", overflow="fold", no_wrap=right or title == "model"
        )
    for row in rows:
        window = f"{row['window']:,}" if row["window"] else "?"
        cells = (row["model"], stage(row), window, dollars(row), *([region(row)] if wide else []), names(row))
        shown.add_row(*cells)
    Console(highlight=False, markup=False, width=width).print(shown)
    disabled = [row["model"] for row in rows if row["reachable"] is False]
    if disabled and not wide:
        print(f"\nNot enabled: {', '.join(disabled)}.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The models of this account, and the rows that use them.")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--all", action="store_true", help="also models that the REST API does not serve")
    options = parser.parse_args(arguments)
    try:
        settings, prices = load_settings(), read_prices()
        listed = ask_models(settings, time.time())
        save(settings, listed)  # before the rows are made: those that say `newest` follow this list
        rows = by_model(template_rows(settings, settings.claude_route), listed, prices, everything=options.all)
    except (ConfigError, QueryError) as error:
        say(f"models.py: {error}", sys.stderr)
        return EX_CONFIG if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    print(f"Models that {settings.user} may use on {settings.account}.")
    print("Prices are in dollars per million tokens.\n", flush=True)
    table(rows, width)
    print(f"\nThe account's region: {listed.region or 'not known'}. Cross-region inference", end=" ")
    print(f"(CORTEX_ENABLED_CROSS_REGION): {listed.cross_region or 'not known'}.")
    if any(row["reachable"] is False for row in rows):
        print(f"To enable it for all models, as ACCOUNTADMIN: {ENABLE}")
    for sentence in stand_ins(read_installation(os.environ, time.time())):
        print(sentence)
    print("Snowflake's list is not the REST API's: a model in it may still be unknown there.")
    print(f"To ask each model of the template: {make('doctor', 'ARGS=--live')}")
    print("A model that answers for no name needs a row in litellm_config.template.yaml.")
    return 0


if __name__ == "__main__":
    sys.exit(printed("models.py", main))
