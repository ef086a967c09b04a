"""usage.py's promises about the account: what it asks, what it shows in which terminal, and which remedy each refusal
comes with. (tests/test_usage_local.py has what it says of this machine.)"""

from __future__ import annotations

import csv
import io
import json
import re
import sys

import pytest

from bundle import sql_api
from bundle.account_usage import NUMBERS, statement
from bundle.cortex.errors import explain_query
from bundle.settings import Settings, load_settings
from bundle.sql_api import PATIENCE_SECONDS, QueryError, query
from tests.set_up import BUNDLE, TOKEN, SetUp
from tests.terminal import Terminal

COLUMNS = ["USAGE_DATE", "MODEL_NAME", *NUMBERS.values()]
ROWS: list[list[str | None]] = [
    ["2026-11-24", "claude-opus-4-7", "120", "45678", "99999", "12000000", "200001", "12345678"],
    ["2026-11-24", "claude-haiku-4-5", "20", "4567", None, "0", "0", "45678"],
    ["2026-11-23", "claude-sonnet-4-6", "3", "67", "5", "0", "0", "5678901"],
]


def settings_of(set_up: SetUp) -> Settings:
    return load_settings(set_up.environ)


def in_terminal(set_up: SetUp, columns: int, **environ: str) -> str:
    """What usage.py prints in a pseudo-terminal of that width."""
    command = [sys.executable, str(BUNDLE / "usage.py")]
    with Terminal(command, {**set_up.environ, "TERM": "xterm-256color", **environ}, columns=columns) as terminal:
        assert terminal.finish() == 0, terminal.screen
        return terminal.screen


# --------------------------------------------------------------------------------------------------------- what it asks


def test_what_the_proxy_spent_is_what_is_shown(set_up: SetUp) -> None:
    record = {"time": 1_790_000_000, "model": "claude-opus-4-7"}
    spent = {"input": 7, "output": 6, "cache_read": 4000, "cache_write": 805}
    set_up.stub.requests += [{**record, "usage": spent}, {**record, "usage": spent}]
    done = set_up.run("usage.py", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert re.fullmatch(r"2026-\d\d-\d\d", row.pop("date"))
    assert row == {
        "model": "claude-opus-4-7",
        "requests": 2,
        "input": 14,
        "output": 12,
        "cache_read": 8000,
        "cache_write": 1610,
        "total": 9636,
        "usd": None,
    }


def test_sql_prints_the_statement_and_needs_no_configuration(set_up: SetUp) -> None:
    done = set_up.run("usage.py", "--sql", "--days", "30", SNOWFLAKE_ACCOUNT="", SNOWFLAKE_USER="")
    assert done.returncode == 0
    assert [name for name in COLUMNS if f" AS {name}" not in done.stdout] == []
    assert "-30" in done.stdout
    assert done.stdout.rstrip().endswith("ORDER BY USAGE_DATE DESC, TOTAL_TOKENS DESC;")


def test_the_configured_warehouse_is_used(set_up: SetUp) -> None:
    set_up.stub.warehouse = None
    assert "SNOWFLAKE_WAREHOUSE=" in set_up.run("usage.py").stderr
    assert set_up.run("usage.py", SNOWFLAKE_WAREHOUSE="SMALL_WH").returncode == 0


def test_all_partitions_are_read(set_up: SetUp) -> None:
    set_up.stub.sql_rows, set_up.stub.sql_page = (COLUMNS, ROWS), 1
    assert [row["MODEL_NAME"] for row in query(settings_of(set_up), statement(7))] == [row[1] for row in ROWS]


def test_a_query_that_takes_long_is_waited_for(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS)
    set_up.stub.fault("sql_running", times=1, after=4, route="sql")
    slept: list[float] = []
    assert len(query(settings_of(set_up), statement(7), slept.append)) == 3
    assert len(slept) == 4
    assert slept == sorted(slept)


def test_the_wait_has_an_end(set_up: SetUp) -> None:
    set_up.stub.fault("sql_running", times=1, after=100_000, route="sql")
    slept: list[float] = []
    with pytest.raises(QueryError, match="still running"):
        query(settings_of(set_up), statement(7), slept.append)
    assert PATIENCE_SECONDS <= sum(slept) < PATIENCE_SECONDS + 10


@pytest.mark.parametrize("link", ["https://elsewhere.example/x", "//elsewhere.example/x", "http://127.0.0.1:1/x"])
def test_the_token_follows_no_link_to_another_host(set_up: SetUp, link: str) -> None:
    with pytest.raises(QueryError, match="another host"):
        sql_api._own_url(settings_of(set_up), link)


# --------------------------------------------------------------------------------------------------------- how it shows


def test_a_pipe_gets_plain_text_with_whole_numbers(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS)
    done = set_up.run("usage.py")
    assert done.stdout.isascii()
    assert "12,345,678" in done.stdout
    assert "two hours" in done.stdout
    assert re.search(r"^all +143 +50,312 ", done.stdout, re.MULTILINE)
    assert done.stderr == ""


def test_csv_and_json_say_the_same(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS)
    table = list(csv.DictReader(io.StringIO(set_up.run("usage.py", "--csv").stdout)))
    tree = json.loads(set_up.run("usage.py", "--json").stdout)
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in tree] == table
    assert [row["total"] for row in tree] == [12345678, 45678, 5678901]


def test_each_row_of_the_account_has_its_dollars_or_none_if_a_part_has_no_price(set_up: SetUp) -> None:
    more: list[list[str | None]] = [["2026-11-22", "claude-sonnet-5", "1", "1000000", "0", "1", "0", "1000001"]]
    more.append(["2026-11-22", "CLAUDE-SONNET-4-6", "1", "1000000", "0", "0", "0", "1000000"])
    set_up.stub.sql_rows = (COLUMNS, [*ROWS, *more])
    found = json.loads(set_up.run("usage.py", "--json", PRICE_FACTOR="1.1").stdout)
    assert [row["usd"] for row in found] == [None, 0.005024, 0.000304, None, 3.3]
    shown = set_up.run("usage.py", PRICE_FACTOR="1.1").stdout
    assert re.search(r"^2026-11-22 +claude-sonnet-5 .* at least \$2\.20$", shown, re.MULTILINE)
    assert re.search(r"^2026-11-24 +claude-opus-4-7 .* no price$", shown, re.MULTILINE)
    assert "The published prices times 1.1 (PRICE_FACTOR)." in shown
    assert "No price is known for some tokens of claude-opus-4-7, claude-sonnet-5: prices.yaml" in shown


def test_the_account_s_rows_can_be_added_up_by_model(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, [*ROWS, ["2026-11-22", *ROWS[2][1:]]])
    found = json.loads(set_up.run("usage.py", "--json", "--by", "model").stdout)
    assert [(row["model"], row["requests"], row["total"]) for row in found] == [
        ("claude-haiku-4-5", 20, 45678),
        ("claude-sonnet-4-6", 6, 2 * 5678901),
        ("claude-opus-4-7", 120, 12345678),
    ]
    assert "date" not in found[0]
    refused = set_up.run("usage.py", "--json", "--by", "hour")
    assert (refused.returncode, "the account's view knows no hour" in refused.stderr) == (2, True)


@pytest.mark.parametrize("columns", [120, 200])
def test_a_terminal_gets_a_table_and_bars_that_fit(set_up: SetUp, columns: int) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS)
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", in_terminal(set_up, columns))
    assert re.search(r"2026-11-24 +claude-opus-4-7 +120 +45\.7k +100\.0k +12\.0M +200\.0k +12\.3M", shown)
    assert re.search(r"2026-11-24 +█+ +at least \$0\.0046", shown)
    assert max(map(len, shown.splitlines())) <= columns


def test_the_bars_are_tokens_if_nothing_has_a_price(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS[:1])
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", in_terminal(set_up, 80))
    assert re.search(r"2026-11-24 +█+ +12\.3M", shown)


def test_80_columns_have_every_kind_of_token_and_the_dollars(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS)
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", in_terminal(set_up, 80))
    assert re.search(r"2026-11-24 +claude-opus-4-7 +45\.7k +100\.0k +12\.0M +200\.0k +98 % +no price", shown)
    assert max(map(len, shown.splitlines())) <= 80


def test_a_narrow_terminal_gets_the_numbers_that_matter_most(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS)
    shown = in_terminal(set_up, 60, NO_COLOR="1")
    assert re.search(r"2026-11-24 +claude-haiku-4-5 +45\.7k +0 % +\$0\.0046", shown)
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 60
    assert max(map(len, in_terminal(set_up, 40, NO_COLOR="1").splitlines()[1:])) <= 40


def test_no_color_means_plain_text_in_a_terminal(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, ROWS)
    shown = in_terminal(set_up, 120, NO_COLOR="1")
    assert "\x1b" not in shown
    assert "█" not in shown
    assert "12,345,678" in shown


def test_an_empty_view_is_one_sentence_and_no_failure(set_up: SetUp) -> None:
    done = set_up.run("usage.py", "--days", "3")
    assert done.returncode == 0
    assert "last 3 days" in done.stdout
    assert "two hours" in done.stdout
    assert set_up.run("usage.py", "--json").stdout == "[]\n"


# ------------------------------------------------------------------------------------------------------------- refusals

REFUSALS = {
    "sql_no_privilege": "GRANT IMPORTED PRIVILEGES ON DATABASE SNOWFLAKE TO ROLE CORTEX_DEVELOPER;",
    "sql_no_warehouse": "SNOWFLAKE_WAREHOUSE=",
    "sql_failed": "SQL compilation error",
    "bad_token": "auto_refresh.py --public-key",
    "network_policy": "network policy",
    "too_many": "Try again",
    "budget": "budget exceeded",
    "internal": "internal error",
    "html": "login page",
    "broken_json": "login page",
    "drop": "cannot be reached",
}


@pytest.mark.parametrize(("fault", "words"), REFUSALS.items(), ids=REFUSALS)
def test_a_refusal_comes_with_its_remedy_and_no_token(set_up: SetUp, fault: str, words: str) -> None:
    set_up.stub.fault(fault, times=1, route="sql")
    done = set_up.run("usage.py")
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not TOKEN.search(done.stderr)


def test_an_unreachable_account_is_said_with_the_proxy_in_use(set_up: SetUp) -> None:
    set_up.stub.close_port()
    done = set_up.run("usage.py")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    through = set_up.run("usage.py", SNOWFLAKE_HOST="myorg.example", HTTPS_PROXY="http://127.0.0.1:1")
    assert through.returncode == 1
    assert "the proxy 127.0.0.1:1" in through.stderr


def test_a_configuration_error_has_its_own_status(set_up: SetUp) -> None:
    set_up.key_path.unlink()
    done = set_up.run("usage.py")
    assert done.returncode == 78
    assert "there is no private key" in done.stderr


def test_a_host_without_the_account_is_named() -> None:
    url = "https://nobody.snowflakecomputing.com"
    told = explain_query(url, 404, "", "")
    assert url in told
    assert "no Snowflake account" in told


def test_a_clock_that_is_half_a_minute_ahead_costs_nothing(set_up: SetUp) -> None:
    set_up.stub.issued_ahead, set_up.stub.skew = 0, -30
    assert set_up.run("usage.py").returncode == 0
