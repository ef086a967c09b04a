"""Repairs of schemas that are no JSON Schema of draft 2020-12, where it is obvious what they mean.

The problem: MCP servers publish schemas of older drafts, of OpenAPI, of other services and with mistakes. Anthropic and
OpenAI refuse the whole request for one of them (docs/cortex.md#chat-tool-schemas). Which keyword is wrong decides
the standard's own schema (bundle/proxy/tool_schemas.py). Here is what to write instead. Each `note` names a keyword.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bundle.cortex.models import JSON, Note
from bundle.cortex.patterns import is_pattern, plain_patterns
from bundle.cortex.schemas import LISTS, MAPS, inside, is_schema, referred

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
# Names of other languages. A format beside the type keeps what the name says.
_TYPE_NAMES = {
    **dict.fromkeys(("arr", "list", "tuple", "set", "sequence", "vector"), "array"),
    **dict.fromkeys(("dict", "dictionary", "map", "mapping", "record", "hash", "json", "struct"), "object"),
    **dict.fromkeys(("int", "int32", "int64", "long", "short", "uint", "bigint", "timestamp"), "integer"),
    **dict.fromkeys(("float", "double", "decimal", "float32", "float64", "num", "numeric"), "number"),
    **dict.fromkeys(("str", "text", "char", "varchar", "password", "file", "binary", "bytes", "base64"), "string"),
    **dict.fromkeys(("bool", "flag"), "boolean"),
    **dict.fromkeys(("none", "nil", "undefined", "void"), "null"),
}
_FORMATS = {"date": "date", "time": "time", "datetime": "date-time", "date-time": "date-time", "uuid": "uuid"}
_FORMATS |= {"email": "email", "uri": "uri", "url": "uri", "hostname": "hostname", "duration": "duration"}
_ANYTHING = frozenset({"any", "mixed", "unknown", "*", ""})
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")


def plain_node(node: JSON, note: Note) -> JSON:
    """One schema, without those inside it, in the words of draft 2020-12. Each odd value that is still in it has no
    obvious meaning. `$schema` goes without a note: it names the draft, and this is 2020-12 now."""
    out = {key: value for key, value in node.items() if key != "$schema"}
    for repair in (_type, _exclusive_bounds, _list_of_items, _members, _required):
        out = repair(out, note)
    return plain_patterns(out, is_pattern, note)


def candidates(key: str, value: Any) -> Iterator[Any]:
    """What an odd value of a keyword may mean."""
    if isinstance(value, str):
        if _NUMBER.fullmatch(value.strip()):
            yield float(value) if "." in value else int(value)
        if value.lower() in {"true", "false"}:
            yield value.lower() == "true"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)
    elif value == []:
        yield {}  # PHP writes an empty object in this way
    kinds = {"examples": object, "required": str, **dict.fromkeys(LISTS, dict)}
    if value is not None and isinstance(value, kinds.get(key, ())):
        yield [value]


def without_lost_refs(top: JSON, note: Note) -> JSON:
    """Without the references that point nowhere. The standard's schema does not see them. The services follow no
    reference to another document, and Bedrock was seen to refuse a name that is not there."""
    anchors: set[str] = set()

    def look(schema: Any) -> Any:
        if isinstance(schema, dict):
            anchors.update(f"#{schema[key]}" for key in ("$anchor", "$dynamicAnchor") if key in schema)
            inside(schema, look)
        return schema

    def part(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        out = inside(schema, part)
        for key in ("$ref", "$dynamicRef"):
            if key in out and referred(out[key], top) is None and out[key] not in anchors:
                note(f"{key} dropped")
                del out[key]
        return out

    look(top)
    out: JSON = part(top)
    return out


def _type(node: JSON, note: Note) -> JSON:
    """Names of types in another case or of another language, `string|null`, and `string[]`."""
    kind = node.get("type")
    if "type" not in node or (isinstance(kind, str) and kind in TYPES):
        return node
    names = kind if isinstance(kind, list) else re.split(r"[|]", kind) if isinstance(kind, str) else []
    known: list[str] = []
    more: JSON = {}
    for name in names:
        word = name.strip().lower() if isinstance(name, str) else None
        inner = word.removesuffix("[]") if word else ""
        if word in _ANYTHING:
            known = []
            break
        if word in TYPES:
            known.append(word)
        elif word in _TYPE_NAMES:
            known.append(_TYPE_NAMES[word])
        elif word in _FORMATS:
            known.append("string")
            more |= {"format": _FORMATS[word]}
        elif word and inner != word:
            known.append("array")
            more |= {"items": {"type": inner}}
    known = list(dict.fromkeys(known))
    fitting = known[0] if known and not isinstance(kind, list) and len(known) == 1 else known
    if fitting == kind:
        return node
    note(f"type {'repaired' if known else 'dropped'}")
    out = {**more, **node, "type": fitting}
    if not known:
        del out["type"]
    return out


def _exclusive_bounds(node: JSON, note: Note) -> JSON:
    """Draft 4: `exclusiveMinimum: true` says something about `minimum`."""
    out = dict(node)
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(given := out.get(key), bool):
            del out[key]
            note(f"{key} repaired")
            if given and bound in out:
                out[key] = out.pop(bound)
    return out


def _list_of_items(node: JSON, note: Note) -> JSON:
    """Until draft 2019-09, a list of `items` said what the first items are, and `additionalItems` what the others."""
    if not isinstance(first := node.get("items"), list):
        return node
    note("items repaired")
    out = {key: value for key, value in node.items() if key not in {"items", "additionalItems"}}
    if first:
        out.setdefault("prefixItems", first)
    if is_schema(node.get("additionalItems")):
        out["items"] = node["additionalItems"]
    return out


def _members(node: JSON, note: Note) -> JSON:
    """What is no schema where one should be: a property gets the schema that accepts anything, an alternative goes.
    `true` as a property's schema becomes `{}`, which means the same: some programs know objects only."""
    out = dict(node)
    for key, value in node.items():
        if key in MAPS and isinstance(value, dict):
            kept = {name: _member(item, is_list_allowed=key == "dependencies") for name, item in value.items()}
            if any(not is_schema(item) and item != kept[name] for name, item in value.items()):
                note(f"{key} repaired")
            out[key] = kept
        elif key in LISTS and isinstance(value, list) and not (value and all(map(is_schema, value))):
            out[key] = [item for item in value if is_schema(item)]
            note(f"{key} {'repaired' if out[key] else 'dropped'}")
            if not out[key]:
                del out[key]
    return out


def _member(item: Any, *, is_list_allowed: bool) -> Any:
    if is_list_allowed and isinstance(item, list):
        return _names(item)
    if isinstance(item, dict):
        return item
    return {"not": {}} if item is False else {}


def _names(names: list[Any]) -> list[str]:
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _required(node: JSON, note: Note) -> JSON:
    """A name twice in `required`; and draft 3, where a property itself says that it is required."""
    out = dict(node)
    if isinstance(given := node.get("required"), list) and (names := _names(given)) != given:
        out["required"] = names
        note("required repaired")
    if not isinstance(properties := out.get("properties"), dict):
        return out
    told = {name: item["required"] for name, item in properties.items() if _tells_required(item)}
    if told:
        note("required repaired")
        out["properties"] = {
            name: {key: value for key, value in item.items() if key != "required"} if name in told else item
            for name, item in properties.items()
        }
        names = out["required"] if isinstance(out.get("required"), list) else []
        needed = [name for name, value in told.items() if str(value).lower() == "true"]
        if names or needed:
            out["required"] = list(dict.fromkeys([*names, *needed]))
    return out


def _tells_required(item: Any) -> bool:
    return isinstance(item, dict) and str(item.get("required")).lower() in {"true", "false"}
