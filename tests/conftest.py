"""Fixtures: each test gets its own set-up, and everything that was started in it ends after the test."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import claude_settings
from bundle.checks import processes
from bundle.settings import Settings, load_settings
from patches import apply_patch
from tests.checked import ROWS, FakeProxy, serving
from tests.day import PROXY, REFRESHER, Day
from tests.set_up import TOKEN, SetUp, pem, wait_until
from tests.user import KEY, environ_of, put


def pytest_configure() -> None:
    """When a CI's time limit ends the run, end what the tests have started, as after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


# The files that take longest, the longest first (`--durations=0` tells). A worker that began one of them last would
# still run when the others have nothing left.
LONGEST = (
    *("lifecycle", "pm2", "session", "set_up", "all_day", "full_context", "odd_answers", "upstream", "first_answer"),
    *("live_edits", "refused_models", "soak", "point_claude", "lean_litellm", "upstream_odd_ways", "clients"),
    *("front_door_port", "messages_route", "master_key", "growth", "model_watch", "network", "connections", "pat"),
    *("apply_patch", "proof"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first. Stop the run when a test starts the real proxy without the marker that keeps it out
    of the fast part."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))
    for item in items:
        if {"running", "whole_day"} & set(getattr(item, "fixturenames", ())) and not item.get_closest_marker("real"):
            raise pytest.UsageError(f"{item.nodeid} needs @pytest.mark.real")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The HOME of a user who has a key in the usual place, and no set-up that runs."""
    put(tmp_path / ".ssh" / "snowflake_key.p8", pem(KEY))
    return tmp_path


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    return environ_of(home)


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return load_settings(environ)


@pytest.fixture
def set_up(tmp_path: Path) -> Iterator[SetUp]:
    made = SetUp(tmp_path)
    try:
        yield made
    finally:
        made.close()


@functools.cache
def patch_litellm() -> None:
    """Patch LiteLLM, as each start does. On a new machine nothing has started yet."""
    apply_patch.apply()


@pytest.fixture
def nobody_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a company proxy of this machine, and settings that its administrator has made for Claude Code."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(claude_settings, "MANAGED", Path("/no/such/folder"))


@pytest.fixture
def healthy(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> Iterator[SetUp]:
    """A set-up in which all is well, with a stand-in for the two running processes."""
    set_up.refresh()
    patch_litellm()
    monkeypatch.setattr(processes, "pm2_processes", lambda _: ROWS)
    monkeypatch.chdir(set_up.folder)
    with serving(FakeProxy(set_up.port, set_up.master_key)):
        yield set_up


@pytest.fixture(scope="session")
def whole_day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    made = Day(tmp_path_factory.mktemp("day"))
    try:
        made.start_both()
        yield made
    finally:
        made.close()


@pytest.fixture
def day(whole_day: Day) -> Iterator[Day]:
    """A running set-up that the test may break. After the test it must answer again, with no token in its logs."""
    yield whole_day
    whole_day.put_back()
    wait_until(lambda: whole_day.ask("are you well?").status_code == 200, 30, lambda: whole_day.log(PROXY))
    for log in (whole_day.log(PROXY), whole_day.log(REFRESHER)):
        assert not TOKEN.search(log)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    """A refresher and a proxy for all tests that do not break them. The tests may script `running.stub`."""
    made = SetUp(tmp_path_factory.mktemp("running"))
    try:
        made.start_both()
        yield made
    finally:
        made.close()
