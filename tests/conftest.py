"""Fixtures: each test gets its own set-up, and everything that was started in it ends after the test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.set_up import (
    ACCOUNT,
    BUNDLE,
    CLAUDE,
    TOKEN,
    USER,
    SetUp,
    copy_bundle,
    drop_root_powers,
    events,
    free_port,
    public_pem,
    wait_until,
)

__all__ = [
    "ACCOUNT",
    "BUNDLE",
    "CLAUDE",
    "TOKEN",
    "USER",
    "SetUp",
    "copy_bundle",
    "drop_root_powers",
    "events",
    "free_port",
    "public_pem",
    "wait_until",
]


def pytest_configure() -> None:
    """When a CI's time limit ends the run, end what the tests have started, as after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture
def set_up(tmp_path: Path) -> Iterator[SetUp]:
    made = SetUp(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    """A refresher and a proxy for all tests that do not break them. The tests may script `running.stub`."""
    made = SetUp(tmp_path_factory.mktemp("running"))
    try:
        made.start_both()
        yield made
    finally:
        made.close()
