"""Which turn the stand-in's model gives next: scripts, and directives in prompts.

A turn is one answer of the model. The stand-in finds the turn to give in the conversation itself, so retries, side
calls and restarts cannot shift it. It puts the turn's number into the ids of its tool calls. Later it finds the highest
number after the prompt that started the script, and adds the answers without calls since then. A client may split
parallel calls into several assistant messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.cortex_rules import JSON


@dataclass(frozen=True)
class Call:
    """One tool call; `raw` overrides the arguments' text (to send broken JSON, for one)."""

    name: str
    input: JSON = field(default_factory=dict)
    raw: str | None = None


@dataclass(frozen=True)
class Turn:
    """One answer.

    `chunks` stretches the text to that many stream chunks, `delay` seconds apart. `hold` stops the stream after that
    many chunks until `CortexStub.release`. `error` is a fault (cortex_faults.py) that comes `times` times before the
    answer itself.
    """

    text: str = ""
    tools: tuple[Call, ...] = ()
    thinking: str = ""
    chunks: int = 0
    delay: float = 0.0
    hold: int | None = None
    error: JSON | None = None

    @classmethod
    def of(cls, spec: str | JSON) -> Turn:
        """A turn from a script: a text, or an object with this class's fields.

        A tool is `["Bash", {…}]` or an object with `name`, `input`, `raw`. An error is a fault's name, or an object
        with `name` and its settings.
        """
        if isinstance(spec, str):
            return cls(text=spec)
        calls = [Call(*tool) if isinstance(tool, list) else Call(**tool) for tool in spec.get("tools", [])]
        error = spec.get("error")
        return cls(**{**spec, "tools": tuple(calls), "error": {"name": error} if isinstance(error, str) else error})


@dataclass(frozen=True)
class Script:
    """Turns that follow the newest prompt that contains `when`; an empty `when` means the first prompt."""

    turns: tuple[Turn, ...]
    when: str = ""


def read_script(spec: Any) -> tuple[Script, ...]:
    """Scripts from JSON: a list of turns, or a list of `{"when": "…", "turns": […]}`."""
    if all(isinstance(item, dict) and "turns" in item for item in spec):
        return tuple(Script(tuple(map(Turn.of, item["turns"])), item.get("when", "")) for item in spec)
    return (Script(tuple(map(Turn.of, spec))),)


_DIRECTIVE = re.compile(r"\[\[(text|then|tools|thinking|stream|hold|error):\s*")
_NAME = re.compile(r"\s*;?\s*([A-Za-z0-9_-]+)\s*")


def directives(prompt: str) -> tuple[Turn, ...]:
    """The turns that a prompt asks for itself.

    Each of these is a turn: `[[text: hello]]` (also `then`), `[[tools: Bash {"command": "ls"} ; Read {…}]]`, and
    `[[stream: 200 0.01]]` (chunks and seconds between them). `[[thinking: …]]`, `[[hold: 3]]` and
    `[[error: cut {"after": 2}]]` change the next turn.
    """
    turns: list[Turn] = []
    coming = Turn()
    at = 0
    while match := _DIRECTIVE.search(prompt, at):
        verb, at = match.group(1), match.end()
        if verb in ("tools", "error"):
            named, at = _named(prompt, at)
            if verb == "error" and named:
                coming = replace(coming, error={"name": named[0].name, **named[0].input})
                continue
            turns.append(replace(coming, tools=tuple(named)))
        else:
            end = prompt.find("]]", at)
            words, at = (prompt[at:], len(prompt)) if end < 0 else (prompt[at:end], end + 2)
            if verb == "thinking":
                coming = replace(coming, thinking=words)
                continue
            if verb == "hold":
                coming = replace(coming, hold=int(words))
                continue
            if verb == "stream":
                chunks, _, delay = words.strip().partition(" ")
                turns.append(replace(coming, chunks=int(chunks), delay=float(delay or 0)))
            else:
                turns.append(replace(coming, text=words))
        coming = Turn()
    if coming != Turn():
        turns.append(replace(coming, text="ok"))
    return tuple(turns)


def _named(prompt: str, at: int) -> tuple[list[Call], int]:
    found = []
    while not prompt.startswith("]]", at) and (match := _NAME.match(prompt, at)):
        value: JSON = {}
        at = match.end()
        if prompt.startswith("{", at):
            value, at = json.JSONDecoder().raw_decode(prompt, at)
        found.append(Call(match.group(1), value))
        at += len(prompt[at:]) - len(prompt[at:].lstrip())
    return found, at


def _said(message: JSON) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if part.get("type") == "text"]


def _calls(message: JSON) -> list[str]:
    chat = [call["id"] for call in message.get("tool_calls") or ()]
    content = message.get("content")
    blocks = content if isinstance(content, list) else ()
    return chat + [block["id"] for block in blocks if block.get("type") == "tool_use"]


def prompt_of(messages: Sequence[JSON]) -> str:
    """The newest text of a user, without what Claude Code adds to it."""
    for message in reversed(messages):
        if message["role"] == "user":
            for text in reversed(_said(message)):
                if bare := re.sub(r"<system-reminder>.*?</system-reminder>", "", text, flags=re.DOTALL).strip():
                    return bare
    return ""


def is_side_call(body: JSON) -> bool:
    """Does Claude Code ask for a title or a summary? Such a call repeats prompts; the one for a summary has tools."""
    last = _said(body["messages"][-1]) if body["messages"] else []
    if any("summary of the conversation" in text for text in last):
        return True
    if body.get("tools"):
        return False
    system = body.get("system") or [message for message in body["messages"] if message["role"] == "system"]
    return "claude" in json.dumps(system).lower()


def next_turn(body: JSON, scripts: Sequence[Script]) -> tuple[Turn | None, int, str]:
    """The scripted turn that answers a body (None: nothing is scripted), its number, and its prompt."""
    messages: list[JSON] = body["messages"]
    if is_side_call(body):
        return None, 0, ""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index]["role"] != "user":
            continue
        text = "\n".join(_said(messages[index]))
        turns = directives(text)
        for script in scripts:
            if not turns and script.when and script.when in text:
                turns = script.turns
        if turns:
            break
    else:
        index = next((at for at, message in enumerate(messages) if message["role"] == "user"), 0)
        turns = next((script.turns for script in scripts if not script.when), ())
        text = "\n".join(_said(messages[index]))
    number = 0
    for message in messages[index:]:
        if message["role"] == "assistant":
            numbers = [int(match.group(1)) for id_ in _calls(message) if (match := re.search(r"T(\d+)C\d+$", id_))]
            number = max(numbers) + 1 if numbers else number + (not _calls(message))
    return (turns[number] if number < len(turns) else None), number, text
