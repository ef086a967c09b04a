"""auto_refresh.py as a process: its options, its signals, its exit status, and a second one beside it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import auto_refresh
from bundle.refresher import Refresher
from bundle.settings import load_settings
from bundle.tokens import fingerprint, public_der, register_statement
from tests.set_up import BUNDLE, copy_bundle, drop_root_powers, pem
from tests.user import KEY, put

NOWHERE = "http://127.0.0.1:9"  # nobody answers there: a refresher asks its account for models


def run(
    environ: dict[str, str],
    *arguments: str,
    script: Path = BUNDLE / "auto_refresh.py",
    start: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**environ, "PATH": os.environ["PATH"]},
        preexec_fn=start,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_constants_edited_in_the_script_configure_it(home: Path) -> None:
    script = copy_bundle(home / "bundle") / "auto_refresh.py"
    put(script, script.read_text().replace("YOUR-ACCOUNT", "myorg-edited").replace('"YOUR_USER"', '"me"'))
    done = run({"HOME": str(home)}, "--once", script=script)
    assert done.returncode == 0, done.stderr
    assert "https://myorg-edited.snowflakecomputing.com/api/v2" in (script.parent / "litellm_config.yaml").read_text()


@pytest.mark.keeps("private-key")
@pytest.mark.parametrize(
    ("content", "mode", "passphrase", "said"),
    [
        (None, 0o600, None, "there is no private key"),
        (pem(KEY), 0o640, None, "chmod 600"),
        (pem(KEY), 0o604, None, "chmod 600"),
        (pem(KEY, "right"), 0o600, None, "PRIVATE_KEY_PASSPHRASE="),
        (pem(KEY, "right"), 0o600, "wrong", "does not open it"),
        (b"not a key at all", 0o600, None, "not a PEM private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, None, "damaged"),
        (
            KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            0o600,
            None,
            "a public key",
        ),
        (pem(ec.generate_private_key(ec.SECP256R1())), 0o600, None, "not an RSA key"),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), 0o600, None, "1024 bits"),  # noqa: S505
    ],
)
def test_each_bad_key_has_its_own_message_and_status_78(
    environ: dict[str, str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    mode: int,
    passphrase: str | None,
    said: str,
) -> None:
    path = home / "bad.p8"
    if content is not None:
        put(path, content, mode)
    secret = {"PRIVATE_KEY_PASSPHRASE": passphrase} if passphrase else {}
    monkeypatch.setattr(os, "environ", {**environ, "SNOWFLAKE_PRIVATE_KEY_PATH": str(path), **secret})
    assert auto_refresh.main(["--once"]) == 78
    shown = capsys.readouterr().err
    assert said in shown
    assert str(path) in shown
    assert not (home / "litellm_config.yaml").exists()


def test_public_key_prints_the_statement_that_registers_it(environ: dict[str, str]) -> None:
    done = run(environ, "--public-key")
    body = base64.b64encode(public_der(KEY)).decode()
    assert f"ALTER USER JANE SET RSA_PUBLIC_KEY='{body}';" in done.stdout
    assert fingerprint(KEY) in done.stdout
    assert "-----" not in done.stdout
    assert 'ALTER USER "JANE@EXAMPLE.COM"' in register_statement("JANE@EXAMPLE.COM", KEY)


@pytest.fixture
def refresher(environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = start(environ)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def start(environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(BUNDLE / "auto_refresh.py")],
        env={"SNOWFLAKE_HOST": NOWHERE, **environ, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line, but not that nobody answers the question for models."""
    assert process.stdout is not None
    while "the account's list of models" in (line := process.stdout.readline()):
        pass
    return line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_with_status_0(refresher: subprocess.Popen[str], number: signal.Signals) -> None:
    assert "new token" in line_of(refresher)
    refresher.send_signal(number)
    assert refresher.wait(timeout=10) == 0


def test_a_hangup_refreshes_now(refresher: subprocess.Popen[str]) -> None:
    assert "has started" in line_of(refresher)
    refresher.send_signal(signal.SIGHUP)
    assert "SIGHUP" in line_of(refresher)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_refresher_started_at_a_terminal_ends_with_it_unless_under_nohup(
    environ: dict[str, str], nohup: bool
) -> None:
    follower, leader, process = at_a_terminal(environ, nohup=nohup)
    try:
        os.close(follower)
        shown = ""
        while "new token" not in shown:
            shown += os.read(leader, 4096).decode()
        process.send_signal(signal.SIGHUP)  # what `kill -HUP` does while the terminal is there
        while "SIGHUP" not in shown:
            shown += os.read(leader, 4096).decode()
        os.close(leader)
        if nohup:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=4)
        else:
            assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait(10)


def at_a_terminal(environ: dict[str, str], *, nohup: bool) -> tuple[int, int, subprocess.Popen[bytes]]:
    """The refresher with a terminal of its own, as (its end, the other end, the process)."""
    leader, follower = pty.openpty()

    def prepare() -> None:
        os.setsid()
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-u", str(BUNDLE / "auto_refresh.py")],
        env={"SNOWFLAKE_HOST": NOWHERE, **environ, "PATH": os.environ["PATH"]},
        preexec_fn=prepare,  # noqa: PLW1509
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    return follower, leader, process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_a_wait_is_not_lost(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    monkeypatch.delenv("NODE_CHANNEL_FD", raising=False)
    before = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        moment = 1
        while (answers := answers_with_signal(number, moment)) is not None:
            assert "end" in answers, moment
            moment += 1
        assert moment > 5
    finally:
        signal.set_wakeup_fd(-1)
        for each, handler in before.items():
            signal.signal(each, handler)


def answers_with_signal(number: signal.Signals, moment: int) -> list[str | None] | None:
    """What two waits answer if the signal comes before that line of the first. None: it has fewer lines."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code is auto_refresh.Wait.__call__.__code__ and event == "line":
            lines += 1
            if lines == moment:
                os.kill(os.getpid(), number)
        return trace

    wait, debugger = auto_refresh.Wait(), sys.gettrace()
    os.kill(os.getpid(), signal.SIGHUP)
    sys.settrace(trace)
    try:
        first = wait(0.01)
    finally:
        sys.settrace(debugger)
    answers = [first, wait(0.01)]
    return None if lines < moment else answers


@pytest.mark.parametrize("written", ["", "0\n", "nobody\n"])
def test_once_beside_a_holder_of_unknown_pid_prints_no_kill(environ: dict[str, str], home: Path, written: str) -> None:
    with (home / ".refresher.lock").open("w") as lock:
        lock.write(written)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(environ, "--once")
    assert done.returncode == 0
    assert "kill" not in done.stdout
    assert "restart token-refresher" in done.stdout


@pytest.mark.real
def test_a_second_refresher_waits_and_takes_over(refresher: subprocess.Popen[str], environ: dict[str, str]) -> None:
    line_of(refresher)
    second = start(environ)
    try:
        assert f"pid {refresher.pid}" in line_of(second)
        refresher.kill()  # not even a chance to clean up
        refresher.wait(timeout=10)
        assert "has started" in line_of(second)
    finally:
        second.kill()
        second.communicate()


def test_once_beside_a_running_refresher_checks_and_writes_nothing(
    refresher: subprocess.Popen[str], environ: dict[str, str], home: Path
) -> None:
    line_of(refresher)
    before = (home / "litellm_config.yaml").read_bytes()
    done = run(environ, "--once")
    assert done.returncode == 0
    assert f"kill -HUP {refresher.pid}" in done.stdout
    assert (home / "litellm_config.yaml").read_bytes() == before


@pytest.mark.keeps("secret-files")
def test_leftovers_of_a_killed_refresher_are_removed(environ: dict[str, str], home: Path) -> None:
    leftover = put(home / ".litellm_config.yaml.abc.tmp", "half a token")
    assert run(environ, "--once").returncode == 0
    assert not leftover.exists()


def test_status_tells_a_live_token_from_none(environ: dict[str, str]) -> None:
    assert run(environ, "--status").returncode == 1
    Refresher(lambda: load_settings(environ)).refresh(time.time(), "now")
    done = run(environ, "--status")
    assert done.returncode == 0
    assert "58 minutes left" in done.stdout
    shown = json.loads(run(environ, "--status", "--json").stdout)
    assert shown["expires"] - shown["issued"] == 3540
    assert "eyJ" not in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SNOWFLAKE_ACCOUNT": ""}, "no Snowflake account configured"),
        ({"SNOWFLAKE_ACCOUNT": "", "SNOWFLAKE_USER": ""}, "no Snowflake account and user configured"),
        ({"SNOWFLAKE_ACCOUNT": "YOUR-ACCOUNT"}, "not a Snowflake account identifier"),
        ({"SNOWFLAKE_HOST": "http://example.com"}, "unencrypted"),
    ],
)
def test_a_mistake_in_the_settings_ends_it_with_status_78_and_one_message(
    environ: dict[str, str], change: dict[str, str], said: str
) -> None:
    done = run({**environ, **change})
    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_writable_is_named(environ: dict[str, str], home: Path) -> None:
    home.chmod(0o500)
    try:
        done = run(environ, "--once", start=drop_root_powers)
    finally:
        home.chmod(0o700)
    assert done.returncode == 78
    assert "Permission denied" in done.stderr
