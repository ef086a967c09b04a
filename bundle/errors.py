"""The errors whose text is the whole message for the user, and how a line reaches the log."""

from __future__ import annotations

from contextlib import suppress
from typing import TextIO


def say(text: str, file: TextIO | None = None) -> None:
    """Lines for the log. PM2 holds the other end of the pipe, and its death must not look like a failure of ours."""
    with suppress(OSError):
        # In one write, its end included: of what comes without one PM2 leaves out the last line.
        print(f"{text}\n", end="", file=file, flush=True)


class ConfigError(Exception):
    """A mistake that the user can fix; `str()` is the whole message: what, where, why and the remedy."""


class WriteError(ConfigError):
    """A write failed for a reason that may pass by itself: the refresher tries again instead of ending."""
