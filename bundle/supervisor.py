"""PM2, seen from the processes that it runs and from the tools that look at them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundle.bootstrap import BUNDLE

LOG_BYTES = 10 * 2**20  # and as much again beside it


def bound_log(environ: Mapping[str, str]) -> None:
    """Keep the log that PM2 writes for this process from growing without end. (PM2's own way is to download a module.)

    PM2 appends, so that what is cut off here comes no more; the part before the cut stays in `NAME.log.1`.
    """
    path = environ.get("pm_out_log_path")
    if not path:
        return
    with suppress(OSError):
        if Path(path).stat().st_size > LOG_BYTES:
            with suppress(OSError):  # no room for a copy: then it is the more urgent to make some
                shutil.copyfile(path, f"{path}.1")
            os.truncate(path, 0)


def supervisor_channel(environ: Mapping[str, str]) -> int | None:
    """PM2's channel to this process: a descriptor to write JSON lines to; end-of-file on it means that PM2 died."""
    text = environ.get("NODE_CHANNEL_FD", "")
    if not text.isdecimal():
        return None
    try:
        return int(text) if stat.S_ISSOCK(os.fstat(int(text)).st_mode) else None
    except OSError:
        return None


def report_ready(channel: int | None) -> None:
    """Tell PM2 (`wait_ready`) that this process does its work."""
    if channel is not None:
        with suppress(OSError):
            os.write(channel, b'"ready"\n')


def supervisor_gone(channel: int) -> bool:
    """Whether PM2's end is closed; to be called when `channel` is readable."""
    try:
        return os.read(channel, 65536) == b""
    except OSError:
        return True


def output_of(*command: str, environ: Mapping[str, str]) -> str:
    """The command's output; empty when it cannot be run."""
    program = shutil.which(command[0], path=environ.get("PATH")) or command[0]
    environ = {**environ, "PM2_DISCRETE_MODE": "1", "PM2_DISABLE_VERSION_CHECK": "1"}
    try:
        return subprocess.run(
            [program, *command[1:]], env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def interpreter() -> str:
    """What ecosystem.config.js lets PM2 run the scripts with."""
    venv = BUNDLE / ".venv" / "bin" / "python"
    return str(venv) if venv.exists() else shutil.which("python3") or "python3"


def pm2_program(environ: Mapping[str, str]) -> str:
    ours = BUNDLE / "node_modules" / ".bin" / "pm2"
    return str(ours) if ours.exists() else shutil.which("pm2", path=environ.get("PATH")) or "pm2"


def pm2_version(environ: Mapping[str, str]) -> str:
    package = Path(pm2_program(environ)).resolve().parent.parent / "package.json"  # asking PM2 itself would start it
    return str(json.loads(package.read_text(encoding="utf-8"))["version"]) if package.exists() else ""


def pm2_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("PM2_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".pm2")


def daemon_version(environ: Mapping[str, str]) -> str:
    """The version that PM2's daemon gave when it started; empty when that cannot be told."""
    try:
        log = (pm2_home(environ) / "pm2.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return str((re.findall(r"PM2 version +: (\S+)", log) or [""])[-1])


def pm2_processes(environ: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """What PM2 runs, or None when its daemon does not: `jlist` would start one, so its socket is tried first."""
    try:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.settimeout(5)
            daemon.connect(str(pm2_home(environ) / "rpc.sock"))
        lines = output_of(pm2_program(environ), "jlist", environ=environ).splitlines()
        listed: list[dict[str, Any]] = json.loads(next(line for line in reversed(lines) if line.startswith("[")))
    except (OSError, StopIteration, ValueError):
        return None
    return listed


def find_process(listed: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((row for row in listed if row.get("name") in {name, f"demo-{name}"}), {})


def port_owner(port: int) -> str:
    """`command (pid N)` of the process that listens on `port`, or "" when that cannot be told."""
    pid = _listener_by_lsof(port) or _listener_by_proc(port)
    if not pid:
        return ""
    shown = subprocess.run(["ps", "-o", "args=", "-p", pid], capture_output=True, text=True, check=False)
    if "/claude_proxy.py" in shown.stdout:  # also where its path has spaces
        return f"python claude_proxy.py (pid {pid})"
    words = shown.stdout.split()
    # Arguments of a stranger's process may hold secrets: the program and its first argument name it well enough.
    return f"{' '.join(Path(word).name for word in words[:2])} (pid {pid})" if words else f"pid {pid}"


def _listener_by_lsof(port: int) -> str:
    try:
        command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-t"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (found.stdout.split() or [""])[0]


def _listener_by_proc(port: int) -> str:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with suppress(OSError):  # the process has ended, or is belongs to another user
            if str(link.readlink()) in inodes:
                return link.parts[2]
    return ""
