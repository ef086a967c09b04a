"""Starting and stopping: what must be true before PM2 is touched, and a stop that looks afterwards what is left.

Standard library only: stop.py works with every Python, without `.venv` and without `node_modules`."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundle.bootstrap import BUNDLE, make, state_folder
from bundle.env_file import parse, read_text
from bundle.errors import ConfigError, printable
from bundle.running import Running, alive, is_from_pm2, port_owner, running, stop_command
from bundle.supervisor import (
    QUIET,
    SCRIPTS,
    daemon_runs,
    folder_of,
    is_this_folder,
    pm2_home,
    pm2_processes,
    pm2_program,
)

DEMO = BUNDLE / ".demo"
DEFAULT_PORT = 8001
NAMES = (*SCRIPTS, "demo-cortex", *(f"demo-{name}" for name in SCRIPTS))
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # what the system allows for the path of a socket
STOP_SECONDS = 60.0  # PM2 gives the proxy 35 seconds for open answers
LIST_SECONDS = 20.0
START_SECONDS = 300.0  # PM2 waits up to two minutes for each of the two processes
GONE_SECONDS = 15.0


def pm2(environ: Mapping[str, str], *arguments: str, seconds: float = STOP_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a command of PM2. Raises ConfigError if there is no PM2, or if it does not end."""
    program = pm2_program(environ)
    if not program:
        raise ConfigError(f"PM2 is not installed here, and no `pm2` is on PATH.\nInstall it: {make('install')}")
    try:
        return subprocess.run(
            [program, *arguments],
            env={**environ, **QUIET},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"cannot run {program}: {error.strerror}.\nInstall PM2 again: {make('install')}") from None
    except subprocess.TimeoutExpired:
        pid = f'"$(cat {shlex.quote(str(pm2_home(environ) / "pm2.pid"))})"'
        raise ConfigError(
            f"PM2 has not answered within {seconds:.0f} seconds: {shlex.join([program, *arguments])}\n"
            f"Try again. If PM2 hangs, end it with all that it runs: kill -9 {pid}"
        ) from None


def our_rows(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that run this folder's scripts, or scripts whose folder was renamed or deleted."""
    ours = [row for row in rows if row.get("name") in NAMES]
    return [row for row in ours if is_this_folder(folder_of(row)) or is_gone(row)]


def is_gone(row: Mapping[str, Any]) -> bool:
    """Whether the script of a row does not exist any more: its folder was renamed or deleted."""
    return not Path(row["pm2_env"].get("pm_exec_path") or "/").exists()


def other_copies(rows: Iterable[Mapping[str, Any]]) -> dict[Path, list[str]]:
    """The other folders whose scripts PM2 runs under our names, each with those names."""
    found: dict[Path, list[str]] = {}
    for row in rows:
        if row.get("name") in NAMES and not is_this_folder(folder_of(row)) and not is_gone(row):
            found.setdefault(folder_of(row), []).append(str(row["name"]))
    return found


# --------------------------------------------------------------------------------------------------------- before start


def check_pm2_home(environ: Mapping[str, str]) -> None:
    """Raise ConfigError if PM2 cannot work in its folder: it would hang or fail with words about something else."""
    home = pm2_home(environ)
    longest = max(len(os.fsencode(home / name)) for name in ("rpc.sock", "pub.sock"))
    if longest > SOCKET_BYTES:
        raise ConfigError(
            f"the path of PM2's folder is too long: {home}\n"
            f"With the name of a socket it has {longest} bytes, and the system allows {SOCKET_BYTES}. "
            + ("Move this folder to a shorter path." if home.parent == DEMO else "Set PM2_HOME to a shorter path.")
        )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        nearest = next(folder for folder in (home, *home.parents) if folder.exists())
        why = os.strerror(error.errno or errno.EACCES)
        raise ConfigError(
            f"PM2 cannot write into its folder {home}: {why}.\nCheck with: ls -ld {shlex.quote(str(nearest))}\n"
            "If that folder must stay as it is: set HOME, or PM2_HOME, to a folder that you can write."
        ) from None


def refuse_other_copy(environ: Mapping[str, str]) -> None:
    """Raise ConfigError if PM2 runs the processes of another folder: they have the same names, and PM2 would restart
    them in place of ours."""
    for folder, names in other_copies(pm2_processes(environ) or []).items():
        what, use = "another program has our names", "To"
        if is_bundle(folder):
            what, use = "another copy of this bundle runs", "Use that one; or to"
        raise ConfigError(
            f"{what}: PM2 has {' and '.join(names)} of {folder}. Nothing was changed.\n"
            f"{use} stop it first, then start this one: {other_stop_command(folder, names)} && {make('start')}"
        )


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a copy of this bundle: other projects may use the same names in PM2."""
    return all((folder / script).exists() for script in SCRIPTS.values())


def other_stop_command(folder: Path, names: Sequence[str]) -> str:
    """The command that ends what PM2 runs from another folder under our names."""
    return stop_command(folder) if is_bundle(folder) else shlex.join([pm2_program(os.environ), "delete", *names])


def remove_rows_of_gone_folders(environ: Mapping[str, str]) -> None:
    """Remove our rows whose script does not exist any more: PM2 would start them again in place of ours, and fail."""
    for row in pm2_processes(environ) or []:
        if row.get("name") in NAMES and is_gone(row):
            pm2(environ, "delete", str(row["pm_id"]))


def start(environ: Mapping[str, str], ecosystem: Path) -> None:
    """Start what this file describes, and forget the restarts that PM2 has counted: those were the user's own. Raises
    ConfigError. (PM2 reports success also when a process has ended soon after its start.)"""
    rows = our_rows(pm2_processes(environ) or [])
    if any(row["pm2_env"].get("status") != "online" or row["pm2_env"].get("restart_time") for row in rows):
        remove_rows(environ)
    done = pm2(environ, "start", str(ecosystem), seconds=START_SECONDS)
    if done.returncode:
        remove_rows(environ)
        done = pm2(environ, "start", str(ecosystem), seconds=START_SECONDS)
    if done.returncode:
        lines = re.sub(r"\x1b\[[\d;]*m", "", done.stdout).splitlines()
        said = "\n".join(printable(line) for line in lines if line.strip() and not line.startswith("    at "))
        raise ConfigError(f"PM2 did not start the processes. It says:\n{said}\nThen try again: {make('stop', 'start')}")
    for row in our_rows(pm2_processes(environ) or []):
        pm2(environ, "reset", str(row["pm_id"]))


def remove_rows(environ: Mapping[str, str]) -> None:
    """Remove our rows and end their processes. PM2 starts a process that fails again and again by itself; a start or
    stop in the same moment makes PM2 fail, or leaves a process that PM2 does not know and that keeps the port. What the
    user has started by hand goes on."""
    for row in our_rows(pm2_processes(environ) or []):
        pm2(environ, "delete", str(row["pm_id"]))
    deadline, told = time.monotonic() + GONE_SECONDS, set[int]()
    while time.monotonic() < deadline:
        left = {process.pid for process in running(state_folder(environ)) if is_from_pm2(process.pid)}
        if not left:
            return
        for pid in left - told:
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        told |= left
        time.sleep(0.2)


# ----------------------------------------------------------------------------------------------------------------- stop


def stop(environ: Mapping[str, str], say: Callable[[str], None] = print) -> bool:
    """Stop everything that this folder has started, and remove the demo. Says what is left; returns whether nothing
    is."""
    port = proxy_port(environ)
    homes = [environ, *([{**environ, "PM2_HOME": str(DEMO / "pm2")}] if DEMO.is_dir() else [])]
    pids = [pid for home in homes for pid in stop_rows(home)]
    deadline = time.monotonic() + GONE_SECONDS
    left = left_over(pids)
    while pids and left and time.monotonic() < deadline:  # PM2 may have started one again while it stopped them
        time.sleep(0.2)
        left = left_over(pids)
    said = [f"{process} still runs. {how_to_stop(process, environ)}" for process in left]
    for home in homes:
        said += [still_listed(row, home) for row in our_rows(pm2_processes(home) or []) if row.get("pid") not in pids]
    others = other_copies(pm2_processes(environ) or [])
    for folder, names in others.items():
        say(f"Not stopped: {' and '.join(names)} of another folder. To stop them: {other_stop_command(folder, names)}")
    for line in said:
        say(line)
    if said:
        return False
    if DEMO.is_dir():
        shutil.rmtree(DEMO)
    if not others and (owner := port_owner(port)):
        say(f"Port {port} is still open, but not for this folder: {owner} has it.")
    say("Stopped." if pids or not others else "Nothing of this folder runs.")
    return True


def proxy_port(environ: Mapping[str, str]) -> int:
    """The port of this folder's proxy. (The settings are not loaded: a mistake in them must not hinder a stop.)"""
    env_file = state_folder(environ) / ".env"
    given = [environ.get("PROXY_PORT", "")]
    with suppress(OSError, UnicodeDecodeError, ConfigError):
        given += [entry.value for entry in reversed(parse(read_text(env_file), env_file)) if entry.name == "PROXY_PORT"]
    return next((int(port) for port in given if port.isdecimal() and 0 < int(port) < 65536), DEFAULT_PORT)


def stop_rows(environ: Mapping[str, str]) -> list[int]:
    """Let PM2 stop our processes, then end its daemon, unless that runs something else. Returns the pids."""
    if not daemon_runs(environ):
        return []
    rows = pm2_processes(environ)
    if rows is None:
        if pm2_program(environ):
            words = printable(pm2(environ, "jlist", seconds=LIST_SECONDS).stdout)
            raise ConfigError(f"PM2 does not show what it runs. It says: {words}\nInstall it again: {make('install')}")
        return []
    pids = [int(row.get("pid") or 0) for row in our_rows(rows)]
    for row in our_rows(rows):
        pm2(environ, "delete", str(row["pm_id"]))
    if pm2_processes(environ) == []:
        pm2(environ, "kill")
    return [pid for pid in pids if pid]


def still_listed(row: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """The message about a row that PM2 has not removed: the next start of PM2 could bring its process back."""
    command = shlex.join([pm2_program(environ), "delete", str(row["pm_id"])])
    return f"PM2 still lists {row['name']}. To remove it: PM2_HOME={shlex.quote(str(pm2_home(environ)))} {command}"


def left_over(pids: Sequence[int]) -> list[Running]:
    """What still runs: of the processes that PM2 has stopped, and of this folder's scripts, whoever started them."""
    found = running()
    known = {process.pid for process in found}
    return found + [Running(pid, "a process of PM2", Path(), None) for pid in pids if pid not in known and alive(pid)]


def how_to_stop(process: Running, environ: Mapping[str, str]) -> str:
    """The command that ends a process that is left, and why it is left."""
    if process.pm2_home is None:
        return f"PM2 does not run it. To end it: kill {process.pid}"
    if process.pm2_home != pm2_home(environ):
        command = f"PM2_HOME={shlex.quote(str(process.pm2_home))} {make('stop')}"
        return f"The PM2 of {process.pm2_home} runs it. To stop it: {command}"
    if not pm2_program(environ):
        return f"PM2 runs it, but no PM2 is installed that could stop it. To stop it: {make('install', 'stop')}"
    return f"PM2 has not ended it. To end it: kill {process.pid}"
