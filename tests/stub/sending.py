"""What the tests of the stand-in send to it: keys and tokens, and the bodies of both endpoints with their parts.

`chat` makes a body for Chat Completions and `native` makes one for Messages, each from one text. `said`, `parts` and
`turns` make a body from messages or from blocks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import time
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.cortex_rules import JSON
from tests.cortex_stub import CortexStub

CLAUDE, GPT, LLAMA = "claude-sonnet-4-5", "openai-gpt-5", "llama4-maverick"
KEY, OTHER_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
PIXEL = base64.b64encode(b"\x89PNG pixel").decode()
NO_TLS = ssl.create_default_context()  # made once: otherwise every request reads all certificates of the machine


def pem(key: rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


PEM, OTHER_PEM = pem(KEY), pem(OTHER_KEY)


def token(key: rsa.RSAPrivateKey = KEY, algorithm: str = "RS256", **changes: Any) -> str:
    """A good token, apart from `changes` of its claims; None takes a claim out."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = base64.b64encode(hashlib.sha256(der).digest()).decode()
    now = int(time.time())
    claims = {"iss": f"ORG-ACC.ME.SHA256:{fingerprint}", "sub": "ORG-ACC.ME", "iat": now, "exp": now + 3600, **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, "x" * 64 if algorithm == "HS256" else key, algorithm)


def post(stub: CortexStub, path: str, body: Any, bearer: str | None = None, **headers: str) -> httpx.Response:
    standard = {"Authorization": f"Bearer {bearer or token()}", "anthropic-version": "2023-06-01"}
    return httpx.post(stub.url + path, json=body, headers={**standard, **headers}, timeout=20, verify=NO_TLS)


def chat(text: str = "hello", model: str = CLAUDE, **fields: Any) -> JSON:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def native(text: str = "hello", model: str = CLAUDE, **fields: Any) -> JSON:
    return {"model": model, "max_tokens": 4000, "messages": [{"role": "user", "content": text}], **fields}


def events(response: httpx.Response) -> list[JSON]:
    """The JSON of each `data:` line of a stream, without `[DONE]`."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def tool(name: str = "Bash", **parameters: Any) -> JSON:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


def calls(*ids: str) -> JSON:
    made = [{"id": id_, "type": "function", "function": {"name": "Bash", "arguments": "{}"}} for id_ in ids]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(id_: str, content: Any = "out") -> JSON:
    return {"role": "tool", "tool_call_id": id_, "content": content}


USER: JSON = {"role": "user", "content": "hello"}
SYSTEM: JSON = {"role": "system", "content": "be brief"}


def said(*messages: JSON, model: str = CLAUDE, **fields: Any) -> JSON:
    return {"model": model, "messages": list(messages), **fields}


def parts(*content: JSON, **fields: Any) -> JSON:
    return said({"role": "user", "content": list(content)}, **fields)


def image(url: str = f"data:image/png;base64,{PIXEL}") -> JSON:
    return {"type": "image_url", "image_url": {"url": url}}


MARKED: JSON = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}

LOW = {"effort": "low"}


def thought(text: str, **detail: str) -> JSON:
    """An assistant's turn with its thinking, as in an answer of Chat Completions."""
    details = [{"type": "reasoning.text", "format": "anthropic-claude-v1", "text": text, **detail}]
    return {"role": "assistant", "content": "so", "reasoning_details": details}


V = {"anthropic-version": "2023-06-01"}


def turns(*messages: tuple[str, Any], **fields: Any) -> JSON:
    return native(messages=[{"role": role, "content": content} for role, content in messages], **fields)


def use(id_: str, **extra: Any) -> JSON:
    return {"type": "tool_use", "id": id_, "name": "Bash", "input": {}, **extra}


def got(id_: str, **extra: Any) -> JSON:
    return {"type": "tool_result", "tool_use_id": id_, "content": "out", **extra}


def custom(**extra: Any) -> JSON:
    return {"name": "Bash", "input_schema": {"type": "object"}, **extra}


BUDGET = {"type": "enabled", "budget_tokens": 2000}


TWO_CALLS = '[[tools: Bash {"command": "echo [[1]]"} ; Read]] [[then: done]]'
