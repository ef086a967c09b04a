"""Where each setting comes from: the environment, `.env`, two constants in auto_refresh.py, or ~/.snowflake.

The first of these that has a value wins. The settings are read again whenever one of their files changes.
"""

from __future__ import annotations

import ast
import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values, set_key

from bundle.account import parse_account, parse_host
from bundle.bootstrap import BUNDLE, EX_CONFIG
from bundle.errors import ConfigError, say
from bundle.files import write_error, write_private

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# CLAUDE_ROUTE, and what each word makes of a row of a Claude model: its provider in LiteLLM's terms.
CLAUDE_ROUTES: Mapping[str, str] = {"chat": "openai", "messages": "snowflake"}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, checked. `folder` holds what the bundle writes; `sources` is what was read."""

    account: str  # as it goes into the claims, upper case: ORG-ACCOUNT, or a locator without its region
    user: str  # LOGIN_NAME, upper case
    base_url: str  # https://HOST, without a path
    private_key_path: Path
    proxy_port: int
    refresh_seconds: int
    folder: Path
    warehouse: str | None = None
    passphrase: str | None = field(default=None, repr=False)
    given_master_key: str | None = field(default=None, repr=False)
    claude_route: str = "chat"  # how the rows of Claude models go: one of CLAUDE_ROUTES
    claude_route_from: str = ""  # "the environment" or ".env"; empty: nobody has chosen it
    origin: str = ""  # where account and user came from, for messages
    sources: tuple[Path, ...] = ()

    @property
    def template_path(self) -> Path:
        return BUNDLE / "litellm_config.template.yaml"

    @property
    def config_path(self) -> Path:
        return self.folder / "litellm_config.yaml"

    @property
    def state_path(self) -> Path:
        return self.folder / ".refresher.json"

    @property
    def lock_path(self) -> Path:
        return self.folder / ".refresher.lock"


SCRIPT = BUNDLE / "auto_refresh.py"  # holds the two constants that a user may edit

WAYS_TO_CONFIGURE = """Say which Snowflake account and user to use, in one of three ways:
  1. SNOWFLAKE_ACCOUNT and SNOWFLAKE_USER in the environment or in {env_file} (copy .env.example)
  2. ACCOUNT and USER at the top of {script}
  3. a default connection in ~/.snowflake/connections.toml, as the snow command line uses it"""


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where key-less state lives: the bundle's folder, or CORTEX_HOME (`make demo` keeps its own beside a real one)."""
    return Path(environ["CORTEX_HOME"]).expanduser().resolve() if environ.get("CORTEX_HOME") else BUNDLE


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Build the settings; the first of environment, `.env`, this file's constants and ~/.snowflake wins.

    Raises ConfigError with the remedy for whatever is missing or wrong.
    """
    environ = os.environ if environ is None else environ
    folder = state_folder(environ)
    env_file = folder / ".env"
    given = {**_read_env_file(env_file), **{name: value for name, value in environ.items() if value}}
    connections_folder = snowflake_home(environ)
    sources = [env_file, SCRIPT, connections_folder / "connections.toml", connections_folder / "config.toml"]

    constants = _edited_constants(SCRIPT)
    account_text = given.get("SNOWFLAKE_ACCOUNT") or constants.get("ACCOUNT")
    user = given.get("SNOWFLAKE_USER") or constants.get("USER")
    origin = "the environment or .env" if given.get("SNOWFLAKE_ACCOUNT") else "auto_refresh.py"
    # A connection is one thing: when account or user say something else, its key and warehouse are not ours to use.
    name, connection = _default_connection(connections_folder, given)
    agrees = all(
        not ours or ours.upper() == str(connection.get(key, "")).upper()
        for ours, key in ((account_text, "account"), (user, "user"))
    )
    if not agrees:
        connection = {}
    elif not account_text and connection:
        origin = f"connection [{name}] in {connections_folder}"
    account_text = account_text or connection.get("account")
    user = user or connection.get("user")
    if not account_text or not user:
        missing = " and ".join(word for word, value in (("account", account_text), ("user", user)) if not value)
        ways = WAYS_TO_CONFIGURE.format(env_file=env_file, script=SCRIPT)
        raise ConfigError(f"no Snowflake {missing} configured.\n{ways}")

    account, host = parse_account(account_text)
    key_path = (
        given.get("SNOWFLAKE_PRIVATE_KEY_PATH")
        or connection.get("private_key_file")
        or connection.get("private_key_path")
        or "~/.ssh/snowflake_key.p8"
    )
    return Settings(
        account=account,
        user=user.strip().upper(),
        base_url=parse_host(given.get("SNOWFLAKE_HOST") or connection.get("host") or host),
        private_key_path=Path(key_path).expanduser(),
        passphrase=given.get("PRIVATE_KEY_PASSPHRASE") or connection.get("private_key_file_pwd"),
        given_master_key=given.get("LITELLM_MASTER_KEY"),
        warehouse=given.get("SNOWFLAKE_WAREHOUSE") or connection.get("warehouse"),
        proxy_port=_whole_number(given, "PROXY_PORT", default=8001, low=1, high=65535),
        refresh_seconds=60 * _whole_number(given, "REFRESH_MINUTES", default=50, low=1, high=55),
        claude_route=_claude_route(given),
        claude_route_from=(
            "the environment" if environ.get("CLAUDE_ROUTE") else ".env" if "CLAUDE_ROUTE" in given else ""
        ),
        folder=folder,
        origin=origin,
        sources=tuple(sources),
    )


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        mode = path.stat().st_mode
        values = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file (UTF-8).\nFix that file, or move it away.") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.\nFix it with: chmod u+r {path}") from None
    if mode & 0o077 and values.keys() & {"PRIVATE_KEY_PASSPHRASE", "LITELLM_MASTER_KEY"}:
        raise ConfigError(f"{path} holds a secret and other users can read it.\nFix it with: chmod 600 {path}")
    return values


def _edited_constants(script: Path) -> dict[str, str]:
    """ACCOUNT and USER as the user has edited them, read as text. Raises ConfigError with file and line for a typo."""
    text = script.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise _typo(script, line, f"this is no valid Python ({getattr(error, 'msg', error)})") from None
    found = {}
    for node in tree.body:
        names = [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
        if isinstance(node, ast.Assign) and names and names[0] in {"ACCOUNT", "USER"}:
            if not isinstance(node.value, ast.Constant) or not isinstance(node.value.value, str):
                raise _typo(script, node.lineno, f"{names[0]} must be text in quotes")
            found[names[0]] = node.value.value
    return {name: value for name, value in found.items() if not re.match(r"YOUR[-_]|$", value)}


def _typo(script: Path, line: int, what: str) -> ConfigError:
    return ConfigError(
        f'{script}, line {line}: {what}.\nWrite it like this, with both quotes: ACCOUNT = "MYORG-MYACCOUNT"\n'
        f"To see what was changed: git -C {shlex.quote(str(script.parent))} diff {script.name}"
    )


def exit_unless_readable() -> None:
    """End with one message where ACCOUNT and USER cannot be read, before Python meets the same typo."""
    try:
        _edited_constants(SCRIPT)
    except ConfigError as error:
        say(f"{SCRIPT.name}: {error}", sys.stderr)
        sys.exit(EX_CONFIG)


def snowflake_home(environ: Mapping[str, str]) -> Path:
    if environ.get("SNOWFLAKE_HOME"):
        return Path(environ["SNOWFLAKE_HOME"]).expanduser()
    home = Path(environ.get("HOME") or Path.home())
    # Where Snowflake's own tools look when ~/.snowflake does not exist.
    elsewhere = home / ("Library/Application Support" if sys.platform == "darwin" else ".config") / "snowflake"
    return elsewhere if elsewhere.is_dir() and not (home / ".snowflake").is_dir() else home / ".snowflake"


def _default_connection(folder: Path, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """(name, table) of the default connection; an empty table when there is none."""
    config = read_toml(folder / "config.toml")
    tables = read_toml(folder / "connections.toml") or config.get("connections", {})
    name = given.get("SNOWFLAKE_DEFAULT_CONNECTION_NAME") or config.get("default_connection_name") or "default"
    table = tables.get(name, {})
    return str(name), table if isinstance(table, dict) else {}


def read_toml(path: Path) -> dict[str, Any]:
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return tables
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}.\nFix that file, or move it away.") from None


def _whole_number(given: Mapping[str, str], name: str, *, default: int, low: int, high: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"{name} is {text!r}; it must be a whole number from {low} to {high}.")
    return int(text)


def _claude_route(given: Mapping[str, str]) -> str:
    word = given.get("CLAUDE_ROUTE", "chat")
    if word not in CLAUDE_ROUTES:
        raise ConfigError(
            f"CLAUDE_ROUTE is {word!r}; it must be chat (Cortex's chat completions) or messages (its Messages API)."
        )
    return word


def master_key(settings: Settings) -> str:
    """The key that Claude Code presents to the proxy: as given, or made at random once and kept in `.master_key`."""
    path = settings.folder / ".master_key"
    key = settings.given_master_key
    if not key:
        with suppress(FileNotFoundError):
            key = path.read_text(encoding="ascii").strip()
    if not key:
        # Refresher and proxy may start at the same time: the second to get here takes the key of the first.
        write_private(path, f"sk-{secrets.token_urlsafe(32)}\n", only_if_absent=True)
        key = path.read_text(encoding="ascii").strip()
    elif len(key) < 20:
        where = "LITELLM_MASTER_KEY" if settings.given_master_key else str(path)
        raise ConfigError(
            f"the key in {where} is too short to protect the proxy (fewer than 20 characters).\n"
            "Remove it, and a random one is made at the next start."
        )
    return key


def set_in_env_file(path: Path, name: str, value: str) -> None:
    """Set a variable in `.env`, and leave every other line as it is. Raises ConfigError."""
    if not path.exists():
        write_private(path, "# What else can be set here: .env.example\n")
    try:
        set_key(path, name, value, quote_mode="auto", follow_symlinks=True)
    except OSError as error:
        raise write_error(path, error) from None
