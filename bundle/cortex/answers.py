"""Repairs Cortex's answers: of Chat Completions (`ChatAnswer`), of the Messages API (`MessagesAnswer`).

The problem: for Claude, Cortex's chat completions have no `finish_reason`, do not count cached tokens as a part of the
prompt, call thinking `reasoning_details`, and contain empty fields, one of which LiteLLM cannot read at all. Without a
repair a tool call looks like an error, an answer that was cut at its limit looks complete, and a broken connection
looks like a short answer. The mechanism: pure functions on one answer, and classes that take the events of a stream one
by one. For chat completions they copy only those fields of OpenAI's schema that LiteLLM or this project reads;
everything else that the service sends is dropped. Answers of the Messages API are checked, and only their numbers are
cleaned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.cortex.errors import words_of
from bundle.cortex.models import JSON, family_of
from bundle.cortex.surrogates import without_halves
from bundle.cortex.usage import Used, anthropic_usage, openai_usage, used_on_chat, used_on_messages, with_new_tokens

HEAD_FIELDS = ("id", "object", "created")
MAX_LINE_BYTES = 8 * 2**20  # of a stream; a call's arguments come in one line, and no model writes a megabyte
MAX_PARTS = 1000  # choices, calls or blocks of an answer or an event: LiteLLM takes 0.1 ms for each
# The names of events that hold no part of an answer.
SILENT_EVENTS = frozenset({b"ping", b"keepalive", b"keep-alive", b"heartbeat"})


class IncompleteAnswerError(Exception):
    """The answer is not complete; `str()` says what is wrong. `body` is the error that the service sent, if any."""

    def __init__(self, why: str, body: str = "") -> None:
        super().__init__(why)
        self.body = body


class EmptyAnswerError(IncompleteAnswerError):
    """A complete answer without any content (docs/cortex.md#answer-empty)."""

    def __init__(self) -> None:
        super().__init__("an answer without content")


def is_silent(event: Mapping[str, Any]) -> bool:
    """Whether an event can be ignored, because it is neither an error nor a part of an answer."""
    return not event.keys() & {"choices", "error", "message", "code", "error_code"}


@dataclass(frozen=True)
class RequestFacts:
    """The parts of a request that are needed to interpret its answer.

    `limit` is the maximum of output tokens (None: not given), `stops` says whether there were stop sequences, `model`
    is the model's name without a provider prefix, and `stream` says whether the answer comes piece by piece.
    """

    limit: int | None = None
    stops: bool = False
    model: str = ""
    stream: bool = False

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> RequestFacts:
        stops = bool(body.get("stop") or body.get("stop_sequences"))
        model = str(body.get("model") or "").rpartition("/")[2]
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        return cls(limit, stops, model, bool(body.get("stream")))


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(text: str) -> int | None:
    return int(text) if len(text) < 1000 else None  # Python refuses to read more than 4300 digits


def parsed(data: bytes | str) -> Any:
    """The JSON of the service. `NaN`, `Infinity`, `1E999` and numbers of thousands of digits become null: Python would
    read them, and write what no other reader takes. Raises ValueError."""
    raw = without_halves(data.encode() if isinstance(data, str) else data)
    try:
        return json.loads(raw, parse_constant=lambda _: None, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deep") from None


def fix_answer(body: JSON, facts: RequestFacts) -> JSON:
    """Repair an answer that is not streamed; raises IncompleteAnswerError if the body is not a complete answer."""
    try:
        usage = openai_usage(body.get("usage"))
        choices = [_fix_choice(choice, usage, facts) for choice in _bounded(body["choices"])]
    except (KeyError, TypeError, AttributeError) as error:
        raise IncompleteAnswerError(f"an answer without {error}", json.dumps(body)) from None
    if not choices:
        raise IncompleteAnswerError("an answer without choices")
    return {**_head(body, facts), "choices": choices, **({"usage": usage} if usage else {})}


def _bounded(parts: Sequence[Any]) -> Sequence[Any]:
    if len(parts) > MAX_PARTS:
        raise IncompleteAnswerError(f"more than {MAX_PARTS} parts")
    return parts


def _head(body: JSON, facts: RequestFacts) -> JSON:
    # Answers of OpenAI's models do not name the model (docs/cortex.md#answer-ids).
    head = {key: body[key] for key in HEAD_FIELDS if body.get(key) is not None}
    return {**head, "model": body.get("model") or facts.model}


def _fix_choice(choice: JSON, usage: JSON, facts: RequestFacts) -> JSON:
    given = choice["message"]
    message: JSON = {"role": "assistant", "content": _text(given.get("content")) or None}
    if given.get("refusal"):
        message["refusal"] = given["refusal"]
    text, signature = _thinking(given.get("reasoning_details"))
    if text or signature:
        # Also without a signature: no API takes such a block, but Claude Code can show it.
        message["reasoning_content"] = text
        message["thinking_blocks"] = [{"type": "thinking", "thinking": text, "signature": signature}]
    calls = [_fix_call(call) for call in _bounded(given.get("tool_calls") or ())]
    if calls:
        message["tool_calls"] = calls
    reason = choice.get("finish_reason") or finish_reason(usage, facts, called=bool(calls))
    if must_have_content(reason, facts) and not (message["content"] or calls or given.get("refusal")):
        raise EmptyAnswerError
    return {"index": choice.get("index") or 0, "message": message, "finish_reason": reason}


def _fix_call(call: JSON) -> JSON:
    function = call["function"]
    # LiteLLM reads them as JSON. (In a stream it passes on their pieces, and the front door repairs the next request.)
    arguments = without_halves((function.get("arguments") or "{}").encode()).decode()
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _thinking(details: Sequence[JSON] | None) -> tuple[str, str]:
    """(text, signature) of the thinking in an answer or an event."""
    text, signature = ("".join(each.get(key) or "" for each in details or ()) for key in ("text", "signature"))
    return text, signature


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def finish_reason(usage: Mapping[str, Any], facts: RequestFacts, *, called: bool, refused: bool = False) -> str:
    """docs/cortex.md#answer-finish-reason: Claude's answers have no finish_reason. The number of output tokens shows
    whether the limit was reached."""
    if facts.limit and (usage.get("completion_tokens") or 0) >= facts.limit:
        return "length"
    return "content_filter" if refused else "tool_calls" if called else "stop"


def must_have_content(reason: str, facts: RequestFacts) -> bool:
    """Whether an answer that ended for this reason is an error if it has neither text nor calls
    (docs/cortex.md#answer-empty). It is no error if the model reached its limit while it was thinking, or if a stop
    sequence came first."""
    return reason in {"stop", "tool_calls"} and not facts.stops


class EventLines:
    """Splits a stream of server-sent events into its data (docs/cortex.md#answer-stream-lines)."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._event = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the lines that this piece completes, without comments, empty data and pings."""
        first, *lines = piece.split(b"\n")
        self._rest += first  # added to, not copied, so that a long line takes time in proportion to its length
        if len(self._rest) > MAX_LINE_BYTES:
            raise IncompleteAnswerError(f"a line of more than {MAX_LINE_BYTES // 2**20} MiB")
        if lines:
            lines = [bytes(self._rest), *lines]
            self._rest = bytearray(lines.pop())
        return [data for line in lines if (data := self._data(line.strip()))]

    def end(self) -> list[bytes]:
        """The data of a last line without a newline."""
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


def _event_of(data: bytes) -> JSON:
    """The event in one line of data; raises IncompleteAnswerError if it is not a JSON object."""
    try:
        event = parsed(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise IncompleteAnswerError("an event that is not JSON")
    return event


def _error_of(data: bytes) -> IncompleteAnswerError:
    text = without_halves(data).decode("utf-8", "replace")
    return IncompleteAnswerError(f"an error in the middle: {words_of(text)[1][:500]}", text)


class ChatAnswer:
    """Repairs one answer of chat completions. For a stream, call `feed` with the data of each event, in order, and
    `end` when the connection ends."""

    def __init__(self, facts: RequestFacts) -> None:
        self._facts = facts
        self._head: JSON = {}
        self._usage: JSON = {}
        self._reason = ""
        self._has_calls = self._has_text = self._is_refusal = self.is_over = False

    @property
    def used(self) -> Used | None:
        """What the answer has used; None: Cortex has not said it (yet)."""
        claude = family_of(self._facts.model) == "claude"
        return used_on_chat(self._usage, claude=claude) if self._usage else None

    @property
    def has_whole_usage(self) -> bool:
        """Whether `used` is final: a chat completion says it once, at its end."""
        return True

    def answer(self, body: Any) -> Any:
        """Repair an answer that is not streamed."""
        self._usage = openai_usage(body.get("usage")) if isinstance(body, dict) else {}
        return fix_answer(body, self._facts)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events to send instead of this one; raises IncompleteAnswerError if it is not an event."""
        if self.is_over:
            return
        if data == b"[DONE]":
            yield from self._finish()
            return
        event = _event_of(data)
        if is_silent(event):
            return
        if not isinstance(event.get("choices"), list):
            raise _error_of(data)
        self._head = self._head or _head(event, self._facts)
        if event.get("usage"):
            # Kept until the end: LiteLLM needs the finish_reason before the usage, and the finish_reason is computed
            # from the usage.
            self._usage = openai_usage(event["usage"])
        for choice in _bounded(event["choices"]):
            yield from self._fix_choice(choice)

    def _fix_choice(self, choice: JSON) -> Iterator[bytes]:
        delta = choice.get("delta") or {}
        text, refusal = _text(delta.get("content")), delta.get("refusal") or ""
        thinking, signature = _thinking(delta.get("reasoning_details"))
        calls = [_fix_fragment(call) for call in _bounded(delta.get("tool_calls") or ())]
        self._has_calls = self._has_calls or bool(calls)
        self._has_text = self._has_text or bool(text or refusal)
        self._is_refusal = self._is_refusal or bool(refusal)
        # LiteLLM keeps only the first piece of a streamed refusal. So it is sent as text, and `_finish` sets the
        # reason.
        found = {"reasoning_content": thinking, "content": text + refusal, "tool_calls": calls}
        plain = {key: value for key, value in found.items() if value}
        if plain:  # nothing is sent before there is content, so that an empty answer can still become an error
            yield self._event({"role": "assistant", **plain})
        if signature:
            # LiteLLM drops an event that has no key for a text, and drops the text of an event with a signature.
            block = {"type": "thinking", "thinking": "", "signature": signature}
            yield self._event({"reasoning_content": "", "thinking_blocks": [block]})
        self._reason = choice.get("finish_reason") or self._reason

    def _event(self, delta: JSON, reason: str | None = None) -> bytes:
        return self._line(choices=[{"index": 0, "delta": delta, "finish_reason": reason}])

    def _line(self, **fields: Any) -> bytes:
        return b"data: %b\n\n" % json.dumps({**self._head, **fields}, separators=(",", ":")).encode()

    def _finish(self) -> Iterator[bytes]:
        reason = finish_reason(self._usage, self._facts, called=self._has_calls, refused=self._is_refusal)
        reason = self._reason if self._reason and not self._is_refusal else reason
        if must_have_content(reason, self._facts) and not (self._has_text or self._has_calls):
            raise EmptyAnswerError
        yield self._event({}, reason)
        if self._usage:
            yield self._line(choices=[], usage=with_new_tokens(self._usage))
        yield b"data: [DONE]\n\n"
        self.is_over = True

    def end(self) -> Iterator[bytes]:
        """The events that are missing when the connection ends; raises IncompleteAnswerError if it ended too early."""
        if self.is_over:
            return
        if not (self._usage or self._reason):
            raise IncompleteAnswerError("the connection ended in the middle")
        yield from self._finish()


def _fix_fragment(call: JSON) -> JSON:
    """A piece of a streamed call: the first piece has the id and the name, the others have arguments only."""
    function = call.get("function") or {}
    plain: JSON = {"index": call.get("index") or 0}
    if call.get("id"):
        plain |= {"id": call["id"], "type": "function"}
    named = {"name": function["name"]} if function.get("name") else {}
    return {**plain, "function": {**named, "arguments": function.get("arguments") or ""}}


def _clean_usage(holder: object) -> JSON:
    """Clean the usage that is in there, in place, and return it."""
    if isinstance(holder, dict) and "usage" in holder:
        holder["usage"] = usage = anthropic_usage(holder["usage"])
        return usage
    return {}


class MessagesAnswer:
    """Checks one answer of the Messages API; a complete answer is not changed, apart from numbers that cannot be.

    IncompleteAnswerError is raised for a body that is not an answer, for a stream that ends before `message_stop`, and
    for an answer that has neither text nor call without a reason for it (docs/cortex.md#answer-empty). The first events
    of a stream are held back until there is content, so that an empty answer can still become an error, after which
    Claude Code asks again.
    """

    def __init__(self) -> None:
        self._held: list[bytes] | None = []
        self.is_over = self._has_content = False
        self.has_whole_usage = False  # whether `used` is final: the number of output tokens comes at the end
        self._reason: object = None
        self._usage: JSON = {}

    @property
    def used(self) -> Used | None:
        """What the answer has used; of a stream without its end, what its events have said so far. None: nothing."""
        return used_on_messages(self._usage) if self._usage else None

    def answer(self, body: Any) -> Any:
        """Check an answer that is not streamed."""
        if not isinstance(body, dict) or not isinstance(body.get("content"), list):
            raise IncompleteAnswerError("an answer without content", json.dumps(body))
        self._usage, self.has_whole_usage = _clean_usage(body), True
        self._has_content = any(
            block.get("type") == "tool_use" or block.get("text") for block in _bounded(body["content"])
        )
        self._reason = body.get("stop_reason")
        self._refuse_empty()
        return body

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events to send for one line of data, if any."""
        if self.is_over or data == b"[DONE]":
            return
        event = _event_of(data)
        kind = event.get("type")
        if kind is None and is_silent(event):
            return
        if kind in {None, "error"}:
            raise _error_of(data)
        block, delta = event.get("content_block") or {}, event.get("delta") or {}
        has_content = block.get("type") == "tool_use" or block.get("text") or delta.get("text")
        self._has_content = self._has_content or bool(has_content)
        self._reason = delta.get("stop_reason") or self._reason
        if kind == "message_stop":
            self._refuse_empty()
            self.is_over = True
        # The first event counts the prompt, a later one the output.
        self.has_whole_usage = self.has_whole_usage or kind == "message_delta"
        for usage in (_clean_usage(event.get("message")), _clean_usage(event)):
            self._usage |= {name: number for name, number in usage.items() if number or name not in self._usage}
        lines = b"event: %b\ndata: %b\n\n" % (str(kind).encode(), json.dumps(event, separators=(",", ":")).encode())
        if self._held is not None:
            self._held.append(lines)
            if not (self._has_content or self.is_over or delta.get("thinking")):
                return
            lines, self._held = b"".join(self._held), None
        yield lines

    def _refuse_empty(self) -> None:
        if not self._has_content and self._reason in {None, "end_turn", "tool_use"}:
            raise EmptyAnswerError

    def end(self) -> Iterator[bytes]:
        """Called when the connection ends; no further events are sent."""
        if not self.is_over:
            raise IncompleteAnswerError("the connection ended in the middle")
        yield from ()
