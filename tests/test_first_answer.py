"""bundle/checks/first_answer.py: a start is good when Claude Code gets answers, and a refused route is named."""

from __future__ import annotations

import itertools
import json
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.bootstrap import make
from bundle.checks import first_answer
from bundle.checks.finding import read_installation
from bundle.checks.first_answer import switch_to_offer, switched, wait_for_proxy
from bundle.checks.model_check import MESSAGES, Report
from bundle.spending import FILE
from tests.set_up import BUNDLE, TOKEN, SetUp, wait_until
from tests.terminal import Terminal

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


class Refusing(SetUp):
    """A running set-up. Its Cortex refuses a field that Claude Code sends on one of the routes."""

    def refuse(self, field: str, env_file: str = "") -> None:
        """Let Cortex refuse this field, write these lines to `.env`, and wait until the proxy uses them."""
        self.stub.set_options(refused_fields=(field,))
        self.env_file.unlink(missing_ok=True)
        if env_file:
            self.env_file.write_text(env_file)
            self.env_file.chmod(0o600)
        wanted = "messages" if "messages" in env_file else "chat/completions"
        wait_until(lambda: self.path().endswith(wanted), 20)

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    def path(self) -> str:
        """Send a request and return the path on which it reaches Cortex."""
        before = len(self.stub.requests)
        self.ask("hello", "claude-haiku-4-5")
        return str(self.stub.requests[before]["path"])

    def at_a_terminal(self) -> Terminal:
        command = [sys.executable, str(BUNDLE / "tests/first_answer.py")]
        return Terminal(command, {**self.environ, "TERM": "dumb"}, cwd=self.folder, columns=200)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refusing]:
    made = Refusing(tmp_path_factory.mktemp("refusing"))
    made.start("auto_refresh.py")
    made.start_proxy()
    yield made
    made.close()


ALL = "claude-haiku-4-5, claude-opus-5, claude-sonnet-5"
ALL_ANSWER = "claude-haiku-4-5, claude-opus-5 and claude-sonnet-5 on Snowflake Cortex answer.\n"
REFUSED_ON_CHAT = "claude-haiku-4-5: Cortex refuses `reasoning` on chat completions and takes it on the Messages API"
REFUSED_ON_MESSAGES = "claude-haiku-4-5: Cortex refuses `thinking` on the Messages API and takes it on chat completions"


@pytest.mark.real
def test_a_start_is_not_good_when_only_the_other_route_takes_claude_code_and_says_so_in_one_line(
    refusing: Refusing,
) -> None:
    refusing.refuse("reasoning")
    done = refusing.run("tests/first_answer.py")
    line, where, remedy = done.stdout.splitlines()
    assert (done.returncode, line, remedy) == (1, f"{REFUSED_ON_CHAT}.", "CLAUDE_ROUTE=messages")
    assert str(refusing.env_file) in where
    assert not refusing.env_file.exists()
    # `doctor.py --live` says the same about each model.
    found = json.loads(refusing.run("doctor.py", "--live", "--json").stdout)["findings"]
    asked = {finding["name"]: finding for finding in found if finding["group"] == "Models"}
    assert {finding["state"] for finding in asked.values()} == {"warn"}
    assert asked["openai/claude-haiku-4-5"]["found"] == REFUSED_ON_CHAT.partition(": ")[2]
    assert not TOKEN.search(done.stdout)


@pytest.mark.real
@pytest.mark.parametrize("answer", ["", "y"])
def test_yes_changes_the_route_and_the_start_ends_well(refusing: Refusing, answer: str) -> None:
    refusing.refuse("reasoning", "# mine\nexport OTHER='a b'\n")
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type(answer)
        assert person.finish() == 0, person.screen
    assert person.screen.count(REFUSED_ON_CHAT) == 1
    assert "Warning" not in person.screen
    assert person.screen.endswith(ALL_ANSWER)
    assert refusing.env_file.read_text() == "# mine\nexport OTHER='a b'\nCLAUDE_ROUTE=messages\n"
    assert stat.S_IMODE(refusing.env_file.stat().st_mode) == 0o600
    assert refusing.path().endswith("/messages")


@pytest.mark.real
def test_no_keeps_the_route_and_is_not_asked_again(refusing: Refusing) -> None:
    refusing.refuse("reasoning")
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type("n")
        assert person.finish() == 0, person.screen
    assert f"Warning: {ALL}: {REFUSED_ON_CHAT.partition(': ')[2]}" in person.screen
    assert person.screen.endswith(ALL_ANSWER)
    assert refusing.env_file.read_text().splitlines()[-1] == "CLAUDE_ROUTE=chat"
    assert stat.S_IMODE(refusing.env_file.stat().st_mode) == 0o600
    with refusing.at_a_terminal() as again:
        assert again.finish() == 0, again.screen
    assert "Switch" not in again.screen
    assert f"Warning: {ALL}: {REFUSED_ON_CHAT.partition(': ')[2]}" in again.screen


@pytest.mark.real
def test_a_route_that_the_user_has_chosen_is_kept_with_a_warning_the_other_way_round_too(refusing: Refusing) -> None:
    refusing.refuse("thinking", "CLAUDE_ROUTE=messages\n")
    done = refusing.run("tests/first_answer.py")
    assert done.returncode == 0, done.stdout
    assert f"Warning: {ALL}: {REFUSED_ON_MESSAGES.partition(': ')[2]}\n" in done.stdout
    assert "\nCLAUDE_ROUTE=chat\n" in done.stdout
    assert refusing.env_file.read_text() == "CLAUDE_ROUTE=messages\n"
    in_the_shell = refusing.run("tests/first_answer.py", CLAUDE_ROUTE="messages")
    assert f"\nexport CLAUDE_ROUTE=chat\n{make('stop', 'start')}\n" in in_the_shell.stdout


@pytest.mark.real
def test_a_route_that_answers_nothing_at_all_is_no_good_start_also_where_it_is_kept(refusing: Refusing) -> None:
    refusing.refuse("max_completion_tokens")  # chat completions cannot work without this field
    said = "on chat completions and takes that on the Messages API."
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type("maybe")
        person.read_until("[Y/n] maybe\nSwitch to it? [Y/n] ")
        person.type("\x04")
        assert person.finish() == 1
    assert said in person.screen
    assert person.screen.endswith("\nCLAUDE_ROUTE=messages\n")
    assert not refusing.env_file.exists()
    with refusing.at_a_terminal() as person:
        person.read_until("Switch to it? [Y/n] ")
        person.type("n")
        assert person.finish() == 1
    assert "So Claude Code gets no answer." in person.screen
    done = refusing.run("tests/first_answer.py")  # the user has chosen, so this is now a fault like others
    assert (done.returncode, "on Snowflake Cortex" in done.stdout) == (1, False)
    assert said.rstrip(".") in " ".join(done.stdout.split())


@pytest.mark.real
def test_a_start_is_not_good_when_both_routes_refuse_claude_code(refusing: Refusing) -> None:
    refusing.refuse("max_tokens", "CLAUDE_ROUTE=messages\n")  # no request works without this field
    refusing.stub.set_options(refused_fields=("max_tokens", "max_completion_tokens"))
    done = refusing.run("tests/first_answer.py")
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "on the Messages API, and on chat completions: max_completion_tokens is not supported" in said
    assert "on Snowflake Cortex" not in said


WHOLE, IN_PART, NONE = (Report(answers, "") for answers in ("whole", "in part", "no"))
BETTER, BETTER_THAN_NONE = (Report(answers, "", "", MESSAGES) for answers in ("in part", "no"))


@pytest.mark.parametrize(
    ("reports", "model"),
    [
        ([BETTER, BETTER, BETTER], "a"),
        ([NONE, BETTER_THAN_NONE, BETTER], "b"),  # the first model is not in the region
        ([BETTER, WHOLE], None),
        ([BETTER, IN_PART], None),
        ([NONE, NONE], None),
        ([WHOLE], None),
    ],
)
def test_the_other_route_is_offered_only_where_no_model_loses_by_it(reports: list[Report], model: str | None) -> None:
    found = switch_to_offer(dict(zip("abc", reports, strict=False)))
    assert found == ((model, MESSAGES) if model else None)


@pytest.mark.real
def test_at_the_day_s_limit_a_start_is_good_and_no_model_is_asked(refusing: Refusing) -> None:
    refusing.refuse("user", "CLAUDE_ROUTE=chat\nBUDGET_USD_PER_DAY=0.05\n")
    refusing.ask("[100000 tokens more]")
    spent = refusing.folder / FILE
    wait_until(lambda: spent.exists() and json.loads(spent.read_text())["today"]["usd"] > 0.05, 20)
    before = len(refusing.stub.requests)
    done = refusing.run("tests/first_answer.py")
    assert (done.returncode, len(refusing.stub.requests)) == (0, before), done.stdout
    assert "Both processes run. Today's limit is reached, so no model was asked.\n" in done.stdout
    assert f"raise or remove BUDGET_USD_PER_DAY in {refusing.env_file}, line 2\n" in done.stdout
    assert json.loads(refusing.run("doctor.py", "--json").stdout)["ok"] is False


@pytest.mark.real
def test_a_model_that_does_not_answer_is_named_at_the_start_and_is_no_reason_to_fail(refusing: Refusing) -> None:
    refusing.refuse("user", "CLAUDE_ROUTE=chat\n")  # a field that is never sent
    refusing.stub.missing_models = frozenset({"claude-haiku-4-5"})  # the only one of its family
    try:
        done = refusing.run("tests/first_answer.py")
    finally:
        refusing.stub.missing_models = frozenset()
    assert done.returncode == 0
    assert "Warning: claude-haiku-4-5: Snowflake Cortex: model claude-haiku-4-5 is not available" in done.stdout
    assert "CORTEX_ENABLED_CROSS_REGION" in done.stdout
    assert done.stdout.endswith("claude-opus-5 and claude-sonnet-5 on Snowflake Cortex answer.\n")


@pytest.mark.real
def test_a_model_that_stands_in_for_a_newer_one_is_named_with_the_way_to_the_newer_one(refusing: Refusing) -> None:
    refusing.refuse("user", "CLAUDE_ROUTE=chat\n")
    refusing.stub.missing_models = frozenset({"claude-opus-5", "claude-opus-4-8"})
    try:
        started = [refusing.run("tests/first_answer.py") for _ in range(2)]  # it learns, and it knows already
        found = json.loads(refusing.run("doctor.py", "--live", "--json").stdout)["findings"]
    finally:
        refusing.stub.missing_models = frozenset()
    said = "claude-opus-4-7 answers in place of claude-opus-5, which Cortex refuses: model claude-opus-5 is not "
    for done in started:
        assert done.returncode == 0
        assert f"Warning: claude-opus-5: {said}available in your region" in done.stdout
        assert "As ACCOUNTADMIN:\nALTER ACCOUNT SET CORTEX_ENABLED_CROSS_REGION" in done.stdout
        *_, last = done.stdout.splitlines()
        assert last == "claude-haiku-4-5, claude-opus-4-7 and claude-sonnet-5 on Snowflake Cortex answer."
    (opus,) = (finding for finding in found if finding["name"] == "openai/claude-opus-5")
    assert (opus["state"], opus["found"].startswith(said)) == ("warn", True)


def test_a_start_with_a_word_that_is_no_route_says_which_there_are(set_up: SetUp) -> None:
    done = set_up.run("tests/first_answer.py", CLAUDE_ROUTE="snowflake")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("the environment: CLAUDE_ROUTE is 'snowflake'; it must be chat ")


def test_a_process_that_fails_again_and_again_is_not_waited_for(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def loop(_: object) -> list[dict[str, object]]:
        looked.append(len(looked))
        return [{"name": "claude-proxy", "pm2_env": {"status": "launching", "restart_time": len(looked)}}]

    monkeypatch.setattr(first_answer, "pm2_processes", loop)
    monkeypatch.setattr(first_answer, "START_SECONDS", 20)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert not wait_for_proxy(read_installation(set_up.environ, time.time()))
    assert looked == [0, 1, 2]


def test_a_refresher_that_does_not_take_up_the_new_route_is_named(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up.refresh()
    monkeypatch.setattr(first_answer, "SWITCH_SECONDS", 0)
    setup = read_installation(set_up.environ, time.time())
    assert not switched(setup, "snowflake/claude-haiku-4-5", "claude-haiku-*")
    assert make("stop", "start") in capsys.readouterr().out


def test_an_answer_that_still_came_by_the_old_route_is_not_the_last_word(
    set_up: SetUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up.refresh()
    whole = Report("whole", "answers")
    coming = itertools.chain([Report("in part", "the old one")], itertools.repeat(whole))
    monkeypatch.setattr(first_answer, "check_model", lambda *_: next(coming))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    setup = read_installation(set_up.environ, time.time())
    assert switched(setup, "openai/claude-haiku-4-5", "claude-haiku-*")
    assert capsys.readouterr().out == ALL_ANSWER
