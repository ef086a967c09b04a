"""Tools and the JSON schemas of their parameters.

The problem: Cortex refuses tools and schemas that Claude Code and MCP servers may send, such as a tool that Anthropic's
servers would run, or a schema with alternatives at its top. The mechanism: `cortex_tools` drops such tools, and
`object_schema` merges the alternatives of a schema into one object.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from bundle.cortex.models import JSON, Note, no_note

_SCHEMA_UNIONS = ("anyOf", "oneOf", "allOf")
_PROPERTY_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_DATA_KEYS = ("enum", "const", "default", "examples")  # their values are data, not schemas


def cortex_tools(tools: Iterable[JSON], note: Note = no_note, *, strict_arrays: bool = False) -> list[JSON]:
    """docs/cortex.md#chat-tool-types: a tool of another type than `function` is a 400. For Claude, a schema that is not
    an object at its top is a 400 too, and so is a second tool of the same name. Only `name`, `description` and
    `parameters` stay.

    `strict_arrays` applies OpenAI's rule that the schema of an array must say what its items are.
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
    """A tool's parameters as one object: alternatives at the top level are merged, and a property that only some of
    them require becomes optional. Returns the same object if nothing has to change."""
    schema = schema if isinstance(schema, dict) else {}
    properties, required = _merged(schema)
    accepted = {name: value for name, value in properties.items() if _PROPERTY_NAME.fullmatch(name)}
    required = [name for name in required if name in accepted or name not in properties]
    out = {key: value for key, value in schema.items() if key not in (*_SCHEMA_UNIONS, "required")}
    out = {**out, "type": "object", "properties": accepted, **({"required": required} if required else {})}
    return schema if out == schema else out


def _merged(schema: JSON) -> tuple[JSON, list[str]]:
    """All properties of the schema and of its alternatives, and the properties that are always required."""
    properties = dict(schema["properties"]) if isinstance(schema.get("properties"), dict) else {}
    names = schema["required"] if isinstance(schema.get("required"), list) else ()
    required = [name for name in names if name and isinstance(name, str)]
    for union in _SCHEMA_UNIONS:
        branches = [_merged(branch) for branch in schema.get(union) or () if isinstance(branch, dict)]
        for name, value in chain.from_iterable(more.items() for more, _ in branches):
            properties.setdefault(name, value)
        branches_needed = 1 if union == "allOf" else len(branches)
        counts = Counter(chain.from_iterable(needed for _, needed in branches))
        required += [name for name, count in counts.items() if count >= branches_needed]
    return properties, list(dict.fromkeys(required))


def _with_items(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_items(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: value if key in _DATA_KEYS else _with_items(value) for key, value in schema.items()}
    return {**plain, "items": {}} if schema.get("type") == "array" and "items" not in schema else plain


def chosen_tool(tool_choice: Any) -> str | None:
    """The name of the tool that a tool choice forces, or None for auto, none and required."""
    return (tool_choice.get("function") or {}).get("name", "") if isinstance(tool_choice, dict) else None
