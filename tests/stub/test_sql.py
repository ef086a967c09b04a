"""The SQL API of the stand-in: the usage view, partitions, long and failed statements, and the account's settings."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from tests.cortex_stub import CHAT, STATEMENTS, CortexStub
from tests.cortex_tokens import load_public_key
from tests.stub.sending import CLAUDE, GPT, PEM, chat, post, token

QUERY = """
SELECT DATE(START_TIME) AS USAGE_DATE, MODEL_NAME, COUNT(*) AS TOTAL_REQUESTS, SUM(TOKENS) AS TOTAL_TOKENS,
  SUM(TOKENS_GRANULAR:input::NUMBER) AS TOTAL_INPUT_TOKENS, SUM(TOKENS_GRANULAR:output::NUMBER) AS TOTAL_OUTPUT_TOKENS
FROM SNOWFLAKE.ACCOUNT_USAGE.CORTEX_REST_API_USAGE_HISTORY
WHERE START_TIME >= DATEADD(day, -7, CURRENT_TIMESTAMP()) GROUP BY 1, 2 ORDER BY 1 DESC, 4 DESC
"""


def query(stub: CortexStub, statement: str = QUERY, **fields: Any) -> httpx.Response:
    return post(stub, STATEMENTS, {"statement": statement, "timeout": 60, **fields})


def test_the_usage_view_adds_up_what_was_charged(stub: CortexStub) -> None:
    for model in (CLAUDE, CLAUDE, GPT):
        post(stub, CHAT, chat(model=model))
    answer = query(stub).json()
    names = [column["name"] for column in answer["resultSetMetaData"]["rowType"]]
    rows = [dict(zip(names, row, strict=True)) for row in answer["data"]]
    assert answer["code"] == "090001"
    assert answer["resultSetMetaData"]["numRows"] == 2
    assert [(row["MODEL_NAME"], row["TOTAL_REQUESTS"]) for row in rows] == [(CLAUDE, "2"), (GPT, "1")]
    assert sum(int(row["TOTAL_TOKENS"]) for row in rows) == stub.totals()["input"] + stub.totals()["output"]
    assert rows[0]["USAGE_DATE"].isdigit()
    dated = query(stub, QUERY.replace("DATE(START_TIME)", "TO_CHAR(START_TIME, 'YYYY-MM-DD')")).json()["data"][0][0]
    assert dated == time.strftime("%Y-%m-%d", time.gmtime(stub.requests[0]["time"]))


def test_results_come_in_partitions(stub: CortexStub) -> None:
    stub.sql_rows, stub.sql_page = (["A"], [[str(number)] for number in range(5)]), 2
    first = query(stub).json()
    sizes = [part["rowCount"] for part in first["resultSetMetaData"]["partitionInfo"]]
    assert sizes == [2, 2, 1]
    bearer = {"Authorization": f"Bearer {token()}"}
    rows = first["data"]
    for number in (1, 2):
        more = httpx.get(f"{stub.url}{STATEMENTS}/{first['statementHandle']}?partition={number}", headers=bearer)
        assert more.headers["content-encoding"] == "gzip"
        rows += more.json()["data"]
    assert rows == [["0"], ["1"], ["2"], ["3"], ["4"]]


def test_a_long_statement_is_202_until_it_is_done(stub: CortexStub) -> None:
    stub.fault("sql_running", after=2)
    waiting = query(stub)
    assert waiting.status_code == 202
    url = stub.url + waiting.json()["statementStatusUrl"]
    bearer = {"Authorization": f"Bearer {token()}"}
    assert [httpx.get(url, headers=bearer).status_code for _ in range(3)] == [202, 200, 200]
    assert httpx.get(url + "x", headers=bearer).status_code == 404


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sql_failed", "SQL compilation error"),
        ("sql_no_privilege", "does not exist or not authorized"),
        ("sql_no_warehouse", "No active warehouse"),
    ],
)
def test_a_failed_statement_is_422(stub: CortexStub, name: str, words: str) -> None:
    stub.fault(name, times=1)
    failed = query(stub)
    assert failed.status_code == 422
    assert words in failed.json()["message"]


def test_the_usage_view_wants_a_warehouse(stub: CortexStub) -> None:
    stub.warehouse = None
    assert query(stub).status_code == 422
    assert query(stub, warehouse="WH").status_code == 200
    assert query(stub, "SELECT CURRENT_USER() AS ME, CURRENT_ACCOUNT(), 1").json()["data"] == [["ME", "ORG-ACC", "1"]]


def test_the_account_lists_its_models_in_upper_case(stub: CortexStub) -> None:
    stub.set_options(models={"claude-opus-5": 1, "openai-gpt-5": 1})
    answer = query(stub, "SHOW CORTEX BASE MODELS IN SCHEMA SNOWFLAKE.MODELS").json()
    names = [column["name"] for column in answer["resultSetMetaData"]["rowType"]]
    rows = [dict(zip(names, row, strict=True)) for row in answer["data"]]
    assert [row["name"] for row in rows] == ["CLAUDE-OPUS-5", "OPENAI-GPT-5"]
    assert json.loads(rows[0]["cross_region_availability"]) == ["ANY_REGION"]
    assert rows[0]["lifecycle_status"] == "GA"
    liked = query(stub, "SHOW CORTEX BASE MODELS LIKE 'claude%' IN SCHEMA SNOWFLAKE.MODELS").json()["data"]
    assert [row[1] for row in liked] == ["CLAUDE-OPUS-5"]
    assert query(stub, "SHOW CORTEX BASE MODELS").json()["data"] == [], "as seen on the service"


def listed_models(stub: CortexStub, what: str = "") -> list[dict[str, str | None]]:
    answer = query(stub, f"SHOW CORTEX BASE MODELS {what} IN SCHEMA SNOWFLAKE.MODELS").json()
    names = [column["name"] for column in answer["resultSetMetaData"]["rowType"]]
    return [dict(zip(names, row, strict=True)) for row in answer["data"]]


def test_the_list_is_not_what_the_rest_api_knows(stub: CortexStub) -> None:
    known = set(stub.options.models)
    stub.listed = [
        {"name": "claude-opus-9", "lifecycle_status": "PUPR", "in_region_availability": None},
        {"name": "claude-3", "lifecycle_status": "LEGACY", "legacy_date": "2026-04-28", "eol_date": "2027/01/01"},
        {
            "name": "bare",
            "in_region_availability": ["AWS_US_EAST_1"],
            "cross_region_availability": ["AWS_US"],
        },
    ]
    opus, legacy, far = listed_models(stub)
    assert (opus["name"], opus["lifecycle_status"], opus["in_region_availability"]) == ("CLAUDE-OPUS-9", "PUPR", None)
    assert (legacy["legacy_date"], legacy["eol_date"]) == ("2026-04-28", "2027/01/01")
    assert json.loads(str(far["in_region_availability"])) == ["AWS_US_EAST_1"]
    assert json.loads(str(far["cross_region_availability"])) == ["AWS_US"]
    assert set(stub.options.models) == known
    stub.listed = []
    assert listed_models(stub) == []


def test_the_account_s_region_serves_what_says_no_other(stub: CortexStub) -> None:
    stub.region = "AZURE_WESTEUROPE"
    (opus,) = listed_models(stub, "LIKE 'claude-opus-5'")
    assert opus["in_region_availability"] == '["AZURE_WESTEUROPE"]'
    assert query(stub, "SELECT CURRENT_REGION() AS REGION").json()["data"] == [["AZURE_WESTEUROPE"]]


def test_a_column_that_the_command_does_not_have_is_a_mistake_of_the_test(stub: CortexStub) -> None:
    stub.listed = [{"name": "claude-opus-5", "stage": "GA"}]
    assert query(stub, "SHOW CORTEX BASE MODELS IN SCHEMA SNOWFLAKE.MODELS").status_code == 500


def test_the_account_tells_its_cross_region_setting(stub: CortexStub) -> None:
    stub.cross_region = "ANY_REGION"
    (row,) = query(stub, "SHOW PARAMETERS LIKE 'CORTEX_ENABLED_CROSS_REGION' IN ACCOUNT").json()["data"]
    assert row[:2] == ["CORTEX_ENABLED_CROSS_REGION", "ANY_REGION"]


def test_desc_user_shows_the_fingerprints(stub: CortexStub) -> None:
    rows = dict(query(stub, "DESC USER ME").json()["data"])
    assert rows["RSA_PUBLIC_KEY_FP"] == load_public_key(PEM)[0]
    assert rows["RSA_PUBLIC_KEY_2_FP"] is None
    assert query(stub, "DROP TABLE X").status_code == 422
