"""Cortex's answers, put into the words that the OpenAI SDK and LiteLLM expect.

The problem: for Claude models Cortex leaves out `finish_reason`, counts cached tokens beside the prompt instead of in
it, calls thinking `reasoning_details`, and sends empty fields of its own types, one of which LiteLLM cannot read at
all. Read as it stands, a tool call is an error, an answer that was cut at its limit looks complete, and a connection
that broke looks like a short answer. The mechanism: pure functions on one answer (`fix_answer`) and on the events of a
stream (`StreamFix`). Both build what they pass on from a list of the fields that OpenAI's schema has and somebody here
reads: whatever else the service sends, now or next year, reaches nobody. No I/O, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.cortex.errors import words_of
from bundle.cortex.models import JSON

HEAD_FIELDS = ("id", "object", "created", "model")
USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")
USAGE_DETAILS = (("prompt_tokens_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens"))
# A stream's lines may name their events; these say nothing.
SILENT_EVENTS = frozenset({b"ping", b"keepalive", b"keep-alive", b"heartbeat"})


class IncompleteAnswerError(Exception):
    """The answer is not whole; `str()` says how that shows. `body` is the service's own error, where it sent one."""

    def __init__(self, why: str, body: str = "") -> None:
        super().__init__(why)
        self.body = body


class EmptyAnswerError(IncompleteAnswerError):
    """A whole answer with nothing in it (docs/cortex.md#answer-empty)."""

    def __init__(self) -> None:
        super().__init__("an answer without content")


def is_silent(event: Mapping[str, Any]) -> bool:
    """Whether an event of a stream is none that anybody has to hear: neither an error nor a part of an answer."""
    return not event.keys() & {"choices", "error", "message", "code", "error_code"}


@dataclass(frozen=True)
class RequestFacts:
    """What was asked, as far as it decides how the answer reads.

    `limit` is the most output tokens (None: not said), `stops` whether there were stop sequences, `model` the bare
    name.
    """

    limit: int | None = None
    stops: bool = False
    model: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> RequestFacts:
        stops = bool(body.get("stop") or body.get("stop_sequences"))
        model = str(body.get("model") or "").rpartition("/")[2]
        return cls(body.get("max_completion_tokens") or body.get("max_tokens"), stops, model)


def fix_answer(body: JSON, facts: RequestFacts) -> JSON:
    """The answer of a request that was not streamed; raises IncompleteAnswerError for what is no answer."""
    try:
        usage = openai_usage(body.get("usage"))
        choices = [_fix_choice(choice, usage, facts) for choice in body["choices"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise IncompleteAnswerError(f"an answer without {error}", json.dumps(body)) from None
    if not choices:
        raise IncompleteAnswerError("an answer without choices")
    return {**_head(body, facts), "choices": choices, **({"usage": usage} if usage else {})}


def _head(body: JSON, facts: RequestFacts) -> JSON:
    # OpenAI's models come without a name (docs/cortex.md#answer-empty-fields).
    head = {key: body[key] for key in HEAD_FIELDS if key in body}
    return {**head, "model": body.get("model") or facts.model}


def _fix_choice(choice: JSON, usage: JSON, facts: RequestFacts) -> JSON:
    given = choice["message"]
    message: JSON = {"role": "assistant", "content": _text(given.get("content")) or None}
    if given.get("refusal"):
        message["refusal"] = given["refusal"]
    text, signature = _thinking(given.get("reasoning_details"))
    if text or signature:
        # Without its signature a thinking block cannot be sent back to anybody, but it can be shown.
        message["reasoning_content"] = text
        message["thinking_blocks"] = [{"type": "thinking", "thinking": text, "signature": signature}]
    calls = [_fix_call(call) for call in given.get("tool_calls") or ()]
    if calls:
        message["tool_calls"] = calls
    reason = choice.get("finish_reason") or finish_reason(usage, facts, called=bool(calls))
    if is_empty(reason, facts) and not (message["content"] or calls or given.get("refusal")):
        raise EmptyAnswerError
    return {"index": choice.get("index") or 0, "message": message, "finish_reason": reason}


def _fix_call(call: JSON) -> JSON:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _thinking(details: Sequence[JSON] | None) -> tuple[str, str]:
    """(text, signature) of what an answer or an event holds of thinking."""
    details = details or ()
    return (
        "".join(detail.get("text") or "" for detail in details),
        "".join(detail.get("signature") or "" for detail in details),
    )


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def finish_reason(usage: Mapping[str, Any], facts: RequestFacts, *, called: bool, refused: bool = False) -> str:
    """docs/cortex.md#answer-finish-reason: for Claude there is none. The number of tokens tells a limit that was
    hit."""
    if facts.limit and (usage.get("completion_tokens") or 0) >= facts.limit:
        return "length"
    return "content_filter" if refused else "tool_calls" if called else "stop"


def is_empty(reason: str, facts: RequestFacts) -> bool:
    """Whether an answer that ended for this reason with neither text nor call is none (docs/cortex.md#answer-empty): a
    limit may be hit while the model still thinks, and a stop sequence may come first."""
    return reason in {"stop", "tool_calls"} and not facts.stops


def openai_usage(usage: JSON | None) -> JSON:
    """docs/cortex.md#answer-usage: `prompt_tokens` is without the cached ones, `cached_tokens` is reads and writes.

    OpenAI's prompt includes them. The sum tells which of the two a model means, so that an answer which is right
    already stays as it is. Reads and writes cannot be told apart.
    """
    if not usage:
        return {}
    plain: JSON = {key: usage.get(key) or 0 for key in USAGE_FIELDS}
    for group, name in USAGE_DETAILS:
        if number := (usage.get(group) or {}).get(name):
            plain[group] = {name: number}
    cached = plain.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    if cached and plain["total_tokens"] == plain["prompt_tokens"] + cached + plain["completion_tokens"]:
        plain["prompt_tokens"] += cached
    return plain


class EventLines:
    """The lines of a stream (server-sent events, docs/cortex.md#answer-stream-lines), in pieces as they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the lines that this piece completes; comments, empty data and pings are left out."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [data for line in lines if (data := self._data(line.strip()))]

    def end(self) -> list[bytes]:
        """The data of a last line that nothing ends."""
        return self.feed(b"\n")

    def _data(self, line: bytes) -> bytes:
        name, _, value = line.partition(b":")
        if name == b"event":
            self._event = value.strip()
        elif not line:
            self._event = b""
        elif name == b"data" and self._event not in SILENT_EVENTS:
            return value.strip()
        return b""


class StreamFix:
    """One stream's events, in order. Feed the data of each to `feed`, call `end` when the connection ends."""

    def __init__(self, facts: RequestFacts) -> None:
        self._facts = facts
        self._head: JSON = {}
        self._usage: JSON = {}
        self._reason = ""
        self._called = self._said = self._refused = self._finished = self._done = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of zero or more events in place of this one; raises IncompleteAnswerError for what is no event."""
        if self._done:
            return
        if data == b"[DONE]":
            yield from self._finish()
            yield data
            self._done = True
            return
        try:
            event = json.loads(data)
            choices = event.get("choices")
        except (ValueError, AttributeError):
            raise IncompleteAnswerError("an event that is not JSON") from None
        if is_silent(event):
            return
        if not isinstance(choices, list):
            raise IncompleteAnswerError(f"an error in the middle: {_words(event)}", data.decode("utf-8", "replace"))
        self._head = self._head or _head(event, self._facts)
        if event.get("usage"):
            # Held until the end: LiteLLM wants the reason before the numbers, and the numbers decide the reason.
            self._usage = openai_usage(event["usage"])
        for choice in choices:
            yield from self._fix_choice(choice)

    def _fix_choice(self, choice: JSON) -> Iterator[bytes]:
        delta = choice.get("delta") or {}
        text, refusal = _text(delta.get("content")), delta.get("refusal") or ""
        thinking, signature = _thinking(delta.get("reasoning_details"))
        calls = [_fix_fragment(call) for call in delta.get("tool_calls") or ()]
        self._called = self._called or bool(calls)
        self._said = self._said or bool(text or refusal)
        self._refused = self._refused or bool(refusal)
        # A refusal in pieces loses all but its first one in LiteLLM; as text it arrives, and `_finish` says what it is.
        found = {"reasoning_content": thinking, "content": text + refusal, "tool_calls": calls}
        plain = {key: value for key, value in found.items() if value}
        if plain:  # nothing is passed on before there is something: an answer that stays empty is then an error in time
            yield self._event({"role": "assistant", **plain})
        if signature:
            # LiteLLM drops an event without text, even an empty one, and the text of an event with a signature.
            block = {"type": "thinking", "thinking": "", "signature": signature}
            yield self._event({"reasoning_content": "", "thinking_blocks": [block]})
        self._reason = choice.get("finish_reason") or self._reason

    def _event(self, delta: JSON, reason: str | None = None) -> bytes:
        event = {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        return json.dumps(event, separators=(",", ":")).encode()

    def _finish(self) -> Iterator[bytes]:
        if not self._finished:
            self._finished = True
            reason = finish_reason(self._usage, self._facts, called=self._called, refused=self._refused)
            reason = self._reason if self._reason and not self._refused else reason
            if is_empty(reason, self._facts) and not (self._said or self._called):
                raise EmptyAnswerError
            yield self._event({}, reason)
        if self._usage:
            usage = {**self._head, "choices": [], "usage": self._usage}
            yield json.dumps(usage, separators=(",", ":")).encode()
            self._usage = {}

    def end(self) -> Iterator[bytes]:
        """What is still to be said when the connection ends; raises IncompleteAnswerError when that is too early."""
        if self._done:
            return
        if not (self._usage or self._reason):
            raise IncompleteAnswerError("the connection ended in the middle")
        yield from self._finish()
        yield b"[DONE]"


def _fix_fragment(call: JSON) -> JSON:
    """A piece of a call: its first one has the id and the name, the others have arguments only."""
    function = call.get("function") or {}
    plain: JSON = {"index": call.get("index") or 0}
    if call.get("id"):
        plain |= {"id": call["id"], "type": "function"}
    named = {"name": function["name"]} if function.get("name") else {}
    return {**plain, "function": {**named, "arguments": function.get("arguments") or ""}}


def _words(event: JSON) -> str:
    error = event.get("error")
    return str((error.get("message") if isinstance(error, dict) else error) or event.get("message") or "no words")


class WholeAnswer:
    """Answers pass as they are. What is no answer, ends before `message_stop`, or has neither text nor call though
    nothing explains it (docs/cortex.md#answer-empty), raises IncompleteAnswerError. A stream is held until there is
    something in it, so that an answer that stays empty is an error in time: Claude Code asks again after that."""

    def __init__(self) -> None:
        self._held: list[bytes] | None = []
        self._ended = self._said = False
        self._reason: object = None

    def answer(self, body: Any) -> Any:
        """One that was not streamed."""
        if not isinstance(body, dict) or not isinstance(body.get("content"), list):
            raise IncompleteAnswerError("an answer without content", json.dumps(body))
        self._said = any(block.get("type") == "tool_use" or block.get("text") for block in body["content"])
        self._reason = body.get("stop_reason")
        self._is_answer()
        return body

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The event of a stream to send on for one line of data, or none."""
        if self._ended or data == b"[DONE]":
            return
        try:
            event = json.loads(data)
            kind = event.get("type")
        except (ValueError, AttributeError):
            raise IncompleteAnswerError("an event that is not JSON") from None
        if kind is None and is_silent(event):
            return
        if kind in {None, "error"}:
            text = data.decode("utf-8", "replace")
            raise IncompleteAnswerError(f"an error in the middle: {words_of(text)[1]}", text)
        block, delta = event.get("content_block") or {}, event.get("delta") or {}
        self._said = self._said or block.get("type") == "tool_use" or bool(block.get("text") or delta.get("text"))
        self._reason = delta.get("stop_reason") or self._reason
        if kind == "message_stop":
            self._is_answer()
            self._ended = True
        event_bytes = b"event: %b\ndata: %b\n\n" % (str(kind).encode(), data)
        if self._held is not None:
            self._held.append(event_bytes)
            if not (self._said or self._ended or delta.get("thinking")):
                return
            event_bytes, self._held = b"".join(self._held), None
        yield event_bytes

    def _is_answer(self) -> None:
        if not self._said and self._reason in {None, "end_turn", "tool_use"}:
            raise EmptyAnswerError

    def end(self) -> Iterator[bytes]:
        """Called when the connection ends; nothing is left to say."""
        if not self._ended:
            raise IncompleteAnswerError("the connection ended in the middle")
        yield from ()
