"""Installs what the bundle runs on into its folder: `python` the packages in .venv, `node` PM2 and Claude Code.

`make install` runs this with any Python from 3.10 on; it imports only the standard library. It shows its progress, and
overrules settings of pip and npm that would put the packages somewhere else or leave some of them out.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bundle.bootstrap import BUNDLE, PACKAGES, make
from bundle.errors import ConfigError, clean

QUIET_SECONDS = 8.0  # without a terminal, a line of progress appears so often
LAST_LINES = 15  # of the output of pip or npm, after it has failed


# ---------------------------------------------------------------------------------------------------------- python


def python_packages(folder: Path, environ: Mapping[str, str], python: str = sys.executable) -> None:
    """Make `.venv` with this interpreter and install requirements.txt into it. Raises ConfigError."""
    make_environment(folder / ".venv", environ, python)
    inside = str(folder / ".venv" / "bin" / "python")
    # -I: packages in PYTHONPATH do not count as installed.
    pip = [inside, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    pip += ["--no-user", "--require-hashes", "-r", str(folder / "requirements.txt")]
    elsewhere = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN")
    environ = {name: value for name, value in environ.items() if name not in elsewhere}
    before = len(installed(folder))
    run(pip, environ, "Installing the Python packages", lambda said: pip_state(said, len(installed(folder)) - before))
    look = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n) is None))"
    missing = output_of([inside, "-I", "-c", look, *PACKAGES], environ).split()
    if missing:
        raise ConfigError(
            f"pip reported success, but {', '.join(missing)} is not in {folder / '.venv'}.\n"
            f"A setting of pip may be the reason: {shlex.quote(inside)} -m pip config list\n"
            f"Then try again: {make('install')}"
        )


def make_environment(path: Path, environ: Mapping[str, str], python: str) -> None:
    done = subprocess.run(
        [python, "-m", "venv", str(path)], env=environ, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        if not said or "ensurepip" in said or "No module named venv" in said:
            raise ConfigError("Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv")
        raise ConfigError(f"Python could not make {path}:\n{clean(last_lines(said))}")


def installed(folder: Path) -> list[Path]:
    return list(folder.glob(".venv/lib/python*/site-packages/*.dist-info"))


def pip_state(said: str, new: int) -> str:
    """How far pip is, from what it has said so far and the number of packages that are new in the environment."""
    if listed := re.search(r"^Installing collected packages: (.*)", said, re.MULTILINE):
        total = listed[1].count(",") + 1
        return f"{min(max(new, 0), total)} of {total} installed"
    return f"{len(set(re.findall(r'^Collecting ([^ =<>;]+)', said, re.MULTILINE)))} downloaded"


# ------------------------------------------------------------------------------------------------------------ node


def node_packages(folder: Path, environ: Mapping[str, str]) -> None:
    """Install PM2, and Claude Code if there is no `claude`, into node_modules. Raises ConfigError."""
    path = environ.get("PATH")
    node, npm = shutil.which("node", path=path), shutil.which("npm", path=path)
    if not node or not npm:
        raise ConfigError("Node.js 18 or newer with npm is needed: https://nodejs.org")
    version = output_of([node, "--version"], environ).strip()
    if int((re.findall(r"\d+", version) or ["0"])[0]) < 18:
        raise ConfigError(f"Node.js 18 or newer is needed; this is {version or 'unknown'}: https://nodejs.org")
    with_claude = not shutil.which("claude", path=path)
    what = f"PM2{' and Claude Code' if with_claude else ''}"
    # Each option overrules a setting of npm that would leave something out or put it somewhere else.
    options = ["--no-global", "--no-dry-run", "--package-lock", "--bin-links", "--include=optional"]
    options += ["--include=dev"] if with_claude else ["--omit=dev"]
    command = [npm, "--loglevel=error", "--no-audit", "--no-fund", "ci", *options]
    with tempfile.TemporaryDirectory() as spare:
        cache = output_of([npm, "config", "get", "cache"], environ).strip()
        if not can_be_written(Path(cache or "/")):
            environ = {**environ, "npm_config_cache": spare}
        run(command, environ, f"Installing {what}", lambda _: f"{packages_in(folder)} packages", cwd=folder)
    if not (folder / "node_modules" / ".bin" / "pm2").exists():
        raise ConfigError(f"npm reported success, but PM2 is not in {folder / 'node_modules'}.\nSee: npm config list")
    if with_claude:
        complete_claude(folder, environ, node)


def complete_claude(folder: Path, environ: Mapping[str, str], node: str) -> None:
    """Put Claude Code's program in its place, if npm may not run the script of the package that does this."""
    claude, script = folder / "node_modules/.bin/claude", folder / "node_modules/@anthropic-ai/claude-code/install.cjs"
    if output_of([str(claude), "--version"], environ):
        return
    output_of([node, str(script)], environ)
    if not output_of([str(claude), "--version"], environ):
        print(
            "Warning: Claude Code is not installed: npm has no program of it for this machine.\n"
            "Install it yourself, then run the same command again: https://docs.claude.com/en/docs/claude-code/setup",
            file=sys.stderr,
        )


def packages_in(folder: Path) -> int:
    modules = folder / "node_modules"
    return sum(1 for pattern in ("*/package.json", "@*/*/package.json") for _ in modules.glob(pattern))


def can_be_written(path: Path) -> bool:
    """Whether files can be made in this folder, or in the first of its parents that exists."""
    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


# ----------------------------------------------------------------------------------------------------------- running


def run(
    command: Sequence[str],
    environ: Mapping[str, str],
    title: str,
    state: Callable[[str], str],
    *,
    cwd: Path | None = None,
) -> None:
    """Run a command and show its progress; its own words only if it fails. Raises ConfigError."""
    terminal = sys.stdout.isatty()
    start = shown = time.monotonic()
    print(f"{title} …", end="" if terminal else "\n", flush=True)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=environ, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

        def said() -> str:  # read without moving the place where the command writes on
            return os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0).decode("utf-8", "replace")

        def line() -> str:
            return f"{title} … {state(said())}, {time.monotonic() - start:.0f} s"

        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - shown > (0.5 if terminal else QUIET_SECONDS):
                    shown = time.monotonic()
                    print(f"\r{line()}\033[K" if terminal else line(), end="" if terminal else "\n", flush=True)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        print(f"\r{line()}\033[K" if terminal else line(), flush=True)
        if process.returncode:
            failed = f"{Path(command[0]).name} failed ({process.returncode}). The lines above say why."
            raise ConfigError(f"{clean(last_lines(said()))}\n\n{title}: {failed}\nThen try again: {make('install')}")


def last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])


def output_of(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """The command's output; empty if it cannot be run or fails."""
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.decode("utf-8", "replace")


def main() -> int:
    try:
        if sys.argv[1:] == ["python"]:
            python_packages(BUNDLE, os.environ)
        else:
            node_packages(BUNDLE, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. To go on: {make('start')}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
