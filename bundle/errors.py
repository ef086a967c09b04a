"""Errors whose text is the whole message for the user, and the function that writes to the log."""

from __future__ import annotations

from contextlib import suppress
from typing import TextIO


def say(text: str, file: TextIO | None = None) -> None:
    """Write lines to the log, which is a pipe to PM2."""
    with suppress(OSError):  # PM2 has died: this process must not fail because of it
        # One write for the text and its newline: PM2 drops a last line that arrives without its newline.
        print(f"{text}\n", end="", file=file, flush=True)


class ConfigError(Exception):
    """A mistake that the user can fix; `str()` is the whole message: what, where, why and the remedy."""


class WriteError(ConfigError):
    """A write failed for a reason that may go away without action: the refresher tries again instead of exiting."""
