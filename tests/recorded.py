"""Answers with the keys of recorded answers of the real Cortex, and with texts of our own.

The recordings are exchanges of July 2026 in the public test data of pydantic-ai; each
constant names the one that it follows, key by key. If the stand-in differs from them, the stand-in is wrong.
"""

from __future__ import annotations

import json
from typing import Any

JSON = dict[str, Any]

EMPTY_CUSTOM: JSON = {"input": "", "name": ""}


def _usage(prompt: int, completion: int) -> JSON:
    return {
        "completion_tokens": completion,
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
        "total_tokens": prompt + completion,
    }


def _whole(model: str, usage: JSON, **message: Any) -> JSON:
    """An answer that was not streamed: every key of the service's own types, most of them empty."""
    return {
        "choices": [
            {
                "finish_reason": "",
                "index": 0,
                "logprobs": {"content": None, "refusal": None},
                "message": {
                    "annotations": None,
                    "audio": {"data": "", "expires_at": 0, "id": "", "transcript": ""},
                    "content": "",
                    "function_call": {"arguments": "", "name": ""},
                    "refusal": "",
                    "role": "assistant",
                    "tool_calls": None,
                    **message,
                },
            }
        ],
        "created": 1783468047,
        "id": "",
        "model": model,
        "object": "chat.completion",
        "service_tier": "",
        "system_fingerprint": "",
        "usage": usage,
    }


def _call(identity: str, arguments: str) -> JSON:
    function = {"arguments": arguments, "name": "read_gauge"}
    return {"custom": EMPTY_CUSTOM, "function": function, "id": identity, "type": "function"}


# test_snowflake_model_simple.yaml
CLAUDE_TEXT = _whole("claude-sonnet-4-6", _usage(19, 6), content="Seven.")

# test_snowflake_tool_calling.yaml, the first answer: an empty text, one call, and in it the key `custom`.
CLAUDE_CALL = _whole(
    "claude-sonnet-4-6",
    _usage(540, 48),
    tool_calls=[_call("toolu_bdrk_01AbcDefGhiJklMnoPqrStu1", '{"room":"boiler"}')],
)

# test_snowflake_thinking.yaml, the first answer: thinking with its signature, text, and a call beside it.
THINKING = {
    "format": "anthropic-claude-v1",
    "id": "reasoning-text-1",
    "index": 0,
    "signature": "c2lnbmVkIGJ5IG5vYm9keQ==",
    "text": "The gauge in the boiler room is what is asked for.",
    "type": "reasoning.text",
}
CLAUDE_THINKING_CALL = _whole(
    "claude-sonnet-4-6",
    _usage(571, 77),
    content="I will look at the gauge.",
    reasoning_details=[THINKING],
    tool_calls=[_call("toolu_bdrk_01AbcDefGhiJklMnoPqrStu2", '{"room":"boiler"}')],
)

# test_snowflake_native_output.yaml: what `response_format` of type json_schema asked for comes as text.
CLAUDE_STRUCTURED = _whole("claude-sonnet-4-6", _usage(640, 39), content='{"river": "Ilz", "length_km": 65}')

# test_snowflake_openai_model.yaml: an id, a finish reason and a fingerprint, and no name of the model.
GPT_TEXT: JSON = {
    **_whole("", _usage(18, 2), content="Seven."),
    "id": "chatcmpl-E1aBcDeFgHiJkLmNoPqRsTuVwXyZ0",
    "service_tier": "default",
    "system_fingerprint": "fp_0a1b2c3d4e",
}
GPT_TEXT["choices"][0]["finish_reason"] = "stop"

# test_snowflake_llama.yaml
LLAMA_TEXT = _whole("llama3.1-8b", _usage(80, 12), content='{"river": "Ilz", "country": "Germany"}')

_STREAM_HEAD: JSON = {
    "created": 0,
    "id": "",
    "model": "claude-sonnet-4-6",
    "object": "chat.completion.chunk",
    "service_tier": "",
    "system_fingerprint": "",
}


def _event(data: JSON) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def _delta(content: str = "", **more: Any) -> str:
    delta = {"content": content, **more, "refusal": "", "role": "assistant", "tool_calls": None}
    choice = {"delta": delta, "index": 0, "logprobs": {"content": None, "refusal": None}}
    return _event({"choices": [choice], **_STREAM_HEAD})


def _thought(text: str) -> str:
    detail = {key: value for key, value in THINKING.items() if key != "signature"}
    return _delta(reasoning_details=[{**detail, "text": text}])


def _end(usage: JSON) -> str:
    return _event({"choices": [], **_STREAM_HEAD, "usage": usage}) + "data: [DONE]\n\n"


# test_snowflake_model_streaming.yaml: no finish reason in any event, an empty text at the end, then the usage.
CLAUDE_STREAM = _delta("Sev") + _delta("en.") + _delta() + _end(_usage(19, 6))

# test_snowflake_thinking_streaming.yaml: thinking in pieces, none of them signed, two empty events, then the text.
CLAUDE_THINKING_STREAM = "".join(
    [_thought("Three"), _thought(" and four"), _delta(), _delta(), _delta("It is **"), _delta("seven**."), _delta()]
) + _end(_usage(41, 66))
