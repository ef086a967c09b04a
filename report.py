#!/usr/bin/env python3
"""Make one file for a bug report: the releases, the settings in force, status, doctor's findings, the end of the logs.

Account, user, hosts, keys, tokens, folders, prompts and the names of this machine are taken out. The text is shown
before it is written, and nothing is sent.

Exit status: 0 done, also if you do not want the file; 1 no terminal to ask, and no --yes; 78 the file cannot be
written; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from bundle.bootstrap import BUNDLE, EX_CONFIG, enter_venv, script

if __name__ == "__main__":
    enter_venv()

from bundle.checks.finding import Installation, read_installation
from bundle.checks.processes import status
from bundle.checks.report import examine, page
from bundle.cortex import errors as cortex_errors
from bundle.errors import ConfigError, say
from bundle.files import write_private
from bundle.private import private_values, settings_in_force, text_of
from bundle.report import LINES, compose, safe, without_prompts, words_of
from bundle.supervisor import SCRIPTS, output_of, pm2_version

FILE = "cortex-report.md"
LOG_BYTES = 2**18  # the end of a log in which its last hundred lines are looked for


def releases(environ: Mapping[str, str]) -> str:
    """The releases of the bundle and of what it runs on."""
    number = re.search(r'^version = "(.*)"', text_of(BUNDLE / "pyproject.toml"), re.MULTILINE)
    claude = str(BUNDLE / "node_modules" / ".bin" / "claude")
    commit = output_of("git", "-C", str(BUNDLE), "describe", "--always", "--dirty", environ=environ)
    lines = {
        "bundle": f"{number[1] if number else 'unknown'} {commit}",
        "Python": platform.python_version(),
        "LiteLLM": attempt(lambda: metadata.version("litellm")),
        "Node.js": output_of("node", "--version", environ=environ),
        "PM2": attempt(lambda: pm2_version(environ)),
        "Claude Code": output_of("claude", "--version", environ=environ)
        or output_of(claude, "--version", environ=environ),
        "system": platform.platform(),
    }
    return "\n".join(f"{name:<11} {value.strip() or 'not found'}" for name, value in lines.items())


def logs(folder: Path) -> dict[str, str]:
    """The last lines of each process's log."""
    found = {}
    for name in (*SCRIPTS, *(f"demo-{name}" for name in SCRIPTS)):
        path = folder / "logs" / f"{name}.log"
        try:
            with path.open("rb") as log:
                start = max(0, log.seek(0, os.SEEK_END) - LOG_BYTES)
                log.seek(start)
                lines = log.read().decode("utf-8", "replace").splitlines()[1 if start else 0 :]
        except OSError:
            lines = []
        if lines or name in SCRIPTS:
            found[f"The last lines of {name}"] = "\n".join(lines[-LINES:]) or "There is no log."
    return found


def attempt(look: Callable[[], str]) -> str:
    """What `look` finds. The rest of the report must not be lost if it fails on something that nobody thought of."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001
        return f"cannot be found out: {type(error).__name__}"


def report(installation: Installation) -> str:
    """The text of the file."""
    private = private_values(installation)
    # The words of Cortex's errors that are known, the fields and messages in docs/cortex.md, and the models.
    known = words_of(" ".join(case.words for case in cortex_errors.CASES).replace("\\", " "))
    known |= words_of(" ".join(re.findall(r"`([^`\n]+)`", text_of(BUNDLE / "docs" / "cortex.md"))))
    known |= words_of(cortex_errors.words_of("<")[1])  # what is said in place of a web page
    known |= words_of(" ".join(str(row["litellm_params"]["model"]) for row in installation.rows))
    found = {
        "Doctor": attempt(lambda: page(examine(installation), 10_000, colour=False)),
        "Status": attempt(lambda: status(installation)[0]),
        **logs(installation.folder),
    }
    texts = {title: safe(without_prompts(text, known), private) for title, text in found.items()}
    settings = {"Settings": attempt(lambda: settings_in_force(installation))}  # holds no private word, only fixed ones
    return compose({"Releases": safe(releases(installation.environ), private), **settings, **texts})


def wanted(path: Path) -> bool:
    try:
        answer = input(f"Write it to {shlex.quote(str(path))}? [Y/n] ")
    except EOFError:
        return False
    return answer.strip().lower() in {"", "y", "yes"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make one file for a bug report, with nothing private in it.")
    parser.add_argument("--yes", action="store_true", help="write the file without asking")
    options = parser.parse_args(arguments)
    try:
        installation = read_installation(os.environ, time.time())
        path = installation.folder / FILE
        print("Looking at everything that doctor looks at …", file=sys.stderr)
        text = report(installation)
        print(text, flush=True)
        if not options.yes and not sys.stdin.isatty():
            say(
                f"Nothing was written: there is no terminal to ask. To write it: {script('report.py', '--yes')}",
                sys.stderr,
            )
            return 1
        if not options.yes and not wanted(path):
            print("Nothing was written.")
            return 0
        write_private(path, text)
    except ConfigError as error:
        say(f"report.py: {error}", sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:
        return 130
    print(f"Written: {path}\nRead it before you send it: only you know every word that is private.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
