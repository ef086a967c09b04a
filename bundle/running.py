"""The processes of this machine: who holds a port, and which run a script of this bundle.

PM2's list is not enough: a process may run by hand, or under a PM2 with another PM2_HOME. Standard library only."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bundle.bootstrap import state_folder
from bundle.supervisor import SCRIPTS, is_this_folder, output_of

PROC = Path("/proc")
_NAMES = {script: name for name, script in SCRIPTS.items()}
# In the text of `ps`, where a path may contain spaces.
_COMMAND = re.compile(
    rf"(?i)python[\d.]*\s(?:-\S+\s)*(?P<script>(?:/.*/)?(?:{'|'.join(map(re.escape, _NAMES))}))(?:\s|$)"
)
_DAEMON = re.compile(r"PM2 v\S+: God Daemon \((.*)\)")  # PM2 gives its daemon this title, with its PM2_HOME


class Running(NamedTuple):
    """A process that runs a script of ours. `pm2_home` is None if no PM2 runs it."""

    pid: int
    name: str
    script: Path
    pm2_home: Path | None

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def running(folder: Path | None = None) -> list[Running]:
    """The processes of this user that run the scripts of this folder, also those that began before it was renamed.

    With `folder`: only those that write their files there."""
    found = []
    for pid, script in _scripts():
        where = _working_folder(pid)
        is_ours = is_this_folder(script.parent) or (where is not None and is_this_folder(where))
        if is_ours and folder in {None, _state_folder(pid)}:
            found.append(Running(pid, _NAMES[script.name], script, _pm2_home(pid)))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether the process exists and has not ended. (One whose parent has not asked how it ended is a zombie.)"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not output_of("ps", "-o", "stat=", "-p", str(pid), environ=os.environ).startswith("Z")


def other_copy_on(port: int) -> Path | None:
    """The folder of another copy of this bundle whose proxy listens on the port; None if there is none."""
    pid = _listener(port)
    script = _script(pid) if pid else None
    is_proxy = script is not None and script.name == "claude_proxy.py" and script.exists()
    return script.parent if script and is_proxy and not is_this_folder(script.parent) else None


def stop_command(folder: Path) -> str:
    """The command that stops what runs from that folder."""
    return shlex.join(["make", "-C", str(folder), "stop"])


def _scripts() -> Iterator[tuple[int, Path]]:
    """Each process of this user that runs one of our scripts, in whatever folder."""
    if (PROC / "self" / "cmdline").exists():
        pids = [entry.name for entry in PROC.iterdir() if entry.name.isdecimal()]
    else:
        pids = output_of("ps", "-Aww", "-o", "pid=", environ=os.environ).split()
    for pid in pids:
        with suppress(OSError):
            if (PROC / pid).exists() and (PROC / pid).stat().st_uid != os.geteuid():
                continue
        if script := _script(int(pid)):
            yield int(pid), script


def _script(pid: int) -> Path | None:
    """The script of ours that this process runs, with its folder; None if it runs something else."""
    words = _words(pid)
    if len(words) == 1:  # the text of `ps`
        found = _COMMAND.search(words[0])
        script = found["script"] if found else ""
    else:
        is_python = bool(words) and "python" in Path(words[0]).name.lower()
        script = next((word for word in words[1:4] if Path(word).name in _NAMES), "") if is_python else ""
    if not script:
        return None
    where = _working_folder(pid)
    return Path(script) if Path(script).is_absolute() or where is None else where / script


def _words(pid: int) -> list[str]:
    """The command line of a process: its words, or from `ps` one text."""
    with suppress(OSError):
        words = (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")
        return [word for word in words if word]
    text = output_of("ps", "-ww", "-o", "args=", "-p", str(pid), environ=os.environ).strip()
    return [text] if text else []


def _working_folder(pid: int) -> Path | None:
    if PROC.joinpath("self").exists():
        with suppress(OSError):
            return (PROC / str(pid) / "cwd").readlink()
        return None
    lines = output_of("lsof", "-a", "-p", str(pid), "-d", "cwd", "-Fn", environ=os.environ).splitlines()
    return next((Path(line[1:]) for line in lines if line.startswith("n")), None)


def _state_folder(pid: int) -> Path:
    """The folder where a process writes its files."""
    return state_folder({"CORTEX_HOME": _variable(pid, "CORTEX_HOME")})


def is_from_pm2(pid: int) -> bool:
    """Whether some PM2 has started this process, also if PM2 does not know it any more."""
    return bool(_variable(pid, "pm_out_log_path"))


def _variable(pid: int, name: str) -> str:
    """A variable in the environment of a process, which only its user can read; "" if there is none."""
    with suppress(OSError):
        variables = (PROC / str(pid) / "environ").read_bytes().decode("utf-8", "surrogateescape").split("\0")
        return next((word.partition("=")[2] for word in variables if word.startswith(f"{name}=")), "")
    text = output_of("ps", "eww", "-o", "args=", "-p", str(pid), environ=os.environ)
    found = re.search(rf" {name}=(.+?)(?= \w+=|$)", text)
    return found[1] if found else ""


def _pm2_home(pid: int) -> Path | None:
    """The PM2_HOME of the daemon that has started this process; None if none has."""
    parent = output_of("ps", "-o", "ppid=", "-p", str(pid), environ=os.environ).strip()
    if not parent:
        with suppress(OSError):
            parent = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]
    found = _DAEMON.search(" ".join(_words(int(parent)))) if parent.isdecimal() else None
    return Path(found[1]) if found else None


def port_owner(port: int) -> str:
    """`command (pid N)` of the process that listens on `port`; "" if unknown."""
    pid = _listener(port)
    if not pid:
        return ""
    if (script := _script(pid)) and script.name == "claude_proxy.py":
        return f"python claude_proxy.py (pid {pid})"
    # Another program's arguments may contain secrets, so only the program and its first argument are shown.
    words = [Path(word).name for word in " ".join(_words(pid)).split()[:2]]
    return f"{' '.join(words)} (pid {pid})" if words else f"pid {pid}"


def _listener(port: int) -> int:
    """The pid of the process that listens on `port`; 0 if unknown."""
    lsof = output_of("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-t", environ=os.environ).split()
    return int(lsof[0]) if lsof else _listener_by_proc(port)


def _listener_by_proc(port: int) -> int:
    """The pid of the process that listens on `port`, from Linux's /proc; 0 if unknown."""
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with suppress(OSError):  # the process has ended, or belongs to another user
            if str(link.readlink()) in inodes:
                return int(link.parts[2])
    return 0
