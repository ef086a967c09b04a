#!/usr/bin/env python3
"""Complete the set-up before the start: ask for account and user, make a key pair and wait for its registration, or
take a programmatic access token.

`make start` runs this script each time, and once more with `--first` before it installs anything: that part asks for
account and user, with Python's own library alone. If nothing is missing and Snowflake accepts the key, the script
prints nothing. Each answer is written to `.env` at once, so that the script never asks twice. The private key stays on
this machine. The script prints the SQL statement that gives the public key to Snowflake, and waits until Snowflake
accepts the key. A user who may not run that statement can paste a programmatic access token instead.

Without a terminal the script only prints what is missing. Exit status: 0 the set-up is complete, 78 something is
missing or wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import select
import shlex
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.bootstrap import EX_CONFIG, enter_venv, make

if __name__ == "__main__" and "--first" not in sys.argv:
    enter_venv()

from bundle.credential import Pat, read_pat, refuse_shell_only
from bundle.env_file import set_in_env_file
from bundle.errors import ConfigError
from bundle.files import make_private_folder, require_home, write_private
from bundle.host_check import names_are_found
from bundle.questions import ask_missing, ask_pat, change, change_to_pat, yes
from bundle.settings import Settings, load_settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

    from bundle.checks.finding import Finding

POLL_SECONDS = 3.0
HINT_SECONDS = 60.0  # after this time, also print why Snowflake refuses the key
WAIT_SECONDS = 900.0


def first_questions(environ: Mapping[str, str], *, interactive: bool) -> None:
    """Ask for account and user before anything is installed. Raises ConfigError."""
    require_home(environ)
    try:
        ask_missing(environ, interactive=interactive)
    except ModuleNotFoundError:  # Python 3.10 needs tomli to read ~/.snowflake: ask after the installation
        return


def set_up(environ: Mapping[str, str], *, interactive: bool) -> None:
    """Complete the set-up. Asks only if `interactive`; raises ConfigError if something is still missing."""
    changed, pat_is_new = True, False
    while changed:
        asked = ask_missing(environ, interactive=interactive)
        settings = load_settings(environ)
        for note in settings.notes:
            print(f"Warning: {note}")
        if settings.pat is not None:
            read_pat(keep_pat(settings.pat, settings, interactive=interactive))
            changed = interactive and not accepted(settings, environ, new=asked or pat_is_new)
            pat_is_new = True  # in the next round, if there is one
            continue
        pat_is_new = True
        made = not settings.private_key_path.exists() and interactive
        if made:
            public = make_key_pair(settings.private_key_path)
            print(
                f"Made a key pair: {settings.private_key_path} stays on this machine, {public.name} is for Snowflake."
            )
        key = usable_key(settings, environ, interactive=interactive)
        changed = interactive and not register(load_settings(environ), key, environ, new=asked or made)


def keep_pat(pat: Pat, settings: Settings, *, interactive: bool) -> Pat:
    """The programmatic access token, where the processes find it too. Raises ConfigError if only this shell has it."""
    env_file = settings.folder / ".env"
    if pat.in_shell and interactive:
        print("SNOWFLAKE_PAT is only in the environment of this shell, and PM2 passes no secret of a shell on.")
        if yes(f"Put it into {env_file}, which only you can read?", default=True):
            set_in_env_file(env_file, "SNOWFLAKE_PAT", read_pat(pat))
            return pat
    refuse_shell_only(pat, env_file)
    return pat


def accepted(settings: Settings, environ: Mapping[str, str], *, new: bool) -> bool:
    """Look whether Snowflake accepts the programmatic access token, and ask for another one if it does not. Says
    nothing if all is well and nothing is `new`. Returns False if a setting was changed meanwhile."""
    failure = first_failure(environ)
    if failure is None:
        if new:
            print(f"Snowflake accepts the programmatic access token of {settings.account}.{settings.user}.")
        return True
    print(f"{failure.found}\n{failure.fix}", flush=True)
    if failure.found.startswith("Snowflake refuses") and settings.pat is not None and settings.pat.in_env_file:
        if ask_pat(settings, how_to_make=""):
            return False
    elif failure.name == "Host":
        no_such_host = failure.found.startswith("there is no host") and names_are_found()
        if yes("Change the account or the user?", default=no_such_host) and change(environ, settings):
            return False
    print(f"Continuing. Everything works after Snowflake accepts the token. To see the state: {make('doctor')}")
    return True


def usable_key(settings: Settings, environ: Mapping[str, str], *, interactive: bool) -> rsa.RSAPrivateKey:
    """The private key. Asks for its passphrase if `.env` has none or a wrong one, and puts it there."""
    from bundle.tokens import PassphraseError, load_key  # noqa: PLC0415 - needs packages

    path = settings.private_key_path
    try:
        return load_key(path, settings.passphrase)
    except PassphraseError as error:
        if not interactive or environ.get("PRIVATE_KEY_PASSPHRASE"):
            raise
        print(str(error).partition("\n")[0])
    while True:
        text = getpass("Its passphrase (what you type is not shown): ")
        try:
            key = load_key(path, text)
        except PassphraseError:
            print("This passphrase does not open the key.")
            continue
        env_file = settings.folder / ".env"
        set_in_env_file(env_file, "PRIVATE_KEY_PASSPHRASE", text)
        print(f"The passphrase is in {env_file} now. Only you can read that file.")
        return key


def make_key_pair(path: Path) -> Path:
    """Write an RSA-2048 key (PKCS8, not encrypted) to `path` and its public key beside it; returns the public key's
    path.

    Overwrites nothing; raises ConfigError."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - needs a package
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    public = path.with_suffix(".pub")
    if public == path:
        raise ConfigError(f"SNOWFLAKE_PRIVATE_KEY_PATH is {path}, the name of a public key.\nName the private key.")
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


def register(settings: Settings, key: rsa.RSAPrivateKey, environ: Mapping[str, str], *, new: bool) -> bool:
    """Unless the key is registered, print the statement that registers it and wait until Snowflake accepts the key.
    Says nothing if all is well and nothing is `new`. Returns False if account or user were changed meanwhile."""
    from bundle.tokens import name_note, register_statement  # noqa: PLC0415 - needs packages

    statement = register_statement(settings.user, key)
    shown: set[str] = set()  # everything shown so far, so that nothing is shown twice
    start = time.monotonic()
    while (failure := first_failure(environ)) is not None:
        unregistered = statement in failure.fix
        if not unregistered and failure.found not in shown:
            print(f"{failure.found}\n{failure.fix}", flush=True)
            no_such_host = failure.found.startswith("there is no host") and names_are_found()
            ask = failure.name != "Clock" and not shown
            shown.add(failure.found)
            if ask and yes("Change the account or the user?", default=no_such_host) and change(environ, settings):
                return False
        if not unregistered and (failure.name == "Login" or not new):  # waiting does not fix a role or a policy
            return True
        if statement not in shown:
            shown.add(statement)
            if not new:
                print(f"{failure.found}.")
            print(f"\nRun this in Snowsight, as ACCOUNTADMIN or {settings.user}:\n\n{statement}\n")
            print(name_note(settings.user))
            with suppress(termios.error):  # ignore keys that were pressed before this message
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
            print("Waiting until Snowflake accepts the key. Press Enter to go on without waiting.")
            print(f"(Is {settings.account} or {settings.user} wrong? Type c and Enter to change it.)")
            print("(May you not run it? Type t and Enter to use a programmatic access token instead.)", flush=True)
        waited = time.monotonic() - start
        if waited > HINT_SECONDS and failure.found not in shown:
            shown.add(failure.found)
            print(f"{failure.found}\n{failure.fix}", flush=True)
        if waited <= WAIT_SECONDS and not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            continue
        typed = sys.stdin.readline().strip().lower() if waited <= WAIT_SECONDS else ""
        if (typed == "c" and change(environ, settings)) or (typed == "t" and change_to_pat(settings)):
            return False
        if typed == "t":
            print("Still waiting until Snowflake accepts the key. Press Enter to go on without waiting.", flush=True)
            continue
        print(f"Continuing. Everything works after you have run the statement. To see the state: {make('doctor')}")
        return True
    if new or shown:
        print(f"Snowflake accepts the key of {settings.account}.{settings.user}.")
    return True


def first_failure(environ: Mapping[str, str]) -> Finding | None:
    """The first cause why Snowflake does not accept the key: host, clock or login."""
    # Imported here, because this takes half a second, and the first questions come before the packages are there.
    from bundle.checks.connections import snowflake  # noqa: PLC0415
    from bundle.checks.finding import read_installation  # noqa: PLC0415

    findings = snowflake(read_installation(environ, time.time()))
    return next((finding for finding in findings if finding.state == "fail"), None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Complete the set-up: account, user, and a key pair or a token.")
    parser.add_argument("--first", action="store_true", help="only account and user; needs nothing that is installed")
    first = parser.parse_args(arguments).first
    interactive = sys.stdin.isatty()
    try:
        (first_questions if first else set_up)(os.environ, interactive=interactive)
    except ConfigError as error:
        how = f"Or run this in a terminal: it asks, and makes the key pair or takes a token.\n{make('start')}"
        hint = "" if interactive else f"\n{how}"
        print(f"configure.py: {error}{hint}", file=sys.stderr, flush=True)
        return EX_CONFIG
    except (KeyboardInterrupt, EOFError):
        print("\nStopped. Your answers are in .env. You will not be asked for them again.", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
