#!/usr/bin/env python3
"""Keep a live Snowflake credential in LiteLLM's configuration.

Snowflake's key-pair JWTs live one hour, a working day lasts longer, and LiteLLM reads its credential once, at start.
This process signs a new token every 50 minutes and rewrites `litellm_config.yaml` from `litellm_config.template.yaml`;
the proxy (bundle/proxy/hooks.py) looks at that file on each request. The two processes share nothing else but settings.
With a programmatic access token in place of a key pair, nothing is signed: the token itself is written to that file.
PM2 runs this script as `token-refresher`.

Security invariants
- A token is written to one file only: mode 0600 from the start, replaced as a whole.
- No message, state file or exception text contains a token, a passphrase or the master key.
"""
# ruff: noqa: E402 - the two lines that a user may edit come before most imports

from __future__ import annotations

import sys

from bundle.bootstrap import BUNDLE, EX_CONFIG, PM2, enter_venv

if __name__ == "__main__":
    enter_venv()
    from bundle.settings import exit_on_typo

    exit_on_typo()  # checks the next two lines: a typo there would end Python with a traceback

# The simplest way to configure this project: put your account identifier (hyphens, not underscores) and your login name
# here. The environment, `.env` and the default connection of ~/.snowflake work too. The scripts read these two lines as
# text, so that every process sees an edit without a restart.
ACCOUNT = "YOUR-ACCOUNT"
USER = "YOUR_USER"

import argparse
import base64
import json
import os
import select
import signal
import time
from collections.abc import Sequence

from bundle.bootstrap import state_folder
from bundle.errors import ConfigError, WriteError, say
from bundle.files import instance_lock
from bundle.key_forms import how_to_make_a_key
from bundle.refresher import Refresher, read_state, refresh, remove_leftovers, status_lines, what_is_new, works
from bundle.render import render_config
from bundle.settings import Settings, load_settings
from bundle.supervisor import (
    Folders,
    bound_log,
    end_lost_daemon,
    report_ready,
    supervisor_channel,
    supervisor_gone,
)
from bundle.tokens import fingerprint, load_key, name_note, public_der, register_statement, token_now

LOCK = ".refresher.lock"
POLL_SECONDS = 2.0  # how soon an edit is noticed; checking the dates of six files costs almost nothing


class Wait:
    """A sleep that ends early on a signal (HUP: refresh now; INT and TERM: exit), or when PM2 or the terminal is gone.

    A closing terminal also sends HUP. A refresher that was started there by hand then exits, except under `nohup`.
    """

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)  # ends select() at once; an Event set by a signal handler could deadlock
        self._received: set[int] = set()
        self._ends_with_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        self._hung_up = False
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda caught, _frame: self._received.add(caught))
        self.channel = supervisor_channel(os.environ)

    def __call__(self, seconds: float) -> str | None:
        """Sleep; return "end", "refresh" or None."""
        watched = [self._read] if self.channel is None else [self._read, self.channel]
        readable, _, _ = select.select(watched, [], [], seconds)
        if self._read in readable:
            os.read(self._read, 64)
        if self.channel is not None and self.channel in readable and supervisor_gone(self.channel):
            say("PM2 is gone: exiting, so that a restarted PM2 does not start a second refresher")
            return "end"
        hangup = signal.SIGHUP in self._received
        self._received.discard(signal.SIGHUP)  # INT and TERM stay, so that none that comes at this moment is lost
        self._hung_up = self._hung_up or hangup  # some shells send HUP a moment before their terminal is gone
        if self._received or (self._hung_up and self._ends_with_terminal and not has_terminal()):
            return "end"
        return "refresh" if hangup else None


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def refresh_until_stopped(settings: Settings, wait: Wait) -> int | None:
    """Refresh until the process must exit, then return None. If another refresher runs: only return its pid."""
    with instance_lock(settings.folder / LOCK) as holder:
        if holder is not None:
            return holder
        remove_leftovers(settings)
        refresher = Refresher(load_settings)
        refresher.refresh(time.time(), "the refresher has started")
        report_ready(wait.channel)
        folders = Folders(BUNDLE, settings.folder)
        while (request := wait(POLL_SECONDS)) != "end":
            if gone := folders.gone():
                end_lost_daemon(os.environ)
                raise ConfigError(gone)
            refresher.step(force=request == "refresh")
            bound_log(os.environ)
        return None


def run_forever() -> int:
    """Run the refresher as PM2's process; returns the exit status."""
    wait, last_message = Wait(), ""
    while True:
        try:
            holder = refresh_until_stopped(load_settings(), wait)
            if holder is None:
                return 0
            message = f"another refresher (pid {holder or 'unknown'}) is running; this one waits until the other exits"
        except WriteError as error:
            message = f"ERROR: {error}\nTrying again until it works."
        if message != last_message:
            say(message)
            last_message = message
        if wait(POLL_SECONDS) == "end":
            return 0


def once() -> str:
    """Refresh a single time; returns the message for the user."""
    settings = load_settings()
    with instance_lock(settings.folder / LOCK) as holder:
        if holder is not None:
            render_config(settings, token_now(settings, time.time()))
            return (
                "settings, key and template are good. Nothing was written, because token-refresher "
                f"(pid {holder or 'unknown'}) is running and writes the file.\n"
                f"To get a new token now: {f'kill -HUP {holder}' if holder else f'{PM2} restart token-refresher'}"
            )
        remove_leftovers(settings)
        token, _ = refresh(settings, time.time())
    return f"wrote {settings.config_path}, token: {what_is_new(settings, token)}"


def public_key_text(settings: Settings) -> str:
    if settings.pat is not None:
        how = how_to_make_a_key(settings.private_key_path)
        raise ConfigError(
            f"there is no private key: a programmatic access token is in use, from {settings.pat.place}.\n"
            f"A key pair would be used in its place. {how}"
        )
    key = load_key(settings.private_key_path, settings.passphrase)
    return f"""\
Public key (the body of the PEM):
{base64.b64encode(public_der(key)).decode()}

Fingerprint (DESC USER shows it as RSA_PUBLIC_KEY_FP): {fingerprint(key)}

{name_note(settings.user)}

Run this in Snowsight as ACCOUNTADMIN, or as the user itself where that is allowed:
{register_statement(settings.user, key)}"""


def main(arguments: Sequence[str] | None = None) -> int:
    about = "Keep a live Snowflake credential in litellm_config.yaml. Without an option: run until stopped."
    parser = argparse.ArgumentParser(description=about)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--once", action="store_true", help="sign a token, write litellm_config.yaml, exit")
    choice.add_argument("--status", action="store_true", help="show what the running refresher did last")
    choice.add_argument("--public-key", action="store_true", help="show the SQL that registers the key with Snowflake")
    parser.add_argument("--json", action="store_true", help="with --status: for scripts")
    options = parser.parse_args(arguments)
    try:
        if options.status:
            state = read_state(state_folder(os.environ))
            say(json.dumps(state, indent=2) if options.json else "\n".join(status_lines(state, time.time())))
            return 0 if works(state, time.time()) and not state.get("last_error") else 1
        if options.once or options.public_key:
            print(once() if options.once else public_key_text(load_settings()))
            return 0
        return run_forever()
    except ConfigError as error:
        say(f"auto_refresh.py: {error}", sys.stderr)
        return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
