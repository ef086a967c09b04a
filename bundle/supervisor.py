"""PM2: which one, with which interpreter and which folder; what it runs; what its processes need from it.

Standard library only: stop.py works without `.venv`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundle.bootstrap import BUNDLE, OWN_PM2

SCRIPTS: Mapping[str, str] = {"token-refresher": "auto_refresh.py", "claude-proxy": "claude_proxy.py"}
# Switches off PM2's banner and its request for the newest version.
QUIET: Mapping[str, str] = {"PM2_DISCRETE_MODE": "1", "PM2_DISABLE_VERSION_CHECK": "1"}
GONE_SECONDS = 4.0  # between the two looks after which a folder is gone
LOG_BYTES = 10 * 2**20  # the old log, NAME.log.1, has the same size


def bound_log(environ: Mapping[str, str]) -> None:
    """Move the text of a long log to NAME.log.1. (PM2 itself rotates logs only with a module that it downloads.)"""
    path = environ.get("pm_out_log_path")
    with suppress(OSError):
        if path and Path(path).stat().st_size > LOG_BYTES:
            with suppress(OSError):  # on a full disk the copy fails, and emptying the log is even more urgent
                shutil.copyfile(path, f"{path}.1")
            os.truncate(path, 0)  # PM2 opens the log in append mode, so that its next line starts the empty file


def supervisor_channel(environ: Mapping[str, str]) -> int | None:
    """PM2's channel to this process: a descriptor that takes JSON lines. Its end-of-file means that PM2 died."""
    number = environ.get("NODE_CHANNEL_FD", "")
    with suppress(OSError):
        if number.isdecimal() and stat.S_ISSOCK(os.fstat(int(number)).st_mode):
            return int(number)
    return None


def report_ready(channel: int | None) -> None:
    """Tell PM2 (`wait_ready`) that this process is ready."""
    if channel is not None:
        with suppress(OSError):
            os.write(channel, b'"ready"\n')


def supervisor_gone(channel: int) -> bool:
    """Whether PM2's end is closed. Call this only when `channel` is readable."""
    try:
        return os.read(channel, 65536) == b""
    except OSError:
        return True


class Folders:
    """Notices that a folder of this process was renamed or deleted. The process must then end: nothing that it writes
    arrives, and no command of the folder would find it."""

    def __init__(self, *folders: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folders, self._clock = folders, clock
        self._missing_since: float | None = None

    def gone(self) -> str:
        """The message about a folder that is gone; "" if none is. A disk may be away for a moment, so a second look,
        some seconds after the first, must find the same."""
        missing = next((folder for folder in self._folders if _is_gone(folder)), None)
        if missing is None:
            self._missing_since = None
            return ""
        now = self._clock()
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since < GONE_SECONDS:
            return ""
        return f"the folder {missing} was renamed or deleted, so this process ends.\nIn its new place, run: make start"


def _is_gone(folder: Path) -> bool:
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # a disk that does not answer
        return False
    return False


def end_lost_daemon(environ: Mapping[str, str]) -> None:
    """End PM2's daemon if its own folder is gone with ours, as after deleting the demo: no command reaches it again."""
    home = environ.get("PM2_HOME")
    if home and Path(home).is_relative_to(BUNDLE) and _is_gone(Path(home)) and supervisor_channel(environ) is not None:
        os.kill(os.getppid(), signal.SIGTERM)


def output_of(*command: str, environ: Mapping[str, str]) -> str:
    """The command's output; empty if the command does not exist or hangs."""
    program = shutil.which(command[0], path=environ.get("PATH")) or command[0]
    environ = {**environ, **QUIET}
    try:
        return subprocess.run(
            [program, *command[1:]], env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def interpreter() -> str:
    """The Python interpreter that ecosystem.config.js gives to PM2."""
    venv = BUNDLE / ".venv" / "bin" / "python"
    return str(venv) if venv.exists() else shutil.which("python3") or "python3"


def pm2_program(environ: Mapping[str, str]) -> str:
    """The bundle's own PM2, else the one on PATH; "" if there is none. Either can command the daemon of the other."""
    return str(OWN_PM2) if OWN_PM2.exists() else shutil.which("pm2", path=environ.get("PATH")) or ""


def pm2_version(environ: Mapping[str, str]) -> str:
    program = pm2_program(environ)
    package = Path(program or "/none/pm2").resolve().parent.parent / "package.json"  # asking PM2 would start it
    return str(json.loads(package.read_text(encoding="utf-8"))["version"]) if package.exists() else ""


def pm2_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("PM2_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".pm2")


def daemon_version(environ: Mapping[str, str]) -> str:
    """The version that PM2's daemon logged at its last start; empty if unknown."""
    try:
        log = (pm2_home(environ) / "pm2.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return str((re.findall(r"PM2 version +: (\S+)", log) or [""])[-1])


def daemon_runs(environ: Mapping[str, str]) -> bool:
    """Whether PM2's daemon runs. (Every command of `pm2` would start it.)"""
    try:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.settimeout(5)
            daemon.connect(str(pm2_home(environ) / "rpc.sock"))
    except OSError:
        return False
    return True


def pm2_processes(environ: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """PM2's list of processes, or None if PM2's daemon does not run or cannot be asked."""
    if not daemon_runs(environ) or not (program := pm2_program(environ)):
        return None
    lines = output_of(program, "jlist", environ=environ).splitlines()
    try:
        return list(json.loads(next(line for line in reversed(lines) if line.startswith("["))))
    except (StopIteration, ValueError):
        return None


def find_process(listed: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    """PM2's row for a process of this bundle or of its demo; empty if there is none."""
    return next((row for row in listed if row.get("name") in {name, f"demo-{name}"}), {})


def folder_of(row: Mapping[str, Any]) -> Path:
    """The bundle's folder whose script a row of PM2 runs. (The demo's stand-in is in `tests`.)"""
    folder = Path(row["pm2_env"].get("pm_exec_path") or "/").parent
    return folder.parent if row.get("name") == "demo-cortex" else folder


def is_this_folder(folder: Path) -> bool:
    """Whether this is the bundle's folder, by any of its names."""
    return folder.resolve() == BUNDLE.resolve()
