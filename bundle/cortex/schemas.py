"""Tools and the JSON schemas of their parameters.

The problem: Cortex refuses tools and schemas that Claude Code and MCP servers may send, such as a tool that Anthropic's
servers would run, or a schema with alternatives at its top. The mechanism: `cortex_tools` drops such tools,
`object_schema` merges the alternatives of a schema into one object, and `openai_schema` is what OpenAI accepts beyond
that. A schema that is no JSON Schema at all is repaired before (schema_repairs.py, bundle/proxy/tool_schemas.py).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any
from urllib.parse import unquote

from bundle.cortex.models import JSON, Note, no_note
from bundle.cortex.patterns import is_openai_pattern, plain_patterns

# The keywords whose values are schemas, lists of schemas, and objects whose values are schemas. All other values are
# data. A test compares these with the standard's own list.
ONE = frozenset({"items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else"}) | {
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema")
}
LISTS = frozenset({"prefixItems", "allOf", "anyOf", "oneOf"})
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
_UNIONS = ("anyOf", "oneOf", "allOf")
_NOT_AT_TOP = ("enum", "not", "const")
_PROPERTY_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def cortex_tools(tools: Iterable[JSON], note: Note = no_note, *, openai: bool = False) -> list[JSON]:
    """docs/cortex.md#chat-tool-types: a tool of another type than `function` is a 400. For Claude, a schema that is not
    an object at its top is a 400 too, and so is a second tool of the same name. Only `name`, `description` and
    `parameters` stay. `openai` applies OpenAI's own rules for schemas."""
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
        if openai:
            changes: list[str] = []
            schema = openai_schema(schema, changes.append)
            for change in dict.fromkeys(changes):
                note(f"schema keyword {change}, tool {name}")
        plain["parameters"] = schema
        out[name] = {"type": "function", "function": plain}
    return list(out.values())


def is_schema(value: object) -> bool:
    """`true` and `false` are schemas too: anything fits, or nothing."""
    return isinstance(value, (dict, bool))


def inside(schema: JSON, change: Callable[[Any], Any]) -> JSON:
    """The schema with `change` applied to each schema that is directly inside it. A property may have any name, also
    that of a keyword (`default`), so only its place tells what is a schema."""
    out = dict(schema)
    for key, value in schema.items():
        if key in MAPS and isinstance(value, dict):
            out[key] = {name: change(item) if is_schema(item) else item for name, item in value.items()}
        elif key in LISTS and isinstance(value, list):
            out[key] = [change(item) if is_schema(item) else item for item in value]
        elif key in ONE and is_schema(value):
            out[key] = change(value)
    return out


def object_schema(schema: Any) -> JSON:
    """docs/cortex.md#chat-tool-schemas: a tool's parameters as one object. Alternatives at the top level are merged,
    also those behind a reference, and a property that only some of them require becomes optional. Returns the same
    object if nothing has to change."""
    top: JSON = schema if isinstance(schema, dict) else {}
    properties, required = _merged(top, top, {})
    accepted = {name: value for name, value in properties.items() if _PROPERTY_NAME.fullmatch(name)}
    required = [name for name in required if name in accepted or name not in properties]
    target = referred(top.get("$ref"), top)
    gone = {*_UNIONS, "required", *(("$ref",) if isinstance(target, dict) else ())}
    out = {**(target if isinstance(target, dict) else {}), **top}
    out = {key: value for key, value in out.items() if key not in gone}
    out = {**out, "type": "object", "properties": accepted, **({"required": required} if required else {})}
    return top if out == schema else out


Parts = tuple[JSON, list[str]]  # all properties, and the names of those that are always required


def _merged(schema: JSON, top: JSON, known: dict[str, Parts]) -> Parts:
    """The parts of the schema and of its alternatives. `known` has the parts behind each reference. A reference inside
    itself adds nothing."""
    properties = dict(schema["properties"]) if isinstance(schema.get("properties"), dict) else {}
    names = schema["required"] if isinstance(schema.get("required"), list) else ()
    required = [name for name in names if name and isinstance(name, str)]
    if isinstance(target := referred(schema.get("$ref"), top), dict):
        ref = str(schema["$ref"])
        if ref not in known:
            known[ref] = {}, []
            known[ref] = _merged(target, top, known)
        more, needed = known[ref]
        properties, required = {**more, **properties}, required + needed
    for union in _UNIONS:
        found = schema[union] if isinstance(schema.get(union), list) else ()
        branches = [_merged(each, top, known) for each in found if isinstance(each, dict)]
        found_in: dict[str, dict[str, Any]] = {}  # name of a property: its different schemas
        for name, value in chain.from_iterable(more.items() for more, _ in branches):
            found_in.setdefault(name, {})[json.dumps(value)] = value
        for name, schemas in found_in.items():
            first, *others = schemas.values()
            properties.setdefault(name, {"anyOf": [first, *others]} if others and union != "allOf" else first)
        branches_needed = 1 if union == "allOf" else len(branches)
        counts = Counter(chain.from_iterable(needed for _, needed in branches))
        required += [name for name, count in counts.items() if count >= branches_needed]
    return properties, list(dict.fromkeys(required))


def referred(ref: object, top: JSON) -> Any:
    """The schema that `#` or `#/…` points at inside `top`; None if there is none."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return None
    node: Any = top
    for part in unquote(ref).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list) and name.isdecimal() and len(name) < 6 and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node if is_schema(node) else None


def openai_schema(schema: JSON, note: Note = no_note) -> JSON:
    """docs/cortex.md#chat-tool-openai: what OpenAI refuses in the parameters of a function. Returns the same object if
    nothing has to change. Each note names a keyword."""
    for key in _NOT_AT_TOP:
        if key in schema:
            note(f"{key} dropped")

    def part(each: Any) -> Any:
        if isinstance(each, bool):
            return each
        inner = inside(each, part)
        if (out := _with_items(inner)) is not inner:
            note("items repaired")
        return plain_patterns(out, is_openai_pattern, note)

    out = part({key: value for key, value in schema.items() if key not in _NOT_AT_TOP})
    return schema if out == schema else out


def _with_items(schema: JSON) -> JSON:
    """An array says with one object what its items are. OpenAI ignores what `prefixItems` says."""
    kinds, first, rest = schema.get("type"), schema.get("prefixItems"), schema.get("items")
    is_array = kinds == "array" or (isinstance(kinds, list) and "array" in kinds)
    if first is None and (isinstance(rest, dict) or not (is_array or isinstance(rest, bool))):
        return schema
    first = first if isinstance(first, list) else []
    choices = {json.dumps(each): each for each in (*first, rest) if isinstance(each, dict)}
    out: JSON = {key: value for key, value in schema.items() if key != "prefixItems"}
    items = list(choices.values())
    out["items"] = items[0] if len(items) == 1 else {"anyOf": items} if items else {}
    return {"maxItems": len(first), **out} if rest is False else out


def chosen_tool(tool_choice: Any) -> str | None:
    """The name of the tool that a tool choice forces, or None for auto, none and required."""
    return (tool_choice.get("function") or {}).get("name", "") if isinstance(tool_choice, dict) else None
