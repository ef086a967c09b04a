#!/usr/bin/env python3
"""Complete the set-up before the first start: ask for account and user, make a key pair, wait for its registration.

`make start` runs this script each time. If nothing is missing, the script prints nothing. Each answer is written to
`.env` at once, so that the script never asks twice. The private key stays on this machine. The script prints the SQL
statement that gives the public key to Snowflake, and waits until Snowflake accepts the key.

Without a terminal the script only prints what is missing. Exit status: 0 the set-up is complete, 78 something is
missing or wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import select
import shlex
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
from bundle.env_file import set_in_env_file
from bundle.errors import ConfigError
from bundle.files import make_private_folder, write_private
from bundle.settings import (
    MissingSettingsError,
    Settings,
    load_settings,
    read_connections,
    snowflake_home,
    state_folder,
)
from bundle.tokens import load_key, register_statement

POLL_SECONDS = 3.0
HINT_SECONDS = 60.0  # after this time, also print why Snowflake refuses the key
WAIT_SECONDS = 900.0


def set_up(environ: Mapping[str, str], *, interactive: bool) -> None:
    """Complete the set-up. Asks only if `interactive`; raises ConfigError if something is still missing."""
    asked = False
    while missing := missing_settings(environ):
        if not interactive:
            load_settings(environ)  # raises the error that lists the ways to configure
        ask(missing, environ)
        asked = True
    settings = load_settings(environ)
    made = not settings.private_key_path.exists() and interactive
    if made:
        public = make_key_pair(settings.private_key_path)
        print(f"Made a key pair: {settings.private_key_path} stays on this machine, {public.name} is for Snowflake.")
    key = load_key(settings.private_key_path, settings.passphrase)
    if asked or made:
        register(settings, key, environ)


def missing_settings(environ: Mapping[str, str]) -> list[str]:
    """Which of "account" and "user" are missing; raises ConfigError for any other mistake."""
    try:
        load_settings(environ)
    except MissingSettingsError as error:
        return list(error.missing)
    return []


def ask(missing: list[str], environ: Mapping[str, str]) -> None:
    """Put one answer into `.env`. If both are missing, offer the known connections; else ask for the first that is
    missing."""
    env_file = state_folder(environ) / ".env"
    known = connections(environ) if len(missing) == 2 else {}
    if known and (name := choose(known)):
        set_in_env_file(env_file, "SNOWFLAKE_DEFAULT_CONNECTION_NAME", name)
        return
    if missing[0] == "user":
        print("Which user? Give the LOGIN_NAME: the name that you log in with, often in capitals or an e-mail address.")
        set_in_env_file(env_file, "SNOWFLAKE_USER", answer("User: "))
        return
    print("Which Snowflake account? Paste the address of Snowsight from your browser, or the result of this SQL:")
    print("  SELECT CURRENT_ORGANIZATION_NAME() || '-' || CURRENT_ACCOUNT_NAME();")
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
    """The connections of Snowflake's own tools that have account and user; the values say "ACCOUNT as USER"."""
    tables, _ = read_connections(snowflake_home(environ))
    complete = {name: table for name, table in tables.items() if {"account", "user"} <= table.keys()}
    return {name: f"{table['account']} as {table['user']}" for name, table in complete.items()}


def choose(known: Mapping[str, str]) -> str | None:
    """The name of the chosen connection; None if the user wants another account."""
    print("Connections found in ~/.snowflake:")
    for number, (name, description) in enumerate(known.items(), start=1):
        print(f"  {number}  {name}: {description}")
    while text := input("Number, or Enter for another account: ").strip():
        if text in known:
            return text
        if text.isdecimal() and 0 < int(text) <= len(known):
            return list(known)[int(text) - 1]
        print(f"Type a number from 1 to {len(known)}.")
    return None


def shortest(text: str, account: str, host: str) -> str:
    """The shortest text that parse_account turns into the same account and host."""
    for candidate in (account, host.removesuffix(".snowflakecomputing.com"), host):
        with suppress(ConfigError):
            if parse_account(candidate) == (account, host):
                return candidate
    return text


def make_key_pair(path: Path) -> Path:
    """Write an RSA-2048 key (PKCS8, not encrypted) to `path` and its public key beside it; returns the public key's
    path.

    Overwrites nothing; raises ConfigError."""
    public = path.with_suffix(".pub")
    for file in (path, public):
        if file.exists():
            move = shlex.join(["mv", "-n", str(file), f"{file}.old"])
            raise ConfigError(f"{file} exists, and is not overwritten.\nMove it away: {move}")
    try:
        make_private_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path.parent}: {error.strerror}.") from None
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    private_text = key.private_bytes(pem, pkcs8, serialization.NoEncryption()).decode()
    public_text = key.public_key().public_bytes(pem, spki).decode()
    for file, text in ((path, private_text), (public, public_text)):
        write_private(file, text, only_if_absent=True)
        if file.read_text(encoding="ascii") != text:
            raise ConfigError(f"another program wrote {file} at the same moment; that file is kept.\nRun this again.")
    return public


def register(settings: Settings, key: rsa.RSAPrivateKey, environ: Mapping[str, str]) -> None:
    """Unless the key is registered, print the statement that registers it and wait until Snowflake accepts the key."""
    # Imported here, because this takes half a second and only a first start needs it.
    from bundle.checks.connections import snowflake  # noqa: PLC0415
    from bundle.checks.finding import Finding, read_installation  # noqa: PLC0415

    def first_failure() -> Finding | None:
        findings = snowflake(read_installation(environ, time.time()))
        return next((finding for finding in findings if finding.state == "fail"), None)

    statement = register_statement(settings.user, key)
    shown = ""  # everything shown so far, so that nothing is shown twice
    start = time.monotonic()
    while (failure := first_failure()) is not None:
        unregistered = statement in failure.fix
        if failure.name == "Login" and not unregistered:  # waiting does not fix a role, a policy or a wrong server
            print(f"{failure.found}\n{failure.fix}")
            return
        if not shown:
            shown = statement
            print(f"\nRun this in Snowsight, as ACCOUNTADMIN or {settings.user}:\n\n{statement}\n")
            with suppress(termios.error):  # ignore keys that were pressed before this message
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
            print("Waiting until Snowflake accepts the key. Press Enter to go on without waiting.", flush=True)
        waited = time.monotonic() - start
        if (not unregistered or waited > HINT_SECONDS) and failure.found not in shown:
            shown += failure.found
            print(f"{failure.found}\n{failure.fix}", flush=True)
        if waited > WAIT_SECONDS or select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            print("Continuing. Everything works after you have run the statement; `make doctor` shows the state.")
            return
    print(f"Snowflake accepts the key of {settings.account}.{settings.user}.")


def main() -> int:
    interactive = sys.stdin.isatty()
    try:
        set_up(os.environ, interactive=interactive)
    except ConfigError as error:
        hint = "" if interactive else "\nOr run `make start` in a terminal: it asks, and makes the key pair."
        print(f"configure.py: {error}{hint}", file=sys.stderr, flush=True)
        return EX_CONFIG
    except (KeyboardInterrupt, EOFError):
        print("\nStopped. Your answers are in .env. You will not be asked for them again.", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
