"""The account's list decides which models answer, while everything runs: the real refresher, proxy and Claude Code."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.set_up import SetUp, wait_until

pytestmark = pytest.mark.real

REFRESHER, PROXY = "auto_refresh.py", "claude_proxy.py"
FIRST = (
    {"name": "claude-opus-5", "lifecycle_status": "PUPR"},
    {"name": "claude-opus-4-8"},
    {"name": "claude-sonnet-4-6"},
    {"name": "claude-haiku-4-5", "lifecycle_status": "LEGACY", "legacy_date": "2026-11-01", "eol_date": "2027-02-01"},
)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    made = SetUp(tmp_path_factory.mktemp("account"))
    made.stub.listed = FIRST
    try:
        made.start_both()
        yield made
    finally:
        made.close()


def answering(account: SetUp, alias: str) -> str:
    """The model that Cortex is asked for when Claude Code uses this alias."""
    account.run("point_claude.py", "--file")  # what `make claude` writes at each start
    done = account.claude("[[text: hello]]", "--model", alias, "--settings", str(account.folder / "claude.json"))
    assert done["result"] == "hello"
    return str(account.stub.requests[-1]["body"]["model"])


def test_the_rows_follow_the_account_without_a_restart(account: SetUp) -> None:
    changed = "claude-opus-*: claude-opus-4-8 took over from claude-opus-5"
    wait_until(lambda: changed in account.log(REFRESHER), 20, lambda: account.log(REFRESHER))
    pids = {name: process.pid for name, process in account.processes.items()}
    found = {alias: answering(account, alias) for alias in ("opus", "sonnet", "haiku")}
    assert found == {"opus": "claude-opus-4-8", "sonnet": "claude-sonnet-4-6", "haiku": "claude-haiku-4-5"}
    warning = "WARNING: claude-haiku-4-5 is a legacy model since 2026-11-01; it ends on 2027-02-01"
    assert [account.log(name).count(warning) for name in (REFRESHER, PROXY)] == [1, 1]

    account.stub.listed = [*FIRST, {"name": "claude-sonnet-5"}]
    shown = account.run("models.py").stdout
    assert "claude-sonnet-5" in shown
    before = account.log(PROXY).count("models: ")
    wait_until(lambda: account.log(PROXY).count("models: ") > before, 20, lambda: account.log(PROXY))
    assert answering(account, "sonnet") == "claude-sonnet-5"
    status = account.run(REFRESHER, "--status").stdout
    assert "models:   opus claude-opus-4-8, sonnet claude-sonnet-5, haiku claude-haiku-4-5" in status
    assert "claude-sonnet-* and claude-*: claude-sonnet-5 took over from claude-sonnet-4-6" in status
    for name, pid in pids.items():
        os.kill(pid, 0)  # it still runs
        assert account.processes[name].poll() is None
