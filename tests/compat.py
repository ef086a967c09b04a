"""How `make compat` gets releases of others and runs them: none that is younger than two weeks, and none with a secret.

A release that attackers published is usually found within days. What runs gets a HOME of its own and only the variables
that are named here, so it sees no key, no token and no login of the user.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path

from tests.set_up import BUNDLE

AGE = datetime.timedelta(weeks=2)
UV = BUNDLE / ".venv" / "bin" / "uv"
NEEDED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "DISABLE_AUTOUPDATER")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
INDEXES = ("PIP_INDEX_URL", "PIP_CERT", "UV_DEFAULT_INDEX", "npm_config_registry")


def before() -> str:
    """Only what was published before this moment is taken."""
    return (datetime.datetime.now(datetime.timezone.utc) - AGE).isoformat(timespec="seconds")


def environment(home: Path, *, download: bool = False) -> dict[str, str]:
    """The environment of a process: a HOME of its own, and the network's settings only if it downloads."""
    names = (*NEEDED, *PROXIES, *INDEXES) if download else NEEDED
    return {**{name: os.environ[name] for name in names if name in os.environ}, "HOME": str(home)}


def lock(wanted: str, path: Path, *options: str) -> Path:
    """Write the releases of these requirements with their hashes; returns the file. RuntimeError with uv's words."""
    command = [str(UV), "pip", "compile", "-", "--generate-hashes", "--quiet", "--no-header", "--no-strip-extras"]
    command += ["--exclude-newer", before(), "--output-file", str(path), *options]
    env = environment(path.parent, download=True)
    done = subprocess.run(command, input=wanted, env=env, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"uv finds no releases for {wanted.splitlines()[0]}: {done.stderr.strip()}")
    return path
