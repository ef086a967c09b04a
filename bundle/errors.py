"""Errors whose text is the whole message for the user; what may leave for a log or a terminal, and how."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

LINE = 500  # characters of a line with words from outside
TEXT = 20_000  # characters of any text that is logged or shown
_RUN = re.compile(r"[\w.-]+")  # the characters of a token; each run of them is read once, however long it is


_HIDDEN: list[str] = []  # secrets without a form of their own, as this process has read them
_MOST_HIDDEN = 20
_SHORTEST = 8  # characters of a secret, or of its beginning, that are worth hiding


def hide(secret: str) -> None:
    """From now on take this secret out of every text that leaves: nothing in its form tells what it is."""
    if len(secret) >= _SHORTEST and secret not in _HIDDEN:
        _HIDDEN.append(secret)
        del _HIDDEN[:-_MOST_HIDDEN]


def redact(text: str) -> str:
    """The text without the secrets that are known (`hide`), and without anything that looks like a token: from `eyJ`
    on, if another part follows after a dot."""
    for secret in _HIDDEN:
        text = text.replace(secret, "[token]")
        start = text.rfind(secret[:_SHORTEST], max(0, len(text) - len(secret)))
        if start >= 0 and secret.startswith(text[start:]):  # the text was cut inside it
            text = f"{text[:start]}[token]"
    return _RUN.sub(_without_token, text)


def _without_token(run: re.Match[str]) -> str:
    before, start, rest = run[0].partition("eyJ")
    return f"{before}[token]" if start and rest.partition(".")[2] else run[0]


def clean(text: str, limit: int = TEXT) -> str:
    """The text as it may leave for a log or a terminal: bounded, without tokens, and with newlines as the only control
    characters. Escape codes and characters that change the direction of text or have no width become spaces."""
    text = redact(text[: 4 * limit])
    text = text if len(text) <= limit else f"{text[:limit]}…"
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def printable(text: object, limit: int = LINE) -> str:
    """Words from outside as a part of one line: `clean`, without newlines."""
    return " ".join(clean(str(text)[: 4 * limit], limit).split())


def say(text: str, file: TextIO | None = None) -> None:
    """Write lines to the log, which is a pipe to PM2. Words from outside in them must be `printable`."""
    with suppress(OSError):  # PM2 has died: this process must not fail because of it
        # One write for the text and its newline: PM2 drops a last line that arrives without its newline.
        print(f"{clean(text)}\n", end="", file=file, flush=True)


def printed(name: str, main: Callable[[], int]) -> int:
    """Run `main` of the script `name`, which prints to standard output; returns the exit status. A reader that has left
    (`| head`) has what it wanted; a full disk is one message and 1."""
    try:
        try:
            status = main()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # Rich ends so
                raise end.__context__ from None
            raise
        finally:
            if sys.stdout:  # it may be closed
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # it is not about standard output
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end
        if isinstance(error, BrokenPipeError):
            return 0
        say(f"{name}: cannot write the output: {error.strerror}.\nCheck with: df -h", sys.stderr)
        return 1
    return status


class SayOnce:
    """Says a line only the first time, because every turn of a session needs the same changes. Others choose the names
    in these lines, so their number has an end."""

    def __init__(self, most: int = 1_000, log: Callable[[str], None] | None = None) -> None:
        self._most, self._log, self._said = most, log or say, set[str]()

    def __call__(self, line: str) -> None:
        if line not in self._said and len(self._said) < self._most:
            self._said.add(line)
            self._log(line if len(self._said) < self._most else "… further lines of this kind are not logged")


class ConfigError(Exception):
    """A mistake that the user can fix; `str()` is the whole message: what, where, why and the remedy."""


class WriteError(ConfigError):
    """A write failed for a reason that may go away without action: the refresher tries again instead of exiting."""
