#!/usr/bin/env python3
"""Bring this folder to the newest version and start it; go back to the version before if no model answers then.

`make update` runs this script. Your edits of the files stay: they are put back after the update, and also after going
back. Standard library only, because the update may replace every package. Exit status: 0 the newest version runs, 1 it
does not, and the version before is back.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys

from bundle.bootstrap import BUNDLE, make
from bundle.errors import ConfigError

KEPT_EDITS = "my-edits.diff"  # where a user can keep them, in the bundle's folder
EDITS = "your edits, kept during an update"  # their name in `git stash list`, in case the update is killed


def git(*arguments: str) -> str:
    """What Git prints. Raises ConfigError with Git's own words."""
    environ = {"GIT_TERMINAL_PROMPT": str(int(sys.stdin.isatty())), **os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(BUNDLE), *arguments], env=environ, capture_output=True, encoding="utf-8", check=False
        )
    except FileNotFoundError:
        raise ConfigError("there is no `git` on PATH.") from None
    if done.returncode:
        raise ConfigError(f"git {arguments[0]} did not work. It says:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def version() -> str:
    return git("rev-parse", "HEAD")


def pull(before: str) -> str:
    """Bring the newest version, with the user's edits on top. Returns the stash with the edits alone; "" without edits.
    Raises ConfigError, and then nothing has changed."""
    git("fetch", "--quiet")
    if git("merge-base", "HEAD", "@{upstream}") == git("rev-parse", "@{upstream}"):
        return ""
    git("update-index", "-q", "--refresh")  # else a file of which only the time has changed makes `stash` fail
    if edits := git("stash", "create", EDITS):
        git("stash", "store", "--message", EDITS, edits)
        git("reset", "--quiet", "--hard")
    try:
        git("merge", "--quiet", "--ff-only", "@{upstream}")
        if edits:
            git("stash", "apply", "--quiet", edits)
    except ConfigError as error:
        files = git("diff", "--name-only", "--diff-filter=U").splitlines()
        go_back(before, edits)
        forget(edits)
        if not files:
            raise
        here, names = f"git -C {shlex.quote(str(BUNDLE))}", shlex.join(files)
        raise ConfigError(
            f"the new version changes the same lines as your edits of {', '.join(files)}. Nothing was changed.\n"
            f"1. Keep your edits in a file: {here} diff -- {names} >> {shlex.quote(str(BUNDLE / KEPT_EDITS))}\n"
            f"2. Take them out: {here} checkout -- {names}\n"
            f"3. Bring the new version: {make('update')}\n"
            f"4. Make the edits of {KEPT_EDITS} once more, in the new version's form."
        ) from error
    return edits


def go_back(before: str, edits: str) -> None:
    git("reset", "--quiet", "--hard", before)
    if edits:
        git("stash", "apply", "--quiet", edits)


def forget(edits: str) -> None:
    """Remove the edits from Git's stash: they are in the files again."""
    if edits and git("rev-parse", "stash@{0}") == edits:
        git("stash", "drop", "--quiet", "stash@{0}")


def works() -> bool:
    """Install what has changed, restart both processes, and wait until a model answers. (At the day's limit no model is
    asked, and what runs is good.)"""
    demo = (BUNDLE / ".demo").is_dir() and not (BUNDLE / "litellm_config.yaml").exists()
    command = ["make", "--no-print-directory", "-C", str(BUNDLE), "demo" if demo else "start"]
    return subprocess.run(command, check=False).returncode == 0


def main() -> int:
    about = "Bring the newest version and start it; the version before comes back if no model answers then."
    argparse.ArgumentParser(description=about).parse_args()
    try:
        before = version()
        edits = pull(before)
        after = version()
        if after == before:
            print(f"This is the newest version already ({after[:10]}).")
            return 0
        print(f"Updated from {before[:10]} to {after[:10]}:", flush=True)
        print(git("log", "--oneline", "--no-decorate", "-n", "20", f"{before}..{after}"), flush=True)
        if works():
            forget(edits)
            return 0
        print(f"\nThe new version does not work here (see above). Going back to {before[:10]} …", flush=True)
        go_back(before, edits)
        forget(edits)
        if works():
            print(f"The version before ({before[:10]}) is back, and works.", file=sys.stderr)
        else:
            print(
                f"The version before ({before[:10]}) is back, but no model answers there either.\n"
                f"Fix what is named above, then: {make('start')}",
                file=sys.stderr,
            )
    except ConfigError as error:
        print(f"update.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        stash = f"git -C {shlex.quote(str(BUNDLE))} stash list"
        print(
            f"\nInterrupted. To go on: {make('start')}\nYour edits are in the files, or here: {stash}", file=sys.stderr
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
