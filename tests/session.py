"""A person's session with the real Claude Code, scripted through what the stand-in's model says."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.claude_models import ALIAS, variables
from bundle.ledger import Line
from tests.claude_home import TEMPLATE, answered_by, rows_of
from tests.cortex_rules import JSON
from tests.set_up import CLAUDE, SetUp

OLD = "claude-sonnet-4-5-20250929"  # an id for which Claude Code asks for `enabled` thinking
TOOLS = "Bash,Read,Write,Edit,Agent,Glob,TaskList"
SETTINGS = ("--output-format", "json", "--permission-mode", "acceptEdits", "--allowedTools", TOOLS)
PROMPT = ("input", "cache_read", "cache_write")  # the tokens of a prompt, in the records of the stand-in
FUTURE = "claude-opus-9-9"  # an id that it does not know: adaptive thinking


@dataclass
class Session:
    """A person at work in one folder: each `say` is a run of `claude` that goes on with the same session."""

    set_up: SetUp
    folder: Path
    claude: Path = CLAUDE
    route: str = ""  # the Cortex path that its requests should use
    environ: dict[str, str] = field(default_factory=dict)  # more environment variables for Claude Code
    options: tuple[str, ...] = ()  # more options for Claude Code
    runs: list[dict[str, Any]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)  # what the ledger says of it

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.requests: list[JSON] = []

    def say(self, prompt: str, *, model: str = "sonnet") -> str:
        before, more = len(self.set_up.stub.requests), ["--continue"] if self.runs else []
        done = subprocess.run(
            [str(self.claude), "-p", prompt, "--model", model, *SETTINGS, *self.options, *more],
            env={**self.set_up.environ, **self.set_up.claude_env(), **self.environ},
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        self.requests += self.set_up.stub.requests[before:]
        assert done.stdout, done.stderr
        run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.runs.append(run)
        assert not run["is_error"], run["result"]
        return str(run["result"])


def call(name: str, **arguments: Any) -> str:
    return f"{name} {json.dumps(arguments)}"


def ask(*turns: str | list[str]) -> str:
    """A prompt that scripts the stand-in: a list is a turn that calls these tools, a string one that says it."""
    return " ".join(
        f"[[text: {turn}]]" if isinstance(turn, str) else f"[[tools: {' ; '.join(turn)}]]" for turn in turns
    )


def a_picture() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
        + chunk(b"IEND", b"")
    )


def work_all_day(session: Session) -> None:
    """At least 25 turns: parallel tools, one that fails, one without arguments, a picture, edits, a sub-agent…"""
    here = session.folder
    (here / "dot.png").write_bytes(a_picture())
    (here / "plan.txt").write_text("alpha\n")
    bash = [call("Bash", command=f"echo {word} >> log.txt") for word in ("one", "two", "three", "four", "five")]
    plan, notes = str(here / "plan.txt"), str(here / "notes.txt")
    said = session.say(
        ask(
            bash[:2],
            bash[2:5],
            [
                call("Bash", command="exit 3"),
                call("Read", file_path=plan),
                call("Read", file_path=str(here / "dot.png")),
            ],
            [call("TaskList"), *[call("Bash", command=f"echo {number}") for number in range(4)]],
            [call("Edit", file_path=plan, old_string="alpha", new_string="ALPHA")],
            [call("Write", file_path=notes, content="beta\n"), call("Bash", command="cat plan.txt")],
            "edited",
        )
    )
    assert said == "edited"
    errand = ask([call("Bash", command="echo errand > errand.txt"), call("Bash", command="true")], "errand done")
    said = session.say(
        ask(
            [
                call(
                    "Agent", description="run", prompt=errand, subagent_type="general-purpose", run_in_background=False
                ),
                bash[0],
            ],
            "back",
        )
    )
    assert said == "back"
    assert session.say(ask([bash[1]], [bash[2], bash[3]], "thought"), model=FUTURE) == "thought"
    assert session.say(ask([bash[1], bash[2]], "quick"), model="haiku") == "quick"
    assert session.say(ask([bash[1]], [bash[0]], "deep"), model="opus") == "deep"
    session.say("/compact")
    assert session.say(ask([bash[4], bash[0]], [call("Read", file_path=notes)], "after")) == "after"
    assert session.say(ask([bash[1], bash[2]], [bash[0]], "old"), model=OLD) == "old"
    assert plan_of(session) == ("ALPHA\n", "beta\n", "errand\n")
    assert (here / "log.txt").read_text().split()[:5] == ["one", "two", "three", "four", "five"]


def plan_of(session: Session) -> tuple[str, ...]:
    return tuple((session.folder / name).read_text() for name in ("plan.txt", "notes.txt", "errand.txt"))


def with_entries(set_up: SetUp, edited: Callable[[str], str] = str) -> tuple[str, ...]:
    """The option that gives Claude Code the entries of point_claude.py, as an edited template makes them."""
    done = set_up.run("point_claude.py", "--file")
    assert done.returncode == 0, done.stderr
    path = set_up.folder / "claude.json"
    tree = json.loads(path.read_text())
    rows = rows_of(edited(TEMPLATE))
    kept = {name: value for name, value in tree["env"].items() if not name.startswith(ALIAS)}
    path.write_text(json.dumps({**tree, "env": {**kept, **variables(rows)}}))
    return "--settings", str(path)


SMALL_SONNET = ("claude-sonnet-*", "claude-sonnet-4-5")  # a row, and the model that answers in its place
SMALL_OPUS = ("claude-opus-*", "openai-gpt-4.1")


def windows_shown(session: Session) -> dict[str, str]:
    """What `/context` shows as the window of each alias, such as `1m`. For "small sonnet" and "small opus", a model
    with 200,000 tokens answers for Sonnet and for Opus."""
    found = {}
    edits: dict[str, Callable[[str], str]] = {"opus": str, "sonnet": str, "haiku": str}
    edits |= {"small sonnet": answered_by(*SMALL_SONNET), "small opus": answered_by(*SMALL_OPUS)}
    for name, edited in edits.items():
        session.options = with_entries(session.set_up, edited)
        session.runs.clear()
        said = session.say("/context", model=name.split()[-1])
        shown = re.search(r"Tokens:\*\* \S+ / (\w+)", said)
        assert shown, said
        found[name] = shown[1]
    return found


WINDOWS = {"opus": "1m", "sonnet": "1m", "haiku": "200k", "small sonnet": "200k", "small opus": "200k"}


def fill_the_window(session: Session, alias: str, window: int) -> None:
    """Prompts of 6,000 tokens each, until Claude Code compacts by itself, and one more. No request is too large for the
    window, in which the requested output counts too. The stand-in counts the first prompt as most of a window."""
    session.set_up.stub.set_options(windows={}, window_counts_output=True)
    first, words = int(0.88 * window) - 72_000, "lorem ipsum dolor sit amet " * 900
    largest = [window]  # request of each turn, in tokens
    for number, weight in enumerate((f"[{first} tokens more]", *[words] * 20)):
        before = len(session.requests)
        session.say(f"{weight} part {number} [[text: done {number}]]", model=alias)
        refused = [record for record in session.requests if record["status"] != 200]
        assert not refused, (refused[0].get("overflow"), refused[0].get("refusal"))
        largest.append(max(sum(record["usage"][kind] for kind in PROMPT) for record in session.requests[before:]))
        if largest[-1] < window / 2:
            break
    assert largest[-1] < window / 2, "it was never compacted"
    assert max(largest[1:]) > 0.7 * window, largest
    assert session.say("and now [[text: on]]", model=alias) == "on"


def fill_the_context(session: Session) -> None:
    """Prompts of 8,000 tokens each into a window of 60,000, of which Claude Code does not know: it compacts when Cortex
    has refused. At the end /compact in a window that is full already."""
    stub, words = session.set_up.stub, "lorem ipsum dolor sit amet " * 1200
    session.options = with_entries(session.set_up)
    session.environ |= {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "8000"}
    stub.set_options(windows={"claude-sonnet-5": 60_000}, window_counts_output=False)
    for number in range(6):
        prompt = f"{words} part {number} {ask([call('Bash', command=f'echo {number} >> log.txt')], f'done {number}')}"
        assert session.say(prompt) == f"done {number}"
    assert (session.folder / "log.txt").read_text().split() == [str(number) for number in range(6)]
    full = [record for record in session.requests if record.get("overflow")]
    assert full, "the window was never full"
    used = sum(session.requests[-1]["usage"][kind] for kind in PROMPT)
    stub.set_options(windows={"claude-sonnet-5": used - 1000})
    session.say("/compact")
    assert session.say(ask([call("Bash", command="echo last >> log.txt")], "on")) == "on"
    assert {record["status"] for record in session.requests if not record.get("overflow")} == {200}
