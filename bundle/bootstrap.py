"""The first import of each script: makes the script run with the right Python, and checks that its packages exist.

Standard library only. PM2 runs the scripts with the interpreter in `.venv`, if there is one. A script that is started
by hand with another interpreter changes to that interpreter first, because it must see the same LiteLLM as the proxy.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

BUNDLE = Path(__file__).absolute().parent.parent  # the folder that holds the scripts

OWN_PM2 = BUNDLE / "node_modules" / ".bin" / "pm2"  # `make install` puts PM2 here, and not on PATH
PM2 = shlex.quote(str(OWN_PM2)) if OWN_PM2.exists() else "pm2"  # for shell commands in messages


def state_folder(environ: Mapping[str, str]) -> Path:
    """The folder for the files that the bundle writes: CORTEX_HOME (which `make demo` sets), or the bundle's folder."""
    return Path(environ["CORTEX_HOME"]).expanduser().resolve() if environ.get("CORTEX_HOME") else BUNDLE


def make(*words: str) -> str:
    """`make` with these targets, as a shell command that works in every folder: messages are read anywhere."""
    return shlex.join(["make", "-C", str(BUNDLE), *words])


def script(name: str, *arguments: str) -> str:
    """A script of this bundle as a shell command that works in every folder."""
    return shlex.join(["python3", str(BUNDLE / name), *arguments])


EX_CONFIG = 78  # sysexits.h; ecosystem.config.js tells PM2 not to restart after it: a restart cannot fix a setting

# The modules that the scripts import and that do not come with Python.
PACKAGES: tuple[str, ...] = ("cryptography", "httpx", "jwt", "litellm", "rich", "uvicorn", "yaml")
if sys.version_info < (3, 11):
    PACKAGES += ("tomli",)
PACKAGE_SECONDS = 30.0  # pip needs less time between removing a package and installing its new version


def enter_venv(needs: Sequence[str] = PACKAGES) -> None:
    """Start this script again with `.venv`'s interpreter, unless it runs with that already or there is no `.venv`.

    If a package of `needs` is missing, the script exits with status 78. PM2 does not restart after 78, so under PM2
    the script first waits up to PACKAGE_SECONDS for the package: pip may be replacing it.
    """
    environment = BUNDLE / ".venv"
    python = environment / "bin" / "python"
    if os.access(python, os.X_OK) and Path(sys.executable) != python and not environment.samefile(sys.prefix):
        sys.stdout.flush()
        os.execv(python, [str(python), *sys.argv])  # noqa: S606 - a list, and never a shell
    if missing := _missing(needs):
        print(
            f"{sys.executable} lacks {', '.join(missing)}. Install what is needed: {make('install')}", file=sys.stderr
        )
        deadline = time.monotonic() + (PACKAGE_SECONDS if os.environ.get("NODE_CHANNEL_FD") else 0)
        while _missing(needs):
            if time.monotonic() > deadline:
                sys.exit(EX_CONFIG)
            time.sleep(0.5)


def _missing(packages: Sequence[str]) -> list[str]:
    importlib.invalidate_caches()
    return [name for name in packages if importlib.util.find_spec(name) is None]
