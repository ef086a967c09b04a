"""A session that lasts all day: tokens end, clocks jump, processes die, and Cortex has a bad day."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundle.spending import FILE as SUMS
from bundle.tokens import BACKDATE_SECONDS, token_times
from tests.day import HOUR, PROXY, REFRESHER, SECONDS, Day
from tests.set_up import events, wait_until


def claude_says(day: Day, prompt: str) -> str:
    """Run Claude Code and return what its user reads."""
    return str(day.claude(prompt)["result"])


# ----------------------------------------------------------------------------------------- no request with a dead token


@pytest.mark.real
def test_the_refresher_renews_the_token_ten_minutes_before_its_end(day: Day) -> None:
    before = day.token()
    day.move_clock(3001)
    issued, expires = token_times(day.refreshed(before))
    assert abs(issued + BACKDATE_SECONDS - day.now()) < SECONDS
    assert expires == issued + HOUR
    assert day.answered()["iat"] == issued


@pytest.mark.keeps("live-token")
@pytest.mark.real
def test_with_the_refresher_stopped_a_burst_gets_one_token_signed_in_memory_and_nothing_is_written(day: Day) -> None:
    log, first = len(day.log(PROXY)), len(day.stub.requests)
    with day.stopped(REFRESHER):
        day.move_clock(HOUR - 30)
        before = {
            path: path.read_bytes()
            for path in day.folder.iterdir()
            if path.is_file() and path.suffix != ".log" and path.name != SUMS
        }
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda number: day.ask(f"question {number}"), range(24)))
        after = {
            path: path.read_bytes()
            for path in day.folder.iterdir()
            if path.is_file() and path.suffix != ".log" and path.name != SUMS
        }
    assert {answer.status_code for answer in answers} == {200}
    asked = day.stub.requests[first:]
    assert {len(asked), len({record["token_id"] for record in asked})} == {24, 1}
    assert abs(asked[0]["iat"] + BACKDATE_SECONDS - day.now()) < SECONDS
    assert day.log(PROXY)[log:].count("signed one in memory") == 1
    assert before == after


@pytest.mark.keeps("new-token-after-401")
@pytest.mark.real
def test_after_a_401_the_next_request_carries_a_new_token(day: Day) -> None:
    with day.old_token():
        old = day.answered()["token_id"]
        day.stub.fault("bad_token", times=1)
        refused = day.ask("hello")
        assert (refused.status_code, refused.headers.get("x-should-retry")) == (401, None)
        assert day.answered()["token_id"] != old


@pytest.mark.keeps("new-token-after-401")
@pytest.mark.real
def test_a_401_on_a_new_token_is_final_and_says_what_to_do(day: Day) -> None:
    with day.old_token():
        day.stub.fault("bad_token")
        first, second = day.ask("hello"), day.ask("hello")
    assert (first.status_code, first.headers.get("x-should-retry")) == (401, None)
    assert (second.status_code, second.headers.get("x-should-retry")) == (401, "false")
    assert "auto_refresh.py --public-key" in second.json()["error"]["message"]


@pytest.mark.real
def test_the_user_of_claude_code_does_not_notice_a_401_on_an_old_token(day: Day) -> None:
    with day.old_token():
        day.stub.fault("bad_token", times=1, main=True)
        assert claude_says(day, "[[text: all is well]]") == "all is well"


# ----------------------------------------------------------------------------------------------------------------- time


@pytest.mark.keeps("live-token")
@pytest.mark.real
def test_after_a_night_asleep_the_first_request_carries_a_live_token(day: Day) -> None:
    before = day.token()
    with day.stopped(REFRESHER, PROXY):
        day.move_clock(8 * HOUR)
    assert day.answered()["iat"] == pytest.approx(day.now() - BACKDATE_SECONDS, abs=SECONDS)
    assert token_times(day.refreshed(before))[0] == pytest.approx(day.now() - BACKDATE_SECONDS, abs=SECONDS)


@pytest.mark.real
def test_a_request_that_was_on_its_way_when_the_machine_fell_asleep_is_asked_again(day: Day) -> None:
    before, log = len(day.stub.requests), len(day.log(PROXY))
    day.stub.fault(
        "slow_start", times=1, main=True, seconds=2
    )  # time for the clock to move while the request is on its way
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(claude_says, day, "[[text: good morning]]")
        wait_until(lambda: any(r.get("fault") for r in day.stub.requests[before:]), SECONDS)
        day.move_clock(2 * HOUR)
        assert said.result() == "good morning"
    day.said(PROXY, "error 401 to Claude Code", log)
    assert "This machine's clock" not in day.log(PROXY)[log:]


@pytest.mark.keeps("live-token")
@pytest.mark.real
@pytest.mark.parametrize("hours", [-5, 5])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_clock_that_is_set_by_hours_costs_no_request(day: Day, hours: int, hangs: bool) -> None:
    before = day.token()
    with day.stopped(*([REFRESHER] if hangs else [])):
        day.move_clock(hours * HOUR)
        assert day.answered()["iat"] == pytest.approx(day.now() - BACKDATE_SECONDS, abs=SECONDS)
    assert token_times(day.refreshed(before))[0] == pytest.approx(day.now() - BACKDATE_SECONDS, abs=SECONDS)


@pytest.mark.real
def test_an_hour_of_skew_to_snowflake_is_said_with_394302_and_heals_with_the_clock(day: Day) -> None:
    before, log = day.token(), len(day.log(PROXY))
    day.move_clock(HOUR, snowflake=False)
    day.refreshed(before)
    answer = wait_until(lambda: (told := day.ask("hello")).headers.get("x-should-retry") == "false" and told, SECONDS)
    assert answer.status_code == 401
    assert "ahead of Snowflake's" in answer.json()["error"]["message"]
    assert "ahead of Snowflake's" in day.log(PROXY)[log:]
    assert set(day.stub.login_failures.values()) >= {"394302 issue time is in the future"}
    assert "ahead of Snowflake's" in claude_says(day, "hello")
    day.move_clock(-HOUR, snowflake=False)
    assert day.answered()["status"] == 200


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.keeps("secret-files")
@pytest.mark.real
def test_a_refresher_killed_between_temporary_file_and_rename_costs_nothing(day: Day) -> None:
    before = day.config.read_bytes()
    (day.faults / "die-before-rename").touch()
    day.processes[REFRESHER].send_signal(signal.SIGHUP)
    assert day.processes[REFRESHER].wait(SECONDS) == -signal.SIGKILL
    (leftover,) = day.folder.glob(".litellm_config.yaml.*.tmp")
    assert stat.S_IMODE(leftover.stat().st_mode) == 0o600
    assert day.config.read_bytes() == before
    day.answered()
    (day.faults / "die-before-rename").unlink()
    day.start_refresher()
    assert not leftover.exists()
    assert day.answered()["iat"] == token_times(day.token())[0]


@pytest.mark.real
def test_proxy_and_refresher_killed_together_come_back_to_work(day: Day) -> None:
    day.kill(REFRESHER)
    day.kill(PROXY)
    day.move_clock(2 * HOUR)
    day.start_proxy()  # as PM2 does; the token in the file has ended, and no refresher runs
    assert day.answered()["iat"] == pytest.approx(day.now() - BACKDATE_SECONDS, abs=SECONDS)
    day.start_refresher()


@pytest.mark.keeps("live-token")
@pytest.mark.real
def test_a_full_disk_costs_no_request_and_is_named(day: Day) -> None:
    before, log = day.config.read_bytes(), len(day.log(REFRESHER))
    (day.faults / "disk-full").touch()
    day.move_clock(HOUR)
    assert "litellm_config.yaml: No space left on device" in day.said(REFRESHER, "ERROR: no new token", log)
    assert day.answered()["iat"] == pytest.approx(day.now() - BACKDATE_SECONDS, abs=SECONDS)
    assert day.config.read_bytes() == before
    assert not list(day.folder.glob(".litellm_config.yaml.*.tmp"))
    (day.faults / "disk-full").unlink()
    day.move_clock(60)  # the refresher waits up to a minute
    assert token_times(day.refreshed(yaml.safe_load(before)["model_list"][0]["litellm_params"]["api_key"]))


def overwrite(path: Path) -> None:
    path.write_text("something: else\n")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.real
@pytest.mark.parametrize("harm", [Path.unlink, truncate, overwrite])
def test_a_config_that_is_lost_costs_no_request_and_comes_back(day: Day, harm: Callable[[Path], None]) -> None:
    before, log = day.token(), len(day.log(REFRESHER))
    harm(day.config)
    day.answered()
    day.refreshed(before)
    assert re.search("litellm_config.yaml was (deleted|altered by something else)", day.log(REFRESHER)[log:])
    assert day.answered()["iat"] == token_times(day.token())[0]


@pytest.mark.real
def test_while_cortex_cannot_be_reached_claude_code_waits_and_then_goes_on(day: Day) -> None:
    log = len(day.log(PROXY))
    day.stub.close_port()
    answer = day.ask("hello")
    assert (answer.status_code, answer.headers.get("x-should-retry")) == (502, None)
    assert "Snowflake Cortex cannot be reached" in answer.json()["error"]["message"]
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(claude_says, day, "[[text: here I am again]]")
        wait_until(lambda: day.log(PROXY)[log:].count("error 502") >= 3, 30)
        day.stub.open_port()
        assert said.result() == "here I am again"


@pytest.mark.real
@pytest.mark.parametrize(
    ("fault", "settings"),
    [
        ("cut", {"after": 2}),  # Claude Code repeats the turn, not streamed
        ("cut", {"after": 2, "clean": True}),  # looks like a short answer
        ("broken_sse", {"after": 2}),
        ("drop", {}),
        ("html", {}),  # a network's log-in page
        ("slow_start", {"seconds": 3}),
        ("slow_chunks", {"seconds": 0.3}),
    ],
)
def test_a_bad_moment_of_cortex_is_over_without_the_user(day: Day, fault: str, settings: dict[str, Any]) -> None:
    day.stub.fault(fault, times=1, main=True, **settings)
    assert claude_says(day, "[[text: whole and well]]") == "whole and well"


@pytest.mark.real
@pytest.mark.parametrize("fault", ["html", "broken_json", "drop", "cut"])
def test_garbage_that_lasts_is_named_and_retried_and_never_passed_on(day: Day, fault: str) -> None:
    log = len(day.log(PROXY))
    day.stub.fault(fault)
    answer = day.ask("hello")
    assert answer.status_code >= 500
    assert answer.headers.get("x-should-retry") is None
    assert answer.json()["type"] == "error"
    identity = answer.headers["request-id"]
    assert f"error {answer.status_code} to Claude Code ({identity}): Snowflake Cortex" in day.log(PROXY)[log:]


@pytest.mark.real
def test_a_stream_that_breaks_off_ends_with_an_error_event_and_never_as_whole(day: Day) -> None:
    day.stub.fault("cut", after=2)
    kinds = [event["type"] for event in events(day.ask("hello", stream=True))]
    assert kinds[-1] == "error"
    assert "message_stop" not in kinds


# ------------------------------------------------------------------------------------------------------- stop and start


@pytest.mark.real
def test_a_stop_waits_for_open_answers_but_not_for_ever(day: Day) -> None:
    with day.open_answer() as finish:
        start = time.monotonic()
        day.processes[PROXY].send_signal(signal.SIGINT)
        assert day.processes[PROXY].wait(timeout=20) == 0
        assert time.monotonic() - start >= 3
        with pytest.raises(AssertionError, match="The proxy was stopped; trying again"):  # and Claude Code does so
            finish()
    assert "Traceback" not in day.log(PROXY)
