#!/usr/bin/env python3
"""Take back everything that this bundle has put anywhere (`make uninstall`), and look afterwards whether it is gone.

It takes back: the entries in Claude Code's settings, the command `claude-cortex`, both processes and the demo, their
rows in PM2's saved list, and what the bundle has written into its folder: token, configuration, proxy's key, logs and
state. It leaves the key pair, `.env`, the ledger and the folder itself, and says so. Exit status: 0 all of it is gone,
1 something is left, 78 a mistake that must be fixed first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from bundle.bootstrap import BUNDLE, EX_CONFIG, enter_venv, script, state_folder

if __name__ == "__main__":
    enter_venv()

from bundle.claude_settings import UserSettings
from bundle.command import remove
from bundle.errors import ConfigError
from bundle.taking_back import forget_in_saved_lists, left_behind, remove_files, unpatch, what_remains


def stop() -> bool:
    """Stop what runs; returns whether nothing runs any more. It says itself what is left."""
    return subprocess.run([sys.executable, str(BUNDLE / "stop.py")], check=False).returncode == 0


def main() -> int:
    argparse.ArgumentParser(description="Stop, and take back what this bundle has put anywhere.").parse_args()
    environ = os.environ
    try:
        # First what a broken file may stop: then nothing has changed.
        print("\n".join(UserSettings(environ).undo()), flush=True)
        if not stop():
            print(f"Something still runs, so nothing more was removed. Stop it, then: {script('uninstall.py')}")
            return 1
        remains = what_remains(environ)  # before the files go that say who the user is
        done = [remove(environ), *forget_in_saved_lists(environ), *remove_files(state_folder(environ)), unpatch()]
        print("\n".join(filter(None, done)))
        if left := left_behind(environ):
            print("This is left, and could not be removed:", *left, sep="\n  ")
            return 1
        print("All of that is gone.", "", "What remains is yours:", *remains, sep="\n")
    except ConfigError as error:
        print(f"uninstall.py: {error}", file=sys.stderr)
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
