"""Under the real PM2: starting, stopping, killing, upgrading, rebooting. Each set-up has a PM2 daemon of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.running import port_owner
from bundle.supervisor import LOG_BYTES
from patches import apply_patch
from tests.checked import answering, head
from tests.ports import can_connect
from tests.set_up import BUNDLE, TOKEN, SetUp, copy_bundle, wait_until

pytestmark = pytest.mark.real

PM2 = str(BUNDLE / "node_modules" / ".bin" / "pm2")
APPS = {"token-refresher", "claude-proxy"}
# What a user's shell may hold, and PM2 must not: it writes an app's environment to dump.pm2.
SECRETS = {
    "PRIVATE_KEY_PASSPHRASE": "open-SESAME-1",
    "ANTHROPIC_API_KEY": "sk-ant-SESAME-2",
    "AWS_SECRET_ACCESS_KEY": "aws-SESAME-3",
    "SNOWFLAKE_PAT": "a-programmatic-access-token-SESAME-4",
}


class Machine(SetUp):
    """A set-up under a PM2 daemon of its own, with a bundle and a LiteLLM that a test may change."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, bundle=copy_bundle(folder / "bundle", own_litellm=True))
        self.ecosystem = str(self.bundle / "ecosystem.config.js")
        self.environ["PM2_DISCRETE_MODE"] = "1"
        self.pm2_home = Path(self.environ["PM2_HOME"])
        (self.bundle / "node_modules").symlink_to(BUNDLE / "node_modules")
        shutil.copy(BUNDLE / "Makefile", self.bundle)

    def pm2(self, *arguments: str, **environ: str) -> str:
        done = self.run(PM2, *arguments, seconds=120, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self) -> dict[str, dict[str, Any]]:
        """What PM2 knows, by name."""
        return {row["name"]: row for row in json.loads(self.pm2("jlist").splitlines()[-1])}

    def status(self) -> dict[str, str]:
        return {name: row["pm2_env"]["status"] for name, row in self.rows().items()}

    def pids(self) -> dict[str, int]:
        return {name: int(row["pid"]) for name, row in self.rows().items()}

    def said(self, name: str) -> str:
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self.ask("hello").status_code == 200
        return False

    def daemon(self) -> int:
        return int((self.pm2_home / "pm2.pid").read_text())

    def close(self) -> None:
        if (self.pm2_home / "rpc.sock").exists():
            self.run(PM2, "kill")
        super().close()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(FileNotFoundError, ProcessLookupError):  # no such file on macOS
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state.startswith("Z")


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's own, whose path is too long for a socket on macOS.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pm2-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def both() -> Iterator[Machine]:
    """Both processes, started; each test leaves them so, and the machine does the rest."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pm2-") as made:
        machine = Machine(Path(made))
        try:
            machine.pm2("start", machine.ecosystem, **SECRETS)
            yield machine
        finally:
            machine.close()


def test_start_returns_when_both_do_their_work(both: Machine) -> None:
    # Nobody has waited since the fixture's `pm2 start`.
    assert both.ask("hello").status_code == 200
    assert both.status() == dict.fromkeys(APPS, "online")


@pytest.mark.keeps("pm2-without-secrets")
@pytest.mark.parametrize("again", [(), ("restart",), ("reload",)])
def test_no_secret_of_the_shell_or_of_ours_is_in_pm2_s_environment_arguments_or_dump(
    both: Machine, again: tuple[str, ...]
) -> None:
    if again:
        both.pm2(*again, both.ecosystem, "--only", "token-refresher", **SECRETS)
    both.pm2("save")
    dump = (both.pm2_home / "dump.pm2").read_text()
    shown = subprocess.run(["ps", "-Aww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    places = {"dump.pm2": dump, "ps": shown, "pm2": json.dumps(both.rows())}
    for name, pid in both.pids().items():
        with suppress(FileNotFoundError):  # no such thing on macOS
            places[name] = Path(f"/proc/{pid}/environ").read_text()
    for place, text in places.items():
        assert "SESAME" not in text, place
        assert both.master_key not in text, place
        assert not TOKEN.search(text), place


def test_what_update_env_brings_in_is_named_by_doctor_and_gone_after_a_new_start(both: Machine) -> None:
    both.pm2("restart", "token-refresher", "--update-env", **SECRETS)
    shown = both.run(str(both.bundle / "doctor.py")).stdout
    assert f"PM2 has {', '.join(sorted(SECRETS))} of a shell" in shown
    assert "SESAME" not in shown
    both.pm2("delete", "token-refresher")
    both.pm2("start", both.ecosystem)
    assert "SESAME" not in json.dumps(both.rows())
    assert "of a shell" not in both.run(str(both.bundle / "doctor.py")).stdout


@pytest.mark.keeps("logs-without-secrets")
def test_logs_are_in_a_folder_that_is_closed_to_others_and_hold_no_secret(both: Machine) -> None:
    logs = both.folder / "logs"
    assert stat.S_IMODE(logs.stat().st_mode) == 0o700
    for name in APPS:
        assert both.said(name)
        assert not TOKEN.search(both.said(name))
        assert both.master_key not in both.said(name)


@pytest.mark.keeps("log-limit")
@pytest.mark.parametrize("name", sorted(APPS))
def test_a_log_is_cut_before_it_fills_the_disk_and_its_last_part_kept(both: Machine, name: str) -> None:
    log = both.folder / "logs" / f"{name}.log"
    with log.open("ab") as file:
        file.write(b"noise\n" * (LOG_BYTES // 6 + 1))
    wait_until(lambda: log.stat().st_size < 100_000, 20)
    assert (log.parent / f"{name}.log.1").stat().st_size > LOG_BYTES
    both.pm2("sendSignal", "SIGHUP", "token-refresher")
    if name == "token-refresher":
        wait_until(lambda: "SIGHUP" in both.said(name), 10)
    assert b"\0" not in log.read_bytes()  # PM2 went on at the new end


def kill_both(both: Machine, while_under_way: Callable[[dict[str, Any]], Any], prompt: str) -> dict[str, Any]:
    """What Claude Code says to `prompt` when both processes are killed in the middle of its answer."""
    before, first = both.pids(), len(both.stub.requests)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(both.claude, prompt)
        wait_until(lambda: any(map(while_under_way, both.stub.requests[first:])), 60)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        result = said.result()
    wait_until(both.answers, 60)
    assert both.status() == dict.fromkeys(APPS, "online")
    assert not set(both.pids().values()) & set(before.values())
    return result


@pytest.mark.keeps("restart")
def test_both_killed_before_an_answer_began_come_back_and_the_user_of_claude_code_does_not_notice(
    both: Machine,
) -> None:
    both.stub.fault("slow_start", times=1, seconds=3)
    assert kill_both(both, lambda record: record.get("fault"), "[[text: here I am]]")["result"] == "here I am"


def test_both_killed_in_the_middle_of_an_answer_come_back_and_claude_code_says_that_it_is_not_whole(
    both: Machine,
) -> None:
    result = kill_both(both, lambda record: record.get("chunks", 0) > 5, "[[stream: 40 0.1]]")
    assert "may be incomplete" in result["result"]
    assert both.claude("[[text: go on]]")["result"] == "go on"


def test_stop_lets_open_answers_finish_and_refuses_new_ones_at_once(both: Machine) -> None:
    with both.open_answer() as finish, ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(both.pm2, "stop", "claude-proxy")
        wait_until(lambda: not can_connect(both.port), 5)
        assert not stopping.done()
        assert finish() == "one two three"
        stopping.result()
    assert both.status()["claude-proxy"] == "stopped"
    assert "Traceback" not in both.said("claude-proxy")
    both.pm2("start", "claude-proxy")
    assert both.ask("hello").status_code == 200


def test_a_restart_in_the_middle_of_an_answer_costs_neither_it_nor_the_next_turn(both: Machine) -> None:
    with both.open_answer() as finish, ThreadPoolExecutor(2) as pool:
        restarting = pool.submit(both.pm2, "restart", "claude-proxy")
        wait_until(lambda: not can_connect(both.port), 5)
        turn = pool.submit(both.claude, "[[text: next turn]]")
        time.sleep(1)
        assert finish() == "one two three"
        restarting.result()
        assert turn.result()["result"] == "next turn"


def replaced(path: Path, content: bytes) -> None:
    """As pip does it: another file under the same name."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def test_status_shows_an_error_that_is_over_as_over(both: Machine) -> None:
    both.stub.fault("no_role", times=1)
    assert both.ask("hello").status_code == 403
    wait_until(lambda: "\nlast error: error 403 to Claude Code (req_" in both.run("doctor.py", "--status").stdout, 10)
    assert both.ask("hello").status_code == 200
    wait_until(lambda: "\nlast error: (over since " in both.run("doctor.py", "--status").stdout, 10)


@pytest.mark.keeps("restart")
def test_litellm_replaced_under_the_proxy_is_noticed_patched_and_started_without_hands(both: Machine) -> None:
    before, said = both.pids(), len(both.said("claude-proxy"))
    installed = next((both.bundle / ".venv").glob("lib/python*/site-packages"))
    source = installed / "litellm/llms/openai/openai.py"
    (record,) = installed.glob("litellm-*.dist-info/RECORD")
    with both.open_answer() as finish:
        replaced(record, record.read_bytes())
        replaced(source, apply_patch.without_block(source.read_bytes()))
        wait_until(lambda: "LiteLLM was replaced under this process" in both.said("claude-proxy")[said:], 30)
        assert finish() == "one two three"
    # The old one may answer for another moment.
    wait_until(lambda: both.pids()["claude-proxy"] not in {0, before["claude-proxy"]}, 60)
    wait_until(both.answers, 60, lambda: both.said("claude-proxy")[said:])
    assert both.pids()["token-refresher"] == before["token-refresher"]
    assert "was not patched; patched it" in both.said("claude-proxy")[said:]
    assert b"claude-code-on-snowflake-cortex" in source.read_bytes()


@pytest.mark.keeps("restart")
def test_after_pm2_s_death_nothing_is_left_behind_and_resurrect_brings_both_back(both: Machine) -> None:
    both.pm2("save")
    before = both.pids()
    os.kill(both.daemon(), signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, before.values())), 20)
    both.pm2("resurrect")
    assert both.ask("hello").status_code == 200
    assert both.status() == dict.fromkeys(APPS, "online")
    assert [row["pm2_env"]["restart_time"] for row in both.rows().values()] == [0, 0]
    assert "is taken by" not in both.said("claude-proxy")


def test_a_reboot_with_answers_still_open_ends_with_one_proxy_on_the_port(both: Machine) -> None:
    before = both.pids()["claude-proxy"]
    with both.open_answer() as finish:
        os.kill(both.daemon(), signal.SIGKILL)
        both.pm2("resurrect")
        assert both.ask("hello").status_code == 200  # beside the old one, which still finishes its answer
        assert finish() == "one two three"
    wait_until(lambda: not is_running(before), 10)
    assert port_owner(both.port).endswith(f"(pid {both.pids()['claude-proxy']})")


def test_make_stop_ends_our_two_and_leaves_what_else_the_user_runs(both: Machine) -> None:
    both.pm2("start", "sleep", "--name", "something-else", "--interpreter", "none", "--", "600")
    before = both.pids()
    both.pm2("delete", "token-refresher")  # by hand: `pm2 delete` with several names ends at the first that is gone
    done = both.run("make", "--no-print-directory", "-C", str(both.bundle), "stop")
    assert (done.returncode, done.stdout) == (0, "Stopped.\n"), done.stderr
    assert both.status() == {"something-else": "online"}
    assert [is_running(before[name]) for name in sorted(APPS)] == [False, False]
    assert is_running(before["something-else"])
    both.pm2("delete", "something-else")
    assert both.run("make", "--no-print-directory", "-C", str(both.bundle), "stop").returncode == 0
    assert not (both.pm2_home / "rpc.sock").exists()


# ------------------------------------------------------------------------------------------------- a machine of its own


@pytest.fixture
def machine(folder: Path) -> Iterator[Machine]:
    made = Machine(folder)
    yield made
    made.close()


def test_a_process_that_fails_again_and_again_shows_its_last_words(machine: Machine) -> None:
    refresher = machine.bundle / "auto_refresh.py"
    refresher.write_text(refresher.read_text() + "\n\nraise RuntimeError('not today')\n")
    refresher.write_text(
        refresher.read_text().replace('if __name__ == "__main__":\n    sys.exit', "if False:\n    sys.exit")
    )
    starting = subprocess.Popen(
        [PM2, "start", machine.ecosystem, "--only", "token-refresher"], env=machine.environ, stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: machine.said("token-refresher").count("not today") > 1, 60)
        words = "its last words: RuntimeError: not today"
        wait_until(lambda: words in machine.run("doctor.py", "--status").stdout, 20)
        wait_until(lambda: words in " ".join(machine.run("doctor.py").stdout.split()), 20)
    finally:
        starting.kill()
        starting.wait()


def test_a_mistake_in_the_settings_stops_both_with_its_message_and_no_restart(machine: Machine) -> None:
    machine.key_path.chmod(0o644)
    start = time.monotonic()
    machine.pm2("start", machine.ecosystem)
    assert time.monotonic() - start < 30
    time.sleep(3)
    rows = machine.rows()
    assert machine.status() == dict.fromkeys(APPS, "stopped")
    assert [row["pm2_env"]["restart_time"] for row in rows.values()] == [0, 0]
    for name in APPS:
        assert machine.said(name).count("other users can read the private key") == 1
        assert f"Fix it with: chmod 600 {machine.key_path}" in machine.said(name)
    machine.key_path.chmod(0o600)
    with socket.create_server(("127.0.0.1", machine.port)):
        machine.pm2("start", machine.ecosystem)
        assert machine.status() == {"token-refresher": "online", "claude-proxy": "stopped"}
    assert f"port {machine.port} is taken by" in machine.said("claude-proxy")
    assert f"(pid {os.getpid()})" in machine.said("claude-proxy")
    assert "PROXY_PORT=" in machine.said("claude-proxy")


@pytest.mark.keeps("key-after-a-stranger")
def test_a_start_on_a_port_that_another_program_holds_fails_and_sends_it_nothing(machine: Machine) -> None:
    with answering(machine.port, lambda connection, _: connection.sendall(head(b'"I\'m alive!"'))) as got:
        done = machine.run("start.py")
        key = machine.master_key
    assert (done.returncode, done.stderr) == (1, "")
    # The cause, and nothing that follows from it.
    assert re.findall(r"(?m)^  FAIL (.*?) is taken by", done.stdout) == [f"Port: port {machine.port}"]
    assert done.stdout.count("FAIL") == 1
    assert "has a new one" not in done.stdout
    assert machine.status() == {"token-refresher": "online", "claude-proxy": "stopped"}
    assert "has a new one" in machine.said("claude-proxy")
    wait_until(lambda: f"master_key: {machine.master_key}" in machine.config.read_text(), 20)
    assert machine.master_key == key  # made by the proxy, and no other after it
    assert {request[:17] for request in got} == {b"GET /proof?nonce="}
    machine.pm2("restart", machine.ecosystem)
    assert machine.answers()


def test_the_order_of_starting_does_not_matter_and_pm2_s_death_ends_a_proxy_that_waits(machine: Machine) -> None:
    command = [PM2, "start", machine.ecosystem, "--only", "claude-proxy"]
    starting = subprocess.Popen(command, env=machine.environ, stdout=subprocess.DEVNULL)
    wait_until(lambda: "is token-refresher running?" in machine.said("claude-proxy"), 60)
    waiting = machine.pids()["claude-proxy"]
    os.kill(machine.daemon(), signal.SIGKILL)
    wait_until(lambda: not is_running(waiting), 20)
    starting.kill()  # it still waits for the daemon's word
    starting.wait()
    starting = subprocess.Popen(command, env=machine.environ, stdout=subprocess.DEVNULL)
    wait_until(lambda: can_connect(machine.port), 30)
    machine.pm2("start", machine.ecosystem, "--only", "token-refresher")
    assert starting.wait(60) == 0
    assert machine.ask("hello").status_code == 200


def test_a_template_that_litellm_does_not_start_with_is_one_message_and_no_restart(machine: Machine) -> None:
    template = machine.bundle / "litellm_config.template.yaml"
    template.write_text(template.read_text().replace("bundle.proxy.hooks.hooks", "bundle.nothing.here"))
    machine.pm2("start", machine.ecosystem)
    wait_until(lambda: machine.status()["claude-proxy"] == "stopped", 60)
    said = machine.said("claude-proxy")
    assert "LiteLLM does not start with this configuration" in said
    assert "Could not import here from bundle.nothing" in said
    assert "Traceback" not in said
    assert machine.rows()["claude-proxy"]["pm2_env"]["restart_time"] == 0
