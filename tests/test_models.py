"""models.py: what the account has, beside what the template asks for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from bundle.checks.this_machine import model_list
from bundle.cortex.catalogue import Listed
from bundle.errors import ConfigError
from bundle.model_list import ModelList, read, save
from bundle.model_table import by_model
from bundle.prices import Price, read_prices
from bundle.refresher import Refresher
from bundle.render import template_rows
from bundle.settings import Settings, load_settings
from models import stage, table
from tests.checked import findings
from tests.set_up import SetUp
from tests.user import put

MODELS = (
    Listed("claude-opus-5", "PUPR", scopes=("ANY_REGION",)),
    Listed("claude-opus-4-8", "GA", regions=("AWS_US_WEST_2",)),
    Listed("claude-haiku-4-5", "LEGACY", "2026-11-01", "2027-02-01", ("AWS_US_WEST_2",)),
    Listed("openai-gpt-5.2", "GA"),
    Listed("snowflake-arctic-embed-l-v2.0", "GA"),
    Listed("gemini-3-pro", "GA"),
)


def entries(
    settings: Settings, *, everything: bool = False, region: str = "AWS_US_WEST_2", setting: str = ""
) -> dict[str, Any]:
    listed = ModelList(settings.account, settings.base_url, 0, MODELS, region, setting)
    save(settings, listed)
    rows = template_rows(settings, settings.claude_route)
    return {entry["model"]: entry for entry in by_model(rows, listed, read_prices(), everything=everything)}


def test_each_model_is_there_once_with_the_names_that_it_answers_for(settings: Settings) -> None:
    found = entries(settings)
    assert found["claude-opus-4-8"]["rows"] == ["claude-opus-4-8", "claude-opus-*"]
    assert found["claude-opus-4-8"]["newest"] == ["claude-opus-*"]
    assert found["openai-gpt-5.2"]["rows"] == []
    assert found["claude-opus-4-7"]["stage"] == "not listed"
    assert list(found)[:2] == ["claude-opus-5", "claude-opus-4-8"]
    sonnets = [name for name in found if "sonnet" in name]
    assert sonnets == ["claude-sonnet-5", "claude-sonnet-4-6", "claude-sonnet-4-5", "claude-4-sonnet"]
    assert found["openai-gpt-5.2"]["window"] is None, "no window is better than a guess"
    assert not {"gemini-3-pro", "snowflake-arctic-embed-l-v2.0"} & found.keys()
    assert {"gemini-3-pro", "snowflake-arctic-embed-l-v2.0"} <= entries(settings, everything=True).keys()


def test_cross_region_is_said_as_far_as_it_is_known(settings: Settings) -> None:
    found = entries(settings)
    assert [found[name]["cross_region"] for name in ("claude-opus-5", "claude-opus-4-8", "claude-opus-4-7")] == [
        True,
        False,
        None,
    ]
    assert {entry["cross_region"] for entry in entries(settings, region="").values()} == {None}


@pytest.mark.parametrize(
    ("setting", "reached"),
    [
        ("DISABLED", [False, True, None]),
        ("ANY_REGION", [True, True, None]),
        ("AWS_EU,ANY_REGION", [True, True, None]),
        ("AWS_EU", [False, True, None]),
        ("", [None, None, None]),
    ],
)
def test_whether_the_account_s_setting_reaches_a_model_is_said(
    settings: Settings, setting: str, reached: list[bool | None]
) -> None:
    found = entries(settings, setting=setting)
    assert [found[name]["reachable"] for name in ("claude-opus-5", "claude-opus-4-8", "claude-opus-4-7")] == reached


def test_window_output_and_price_come_with_each_model(settings: Settings) -> None:
    found = entries(settings)["claude-haiku-4-5"]
    assert (found["window"], found["output"], found["stage"], found["ends"]) == (
        200_000,
        64_000,
        "LEGACY",
        "2027-02-01",
    )
    assert found["price"] == {"input": 1.0, "cache_write": 1.25, "cache_read": 0.1, "output": 5.0}
    assert entries(settings)["claude-opus-5"]["price"] is None, "no price is better than a guess"


# ----------------------------------------------------------------------------------------------------------- the script


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_table_says_what_answers_and_keeps_the_list_for_the_refresher(set_up: SetUp, columns: str) -> None:
    done = set_up.run("models.py", COLUMNS=columns)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"claude-opus-5 +GA +1,000,000 +no price +own region +its name, claude-opus-\*", done.stdout)
    assert re.search(r"claude-haiku-4-5 +GA +200,000 +1\.00 / 5\.00 ", done.stdout)
    kept = read(load_settings(set_up.environ))
    assert kept is not None
    assert kept.find("claude-opus-5")


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (Listed("m", "GA"), "GA"),
        (Listed("m", "GA", "2027-03-01", "2027-09-01"), "GA (legacy from 2027-03-01, ends 2027-09-01)"),
        (Listed("m", "LEGACY", "2026-11-01"), "legacy (since 2026-11-01)"),
        (Listed("m", ""), "not said"),
    ],
)
def test_a_stage_is_said_with_its_dates(model: Listed, shown: str) -> None:
    assert stage({"stage": model.stage, "legacy": model.legacy, "ends": model.ends}) == shown


def test_in_a_narrow_terminal_every_name_is_whole(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    table(list(entries(settings).values()), 80)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line.startswith("claude-4")} == {"claude-4-sonnet"}


def test_json_is_for_scripts(set_up: SetUp) -> None:
    done = set_up.run("models.py", "--json")
    rows = json.loads(done.stdout)
    about = {"model", "stage", "legacy", "ends", "window", "output", "price", "cross_region", "reachable"}
    assert {*about, "rows", "newest"} == set(rows[0])


def test_an_account_that_lists_nothing_is_told_how_the_list_is_renewed(set_up: SetUp) -> None:
    set_up.stub.set_options(models={})
    done = set_up.run("models.py")
    assert done.returncode == 1
    assert "CALL SNOWFLAKE.MODELS.CORTEX_BASE_MODELS_REFRESH();" in done.stderr
    assert read(load_settings(set_up.environ)) is None, "a list that was kept is better than an empty one"


def test_a_refused_key_and_a_missing_account_are_one_message_each(set_up: SetUp) -> None:
    set_up.stub.register_key(None)
    refused = set_up.run("models.py")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("models.py: ")
    assert "JWT token is invalid" in refused.stderr
    missing = set_up.run("models.py", SNOWFLAKE_ACCOUNT="")
    assert missing.returncode == 78
    assert "no Snowflake account" in missing.stderr


# --------------------------------------------------------------------------------------------------------------- prices


def test_the_shipped_prices_are_those_of_the_contract() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cortex.md").read_text()
    told = {
        model: tuple(float(cell) if cell.strip() else None for cell in line.split("|")[2:6])
        for line in re.findall(r'^\| <a id="price-.*$', page, re.MULTILINE)
        for model in re.findall(r"`([a-z][^`]*)`", line.split("|")[1])
    }
    prices = read_prices()
    assert told == {model: (p.input, p.cache_write, p.cache_read, p.output) for model, p in prices.items()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prices: {m: {input: cheap}}", "m: input must be a number of dollars"),
        ("prices: {m: {output: -1}}", "m: output must be a number of dollars"),
        ("prices: {m: {output: true}}", "m: output must be a number of dollars"),
        ("prices: [", "while parsing"),
        ("nothing: 1", "there must be `prices:`"),
        ("prices: 5", "there must be `prices:`"),
        ("", "there must be `prices:`"),
        ("prices: {m: 5}", "m: a price looks like"),
        ("prices: {m: {input: 1,50}}", "m: 50 is not known"),
        ("prices: {m: {inptu: 1}}", "m: inptu is not known"),
        (f"prices: {'[' * 5_000}", "it is nested too deeply"),
    ],
)
def test_a_mistake_in_the_prices_is_one_message(tmp_path: Path, text: str, said: str) -> None:
    path = put(tmp_path / "prices.yaml", text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_prices(path)
    assert str(caught.value).endswith(f"To see what was changed in it: git -C {tmp_path} diff prices.yaml")


def test_prices_that_are_missing_are_brought_back_and_each_message_names_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    with pytest.raises(ConfigError) as missing:
        read_prices(path)
    bring_back = f"To bring it back: git -C {tmp_path} checkout prices.yaml"
    assert str(missing.value) == f"cannot read {path}: No such file or directory.\n{bring_back}"
    path.mkdir()
    with pytest.raises(ConfigError) as folder:
        read_prices(path)
    assert str(folder.value) == f"cannot read {path}: Is a directory.\nCheck with: ls -ld {path}"


def test_the_user_s_own_prices_count(tmp_path: Path) -> None:
    path = put(tmp_path / "prices.yaml", "prices: {db.schema.tuned: {input: 1, output: 2.5}}")
    assert read_prices(path) == {"db.schema.tuned": Price(input=1, output=2.5)}


# --------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_says_how_old_the_list_is_and_warns_of_a_model_that_ends(set_up: SetUp) -> None:
    before = findings(set_up, model_list)["Model list"]
    assert (before.state, "make -C" in before.fix) == ("skip", True)
    settings = load_settings(set_up.environ)
    save(settings, ModelList(settings.account, settings.base_url, int(time.time()) - 7300, MODELS))
    Refresher(lambda: settings).refresh(time.time(), "a test")
    found = findings(set_up, model_list)
    assert (found["Model list"].state, found["Model list"].found) == (
        "ok",
        "6 models, as Snowflake listed them 2 hours ago",
    )
    assert found["Model"].state == "warn"
    assert found["Model"].found == "claude-haiku-4-5 is a legacy model since 2026-11-01; it ends on 2027-02-01"
