"""Starting and stopping with the real PM2: odd folders, two clones, no PM2, a folder that is renamed or deleted."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle import lifecycle
from bundle.errors import ConfigError
from bundle.running import is_from_pm2, port_owner
from tests.ports import can_connect, free_port
from tests.set_up import BUNDLE, SetUp, copy_bundle, drop_root_powers, wait_until
from tests.test_pm2 import APPS, PM2, is_running

ECOSYSTEM = "ecosystem.config.js"


def clone(folder: Path) -> Path:
    """A copy of the bundle in which everything is installed."""
    copy_bundle(folder)
    shutil.copy(BUNDLE / "Makefile", folder)
    for installed in (".venv", "node_modules"):
        (folder / installed).symlink_to((BUNDLE / installed).resolve())
    return folder


class Home(SetUp):
    """A user's home with a PM2 of its own. Like most users' clones, its clone keeps its files in its own folder."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        super().__init__(folder, bundle)
        del self.environ["CORTEX_HOME"]

    @property
    def master_key(self) -> str:
        return (self.bundle / ".master_key").read_text().strip()

    def start_all(self) -> str:
        """`start.py`, if it is not running; what it prints."""
        done = self.run("start.py", seconds=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def make(self, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.run("make", "--no-print-directory", "-C", str(folder or self.bundle), *words)

    def pm2_runs(self) -> bool:
        return (self.folder / "pm2" / "rpc.sock").exists()

    def rows(self) -> dict[str, dict[str, Any]]:
        if not self.pm2_runs():
            return {}
        return {
            row["name"]: row
            for row in json.loads(self.run(PM2, "jlist", PM2_DISCRETE_MODE="1").stdout.splitlines()[-1])
        }

    def pids(self) -> dict[str, int]:
        return {name: int(row["pid"]) for name, row in self.rows().items()}

    def restarts(self) -> dict[str, int]:
        return {name: row["pm2_env"]["restart_time"] for name, row in self.rows().items()}

    def rename(self, name: str) -> None:
        self.bundle = self.bundle.rename(self.bundle.parent / name)

    def answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self.ask("hello").status_code == 200
        return False

    def close(self) -> None:
        if self.pm2_runs():
            self.run(PM2, "kill")
        super().close()


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A clone in a folder with a space and an umlaut, started. Each test leaves it so."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lc-") as made:
        here = Home(Path(made), clone(Path(made) / "my bündle"))
        try:
            here.start_all()
            yield here
        finally:
            here.close()


@pytest.fixture(scope="module")
def second(home: Home) -> Path:
    """Another clone of the same user."""
    return clone(home.folder / "second clone")


def commands_in(text: str) -> list[list[str]]:
    """The commands with `make -C` that a message prints, as words."""
    return [shlex.split(found) for found in re.findall(r"make -C (?:'[^']*'|\S+)(?: [a-z]+)+", text)]


@pytest.mark.real
def test_a_folder_with_a_space_and_an_umlaut_starts_and_answers(home: Home) -> None:
    assert home.answers()
    assert set(home.rows()) == APPS
    for row in home.rows().values():
        assert "bash" not in row["pm2_env"]["exec_interpreter"]


@pytest.mark.real
def test_a_proxy_that_fails_again_and_again_is_named_and_a_start_right_after_the_fix_works(home: Home) -> None:
    script = home.bundle / "claude_proxy.py"
    good = script.read_bytes()
    script.write_text('raise SystemExit("this cannot work")\n')
    try:
        done = home.run("start.py")
    finally:
        script.write_bytes(good)
    assert (done.returncode, "this cannot work" in done.stdout) == (1, True), done.stdout + done.stderr
    home.start_all()
    assert home.restarts() == dict.fromkeys(APPS, 0)
    assert home.answers()


@pytest.mark.real
def test_three_starts_are_no_failures(home: Home) -> None:
    home.start_all()  # the third, after those of the fixture and of the test before
    assert home.restarts() == dict.fromkeys(APPS, 0)
    assert "often fails" not in home.run("doctor.py", "--status").stdout


@pytest.mark.real
def test_a_second_clone_is_refused_before_pm2_is_touched(home: Home, second: Path) -> None:
    before = home.pids()
    done = home.run(str(second / "start.py"), PROXY_PORT=str(free_port()))
    assert done.returncode == 78
    assert done.stderr.startswith("start.py: another copy of this bundle runs: PM2 has ")
    assert str(home.bundle) in done.stderr
    assert commands_in(done.stderr)[0] == ["make", "-C", str(home.bundle), "stop"]
    assert "Traceback" not in done.stderr
    assert home.pids() == before


@pytest.mark.real
def test_stop_in_a_second_clone_stops_nothing_of_the_first(home: Home, second: Path) -> None:
    before = home.pids()
    done = home.make("stop", folder=second)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(home.bundle) in done.stdout
    assert commands_in(done.stdout) == [["make", "-C", str(home.bundle), "stop"]]
    assert "Stopped." not in done.stdout.splitlines()
    assert home.pids() == before
    assert home.answers()


@pytest.mark.real
@pytest.mark.parametrize("verb", ["start", "restart", "delete", "stop"])
def test_a_plain_pm2_with_the_file_of_a_second_clone_is_refused_by_that_file(
    home: Home, second: Path, verb: str
) -> None:
    before = home.pids()
    done = home.run(PM2, verb, str(second / ECOSYSTEM), PM2_DISCRETE_MODE="1")
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert str(home.bundle) in said
    assert commands_in(said)[0] == ["make", "-C", str(home.bundle), "stop"]
    assert len(said.strip().splitlines()) <= 2, said
    assert home.pids() == before


@pytest.mark.real
def test_a_plain_pm2_start_of_the_clone_that_runs_still_works(home: Home) -> None:
    done = home.run(PM2, "start", str(home.bundle / ECOSYSTEM), PM2_DISCRETE_MODE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert home.answers()


@pytest.mark.real
def test_stop_without_any_pm2_names_what_runs_and_the_command_that_installs_pm2(home: Home) -> None:
    before = home.pids()
    link = (home.bundle / "node_modules").readlink()
    (home.bundle / "node_modules").unlink()
    try:
        done = home.run("stop.py", PATH=without_pm2())
    finally:
        (home.bundle / "node_modules").symlink_to(link)
    assert done.returncode == 1
    for name, pid in before.items():
        assert f"{name} (pid {pid}) still runs" in done.stdout
    assert ["make", "-C", str(home.bundle), "install", "stop"] in commands_in(done.stdout)
    assert "Stopped." not in done.stdout
    assert home.pids() == before


def without_pm2() -> str:
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not Path(folder, "pm2").exists())


@pytest.mark.real
def test_stop_looks_at_pm2_s_list_again_and_names_what_is_still_there(home: Home) -> None:
    home.run(PM2, "stop", "all")
    link = (home.bundle / "node_modules").readlink()
    (home.bundle / "node_modules").unlink()
    broken = home.bundle / "node_modules" / ".bin" / "pm2"
    broken.parent.mkdir(parents=True)
    broken.write_text(f'#!/bin/sh\n[ "$1" = delete ] || exec {PM2} "$@"\n')
    broken.chmod(0o755)
    try:
        done = home.run("stop.py")
    finally:
        shutil.rmtree(home.bundle / "node_modules")
        (home.bundle / "node_modules").symlink_to(link)
    assert done.returncode == 1
    for name, row in home.rows().items():
        assert f"PM2 still lists {name}. To remove it: PM2_HOME={home.folder}/pm2 " in done.stdout
        assert f" delete {row['pm_id']}\n" in done.stdout
    assert "Stopped." not in done.stdout
    home.start_all()
    assert home.restarts() == dict.fromkeys(APPS, 0)


@pytest.mark.real
def test_a_refresher_that_was_started_by_hand_is_named_with_its_pid_and_nothing_is_left_after_stop(
    home: Home,
) -> None:
    before = home.pids()
    by_hand = home.start("auto_refresh.py")
    wait_until(lambda: "another refresher" in home.log("auto_refresh.py"), 30)
    # A start after a failure ends what some PM2 has left behind, and nothing else.
    assert [is_from_pm2(pid) for pid in (*before.values(), by_hand.pid)] == [True, True, False]
    done = home.run("stop.py")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"token-refresher (pid {by_hand.pid}) still runs. PM2 does not run it. To end it: kill {by_hand.pid}"
    ]
    home.stop("auto_refresh.py")
    done = home.make("stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Stopped.\n", "")
    assert not any(map(is_running, before.values()))
    assert not can_connect(home.port)
    assert not home.pm2_runs()
    home.start_all()


@pytest.mark.real
def test_after_a_folder_is_renamed_both_end_by_themselves_and_start_works_in_the_new_place(home: Home) -> None:
    before = home.pids()
    home.rename("ränamed")
    wait_until(lambda: not any(map(is_running, before.values())), 30)
    assert home.pids() == dict.fromkeys(APPS, 0)
    assert home.restarts() == dict.fromkeys(APPS, 0)
    for name in APPS:
        said = (home.bundle / "logs" / f"{name}.log").read_text()
        assert "was renamed or deleted" in said
        assert "Traceback" not in said
    home.start_all()
    assert home.answers()


@pytest.mark.real
def test_start_works_at_once_after_a_folder_is_renamed(home: Home) -> None:
    before = home.pids()
    home.rename("my bündle")
    home.start_all()
    assert home.answers()
    assert not any(map(is_running, before.values()))
    assert port_owner(home.port).endswith(f"(pid {home.pids()['claude-proxy']})")


def remove(folder: Path) -> None:
    """Delete a folder in which processes may still write a file."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.real
def test_a_deleted_folder_leaves_no_process_not_even_one_that_waits(home: Home) -> None:
    before = home.pids()
    third = clone(home.folder / "third clone")
    home.start(str(third / "claude_proxy.py"), name="alone", PROXY_PORT=str(free_port()))
    home.start("auto_refresh.py", name="waits")
    wait_until(lambda: "another refresher" in home.log("waits") and "waiting for" in home.log("alone"), 60)
    remove(home.bundle)
    remove(third)
    wait_until(lambda: not any(map(is_running, before.values())), 30)
    for name in ("alone", "waits"):
        assert home.processes[name].wait(30) == 78, home.log(name)
        assert "Traceback" not in home.log(name)
    assert "was renamed or deleted" in home.log("alone")
    assert home.pids() == dict.fromkeys(APPS, 0)
    clone(home.bundle)
    home.start_all()
    assert set(home.rows()) == APPS


# --------------------------------------------------------------------------------------------------- homes of their own


@pytest.mark.real
def test_a_program_of_another_project_under_our_name_is_not_touched_and_named_with_a_command() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lc-") as made:
        here = Home(Path(made), clone(Path(made) / "bundle"))
        try:
            here.run(PM2, "start", "sleep", "--name", "claude-proxy", "--interpreter", "none", "--", "600")
            before = here.pids()
            started, stopped = here.run("start.py"), here.run("stop.py")
            assert here.pids() == before
        finally:
            here.close()
    assert started.returncode == 78
    assert started.stderr.startswith("start.py: another program has our names: PM2 has claude-proxy of ")
    command = f"{made}/bundle/node_modules/.bin/pm2 delete claude-proxy"
    assert command in started.stderr
    assert (stopped.returncode, command in stopped.stdout) == (0, True)


@pytest.mark.real
def test_a_folder_whose_path_is_too_long_for_the_demo_is_named(tmp_path: Path) -> None:
    long = tmp_path / ("long " * 20)
    long.mkdir()
    here = Home(tmp_path, clone(long / "bundle"))
    demo = here.bundle / ".demo"
    demo.mkdir()
    try:
        done = here.run("start.py", "--demo", CORTEX_HOME=str(demo), PM2_HOME=str(demo / "pm2"))
    finally:
        here.close()
    assert done.returncode == 78
    assert done.stderr.startswith(f"start.py: the path of PM2's folder is too long: {demo}/pm2\n")
    assert done.stderr.endswith("Move this folder to a shorter path.\n")


def test_a_pm2_that_hangs_is_one_message_with_the_command_that_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "pm2_program", lambda _: "sleep")
    with pytest.raises(
        ConfigError, match=r"PM2 has not answered within 0 seconds: sleep 5\n.*kill -9 .*'/a b/pm2.pid'"
    ):
        lifecycle.pm2({"PM2_HOME": "/a b", "PATH": os.environ["PATH"]}, "5", seconds=0.2)


@pytest.mark.real
def test_a_home_that_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    here = Home(tmp_path, clone(tmp_path / "bundle"))
    closed = tmp_path / "closed home"
    closed.mkdir(mode=0o555)
    here.before_exec = drop_root_powers
    try:
        del here.environ["PM2_HOME"]
        process = here.start("start.py", HOME=str(closed))
        assert process.wait(20) == 78
    finally:
        closed.chmod(0o755)
        here.close()
    assert f"PM2 cannot write into its folder {closed}/.pm2: Permission denied." in here.log("start.py")
    assert f"ls -ld '{closed}'" in here.log("start.py")
