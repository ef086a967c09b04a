"""The parts of a Messages request, for the tests of that route, and what the bundle makes of a request.

`adapted` also checks what holds for every request: the stand-in accepts it, the input is unchanged, and a second pass
changes nothing.
"""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits
from bundle.cortex.refusals import Refusals
from tests.cortex_rules import JSON, Options, check_messages, thinking_signature

MODEL = "claude-sonnet-4-5"
PNG = base64.b64encode(b"\x89PNG not looked at any closer").decode()
IMAGE: JSON = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
PDF: JSON = {
    "type": "document",
    "source": {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(b"%PDF-1.4 one").decode()},
}
TOOL: JSON = {"name": "Bash", "description": "runs it", "input_schema": {"type": "object", "properties": {}}}
MARK = {"type": "ephemeral"}


def text(words: str, **more: Any) -> JSON:
    return {"type": "text", "text": words, **more}


def user(*blocks: JSON) -> JSON:
    return {"role": "user", "content": list(blocks)}


def says(*blocks: JSON) -> JSON:
    return {"role": "assistant", "content": list(blocks)}


def call(identity: str, **more: Any) -> JSON:
    return {"type": "tool_use", "id": identity, "name": "Bash", "input": {}, **more}


def result(identity: str, content: Any = "out", **more: Any) -> JSON:
    return {"type": "tool_result", "tool_use_id": identity, "content": content, **more}


def thought(words: str) -> JSON:
    return {"type": "thinking", "thinking": words, "signature": thinking_signature(words)}


def body(*messages: JSON, **more: Any) -> JSON:
    return {"model": MODEL, "max_tokens": 1000, "messages": list(messages), **more}


def adapted(
    asked: JSON, *betas: str, refusals: Refusals | None = None, options: Options | None = None, limit: int = 64_000
) -> JSON:
    """The body as it leaves, after the stand-in has accepted it and the promises of every request were kept."""
    before = copy.deepcopy(asked)
    out, sent, _ = messages_request(asked, limits=Limits(limit), betas=betas, refusals=refusals)
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": ",".join(sent)}
    assert check_messages(out, headers, options or Options()) is None
    assert asked == before
    assert messages_request(out, limits=Limits(limit), betas=sent, refusals=refusals)[0] == out
    return out


def said(out: JSON) -> str:
    return json.dumps(out["messages"])


def unmarked(node: Any) -> Any:
    """The same without cache marks."""
    if isinstance(node, dict):
        return {key: unmarked(value) for key, value in node.items() if key != "cache_control"}
    return [unmarked(item) for item in node] if isinstance(node, list) else node
