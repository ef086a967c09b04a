"""usage.py's promises about this machine: what it makes of the ledger, in which terminal, and what it does without
Snowflake."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from bundle import model_list, usage_report
from bundle.cortex.usage import Used
from bundle.ledger import Line, append, ledger_files, line
from bundle.prices import price_factor, read_prices
from bundle.settings import load_settings
from bundle.spending import Sum
from bundle.usage_report import Row, Spending, summed_up
from bundle.usage_tables import LEADS, PIPE, Page
from tests.set_up import SetUp, copy_bundle
from tests.terminal import Terminal

NOW = datetime.now(timezone.utc).astimezone()
TODAY = NOW.date()
NOON = datetime.combine(TODAY, datetime.min.time().replace(hour=12)).astimezone().timestamp()
DAY, SESSION = 86_400, "0f8fad5b-d9cb-469f-a165-70867728950e"
MODEL = "claude-sonnet-4-6"  # 3.00, 3.75, 0.30, 15.00


def answer(at: float = NOON, *, model: str = MODEL, route: str = "messages", **more: Any) -> Line:
    """A line; on the Messages API unless said otherwise, with 1,000 tokens of input and 100 of output."""
    given = {"session": SESSION, "asked": model, "status": 200, "used": Used(1_000, output=100), **more}
    return line(at, model=model, route=route, **given)


def estimated(at: float = NOON, **more: Any) -> Line:
    """A chat completion with 100,000 cached tokens, of which 90,000 were read, as an estimate."""
    return answer(at, route="chat", used=Used(1_000, output=100, cached=100_000), read=90_000, **more)


def spending_of(*lines: Line) -> Spending:
    return summed_up(lines, read_prices(), price_factor(None, None), TODAY)


def local_json(set_up: SetUp, *options: str, **environ: str) -> Any:
    set_up.environ |= environ
    done = set_up.run("usage.py", "--local", "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def plain(screen: str) -> str:
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", screen)


# ------------------------------------------------------------------------------------------------------------- the rows


def test_the_rows_have_what_was_counted_with_the_dollars_and_their_range(set_up: SetUp) -> None:
    failed = answer(status=503, used=None)
    append(set_up.folder, [estimated(), estimated(), answer(), failed, answer(model="claude-opus-5")])
    chat, messages, unpriced = local_json(set_up)
    assert chat == {
        "date": f"{TODAY}",
        "model": MODEL,
        "route": "chat",
        "requests": 2,
        "input": 2_000,
        "cache_read": 180_000,
        "cache_write": 20_000,
        "output": 200,
        "usd": 0.138,  # 2,000 * 3 + 180,000 * 0.3 + 20,000 * 3.75 + 200 * 15, in millionths
        "usd_low": 0.069,
        "usd_high": 0.759,
    }
    assert messages["usd"] == messages["usd_low"] == messages["usd_high"] == 0.0045
    assert [unpriced[name] for name in ("model", "input", "usd", "usd_low", "usd_high")] == [
        *("claude-opus-5", 1_000, None, 0, None)
    ]


def test_a_row_of_which_a_part_has_no_price_says_what_the_rest_costs(set_up: SetUp) -> None:
    append(set_up.folder, [estimated(model="claude-sonnet-5")])  # which has no price for what is cached
    (row,) = local_json(set_up)
    assert (row["usd"], row["usd_low"], row["usd_high"]) == (None, 0.003, None)


def test_the_factor_multiplies_every_amount(set_up: SetUp) -> None:
    append(set_up.folder, [estimated()])
    amounts = ("usd", "usd_low", "usd_high")
    (one,), (two,) = local_json(set_up), local_json(set_up, PRICE_FACTOR="2")
    del set_up.environ["PRICE_FACTOR"]
    assert [two[name] for name in amounts] == [2 * one[name] for name in amounts]
    settings = load_settings(set_up.environ)
    kept = model_list.ModelList(settings.account, settings.base_url, 0, cross_region="DISABLED")
    model_list.save(settings, kept)
    (regional,) = local_json(set_up)
    assert regional["usd"] == pytest.approx(1.1 * one["usd"])
    assert "regional routing, which is 10 % more" in set_up.run("usage.py", "--local").stdout


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("day", {"date": f"{TODAY}", "model": MODEL, "route": "messages"}),
        ("model", {"model": MODEL, "route": "messages"}),
        ("hour", {"date": f"{TODAY}", "hour": "12:00", "model": MODEL, "route": "messages"}),
        (
            "session",
            {"date": f"{TODAY}", "began": "12:00", "session": SESSION, "model": MODEL, "route": "messages"},
        ),
    ],
)
def test_the_rows_are_by_day_model_session_or_hour_and_csv_and_json_say_the_same(
    set_up: SetUp, by: str, keys: dict[str, str]
) -> None:
    append(set_up.folder, [answer(), answer(NOON + 30 * 60), answer(NOON - DAY, session="", model="claude-haiku-4-5")])
    tree = local_json(set_up, "--by", by)
    assert len(tree) == 2
    assert dict(list(tree[0].items())[: len(keys)]) == keys
    assert tree[0]["requests"] == 2
    done = set_up.run("usage.py", "--local", "--csv", "--by", by)
    assert [{name: str(value) for name, value in row.items()} for row in tree] == list(
        csv.DictReader(io.StringIO(done.stdout))
    )


def test_a_session_that_goes_on_after_midnight_is_one_row_of_the_day_on_which_it_began(set_up: SetUp) -> None:
    append(set_up.folder, [answer(NOON - 13 * 3600), answer()])
    (row,) = local_json(set_up, "--by", "session")
    assert (row["date"], row["began"], row["requests"]) == (f"{TODAY - timedelta(days=1)}", "23:00", 2)
    shown = set_up.run("usage.py", "--local").stdout
    assert f"The newest session: {TODAY - timedelta(days=1)} 23:00 to today 12:00, with {MODEL}." in shown


def test_days_and_hours_are_on_this_machine_s_clock(set_up: SetUp) -> None:
    at = time.time() - 60
    append(set_up.folder, [answer(at)])
    for zone, hours in (("EAST-14", 14), ("WEST+12", -12)):
        there = datetime.fromtimestamp(at, timezone(timedelta(hours=hours)))
        (row,) = local_json(set_up, "--by", "hour", TZ=zone)
        assert (row["date"], row["hour"]) == (f"{there:%Y-%m-%d}", f"{there:%H}:00")


def test_a_day_begins_at_midnight_also_before_the_clock_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        found = usage_report.first_moment(datetime(2026, 10, 26, tzinfo=timezone.utc).date(), 2)
        assert found.isoformat() == "2026-10-25T00:00:00+02:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_days_are_as_many_as_asked_for_and_today_is_one_of_them(set_up: SetUp) -> None:
    append(set_up.folder, [answer(NOON - day * DAY) for day in (40, 10, 9, 1, 0)])
    for days, rows in ((1, 1), (2, 2), (10, 3), (365, 5)):
        assert len(local_json(set_up, "--days", str(days))) == rows


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_three_sums_come_first_with_the_share_of_the_cache_and_the_newest_session(set_up: SetUp) -> None:
    old = "11111111-d9cb-469f-a165-70867728950e"
    append(
        set_up.folder,
        [
            *(answer(NOON - 8 * DAY), answer(NOON - DAY, session=old), answer(NOON - DAY, session="")),
            *(answer(NOON, used=Used(1_000, 7_000, 2_000, 500)), answer(NOON + 1800, model="claude-haiku-4-5")),
        ],
    )
    done = set_up.run("usage.py", "--local")
    assert done.stderr == ""
    assert done.stdout.isascii()
    assert re.search(r"^today +2 +11,600 +64 % +\$0\.0216$", done.stdout, re.MULTILINE)
    assert re.search(r"^last 7 days +4 +13,800 +54 % +\$0\.0306$", done.stdout, re.MULTILINE)
    assert re.search(r"^newest session +2 +11,600 +64 % +\$0\.0216$", done.stdout, re.MULTILINE)
    assert f"The newest session: today 12:00 to 12:30, with {MODEL}, claude-haiku-4-5.\n" in done.stdout
    assert re.search(
        rf"^{TODAY} +{MODEL} +1 +1,000 +500 +7,000 +2,000 +10,500 +70 % +\$0\.0201$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^all +4 +4,000", done.stdout, re.MULTILINE)


def test_a_sum_without_all_prices_is_the_least_and_the_models_are_named(set_up: SetUp) -> None:
    append(set_up.folder, [answer(), answer(model="claude-opus-5"), answer(model="claude-opus-4-8")])
    shown = set_up.run("usage.py", "--local").stdout
    assert re.search(r"^today .* at least \$0\.0045$", shown, re.MULTILINE)
    assert re.search(rf"^{TODAY} +claude-opus-5 .* no price$", shown, re.MULTILINE)
    assert "No price is known for some tokens of claude-opus-5, claude-opus-4-8: prices.yaml can be filled in" in shown


def test_an_estimate_has_its_range_beside_it_unless_it_is_only_the_least(set_up: SetUp) -> None:
    append(set_up.folder, [estimated()])
    shown = set_up.run("usage.py", "--local").stdout
    assert re.search(r"^today .* \$0\.0690 +\$0\.0345 to \$0\.38$", shown, re.MULTILINE)
    append(set_up.folder, [estimated(model="claude-sonnet-5")])
    shown = set_up.run("usage.py", "--local").stdout
    assert re.search(r"^today .* at least \$0\.0720$", shown, re.MULTILINE)
    assert "range" not in shown


def test_a_range_whose_ends_look_alike_is_none() -> None:
    assert usage_report.range_of(Sum(low=0.00001, high=0.00003)) == ""
    assert usage_report.range_of(Sum(low=0.00001, high=0.0002)) == "$0.0001 to $0.0002"


def test_answers_without_a_session_are_called_so(set_up: SetUp) -> None:
    append(set_up.folder, [answer(session="")])
    shown = set_up.run("usage.py", "--local", "--by", "session").stdout
    assert re.search(rf"^{TODAY} 12:00 +{MODEL} +no session +1 ", shown, re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 120])
@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["colour", "no-color", "dumb"])
def test_a_terminal_gets_what_fits_and_colour_only_if_it_wants_it(
    set_up: SetUp, columns: int, environ: dict[str, str]
) -> None:
    many = [estimated(NOON - day * DAY, model=model) for day in range(6) for model in ("claude-opus-4-6", MODEL)]
    append(set_up.folder, [*many, estimated(model="claude-sonnet-5")])
    command = [sys.executable, str(set_up.bundle / "usage.py"), "--local"]
    with Terminal(command, {**set_up.environ, "TERM": "xterm-256color", **environ}, columns=columns) as terminal:
        assert terminal.finish() == 0, terminal.screen
    shown = plain(terminal.screen)
    assert max(map(len, shown.splitlines())) <= columns
    assert ("\x1b" in terminal.screen, "█" in shown) == (not environ, not environ)
    cells = r"101\.1k +89 % +\$0\.12"
    if columns == 120:
        cells = r"1 +1,000 +100 +90\.0k +10\.0k +" + cells if not environ else r"1 +1,000 +100 +90,000 +10,000 +101,100"
    assert re.search(rf"^{TODAY} +claude-opus-4-6 +{cells}", shown, re.MULTILINE)
    assert re.search(r"^last 7 days +.*89 % +at least \$1\.11$", shown, re.MULTILINE)


@pytest.mark.parametrize("by", LEADS)
@pytest.mark.parametrize("styled", [True, False])
def test_no_line_of_a_table_is_wrapped_or_cut_from_60_columns_on(
    capsys: pytest.CaptureFixture[str], by: str, styled: bool
) -> None:
    large = [estimated(NOON - day * DAY, model="claude-sonnet-5") for day in range(7) for _ in range(40)]
    spending = spending_of(*large, *(estimated() for _ in range(300)))
    rows = spending.rows(by)
    for columns in range(60, 131):
        Page(columns, styled=styled).table(rows, by)
        Page(columns, styled=styled).sums(usage_report.overview(spending))
    shown = plain(capsys.readouterr().out).splitlines()
    assert "…" not in "".join(shown)
    of_models = [text for text in shown if "claude" in text]
    assert [text for text in of_models if not re.search(r"claude-sonnet-(5|4-6) .*\$[\d.]+$", text)] == []
    assert len(of_models) == 71 * len(rows)


def test_a_pipe_gets_every_column_however_wide(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row({"date": "2026-11-24", "model": "m" * 300}, spending_of(answer()).sum())]
    Page(PIPE, styled=False).table(rows, "day")
    assert f"2026-11-24  {'m' * 300}" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- the sentences


def low(requests: int = 10, *, route: str = "messages", model: str = MODEL, read: int = 9_900) -> list[Line]:
    used = Used(20_000 - read, read, 0, 10)
    return [answer(NOON - 60 * number, route=route, model=model, used=used) for number in range(requests)]


def test_a_low_share_of_the_cache_is_one_sentence_with_what_can_be_done() -> None:
    said = usage_report.low_share(spending_of(*low()))
    assert said.startswith("Only 50 % of the prompts in the newest session came from the cache")
    assert "pause of more than five minutes" in said
    assert "docs/routes.md" not in said
    assert "CLAUDE_ROUTE=messages" in usage_report.low_share(spending_of(*low(route="chat")))
    earlier = [answer(NOON - DAY, session="", used=Used(500_000)) for _ in range(10)]
    assert "in the last 7 days" in usage_report.low_share(spending_of(*earlier, *low(read=15_000)))


def test_a_share_that_is_not_low_or_of_little_use_gets_no_sentence() -> None:
    few, small = [answer(used=Used(25_000))] * 9, [answer(used=Used(19_000))] * 10
    for lines in (few, small, low(read=10_000), low(model="llama4-maverick"), []):
        assert usage_report.low_share(spending_of(*lines)) == ""


def test_the_estimate_is_said_with_its_range_and_only_if_there_is_one() -> None:
    assert usage_report.estimate(spending_of(answer()), 7) == ""
    said = usage_report.estimate(spending_of(estimated()), 7)
    assert "is an estimate" in said
    assert "(the last 7 days cost $0.0345 if all was read, and $0.38 if all was written)" in said
    both = usage_report.estimate(spending_of(estimated(), estimated(model="claude-sonnet-5")), 7)
    assert "cost at least $0.0375 if all was read, and at least $0.38" in both
    assert usage_report.estimate(spending_of(estimated(model="claude-opus-5")), 7).endswith("counts as read.")


def test_answers_that_ended_before_their_tokens_were_known_are_said() -> None:
    assert usage_report.unknown(spending_of(answer(), answer(status=503, used=Used())).sum()) == ""
    said = usage_report.unknown(spending_of(answer(), *[answer(status=499, used=None)] * 2).sum())
    assert said.startswith("2 answers ended before Cortex said all tokens: these are not, or not wholly, counted")


# ---------------------------------------------------------------------------------------------------- without Snowflake


@pytest.mark.parametrize("fault", ["sql_no_warehouse", "sql_no_privilege", "drop"])
def test_what_this_machine_has_spent_is_shown_when_the_view_cannot_be_read(set_up: SetUp, fault: str) -> None:
    append(set_up.folder, [answer()])
    set_up.stub.fault(fault, times=1, route="sql")
    done = set_up.run("usage.py")
    assert done.returncode == 0
    assert "$0.0045" in done.stdout
    remedy = {"sql_no_warehouse": "SNOWFLAKE_WAREHOUSE=", "sql_no_privilege": "GRANT ", "drop": "cannot be reached"}
    assert "what the whole account has spent is not known" in done.stderr
    assert remedy[fault] in done.stderr
    assert "usage ARGS=--local" in done.stderr


def test_both_parts_are_shown_with_the_same_prices(set_up: SetUp) -> None:
    append(set_up.folder, [answer()])
    spent = {"input": 1_000, "output": 100, "cache_read": 0, "cache_write": 0}
    set_up.stub.requests.append({"time": NOON, "model": MODEL, "usage": spent})
    done = set_up.run("usage.py")
    assert done.stdout.index("What this machine") < done.stdout.index("What the whole account")
    assert len(re.findall(rf"^{TODAY} .*\$0\.0045$", done.stdout, re.MULTILINE)) == 2


@pytest.mark.parametrize("options", [(), ("--json",), ("--csv",)])
def test_local_asks_nobody(set_up: SetUp, options: tuple[str, ...]) -> None:
    append(set_up.folder, [answer()])
    set_up.key_path.unlink()
    set_up.stub.close_port()
    done = set_up.run("usage.py", "--local", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert MODEL in done.stdout


def test_without_settings_the_ledger_is_shown_and_what_is_wrong_is_said(set_up: SetUp) -> None:
    append(set_up.folder, [answer()])
    for options in ((), ("--local",)):
        done = set_up.run("usage.py", *options, PRICE_FACTOR="much")
        assert (done.returncode, "$0.0045" in done.stdout) == (0, True)
        assert "PRICE_FACTOR is 'much'; it must be a number" in done.stderr


def test_an_empty_ledger_is_one_sentence(set_up: SetUp) -> None:
    for options in ((), ("--local",)):
        done = set_up.run("usage.py", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert "This machine's proxy has counted no answer in the last 7 days.\n" in done.stdout
        assert "LEDGER" not in done.stdout
    assert local_json(set_up) == []
    assert set_up.run("usage.py", "--local", "--csv").stdout.startswith("date,model,route,requests,input,cache_read,")


def test_a_ledger_with_nothing_but_answers_that_ended_early_says_that_there_were_some(set_up: SetUp) -> None:
    append(set_up.folder, [answer(status=status, used=None) for status in (499, 200, 502)])
    append(set_up.folder, [answer(status=503, used=Used())])  # Cortex has refused it
    for options in ((), ("--local",)):
        shown = set_up.run("usage.py", *options).stdout
        assert "has counted no answer in the last 7 days. 3 answers ended before Cortex said all tokens" in shown


def test_a_ledger_that_is_off_is_said_with_and_without_old_lines(set_up: SetUp) -> None:
    for lines in ([], [answer()]):
        append(set_up.folder, lines)
        for options in ((), ("--local",)):
            shown = set_up.run("usage.py", *options, LEDGER="off").stdout
            assert shown.count("LEDGER is off: the proxy counts nothing any more.") == 1
            assert ("has counted no answer" in shown, "$0.0045" in shown) == (not lines, bool(lines))


def test_a_ledger_that_cannot_be_read_is_a_message_and_the_account_is_shown(set_up: SetUp) -> None:
    append(set_up.folder, [answer()])
    (path,) = ledger_files(set_up.folder)
    path.unlink()
    path.mkdir()
    done = set_up.run("usage.py")
    assert (done.returncode, "was not used" in done.stdout) == (0, True)
    assert f"cannot read {path}" in done.stderr
    assert set_up.run("usage.py", "--local").returncode == 78


def test_broken_prices_are_a_message_and_the_tokens_are_shown(tmp_path: Path) -> None:
    set_up = SetUp(tmp_path, copy_bundle(tmp_path / "bundle"))
    try:
        append(set_up.folder, [answer()])
        (set_up.bundle / "prices.yaml").write_text("prices: [")
        done = set_up.run("usage.py", "--local")
        assert done.returncode == 0
        assert "prices.yaml" in done.stderr
        assert "tokens are shown without dollars" in done.stderr
        assert re.search(rf"^{TODAY} +{MODEL} .* 1,100 +0 % +no price$", done.stdout, re.MULTILINE)
    finally:
        set_up.close()
