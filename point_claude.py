#!/usr/bin/env python3
"""Make Claude Code send its requests to the proxy, for one run or for all runs, and undo that.

The `env` in Claude Code's settings files says where its requests go. For one run, this script writes a separate
settings file and starts `claude --settings FILE`; the user's settings do not change. For all runs, this script puts the
same entries into the user's settings.json, and keeps a copy of the old file beside it. `--undo` restores the old file;
if the user has edited settings.json since, `--undo` only removes the entries.

No argument list and no output contains the proxy's key; every file with the key has mode 0600. The script never touches
~/.claude.json, which holds the login.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.argv[1:] == ["--statusline"]:
    from bundle import status_line

    if status_line.is_read():  # Claude Code runs this after each answer: nothing else is imported
        sys.exit(status_line.main())
    if sys.flags.no_site:  # somebody runs the same command by hand; what follows needs the packages
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - a list, and never a shell

import argparse
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.bootstrap import BUNDLE, EX_CONFIG, enter_venv, state_folder

if __name__ == "__main__":
    enter_venv()

from bundle.claude_check import Problem, check, check_models
from bundle.claude_models import start_words
from bundle.claude_settings import (
    UserSettings,
    is_conflict,
    line_entry,
    proxy_entries,
    run_file,
    theirs_in_force,
    to_text,
)
from bundle.command import install
from bundle.errors import ConfigError, say
from bundle.files import write_private
from bundle.proof import listener, require_proxy
from bundle.settings import Settings, load_settings, master_key


def write_run_file(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Write the settings file for `claude --settings`, and return its path."""
    path = run_file(settings)
    write_private(path, to_text(proxy_entries(settings, theirs_in_force(environ, Path.cwd()))))
    return path


def find_claude(environ: Mapping[str, str]) -> str:
    own = BUNDLE / "node_modules" / ".bin" / "claude"
    found = shutil.which("claude", path=environ.get("PATH")) or (str(own) if os.access(own, os.X_OK) else None)
    if not found:
        install = "Install it with: npm install -g @anthropic-ai/claude-code"
        raise ConfigError(f"Claude Code is not installed: there is no `claude` on PATH.\n{install}")
    return found


def all_problems(settings: Settings) -> list[Problem]:
    """What keeps a `claude` that is started here from the proxy, or from a model."""
    here = Path.cwd()
    found = check(settings.proxy_port, master_key(settings), os.environ, here)
    return [*found, *check_models(settings, os.environ, here)]


def show(problems: Sequence[Problem], all_well: str = "") -> int:
    """Print each problem with its fix, or that all is well; returns the exit status."""
    if text := "\n".join(f"{problem.found}\n  {problem.fix}" for problem in problems) or all_well:
        say(text)
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    about = "Make Claude Code use the proxy. Without an option: for all runs, in ~/.claude/settings.json."
    parser = argparse.ArgumentParser(description=about)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--undo", action="store_true", help="remove the entries from settings.json")
    choice.add_argument("--run", nargs="...", metavar="ARGS", help="this run only: start claude with ARGS")
    choice.add_argument("--file", action="store_true", help="write a settings file, print the command that uses it")
    choice.add_argument("--print", action="store_true", help="show the entries, without the key")
    choice.add_argument(
        "--check", action="store_true", help="show why a claude that is started here does not use the proxy"
    )
    choice.add_argument("--statusline", action="store_true", help="put the status line into settings.json")
    choice.add_argument("--install-command", action="store_true", help="put claude-cortex into ~/.local/bin")
    options = parser.parse_args(arguments)
    try:
        if options.undo or options.install_command or options.statusline:  # these need no configuration
            if options.statusline:
                done = UserSettings(os.environ).show_line(line_entry(state_folder(os.environ)))
            else:
                done = UserSettings(os.environ).undo() if options.undo else install(os.environ)
            print("\n".join(done))
            return 0
        settings = load_settings()
        if options.check:
            problems = all_problems(settings)
            if (found := listener(settings.proxy_port, master_key(settings))).state != "ours":
                problems.append(Problem(found.found, found.fix))
            return show(problems, f"A claude started here reaches http://127.0.0.1:{settings.proxy_port}.")
        if options.run is not None:
            claude = find_claude(os.environ)
            require_proxy(settings)
            path = write_run_file(settings, os.environ)
            environ = {name: value for name, value in os.environ.items() if not is_conflict(name)}
            sys.stdout.flush()  # execve replaces this process and drops what is still in the buffer
            os.execve(claude, [claude, "--settings", str(path), *options.run], environ)  # noqa: S606
        elif options.file:
            claude = "claude" if shutil.which("claude") else find_claude(os.environ)
            print(shlex.join([claude, "--settings", str(write_run_file(settings, os.environ))]))
        elif options.print:
            tree = proxy_entries(settings, {"env": dict(os.environ)})
            place = "LITELLM_MASTER_KEY" if settings.given_master_key else settings.folder / ".master_key"
            tree["env"]["ANTHROPIC_AUTH_TOKEN"] = f"<the key in {place}>"
            print(to_text(tree), end="")
        else:
            user = UserSettings(os.environ)
            theirs = {**user.own, "env": {**os.environ, **user.own.get("env", {})}}
            entries = proxy_entries(settings, theirs)
            print("\n".join([*user.point(entries), start_words(entries, theirs)]))
            return show(all_problems(settings))
    except ConfigError as error:
        print(f"point_claude.py: {error}", file=sys.stderr, flush=True)
        return EX_CONFIG
    except OSError as error:
        print(f"point_claude.py: cannot change {error.filename}: {error.strerror}.", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
