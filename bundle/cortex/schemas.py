"""Tools and the JSON schemas of their parameters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from bundle.cortex.models import JSON, Note, no_note

_SCHEMA_UNIONS = ("anyOf", "oneOf", "allOf")
_PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def cortex_tools(tools: Iterable[JSON], note: Note = no_note, *, strict_arrays: bool = False) -> list[JSON]:
    """docs/cortex.md#chat-tool-types: a tool that is no `function` is a 400. So is, where Claude runs, a schema that is
    not an object at its top, and the same name twice. Only `name`, `description` and `parameters` stay.

    `strict_arrays` is OpenAI's rule that a schema of an array says what its items are.
    """
    out: dict[str, JSON] = {}
    for tool in tools:
        function = tool.get("function")
        name = str((function or tool).get("name") or tool.get("type"))
        if tool.get("type") != "function" or not isinstance(function, dict) or name in out:
            note(f"tool {name} dropped")
            continue
        plain: JSON = {"name": name}
        if function.get("description"):
            plain["description"] = function["description"]
        schema = object_schema(function.get("parameters"))
        plain["parameters"] = _with_items(schema) if strict_arrays else schema
        out[name] = {"type": "function", "function": plain}
    return list(out.values())


def object_schema(schema: Any) -> JSON:
    """A tool's parameters as one object: alternatives at the top level are merged, what only some of them require is
    optional. The same object comes back when there is nothing to do."""
    schema = schema if isinstance(schema, dict) else {}
    properties, required = _merged(schema)
    taken = {name: value for name, value in properties.items() if _PROPERTY.fullmatch(name)}
    needed = [name for name in required if name in taken or name not in properties]
    out = {key: value for key, value in schema.items() if key not in (*_SCHEMA_UNIONS, "required")}
    out = {**out, "type": "object", "properties": taken, **({"required": needed} if needed else {})}
    return schema if out == schema else out


def _merged(schema: JSON) -> tuple[JSON, list[str]]:
    """Every property that the schema or one of its alternatives has, and what is required whichever of them holds."""
    properties = schema["properties"] if isinstance(schema.get("properties"), dict) else {}
    names = schema["required"] if isinstance(schema.get("required"), list) else ()
    required = [name for name in names if name and isinstance(name, str)]
    for word in _SCHEMA_UNIONS:
        branches = [_merged(branch) for branch in schema.get(word) or () if isinstance(branch, dict)]
        for more, _ in branches:
            properties = {**more, **properties}
        wanted = [needed for _, needed in branches]
        enough = 1 if word == "allOf" else len(wanted)
        required += [name for name, times in Counter(chain(*wanted)).items() if times >= enough]
    return properties, list(dict.fromkeys(required))


def _with_items(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_items(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    data = ("enum", "const", "default", "examples")
    plain = {key: value if key in data else _with_items(value) for key, value in schema.items()}
    return {**plain, "items": {}} if schema.get("type") == "array" and "items" not in schema else plain


def chosen_tool(tool_choice: Any) -> str | None:
    """The name of the one tool that is asked for, or None for auto, none and required."""
    return (tool_choice.get("function") or {}).get("name", "") if isinstance(tool_choice, dict) else None
