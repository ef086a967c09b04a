"""The stand-in's answer to a request, in Cortex's shapes: for both endpoints, whole or as server-sent events.

`answer` makes an `Answer` of a turn: it cuts the text at the token limit and at a stop sequence, and adds thinking if
the request asks for it. The other functions write that answer as the two endpoints write theirs (docs/cortex.md).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.cortex_charging import Usage, count_tokens
from tests.cortex_rules import DEFAULT_OUTPUT, JSON, Options, is_claude, is_openai, thinking_signature
from tests.cortex_scripts import Turn


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


# Every recorded answer has these empty values of the service's own types beside its content. A recorded stream has the
# last two only (docs/cortex.md#answer-empty-fields).
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
