"""What leaves for a log, a terminal or a spreadsheet: words from outside cannot forge lines, send codes or fill it."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest

from bundle import sql_api
from bundle.account_usage import NUMBERS, to_numbers
from bundle.checks.finding import Finding
from bundle.checks.report import page
from bundle.cortex.refusals import MAX_FIELDS, MAX_MODELS, Refusals
from bundle.errors import LINE, TEXT, SayOnce, clean, printable, say
from bundle.settings import load_settings
from bundle.sql_api import QueryError
from tests.set_up import BUNDLE, SetUp
from tests.test_usage import COLUMNS

# A newline, an escape code, C1 codes, text from right to left, no width, a line separator, half an emoji, a tag.
EVIL = "a\nready on\r\x1b[2J\x9b1m\x07\u202egnp\u2066\u200b\ufeff\u2028\u0085\ud83d\U000e0041z"


@pytest.mark.keeps("no-forged-lines")
def test_words_from_outside_are_a_part_of_one_printable_bounded_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(EVIL).isprintable()
    assert printable(EVIL)[0] + printable(EVIL)[-1] == "az"
    assert len(printable("x" * 10**6)) == LINE + 1
    assert clean(EVIL).replace("\n", "").isprintable()
    say(EVIL + "x" * 10**6)
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert len(shown) <= TEXT + 2


@pytest.mark.keeps("errors-without-tokens")
def test_a_token_is_taken_out_wherever_it_is_cut() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJNWU9SRyJ9.c2lnbmF0dXJl"
    for text in (token, f"Bearer%20{token}", f"x{token},", f"{token[:-20]}", f"{'y' * (4 * LINE - 30)}{token}"):
        assert "eyJpc3" not in clean(text)
        assert "eyJpc3" not in printable(text)
    assert "eyJpc3" not in printable(f"{token * 30}{'z' * 9}")
    assert printable("getSurveyJsonResults of a.b") == "getSurveyJsonResults of a.b"


@pytest.mark.keeps("no-forged-lines")
def test_the_doctor_s_page_shows_foreign_words_as_words() -> None:
    finding = Finding("Model", "fail", f"refused: {EVIL}", f"run this: \x1b[2J{'y' * 10**6}", group="Models")
    shown = page([finding], 80, colour=False)
    assert shown.replace("\n", "").isprintable()
    assert len(shown) < 2 * TEXT
    assert [line for line in shown.splitlines() if line.startswith("ready")] == []


def rows_of(model: str | None = "m", date: str = "2026-11-24", **numbers: str | None) -> list[list[str | None]]:
    return [[date, model, *(numbers.get(column, "1") for column in NUMBERS.values())]]


@pytest.mark.keeps("no-forged-lines")
@pytest.mark.parametrize("options", [(), ("--csv",), ("--json",)])
def test_usage_shows_no_code_of_a_model_s_name(set_up: SetUp, options: tuple[str, ...]) -> None:
    set_up.stub.sql_rows = (COLUMNS, rows_of(model="m\x1b[2J\nall 99\u202e" + "x" * 5000))
    done = set_up.run("usage.py", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\n", "").isprintable()
    assert len(done.stdout) < 3000
    assert len(done.stdout.splitlines()) == len(set_up.run("usage.py", *options).stdout.splitlines())
    assert not [line for line in done.stdout.splitlines() if line.startswith("all 99")]


@pytest.mark.keeps("no-forged-lines")
@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_the_csv_is_a_formula(set_up: SetUp, name: str) -> None:
    set_up.stub.sql_rows = (COLUMNS, rows_of(model=name, date="=1"))
    (row,) = csv.DictReader(io.StringIO(set_up.run("usage.py", "--csv").stdout))
    assert row["model"] == "'" + name.strip()
    assert row["date"] == "'=1"
    (same,) = json.loads(set_up.run("usage.py", "--json").stdout)
    assert same["model"] == name.strip()


@pytest.mark.keeps("numbers-checked")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1E9999999", "-1", "many\x1b[2J", "1.5", "", "9" * 5000, "١٢"])
def test_a_number_of_snowflake_that_is_no_count_is_an_error_in_words(number: str) -> None:
    answer: list[dict[str, Any]] = [{"USAGE_DATE": "d", "MODEL_NAME": "m"} | dict.fromkeys(NUMBERS.values(), "1")]
    assert to_numbers([{**answer[0], "TOTAL_TOKENS": "12.000"}])[0]["total"] == 12
    with pytest.raises(QueryError, match="no count in TOTAL_TOKENS") as refused:
        to_numbers([{**answer[0], "TOTAL_TOKENS": number}])
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < LINE
    with pytest.raises(QueryError):
        to_numbers([{"USAGE_DATE": "d"}])


@pytest.mark.keeps("numbers-checked")
def test_rows_that_do_not_fit_their_columns_are_an_error_in_words(set_up: SetUp) -> None:
    set_up.stub.sql_rows = (COLUMNS, [["2026-11-24", "m"]])
    done = set_up.run("usage.py")
    assert (done.returncode, "SQL API" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


@pytest.mark.keeps("no-forged-lines")
def test_words_of_snowflake_s_error_stay_in_one_line(set_up: SetUp) -> None:
    for body in ({"message": EVIL, "code": "9"}, {"message": EVIL * 10_000}):
        with pytest.raises(QueryError) as refused:
            sql_api._document(load_settings(set_up.environ), httpx.Response(422, content=json.dumps(body)))
        first, *_ = str(refused.value).splitlines()
        assert "ready on" in first
        assert len(first) < 3_000


def test_lines_that_are_said_once_have_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    say_once = SayOnce(most=10)
    for number in [*range(100), *range(100)]:
        say_once(f"field {number} dropped")
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_what_is_remembered_of_refusals_has_an_end() -> None:
    refusals = Refusals()
    for number in range(MAX_MODELS + 50):
        refusals.learn_messages(f"f{number}: Extra inputs are not permitted", {"model": "m", f"f{number}": 1}, ())
        refusals.learn_messages(
            f"max_tokens: 9 > {number + 1}", {"model": f"m{number}", "max_tokens": 10**6, "f": 1}, ()
        )
        refusals.learn_chat("temperature is not supported", {"model": f"m{number}", "temperature": 0, "messages": []})
    for number in range(2 * MAX_FIELDS):
        refusals.learn_messages("invalid beta flag", {"model": "m"}, [f"beta-{number}"])
        refusals.learn_messages(f"g{number}: Extra inputs are not permitted", {"model": "m", f"g{number}": 1}, ())
    assert {len(refusals.chat), len(refusals.limits)} == {MAX_MODELS}
    assert (f"g{2 * MAX_FIELDS - 1}",) in refusals.fields["m"]
    assert len(refusals.fields["m"]) <= MAX_FIELDS + 1
    assert len(refusals.betas) <= MAX_FIELDS + 1


def test_a_message_comes_in_one_piece_with_its_end() -> None:
    # Of a piece that does not end with its line, PM2 leaves out the last line: that is where the remedy stands.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # keeps what is written apart
    with ours, theirs:
        code = "from bundle.errors import say; say('what is wrong\\nwhat fixes it')"
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, env=environ, stdout=theirs.fileno(), check=True)
        assert ours.recv(1000) == b"what is wrong\nwhat fixes it\n"
