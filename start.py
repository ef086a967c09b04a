#!/usr/bin/env python3
"""Start both processes and wait until a model answers. `make start` runs this after installing and configuring.

Whatever can be known to fail is checked before PM2 is touched: the settings, the template, PM2's folder, another copy
of this bundle. Exit status: 0 a model answers, or both processes run and today's limit is reached; 1 no model answers;
78 a mistake that a new start does not fix; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from bundle.bootstrap import BUNDLE, EX_CONFIG, enter_venv, make, script

if __name__ == "__main__":
    enter_venv()

from bundle.checks.finding import read_installation
from bundle.checks.first_answer import wait_for_answer
from bundle.claude_models import check_start
from bundle.credential import refuse_shell_only
from bundle.errors import ConfigError
from bundle.lifecycle import DEMO, check_pm2_home, refuse_other_copy, remove_rows_of_gone_folders
from bundle.lifecycle import start as start_processes
from bundle.render import check_template
from bundle.settings import load_settings, saved_key
from patches import apply_patch


def check() -> None:
    """Raise ConfigError for every mistake that can be seen before anything changes."""
    settings = load_settings()
    refuse_shell_only(settings.pat, settings.folder / ".env")
    saved_key(settings)  # raises for a key that cannot protect the proxy
    check_template(settings)
    check_start(settings)
    check_pm2_home(os.environ)
    refuse_other_copy(os.environ)


def patch() -> None:
    """Patch LiteLLM, if it is not patched. Raises ConfigError."""
    try:
        if apply_patch.inspect().state is not apply_patch.PatchState.PATCHED:
            print(str(apply_patch.apply()).partition("\n")[0], flush=True)
    except apply_patch.PatchError as error:
        raise ConfigError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Start both processes and wait until a model answers.")
    parser.add_argument("--demo", action="store_true", help="start the demo, in the environment that make gives it")
    options = parser.parse_args(arguments)
    if options.demo and not (os.environ.get("CORTEX_HOME") and DEMO.samefile(os.environ["CORTEX_HOME"])):
        parser.error(f"the demo needs the environment that make gives it: {make('demo')}")
    try:
        check()
        patch()
        remove_rows_of_gone_folders(os.environ)
        print("Starting both processes …", flush=True)
        start_processes(os.environ, BUNDLE / ("tests/demo.config.js" if options.demo else "ecosystem.config.js"))
        if not wait_for_answer(read_installation(os.environ, time.time())):
            return 1
    except ConfigError as error:
        print(f"start.py: {error}", file=sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was started goes on. To see it: {make('status')}", file=sys.stderr)
        return 130
    if options.demo:
        print("This is the demo: a stand-in on this machine answers, not a model, and nothing is sent anywhere.")
        print(f"To end and remove it: {make('stop')}")
    print("Run Claude Code on it, in any folder:", flush=True)
    command = [sys.executable, str(BUNDLE / "point_claude.py"), "--file"]
    status = subprocess.run(command, check=False).returncode
    if not options.demo:
        print(f"To make every plain `claude` use the proxy (to undo it, add --undo): {script('point_claude.py')}")
    return status


if __name__ == "__main__":
    sys.exit(main())
