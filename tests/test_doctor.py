"""doctor.py: it names each fault with what fixes it, shows no secret, and starts nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.checks import report as report_module
from bundle.checks.finding import Finding, Installation, read_installation
from bundle.checks.report import CHECKS, FOLLOWERS, causes, examine
from bundle.checks.this_machine import private_key
from bundle.model_list import save
from bundle.model_query import ask_models
from bundle.settings import load_settings
from tests.set_up import BUNDLE, TOKEN, SetUp

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


# ------------------------------------------------------------------------------------------------------------ the whole


def test_a_healthy_set_up_is_all_green(healthy: SetUp) -> None:
    settings = load_settings(healthy.environ)
    save(settings, ask_models(settings, time.time()))
    found = examine(read_installation(healthy.environ, time.time()), live=True)
    assert [finding for finding in found if finding.state != "ok"] == []
    assert list(dict.fromkeys(finding.group for finding in found)) == [*CHECKS, "Models"]


def test_looking_changes_nothing(set_up: SetUp) -> None:
    before = sorted(set_up.folder.rglob("*"))
    examine(read_installation(set_up.environ, time.time()))
    assert sorted(set_up.folder.rglob("*")) == before


def test_without_a_configuration_one_thing_fails_for_it_and_the_rest_waits(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CORTEX_HOME": str(tmp_path)}
    found = examine(read_installation(environ, time.time()))
    account = next(finding for finding in found if finding.name == "Account")
    assert account.state == "fail"
    assert "SNOWFLAKE_ACCOUNT" in account.fix
    waiting = {finding.group for finding in found if finding.state == "skip"}
    assert waiting == {"Key", "Configuration", "Processes", "Proxy", "Claude Code", "Costs", "Snowflake"}


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ("Account PM2 Token Models", "Account"),
        ("Host Models Models", "Host"),
        ("Clock Login Models", "Clock"),
        ("Login Models", "Login"),
        ("claude-proxy Port Models", "Port"),
        ("claude-proxy Listener Models", "claude-proxy"),
        ("Private-key token-refresher Refresher Token Listener Models", "Private-key"),
        ("token-refresher Token Listener Login Models", "token-refresher Login"),
        ("openai.py claude-proxy Listener", "openai.py"),
        ("LiteLLM openai.py claude-proxy Listener", "LiteLLM"),
        ("Models Models", "Models Models"),
        ("Secrets", "Secrets"),
    ],
)
def test_a_fault_that_follows_from_another_one_is_not_shown_after_a_start(wrong: str, shown: str) -> None:
    found = [
        Finding(word.replace("-key", " key"), "fail", "it fails", "do this", "Processes" if word in PROCESSES else word)
        for word in wrong.split()
    ]
    warning = Finding("Goes to", "warn", "elsewhere")
    assert causes([*found, warning]) == [each for each in found if each.name.replace(" key", "-key") in shown.split()]
    assert causes([warning, Finding("Disk", "ok", "free")]) == [warning]


PROCESSES = ("PM2", "token-refresher", "claude-proxy", "Token", "Refresher")


def test_no_two_faults_hide_each_other() -> None:
    def all_of(name: str) -> set[str]:
        return {name}.union(*(all_of(each) for each in FOLLOWERS.get(name, ())))

    for name, followers in FOLLOWERS.items():
        assert name not in set().union(*map(all_of, followers))


def test_a_check_that_breaks_hides_nothing_else(healthy: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Installation) -> Iterator[Finding]:
        yield Finding("Before", "ok", "found")
        raise RuntimeError("a bug")

    monkeypatch.setattr(report_module, "CHECKS", {"Broken": (broken,), "Key": (private_key,)})
    found = examine(read_installation(healthy.environ, time.time()))
    assert [(finding.name, finding.state) for finding in found] == [
        ("Before", "ok"),
        ("Broken", "fail"),
        ("Private key", "ok"),
        ("Fingerprint", "ok"),
    ]


def test_the_exit_status_and_json_are_for_scripts_and_hold_no_secret(set_up: SetUp) -> None:
    set_up.refresh()
    done = set_up.run("doctor.py", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False), done.stderr
    assert {"name", "state", "found", "fix", "group"} == set(report["findings"][0])
    assert "PM2: it does not run" in set_up.run("doctor.py").stdout
    for shown in (done.stdout + done.stderr, set_up.run("doctor.py").stdout):
        assert not TOKEN.search(shown)
        assert set_up.master_key not in shown
        assert "\033" not in shown


def test_prose_is_wrapped_to_the_terminal_and_what_is_copied_is_not() -> None:
    command = "ALTER USER ME SET RSA_PUBLIC_KEY='" + "A" * 392 + "';"
    page = report_module.page([Finding("Login", "fail", "word " * 40, command, "Snowflake")], 40, colour=False)
    assert command in page
    assert all(len(line) <= 40 for line in page.splitlines() if "ALTER" not in line and "fix" not in line)
    assert "1 to fix" in page
    for number, words in ((0, "0 warnings."), (1, "1 warning."), (2, "2 warnings.")):
        assert report_module.page([Finding("a", "warn", "b")] * number, 80, colour=False).endswith(f" {words}")
    assert "\033[31mFAIL\033[0m" in report_module.page([Finding("a", "fail", "b", "", "c")], 80, colour=True)


# ---------------------------------------------------------------------------------------------------- with the real PM2


@pytest.mark.real
def test_the_real_bundle_under_the_real_pm2_is_all_green_and_every_model_answers(set_up: SetUp) -> None:
    pm2 = str(BUNDLE / "node_modules" / ".bin" / "pm2")
    try:
        started = set_up.run(pm2, "start", str(BUNDLE / "ecosystem.config.js"))
        assert started.returncode == 0, started.stdout + started.stderr
        done = set_up.run("doctor.py", "--live", "--json")
        wrong = [finding for finding in json.loads(done.stdout)["findings"] if finding["state"] != "ok"]
        assert (done.returncode, wrong) == (0, [])
        status = set_up.run("doctor.py", "--status")
        assert (status.returncode, status.stdout.count("online for")) == (0, 2)
        set_up.stub.fault("no_role")
        refused = json.loads(set_up.run("doctor.py", "--live", "--json").stdout)["findings"]
        assert [(f["name"], f["state"]) for f in refused if f["state"] != "ok"] == [
            ("Login", "fail"),
            ("Models", "skip"),
        ]
        assert set_up.run(pm2, "stop", "token-refresher").returncode == 0
        stopped = json.loads(set_up.run("doctor.py", "--json").stdout)["findings"]
        assert [f["state"] for f in stopped if f["name"] == "token-refresher"] == ["fail"]
    finally:
        set_up.run(pm2, "kill")
