"""The settings, from the environment, `.env`, two constants in auto_refresh.py, and the connections in ~/.snowflake.

The first of these that has a value wins. The refresher reads the settings again when one of the files changes.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bundle.account import parse_account, parse_host, with_region
from bundle.bootstrap import BUNDLE, EX_CONFIG, make, script, state_folder
from bundle.connections import read_connections, snowflake_home
from bundle.credential import Credential, Pat, choose, pat_of, pats_of
from bundle.env_file import Entry, parse, read_text
from bundle.errors import ConfigError, printable, say
from bundle.files import folder_lock, read_own, refuse_foreign, write_private

AFTER_NEW_KEY = (
    f"To use the new key: {make('stop', 'start')}\n"
    f"If a plain `claude` uses the proxy: {script('point_claude.py')}\nThen start Claude Code again."
)

NAMES = (
    *("SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "SNOWFLAKE_PRIVATE_KEY_PATH", "PRIVATE_KEY_PASSPHRASE", "SNOWFLAKE_HOST"),
    *("SNOWFLAKE_PAT", "SNOWFLAKE_PAT_FILE"),
    *("SNOWFLAKE_DEFAULT_CONNECTION_NAME", "SNOWFLAKE_WAREHOUSE", "LITELLM_MASTER_KEY", "CLAUDE_ROUTE", "PROXY_PORT"),
    *("REFRESH_MINUTES", "CLAUDE_START_MODEL", "CLAUDE_START_EFFORT", "PRICE_FACTOR"),
    *("LEDGER", "BUDGET_USD_PER_DAY", "LOG_REQUESTS"),
)
SWITCHES = {"on": True, "1": True, "true": True, "yes": True, "off": False, "0": False, "false": False, "no": False}
# Names of other programs that look like one of ours.
THEIR_NAMES = frozenset({"SNOWFLAKE_HOME", "SNOWFLAKE_PORT", "SNOWFLAKE_ROLE", "SNOWFLAKE_PASSWORD"})

# No file with one of these may be open to others.
SECRETS = frozenset({"PRIVATE_KEY_PASSPHRASE", "LITELLM_MASTER_KEY", "SNOWFLAKE_PAT"})

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
    pat: Pat | None = None  # the programmatic access token in use; None: the key pair is used
    key_named_by: str = ""  # what names the private key; empty: it is only looked for in its usual place
    pat_note: str = ""  # about a programmatic access token that is there, but not used
    passphrase: str | None = field(default=None, repr=False)
    given_master_key: str | None = field(default=None, repr=False)
    claude_route: str = "chat"  # one of CLAUDE_ROUTES
    claude_route_from: str = ""  # "the environment" or ".env"; empty: CLAUDE_ROUTE is not set
    start_model: str = ""  # what Claude Code starts with; empty: bundle/claude_models.py decides
    start_effort: str = ""  # (like start_model, claude_models.py checks it: a mistake must not stop the refresher)
    price_factor: float | None = None  # what the prices are multiplied with; None: bundle/prices.py decides
    ledger: bool = True  # whether each answer gets a line in the ledger
    budget: float | None = None  # US dollars that may be spent on a day; None: no limit
    budget_from: str = ""  # the place of BUDGET_USD_PER_DAY, for messages
    log_requests: bool = False  # whether each request gets a line in the log
    origin: str = ""  # where account and user came from, for messages
    notes: tuple[str, ...] = ()  # what looks like a mistake, but may be none
    sources: tuple[Path, ...] = ()

    @property
    def template_path(self) -> Path:
        return BUNDLE / "litellm_config.template.yaml"

    @property
    def config_path(self) -> Path:
        return self.folder / "litellm_config.yaml"


SCRIPT = BUNDLE / "auto_refresh.py"  # holds the two constants that a user may edit


class MissingSettingsError(ConfigError):
    """No account or no user is configured: `missing` names them, `notes` says what looks like a mistake."""

    def __init__(self, message: str, missing: tuple[str, ...], notes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.missing, self.notes = missing, notes


WAYS_TO_CONFIGURE = """Say which Snowflake account and user to use, in one of three ways:
  1. SNOWFLAKE_ACCOUNT and SNOWFLAKE_USER in the environment or in {env_file} (copy .env.example)
  2. ACCOUNT and USER at the top of {script}
  3. a default connection in ~/.snowflake/connections.toml, as the command `snow` uses it"""


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. Raises ConfigError, with the remedy, if a setting is missing or wrong."""
    environ = os.environ if environ is None else environ
    folder = state_folder(environ)
    env_file = folder / ".env"
    given = _Given(environ, env_file)
    connections_folder = snowflake_home(environ)
    sources = [env_file, SCRIPT, connections_folder / "connections.toml", connections_folder / "config.toml"]

    constants = _edited_constants(SCRIPT)
    account_text = given.get("SNOWFLAKE_ACCOUNT") or constants.get("ACCOUNT")
    user = given.get("SNOWFLAKE_USER") or constants.get("USER")
    origin = given.place("SNOWFLAKE_ACCOUNT") or SCRIPT.name
    connections = read_connections(connections_folder)
    name = given.get("SNOWFLAKE_DEFAULT_CONNECTION_NAME") or connections.default
    connection = connections.tables.get(name, {})
    # A connection's key and warehouse belong to its account and user. If others are set, the connection is not used.
    configured = {"account": account_text, "user": user}
    if any(value and value.upper() != connection.get(key, "").upper() for key, value in configured.items()):
        connection = {}
    connection_origin = f"connection [{name}] in {connections_folder}"
    if not account_text and connection:
        origin = connection_origin
        account_text = with_region(connection.get("account", ""), connection.get("region", ""))
    user = user or connection.get("user")
    if not account_text or not user:
        missing = tuple(word for word, value in (("account", account_text), ("user", user)) if not value)
        lines = [f"no Snowflake {' and '.join(missing)} configured.", *given.notes()]
        ways = WAYS_TO_CONFIGURE.format(env_file=env_file, script=SCRIPT)
        raise MissingSettingsError("\n".join([*lines, ways]), missing, given.notes())

    try:
        account, host = parse_account(account_text)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    host_origin = f"SNOWFLAKE_HOST in {given.place('SNOWFLAKE_HOST')}"
    if not given.get("SNOWFLAKE_HOST"):
        host_origin = f"`host` of {connection_origin}"
    credential = _credential(given, connection, connection_origin, connections.file)
    passphrase = connection.get("private_key_file_pwd") or connection.get("private_key_passphrase")
    return Settings(
        account=account,
        user=user.strip().upper(),
        base_url=parse_host(given.get("SNOWFLAKE_HOST") or connection.get("host") or host, host_origin),
        private_key_path=credential.key,
        key_named_by=credential.named_by,
        pat=credential.pat,
        pat_note=credential.note,
        passphrase=given.get("PRIVATE_KEY_PASSPHRASE") or passphrase,
        given_master_key=given.get("LITELLM_MASTER_KEY"),
        warehouse=given.get("SNOWFLAKE_WAREHOUSE") or connection.get("warehouse"),
        proxy_port=given.whole_number("PROXY_PORT", default=8001, low=1, high=65535),
        refresh_seconds=60 * given.whole_number("REFRESH_MINUTES", default=50, low=1, high=55),
        claude_route=given.claude_route(),
        start_model=given.get("CLAUDE_START_MODEL") or "",
        start_effort=(given.get("CLAUDE_START_EFFORT") or "").lower(),
        claude_route_from=given.kind("CLAUDE_ROUTE"),
        price_factor=given.number("PRICE_FACTOR", low=0.1, high=10, example="1.1"),
        ledger=given.ledger(),
        budget=given.number("BUDGET_USD_PER_DAY", low=0.01, high=1_000_000, example="2.50"),
        budget_from=given.place("BUDGET_USD_PER_DAY"),
        log_requests=given.switch("LOG_REQUESTS", default=False),
        folder=folder,
        origin=origin,
        notes=given.notes(),
        sources=(*sources, *credential.files),
    )


def _credential(given: _Given, connection: Mapping[str, str], origin: str, file: Path) -> Credential:
    """The private key or the programmatic access token. `origin` and `file` say where the connection stands."""
    name = "private_key_file" if connection.get("private_key_file") else "private_key_path"
    in_connection = connection.get(name)
    named_by = f"{name} of {origin}" if in_connection else ""
    if place := given.place("SNOWFLAKE_PRIVATE_KEY_PATH"):
        named_by = f"SNOWFLAKE_PRIVATE_KEY_PATH in {place}"
    key = given.get("SNOWFLAKE_PRIVATE_KEY_PATH") or in_connection or "~/.ssh/snowflake_key.p8"
    return choose(
        Path(key).expanduser(),
        named_by,
        pats_of(
            given.file,
            given.in_file("SNOWFLAKE_PAT"),
            given.get("SNOWFLAKE_PAT_FILE") or "",
            pat_of(connection, origin, file),
            given.environ.get("SNOWFLAKE_PAT", ""),
        ),
    )


def host_of(environ: Mapping[str, str], default: str) -> str:
    """The https address of SNOWFLAKE_HOST, or of this host of the account."""
    given = _Given(environ, state_folder(environ) / ".env")
    where = f"SNOWFLAKE_HOST in {given.place('SNOWFLAKE_HOST')}"
    return parse_host(given.get("SNOWFLAKE_HOST") or default, where)


class _Given:
    """The settings of the environment and of `.env`, each with the place where it stands, for messages."""

    def __init__(self, environ: Mapping[str, str], env_file: Path) -> None:
        self.environ, self.file = environ, env_file
        self._entries = {entry.name: entry for entry in _read_env_file(env_file)}

    def get(self, name: str) -> str | None:
        in_file = self._entries.get(name)
        return self.environ.get(name) or (in_file and in_file.value) or None

    def in_file(self, name: str) -> str:
        entry = self._entries.get(name)
        return entry.value if entry else ""

    def kind(self, name: str) -> str:
        """ "the environment", ".env", or "" if nothing sets it."""
        return "the environment" if self.environ.get(name) else ".env" if self.get(name) else ""

    def place(self, name: str) -> str:
        """Like `kind`, with the file's path and the line."""
        kind = self.kind(name)
        return f"{self.file}, line {self._entries[name].line}" if kind == ".env" else kind

    def notes(self) -> tuple[str, ...]:
        """A note for each name in `.env` that is almost one of ours."""
        notes = []
        for entry in self._entries.values():
            if entry.name not in {*NAMES, *THEIR_NAMES}:
                for meant in difflib.get_close_matches(entry.name.upper(), NAMES, n=1, cutoff=0.8):
                    wrong = printable(entry.name, 60)
                    notes.append(f"{self.file}, line {entry.line}: {wrong} is no setting. Did you mean {meant}?")
        return tuple(notes)

    def whole_number(self, name: str, *, default: int, low: int, high: int) -> int:
        text = self.get(name)
        if text is None:
            return default
        if not text.isdecimal() or not low <= int(text) <= high:
            raise self._mistake(name, text, f"it must be a whole number from {low} to {high}")
        return int(text)

    def number(self, name: str, *, low: float, high: float, example: str) -> float | None:
        text = self.get(name)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise self._mistake(name, text, f"it must be a number from {low:g} to {high:.0f}, such as {example}")
        return float(text)

    def switch(self, name: str, *, default: bool) -> bool:
        text = self.get(name)
        if text is not None and text.lower() not in SWITCHES:
            raise self._mistake(name, text, "it must be on or off")
        return default if text is None else SWITCHES[text.lower()]

    def ledger(self) -> bool:
        ledger = self.switch("LEDGER", default=True)
        if not ledger and self.get("BUDGET_USD_PER_DAY"):
            raise ConfigError(
                f"{self.place('LEDGER')}: LEDGER is off, but the limit of BUDGET_USD_PER_DAY needs the ledger.\n"
                "Remove one of the two."
            )
        return ledger

    def claude_route(self) -> str:
        route = self.get("CLAUDE_ROUTE") or "chat"
        if route not in CLAUDE_ROUTES:
            must = "it must be chat (chat completions) or messages (Messages API)"
            raise self._mistake("CLAUDE_ROUTE", route, must)
        return route

    def _mistake(self, name: str, text: str, must: str) -> ConfigError:
        return ConfigError(f"{self.place(name)}: {name} is {printable(text, 60)!r}; {must}.")


def _read_env_file(path: Path) -> list[Entry]:
    try:
        status = path.stat()
        refuse_foreign(path, status)
        last = {entry.name: entry for entry in parse(read_text(path), path)}  # of two lines, the last one counts
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file (UTF-8).\nFix that file, or move it away.") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}.\nFix it with: chmod u+r {shlex.quote(str(path))}"
        ) from None
    entries = [entry for entry in last.values() if entry.value]
    secrets_there = SECRETS & {entry.name for entry in entries}
    if status.st_mode & 0o077 and secrets_there:
        fix = f"Fix it with: chmod 600 {shlex.quote(str(path))}"
        raise ConfigError(f"{path} holds a secret and other users can read it.\n{fix}")
    return entries


def _edited_constants(script: Path) -> dict[str, str]:
    """ACCOUNT and USER from the script's text, if the user has set them. A typo raises ConfigError with its line."""
    try:
        text = script.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # the folder is being renamed or deleted
        return {}
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
    # Refresher and proxy may start at the same time: both then use the key that was written first.
    with folder_lock(path.parent):
        if path.exists() and not saved_key(settings):  # an empty file protects nothing
            say(f"{path} was empty: it has a new random key now.\n{AFTER_NEW_KEY}", sys.stderr)
            path.unlink(missing_ok=True)
        write_private(path, f"sk-{secrets.token_urlsafe(32)}\n", only_if_absent=True)
    return checked_key(saved_key(settings), str(path))


def renew_key(settings: Settings) -> str:
    """Replace the proxy's key, because another program may have been sent it. Returns the message for the user."""
    if settings.given_master_key:
        return f"That program may have been sent LITELLM_MASTER_KEY: choose another key.\n{AFTER_NEW_KEY}"
    write_private(key_file(settings), f"sk-{secrets.token_urlsafe(32)}\n")
    return f"That program may have been sent the proxy's key, so {key_file(settings)} has a new one.\n{AFTER_NEW_KEY}"
