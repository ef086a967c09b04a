"""What this machine knows that must not be in a bug report: the values of settings, its names, its folders. And which
settings are in force, without their values."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from bundle.bootstrap import BUNDLE
from bundle.checks.finding import Installation
from bundle.checks.processes import SECRET_NAME
from bundle.claude_models import START_EFFORTS
from bundle.connections import snowflake_home
from bundle.refresher import read_state
from bundle.report import account_names, assigned
from bundle.settings import CLAUDE_ROUTES, SCRIPT, SWITCHES
from bundle.supervisor import pm2_home

SWITCH = re.compile("|".join(SWITCHES), re.IGNORECASE)
# Each setting with the word that stands in place of its value, or with the pattern of the values that tell nothing.
SETTINGS: Mapping[str, str | re.Pattern[str]] = {
    "SNOWFLAKE_ACCOUNT": "account",
    "SNOWFLAKE_USER": "user",
    "SNOWFLAKE_HOST": "host",
    "SNOWFLAKE_PRIVATE_KEY_PATH": "key file",
    "PRIVATE_KEY_PASSPHRASE": "passphrase",
    "SNOWFLAKE_PAT": "token",
    "SNOWFLAKE_PAT_FILE": "token file",
    "SNOWFLAKE_DEFAULT_CONNECTION_NAME": "connection",
    "SNOWFLAKE_WAREHOUSE": "warehouse",
    "LITELLM_MASTER_KEY": "key",
    "CLAUDE_ROUTE": re.compile("|".join(CLAUDE_ROUTES)),
    "PROXY_PORT": re.compile(r"\d{1,5}"),
    "REFRESH_MINUTES": re.compile(r"\d{1,2}"),
    "CLAUDE_START_MODEL": re.compile(r"(?:claude|openai)-[a-z0-9.-]+(?:\[1m\])?|[a-z]{4,8}"),
    "CLAUDE_START_EFFORT": re.compile("|".join(START_EFFORTS)),
    "PRICE_FACTOR": re.compile(r"\d{1,2}(?:\.\d{1,9})?"),
    "LEDGER": SWITCH,
    "BUDGET_USD_PER_DAY": re.compile(r"\d{1,7}(?:\.\d{1,9})?"),
    "LOG_REQUESTS": SWITCH,
}
# Other variables that change what happens.
VARIABLES: Mapping[str, str] = {
    **dict.fromkeys(("CORTEX_HOME", "SNOWFLAKE_HOME", "PM2_HOME"), "folder"),
    **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"), "company proxy"),
    **dict.fromkeys(("https_proxy", "http_proxy", "all_proxy", "no_proxy"), "company proxy"),
    **dict.fromkeys(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), "certificates"),
    "ANTHROPIC_BASE_URL": "host",
}
NAMES_NOTHING = frozenset({"localhost", "127.0.0.1", "::1", "snowflake", "default", "true", "false", "/", "."})


def private_values(installation: Installation) -> dict[str, str]:
    """Each private value that this machine knows, with its kind: from settings, valid or not, and from the system."""
    environ, found = installation.environ, dict[str, str]()

    def add(kind: str, *values: object, least: int = 4) -> None:
        for text in (str(value or "").strip() for value in values):
            if len(text) >= least and text.lower() not in NAMES_NOTHING:
                found.setdefault(text, kind)

    def add_setting(name: str, value: str) -> None:
        kind = SETTINGS.get(name) or VARIABLES.get(name, "setting")
        if isinstance(kind, re.Pattern):  # a value that is not valid may be a secret in the wrong place
            add("setting", "" if kind.fullmatch(value) else value)
        elif kind == "account":
            add(kind, *account_names(value), least=1)
        elif kind == "host":
            with suppress(ValueError):
                add(kind, urlsplit(value if "://" in value else f"//{value}").hostname)
        else:
            add(kind, value, least=1 if name in SETTINGS else 4)

    home = environ.get("HOME") or str(Path.home())
    folders = {"bundle": BUNDLE, "state": installation.folder, "pm2": pm2_home(environ), "home": Path(home)}
    for kind, folder in folders.items():
        add(kind, folder, folder.resolve(), least=2)
    for name, value in _settings_of(installation):
        add_setting(name, value)
    for name, value in environ.items():
        if name in SETTINGS or name in VARIABLES:
            add_setting(name, value)
        elif SECRET_NAME.search(name):
            add("key", value, least=6)
    state = read_state(installation.folder)  # the refresher may still run with other settings
    add("account", *account_names(str(state.get("account") or "")), least=1)
    add("user", state.get("user"), least=1)
    if settings := installation.valid_settings:
        add("account", *account_names(settings.account), least=1)
        add("user", settings.user, least=1)
        add("host", urlsplit(settings.base_url).hostname, least=1)
        add("key file", settings.private_key_path)
        if settings.pat and settings.pat.path:
            add("token file", settings.pat.path)
            add("token", text_of(settings.pat.path))
        add("warehouse", settings.warehouse, least=1)
        add("passphrase", settings.passphrase, least=1)
    add("key", text_of(installation.folder / ".master_key"))
    config = assigned(text_of(installation.folder / "litellm_config.yaml"))
    add("key", *(value for name, value in config if name in {"api_key", "master_key"}), least=8)
    proxies = [value for name, value in environ.items() if name.lower().endswith("_proxy")] + [*getproxies().values()]
    for value in ",".join(proxies).split(","):
        with suppress(ValueError):
            parts = urlsplit(value if "://" in value else f"//{value}")
            add("company proxy", value, parts.netloc, parts.hostname, parts.username, parts.password, least=2)
    with suppress(Exception):  # a container may have a number for a user, and no name
        add("user", getpass.getuser(), least=1)
    add("user", *(environ.get(name) for name in ("USER", "LOGNAME", "SUDO_USER")), least=1)
    machine = socket.gethostname()
    add("machine", machine, machine.partition(".")[0], environ.get("HOSTNAME"), least=1)
    return found


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _settings_of(installation: Installation) -> Iterator[tuple[str, str]]:
    """(name, value) of everything that is set in a file, also in one that is not valid."""
    yield from assigned(text_of(installation.folder / ".env"))
    yield from _constants()
    folder = snowflake_home(installation.environ)
    for name, value in (*assigned(text_of(folder / "connections.toml")), *assigned(text_of(folder / "config.toml"))):
        setting = "SNOWFLAKE_PAT" if name == "token" else f"SNOWFLAKE_{name.upper()}"
        if name not in {"authenticator", "protocol"}:
            yield setting if setting in SETTINGS else name, value


def _constants() -> Iterator[tuple[str, str]]:
    """The two constants of auto_refresh.py, if the user has set them."""
    for name, value in assigned(text_of(SCRIPT)):
        if name in {"ACCOUNT", "USER"} and not re.match(r"[\"']?(YOUR[-_]|[\"']?$)", value):
            yield f"SNOWFLAKE_{name}", value


def settings_in_force(installation: Installation) -> str:
    """The names of the settings and where each is set. A value is shown only if it can tell nothing."""
    places: Mapping[str, Mapping[str, str]] = {
        "the environment": installation.environ,
        ".env": dict(assigned(text_of(installation.folder / ".env"))),
        "auto_refresh.py": dict(_constants()),
    }
    lines = []
    for name in (*SETTINGS, *VARIABLES):
        place = next((place for place, values in places.items() if values.get(name)), "")
        kind = SETTINGS.get(name)
        value = str(places[place][name]) if place else ""
        shown = f": {value}" if isinstance(kind, re.Pattern) and kind.fullmatch(value) else ""
        if place or name in SETTINGS:
            lines.append(f"{name:<34} {f'set in {place}{shown}' if place else 'not set'}")
    valid = "" if installation.valid_settings else "\nThe settings are not valid: see Account, under doctor."
    return "\n".join(lines) + valid
