"""The first questions: which account, which user, and perhaps which access token. Each answer goes into `.env` at
once, so that none is asked twice.

Standard library only: these questions come before anything is installed.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Mapping
from contextlib import suppress
from getpass import getpass
from urllib.parse import urlsplit

from bundle.account import parse_account
from bundle.bootstrap import state_folder
from bundle.connections import read_connections, snowflake_home
from bundle.credential import HOW_TO_MAKE, checked_pat
from bundle.env_file import set_in_env_file
from bundle.errors import ConfigError, printable
from bundle.host_check import trouble_with
from bundle.key_forms import free_path
from bundle.settings import (
    MissingSettingsError,
    Settings,
    host_of,
    load_settings,
)

HOW_TO_FIND = """\
Which Snowflake account? Paste the address of Snowsight from your browser, or the result of this SQL:
  SELECT CURRENT_ORGANIZATION_NAME() || '-' || CURRENT_ACCOUNT_NAME();"""


def ask_missing(environ: Mapping[str, str], *, interactive: bool) -> bool:
    """Ask for account and user until both are set. Returns whether it asked; raises ConfigError without a terminal."""
    asked = False
    while True:
        try:
            load_settings(environ)
        except MissingSettingsError as error:
            if not interactive:
                raise
            if not asked:
                print(*error.notes, sep="\n", end="\n" if error.notes else "")
            ask(error.missing, environ)
            asked = True
            continue
        return asked


def ask(missing: tuple[str, ...], environ: Mapping[str, str]) -> None:
    """Put one answer into `.env`. If both are missing, offer the known connections; else ask for the first that is
    missing."""
    known = connections(environ) if len(missing) == 2 else {}
    if known and (name := choose(known)):
        set_in_env_file(state_folder(environ) / ".env", "SNOWFLAKE_DEFAULT_CONNECTION_NAME", name)
        return
    if "account" in missing:
        print(HOW_TO_FIND)
        ask_account(environ)
        return
    print("Which user? Give the LOGIN_NAME: the name that you log in with, often in capitals or an e-mail address.")
    if user := input("User, or Enter to type the account again: ").strip():
        set_in_env_file(state_folder(environ) / ".env", "SNOWFLAKE_USER", user)
    else:
        ask_account(environ)


def ask_account(environ: Mapping[str, str], current: str = "") -> None:
    """Ask until the account is one, look whether its host is there, and write it into `.env`. Enter keeps `current`."""
    prompt = f"Account [{current}]: " if current else "Account: "
    may_keep = bool(current)
    while True:
        text = input(prompt).strip()
        if not text:
            if may_keep:
                return
            continue
        try:
            account, host = parse_account(text)
            base_url = host_of(environ, host)
        except ConfigError as error:
            print(error)
            continue
        print(f"That is account {account} at {urlsplit(base_url).netloc}.", flush=True)
        set_in_env_file(state_folder(environ) / ".env", "SNOWFLAKE_ACCOUNT", shortest(text, account, host))
        trouble = trouble_with(base_url)
        if not trouble:
            return
        may_keep = True
        print(f"{printable(trouble[0])}.\n{printable(trouble[1])}.")
        prompt = "Type the account again, or press Enter to keep it: "


def change(environ: Mapping[str, str], settings: Settings) -> bool:
    """Ask for account and user again; Enter keeps each. False if the environment sets them, which beats `.env`."""
    fixed = [name for name in ("SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER") if environ.get(name)]
    if fixed:
        print(f"{' and '.join(fixed)} in the environment counts before .env. Change it there: unset {' '.join(fixed)}")
        return False
    ask_account(environ, settings.account)
    user = input(f"User [{settings.user}]: ").strip()
    if user:
        env_file, host = state_folder(environ) / ".env", urlsplit(settings.base_url).netloc
        if settings.origin.startswith("connection"):  # a connection is not used for another user
            set_in_env_file(env_file, "SNOWFLAKE_ACCOUNT", shortest(host, settings.account, host))
        set_in_env_file(env_file, "SNOWFLAKE_USER", user)
    return True


def ask_pat(settings: Settings, how_to_make: str = HOW_TO_MAKE) -> bool:
    """Ask for a programmatic access token and put it into `.env`. False if the user gives none."""
    print(how_to_make, end="\n" if how_to_make else "")
    while text := getpass("Paste the token (it is not shown), or press Enter to go on without: ").strip():
        try:
            token = checked_pat(text, "what you have pasted")
        except ConfigError as error:
            print(str(error).partition("\n")[0])
            continue
        env_file = settings.folder / ".env"
        set_in_env_file(env_file, "SNOWFLAKE_PAT", token)
        print(f"The token is in {env_file} now. Only you can read that file.", flush=True)
        return True
    return False


def change_to_pat(settings: Settings) -> bool:
    """Ask for a programmatic access token, and put the private key aside: a key that is there counts first. False if
    nothing has changed."""
    if settings.key_named_by:
        print(f"{settings.key_named_by} names a private key, and that counts first. Remove it, then start again.")
        return False
    if not ask_pat(settings):
        return False
    key = settings.private_key_path
    for file in (key, key.with_suffix(".pub")):
        if file.exists():
            aside = free_path(file.with_name(f"{file.name}.old"))
            file.rename(aside)
            print(f"Moved {file} to {aside.name}: a private key that is there counts before an access token.")
    return True


def yes(question: str, *, default: bool) -> bool:
    """The answer to a question of yes or no; Enter means `default`."""
    with suppress(termios.error):  # ignore keys that were pressed before the question
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    while (answer := input(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()) not in {
        *("", "y", "yes", "n", "no")
    }:
        pass
    return answer in {"y", "yes"} or (default and not answer)


def connections(environ: Mapping[str, str]) -> dict[str, str]:
    """The connections of Snowflake's own tools that have account and user; the values say "ACCOUNT as USER"."""
    tables = read_connections(snowflake_home(environ)).tables
    complete = {name: table for name, table in tables.items() if {"account", "user"} <= table.keys()}
    return {name: f"{table['account']} as {table['user']}" for name, table in complete.items()}


def choose(known: Mapping[str, str]) -> str | None:
    """The name of the chosen connection; None if the user wants another account."""
    print("Connections found in ~/.snowflake:")
    for number, (name, description) in enumerate(known.items(), start=1):
        print(f"  {number}  {printable(name)}: {printable(description)}")
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
