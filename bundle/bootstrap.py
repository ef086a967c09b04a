"""The first import of each script: which Python it runs with, and whether its packages are there.

Standard library only. PM2 runs the scripts with the interpreter in `.venv` when there is one, so each script that is
started by hand with another one changes to that first: else it would look at another LiteLLM than the proxy's.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

BUNDLE = Path(__file__).absolute().parent.parent  # the folder that holds the scripts

# `make install` puts PM2 into this folder, and nothing on PATH. Written as in a shell.
_OWN_PM2 = BUNDLE / "node_modules" / ".bin" / "pm2"
PM2 = shlex.quote(str(_OWN_PM2)) if _OWN_PM2.exists() else "pm2"

EX_CONFIG = 78  # sysexits.h: PM2 is told not to restart on it, because a restart cannot fix a setting

# What the scripts import that Python does not have, by the names of the modules.
PACKAGES: tuple[str, ...] = ("cryptography", "dotenv", "httpx", "jwt", "litellm", "rich", "uvicorn", "yaml")
if sys.version_info < (3, 11):
    PACKAGES += ("tomli",)
PACKAGE_SECONDS = 30.0  # longer than pip takes from the removal of a package to its next release


def enter_venv(needs: Sequence[str] = PACKAGES) -> None:
    """Start this script again with `.venv`'s interpreter, unless that is the one that runs, or there is none.

    Ends the script with status 78 when a package of `needs` is missing. PM2 does not start again what ends with 78, so
    under PM2 this waits PACKAGE_SECONDS first: pip may be in the middle of replacing the package.
    """
    environment = BUNDLE / ".venv"
    python = environment / "bin" / "python"
    if os.access(python, os.X_OK) and Path(sys.executable) != python and not environment.samefile(sys.prefix):
        sys.stdout.flush()
        os.execv(python, [str(python), *sys.argv])  # noqa: S606 - a list, and never a shell
    if missing := _missing(needs):
        print(f"{sys.executable} lacks {', '.join(missing)}. Install what is needed: make install", file=sys.stderr)
        deadline = time.monotonic() + (PACKAGE_SECONDS if os.environ.get("NODE_CHANNEL_FD") else 0)
        while _missing(needs):
            if time.monotonic() > deadline:
                sys.exit(EX_CONFIG)
            time.sleep(0.5)


def _missing(packages: Sequence[str]) -> list[str]:
    importlib.invalidate_caches()
    return [name for name in packages if importlib.util.find_spec(name) is None]
