"""A user who has set account and user and has a key in the usual place: what the `home` of a test holds."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.set_up import usual_key

NOW = 1_800_000_000.7
KEY = usual_key()


def new_pat() -> str:
    """A programmatic access token, as opaque as Snowflake's: nothing in its form tells what it is."""
    return "~".join(["opaque", *(secrets.token_hex(4) for _ in range(8))])


def put(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def environ_of(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "CORTEX_HOME": str(home),
        "SNOWFLAKE_ACCOUNT": "myorg-my_acct",
        "SNOWFLAKE_USER": "jane",
        "SNOWFLAKE_PRIVATE_KEY_PATH": str(home / ".ssh" / "snowflake_key.p8"),
    }
