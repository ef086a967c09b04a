"""bundle/checks/processes.py: PM2, both processes, the token, and the status screen."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bundle import running, supervisor
from bundle.bootstrap import make
from bundle.checks import processes as processes_module
from bundle.checks.finding import Finding, read_installation
from bundle.checks.processes import last_error, last_words, parse_line, processes, token
from bundle.supervisor import find_process, pm2_version
from tests.checked import ROWS, SECRET, findings, pm2_row
from tests.set_up import ACCOUNT, BUNDLE, USER, SetUp

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


# -------------------------------------------------------------------------------------------------- processes and patch


def test_a_pm2_that_does_not_run_is_named_and_not_started(set_up: SetUp) -> None:
    home = set_up.folder / "pm2"
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:  # a daemon that was killed leaves its socket
        dead.bind(str(home / "rpc.sock"))
    found = findings(set_up, processes)
    assert (found["PM2"].state, found["PM2"].fix) == ("fail", make("start"))
    assert [path.name for path in home.iterdir()] == ["rpc.sock"]


def test_pm2_s_list_is_read_behind_whatever_it_says_first(
    set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, home = tmp_path / "fake-pm2", set_up.folder / "pm2"
    fake.write_text(f"#!/bin/sh\necho '>>>> In-memory PM2 is out-of-date'\necho '{json.dumps(ROWS)}'\n")
    fake.chmod(0o755)
    home.mkdir()
    monkeypatch.setattr(supervisor, "pm2_program", lambda _: str(fake))
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(home / "rpc.sock"))
        daemon.listen()
        found = findings(set_up, processes)
    assert found["claude-proxy"] == Finding("claude-proxy", "ok", "online for 2 hours, 0 restarts, 40 MB")
    assert SECRET not in f"{found}"


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"status": "errored"}, "fail", "port 8001 is taken by nc"),
        ({"status": "launching"}, "warn", "starting"),
        (
            {"status": "launching", "restart_time": 2},
            "fail",
            "(2 restarts); its last words: claude_proxy.py: port 8001",
        ),
        (
            {"restart_time": 7, "seconds": 3},
            "fail",
            "(7 restarts); its last words: claude_proxy.py:",
        ),
        ({"restart_time": 7, "seconds": 60}, "warn", "7 restarts"),
        ({"restart_time": 7}, "ok", "7 restarts"),
        ({"pm_exec_path": "/old/claude_proxy.py"}, "fail", "was renamed or deleted: PM2 has /old/claude_proxy.py"),
        ({"exec_interpreter": "/old/bin/python"}, "warn", "/old/bin/python"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": SECRET, "A": "1"}}, "warn", "PM2 has AWS_SECRET_ACCESS_KEY of a shell"),
        (
            {"env": {"SNOWFLAKE_PRIVATE_KEY_RAW": SECRET, "GITHUB_PAT": "1"}},
            "warn",
            "GITHUB_PAT, SNOWFLAKE_PRIVATE_KEY",
        ),
    ],
)
def test_a_process_that_is_not_well_is_named(set_up: SetUp, facts: dict[str, Any], state: str, words: str) -> None:
    logs = set_up.folder / "logs"
    logs.mkdir()
    (logs / "claude-proxy.log").write_text(
        "2026-01-01T00:00:00: claude_proxy.py: port 8001 is taken by nc (pid 1)\nEnd it.\n\n"
    )
    times = {"pm_uptime": (time.time() - facts["seconds"]) * 1000} if "seconds" in facts else {}
    row = pm2_row("claude-proxy", "claude_proxy.py", **facts, **times)
    found = processes_module.process("claude-proxy", row, read_installation(set_up.environ, time.time()))
    assert (found.state, words in found.found, bool(found.fix)) == (state, True, state != "ok")
    assert SECRET not in f"{found}"


def test_a_process_that_is_good_again_has_no_last_words_of_an_error() -> None:
    lines = [parse_line(f"2026-01-01T00:00:00: {text}") for text in ("RuntimeError: broken", "  at once", "and more")]
    assert last_words(lines)[1:] == ("RuntimeError: broken", True)
    assert not last_words([*lines, parse_line("2026-01-01T00:00:09: ready on http://127.0.0.1:1")]).is_error


@pytest.mark.parametrize(("seconds_after", "state"), [(1, "ok"), (100, "warn")])
def test_restarts_by_the_user_are_no_failures(set_up: SetUp, seconds_after: int, state: str) -> None:
    began = (time.time() - 60) * 1000
    times = {"pm_uptime": began, "created_at": began - seconds_after * 1000}
    row = pm2_row("claude-proxy", "claude_proxy.py", restart_time=7, **times)
    found = processes_module.process("claude-proxy", row, read_installation(set_up.environ, time.time()))
    assert (found.state, "often fails" in found.found) == (state, state == "warn")


def test_an_error_from_before_a_restart_by_the_user_is_not_its_last_word(set_up: SetUp) -> None:
    (set_up.folder / "logs").mkdir()
    (set_up.folder / "logs" / "claude-proxy.log").write_text(
        "2026-01-01T00:00:00: claude_proxy.py: port 8001 is taken\n"
    )
    now = time.time() * 1000
    row = pm2_row("claude-proxy", "claude_proxy.py", status="launching", restart_time=1, pm_uptime=now, created_at=now)
    found = processes_module.process("claude-proxy", row, read_installation(set_up.environ, time.time()))
    assert (found.state, found.found) == ("warn", "it is starting")


def test_a_folder_under_another_name_is_no_other_copy(set_up: SetUp, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(BUNDLE)
    row = pm2_row("claude-proxy", "claude_proxy.py", pm_exec_path=str(tmp_path / "link" / "claude_proxy.py"))
    assert processes_module.process("claude-proxy", row, read_installation(set_up.environ, time.time())).state == "ok"


def test_a_process_that_pm2_does_not_run_is_named_with_its_pid(healthy: SetUp, tmp_path: Path) -> None:
    script = tmp_path / "claude_proxy.py"
    script.write_text("import time\ntime.sleep(60)\n")
    with subprocess.Popen([sys.executable, script], cwd=BUNDLE, env=healthy.environ) as process:
        try:
            found = findings(healthy, processes)["claude-proxy"]
            screen, good = processes_module.status(read_installation(healthy.environ, time.time()))
        finally:
            process.kill()
    assert (found.state, str(process.pid) in found.found) == ("fail", True)
    assert f"kill {process.pid}" in found.fix
    assert (f"pid {process.pid}" in screen, good) == (True, False)


def test_a_process_that_pm2_does_not_know_is_named(healthy: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes_module, "pm2_processes", lambda _: ROWS[:1])
    found = findings(healthy, processes)
    assert (found["token-refresher"].state, found["claude-proxy"].state) == ("ok", "fail")
    assert found["claude-proxy"].fix == make("start")


def test_a_pm2_daemon_of_another_version_is_named_and_left_alone(healthy: SetUp) -> None:
    home = Path(healthy.environ["PM2_HOME"])
    home.mkdir(exist_ok=True)
    for version, state in (("6.0.8", "warn"), (pm2_version(healthy.environ), None)):
        with (home / "pm2.log").open("a") as log:
            log.write(f"2026-01-01T00:00:00: PM2 log: PM2 version          : {version}\n")
        found = findings(healthy, processes).get("PM2")
        assert (found.state if found else None) == state
        assert not found or ("6.0.8" in found.found and "pm2 update" in found.fix)


def test_the_demo_s_processes_are_found_under_their_own_names() -> None:
    row = pm2_row("demo-claude-proxy", "claude_proxy.py")
    assert find_process([ROWS[0], row], "claude-proxy") == row


def test_a_token_that_is_missing_or_dead_is_named_and_so_is_the_refresher_s_error(healthy: SetUp) -> None:
    later = read_installation(healthy.environ, time.time() + 2 * 3600)
    (dead,) = token(later)
    assert (dead.state, "ended" in dead.found, make("start") in dead.fix) == ("fail", True, True)
    (healthy.folder / ".refresher.json").write_text(json.dumps({"last_error": "disk full.\nCheck with: df"}))
    healthy.config.unlink()
    found = findings(healthy, token)
    assert found["Token"].found == "there is none yet"
    assert (found["Refresher"].state, found["Refresher"].fix) == ("fail", "Check with: df")


# --------------------------------------------------------------------------------------------------------------- status


def test_the_status_screen_says_token_processes_last_error_and_how_to_go_on(healthy: SetUp) -> None:
    now = int(time.time())
    state = {"issued": now, "expires": now + 3600, "next_refresh": now + 3000, "account": ACCOUNT, "user": USER}
    (healthy.folder / ".refresher.json").write_text(json.dumps({**state, "key_fingerprint": "SHA256:x"}))
    (healthy.folder / "logs").mkdir()
    (healthy.folder / "logs" / "claude-proxy.log").write_text(
        "ready\nerror 402 to Claude Code (req_1a): budget\nready\n"
    )
    screen, good = processes_module.status(read_installation(healthy.environ, now))
    assert good
    for words in (
        "60 minutes left",
        "next:",
        "online for 2 hours",
        "point_claude.py --run",
    ):
        assert words in screen
    assert "last error: error 402 to Claude Code (req_1a): budget" in screen
    assert SECRET not in screen


START = datetime(2026, 1, 1, 10, 0, 0).astimezone().timestamp()
REFUSED = "2026-01-01T10:05:00: error 402 to Claude Code (req_1a): budget"


@pytest.mark.parametrize(
    ("lines", "online_since", "shown"),
    [
        (["2026-01-01T10:00:01: ready on http://127.0.0.1:8001"], START, "none"),
        ([REFUSED], START, "error 402 to Claude Code (req_1a): budget"),
        (
            [REFUSED, "2026-01-01T10:07:00: answers again"],
            START,
            "(over since 10:07) error 402 to Claude Code (req_1a): budget",
        ),
        (["2026-01-01T10:04:00: answers again", REFUSED], START, "error 402 to Claude Code (req_1a): budget"),
        ([REFUSED], START + 3600, "(over since 11:00) error 402 to Claude Code (req_1a): budget"),
        ([REFUSED], 0, "error 402 to Claude Code (req_1a): budget"),
        (["error 402 without a time", "answers again"], START, "(over) error 402 without a time"),
    ],
)
def test_an_error_that_is_over_is_shown_as_over(lines: list[str], online_since: float, shown: str) -> None:
    assert last_error([parse_line(line) for line in lines], online_since) == shown


def test_the_status_of_a_set_up_that_does_not_run_points_to_the_doctor(set_up: SetUp) -> None:
    done = set_up.run("doctor.py", "--status")
    assert done.returncode == 1
    assert make("doctor") in done.stdout
    assert "none yet" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads Linux's /proc")
def test_our_proxy_is_known_on_its_port_without_ps_and_lsof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "claude_proxy.py"
    script.write_text(
        "import socket\nlistener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\nlistener.accept()\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            monkeypatch.setenv("PATH", str(tmp_path))
            assert running.port_owner(port) == f"python claude_proxy.py (pid {process.pid})"
        finally:
            process.kill()
