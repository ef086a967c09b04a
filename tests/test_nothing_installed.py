"""Commands in a clone in which nothing is installed: one line that says what to do, and no word about Python."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.set_up import BUNDLE, copy_bundle


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A clone in which nothing is installed."""
    folder = copy_bundle(tmp_path / "bare clone")
    shutil.copy(BUNDLE / "Makefile", folder)
    return folder


@pytest.mark.parametrize("target", ["status", "doctor", "models", "usage", "claude", "logs"])
def test_a_target_before_anything_is_installed_is_one_line_with_the_command(bare: Path, target: str) -> None:
    done = make(bare, target)
    assert done.returncode != 0
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make:")]
    assert shlex.split(line.partition("Run: ")[2]) == ["make", "-C", str(bare), "start"]


def test_stop_before_anything_is_installed_says_that_nothing_is_left(bare: Path) -> None:
    done = make(bare, "stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Stopped.\n", "")


def test_stop_looks_at_the_proxy_s_port_and_names_the_program_that_has_it(bare: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as held:
        port = held.getsockname()[1]
        (bare / ".env").write_text(f"PROXY_PORT={port}\n")
        done = make(bare, "stop")
    first, last = done.stdout.splitlines()
    assert first.startswith(f"Port {port} is still open, but not for this folder: ")
    assert f"(pid {os.getpid()})" in first
    assert (last, done.returncode) == ("Stopped.", 0)


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder.parent)}
    command: Sequence[str] = ["make", "--no-print-directory", "-C", str(folder), *words]
    return subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, timeout=60, check=False)
