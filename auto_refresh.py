#!/usr/bin/env python3
"""Keep a live Snowflake credential in LiteLLM's configuration.

Snowflake's key-pair JWTs live one hour, a working day lasts longer, and LiteLLM reads its credential once, at start.
This process signs a new token every 50 minutes and rewrites `litellm_config.yaml` from `litellm_config.template.yaml`;
the proxy (`patches/cortex_hooks.py`) looks at that file on each request. Nothing else passes between the two.

    python auto_refresh.py                    run for ever (PM2 does this, as `token-refresher`)
    python auto_refresh.py --once             sign, write, end
    python auto_refresh.py --status [--json]  what the running refresher last did
    python auto_refresh.py --public-key       the SQL that registers the key with Snowflake

Security invariants
- The private key is read from its file for each signature and never kept, copied or printed.
- A token is written to one file only: mode 0600 from birth, replaced atomically.
- No message, state file or exception text contains a token, a passphrase or the master key.
"""
# ruff: noqa: E402 - the two lines that a user may edit come before the imports

from __future__ import annotations

# The simplest way to configure the bundle: put your account identifier (hyphens, not underscores) and your login name
# here. The environment, `.env` and the default connection of ~/.snowflake work too; see `load_settings`.
ACCOUNT = "YOUR-ACCOUNT"
USER = "YOUR_USER"

import argparse
import ast
import base64
import errno
import fcntl
import hashlib
import ipaddress
import json
import os
import random
import re
import secrets
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from bundle.bootstrap import BUNDLE, EX_CONFIG, PM2, enter_venv

if __name__ == "__main__":
    enter_venv()

import jwt
import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from dotenv import dotenv_values

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOKEN_SECONDS = 3600  # Snowflake's ceiling; a later `exp` does not lengthen it
POLL_SECONDS = 2.0  # how soon an edit is noticed; a `stat` of six files costs nothing
RETRY_CEILING_SECONDS = 60.0
LOG_BYTES = 10 * 2**20  # and as much again beside it
WARN_SECONDS = 600  # with less than this left, a failing refresh is no longer a passing thing


def say(text: str, file: TextIO | None = None) -> None:
    """Lines for the log. PM2 holds the other end of the pipe, and its death must not look like a failure of ours."""
    with suppress(OSError):
        # In one write, its end included: of what comes without one PM2 leaves out the last line.
        print(f"{text}\n", end="", file=file, flush=True)


def bound_log(environ: Mapping[str, str]) -> None:
    """Keep the log that PM2 writes for this process from growing without end. (PM2's own way is to download a module.)

    PM2 appends, so that what is cut off here comes no more; the part before the cut stays in `NAME.log.1`.
    """
    path = environ.get("pm_out_log_path")
    if not path:
        return
    with suppress(OSError):
        if Path(path).stat().st_size > LOG_BYTES:
            with suppress(OSError):  # no room for a copy: then it is the more urgent to make some
                shutil.copyfile(path, f"{path}.1")
            os.truncate(path, 0)


class ConfigError(Exception):
    """A mistake that the user can mend; `str()` is the whole message: what, where, why and the remedy."""


# ---------------------------------------------------------------------------------------------------------- settings


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
    snowflake_home = _snowflake_home(environ)
    sources = [env_file, Path(__file__), snowflake_home / "connections.toml", snowflake_home / "config.toml"]

    constants = _edited_constants(Path(__file__))
    account_text = given.get("SNOWFLAKE_ACCOUNT") or constants.get("ACCOUNT")
    user = given.get("SNOWFLAKE_USER") or constants.get("USER")
    origin = "the environment or .env" if given.get("SNOWFLAKE_ACCOUNT") else "auto_refresh.py"
    # A connection is one thing: when account or user say something else, its key and warehouse are not ours to use.
    name, connection = _default_connection(snowflake_home, given)
    agrees = all(
        not ours or ours.upper() == str(connection.get(key, "")).upper()
        for ours, key in ((account_text, "account"), (user, "user"))
    )
    if not agrees:
        connection = {}
    elif not account_text and connection:
        origin = f"connection [{name}] in {snowflake_home}"
    account_text = account_text or connection.get("account")
    user = user or connection.get("user")
    if not account_text or not user:
        missing = " and ".join(word for word, value in (("account", account_text), ("user", user)) if not value)
        ways = WAYS_TO_CONFIGURE.format(env_file=env_file, script=BUNDLE / "auto_refresh.py")
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
        raise ConfigError(f"{path} is not a text file (UTF-8).\nMend that file, or move it away.") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.\nMend it with: chmod u+r {path}") from None
    if mode & 0o077 and values.keys() & {"PRIVATE_KEY_PASSPHRASE", "LITELLM_MASTER_KEY"}:
        raise ConfigError(f"{path} holds a secret and other users can read it.\nMend it with: chmod 600 {path}")
    return values


def _edited_constants(script: Path) -> dict[str, str]:
    # Read from the file and not from this module, so that an edit counts without a restart, in every process.
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{script} is no longer valid Python: {error}.\nSee what changed with: git diff {script}"
        ) from None
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in {"ACCOUNT", "USER"}
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and not re.match(r"YOUR[-_]|$", node.value.value)
    }


def _snowflake_home(environ: Mapping[str, str]) -> Path:
    if environ.get("SNOWFLAKE_HOME"):
        return Path(environ["SNOWFLAKE_HOME"]).expanduser()
    home = Path(environ.get("HOME") or Path.home())
    # Where Snowflake's own tools look when ~/.snowflake does not exist.
    elsewhere = home / ("Library/Application Support" if sys.platform == "darwin" else ".config") / "snowflake"
    return elsewhere if elsewhere.is_dir() and not (home / ".snowflake").is_dir() else home / ".snowflake"


def _default_connection(snowflake_home: Path, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """(name, table) of the default connection; an empty table when there is none."""
    config = _read_toml(snowflake_home / "config.toml")
    tables = _read_toml(snowflake_home / "connections.toml") or config.get("connections", {})
    name = given.get("SNOWFLAKE_DEFAULT_CONNECTION_NAME") or config.get("default_connection_name") or "default"
    table = tables.get(name, {})
    return str(name), table if isinstance(table, dict) else {}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return tables
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}.\nMend that file, or move it away.") from None


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


_DOMAIN = re.compile(r"(?P<private>\.privatelink)?\.snowflakecomputing\.(?P<top>com|cn)$")
_LOCATOR = re.compile(r"[a-z]{2,3}\d{4,6}$")
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-?\d+$|.*(west|north|east|south|central)")


def parse_account(text: str) -> tuple[str, str]:
    """Read an account identifier, host name or URL; return (account for the claims, default host).

    `ORG-ACCOUNT` and `ORG.ACCOUNT` give ORG-ACCOUNT; `LOCATOR.region[.cloud]` gives LOCATOR
    (docs/cortex.md#jwt-account).
    Raises ConfigError when the text is no identifier or could be read both ways.
    """
    name = text.strip().lower()
    if "//" in name or "/" in name:
        parts = urlsplit(name if "//" in name else f"//{name}")
        first, second, *_ = [*parts.path.strip("/").split("/"), "", ""]
        if (parts.hostname or "").startswith("app.snowflake.") and second:  # Snowsight: ORG/ACCOUNT or region/LOCATOR
            name = f"{second}.{first}" if _REGION.match(first) and _LOCATOR.match(second) else f"{first}-{second}"
        else:
            name = parts.hostname or ""
    domain = _DOMAIN.search(name)
    suffix = domain.group(0) if domain else ".snowflakecomputing.com"
    name = name[: domain.start()] if domain else name
    labels = name.split(".")
    if not all(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", label) for label in labels) or name.startswith("your-"):
        raise ConfigError(
            f"{text!r} is not a Snowflake account identifier.\n"
            "It looks like MYORG-MYACCOUNT; run this in Snowsight to see yours:\n"
            "  SELECT CURRENT_ORGANIZATION_NAME() || '-' || CURRENT_ACCOUNT_NAME();"
        )
    head, rest = labels[0], labels[1:]
    if rest == ["global"]:
        return head.split("-")[0].upper(), f"{name}{suffix}"
    if len(rest) == 1 and not domain:
        is_locator, is_region = bool(_LOCATOR.match(head)), bool(_REGION.match(rest[0]))
        if is_locator != is_region:
            raise ConfigError(
                f"the account {text!r} can be read in two ways. Write the one that you mean:\n"
                f"  {head}-{rest[0]}     organization {head}, account {rest[0]}\n"
                f"  {head}.{rest[0]}.aws  account locator {head} in region {rest[0]} (or .azure, .gcp)"
            )
        if not is_locator:
            head, rest = f"{head}-{rest[0]}", []
    host = ".".join([head, *rest]).replace("_", "-")
    return head.upper(), f"{host}{suffix}"


def parse_host(text: str) -> str:
    """Return https://HOST for a host name or URL; plain http is taken for a loopback address only (the stand-in)."""
    parts = urlsplit(text if "://" in text else f"https://{text}")
    host = parts.hostname or ""
    if (
        parts.path.strip("/")
        or parts.query
        or not re.fullmatch(r"[a-z0-9.:-]+", host)
        or parts.scheme not in {"http", "https"}
    ):
        raise ConfigError(
            f"SNOWFLAKE_HOST is {text!r}; it must be a host name such as myorg-myaccount.snowflakecomputing.com."
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError(f"SNOWFLAKE_HOST is {text!r}; a token must not travel unencrypted. Use https://{host}")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


# ------------------------------------------------------------------------------------------------------ key and token


def load_key(path: Path, passphrase: str | None) -> rsa.RSAPrivateKey:
    """Load the RSA private key (PEM; PKCS8, encrypted or not) after checking that nobody else can read it.

    Raises ConfigError with the remedy for each thing that can be wrong with it.
    """
    make_one = f"  openssl genrsa 2048 | openssl pkcs8 -topk8 -inform PEM -nocrypt -out {path} && chmod 600 {path}"
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path} is a folder; SNOWFLAKE_PRIVATE_KEY_PATH must name the key file in it.")
        if mode & 0o077:
            raise ConfigError(f"other users can read the private key {path}.\nMend it with: chmod 600 {path}")
        pem = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"there is no private key at {path}.\nMake one with:\n{make_one}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the private key {path}: {error.strerror}.") from None

    if b"PRIVATE KEY-----" not in pem:
        what = "a public key" if b"PUBLIC KEY-----" in pem else "not a PEM private key"
        raise ConfigError(
            f"{path} is {what}; it must start with -----BEGIN PRIVATE KEY-----.\nMake one with:\n{make_one}"
        )
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not passphrase:
        raise ConfigError(
            f"the private key {path} is encrypted.\nPut its passphrase into .env: PRIVATE_KEY_PASSPHRASE=…"
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase.encode() if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = "PRIVATE_KEY_PASSPHRASE does not open it" if encrypted else "the file is damaged or of an unknown format"
        raise ConfigError(f"cannot use the private key {path}: {why}.") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(f"{path} is not an RSA key; Snowflake takes RSA only.\nMake one with:\n{make_one}")
    if key.key_size < 2048:
        raise ConfigError(
            f"the key in {path} has {key.key_size} bits; Snowflake wants 2048 at least.\nMake one with:\n{make_one}"
        )
    return key


def public_der(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: rsa.RSAPrivateKey) -> str:
    """`SHA256:…` as DESC USER shows it in RSA_PUBLIC_KEY_FP: base64 of the SHA-256 of the DER public key."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_der(key)).digest()).decode()


def claims(account: str, user: str, key_fingerprint: str, now: float) -> dict[str, str | int]:
    """The four claims of a key-pair JWT (docs/cortex.md#jwt-claims, docs/cortex.md#jwt-hour); `now` in seconds since
    the epoch, cut to whole ones."""
    subject = f"{account.upper()}.{user.upper()}"
    issued = int(now)
    return {"iss": f"{subject}.{key_fingerprint}", "sub": subject, "iat": issued, "exp": issued + TOKEN_SECONDS}


@dataclass(frozen=True)
class Token:
    value: str = field(repr=False)
    issued_at: int  # seconds since the epoch
    expires_at: int
    fingerprint: str


def sign(settings: Settings, now: float) -> Token:
    """Sign a token that is valid for the hour from `now`; raises ConfigError when the key is not usable."""
    key = load_key(settings.private_key_path, settings.passphrase)
    payload = claims(settings.account, settings.user, fingerprint(key), now)
    value = jwt.encode(payload, key, algorithm="RS256")
    # A token that does not read back as what was meant would fail at Snowflake with nothing but a UUID.
    untimed = jwt.decode(  # by the claims' own clock: a caller's `now` need not be this machine's
        value, key.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )
    if untimed != payload:
        raise RuntimeError("the signed token does not decode to its claims")
    return Token(value, int(payload["iat"]), int(payload["exp"]), fingerprint(key))


# ---------------------------------------------------------------------------------------------------------- rendering

_PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
HEADER = """\
# Generated by auto_refresh.py. Edits here are overwritten: edit litellm_config.template.yaml, it takes effect at once.
# This file holds a credential. Never commit it.
"""


class _PlainDumper(yaml.SafeDumper):
    # Anchors are for the person who edits the template; spelled out, a row can be read and compared on its own.
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def render(template: str, values: Mapping[str, str], claude_route: str = "chat") -> str:
    """Replace `${NAME}` in the template's string values and return LiteLLM's configuration as YAML.

    `values` holds the placeholders' texts; CORTEX_API_BASE is added per row, from the row's provider prefix and
    CORTEX_URL. With the route "messages", Cortex's rows of Claude models that say `openai/` become `snowflake/`.
    Works on the parsed YAML, so that no value can change the file's structure. Raises ConfigError.
    """
    try:
        tree = yaml.safe_load(template)
    except yaml.YAMLError as error:
        raise ConfigError(f"litellm_config.template.yaml is not valid YAML: {' '.join(str(error).split())}") from None
    _check_shape(tree)
    tree = {key: value for key, value in tree.items() if not str(key).startswith("x-")}
    rows = [_render_row(_routed(row, claude_route), values) for row in tree["model_list"]]
    filled = {**_fill({**tree, "model_list": []}, values), "model_list": rows}
    text = HEADER + yaml.dump(filled, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=10_000)
    if yaml.safe_load(text) != filled:
        raise RuntimeError("the rendered configuration does not read back as what was meant")
    return text


def _check_shape(tree: object) -> None:
    where = "litellm_config.template.yaml"
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must be a mapping with model_list, litellm_settings and general_settings.")
    rows = tree.get("model_list")
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{where} has no rows in model_list.")
    for number, row in enumerate(rows, start=1):
        params = row.get("litellm_params") if isinstance(row, dict) else None
        name = row.get("model_name") if isinstance(row, dict) else None
        if not isinstance(params, dict) or not isinstance(params.get("model"), str) or not isinstance(name, str):
            raise ConfigError(
                f"{where}: row {number} of model_list needs a model_name and litellm_params with a model."
            )
        info = row.get("model_info") or {}
        limit = info.get("max_output_tokens") if isinstance(info, dict) else info
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ConfigError(f"{where}: row {number} ({name}): max_output_tokens must be a whole number.")
        if _is_cortex(params) and not params["model"].startswith(("openai/", "snowflake/")):
            raise ConfigError(f"{where}: row {number} ({name}): a model on Cortex starts with openai/ or snowflake/.")
    general = tree.get("general_settings")
    if not isinstance(general, dict) or not general.get("master_key"):
        raise ConfigError(
            f"{where} has no general_settings.master_key; without it anybody on this machine could spend."
        )


def _routed(row: dict[str, Any], claude_route: str) -> dict[str, Any]:
    # A row that says snowflake/ itself is meant so, whatever the word for all.
    provider, _, model = row["litellm_params"]["model"].partition("/")
    if not (_is_cortex(row["litellm_params"]) and provider == "openai" and model.startswith("claude")):
        return row
    return {**row, "litellm_params": {**row["litellm_params"], "model": f"{CLAUDE_ROUTES[claude_route]}/{model}"}}


def _render_row(row: dict[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Fill one row; one that uses the token is marked `cortex`, and its id says what it is and changes with it.

    The proxy goes by both: the dialect is for Cortex only, and a row that was edited is another deployment.
    """
    is_cortex = _is_cortex(row["litellm_params"])
    values = {**values, "CORTEX_API_BASE": _api_base(row["litellm_params"]["model"], values["CORTEX_URL"])}
    without_token = json.dumps(_fill(row, {**values, "SNOWFLAKE_JWT": "-"}), sort_keys=True, default=str)
    digest = hashlib.sha256(without_token.encode()).hexdigest()[:12]
    info = {"id": f"{row['model_name']} on {row['litellm_params']['model']} {digest}", **(row.get("model_info") or {})}
    return {**_fill(row, values), "model_info": {**_fill(info, values), "cortex": is_cortex}}


def _is_cortex(params: Mapping[str, Any]) -> bool:
    return "${SNOWFLAKE_JWT}" in str(params.get("api_key"))


def _api_base(model: str, cortex_url: str) -> str:
    # LiteLLM's snowflake/ provider appends /cortex/v1/messages itself; openai/ appends /chat/completions only.
    return f"{cortex_url}/api/v2" if model.startswith("snowflake/") else f"{cortex_url}/api/v2/cortex/v1"


def _fill(node: Any, values: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _fill(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, values) for value in node]
    if not isinstance(node, str):
        return node

    def replace(found: re.Match[str]) -> str:
        value = values.get(found.group(1))
        if not value:
            known = ", ".join(f"${{{name}}}" for name in sorted({*values, "CORTEX_API_BASE"}))
            raise ConfigError(
                f"litellm_config.template.yaml has an unknown placeholder {found.group(0)}; there are: {known}."
            )
        return value

    return _PLACEHOLDER.sub(replace, node)


def render_config(settings: Settings, token: Token) -> str:
    """The whole of `litellm_config.yaml` for this token; raises ConfigError."""
    values = {
        "SNOWFLAKE_JWT": token.value,
        "LITELLM_MASTER_KEY": master_key(settings),
        "CORTEX_URL": settings.base_url,
    }
    return render(_read_template(settings), values, settings.claude_route)


def _read_template(settings: Settings) -> str:
    try:
        return settings.template_path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {settings.template_path}.\nBring it back with: git checkout {settings.template_path.name}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {settings.template_path}: {error}.") from None


def template_rows(settings: Settings, claude_route: str) -> list[dict[str, Any]]:
    """The rows as this word in CLAUDE_ROUTE would have them, without their secrets; raises ConfigError."""
    values = {"SNOWFLAKE_JWT": "-", "LITELLM_MASTER_KEY": "-", "CORTEX_URL": settings.base_url}
    rendered = render(_read_template(settings), values, claude_route)
    rows: list[dict[str, Any]] = yaml.safe_load(rendered)["model_list"]
    return rows


def write_private(path: Path, text: str, *, only_if_absent: bool = False) -> None:
    """Write a file that nobody else can read, so that a reader sees the old text or the new one, also after a crash.

    Raises WriteError for what may pass by itself (disk full, read-only file system), ConfigError for the rest.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if only_if_absent:
                with suppress(FileExistsError):
                    os.link(temporary, path)
            else:
                Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _write_error(path, error) from None


class WriteError(ConfigError):
    """A write failed for a reason that may pass by itself: the refresher tries again instead of ending."""


def _write_error(path: Path, error: OSError) -> ConfigError:
    kind = WriteError if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO} else ConfigError
    return kind(f"cannot write {path}: {error.strerror}.\nCheck with: df -h {path.parent}; ls -ld {path.parent}")


def remove_leftovers(settings: Settings) -> None:
    """Remove temporary files of a refresher that was killed before its rename; only while holding the lock."""
    for path in (settings.config_path, settings.state_path):
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------- loop

Stamp = tuple[tuple[str, int, int, int], ...]


def stamp(paths: Sequence[Path]) -> Stamp:
    """What tells that one of the files changed: (path, mtime in ns, size, inode) of each that exists."""
    marks = []
    for path in paths:
        with suppress(OSError):
            found = path.stat()
            marks.append((str(path), found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(marks)


@dataclass(frozen=True)
class Written:
    """What the last refresh was made from, and what it wrote."""

    issued_at: int
    expires_at: int
    refresh_seconds: int
    sources: Stamp
    config: Stamp


def due(now: float, last: Written | None, sources: Stamp, config: Stamp) -> str | None:
    """Why a refresh is due at `now` (seconds since the epoch, wall clock), or None.

    The wall clock, because the monotonic one stands still while a laptop sleeps: a sleep of 3000 s can last a night.
    """
    if last is None:
        return "the refresher has started"
    if now < last.issued_at:
        return "the clock went back"
    if now >= last.issued_at + last.refresh_seconds:
        return f"the token is {int(now - last.issued_at) // 60} minutes old"
    if not config:
        return "litellm_config.yaml was deleted"
    if config != last.config:
        return "litellm_config.yaml was altered by something else (edits belong in litellm_config.template.yaml)"
    if sources != last.sources:
        changed = sorted({Path(mark[0]).name for mark in set(sources) ^ set(last.sources)})
        return f"{' and '.join(changed)} changed"
    return None


def refresh(settings: Settings, now: float) -> tuple[Token, Written]:
    """Sign a token, write the configuration with it; raises ConfigError and leaves the old file in that case."""
    watched = [*settings.sources, settings.template_path, settings.private_key_path]
    before = stamp(watched)  # before reading: an edit that comes in between is seen at the next look
    token = sign(settings, now)
    write_private(settings.config_path, render_config(settings, token))
    written = Written(
        token.issued_at, token.expires_at, settings.refresh_seconds, before, stamp([settings.config_path])
    )
    return token, written


def retry_delay(failures: int, jitter: float) -> float:
    """Seconds until the next try: 1, 2, 4 … 60, times 0.75 to 1.25; `jitter` from 0 to 1."""
    return min(RETRY_CEILING_SECONDS, 2.0 ** min(failures - 1, 10)) * (0.75 + jitter / 2)


@dataclass
class State:
    """What `--status` and doctor read from `.refresher.json`; times in seconds since the epoch, no secrets."""

    pid: int
    issued: int | None = None
    expires: int | None = None
    next_refresh: int | None = None
    last_error: str | None = None
    last_error_at: int | None = None
    key_fingerprint: str | None = None
    account: str | None = None
    user: str | None = None


class Refresher:
    """The loop's memory: what was written last, what failed, when to look again. One step per wake-up."""

    def __init__(
        self,
        load: Callable[[], Settings],
        clock: Callable[[], float] = time.time,
        log: Callable[[str], None] = say,
    ) -> None:
        self._load, self._clock, self._log = load, clock, log
        self.settings = load()
        self.last: Written | None = None
        self.state = State(pid=os.getpid())
        self._asked = False  # by a signal, and not done yet
        self._failures = 0
        self._retry_at = 0.0
        self._failed_sources: Stamp = ()
        self._said: str | None = None

    def step(self, *, now_please: bool = False) -> bool:
        """Refresh when it is due; return whether a new configuration was written. Never raises ConfigError."""
        now = self._clock()
        sources = self._sources()
        self._asked = self._asked or now_please
        config = stamp([self.settings.config_path])
        reason = "asked to (SIGHUP)" if self._asked else due(now, self.last, sources, config)
        if reason is None:
            self._recovered()
            return False
        waiting = self._failures and self._retry_at - RETRY_CEILING_SECONDS * 2 < now < self._retry_at
        if waiting and sources == self._failed_sources and not now_please:
            return False
        try:
            self.refresh(now, reason)
        except Exception as error:  # noqa: BLE001 - nothing may end the loop: the old token is better than none
            self._failed(now, sources, error)
            return False
        return True

    def refresh(self, now: float, reason: str) -> None:
        """One refresh, with its line in the log and its state file; errors pass through."""
        before, self.settings = self.settings, self._load()
        if before.proxy_port != self.settings.proxy_port:
            self._log(f"PROXY_PORT changed: takes effect with `{PM2} restart claude-proxy`")
        token, self.last = refresh(self.settings, now)
        self._asked, self._failures, self._said = False, 0, None
        self.state = State(
            pid=os.getpid(),
            issued=token.issued_at,
            expires=token.expires_at,
            next_refresh=token.issued_at + self.settings.refresh_seconds,
            key_fingerprint=token.fingerprint,
            account=self.settings.account,
            user=self.settings.user,
        )
        self._log(f"new token, valid until {_clock_time(token.expires_at)}, because {reason}")
        self._save_state()

    def _sources(self) -> Stamp:
        return stamp([*self.settings.sources, self.settings.template_path, self.settings.private_key_path])

    def _failed(self, now: float, sources: Stamp, error: Exception) -> None:
        self._failures += 1
        self._failed_sources = sources
        self._retry_at = now + retry_delay(self._failures, random.random())  # noqa: S311 - spreads retries, no secret
        message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        left = (self.last.expires_at - now) if self.last else 0
        if left < WARN_SECONDS:
            self._log(f"ERROR: no new token, and the last one ends in {max(0, int(left)) // 60} minutes: {message}")
        elif message != self._said:
            self._log(f"WARNING: the last good configuration stays, trying again: {message}")
        self._said = message
        self.state.last_error, self.state.last_error_at = message, int(now)
        self._save_state()

    def _recovered(self) -> None:
        # An edit that was refused and then taken back leaves nothing due: the warning must not stay in --status.
        if self._failures:
            self._failures, self._said = 0, None
            self.state.last_error = self.state.last_error_at = None
            self._log("the configuration is good again")
            self._save_state()

    def _save_state(self) -> None:
        # The state is for people to read; a full disk must not count as a failed refresh.
        with suppress(ConfigError):
            write_private(self.settings.state_path, json.dumps(asdict(self.state), indent=2) + "\n")


def _clock_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


@contextmanager
def instance_lock(path: Path) -> Iterator[int | None]:
    """Hold the lock for the block and yield None; or yield the pid that holds it (0 when unknown)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _write_error(path, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).strip()
            yield int(holder) if holder.isdigit() else 0
            return
        with suppress(OSError):  # the pid is for messages; a full disk must not keep us from the rest
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield None
    finally:
        os.close(descriptor)


def supervisor_channel(environ: Mapping[str, str]) -> int | None:
    """PM2's channel to this process: a descriptor to write JSON lines to; end-of-file on it means that PM2 died."""
    text = environ.get("NODE_CHANNEL_FD", "")
    if not text.isdecimal():
        return None
    try:
        return int(text) if stat.S_ISSOCK(os.fstat(int(text)).st_mode) else None
    except OSError:
        return None


def report_ready(channel: int | None) -> None:
    """Tell PM2 (`wait_ready`) that this process does its work."""
    if channel is not None:
        with suppress(OSError):
            os.write(channel, b'"ready"\n')


def supervisor_gone(channel: int) -> bool:
    """Whether PM2's end is closed; to be called when `channel` is readable."""
    try:
        return os.read(channel, 65536) == b""
    except OSError:
        return True


def run_forever() -> int:
    """The refresher as a process; returns the exit status. Signals: HUP refreshes now, INT and TERM end it at once."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)  # a signal ends the wait below at once, with no lock that a handler could meet
    received: list[int] = []
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, _frame: received.append(caught))
    channel = supervisor_channel(os.environ)

    def wait(seconds: float) -> str | None:
        """Sleep; return "end", "refresh" or None."""
        readable, _, _ = select.select([wake_read, *([channel] if channel is not None else [])], [], [], seconds)
        if wake_read in readable:
            os.read(wake_read, 64)
        if channel in readable and channel is not None and supervisor_gone(channel):
            say("PM2 is gone: ending, so that its next start finds no second refresher")
            return "end"
        if {signal.SIGINT, signal.SIGTERM} & set(received):
            return "end"
        hangup = signal.SIGHUP in received
        received.clear()
        return "refresh" if hangup else None

    def hold(settings: Settings) -> int | None:
        """Do the work while holding the lock; return the pid of another holder, or None when told to end."""
        with instance_lock(settings.lock_path) as holder:
            if holder is not None:
                return holder
            remove_leftovers(settings)
            refresher = Refresher(load_settings)
            refresher.refresh(time.time(), "the refresher has started")
            report_ready(channel)
            while (wish := wait(POLL_SECONDS)) != "end":
                refresher.step(now_please=wish == "refresh")
                bound_log(os.environ)
            return None

    said = None
    while True:
        try:
            holder = hold(load_settings())
            if holder is None:
                return 0
            trouble = f"another refresher (pid {holder or 'unknown'}) is at work; this one takes over when it ends"
        except WriteError as error:
            trouble = f"ERROR: {error}\nTrying again until it works."
        if trouble != said:
            say(trouble)
            said = trouble
        if wait(POLL_SECONDS) == "end":
            return 0


# ------------------------------------------------------------------------------------------------------- command line


def once() -> str:
    """Refresh a single time; returns the line for the user."""
    settings = load_settings()
    with instance_lock(settings.lock_path) as holder:
        if holder is not None:
            render_config(settings, sign(settings, time.time()))
            return (
                f"settings, key and template are good. Nothing written: token-refresher (pid {holder}) is running "
                f"and does that.\nTo have a new token now: kill -HUP {holder}"
            )
        remove_leftovers(settings)
        token, _ = refresh(settings, time.time())
    return f"wrote {settings.config_path}, token valid until {_clock_time(token.expires_at)}"


def read_state(folder: Path) -> dict[str, Any]:
    """The refresher's last words, or an empty mapping when it never ran or the file is damaged."""
    try:
        state = json.loads((folder / ".refresher.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def status_lines(state: Mapping[str, Any], now: float) -> list[str]:
    """What `--status` prints."""
    if not state.get("expires"):
        lines = ["token:    none yet"]
    else:
        left = int(state["expires"] - now)
        live = f"{left // 60} minutes left" if left > 0 else "EXPIRED"
        lines = [
            f"token:    issued {_clock_time(state['issued'])}, expires {_clock_time(state['expires'])} ({live})",
            f"next:     {_clock_time(state['next_refresh'])}",
            f"identity: {state['account']}.{state['user']}",
            f"key:      {state['key_fingerprint']}",
        ]
    if state.get("last_error"):
        lines.append(f"error:    {state['last_error']} (at {_clock_time(state['last_error_at'])})")
    return lines


def register_statement(user: str, key: rsa.RSAPrivateKey, *, slot: str = "RSA_PUBLIC_KEY") -> str:
    """The SQL that registers the key's public half; `slot` is RSA_PUBLIC_KEY_2 while keys are rotated."""
    name = user if re.fullmatch(r"[A-Z_][A-Z0-9_$]*", user) else '"' + user.replace('"', '""') + '"'
    return f"ALTER USER {name} SET {slot}='{base64.b64encode(public_der(key)).decode()}';"


def public_key_lines(settings: Settings) -> list[str]:
    """What `--public-key` prints: the body of the PEM, its fingerprint, and the statement to run."""
    key = load_key(settings.private_key_path, settings.passphrase)
    return [
        "Public key (the body of the PEM):",
        base64.b64encode(public_der(key)).decode(),
        "",
        f"Fingerprint (DESC USER shows it as RSA_PUBLIC_KEY_FP): {fingerprint(key)}",
        "",
        "Run this in Snowsight as ACCOUNTADMIN, or as the user itself where that is allowed:",
        register_statement(settings.user, key),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Keep a live Snowflake credential in litellm_config.yaml. Without an option: run for ever."
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--once", action="store_true", help="sign a token, write litellm_config.yaml, end")
    choice.add_argument("--status", action="store_true", help="show the token's age and the last error")
    choice.add_argument("--public-key", action="store_true", help="show the SQL that registers the key with Snowflake")
    parser.add_argument("--json", action="store_true", help="with --status: for scripts")
    options = parser.parse_args(arguments)
    try:
        if options.status:
            state = read_state(state_folder(os.environ))
            print(json.dumps(state, indent=2) if options.json else "\n".join(status_lines(state, time.time())))
            return 0 if state.get("expires", 0) > time.time() and not state.get("last_error") else 1
        if options.public_key:
            print("\n".join(public_key_lines(load_settings())))
            return 0
        if options.once:
            print(once())
            return 0
        return run_forever()
    except ConfigError as error:
        say(f"auto_refresh.py: {error}", sys.stderr)
        return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
