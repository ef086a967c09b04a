"""Cortex's answers, put into the words that the OpenAI SDK and LiteLLM expect.

The problem: for Claude models Cortex leaves out `finish_reason`, counts cached tokens beside the prompt instead of in
it, and calls thinking `reasoning_details`. Read as it stands, an answer that was cut at its limit looks complete,
Claude Code's context meter stands still, and a connection that broke looks like a short answer. The mechanism: pure
functions on one answer (`fix_answer`) and on the events of a stream (`StreamFix`). No I/O, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

JSON = dict[str, Any]

# An event with none of these is plain text: it passes byte for byte. (Text that talks about them costs a detour.)
_TELLING = (b'"reasoning_details"', b'"usage"', b'"finish_reason"', b'"message"', b'"error"')


class IncompleteAnswerError(Exception):
    """The answer is not whole; `str()` says how that shows."""


@dataclass(frozen=True)
class RequestFacts:
    """What was asked, as far as it decides how the answer reads: the most output tokens (None: not said)."""

    limit: int | None = None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> RequestFacts:
        return cls(body.get("max_completion_tokens") or body.get("max_tokens"))


def fix_answer(body: JSON, facts: RequestFacts) -> JSON:
    """The answer of a request that was not streamed; raises IncompleteAnswerError for what is no answer."""
    try:
        usage = openai_usage(body.get("usage"))
        choices = [_fix_choice(choice, usage, facts) for choice in body["choices"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise IncompleteAnswerError(f"an answer without {error}") from None
    return {**body, "choices": choices, **({"usage": usage} if usage else {})}


def _fix_choice(choice: JSON, usage: JSON, facts: RequestFacts) -> JSON:
    message = {key: value for key, value in choice["message"].items() if value not in ("", None)}
    details = message.pop("reasoning_details", ())
    if details:
        text = "".join(detail.get("text") or "" for detail in details)
        signature = "".join(detail.get("signature") or "" for detail in details)
        # Without its signature a thinking block cannot be sent back to anybody, but it can be shown.
        message["reasoning_content"] = text
        message["thinking_blocks"] = [{"type": "thinking", "thinking": text, "signature": signature}]
    calls = [_with_arguments(call) for call in message.get("tool_calls") or ()]
    if calls:
        message["tool_calls"] = calls
    message.setdefault("content", None)
    reason = choice.get("finish_reason") or finish_reason(usage, facts, called=bool(calls))
    return {**choice, "message": message, "finish_reason": reason}


def _with_arguments(call: JSON) -> JSON:
    function = call["function"]
    return {**call, "function": {**function, "arguments": function.get("arguments") or "{}"}}


def finish_reason(usage: Mapping[str, Any], facts: RequestFacts, *, called: bool) -> str:
    """Contract: for Claude "no `finish_reason` key in any chunk". The number of tokens tells a limit that was hit."""
    if facts.limit and (usage.get("completion_tokens") or 0) >= facts.limit:
        return "length"
    return "tool_calls" if called else "stop"


def openai_usage(usage: JSON | None) -> JSON:
    """Contract: "`prompt_tokens` excludes cached ones; `cached_tokens` = reads + writes; `total_tokens` is the sum".

    OpenAI's prompt includes them. The sum tells which of the two a model means, so that an answer which is right
    already stays as it is. Reads and writes cannot be told apart.
    """
    if not usage:
        return {}
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    if cached and usage.get("total_tokens") == prompt + cached + completion:
        return {**usage, "prompt_tokens": prompt + cached}
    return usage


class StreamFix:
    """One stream's events, in order. Feed each line of data to `feed`, call `end` when the connection ends."""

    def __init__(self, facts: RequestFacts) -> None:
        self._facts = facts
        self._head: JSON = {}
        self._usage: JSON = {}
        self._called = self._finished = self._done = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of zero or more events in place of this one; raises IncompleteAnswerError for what is no event."""
        if data == b"[DONE]":
            yield from self._finish()
            yield data
            self._done = True
            return
        if self._head and data.endswith(b"}") and not any(word in data for word in _TELLING):
            self._called = self._called or b'"tool_calls":[{' in data.replace(b" ", b"")
            yield data
            return
        try:
            event = json.loads(data)
            choices = event.get("choices")
        except (ValueError, AttributeError):
            raise IncompleteAnswerError("an event that is not JSON") from None
        if not isinstance(choices, list):
            raise IncompleteAnswerError(f"an error in the middle: {_words(event)}")
        self._head = {key: event[key] for key in ("id", "object", "created", "model") if key in event}
        if event.get("usage"):
            # Held until the end: LiteLLM wants the reason before the numbers, and the numbers decide the reason.
            self._usage = openai_usage(event.pop("usage"))
        signature = "".join(self._fix_delta(choice) for choice in choices)
        if choices:
            yield _dump(event)
        if signature:
            # LiteLLM drops an event without text, even an empty one, and the text of an event with a signature.
            block = {"type": "thinking", "thinking": "", "signature": signature}
            yield self._event({"reasoning_content": "", "thinking_blocks": [block]})

    def _fix_delta(self, choice: JSON) -> str:
        """Bring one choice into order, in place; the signature that came with its thinking."""
        delta = choice.get("delta") or {}
        self._called = self._called or bool(delta.get("tool_calls"))
        self._finished = self._finished or bool(choice.get("finish_reason"))
        if not choice.get("finish_reason"):
            choice["finish_reason"] = None
        details = delta.pop("reasoning_details", ())
        text = "".join(detail.get("text") or "" for detail in details)
        signature = "".join(detail.get("signature") or "" for detail in details)
        if text:
            delta["reasoning_content"] = text
        if details:
            delta.pop("content", None)
        return signature

    def _event(self, delta: JSON, reason: str | None = None) -> bytes:
        return _dump({**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def _finish(self) -> Iterator[bytes]:
        if not self._finished:
            yield self._event({}, finish_reason(self._usage, self._facts, called=self._called))
            self._finished = True
        if self._usage:
            yield _dump({**self._head, "choices": [], "usage": self._usage})
            self._usage = {}

    def end(self) -> Iterator[bytes]:
        """What is still to be said when the connection ends; raises IncompleteAnswerError when that is too early."""
        if self._done:
            return
        if not (self._usage or self._finished):
            raise IncompleteAnswerError("the connection ended in the middle")
        yield from self._finish()
        yield b"[DONE]"


def _words(event: JSON) -> str:
    error = event.get("error")
    return str((error.get("message") if isinstance(error, dict) else error) or event.get("message") or "no words")


def _dump(event: JSON) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()
