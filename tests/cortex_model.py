"""What the stand-in's model says next, in Cortex's shapes, and what it charges: pure but for the cache's entries.

**Scripts.** A turn is one answer of the model. The turn to give is read off the conversation itself, so retries, side
calls and restarts cannot shift it: the stand-in puts the turn's number into the ids of its tool calls, finds the
highest number after the prompt that started the script, and adds the text-only answers since. It does not matter when a
client splits parallel calls into several assistant messages.

**Charging.** One token is four bytes of UTF-8, rounded up per block; an image is 1500. The prompt is the ordered list
of blocks (tools, system, messages). A cache mark stores the prefix that ends at its block, if that has at least 1024
tokens, for five minutes from its last use; a mark looks back over twenty blocks for a stored prefix. On Chat
Completions marks on blocks of system, user and assistant messages count, on Messages every mark.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.cortex_rules import DEFAULT_OUTPUT, JSON, Options, is_claude, is_openai, thinking_signature

# --- scripts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One tool call; `raw` overrides the arguments' text (to send broken JSON, for one)."""

    name: str
    input: JSON = field(default_factory=dict)
    raw: str | None = None


@dataclass(frozen=True)
class Turn:
    """One answer. `chunks` stretches the text to that many stream chunks, `delay` seconds apart; `hold` stops the
    stream after that many chunks until the stand-in is told to go on; `error` names a fault (`FAULTS` of the server)
    that replaces the answer `times` times before the turn itself is given."""

    text: str = ""
    tools: tuple[Call, ...] = ()
    thinking: str = ""
    chunks: int = 0
    delay: float = 0.0
    hold: int | None = None
    error: JSON | None = None

    @classmethod
    def of(cls, spec: str | JSON) -> Turn:
        """A turn from a script: a text, or an object with this class's fields; a tool is `["Bash", {…}]` or an object
        with `name`, `input`, `raw`; an error is a fault's name or an object with `name` and its settings."""
        if isinstance(spec, str):
            return cls(text=spec)
        calls = [Call(*tool) if isinstance(tool, list) else Call(**tool) for tool in spec.get("tools", [])]
        error = spec.get("error")
        return cls(**{**spec, "tools": tuple(calls), "error": {"name": error} if isinstance(error, str) else error})


@dataclass(frozen=True)
class Script:
    """Turns that follow the newest prompt with `when` in it; an empty `when` stands for the first prompt."""

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

    `[[text: hello]]` (also `then`), `[[tools: Bash {"command": "ls"} ; Read {…}]]`, `[[stream: 200 0.01]]` (chunks and
    seconds between them) are a turn each; `[[thinking: …]]`, `[[hold: 3]]` and `[[error: cut {"after": 2}]]` change
    the next one.
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
    """Does Claude Code ask for a title or a summary? Such a call repeats prompts as material, the summary has tools."""
    last = _said(body["messages"][-1]) if body["messages"] else []
    if any("summary of the conversation" in text for text in last):
        return True
    if body.get("tools"):
        return False
    system = body.get("system") or [message for message in body["messages"] if message["role"] == "system"]
    return "claude" in json.dumps(system).lower()


def next_turn(body: JSON, scripts: Sequence[Script]) -> tuple[Turn | None, int, str]:
    """The scripted turn that answers a body (None: nothing is scripted), its number, and the prompt it belongs to."""
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


# --- tokens and the prompt cache ------------------------------------------------------------------------------------

CACHE_SECONDS = 300
CACHE_MINIMUM = 1024
LOOKBACK = 20
IMAGE_TOKENS = 1500


def count_tokens(text: str) -> int:
    """Four bytes of UTF-8 are a token, rounded up."""
    return -(-len(text.encode()) // 4)


@dataclass(frozen=True)
class Block:
    """One block of the prompt. A `barrier` is one that no cached prefix reaches over."""

    text: str
    mark: bool = False
    barrier: bool = False
    image: bool = False

    @property
    def tokens(self) -> int:
        return IMAGE_TOKENS if self.image else count_tokens(self.text)


@dataclass(frozen=True)
class Usage:
    """Tokens charged for one request, each token once."""

    input: int = 0
    cache_write: int = 0
    cache_read: int = 0
    output: int = 0


def _plain(value: JSON) -> str:
    return json.dumps({k: v for k, v in value.items() if k != "cache_control"}, separators=(",", ":"), sort_keys=True)


def chat_blocks(body: JSON, options: Options) -> list[Block]:
    """The prompt of a Chat Completions body, system messages first as Claude gets them."""
    blocks = [Block(_plain(tool)) for tool in body.get("tools") or ()]
    messages = body["messages"]
    for message in sorted(messages, key=lambda message: message["role"] not in {"system", "developer"}):
        role = message["role"]
        barrier = role == "tool" and not options.mark_covers_tool_results
        content = message.get("content")
        parts: list[JSON] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        for part in parts:
            mark = "cache_control" in part and role in {"system", "developer", "user", "assistant"}
            image = part["type"] == "image_url"
            text = part["image_url"]["url"] if image else part["text"]
            blocks.append(Block(f"{role}:{text}", mark, barrier, image))
        blocks += [Block(_plain(call["function"])) for call in message.get("tool_calls") or ()]
    return blocks


def messages_blocks(body: JSON) -> list[Block]:
    """The prompt of a Messages body."""
    blocks = [Block(_plain(tool), "cache_control" in tool) for tool in body.get("tools") or ()]
    for message in [{"role": "system", "content": body.get("system") or []}, *body["messages"]]:
        content = message["content"]
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            text = f"{message['role']}:{block['text'] if block['type'] == 'text' else _plain(block)}"
            blocks.append(Block(text, bool(block.get("cache_control")), image=block["type"] == "image"))
    return blocks


def prompt_tokens(blocks: Sequence[Block]) -> int:
    """How many tokens of the window a prompt takes."""
    return sum(block.tokens for block in blocks)


class PromptCache:
    """Stored prefixes and when they end (seconds on the caller's clock)."""

    def __init__(self) -> None:
        self._ends: dict[bytes, float] = {}

    def charge(self, model: str, blocks: Sequence[Block], now: float) -> Usage:
        """What this prompt costs, and store what its marks ask for."""
        digest, total, reach = hashlib.sha256(model.encode()), 0, len(blocks)
        prefixes: list[tuple[bytes, int]] = []
        for index, block in enumerate(blocks):
            digest.update(f"{len(block.text)}:{block.text}".encode())
            total += block.tokens
            prefixes.append((digest.copy().digest(), total))
            if block.barrier:
                reach = min(reach, index)
        marks = [index for index in range(reach) if blocks[index].mark and prefixes[index][1] >= CACHE_MINIMUM]
        if not is_claude(model):
            marks = []
        read = 0
        for mark in marks:
            for key, size in reversed(prefixes[max(0, mark - LOOKBACK) : mark + 1]):
                if self._ends.get(key, 0) > now:
                    read = max(read, size)
                    self._ends[key] = now + CACHE_SECONDS
                    break
        for mark in marks:
            self._ends[prefixes[mark][0]] = now + CACHE_SECONDS
        stored = prefixes[marks[-1]][1] if marks else 0
        return Usage(total - max(read, stored), max(0, stored - read), read)


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What the model said: `calls` are (id, name, arguments as text), `stop` is Anthropic's stop reason."""

    model: str
    text: str
    thinking: str
    calls: tuple[tuple[str, str, str], ...]
    stop: str
    usage: Usage
    chunks: int = 0


def answer(turn: Turn, number: int, body: JSON, options: Options, usage: Usage, *, route: str) -> Answer:
    """A turn as an answer to a body: cut at the token limit, stopped at a stop sequence, with thinking if asked for."""
    model = body["model"]
    if route == "chat":
        thinks = bool(body.get("reasoning")) and is_claude(model)
        stop = body.get("stop") or [] if not is_claude(model) or options.claude_stop == "honoured" else []
        stops = [stop] if isinstance(stop, str) else stop
        limit = body.get("max_completion_tokens") or min(DEFAULT_OUTPUT, options.limit(model))
    else:
        thinks = body.get("thinking", {}).get("type") in {"enabled", "adaptive"}
        stops, limit = body.get("stop_sequences", []), body["max_tokens"]
    reason = "tool_use" if turn.tools else "end_turn"
    text = " ".join(f"w{index}" for index in range(turn.chunks)) if turn.chunks and not turn.text else turn.text
    for word in stops:
        head, found, _ = text.partition(word)
        text, reason = (head, "stop_sequence") if found else (text, reason)
    left, output = limit, 0

    def fit(words: str) -> str:
        nonlocal left, output, reason
        size = count_tokens(words)
        if size > left:
            words, size, reason = words.encode()[: left * 4].decode(errors="ignore"), left, "max_tokens"
        left, output = left - size, output + size
        return words

    thinking = fit(turn.thinking or "Thinking about it.") if thinks else ""
    text = fit(text)
    calls = []
    for index, call in enumerate(turn.tools):
        if left <= 0:
            reason = "max_tokens"
            break
        arguments = json.dumps(call.input) if call.raw is None else call.raw
        if options.older_shapes and arguments == "{}" and route == "chat":
            arguments = ""
        # A name costs a token, so that a call without arguments is not free.
        left, output = left - 1, output + 1
        prefix = "toolu_bdrk_01" if is_claude(model) else "call_"
        calls.append((f"{prefix}{secrets.token_hex(8)}T{number}C{index}", call.name, fit(arguments)))
    return Answer(model, text, thinking, tuple(calls), reason, replace(usage, output=max(output, 1)), turn.chunks)


def _pieces(text: str, chunks: int) -> list[str]:
    """A text in `chunks` stream fragments, or in fragments of a few words."""
    if not text:
        return []
    if chunks:
        words = text.split(" ")
        size = max(1, -(-len(words) // chunks))
        return [
            " ".join(words[at : at + size]) + (" " if at + size < len(words) else "")
            for at in range(0, len(words), size)
        ]
    return [text[at : at + 24] for at in range(0, len(text), 24)]


def _reasoning(text: str, signature: str | None) -> list[JSON]:
    detail = {"type": "reasoning.text", "format": "anthropic-claude-v1", "id": "reasoning-text-1", "index": 0}
    return [{**detail, **({"signature": signature} if signature else {}), "text": text}]


# What stands in every recorded answer beside its content: the empty values of the service's own types. A recorded
# stream has the second group only (docs/cortex.md#answer-empty-fields).
_EMPTY_MESSAGE: JSON = {
    "annotations": None,
    "audio": {"data": "", "expires_at": 0, "id": "", "transcript": ""},
    "function_call": {"arguments": "", "name": ""},
}
_EMPTY_CUSTOM: JSON = {"custom": {"input": "", "name": ""}}
_EMPTY_CHOICE: JSON = {"logprobs": {"content": None, "refusal": None}}
_EMPTY_HEAD: JSON = {"service_tier": "", "system_fingerprint": ""}


def chat_usage(said: Answer) -> JSON:
    """Cortex's arithmetic for Claude: the prompt without cached tokens, reads and writes as one number."""
    usage, cached = said.usage, said.usage.cache_read + said.usage.cache_write
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + cached + usage.output,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def chat_body(said: Answer, now: float) -> JSON:
    """The answer of Chat Completions, not streamed."""
    claude, gpt = is_claude(said.model), is_openai(said.model)
    calls = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}, **_EMPTY_CUSTOM}
        for id_, name, arguments in said.calls
    ]
    message: JSON = {"role": "assistant", "content": said.text, "refusal": "", "tool_calls": calls or None}
    message |= _EMPTY_MESSAGE
    if claude and said.thinking:
        message["reasoning_details"] = _reasoning(said.thinking, thinking_signature(said.thinking))
    tier: JSON = {"service_tier": "default", "system_fingerprint": "fp_standin"} if gpt else _EMPTY_HEAD
    reason = _FINISH[said.stop] if gpt else ""
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}" if gpt else "",
        "object": "chat.completion",
        "created": int(now),
        "model": "" if gpt else said.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, **_EMPTY_CHOICE}],
        "usage": chat_usage(said),
        **tier,
    }


def _data(value: JSON) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chat_stream(said: Answer, now: float, options: Options, *, include_usage: bool) -> Iterator[bytes]:
    """The answer of Chat Completions as server-sent events."""
    claude, older = is_claude(said.model), options.older_shapes
    head: JSON = {
        "id": "" if claude else f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion.chunk",
        "created": 0 if claude else int(now),
        "model": said.model,
        **_EMPTY_HEAD,
    }
    same: JSON = {"role": "" if older else "assistant", "refusal": "", "tool_calls": None} if claude else {}
    same |= _EMPTY_MESSAGE if options.stream_extras else {}
    extras = _EMPTY_CUSTOM if options.stream_extras else {}

    def chunk(delta: JSON, finish: str | None = None) -> bytes:
        choice: JSON = {"index": 0, "delta": {**same, **delta}, **_EMPTY_CHOICE}
        if not claude:
            choice["finish_reason"] = finish
        return _data({**head, "choices": [choice]})

    if not claude:
        yield chunk({"role": "assistant", "content": ""})
    if said.thinking:
        for piece in _pieces(said.thinking, 0):
            yield chunk({"content": "", "reasoning_details": _reasoning(piece, None)})
        if options.signed_streams:
            yield chunk({"content": "", "reasoning_details": _reasoning("", thinking_signature(said.thinking))})
        # The recorded stream has two empty events between its thinking and its text.
        yield chunk({"content": ""})
    for piece in _pieces(said.text, said.chunks):
        yield chunk({"content": piece})
    empty = {"content": ""} if claude else {}
    for index, (id_, name, arguments) in enumerate(said.calls):
        at = {"index": 0 if claude else index}
        kind = "" if older and claude else "function"
        first = {**at, "id": id_, "type": kind, "function": {"name": name, "arguments": ""}, **extras}
        yield chunk({**empty, "tool_calls": [first]})
        for piece in _pieces(arguments, 0):
            yield chunk({**empty, "tool_calls": [{**at, "function": {"arguments": piece}, **extras}]})
    yield chunk(empty, _FINISH[said.stop])
    if include_usage:
        yield _data({**head, "choices": [], "usage": chat_usage(said)})
    yield b"data: [DONE]\n\n"


def _messages_usage(said: Answer) -> JSON:
    usage = said.usage
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    }


def messages_body(said: Answer) -> JSON:
    """The answer of Messages, not streamed."""
    content: list[JSON] = []
    if said.thinking:
        content.append({"type": "thinking", "thinking": said.thinking, "signature": thinking_signature(said.thinking)})
    if said.text or not said.calls:
        content.append({"type": "text", "text": said.text})
    for id_, name, arguments in said.calls:
        try:
            value = json.loads(arguments or "{}")
        except ValueError:  # cut at the token limit
            value = {}
        content.append({"type": "tool_use", "id": id_, "name": name, "input": value})
    return {
        "id": f"msg_bdrk_01{secrets.token_hex(10)}",
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": content,
        "stop_reason": said.stop,
        "stop_sequence": None,
        "usage": _messages_usage(said),
    }


def messages_stream(said: Answer) -> Iterator[bytes]:
    """The answer of Messages as server-sent events."""

    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\n".encode() + _data({"type": kind, **fields})

    whole = messages_body(said)
    start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    yield event("message_start", message=start)
    yield event("ping")
    arguments = iter(said.calls)
    for index, block in enumerate(whole["content"]):
        kind = block["type"]
        deltas: list[JSON]
        if kind == "thinking":
            opening = {"type": kind, "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"], 0)]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif kind == "text":
            opening = {"type": kind, "text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(said.text, said.chunks)]
        else:
            opening = {**block, "input": {}}
            pieces = _pieces(next(arguments)[2], 0)
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        yield event("content_block_start", index=index, content_block=opening)
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    ending = {"stop_reason": said.stop, "stop_sequence": None}
    yield event("message_delta", delta=ending, usage=whole["usage"])
    yield event("message_stop")
