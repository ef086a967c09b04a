"""From a clone to the first answer, as the README says it: commands as a user types them, in a HOME that is empty."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from configure import make_key_pair
from tests.cortex_rules import Options
from tests.cortex_stub import CortexStub
from tests.ports import free_port
from tests.set_up import ACCOUNT, BUNDLE, USER, wait_until
from tests.terminal import Terminal
from tests.test_readme import blocks

pytestmark = pytest.mark.real


class Clone:
    """A copy of what is in the repository, with this folder's installed packages, and somebody's empty HOME."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder / "bundle", folder / "home"
        self.home.mkdir()
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=BUNDLE, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for name in listed:
            if (BUNDLE / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(BUNDLE / name, self.folder / name)  # with their times: make compares them
        for name in (".venv", "node_modules"):
            (self.folder / name).symlink_to(BUNDLE / name)
        self.environ = {
            # `pm2` and `claude` as after `npm install -g`.
            "PATH": f"{BUNDLE / 'node_modules' / '.bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "DEMO_PORT": str(free_port()),
            "DEMO_CORTEX_PORT": str(free_port()),
            "PROXY_PORT": str(free_port()),
            "PM2_DISABLE_VERSION_CHECK": "1",
        }

    def run(self, command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-ec", command],
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=180,
            check=False,
        )

    def good(self, command: str, **environ: str) -> str:
        done = self.run(command, **environ)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def terminal(self, command: str, **environ: str) -> Terminal:
        return Terminal(["bash", "-c", command], {**self.environ, "TERM": "xterm", **environ}, cwd=self.folder)

    def pm2_pids(self) -> list[int]:
        homes = (self.home / ".pm2", self.folder / ".demo" / "pm2")
        return [int((home / "pm2.pid").read_text()) for home in homes if (home / "pm2.pid").exists()]


@pytest.fixture
def clone() -> Iterator[Clone]:
    # A short path: the names of PM2's sockets may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="clone-", dir="/tmp") as folder:
        made = Clone(Path(folder))
        yield made
        made.run("make stop; pm2 kill >/dev/null 2>&1")


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_the_demo_answers_with_the_printed_command_and_leaves_nothing_behind(clone: Clone) -> None:
    before = sorted(path.name for path in clone.folder.iterdir())
    said = clone.good("make demo")
    *_, command = said.strip().splitlines()
    assert "not a model" in said
    assert "You said: Say hello" in clone.good(f"{command} -p 'Say hello'")
    assert "online" in clone.good("make status")
    assert "Nothing fails" in clone.good("make doctor")
    assert "claude-haiku-4-5" in clone.good("make usage")
    again = time.monotonic()
    clone.good("make demo")
    assert time.monotonic() - again < 60
    pids = clone.pm2_pids()
    assert pids
    clone.good("make stop")
    wait_until(lambda: not any(map(alive, pids)), 10)
    assert sorted(path.name for path in clone.folder.iterdir() if path.name != "__pycache__") == before
    assert [path.name for path in clone.home.iterdir()] in ([".claude", ".claude.json"], [".claude.json", ".claude"])


def test_by_hand_as_written(clone: Clone) -> None:
    install, key, *rest = blocks("bash", "docs/by-hand.md")
    assert "requirements.txt" in install
    assert "openssl genrsa" in key
    clone.good(key)
    with CortexStub(ACCOUNT, USER) as stub:
        configured = {"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER, "SNOWFLAKE_HOST": stub.url}
        public_key, start, point = rest[:3]
        printed = clone.good(public_key, **configured)
        statement = re.search(r"ALTER USER JANE SET RSA_PUBLIC_KEY='([^']+)';", printed)
        assert statement
        assert (clone.home / ".ssh" / "snowflake_key.pub").read_text().replace("\n", "").count(statement[1]) == 1
        stub.register_key(statement[1])
        clone.good(start, **configured)
        assert "test: by hand" in clone.good(f"{point.strip()} -p 'test: by hand'", **configured)
        paths = {record["path"] for record in stub.requests if record["route"] != "sql"}
        assert paths == {"/api/v2/cortex/v1/chat/completions"}
        assert (clone.home / ".pm2" / "dump.pm2").exists()
        clone.good("make stop")


def test_a_new_user_comes_to_an_answer_with_two_commands_and_two_questions(clone: Clone) -> None:
    """With three mistakes on the way, each of which is named with its remedy: user, key, role."""
    with CortexStub(ACCOUNT, USER) as stub, clone.terminal("make start", SNOWFLAKE_HOST=stub.url) as person:
        host = {"SNOWFLAKE_HOST": stub.url}
        person.read_until("Account: ")
        person.type("https://app.snowflake.com/myorg/myacct/#/homepage")
        person.read_until("That is account MYORG-MYACCT")
        person.read_until("User, or")
        person.type("jane")
        person.read_until("Waiting until Snowflake accepts the key")
        statement = re.search(r"ALTER USER JANE SET RSA_PUBLIC_KEY='([^']+)';", person.screen)
        assert statement
        # The statement has not been run: the doctor says so, with the same statement.
        refused = clone.run("make doctor", **host).stdout
        assert "Snowflake refuses MYORG-MYACCT.JANE with this key" in refused
        assert statement[0] in refused
        stub.register_key(statement[1])
        assert person.finish(120) == 0
        for words in ("Snowflake accepts the key of MYORG-MYACCT.JANE.", "on Snowflake Cortex answer.", "--settings"):
            assert words in person.screen
        assert "You said: hi" in clone.good("make claude ARGS='-p hi'", **host)

        stub.fault("no_role")
        assert "GRANT DATABASE ROLE SNOWFLAKE.CORTEX_USER" in clone.run("make doctor", **host).stdout
        stub.clear_faults()
        (clone.folder / ".env").write_text("SNOWFLAKE_ACCOUNT=MYORG-OTHER\nSNOWFLAKE_USER=JANE\n")
        wrong = clone.run("make doctor", **host).stdout
        assert "Snowflake refuses MYORG-OTHER.JANE" in wrong
        assert "394307 account" in wrong
        (clone.folder / ".env").write_text("SNOWFLAKE_ACCOUNT=MYORG-MYACCT\nSNOWFLAKE_USER=JANE\n")
        again = clone.good("make start", **host)
        assert "Account" not in again
        clone.good("make stop", **host)


def test_make_start_asks_for_the_route_that_takes_claude_code_and_a_word_of_the_shell_beats_the_answer(
    clone: Clone,
) -> None:
    key = clone.home / ".ssh" / "snowflake_key.p8"
    public = make_key_pair(key).read_text()
    with CortexStub(ACCOUNT, USER, [public], options=Options(refused_fields=("reasoning",))) as stub:
        configured = {"SNOWFLAKE_ACCOUNT": ACCOUNT, "SNOWFLAKE_USER": USER, "SNOWFLAKE_HOST": stub.url}
        with clone.terminal("make start", **configured) as person:
            person.read_until("Switch to it? [Y/n] ")
            person.type("")
            assert person.finish(120) == 0, person.screen
        assert "on Snowflake Cortex answer.\nRun Claude Code on it" in person.screen
        assert (clone.folder / ".env").read_text().splitlines()[-1] == "CLAUDE_ROUTE=messages"
        assert "You said: hi" in clone.good("make claude ARGS='-p hi'", **configured)
        assert stub.requests[-1]["path"].endswith("/messages")
        clone.good("make stop", **configured)
        # PM2 hands it on to both processes.
        said = clone.good("make start", **configured, CLAUDE_ROUTE="chat")
        assert "Cortex refuses `reasoning` on chat completions" in said
        assert "export CLAUDE_ROUTE=messages\nmake -C " in said
        clone.good("make stop", **configured)


def test_without_a_terminal_and_a_configuration_start_says_what_to_set(clone: Clone) -> None:
    done = clone.run("make start")
    assert done.returncode != 0
    for words in ("SNOWFLAKE_ACCOUNT", "auto_refresh.py", "connections.toml"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not clone.pm2_pids()


@pytest.mark.parametrize(
    ("tool", "script", "words"),
    [
        (
            "node",
            "case $1 in --version) echo v16.20.0;; *) exit 1;; esac",
            "Node.js 18 or newer is needed; this is v16.20.0",
        ),
        ("python3", "exit 1", "Python 3.10 or newer is needed"),
    ],
)
def test_a_tool_that_is_missing_or_too_old_is_named_with_how_to_get_it(
    clone: Clone, tool: str, script: str, words: str
) -> None:
    programs = clone.home / "bin"
    programs.mkdir()
    for name in ("bash", "sh", "make", "node", "npm", "echo", "touch", "awk", "rm", "test"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    (programs / "python3").symlink_to(sys.executable)
    (programs / tool).unlink()
    (programs / tool).write_text(f"#!/bin/sh\n{script}\n")
    (programs / tool).chmod(0o755)
    installed = clone.folder / ("node_modules" if tool == "node" else ".venv")
    installed.unlink()
    done = clone.run("make start", PATH=str(programs), SNOWFLAKE_ACCOUNT=ACCOUNT, SNOWFLAKE_USER=USER)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
