"""The ledger: one line of JSON for each answer of Cortex, in a file for each month, `ledger/2026-11.jsonl`.

A line holds when, by which model and how many tokens, and nothing of any prompt, answer, tool or path. The proxy writes
it (bundle/proxy/bookkeeper.py); usage.py and the proxy's own sums read it. Only the owner can read the files.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bundle.cortex.usage import Used, count
from bundle.errors import ConfigError, printable
from bundle.files import make_private_folder, read_own, refuse_foreign

FOLDER = "ledger"
MOST_FILES = 13  # months: this one, and the same one of last year
ESTIMATED, COUNTED = "estimated", "counted"  # how the reads and the writes of the cache are known
_TEXTS = ("session", "asked", "model", "route", "split")
_NUMBERS = ("input", "cache_read", "cache_write", "output", "first_ms", "ms")
_FILE = re.compile(r"\d{4}-\d{2}\.jsonl")
_SESSION = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True)
class Line:
    """One answer. Times are in milliseconds. Tokens are None if the answer ended before Cortex said them; of an answer
    that broke off, only `output` may be None. An answer that Cortex refused has zeros."""

    time: str  # in UTC, as 2026-11-29T08:20:23+00:00
    session: str  # Claude Code's; "" for another client
    asked: str  # the model that the client named
    model: str  # the model that answered
    route: str  # "chat" or "messages"
    status: int  # what the client got: 200; 499 if it left; or an error
    input: int | None = None  # neither read from the cache nor written to it
    cache_read: int | None = None
    cache_write: int | None = None
    output: int | None = None
    split: str = COUNTED  # ESTIMATED if Cortex has told reads and writes of the cache as one number
    first_ms: int | None = None  # to the first byte of Cortex's answer
    ms: int | None = None  # to its end

    @property
    def used(self) -> Used | None:
        if self.input is None:
            return None
        return Used(self.input, self.cache_read or 0, self.cache_write or 0, self.output or 0)

    def at(self) -> datetime:
        """The time on this machine's clock. Raises ValueError."""
        return datetime.fromisoformat(self.time).astimezone()


def line(
    now: float,
    *,
    session: str,
    asked: str,
    model: str,
    route: str,
    status: int,
    used: Used | None,
    read: int | None = None,
    first_ms: float | None = None,
    ms: float | None = None,
    is_whole: bool = True,
) -> Line:
    """The line for an answer that ended at `now`. `read` is how many of `used.cached` were read, as an estimate; with
    `is_whole` False the number of output tokens is not known."""
    tokens: dict[str, Any] = {}
    if used is not None:
        read = min(read or 0, used.cached)
        tokens = {
            "input": used.input,
            "cache_read": used.cache_read + read,
            "cache_write": used.cache_write + used.cached - read,
            "output": used.output if is_whole else None,
            "split": ESTIMATED if used.cached else COUNTED,
        }
    return Line(
        time=datetime.fromtimestamp(int(now), timezone.utc).isoformat(),
        session=session if _SESSION.fullmatch(session) else "",
        asked=printable(asked, 100),
        model=printable(model, 100),
        route=route,
        status=status,
        first_ms=None if first_ms is None else round(first_ms),
        ms=None if ms is None else round(ms),
        **tokens,
    )


def append(folder: Path, lines: Sequence[Line]) -> None:
    """Write the lines to the files of their months, whole or not at all. `folder` is the bundle's. Raises OSError or
    ConfigError, and then the lines are lost."""
    place = folder / FOLDER
    by_month: dict[str, list[str]] = {}
    for each in lines:
        by_month.setdefault(each.time[:7], []).append(json.dumps(asdict(each), separators=(",", ":")))
    for month, texts in by_month.items():
        path = place / f"{month}.jsonl"
        is_new = not path.exists()
        make_private_folder(place)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "rb+", buffering=0) as file:
            refuse_foreign(path, os.fstat(file.fileno()))
            size = file.seek(0, os.SEEK_END)
            data = "".join(f"{text}\n" for text in texts).encode()
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a crash has cut the last line
                data = b"\n" + data
            if file.write(data) < len(data):  # the disk is full
                with suppress(OSError):
                    file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if is_new:
            forget_old(folder)


def forget_old(folder: Path) -> None:
    """Remove the oldest files, so that MOST_FILES stay."""
    for path in ledger_files(folder)[:-MOST_FILES]:
        with suppress(OSError):
            path.unlink()


def ledger_files(folder: Path) -> list[Path]:
    """The files, oldest first."""
    return sorted(path for path in (folder / FOLDER).glob("*.jsonl") if _FILE.fullmatch(path.name))


def read_lines(folder: Path, since: datetime | None = None) -> Iterator[Line]:
    """The lines from `since` on, file by file; lines that are damaged are left out. Raises ConfigError."""
    first = since.astimezone(timezone.utc) if since else None
    for path in ledger_files(folder):
        if first and path.stem < f"{first:%Y-%m}":
            continue
        try:
            texts = read_own(path).splitlines()
        except OSError as error:
            raise ConfigError(
                f"cannot read {path}: {error.strerror}.\nCheck with: ls -l {shlex.quote(str(path))}"
            ) from None
        for text in texts:
            if (found := _parsed(text)) and (first is None or found.at() >= first):
                yield found


def _parsed(text: bytes) -> Line | None:
    try:
        kept: Mapping[str, Any] = json.loads(text)
        texts: dict[str, Any] = {name: _text(kept.get(name, "")) for name in _TEXTS}
        numbers: dict[str, Any] = {name: _number(kept.get(name)) for name in _NUMBERS}
        found = Line(time=str(kept["time"]), status=count(kept["status"]), **texts, **numbers)
        found.at()
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None
    return found


@functools.lru_cache(1_000)
def _cleaned(text: str) -> str:
    return printable(text, 100)


def _text(value: object) -> str:
    """A text of the file. The same few are in all lines."""
    return _cleaned(value) if isinstance(value, str) and len(value) < 100 else printable(value, 100)


def _number(value: object) -> int | None:
    return None if value is None else count(value)
