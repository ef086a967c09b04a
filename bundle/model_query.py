"""Asks the account which models it lists: three statements of the SQL API, without a warehouse and without cost."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from bundle.cortex.catalogue import Listed
from bundle.errors import printable
from bundle.model_list import ModelList
from bundle.settings import Settings
from bundle.sql_api import QueryError, query

# Without the schema, the list can be empty (docs/cortex.md#sql-models-schema).
MODELS = "SHOW CORTEX BASE MODELS IN SCHEMA SNOWFLAKE.MODELS"
CROSS_REGION = "SHOW PARAMETERS LIKE 'CORTEX_ENABLED_CROSS_REGION' IN ACCOUNT"
REGION = "SELECT CURRENT_REGION() AS REGION"
REFRESH = """\
The role may have no access to models. Or the list was never made. As ACCOUNTADMIN, this makes it:
CALL SNOWFLAKE.MODELS.CORTEX_BASE_MODELS_REFRESH();"""
PATIENCE_SECONDS = 60  # for each statement
MOST = 2_000  # models; a longer list is not one


def ask_models(settings: Settings, now: float) -> ModelList:
    """The models that the account lists for the user's default role. `now` is in seconds since the epoch.

    Raises QueryError (also for an empty list: every account has models), ConfigError.
    """
    rows = query(settings, MODELS, patience=PATIENCE_SECONDS)
    models = tuple(listed(row) for row in rows[:MOST] if row.get("name"))
    if not models:
        raise QueryError(f"Snowflake lists no model for the default role of {settings.user}.\n{REFRESH}")
    region = _value(settings, REGION, "REGION")
    return ModelList(
        account=settings.account,
        host=settings.base_url,
        asked_at=int(now),
        models=models,
        region=region.rpartition(".")[2],  # an account in a region group has `PUBLIC.AWS_US_WEST_2`
        cross_region=_value(settings, CROSS_REGION, "value"),
    )


def listed(row: Mapping[str, str | None]) -> Listed:
    """One row of Snowflake's list. The API wants the name in lower case (docs/cortex.md#sql-models)."""
    return Listed(
        name=printable(row["name"], 100).lower(),
        stage=printable(row.get("lifecycle_status") or "", 20).upper(),
        legacy=printable(row.get("legacy_date") or "", 60),
        ends=printable(row.get("eol_date") or "", 60),
        regions=_words(row.get("in_region_availability")),
        scopes=_words(row.get("cross_region_availability")),
    )


def _words(text: str | None) -> tuple[str, ...]:
    """The texts of a JSON array; () for what is none. (Snowflake writes NULL or `[]` for no region.)"""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return ()
    return tuple(printable(word, 60).upper() for word in found[:200]) if isinstance(found, list) else ()


def _value(settings: Settings, statement: str, column: str) -> str:
    """One text that is good to know; "" if Snowflake does not say it to this role."""
    try:
        row = query(settings, statement, patience=PATIENCE_SECONDS)[0]
    except (QueryError, IndexError):
        return ""
    return re.sub(r"[^A-Z0-9_.,]", "", str(row.get(column) or "").upper())[:100]
