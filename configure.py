#!/usr/bin/env python3
"""Ask for what is missing before the first start, and for nothing else: account, user, key pair, its registration.

`make start` runs this each time; once all is there it says nothing. An answer goes into `.env` at once, so that it is
not asked again. The key pair is made here and its private half stays here: Snowflake gets the public half by one SQL
statement, which is printed; then this waits until Snowflake takes the key.

Without a terminal nothing is asked or made: the message lists what to set. Exit status: 0 go on, 78 something is
missing or wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bundle.bootstrap import EX_CONFIG, enter_venv

if __name__ == "__main__":
    enter_venv()

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bundle.account import parse_account
from bundle.errors import ConfigError
from bundle.files import write_private
from bundle.settings import Settings, load_settings, read_toml, set_in_env_file, snowflake_home, state_folder
from bundle.tokens import load_key, register_statement

POLL_SECONDS = 3.0
HINT_SECONDS = 60.0  # after this it may be more than a statement that has not been run yet
WAIT_SECONDS = 900.0

ACCOUNT_QUESTION = """\
Which Snowflake account? The address of Snowsight in your browser will do, or what this SQL shows:
  SELECT CURRENT_ORGANIZATION_NAME() || '-' || CURRENT_ACCOUNT_NAME();"""
USER_QUESTION = """\
Which user? Its LOGIN_NAME: what you type to log in, often in capitals or a mail address."""


def set_up(environ: Mapping[str, str], *, person: bool) -> None:
    """Complete the set-up; `person`: whether somebody is there to answer. Raises ConfigError for what stays missing."""
    asked = False
    while missing := missing_settings(environ):
        if not person:
            load_settings(environ)  # its message lists the ways
        ask(missing, environ)
        asked = True
    settings = load_settings(environ)
    made = not settings.private_key_path.exists() and person
    if made:
        public = make_key_pair(settings.private_key_path)
        print(f"Made a key pair: {settings.private_key_path} stays on this machine, {public.name} is for Snowflake.")
    key = load_key(settings.private_key_path, settings.passphrase)
    if asked or made:
        register(settings, key, environ)


def missing_settings(environ: Mapping[str, str]) -> list[str]:
    """Which of "account" and "user" nobody has configured; raises ConfigError for any other mistake."""
    try:
        load_settings(environ)
    except ConfigError as error:
        first_line = str(error).partition("\n")[0]
        if not first_line.startswith("no Snowflake "):
            raise
        return [word for word in ("account", "user") if word in first_line]
    return []


def ask(missing: list[str], environ: Mapping[str, str]) -> None:
    """Put one answer into `.env`: a connection of ~/.snowflake for both, or the first of what is missing."""
    env_file = state_folder(environ) / ".env"
    known = connections(environ) if len(missing) == 2 else {}
    if known and (name := choose(known)):
        set_in_env_file(env_file, "SNOWFLAKE_DEFAULT_CONNECTION_NAME", name)
        return
    if missing[0] == "user":
        print(USER_QUESTION)
        set_in_env_file(env_file, "SNOWFLAKE_USER", answer("User: "))
        return
    print(ACCOUNT_QUESTION)
    while True:
        try:
            text = answer("Account: ")
            account, host = parse_account(text)
        except ConfigError as error:
            print(error)
            continue
        print(f"That is account {account} at {host}.")
        set_in_env_file(env_file, "SNOWFLAKE_ACCOUNT", shortest(text, account, host))
        return


def answer(prompt: str) -> str:
    """A line that is not empty; EOFError at the end of input."""
    while not (text := input(prompt).strip()):
        pass
    return text


def connections(environ: Mapping[str, str]) -> dict[str, str]:
    """The connections of Snowflake's own tools that name account and user: ACCOUNT as USER, by connection."""
    home = snowflake_home(environ)
    tables = read_toml(home / "connections.toml")
    tables = tables or read_toml(home / "config.toml").get("connections", {})
    complete = {
        name: table for name, table in tables.items() if isinstance(table, dict) and {"account", "user"} <= table.keys()
    }
    return {name: f"{table['account']} as {table['user']}" for name, table in complete.items()}


def choose(known: Mapping[str, str]) -> str | None:
    """The name of a connection, or None for none of them."""
    print("Connections found in ~/.snowflake:")
    for number, (name, shown) in enumerate(known.items(), start=1):
        print(f"  {number}  {name}: {shown}")
    while text := input("Number, or Enter for another account: ").strip():
        if text in known:
            return text
        if text.isdecimal() and 0 < int(text) <= len(known):
            return list(known)[int(text) - 1]
        print(f"There are 1 to {len(known)}.")
    return None


def shortest(text: str, account: str, host: str) -> str:
    """The shortest way to write what was understood, so that `.env` reads well; `text` when there is none."""
    for candidate in (account, host.removesuffix(".snowflakecomputing.com"), host):
        try:
            if parse_account(candidate) == (account, host):
                return candidate
        except ConfigError:  # noqa: PERF203 - three candidates
            continue
    return text


def make_key_pair(path: Path) -> Path:
    """Make an RSA-2048 key (PKCS8, not encrypted) at `path` and its public half beside it, both mode 0600.

    Returns the public half's path. Overwrites nothing; raises ConfigError.
    """
    public = path.with_suffix(".pub")
    for there in (path, public):
        if there.exists():
            raise ConfigError(
                f"{there} is there already, and is not overwritten.\nMove it away: mv {there} {there}.old"
            )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path.parent}: {error.strerror}.") from None
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, pkcs8, spki = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.PublicFormat
    private_text = key.private_bytes(pem, pkcs8, serialization.NoEncryption()).decode()
    public_text = key.public_key().public_bytes(pem, spki.SubjectPublicKeyInfo).decode()
    for target, text in ((path, private_text), (public, public_text)):
        write_private(target, text, only_if_absent=True)
        if target.read_text(encoding="ascii") != text:
            raise ConfigError(f"something else wrote {target} at the same moment; it is kept.\nRun this again.")
    return public


def register(settings: Settings, key: rsa.RSAPrivateKey, environ: Mapping[str, str]) -> None:
    """Unless the key is registered, print the statement for it and wait until Snowflake takes the key."""
    from bundle.checks.connections import snowflake  # noqa: PLC0415 - half a second that only a first start needs
    from bundle.checks.finding import Finding, read_installation  # noqa: PLC0415

    def trouble() -> Finding | None:
        found = snowflake(read_installation(environ, time.time()))
        return next((finding for finding in found if finding.state == "fail"), None)

    statement = register_statement(settings.user, key)
    shown, start = "", time.monotonic()
    while (bad := trouble()) is not None:
        unregistered = statement in bad.fix
        if bad.name == "Login" and not unregistered:  # the role, a policy, another server: no waiting fixes that
            print(f"{bad.found}\n{bad.fix}")
            return
        if not shown:
            shown = statement
            print(f"\nRun this in Snowsight, as ACCOUNTADMIN or {settings.user}:\n\n{statement}\n")
            with suppress(termios.error):  # an Enter too many from before is not meant
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
            print("Waiting until Snowflake takes the key. Enter goes on without waiting.", flush=True)
        waited = time.monotonic() - start
        if (not unregistered or waited > HINT_SECONDS) and bad.found not in shown:
            shown += bad.found
            print(f"{bad.found}\n{bad.fix}", flush=True)
        if waited > WAIT_SECONDS or select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            print("Going on. Once the statement has run, everything else follows; `make doctor` says how it stands.")
            return
    print(f"Snowflake takes the key of {settings.account}.{settings.user}.")


def main() -> int:
    try:
        set_up(os.environ, person=sys.stdin.isatty())
    except ConfigError as error:
        hint = "" if sys.stdin.isatty() else "\nOr run `make start` in a terminal: it asks, and makes the key pair."
        print(f"configure.py: {error}{hint}", file=sys.stderr, flush=True)
        return EX_CONFIG
    except (KeyboardInterrupt, EOFError):
        print("\nStopped. What was answered is in .env, and is not asked again.", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
