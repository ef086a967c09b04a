"""Claude Code's status line: the model that answers, the dollars, the context in use, the share from the cache.

Claude Code runs `point_claude.py --statusline` at its start and after each answer, and shows the first line that it
prints. The command has 50 milliseconds. So this module imports nothing else of the bundle, and from Python's library
only what loads fast. Everything that it reads is untrusted: damaged or missing values leave their part out.

Measured with Claude Code 2.1.197 and 2.1.332: its JSON comes through a pipe that it closes; COLUMNS is the width of the
terminal, of which four columns stay empty; `current_usage` is null before the first answer and after /compact; `-p`
runs no status line; and without colour (NO_COLOR, TERM=dumb) Claude Code takes the colours out itself.
"""

from __future__ import annotations

import json
import os
import re
import select
import stat
import time
from collections.abc import Mapping

SPENT = ".spent.json"  # bundle/spending.py writes it
MOST_BYTES = 1_000_000  # of each input; Claude Code's JSON has 2,000
SECONDS = 1.0  # for Claude Code to send its JSON
COLUMNS, MARGIN = 80, 4  # of a terminal whose width is not known; the ones that Claude Code keeps empty
WARNING = 0.8  # of the dollars of a day
YELLOW, RED = "33", "31"
BETWEEN = " · "
# What gets shorter or goes, one after the other, if the line is too long.
LEAST_FIRST = ("context", "cached", "context", "session", "model", "today", "model")
CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
_NAMES = {"gpt": "GPT", "deepseek": "DeepSeek"}


def status_line(told: object, spent: object, *, width: int, colour: bool, today: str) -> str:
    """One line of at most `width` characters, or "". `told` is Claude Code's JSON, `spent` the content of .spent.json,
    and `today` the date on this machine's clock."""
    session = _at(spent, "sessions", _text(_at(told, "session_id")))
    name, asked = _model(told, session)
    today_words, today_colour = _today(spent, today)
    parts = {
        "model": [f"{name} (asked: {asked})", name, ""] if asked else [name, ""],
        "session": [_session(told, spent, session), ""],
        "today": [today_words, ""],
        "context": [*_context(_at(told, "context_window")), ""],
        "cached": [_cached(session), ""],
    }
    shorten = iter(LEAST_FIRST)
    while len(BETWEEN.join(forms[0] for forms in parts.values() if forms[0])) > max(0, width):
        part = next(shorten)
        parts[part] = parts[part][1:] or [""]
    colours = {"model": YELLOW if "(asked: " in parts["model"][0] else "", "today": today_colour}
    return BETWEEN.join(
        f"\x1b[{colours[part]}m{forms[0]}\x1b[0m" if colour and colours.get(part) else forms[0]
        for part, forms in parts.items()
        if forms[0]
    )


def _model(told: object, session: object) -> tuple[str, str]:
    """(the model that answers, the model that was asked for if it is another one). Sub-agents ask for other models than
    the chosen one, so the newest answer for that one counts."""
    chosen, models = _text(_at(told, "model", "id")), _at(session, "models")
    for given, model in reversed(models.items() if isinstance(models, dict) else ()):
        asked, answered = _text(given), _text(model)
        if answered and (not chosen or _words(asked) == _words(chosen)):
            return short_name(answered), "" if _words(asked) <= _words(answered) else short_name(asked)
    return short_name(chosen) or short_name(_text(_at(told, "model", "display_name"))), ""


def short_name(model: str) -> str:
    """A name for people: `claude-sonnet-5-latest[1m]` as `Sonnet 5`, `openai-gpt-5.2` as `GPT 5.2`."""
    name = re.sub(r"^(?:claude|openai)-|(?:-latest|-\d{6,8})?(?:\[1m\])?$", "", model)
    words = re.sub(r"(\d)-(?=\d)", r"\1.", name).split("-")
    name = " ".join(_NAMES.get(word, word[:1].upper() + word[1:]) for word in words)
    return name if len(name) <= 30 else f"{name[:29]}…"


def _words(model: str) -> set[str]:
    """The words of a name: Cortex calls Sonnet 4 `claude-4-sonnet`, and `claude-opus-latest` asks for any Opus."""
    return set(short_name(model).split())


def _session(told: object, spent: object, session: object) -> str:
    if session:
        return _dollars(_at(session, "spent"), "session")
    return "$0.00 session" if _text(_at(spent, "day")) and _text(_at(told, "session_id")) else ""


def _today(spent: object, today: str) -> tuple[str, str]:
    """(words, colour): with the limit, once 80 % of it are spent."""
    day = _text(_at(spent, "day"))
    if day != today:  # nothing was answered yet today
        return "$0.00 today" if day else "", ""
    total, limit = _at(spent, "today"), _number(_at(spent, "limit"))
    usd = _number(_at(total, "usd")) or 0
    if not limit or usd < WARNING * limit:
        return _dollars(total, "today"), ""
    return _dollars(total, f"of {money(limit)} today"), YELLOW if usd < limit else RED


def _dollars(total: object, what: str) -> str:
    """The sum is a lower bound if some tokens have no price; ~ marks an estimate."""
    usd, unpriced = _number(_at(total, "usd")), _number(_at(total, "unpriced"))
    if usd is None:
        return ""
    if unpriced and not usd:
        return f"{what}: no price"
    return f"{'at least ' if unpriced else _about(total)}{money(usd)} {what}"


def _about(total: object) -> str:
    low, high = _number(_at(total, "low")) or 0, _number(_at(total, "high")) or 0
    return "~" if high - low > 0.01 * high else ""


def money(usd: float) -> str:
    """As `spending.money`, which this module must not import."""
    return f"${usd:,.0f}" if usd >= 1_000 else f"${usd:.2f}" if usd >= 0.1 or not usd else f"${max(usd, 0.0001):.4f}"


def _context(window: object) -> list[str]:
    """The forms of this part, the longest first."""
    size, used = _number(_at(window, "context_window_size")), _at(window, "current_usage")
    tokens = sum(_number(_at(used, name)) or 0 for name in ("input_tokens", *CACHED))
    if not tokens:
        return []
    short = f"{_tokens(tokens)} of {_tokens(size)}" if size else _tokens(tokens)
    return [f"{short} context", short]


def _tokens(number: float) -> str:
    """950, 45k, 1.2M"""
    if number < 999.5:
        return f"{number:.0f}"
    return f"{number / 1_000:.0f}k" if number < 999_500 else f"{number / 1_000_000:.1f}".removesuffix(".0") + "M"


def _cached(session: object) -> str:
    """The share of this session's prompts that was read from the cache. Without the proxy's sum it is not known: what
    Claude Code says of the last prompt counts on chat completions all that is cached as read."""
    total = _at(session, "spent")
    read, written, new = (_number(_at(total, name)) or 0 for name in ("cache_read", "cache_write", "input"))
    prompt = read + written + new
    return f"{_about(total)}{100 * read / prompt:.0f}% cached" if prompt else ""


def _at(tree: object, *names: str) -> object:
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _text(value: object) -> str:
    """A text as a part of the line: bounded, and ASCII, so without escape codes and with one column a character."""
    return " ".join(re.sub(r"[^!-~]+", " ", value[:200]).split()) if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    """A number that is no nonsense, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < 1e12 else None


# ------------------------------------------------------------------------------------------------------- as a command


def is_read() -> bool:
    """Whether Claude Code runs this, or somebody in its place: a pipe or a file is on stdin, and no terminal."""
    try:
        return not stat.S_ISCHR(os.fstat(0).st_mode)
    except OSError:  # it is closed
        return False


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Print the line for the JSON on stdin; returns the exit status. Whatever comes, this ends soon and well."""
    told = _stdin()
    columns = environ.get("COLUMNS", "")
    width = int(columns) if re.fullmatch(r"[1-9]\d{0,3}", columns) else COLUMNS
    colour = not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"
    line = status_line(
        _parsed(told), _spent(environ), width=width - MARGIN, colour=colour, today=time.strftime("%Y-%m-%d")
    )
    try:
        os.write(1, f"{line}\n".encode() if line else b"")
        if not told:
            os.write(2, b"There is no JSON of Claude Code on stdin. To install the status line, use a terminal.\n")
    except OSError:  # nobody reads it any more
        pass
    return 0


def _stdin() -> bytes:
    """All that comes within SECONDS."""
    data, deadline = b"", time.monotonic() + SECONDS
    try:
        while len(data) <= MOST_BYTES and select.select([0], [], [], max(0, deadline - time.monotonic()))[0]:
            if not (more := os.read(0, 65536)):
                break
            data += more
    except OSError:
        pass
    return data


def _spent(environ: Mapping[str, str]) -> object:
    """The content of the file; None if there is none that the user or root has written. (`bundle.bootstrap` has the
    same folder.)"""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folder = os.path.expanduser(environ.get("CORTEX_HOME") or own)
    try:
        descriptor = os.open(os.path.join(folder, SPENT), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_uid not in {0, os.geteuid(), os.stat(folder).st_uid} or not stat.S_ISREG(status.st_mode):
                return None
            return _parsed(file.read(MOST_BYTES + 1))
    except OSError:
        return None


def _parsed(data: bytes) -> object:
    try:
        return json.loads(data) if len(data) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        return None
