"""A session that lasts all day: the real refresher and the real proxy while tokens end, files change, clocks jump,
disks fill, processes die and Cortex has a bad day. What heals does so without hands; the next test relies on it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from bundle.errors import ConfigError
from bundle.proxy.live_config import Exchange, LiveConfig, clock_trouble, current_exchange
from bundle.refresher import refresh
from bundle.settings import load_settings
from bundle.tokens import fingerprint, sign, token_times
from tests.conftest import TOKEN, SetUp, copy_bundle, drop_root_powers, events, public_pem, wait_until

REFRESHER, PROXY = "auto_refresh.py", "claude_proxy.py"
SECONDS = 30  # in which an edit takes effect, on a very busy machine; it is three on an idle one
HOUR = 3600


class Day(SetUp):
    """A set-up whose template, settings, clock and disk belong to the tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, bundle=copy_bundle(folder / "bundle"))
        script = self.bundle / "bundle" / "proxy" / "server.py"
        script.write_text(script.read_text().replace("DRAIN_SECONDS = 30", "DRAIN_SECONDS = 3"))
        self.template_file = self.bundle / "litellm_config.template.yaml"
        self.shipped = self.template_file.read_text()
        self.env_file = folder / ".env"
        names = ("SNOWFLAKE_HOST", "PROXY_PORT")
        self.settings = "".join(f"{name}={self.environ.pop(name)}\n" for name in names)
        self.env_file.write_text(self.settings)
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.ahead = 0.0
        self.move_clock(0)
        self.environ |= {"PYTHONPATH": str(Path(__file__).parent / "faults"), "FAULTS": str(self.faults)}

    def now(self) -> float:
        """The time of both processes."""
        return time.time() + self.ahead

    def move_clock(self, seconds: float, *, snowflake: bool = True) -> None:
        self.ahead += seconds
        with (self.faults / "clock").open("r+b" if (self.faults / "clock").exists() else "wb") as file:
            file.write(struct.pack("d", self.ahead))
        if snowflake:
            self.stub.skew += seconds

    def edit(self, old: str, new: str) -> None:
        """Put `new` in the place of `old` in the template, as an editor does."""
        text = self.template_file.read_text()
        assert old in text
        self.template_file.write_text(text.replace(old, new))

    def token(self) -> str:
        """The file's."""
        with suppress(OSError, yaml.YAMLError, KeyError, TypeError):
            return str(yaml.safe_load(self.config.read_text())["model_list"][0]["litellm_params"]["api_key"])
        return ""

    def refreshed(self, before: str) -> str:
        """The token in the file as soon as it is another one than `before`."""
        return str(
            wait_until(lambda: self.token() not in {before, ""} and self.token(), SECONDS, lambda: self.log(REFRESHER))
        )

    def answered(self, model: str = "claude-sonnet-4-5") -> dict[str, Any]:
        """What Cortex was asked for a question that got its answer."""
        first = len(self.stub.requests)
        answer = self.ask("hello", model)
        assert answer.status_code == 200, answer.text
        return next(record for record in self.stub.requests[first:] if record["status"] == 200)

    def said(self, script: str, words: str, since: int = 0) -> str:
        """The log from `since` on, as soon as these words are in it."""
        wait_until(lambda: words in self.log(script)[since:], SECONDS, lambda: self.log(script)[since:])
        return self.log(script)[since:]

    @contextmanager
    def stopped(self, *scripts: str) -> Iterator[None]:
        """The block runs while these processes stand still."""
        for script in scripts:
            self.processes[script].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for script in scripts:
                self.processes[script].send_signal(signal.SIGCONT)

    @contextmanager
    def old_token(self) -> Iterator[None]:
        """The block runs with a token that is ten minutes old, and that nobody renews meanwhile."""
        before = self.token()
        self.move_clock(3001)
        self.refreshed(before)
        with self.stopped(REFRESHER):
            self.move_clock(600)
            yield

    def kill(self, script: str) -> None:
        self.processes[script].kill()
        self.processes[script].wait(timeout=10)

    def start_refresher(self) -> None:
        before = len(self.log(REFRESHER))
        self.start(REFRESHER)
        self.said(REFRESHER, "has started", before)

    def put_back(self) -> None:
        """What a test changed, as the user has it; nothing else: the rest has to heal."""
        for fault in self.faults.glob("*-*"):
            fault.unlink()
        self.stub.clear_faults()
        self.stub.open_port()
        self.move_clock(self.stub.skew - self.ahead, snowflake=False)
        if self.processes[REFRESHER].poll() is not None:
            self.start_refresher()
        if self.processes[PROXY].poll() is not None:
            self.start_proxy()
        before = self.token()
        edited = [
            path.write_text(text)
            for path, text in ((self.template_file, self.shipped), (self.env_file, self.settings))
            if path.read_text() != text
        ]
        if edited:
            self.refreshed(before)


@pytest.fixture(scope="module")
def whole_day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    made = Day(tmp_path_factory.mktemp("day"))
    try:
        made.start(REFRESHER)
        made.start_proxy()
        yield made
    finally:
        made.close()


@pytest.fixture
def day(whole_day: Day) -> Iterator[Day]:
    yield whole_day
    whole_day.put_back()
    wait_until(lambda: whole_day.ask("are you well?").status_code == 200, 30, lambda: whole_day.log(PROXY))
    for log in (whole_day.log(PROXY), whole_day.log(REFRESHER)):
        assert not TOKEN.search(log)


def claude_says(day: Day, prompt: str) -> str:
    """What the user of Claude Code reads."""
    return str(day.claude(prompt)["result"])


# ---------------------------------------------------------------------------------------- no request with a dead token


@pytest.mark.real
def test_the_refresher_renews_the_token_ten_minutes_before_its_end(day: Day) -> None:
    before = day.token()
    day.move_clock(3001)
    issued, expires = token_times(day.refreshed(before))
    assert abs(issued - day.now()) < SECONDS
    assert expires == issued + HOUR
    assert day.answered()["iat"] == issued


@pytest.mark.real
def test_with_the_refresher_stopped_a_burst_gets_one_token_signed_in_memory_and_nothing_is_written(day: Day) -> None:
    log, first = len(day.log(PROXY)), len(day.stub.requests)
    with day.stopped(REFRESHER):
        day.move_clock(HOUR - 30)
        before = {path: path.read_bytes() for path in day.folder.iterdir() if path.is_file() and path.suffix != ".log"}
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda number: day.ask(f"question {number}"), range(24)))
        after = {path: path.read_bytes() for path in day.folder.iterdir() if path.is_file() and path.suffix != ".log"}
    assert {answer.status_code for answer in answers} == {200}
    asked = day.stub.requests[first:]
    assert {len(asked), len({record["token_id"] for record in asked})} == {24, 1}
    assert abs(asked[0]["iat"] - day.now()) < SECONDS
    assert day.log(PROXY)[log:].count("signed one in memory") == 1
    assert before == after


@pytest.mark.real
def test_after_a_401_the_next_request_carries_a_new_token(day: Day) -> None:
    with day.old_token():
        old = day.answered()["token_id"]
        day.stub.fault("bad_token", times=1)
        refused = day.ask("hello")
        assert (refused.status_code, refused.headers.get("x-should-retry")) == (401, None)
        assert day.answered()["token_id"] != old


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


class Now:
    """A clock that a test sets, and a file as the refresher writes it."""

    def __init__(self, set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in set_up.environ.items():
            monkeypatch.setenv(name, value)
        self.time = time.time()
        self.set_up = set_up
        self.live = LiveConfig(set_up.config, lambda: self.time)
        refresh(load_settings(), self.time)
        self.written = self.live.token()


@pytest.fixture
def now(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> Now:
    return Now(set_up, monkeypatch)


def test_a_broken_edit_of_the_settings_does_not_end_the_session_when_the_token_ends(now: Now) -> None:
    now.live.settings = load_settings()
    (now.set_up.folder / ".env").write_bytes(b"\xff\xfe not text")
    with pytest.raises(ConfigError):
        load_settings()
    now.time += 2 * HOUR
    assert token_times(now.live.token())[0] == int(now.time)


def test_a_token_that_cannot_be_replaced_is_used_to_its_last_minute_and_then_the_remedy_is_said(now: Now) -> None:
    now.set_up.key_path.chmod(0o644)
    now.time += HOUR - 30
    assert now.live.token() == now.written
    now.time += 30
    with pytest.raises(ConfigError, match="chmod 600"):
        now.live.token()


@pytest.mark.parametrize("jump", [-8 * HOUR, -5, 8 * HOUR])
def test_whatever_the_clock_does_the_token_is_of_its_time(now: Now, jump: float) -> None:
    now.time += jump
    issued, expires = token_times(now.live.token())
    assert issued <= now.time < expires


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff", b"model_list: [", b"[1, 2]", b"text", b"model_list: [text]", b"model_list: 5", b"a: 2001-99-99"],
)
def test_a_file_that_something_else_wrote_changes_nothing(now: Now, content: bytes) -> None:
    now.set_up.config.write_bytes(content)
    assert not now.live.reload()
    assert now.live.token() == now.written


@pytest.mark.parametrize(
    ("ahead", "age", "said"),
    [
        (HOUR, 0, "60 minutes ahead of Snowflake's, which takes no token from the future (394302)"),
        (-2 * HOUR, 0, "120 minutes behind Snowflake's, for which this token has ended (394303)"),
        (5, 0, None),  # Snowflake's own tolerance is not known
        (HOUR / 2, HOUR * 3 / 4, None),  # the clock is wrong, but this token was not refused for that
        (0, HOUR + 10, None),  # the machine slept while the request was on its way: both clocks say that it has ended
    ],
)
def test_a_wrong_clock_is_told_from_a_wrong_key(now: Now, ahead: float, age: float, said: str | None) -> None:
    token = sign(load_settings(), now.time - age).value
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now.time - ahead))
    call = Exchange()
    reset = current_exchange.set(call)
    now.live.refuse(token, date)
    current_exchange.reset(reset)
    if said is None:
        assert call.trouble is None
    else:
        assert call.trouble is not None
        assert said in call.trouble
        assert "timedatectl set-ntp true" in call.trouble
    assert clock_trouble(token, now.time, "no date at all") is None


# ------------------------------------------------------------------------------------------------------ edits are live

ANOTHER = """\
  - model_name: my-own-name
    litellm_params: { <<: *cortex, model: openai/claude-opus-4-5 }
"""


@pytest.mark.real
def test_a_model_that_is_added_answers_within_seconds_and_one_that_is_removed_no_more(day: Day) -> None:
    assert day.ask("hello", "my-own-name").status_code == 400
    day.edit("model_list:\n", "model_list:\n" + ANOTHER)
    wait_until(lambda: day.ask("hello", "my-own-name").status_code == 200, SECONDS, lambda: day.log(PROXY))
    assert day.answered("my-own-name")["model"] == "claude-opus-4-5"
    day.edit(ANOTHER, "")
    wait_until(lambda: day.ask("hello", "my-own-name").status_code == 400, SECONDS, lambda: day.log(PROXY))


@pytest.mark.real
def test_a_changed_mapping_takes_effect_within_seconds_and_leaves_open_answers_alone(day: Day) -> None:
    with day.open_answer() as finish:
        day.edit(
            "model_name: claude-opus-*\n    litellm_params: { <<: *cortex, model: openai/claude-opus-4-7 }",
            "model_name: claude-opus-*\n    litellm_params: { <<: *cortex, model: openai/claude-opus-4-6 }",
        )
        wait_until(lambda: day.answered("claude-opus-9-9")["model"] == "claude-opus-4-6", SECONDS)
        assert finish() == "one two three"


@pytest.mark.real
def test_a_catch_all_that_is_removed_catches_no_more(day: Day) -> None:
    assert day.answered("claude-of-the-future")["model"] == "claude-sonnet-4-6"
    row = day.shipped.index("  - model_name: claude-*\n")
    day.edit(day.shipped[row : day.shipped.index("\n\n", row)], "")
    wait_until(lambda: day.ask("hello", "claude-of-the-future").status_code == 400, SECONDS, lambda: day.log(PROXY))
    assert "no row of litellm_config.template.yaml" in day.ask("hello", "claude-of-the-future").text


@pytest.mark.real
def test_a_key_is_rotated_by_the_second_slot_while_requests_go_on(day: Day) -> None:
    before = day.answered()["fp"]
    new = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    day.stub.register_key(public_pem(new), slot=2)
    day.write_key(new)
    wait_until(lambda: day.answered()["fp"] != before, SECONDS, lambda: day.log(REFRESHER))
    assert day.answered()["fp"] == fingerprint(new)
    day.stub.register_key(public_pem(new), slot=1)
    day.stub.register_key(None, slot=2)
    assert day.answered()["fp"] == fingerprint(new)


@pytest.mark.real
def test_a_name_that_dns_does_not_know_is_said_and_an_edit_of_the_settings_fixes_it(day: Day) -> None:
    log = len(day.log(PROXY))
    day.env_file.write_text(re.sub("SNOWFLAKE_HOST=.*", "SNOWFLAKE_HOST=no-such-host.invalid", day.settings))
    wait_until(lambda: (answer := day.ask("hello")).status_code == 502 and "cannot be reached" in answer.text, SECONDS)
    answer = day.ask("hello")
    assert answer.headers.get("x-should-retry") is None
    assert "DNS" in answer.json()["error"]["message"]
    assert "error 502 to Claude Code: Snowflake Cortex cannot be reached" in day.log(PROXY)[log:]
    day.env_file.write_text(day.settings)
    wait_until(lambda: day.ask("hello").status_code == 200, SECONDS)


@pytest.mark.real
def test_a_new_port_and_another_section_of_the_template_say_that_they_need_a_restart(day: Day) -> None:
    refresher, proxy = len(day.log(REFRESHER)), len(day.log(PROXY))
    day.env_file.write_text(f"{day.settings}PROXY_PORT=8123\n")
    assert "pm2 restart claude-proxy`" in day.said(REFRESHER, "PROXY_PORT changed: takes effect with", refresher)
    day.edit("num_retries: 0", "num_retries: 0\n  timeout: 1000")
    assert "pm2 restart claude-proxy`" in day.said(PROXY, "router_settings changed: takes effect with", proxy)


@pytest.mark.real
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("model_list:\n", "model_list: [\n", "not valid YAML"),
        ("openai/claude-opus-4-6 }", "opnai/claude-opus-4-6 }", "a model on Cortex starts with openai/ or snowflake/"),
    ],
)
def test_a_broken_edit_is_refused_with_a_message_and_the_last_good_configuration_stays(
    day: Day, old: str, new: str, said: str
) -> None:
    log, before, token = len(day.log(REFRESHER)), day.config.read_bytes(), day.token()
    day.edit(old, new)
    assert "the last good configuration stays" in day.said(REFRESHER, said, log)
    assert day.answered("claude-opus-4-6")["model"] == "claude-opus-4-6"
    assert day.config.read_bytes() == before
    assert said in day.run(REFRESHER, "--status").stdout
    day.template_file.write_text(day.shipped)
    day.refreshed(token)
    assert day.run(REFRESHER, "--status").returncode == 0


@pytest.mark.real
def test_a_row_that_only_litellm_refuses_is_named_and_the_old_rows_stay(day: Day) -> None:
    log = len(day.log(PROXY))
    day.edit("model: openai/claude-opus-4-6 }", "model: openai/claude-opus-4-5, timeout: [1] }")
    words = day.said(PROXY, "the changed rows of the template are not used, the old ones stay: claude-opus-4-6", log)
    assert "eyJ" not in words
    time.sleep(2)
    assert day.log(PROXY)[log:].count("not used") == 1
    assert day.answered("claude-opus-4-6")["model"] == "claude-opus-4-6"


@pytest.mark.real
def test_with_a_broken_template_the_session_outlives_the_token(day: Day) -> None:
    day.edit("model_list:\n", "model_list: [\n")
    log = len(day.log(REFRESHER))
    day.move_clock(HOUR)
    assert day.answered()["iat"] == pytest.approx(day.now(), abs=SECONDS)
    day.said(REFRESHER, "ERROR: no new token, and the last one ends in 0 minutes", log)


# ---------------------------------------------------------------------------------------------------------------- time


@pytest.mark.real
def test_after_a_night_asleep_the_first_request_carries_a_live_token(day: Day) -> None:
    before = day.token()
    with day.stopped(REFRESHER, PROXY):
        day.move_clock(8 * HOUR)
    assert day.answered()["iat"] == pytest.approx(day.now(), abs=SECONDS)
    assert token_times(day.refreshed(before))[0] == pytest.approx(day.now(), abs=SECONDS)


@pytest.mark.real
def test_a_request_that_was_on_its_way_when_the_machine_fell_asleep_is_asked_again(day: Day) -> None:
    before, log = len(day.stub.requests), len(day.log(PROXY))
    day.stub.fault("slow_start", times=1, main=True, seconds=2)  # as long as it takes to look at the token
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(claude_says, day, "[[text: good morning]]")
        wait_until(lambda: any(r.get("fault") for r in day.stub.requests[before:]), SECONDS)
        day.move_clock(2 * HOUR)
        assert said.result() == "good morning"
    day.said(PROXY, "error 401 to Claude Code", log)
    assert "This machine's clock" not in day.log(PROXY)[log:]


@pytest.mark.real
@pytest.mark.parametrize("hours", [-5, 5])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_clock_that_is_set_by_hours_costs_no_request(day: Day, hours: int, hangs: bool) -> None:
    before = day.token()
    with day.stopped(*([REFRESHER] if hangs else [])):
        day.move_clock(hours * HOUR)
        assert day.answered()["iat"] == pytest.approx(day.now(), abs=SECONDS)
    assert token_times(day.refreshed(before))[0] == pytest.approx(day.now(), abs=SECONDS)


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


# -------------------------------------------------------------------------------------------------------------- faults


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


def test_a_refresher_killed_at_any_moment_leaves_a_whole_file(set_up: SetUp) -> None:
    moments = random.Random(3)  # noqa: S311 - the same moments on every run
    for number in range(6):
        process = set_up.start(REFRESHER)
        wait_until(lambda: set_up.log(REFRESHER).count("has started") > number, 20)  # noqa: B023 - it ends in here
        end = time.monotonic() + moments.uniform(0, 0.05)
        while time.monotonic() < end:
            process.send_signal(signal.SIGHUP)
        process.kill()
        process.wait(timeout=10)
        token = yaml.safe_load(set_up.config.read_text())["model_list"][0]["litellm_params"]["api_key"]
        assert token_times(token)[1] > time.time()
        assert {stat.S_IMODE(path.stat().st_mode) for path in set_up.folder.glob("*litellm_config*")} == {0o600}


@pytest.mark.real
def test_proxy_and_refresher_killed_together_come_back_to_work(day: Day) -> None:
    day.kill(REFRESHER)
    day.kill(PROXY)
    day.move_clock(2 * HOUR)
    day.start_proxy()  # what PM2 does; the file's token is dead, and the refresher not there yet
    assert day.answered()["iat"] == pytest.approx(day.now(), abs=SECONDS)
    day.start_refresher()


@pytest.mark.real
def test_a_full_disk_costs_no_request_and_is_named(day: Day) -> None:
    before, log = day.config.read_bytes(), len(day.log(REFRESHER))
    (day.faults / "disk-full").touch()
    day.move_clock(HOUR)
    assert "litellm_config.yaml: No space left on device" in day.said(REFRESHER, "ERROR: no new token", log)
    assert day.answered()["iat"] == pytest.approx(day.now(), abs=SECONDS)
    assert day.config.read_bytes() == before
    assert not list(day.folder.glob(".*.tmp"))
    (day.faults / "disk-full").unlink()
    day.move_clock(60)  # the refresher waits up to a minute
    assert token_times(day.refreshed(yaml.safe_load(before)["model_list"][0]["litellm_params"]["api_key"]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root may mount a disk that is small enough to fill")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def test_a_disk_that_is_really_full_leaves_the_old_file_and_heals(set_up: SetUp, small_disk: Path) -> None:
    set_up.environ["CORTEX_HOME"] = str(small_disk)
    config = small_disk / "litellm_config.yaml"
    process = set_up.start(REFRESHER)
    before = wait_until(lambda: config.exists() and config.read_bytes(), 20)
    filler = fill(small_disk)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: "No space left on device" in set_up.log(REFRESHER), 20, lambda: set_up.log(REFRESHER))
    assert config.read_bytes() == before
    filler.unlink()
    wait_until(lambda: config.read_bytes() != before, 20, lambda: set_up.log(REFRESHER))
    assert process.poll() is None


def test_both_start_on_a_full_disk_and_go_on_when_there_is_room(set_up: SetUp, small_disk: Path) -> None:
    set_up.environ["CORTEX_HOME"] = str(small_disk)
    filler = fill(small_disk)
    both = [set_up.start(REFRESHER), set_up.start(PROXY)]
    wait_until(lambda: "No space left on device" in set_up.log(REFRESHER), 20, lambda: set_up.log(REFRESHER))
    wait_until(lambda: "No space left on device" in set_up.log(PROXY), 20, lambda: set_up.log(PROXY))
    filler.unlink()
    wait_until((small_disk / "litellm_config.yaml").exists, 20, lambda: set_up.log(REFRESHER))
    assert [process.poll() for process in both] == [None, None]


def test_a_folder_that_is_read_only_for_a_while_costs_only_that_while(set_up: SetUp) -> None:
    set_up.before_exec = drop_root_powers
    process = set_up.start(REFRESHER)
    before = wait_until(lambda: set_up.config.exists() and set_up.config.read_bytes(), 20)
    set_up.folder.chmod(0o500)
    try:
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "Permission denied" in set_up.log(REFRESHER), 20, lambda: set_up.log(REFRESHER))
        assert set_up.config.read_bytes() == before
    finally:
        set_up.folder.chmod(0o700)
    wait_until(lambda: set_up.config.read_bytes() != before, 20, lambda: set_up.log(REFRESHER))
    assert process.poll() is None


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
        ("html", {}),  # the log-in page of a network
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
    assert f"error {answer.status_code} to Claude Code: Snowflake Cortex" in day.log(PROXY)[log:]


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
        assert 3 <= time.monotonic() - start < 10
        with pytest.raises(AssertionError, match="The proxy was stopped; trying again"):  # and Claude Code does so
            finish()
    assert "Traceback" not in day.log(PROXY)


# ----------------------------------------------------------------------------------------------------------------- soak


@pytest.mark.real
def test_half_a_minute_of_the_soak_fails_no_request() -> None:
    script = str(Path(__file__).parent.parent / "bench" / "soak.py")
    done = subprocess.run([sys.executable, script, "--short", "--json"], capture_output=True, text=True, check=False)
    numbers = json.loads(done.stdout)
    ours = numbers["ours"]
    assert (ours["failed"], ours["cut"], ours["dead_token"]) == (0, 0, 0), ours["reasons"]
    assert done.returncode == 0
    assert ours["requests"] >= 800
    assert ours["tokens"] >= 7
    assert numbers["signed_in_memory"] >= 2
