"""What the rules of both endpoints share: the kinds of Claude models, and checks of single values.

Each check takes a value and its path in the body. It raises `RefusedError` with Cortex's words if the value is wrong.
Whatever is not known of Cortex is a field of `Options` (cortex_rules.py).
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    from tests.cortex_rules import Options

JSON = dict[str, Any]

MIB = 1024 * 1024
MAX_BODY = 20 * MIB
MAX_IMAGES = 20
MAX_MARKS = 4
MAX_OUTPUT = 131_072
DEFAULT_OUTPUT = 4096

NOT_2020_12 = (
    "JSON schema is invalid. It must match JSON Schema draft 2020-12 (https://json-schema.org/draft/2020-12). "
    "Learn more about tool use at https://docs.claude.com/en/docs/tool-use."
)
NO_PREFILL = (
    "invalid request parameters: This model does not support assistant message prefill. "
    "The conversation must end with a user message."
)


class RefusedError(Exception):
    """Raised by nested checks; holds the message of the 400."""


def refuse(message: str) -> NoReturn:
    raise RefusedError(message)


def is_claude(model: str) -> bool:
    return model.startswith("claude-")


def is_openai(model: str) -> bool:
    return model.startswith("openai-")


def thinking_signature(text: str) -> str:
    """The signature this stand-in gives to a thinking text, so that a changed text can be detected."""
    return base64.b64encode(hashlib.sha256(b"signed thinking:" + text.encode()).digest()).decode()


def claude_version(model: str) -> tuple[str, tuple[int, int]]:
    """`claude-opus-4-7` as ("opus", (4, 7)); `claude-4-sonnet` as ("sonnet", (4, 0))."""
    if match := re.fullmatch(r"claude-([a-z]+)-(\d+)(?:-(\d{1,2}))?", model):
        return match.group(1), (int(match.group(2)), int(match.group(3) or 0))
    if match := re.fullmatch(r"claude-(\d+)(?:-(\d+))?-([a-z]+)", model):
        return match.group(3), (int(match.group(1)), int(match.group(2) or 0))
    return "", (0, 0)


def as_object(value: object, path: str) -> JSON:
    if not isinstance(value, dict):
        refuse(f"{path}: must be an object")
    return value


def as_array(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        refuse(f"{path}: must be an array")
    return value


def as_string(value: object, path: str) -> str:
    if not isinstance(value, str) or not value:
        refuse(f"{path}: must be a non-empty string")
    return value


def check_number(value: object, path: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        refuse(f"{path}: must be a number from {low:g} to {high:g}")


def check_tokens(value: object, path: str, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(f"{path}: must be a positive integer")
    if value > limit:
        refuse(f"max tokens of {limit} exceeded")


def known_model(body: JSON, options: Options) -> str:
    name = as_string(body.get("model"), "model")
    if name not in options.models:
        refuse(f"unknown model {name}")
    return name


def check_size(body: JSON, size: int | None) -> None:
    if (len(json.dumps(body).encode()) if size is None else size) > MAX_BODY:
        refuse("request body exceeds 20 MiB")


def check_text(value: object, path: str, options: Options) -> None:
    if not isinstance(value, str):
        refuse(f"{path}: must be a string")
    if not (value.strip() if options.whitespace_is_empty else value):
        refuse(f"{path}: text content blocks must be non-empty")


def count_marks(value: object) -> int:
    """Count the `cache_control` keys, but not those in tool arguments and schemas, which the user defines."""
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(
            count_marks(item) for key, item in value.items() if key not in {"input", "input_schema", "function"}
        )
    if isinstance(value, list):
        return sum(map(count_marks, value))
    return 0


def check_mark_limit(body: JSON) -> None:
    # Count all marks: we do not know whether Cortex counts those that it ignores. More than four are never useful.
    if (count := count_marks(body)) > MAX_MARKS:
        refuse(f"A maximum of {MAX_MARKS} blocks with cache_control may be provided. Found {count}.")


def check_image(media: object, data: object, path: str) -> None:
    if media not in {"image/png", "image/jpeg", "image/gif", "image/webp"}:
        refuse(f"{path}: unsupported media type {media}")
    check_base64(data, path)


def check_base64(data: object, path: str) -> None:
    try:
        decoded = base64.b64decode(as_string(data, path), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        refuse(f"{path}: the data is not base64")


def check_schema(schema: object, path: str) -> None:
    """Check a tool's parameters as Anthropic does: JSON Schema, with an object at the top level."""
    top = as_object(schema, path)
    if top.get("type") != "object":
        refuse(f"{path}.type: Input should be 'object'")
    for word in ("oneOf", "anyOf", "allOf"):
        if word in top:
            refuse(f"{path}: input_schema does not support oneOf, allOf, or anyOf at the top level")
    if schema_error(top):
        refuse(f"{path}: {NOT_2020_12}")
    for name in top.get("properties", {}):
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", name):
            refuse(f"{path}.properties: Property keys should match pattern '^[a-zA-Z0-9_.-]{{1,64}}$'")
    for name in top.get("required", []):
        as_string(name, f"{path}.required")


def schema_error(schema: JSON) -> str:
    """What jsonschema says against a schema, or ""."""
    return _schema_error(json.dumps(schema))


# The schemas are the same in each request, and jsonschema needs 8 ms for a kilobyte of them.
@functools.lru_cache(maxsize=10_000)
def _schema_error(text: str) -> str:
    found = next(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(json.loads(text)), None)
    return found.message if found else ""


def check_refused_fields(body: JSON, model: str, options: Options, words: str) -> None:
    for name in options.refused_fields if is_claude(model) else ():
        if body.get(name) is not None:
            refuse(words.format(name))


def check_newest_temperature(body: JSON, model: str, options: Options) -> None:
    if claude_version(model)[1] >= (4, 7) and body.get("temperature", 1) != 1 and not options.newest_temperature:
        refuse("`temperature` is not supported for this model. Only the default of 1 is accepted.")


def check_prefill(messages: Sequence[JSON], model: str, options: Options) -> None:
    newer = is_claude(model) and claude_version(model)[1] >= (4, 6)
    if newer and messages[-1]["role"] == "assistant" and not options.prefill:
        refuse(NO_PREFILL)


def check_tool_id(value: object, options: Options) -> None:
    if not options.odd_tool_ids and not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", str(value)):
        refuse("invalid request parameters: tool use id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'")


def parts(message: JSON) -> Sequence[JSON]:
    content = message.get("content")
    return content if isinstance(content, list) else ()
