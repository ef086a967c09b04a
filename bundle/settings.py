"""The settings, from the environment, `.env`, two constants in auto_refresh.py, and the connections in ~/.snowflake.

The first of these that has a value wins. The refresher reads the settings again when one of the files changes.
"""

from __future__ import annotations

import ast
import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values, set_key

from bundle.account import parse_account, parse_host
from bundle.bootstrap import BUNDLE, EX_CONFIG, make, script
from bundle.errors import ConfigError, say
from bundle.files import read_own, refuse_foreign, write_error, write_private

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AFTER_NEW_KEY = f"""\
To use the new key: {make("stop", "start")}
If a plain `claude` uses the proxy: {script("point_claude.py")}
Then start Claude Code again."""

# The values of CLAUDE_ROUTE, each with the LiteLLM provider that it puts into the rows of Claude models.
CLAUDE_ROUTES: Mapping[str, str] = {"chat": "openai", "messages": "snowflake"}


@dataclass(frozen=True)
class Settings:
    """All settings, already checked. The bundle writes its files to `folder`; `sources` are the files with settings."""

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
    claude_route: str = "chat"  # one of CLAUDE_ROUTES
    claude_route_from: str = ""  # "the environment" or ".env"; empty: CLAUDE_ROUTE is not set
    origin: str = ""  # where account and user came from, for messages
    sources: tuple[Path, ...] = ()

    @property
    def template_path(self) -> Path:
        return BUNDLE / "litellm_config.template.yaml"

    @property
    def config_path(self) -> Path:
        return self.folder / "litellm_config.yaml"


SCRIPT = BUNDLE / "auto_refresh.py"  # holds the two constants that a user may edit

WAYS_TO_CONFIGURE = """Say which Snowflake account and user to use, in one of three ways:
  1. SNOWFLAKE_ACCOUNT and SNOWFLAKE_USER in the environment or in {env_file} (copy .env.example)
  2. ACCOUNT and USER at the top of {script}
  3. a default connection in ~/.snowflake/connections.toml, as the command `snow` uses it"""


def state_folder(environ: Mapping[str, str]) -> Path:
    """The folder for the files that the bundle writes: CORTEX_HOME (which `make demo` sets), or the bundle's folder."""
    return Path(environ["CORTEX_HOME"]).expanduser().resolve() if environ.get("CORTEX_HOME") else BUNDLE


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. Raises ConfigError, with the remedy, if a setting is missing or wrong."""
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
    tables, default = read_connections(connections_folder)
    name = given.get("SNOWFLAKE_DEFAULT_CONNECTION_NAME") or default
    connection = tables.get(name, {})
    # A connection's key and warehouse belong to its account and user. If others are set, the connection is not used.
    configured = {"account": account_text, "user": user}
    if any(value and value.upper() != str(connection.get(key, "")).upper() for key, value in configured.items()):
        connection = {}
    elif not account_text and connection:
        origin = f"connection [{name}] in {connections_folder}"
    account_text = account_text or connection.get("account")
    user = user or connection.get("user")
    if not account_text or not user:
        missing = " and ".join(word for word, value in (("account", account_text), ("user", user)) if not value)
        ways = WAYS_TO_CONFIGURE.format(env_file=env_file, script=SCRIPT)
        # configure.py recognizes this message by its first line.
        raise ConfigError(f"no Snowflake {missing} configured.\n{ways}")

    account, host = parse_account(account_text)
    key_in_connection = connection.get("private_key_file") or connection.get("private_key_path")
    key_path = given.get("SNOWFLAKE_PRIVATE_KEY_PATH") or key_in_connection or "~/.ssh/snowflake_key.p8"
    route_from = "the environment" if environ.get("CLAUDE_ROUTE") else ".env" if "CLAUDE_ROUTE" in given else ""
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
        claude_route_from=route_from,
        folder=folder,
        origin=origin,
        sources=tuple(sources),
    )


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        status = path.stat()
        refuse_foreign(path, status)
        values = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file (UTF-8).\nFix that file, or move it away.") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}.\nFix it with: chmod u+r {shlex.quote(str(path))}"
        ) from None
    if status.st_mode & 0o077 and values.keys() & {"PRIVATE_KEY_PASSPHRASE", "LITELLM_MASTER_KEY"}:
        fix = f"Fix it with: chmod 600 {shlex.quote(str(path))}"
        raise ConfigError(f"{path} holds a secret and other users can read it.\n{fix}")
    return values


def _edited_constants(script: Path) -> dict[str, str]:
    """ACCOUNT and USER from the script's text, if the user has set them. A typo raises ConfigError with its line."""
    text = script.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise _typo(script, line, f"this is not valid Python ({getattr(error, 'msg', error)})") from None
    found = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="ACCOUNT" | "USER" as name)], value=ast.Constant(value=str(value))):
                found[name] = value
            case ast.Assign(targets=[ast.Name(id="ACCOUNT" | "USER" as name)]):
                raise _typo(script, node.lineno, f"{name} must be text in quotes")
    return {name: value for name, value in found.items() if not re.match(r"YOUR[-_]|$", value)}


def _typo(script: Path, line: int, what: str) -> ConfigError:
    return ConfigError(
        f'{script}, line {line}: {what}.\nWrite it like this, with both quotes: ACCOUNT = "MYORG-MYACCOUNT"\n'
        f"To see what was changed: git -C {shlex.quote(str(script.parent))} diff {script.name}"
    )


def exit_on_typo() -> None:
    """Exit with a message if ACCOUNT and USER cannot be read, before Python fails on the same typo."""
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


def read_connections(folder: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The connections of Snowflake's own tools by name, and the name of the default connection."""
    config = _read_toml(folder / "config.toml")
    tables = _read_toml(folder / "connections.toml") or config.get("connections", {})
    connections = {name: table for name, table in tables.items() if isinstance(table, dict)}
    return connections, str(config.get("default_connection_name") or "default")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
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
    route = given.get("CLAUDE_ROUTE", "chat")
    if route not in CLAUDE_ROUTES:
        raise ConfigError(f"CLAUDE_ROUTE is {route!r}; it must be chat (chat completions) or messages (Messages API).")
    return route


def checked_key(key: str, where: str = "LITELLM_MASTER_KEY") -> str:
    """The key, if it can protect the proxy; otherwise raises ConfigError. Every key that is used has passed here."""
    if not re.fullmatch(r"[!-~][ -~]{18,}[!-~]", key):
        raise ConfigError(
            f"the key in {where} cannot protect the proxy: it must have at least 20 printable ASCII characters.\n"
            "Remove that key: the next start makes a random one."
        )
    return key


def key_file(settings: Settings) -> Path:
    return settings.folder / ".master_key"


def saved_key(settings: Settings) -> str:
    """The proxy's key, or "" if none was made yet. Raises ConfigError for a key that cannot protect the proxy."""
    if settings.given_master_key:
        return checked_key(settings.given_master_key)
    path = key_file(settings)
    try:
        text = read_own(path).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}.\nCheck with: ls -ld {shlex.quote(str(path))}"
        ) from None
    return checked_key(text, str(path)) if text else ""


def master_key(settings: Settings) -> str:
    """The key that Claude Code sends to the proxy: LITELLM_MASTER_KEY, or a random one that `.master_key` keeps."""
    path = key_file(settings)
    if key := saved_key(settings):
        return key
    if path.exists():  # an empty file protects nothing
        say(f"{path} was empty: it has a new random key now.\n{AFTER_NEW_KEY}", sys.stderr)
        path.unlink(missing_ok=True)
    # Refresher and proxy may start at the same time: both then use the key that was written first.
    write_private(path, f"sk-{secrets.token_urlsafe(32)}\n", only_if_absent=True)
    return checked_key(saved_key(settings), str(path))


def renew_key(settings: Settings) -> str:
    """Replace the proxy's key, because another program may have been sent it. Returns the message for the user."""
    if settings.given_master_key:
        return f"It may have been sent LITELLM_MASTER_KEY: choose another key.\n{AFTER_NEW_KEY}"
    write_private(key_file(settings), f"sk-{secrets.token_urlsafe(32)}\n")
    return f"It may have been sent the proxy's key, so {key_file(settings)} has a new one.\n{AFTER_NEW_KEY}"


def set_in_env_file(path: Path, name: str, value: str) -> None:
    """Set a variable in `.env` and keep every other line. Raises ConfigError."""
    if not path.exists():
        write_private(path, "# .env.example lists what else can be set here.\n")
    try:
        set_key(path, name, value, quote_mode="auto", follow_symlinks=True)
    except OSError as error:
        raise write_error(path, error) from None
