"""bundle/status_line.py: what the line says at each width, whatever comes in; and the real Claude Code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bundle import spending, status_line
from bundle.bootstrap import BUNDLE
from bundle.claude_settings import line_entry
from bundle.cortex.catalogue import DOCUMENTED, OUTPUT_LIMITS, readable
from bundle.spending import Session, Spent, Sum
from tests.checked import FakeProxy, serving
from tests.claude_home import Home
from tests.set_up import CLAUDE, SetUp
from tests.terminal import Terminal
from tests.test_point_claude import Recorder

TODAY, SESSION = "2026-11-29", "576c3a61-56e1-4c4b-a30d-589666c01abb"
WIDE, NARROW = 120 - status_line.MARGIN, 60 - status_line.MARGIN


def told(model: str = "claude-sonnet-5-latest[1m]", used: Any = (1_000, 2_000, 42_000), size: Any = 200_000) -> Any:
    """The JSON of Claude Code 2.1.332."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    usage = {**dict(zip(names, used, strict=True)), "output_tokens": 7} if used else None
    return {
        "session_id": SESSION,
        "model": {"id": model, "display_name": "The Model"},
        "context_window": {"context_window_size": size, "current_usage": usage, "used_percentage": None},
    }


def total(usd: float = 1.23, **more: Any) -> Sum:
    amounts: Any = {"usd": usd, "low": usd, "high": usd, "input": 100, "cache_read": 9_200, "cache_write": 700, **more}
    return Sum(3, **amounts)


def spent(
    session: Sum | None = None,
    today: Sum | None = None,
    *,
    model: str = "claude-sonnet-5",
    asked: str = "claude-sonnet-5-latest",
    later: dict[str, str] | None = None,
    day: str = TODAY,
    limit: float | None = None,
) -> Any:
    own = Session(session or total(), {asked: model} | (later or {}))
    return json.loads(Spent(day, today or total(4.56), {SESSION: own}, limit).text())


PARTLY = total(unpriced=5)
GUESSED = total(low=0.5, high=2)
SHAPES: dict[str, tuple[Any, Any, str, str]] = {
    "all parts": (
        told(),
        spent(),
        "Sonnet 5 · $1.23 session · $4.56 today · 45k of 200k context · 92% cached",
        "Sonnet 5 · $1.23 session · $4.56 today · 45k of 200k",
    ),
    "another model answers": (
        told("claude-opus-5-latest[1m]", size=1_000_000),
        spent(model="claude-opus-4-6", asked="claude-opus-5-latest"),
        "Opus 4.6 (asked: Opus 5) · $1.23 session · $4.56 today · 45k of 1M context · 92% cached",
        "Opus 4.6 (asked: Opus 5) · $1.23 session · $4.56 today",
    ),
    "any model of the family was asked for": (
        told("claude-opus-latest"),
        spent(model="claude-opus-4-6", asked="claude-opus-latest"),
        "Opus 4.6 · $1.23 session · $4.56 today · 45k of 200k context · 92% cached",
        "Opus 4.6 · $1.23 session · $4.56 today · 45k of 200k",
    ),
    "the last answer was for a sub-agent": (
        told("claude-opus-5-latest[1m]"),
        spent(model="claude-haiku-4-5", asked="claude-haiku-4-5-latest"),
        "Opus 5 · $1.23 session · $4.56 today · 45k of 200k context · 92% cached",
        "Opus 5 · $1.23 session · $4.56 today · 45k of 200k",
    ),
    "another model answers, and the last answer was for a sub-agent": (
        told("claude-opus-5-latest[1m]", size=1_000_000),
        spent(model="claude-opus-4-6", asked="claude-opus-5-latest", later={"claude-haiku-4-5": "claude-haiku-4-5"}),
        "Opus 4.6 (asked: Opus 5) · $1.23 session · $4.56 today · 45k of 1M context · 92% cached",
        "Opus 4.6 (asked: Opus 5) · $1.23 session · $4.56 today",
    ),
    "no answer yet": (told(used=None), {**spent(), "sessions": {}}, *["Sonnet 5 · $0.00 session · $4.56 today"] * 2),
    "no answer in this session yet, and a context from before": (
        told(),
        {**spent(), "sessions": {}},
        "Sonnet 5 · $0.00 session · $4.56 today · 45k of 200k context",
        "Sonnet 5 · $0.00 session · $4.56 today · 45k of 200k",
    ),
    "no file": (told(), None, *["Sonnet 5 · 45k of 200k context"] * 2),
    "a model that no release knows": (told("my/llm"), None, *["My/llm · 45k of 200k context"] * 2),
    "the file is of yesterday": (
        told(),
        spent(day="2026-11-28", limit=5),
        "Sonnet 5 · $1.23 session · $0.00 today · 45k of 200k context · 92% cached",
        "Sonnet 5 · $1.23 session · $0.00 today · 45k of 200k",
    ),
    "some tokens have no price": (
        told(),
        spent(PARTLY, PARTLY),
        "Sonnet 5 · at least $1.23 session · at least $1.23 today · 45k of 200k context · 92% cached",
        "Sonnet 5 · at least $1.23 session · at least $1.23 today",
    ),
    "no token has a price": (
        told(),
        spent(total(0, unpriced=5)),
        "Sonnet 5 · session: no price · $4.56 today · 45k of 200k context · 92% cached",
        "Sonnet 5 · session: no price · $4.56 today · 45k of 200k",
    ),
    "estimated": (
        told(),
        spent(GUESSED, GUESSED),
        "Sonnet 5 · ~$1.23 session · ~$1.23 today · 45k of 200k context · ~92% cached",
        "Sonnet 5 · ~$1.23 session · ~$1.23 today · 45k of 200k",
    ),
    "80 % of the limit": (
        told(),
        spent(today=total(4), limit=5),
        "Sonnet 5 · $1.23 session · $4.00 of $5.00 today · 45k of 200k context · 92% cached",
        "Sonnet 5 · $1.23 session · $4.00 of $5.00 today",
    ),
    "not yet 80 %": (
        told(),
        spent(today=total(3.99), limit=5),
        "Sonnet 5 · $1.23 session · $3.99 today · 45k of 200k context · 92% cached",
        "Sonnet 5 · $1.23 session · $3.99 today · 45k of 200k",
    ),
    "little and much": (
        told(used=(950, 0, 0), size=None),
        spent(total(0.0123), total(1234.5), limit=1),
        "Sonnet 5 · $0.0123 session · $1,234 of $1.00 today · 950 context · 92% cached",
        "Sonnet 5 · $0.0123 session · $1,234 of $1.00 today · 950",
    ),
    "nothing at all": (None, None, "", ""),
}


def line(told: Any, spent: Any, width: int = WIDE, *, colour: bool = False) -> str:
    return status_line.status_line(told, spent, width=width, colour=colour, today=TODAY)


@pytest.mark.parametrize(("told", "spent", "wide", "narrow"), SHAPES.values(), ids=SHAPES)
def test_all_is_said_at_120_columns_and_the_most_important_at_60(told: Any, spent: Any, wide: str, narrow: str) -> None:
    assert line(told, spent) == wide
    assert line(told, spent, NARROW) == narrow


@pytest.mark.parametrize(("told", "spent", "wide", "narrow"), SHAPES.values(), ids=SHAPES)
def test_no_part_is_cut_at_any_width(told: Any, spent: Any, wide: str, narrow: str) -> None:
    whole = {*wide.split(" · "), *narrow.split(" · "), ""}
    whole |= {part.partition(" (asked")[0].removesuffix(" context") for part in whole}
    for width in range(-4, 130):
        found = line(told, spent, width)
        assert len(found) <= max(0, width)
        assert set(found.split(" · ")) <= whole
        coloured = line(told, spent, width, colour=True)
        assert coloured.replace("\x1b[33m", "").replace("\x1b[31m", "").replace("\x1b[0m", "") == found


def test_only_what_needs_attention_has_a_colour() -> None:
    assert line(told(), spent(limit=50), colour=True) == line(told(), spent())
    assert "· \x1b[33m$4.10 of $5.00 today\x1b[0m ·" in line(told(), spent(today=total(4.1), limit=5), colour=True)
    assert "· \x1b[31m$5.00 of $5.00 today\x1b[0m ·" in line(told(), spent(today=total(5), limit=5), colour=True)
    other = spent(model="claude-opus-4-6", asked="claude-opus-5")
    assert line(told("claude-opus-5"), other, colour=True).startswith("\x1b[33mOpus 4.6 (asked: Opus 5)\x1b[0m · ")


ODD_NUMBERS = [True, -1, 1e300, 10**400, float("nan"), float("inf")]
BAD: list[Any] = [None, *ODD_NUMBERS, "", "x", [], {}, [{}], {"a": [1]}, "\x1b[31m\n\u202e"]


def places(tree: Any) -> list[list[str]]:
    """The way to each value of a tree."""
    if not isinstance(tree, dict):
        return [[]]
    return [[], *([name, *rest] for name, value in tree.items() for rest in places(value))]


def with_value(tree: Any, way: list[str], value: Any) -> Any:
    return {**tree, way[0]: with_value(tree[way[0]], way[1:], value)} if way else value


def test_no_value_breaks_the_line_or_brings_an_escape_code_into_it() -> None:
    good_told, good_spent = told(), spent(limit=5)
    cases = [(with_value(good_told, way, bad), good_spent) for way in places(good_told) for bad in BAD]
    cases += [(good_told, with_value(good_spent, way, bad)) for way in places(good_spent) for bad in BAD]
    assert len(cases) > 300
    for case in cases:
        found = line(*case, 1_000)
        assert len(found) < 100, case
        assert not {"inf", "nan", "-1", "True"} & set(re.split(r"[ $~%]", found)), case
        assert found.replace("·", "").isascii(), case
        assert found.isprintable(), case


def test_a_long_name_is_bounded() -> None:
    long = "claude-" + "x\x1b[2J\n" * 100_000
    found = line(told(long), spent(model=long, asked=long), 1_000)
    assert len(found) < 120
    assert found.replace("·", "").replace("…", "").isascii()


def test_it_is_the_same_as_what_it_must_not_import() -> None:
    assert spending.FILE == status_line.SPENT
    for usd in (0, 1e-9, 0.00004, 0.0999, 0.1, 1, 999.99, 1_000, 123_456.7):
        assert status_line.money(usd) == spending.money(usd)
    for model in (*(name for names in DOCUMENTED.values() for name in names), *OUTPUT_LIMITS):
        name = readable(model)
        assert status_line.short_name(model) == name.removeprefix("Claude ").removeprefix("OpenAI ")
    assert status_line.short_name("claude-sonnet-4-5-20250929[1m]") == "Sonnet 4.5"


def test_only_what_costs_nothing_is_shown_as_no_money() -> None:
    amounts = (0, 1e-9, 0.00004, 0.00014, 0.0123, 0.1, 12.345, 1_234.5)
    shown = ["$0.00", "$0.0001", "$0.0001", "$0.0001", "$0.0123", "$0.10", "$12.35", "$1,234"]
    assert [status_line.money(usd) for usd in amounts] == shown
    assert " · at least $0.0001 session · " in line(told(), spent(total(0.00002, unpriced=5)))


def test_it_imports_nothing_that_loads_slowly() -> None:
    slow = {"argparse", "dataclasses", "importlib.util", "inspect", "pathlib", "shlex", "typing", "yaml", "datetime"}
    show = "import sys; sys.path[0:0] = sys.argv[1:]; import bundle.status_line; print(*sys.modules)"
    python = [sys.executable, "-E", "-S", "-c", show, str(BUNDLE)]
    loaded = subprocess.run(python, capture_output=True, text=True, check=True).stdout.split()
    assert "bundle.status_line" in loaded
    assert slow.isdisjoint(loaded)
    assert [name for name in loaded if name.startswith("bundle")] == ["bundle", "bundle.status_line"]


# ------------------------------------------------------------------------------------------------------- as a command


def command(folder: Path) -> str:
    """What Claude Code gives to a shell."""
    return str(line_entry(folder)["command"])


def run(folder: Path, data: bytes, **environ: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command(folder)],
        input=data,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "120", **environ},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    return done.stdout.decode()


def spent_today(limit: float | None = None) -> str:
    return json.dumps({**spent(limit=limit), "day": time.strftime("%Y-%m-%d")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "it's a folder"
    made.mkdir()
    (made / ".spent.json").write_text(spent_today(limit=5))
    return made


ALL = "Sonnet 5 · $1.23 session · {}$4.56 of $5.00 today{} · 45k of 200k context · 92% cached\n"


def test_the_command_of_the_settings_prints_one_line_and_is_plain_without_colour(folder: Path) -> None:
    data = json.dumps(told()).encode()
    assert run(folder, data) == ALL.format("\x1b[33m", "\x1b[0m")
    for without in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert run(folder, data, **without) == ALL.format("", "")
    narrow = "Sonnet 5 · $1.23 session · $4.56 of $5.00 today\n"
    assert run(folder, data, TERM="dumb", COLUMNS="60") == narrow
    for unknown in ("", "0", "-5", "wide", "9" * 5000):  # then it is made for 80 columns
        found = run(folder, data, TERM="dumb", COLUMNS=unknown)
        assert found == "Sonnet 5 · $1.23 session · $4.56 of $5.00 today · 45k of 200k · 92% cached\n"
    latin = run(folder, data, TERM="dumb", LC_ALL="de_DE.ISO-8859-1", PYTHONPATH="/no", PYTHONIOENCODING="latin-1")
    assert latin == ALL.format("", "")


NESTED = b'{"model":' * 50_000
GARBAGE = [b"", b"\0\xff{", b"[]", b"null", NESTED, b"x" * 3_000_000, b'{"a": 1' + b"0" * 9_999 + b"}", b"NaN"]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_whatever_is_on_stdin_gives_a_short_line_and_a_good_end(folder: Path, data: bytes) -> None:
    assert run(folder, data, TERM="dumb") == "$4.56 of $5.00 today\n"


@pytest.mark.parametrize("content", [*GARBAGE, None], ids=range(len(GARBAGE) + 1))
def test_a_damaged_file_or_none_leaves_what_claude_code_says(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / ".spent.json").write_bytes(content)
    assert run(tmp_path, json.dumps(told()).encode()) == "Sonnet 5 · 45k of 200k context\n"


def test_it_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".spent.json")
    words, pipe = shlex.split(command(tmp_path)), subprocess.PIPE
    environ = {"CORTEX_HOME": str(tmp_path)}
    with subprocess.Popen(words[1:], env=environ, stdin=pipe, stdout=pipe) as waiting:
        try:
            assert waiting.stdin
            assert waiting.stdout
            waiting.stdin.write(json.dumps(told()).encode())
            waiting.stdin.flush()  # and it is never closed
            assert waiting.wait(20) == 0
            assert waiting.stdout.readline().decode().startswith("Sonnet 5 · 45k")
        finally:
            waiting.kill()


@pytest.mark.real
def test_the_real_claude_shows_the_line(set_up: SetUp) -> None:
    home, work = Home(set_up), set_up.folder / "work"
    work.mkdir()
    home.good("--statusline")
    (set_up.folder / ".spent.json").write_text(spent_today(limit=5))
    trusted = {str(work): {"hasTrustDialogAccepted": True}}
    (set_up.folder / ".claude.json").write_text(json.dumps({"hasCompletedOnboarding": True, "projects": trusted}))
    key = "sk-proxy"
    (set_up.folder / ".master_key").write_text(key)
    environ = {**set_up.environ, **set_up.claude_env(), "TERM": "xterm-256color"}
    with (
        serving(FakeProxy(set_up.port, key, answers=Recorder)),
        Terminal([str(CLAUDE), "--session-id", SESSION], environ, cwd=work, columns=120) as person,
    ):
        person.read_until_drawn("$1.23 session · $4.56 of $5.00 today", 30)
        assert "\x1b[33m$4.56 of $5.00 today" in person.screen
        person.press("hello")
        person.press("\r")
        person.read_until_drawn("1 of 1M context", 30)
