#!/usr/bin/env python3
"""Point Claude Code at the proxy, for one run or for good, and take it back.

Claude Code reads where to send its requests from the `env` of its settings files. For one run, this writes a settings
file of its own and starts `claude --settings FILE`: the user's settings do not change. For good, it puts the same
entries into the user's settings.json, and keeps the file as it was before beside it. `--undo` brings that file back, or
takes only these entries out when the user has edited the settings since.

    python point_claude.py                    all runs: edit ~/.claude/settings.json (or CLAUDE_CONFIG_DIR's)
    python point_claude.py --undo             take that back
    python point_claude.py --run [ARGS…]      this run only: start claude with ARGS
    python point_claude.py --file             write the file for `claude --settings` and print that command
    python point_claude.py --print            show the block, without the key
    python point_claude.py --check            say what keeps a claude started here from the proxy

The proxy's key is in no argument list and no output; every file that gets it is mode 0600. ~/.claude.json is never
touched: it holds the login, and nothing that is needed here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bundle.bootstrap import BUNDLE, EX_CONFIG, enter_venv

if __name__ == "__main__":
    enter_venv()

from bundle.claude_settings import RIVALS, UserSettings, block, check, config_folder, load, to_text
from bundle.errors import ConfigError
from bundle.files import write_private
from bundle.settings import Settings, load_settings, master_key


def write_run_file(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Write the settings file for `claude --settings`, and return its path."""
    network = dict(environ)
    with suppress(ConfigError):  # the user's settings may set a company proxy; one run does not need them intact
        network |= load(config_folder(environ) / "settings.json")[1].get("env", {})
    write_private(settings.folder / "claude.json", to_text(block(settings, network)))
    return settings.folder / "claude.json"


def find_claude(environ: Mapping[str, str]) -> str:
    own = BUNDLE / "node_modules" / ".bin" / "claude"
    found = shutil.which("claude", path=environ.get("PATH")) or (str(own) if os.access(own, os.X_OK) else None)
    if not found:
        install = "Install it with: npm install -g @anthropic-ai/claude-code"
        raise ConfigError(f"Claude Code is not installed: there is no `claude` on PATH.\n{install}")
    return found


def run(settings: Settings, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become `claude`, pointed at the proxy; returns only by raising ConfigError."""
    claude = find_claude(environ)
    path = write_run_file(settings, environ)
    child = {name: value for name, value in environ.items() if name not in RIVALS}
    sys.stdout.flush()
    os.execve(claude, [claude, "--settings", str(path), *arguments], child)  # noqa: S606


def printed(settings: Settings, environ: Mapping[str, str]) -> str:
    """The block with the place of the key instead of the key."""
    tree = block(settings, environ)
    place = "LITELLM_MASTER_KEY" if settings.given_master_key else settings.folder / ".master_key"
    tree["env"]["ANTHROPIC_AUTH_TOKEN"] = f"<the key in {place}>"
    return to_text(tree)


def main(arguments: Sequence[str] | None = None) -> int:
    words = "Point Claude Code at the proxy. Without an option: for all runs, in your settings.json."
    parser = argparse.ArgumentParser(description=words)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--undo", action="store_true", help="take that back")
    choice.add_argument("--run", nargs="...", metavar="ARGS", help="this run only: start claude with ARGS")
    choice.add_argument("--file", action="store_true", help="write a file for `claude --settings`, print that command")
    choice.add_argument("--print", action="store_true", help="show the block, without the key")
    choice.add_argument("--check", action="store_true", help="say what keeps a claude started here from the proxy")
    options = parser.parse_args(arguments)
    try:
        if options.undo:  # needs no configuration, so that it works when that is gone
            print("\n".join(UserSettings(os.environ).undo()))
            return 0
        settings = load_settings()
        if options.check:
            problems = check(settings.proxy_port, master_key(settings), os.environ, Path.cwd())
            lines = [f"{problem.found}\n  {problem.fix}" for problem in problems]
            print("\n".join(lines) or f"A claude started here reaches http://127.0.0.1:{settings.proxy_port}.")
            return 1 if problems else 0
        if options.run is not None:
            run(settings, options.run, os.environ)
        elif options.file:
            claude = "claude" if shutil.which("claude") else find_claude(os.environ)
            print(shlex.join([claude, "--settings", str(write_run_file(settings, os.environ))]))
        elif options.print:
            print(printed(settings, os.environ), end="")
        else:
            user = UserSettings(os.environ)
            print("\n".join(user.point(block(settings, {**os.environ, **user.users.get("env", {})}))))
    except ConfigError as error:
        print(f"point_claude.py: {error}", file=sys.stderr, flush=True)
        return EX_CONFIG
    except OSError as error:
        print(f"point_claude.py: cannot change {error.filename}: {error.strerror}.", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
