"""What the scripts that print tables do if their reader leaves, or the disk is full."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundle.cortex.usage import Used
from bundle.ledger import append, line
from tests.set_up import SetUp

COMMANDS = [("usage.py", "--local"), ("usage.py", "--local", "--json"), ("usage.py", "--sql"), ("models.py",)]


@pytest.fixture
def busy(set_up: SetUp) -> SetUp:
    """With so many rows that they do not fit into a pipe."""
    at, used = time.time(), Used(1_000, output=100)
    lines = [
        line(at, session=f"s-{n}", asked="m", model=f"m-{n}", route="chat", status=200, used=used) for n in range(900)
    ]
    append(set_up.folder, lines)
    return set_up


def shell(set_up: SetUp, command: tuple[str, ...], text: str) -> subprocess.CompletedProcess[str]:
    """Run this text in a shell: "$@" is the script with its options."""
    script, *options = command
    words = ["/bin/sh", "-c", text, "sh", sys.executable, str(set_up.bundle / script), *options]
    return set_up.run(*words, PYTHONUNBUFFERED="")  # as a user has it


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(busy: SetUp, command: tuple[str, ...]) -> None:
    reader = "head -n 3" if "--local" in command else "true"  # what is short, head would read to its end
    done = shell(busy, command, f'{{ "$@"; echo "status $?" >&2; }} | {reader}')
    assert done.stderr == "status 0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="macOS has no /dev/full")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_message(busy: SetUp, command: tuple[str, ...]) -> None:
    done = shell(busy, command, '"$@" >/dev/full')
    said = f"{command[0]}: cannot write the output: No space left on device.\nCheck with: df -h\n"
    assert (done.returncode, done.stderr) == (1, said)
