"""The connections of Snowflake's own tools: connections.toml and config.toml in ~/.snowflake."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bundle.errors import ConfigError


class Connections(NamedTuple):
    """The connections by name, the name of the default one, and the file in which they stand."""

    tables: dict[str, dict[str, str]]
    default: str
    file: Path


def snowflake_home(environ: Mapping[str, str]) -> Path:
    if environ.get("SNOWFLAKE_HOME"):
        return Path(environ["SNOWFLAKE_HOME"]).expanduser()
    home = Path(environ.get("HOME") or Path.home())
    # Where Snowflake's own tools look when ~/.snowflake does not exist.
    elsewhere = home / ("Library/Application Support" if sys.platform == "darwin" else ".config") / "snowflake"
    return elsewhere if elsewhere.is_dir() and not (home / ".snowflake").is_dir() else home / ".snowflake"


def read_connections(folder: Path) -> Connections:
    """What the two files in this folder say. Raises ConfigError for a file that cannot be read."""
    config = _read_toml(folder / "config.toml")
    own = _read_toml(folder / "connections.toml")
    tables = own or config.get("connections", {})
    connections = {
        name: {key: str(value) for key, value in table.items()}
        for name, table in (tables.items() if isinstance(tables, dict) else ())
        if isinstance(table, dict)
    }
    file = folder / ("connections.toml" if own else "config.toml")
    return Connections(connections, str(config.get("default_connection_name") or "default"), file)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark at the start
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    # Imported here: Python 3.10 has no tomllib, and the first questions come before tomli is installed.
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415
    else:
        import tomli as tomllib  # noqa: PLC0415
    try:
        return dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"cannot read {path}: {error}.\nFix that file, or move it away.")
