"""The account's list of models: how it is asked for, kept and read, and what the rows become by it."""

from __future__ import annotations

import contextlib
import http.server
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundle import sql_api
from bundle.cortex.catalogue import Listed
from bundle.model_list import FILE, ModelList, read, save, warnings
from bundle.model_query import ask_models, listed
from bundle.model_watch import ModelWatch, status_lines
from bundle.refresher import read_state
from bundle.render import render_config
from bundle.settings import Settings, load_settings
from bundle.sql_api import QueryError
from tests.checked import serving
from tests.ports import free_port
from tests.set_up import SetUp
from tests.test_refresher import World

TODAY = int(time.mktime((2026, 11, 28, 12, 0, 0, 0, 0, 0)))
FIRST = (Listed("claude-opus-5", "PUPR"), Listed("claude-opus-4-8", "GA"), Listed("claude-haiku-4-5", "GA"))
LATER = (Listed("claude-opus-5", "GA"), *FIRST[1:], Listed("claude-sonnet-5", "GA"))


@pytest.fixture
def world(environ: dict[str, str]) -> World:
    return World(environ)


def account(*models: Listed) -> ModelList:
    return ModelList("", "", 0, models)


def rows(world: World) -> dict[str, str]:
    document = yaml.safe_load(world.config.read_text())
    return {row["model_name"]: row["litellm_params"]["model"].partition("/")[2] for row in document["model_list"]}


def after_the_answer(world: World, seconds: float = 2) -> bool:
    """Let the refresher look, and once more when the account has answered."""
    first = world.after(seconds)
    world.watch.wait(10)
    return world.after(2) or first


# -------------------------------------------------------------------------------------------------------- the refresher


def test_the_newest_models_follow_the_account_without_a_restart_and_it_is_said(world: World, home: Path) -> None:
    assert rows(world)["claude-opus-*"] == "claude-opus-5", "documented: nothing is known of the account yet"
    world.listed = account(*FIRST)
    assert after_the_answer(world)
    assert rows(world)["claude-opus-*"] == "claude-opus-4-8", "Opus 5 is a preview on this account"
    assert rows(world)["claude-sonnet-*"] == "claude-sonnet-5", "not listed: the documented one"
    assert "claude-opus-*: claude-opus-4-8 took over from claude-opus-5" in world.lines
    world.listed = account(*LATER)
    assert after_the_answer(world, 24 * 3600 + 1)
    assert rows(world)["claude-opus-*"] == "claude-opus-5"
    shown = status_lines(read_state(home)["models"])
    assert shown[0] == (
        "models:   opus claude-opus-5, sonnet claude-sonnet-5, haiku claude-haiku-4-5, others claude-sonnet-5 "
        "(newest of the account's list)"
    )
    assert [line.partition(" claude-")[2] for line in shown[1:]] == [
        "opus-*: claude-opus-4-8 took over from claude-opus-5",
        "opus-*: claude-opus-5 took over from claude-opus-4-8",
    ]


def test_a_list_that_changes_nothing_signs_no_token(world: World) -> None:
    token = world.token()
    world.listed = account(*(Listed(name, "GA") for name in set(rows(world).values())))
    assert not after_the_answer(world)
    assert world.token() == token


def test_where_the_names_come_from_is_said_as_soon_as_the_list_is_there(world: World, home: Path) -> None:
    assert "(newest of Snowflake's documentation)" in status_lines(read_state(home)["models"])[0]
    world.watch.wait(10)
    after_the_answer(world)
    assert read_state(home)["models"]["error"] == "the warehouse of models is closed."
    world.listed = account(*(Listed(name, "GA") for name in set(rows(world).values())))
    after_the_answer(world, 3601)
    assert "(newest of the account's list)" in status_lines(read_state(home)["models"])[0]
    assert read_state(home)["models"]["error"] == ""


def test_it_asks_once_a_day_and_after_a_failure_once_an_hour(world: World, home: Path) -> None:
    for _ in range(3):
        after_the_answer(world)
    assert len(world.asked) == 1
    said = [line for line in world.lines if "cannot be read" in line]
    assert said == [
        "the account's list of models cannot be read, trying again in an hour: the warehouse of models is closed."
    ]
    after_the_answer(world, 3600)
    assert len(world.asked) == 2
    world.listed = account(*LATER)
    after_the_answer(world, 3600)
    after_the_answer(world, 3600)
    assert len(world.asked) == 3
    assert (home / FILE).stat().st_mode & 0o777 == 0o600
    after_the_answer(world, 24 * 3600)
    assert len(world.asked) == 4
    assert len([line for line in world.lines if "cannot be read" in line]) == 1


def test_a_list_that_comes_while_the_configuration_is_written_causes_another_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.refresher.settings
    told = replace(account(*FIRST), account=settings.account, host=settings.base_url, asked_at=int(world.now))

    def render_then_list(*arguments: Any) -> str:
        text = render_config(*arguments)
        save(settings, told)
        return text

    with monkeypatch.context() as patched:
        patched.setattr("bundle.refresher.render_config", render_then_list)
        assert world.after(3001)
    assert rows(world)["claude-opus-*"] == "claude-opus-5"
    assert world.after(2)
    assert rows(world)["claude-opus-*"] == "claude-opus-4-8"


def test_a_list_that_never_comes_delays_no_token(world: World) -> None:
    def never(*_: object) -> ModelList:
        time.sleep(30)
        raise AssertionError

    world.watch._ask = never
    began = time.monotonic()
    assert not world.after(2)
    assert world.after(3001)
    assert time.monotonic() - began < 10


def test_another_account_is_asked_anew(world: World) -> None:
    world.listed = account(*FIRST)
    after_the_answer(world)
    world.environ["SNOWFLAKE_ACCOUNT"] = "other-account"
    world.refresher.step(force=True)
    assert rows(world)["claude-opus-*"] == "claude-opus-5", "the list of the other account counts for nothing here"
    after_the_answer(world)
    assert rows(world)["claude-opus-*"] == "claude-opus-4-8"
    assert len(world.asked) == 2


def test_a_change_between_two_runs_is_said_too(world: World, environ: dict[str, str], home: Path) -> None:
    world.listed = account(*FIRST)
    after_the_answer(world)
    save(load_settings(environ), replace(account(*LATER), account="MYORG-MY_ACCT", host="", asked_at=0))
    settings = load_settings(environ)
    save(settings, replace(account(*LATER), account=settings.account, host=settings.base_url, asked_at=int(world.now)))
    again = World(environ)
    assert "claude-opus-*: claude-opus-5 took over from claude-opus-4-8" in again.lines
    assert len(read_state(home)["models"]["changes"]) == 2


def test_a_name_that_the_user_has_written_is_never_changed(
    world: World, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = world.refresher.settings.template_path.read_text()
    (home / "litellm_config.template.yaml").write_text(template.replace("openai/newest", "openai/claude-opus-4-5", 1))
    monkeypatch.setattr("bundle.settings.BUNDLE", home)
    world.listed = account(*LATER)
    after_the_answer(world)
    assert rows(world)["claude-opus-*"] == "claude-opus-4-5"
    assert rows(world)["claude-opus-4-8"] == "claude-opus-4-8"


def test_a_model_in_use_is_warned_of_before_it_ends_and_one_that_nobody_has_chosen_is_not(
    world: World, home: Path
) -> None:
    world.listed = account(
        Listed("claude-haiku-4-5", "LEGACY", "2026-11-01", "2027-02-01"), Listed("claude-4-sonnet", "LEGACY")
    )
    after_the_answer(world)
    warning = "claude-haiku-4-5 is a legacy model since 2026-11-01; it ends on 2027-02-01"
    assert world.lines.count(f"WARNING: {warning}") == 1
    assert status_lines(read_state(home)["models"])[-1] == f"warning:  {warning}"
    assert not [line for line in world.lines if "claude-4-sonnet" in line]


def test_a_damaged_state_of_the_models_is_as_good_as_none(environ: dict[str, str]) -> None:
    for kept in (None, {}, {"rows": [1], "changes": "x"}, {"rows": {"a": None}, "changes": [1]}):
        watch = ModelWatch(print, kept, ask_models)
        watch.look(load_settings(environ))
        watch.follow(TODAY)
    assert status_lines("nonsense") == status_lines({"rows": 5}) == []


# ---------------------------------------------------------------------------------------------- the list, as it is kept


def test_what_is_kept_is_read_again_for_the_same_account_only(settings: Settings) -> None:
    kept = ModelList(settings.account, settings.base_url, TODAY, FIRST, "AWS_US_WEST_2", "ANY_REGION")
    save(settings, kept)
    assert read(settings) == kept
    assert read(replace(settings, account="OTHER")) is None
    assert read(replace(settings, base_url="https://elsewhere")) is None


KEPT = ModelList("MYORG-MY-ACCT", "https://h", TODAY, FIRST)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"models": 5}', '{"models": [{"name": "x"}]}', "\x00\xff"),
        json.dumps({**asdict(KEPT), "asked_at": "yesterday"}),
        json.dumps({**asdict(KEPT), "models": [5]}),
        json.dumps({**asdict(KEPT), "models": [{**asdict(FIRST[0]), "regions": 5}]}),
    ],
)
def test_a_damaged_file_is_as_good_as_none(settings: Settings, text: str) -> None:
    (settings.folder / FILE).write_text(text)
    assert read(settings) is None


def test_values_of_a_wrong_type_in_the_file_stop_no_refresh(world: World) -> None:
    settings = world.refresher.settings
    odd = {**asdict(FIRST[0]), "legacy": 20261101, "ends": None}
    kept = {**asdict(KEPT), "account": settings.account, "host": settings.base_url, "models": [odd]}
    (settings.folder / FILE).write_text(json.dumps(kept))
    world.after(2)
    assert world.after(3001)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Listed("m", "GA"), ""),
        (Listed("m", "GA", "2026-12-01"), ""),
        (Listed("m", "GA", "2026-11-28"), "m is a legacy model since 2026-11-28; its end: not dated yet"),
        (Listed("m", "GA", "soon", "No sooner than 2027/01/01"), ""),
        (
            Listed("m", "LEGACY", "", "No sooner than 2027/01/01"),
            "m is a legacy model; its end: No sooner than 2027/01/01",
        ),
        (Listed("m", "EOL", "2026-01-01", "2026-04-28"), "m has ended on Cortex (2026-04-28)"),
    ],
)
def test_what_is_said_of_a_model_by_its_stage_and_dates(model: Listed, sentence: str) -> None:
    assert warnings(["m"], replace(account(model), asked_at=TODAY)) == ([sentence] if sentence else [])


# -------------------------------------------------------------------------------------------------------- asking for it


def test_the_account_is_asked_without_a_warehouse(set_up: SetUp) -> None:
    set_up.stub.warehouse = None
    set_up.stub.cross_region = "ANY_REGION"
    found = ask_models(load_settings(set_up.environ), TODAY)
    assert {model.name for model in found.models} == set(set_up.stub.options.models)
    assert {model.stage for model in found.models} == {"GA"}
    assert (found.region, found.cross_region, found.asked_at) == ("AWS_US_WEST_2", "ANY_REGION", TODAY)
    assert not found.needs_cross_region(found.models[0])


def test_a_refused_key_is_told_as_everywhere(set_up: SetUp) -> None:
    set_up.stub.register_key(None)
    with pytest.raises(QueryError, match="JWT token is invalid"):
        ask_models(load_settings(set_up.environ), TODAY)


class Endless(http.server.BaseHTTPRequestHandler):
    """Never ends its answer."""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x" * 65536)


def test_an_answer_without_end_is_an_error_and_fills_no_memory(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_api, "MAX_ANSWER_BYTES", 2**20)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Endless)
    with serving(server):
        settings = load_settings({**set_up.environ, "SNOWFLAKE_HOST": f"http://127.0.0.1:{server.server_port}"})
        with pytest.raises(QueryError, match="sends an answer without end"):
            ask_models(settings, TODAY)


def test_what_snowflake_writes_into_the_columns_is_read_and_nothing_else_gets_through() -> None:
    found = listed(
        {
            "name": "CLAUDE-SONNET-5",
            "lifecycle_status": "ga",
            "legacy_date": None,
            "eol_date": "No sooner than 2027/01/01",
            "in_region_availability": '["AWS_US_EAST_1", "azure_eastus2"]',
            "cross_region_availability": None,
        }
    )
    assert found == Listed(
        "claude-sonnet-5", "GA", "", "No sooner than 2027/01/01", ("AWS_US_EAST_1", "AZURE_EASTUS2"), ()
    )
    odd = listed({"name": "A\n\x1b[31m", "in_region_availability": "{}", "cross_region_availability": "[["})
    assert (odd.regions, odd.scopes) == ((), ())
    assert "\x1b" not in json.dumps(odd.name)
