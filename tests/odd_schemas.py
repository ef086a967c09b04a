"""Schemas of parameters as MCP servers publish them, and what a Claude model gets instead."""

from __future__ import annotations

from typing import Any

from bundle.cortex.models import JSON

TEXT: JSON = {"type": "string"}
NUMBER: JSON = {"type": "number"}
# The schema of the property `x`, and the same repaired.
PARAMETERS: dict[str, tuple[Any, Any]] = {
    "draft 4, exclusive minimum": (
        {**NUMBER, "minimum": 0, "exclusiveMinimum": True},
        {**NUMBER, "exclusiveMinimum": 0},
    ),
    "draft 4, exclusive maximum": ({"maximum": 9, "exclusiveMaximum": True}, {"exclusiveMaximum": 9}),
    "draft 4, inclusive": ({"minimum": 0, "exclusiveMinimum": False}, {"minimum": 0}),
    "exclusive of nothing": ({**NUMBER, "exclusiveMinimum": True}, NUMBER),
    "draft 7, tuple": ({"type": "array", "items": [NUMBER, TEXT]}, {"type": "array", "prefixItems": [NUMBER, TEXT]}),
    "draft 7, closed tuple": (
        {"type": "array", "items": [NUMBER], "additionalItems": False},
        {"type": "array", "prefixItems": [NUMBER], "items": False},
    ),
    "no tuple": ({"type": "array", "items": []}, {"type": "array"}),
    "draft 7, anchor": ({**TEXT, "$id": "#x"}, TEXT),
    "draft 2019, recursion": ({"$recursiveAnchor": True, "properties": {}}, {"properties": {}}),
    "type any": ({"type": "any"}, {}),
    "type any among others": ({"type": ["string", "any"]}, {}),
    "type in another case": ({"type": "STRING"}, TEXT),
    "types in another case": ({"type": ["Integer", "NULL"]}, {"type": ["integer", "null"]}),
    "type date": ({"type": "date"}, {"format": "date", **TEXT}),
    "type datetime": ({"type": "datetime"}, {"format": "date-time", **TEXT}),
    "type uuid with a format": ({"type": "uuid", "format": "mine"}, {"format": "mine", **TEXT}),
    "type of Python": ({"type": "dict"}, {"type": "object"}),
    "type float": ({"type": "float"}, NUMBER),
    "type int": ({"type": "int"}, {"type": "integer"}),
    "type bool": ({"type": "bool"}, {"type": "boolean"}),
    "type text": ({"type": "text"}, TEXT),
    "type list": ({"type": "list"}, {"type": "array"}),
    "types as one word": ({"type": "string|null"}, {"type": ["string", "null"]}),
    "type of a list's items": ({"type": "string[]"}, {"items": TEXT, "type": "array"}),
    "types with a list": ({"type": ["string", "number[]"]}, {"items": NUMBER, "type": ["string", "array"]}),
    "type misspelt": ({"type": "strng", "description": "d"}, {"description": "d"}),
    "type null": ({"type": None}, {}),
    "type twice": ({"type": ["string", "string"]}, {"type": ["string"]}),
    "type as an object": ({"type": {"type": "string"}}, {}),
    "enum null": ({**TEXT, "enum": None}, TEXT),
    "enum of one": ({**TEXT, "enum": "a"}, TEXT),
    "property null": (None, {}),
    "property of text": ("string", {}),
    "property true": (True, {}),
    "property false": (False, {"not": {}}),
    "property as PHP writes it": ([], {}),
    "properties as PHP writes them": ({"type": "object", "properties": []}, {"type": "object", "properties": {}}),
    "additional properties null": ({"type": "object", "additionalProperties": None}, {"type": "object"}),
    "additional properties as text": ({"additionalProperties": "false"}, {"additionalProperties": False}),
    "items null": ({"type": "array", "items": None}, {"type": "array"}),
    "required twice": ({"type": "object", "required": ["a", "b", "a"]}, {"type": "object", "required": ["a", "b"]}),
    "required null": ({"type": "object", "required": None}, {"type": "object"}),
    "required of one": ({"type": "object", "required": "a"}, {"type": "object", "required": ["a"]}),
    "required inside": (
        {"properties": {"a": {**TEXT, "required": True}, "b": {"required": False}, "c": {"required": "true"}}},
        {"properties": {"a": TEXT, "b": {}, "c": {}}, "required": ["a", "c"]},
    ),
    "a property named required": ({"properties": {"required": TEXT}},) * 2,
    "bounds as text": ({"maxLength": "20", "minimum": "-1.5"}, {"maxLength": 20, "minimum": -1.5}),
    "bound below zero": ({**TEXT, "minLength": -1}, TEXT),
    "bound null": ({**TEXT, "maxLength": None}, TEXT),
    "multiple of nothing": ({"multipleOf": 0}, {}),
    "flag as text": ({"uniqueItems": "true", "readOnly": "no"}, {"uniqueItems": True}),
    "no alternatives": ({**TEXT, "anyOf": []}, TEXT),
    "alternative null": ({"anyOf": [TEXT, None]}, {"anyOf": [TEXT]}),
    "one alternative": ({"oneOf": TEXT}, {"oneOf": [TEXT]}),
    "description as a number": ({"description": 5, "title": None}, {"description": "5"}),
    "one example": ({"examples": "x"}, {"examples": ["x"]}),
    "pattern with a mistake": ({**TEXT, "pattern": "["}, TEXT),
    "names by a pattern with a mistake": (
        {"patternProperties": {"[": {}, "^a": TEXT}, "additionalProperties": False},
        {"patternProperties": {"^a": TEXT}},
    ),
    "reference to nowhere": ({"$ref": "#/definitions/no", "description": "d"}, {"description": "d"}),
    "reference to another document": ({"$ref": "https://example.com/s.json"}, {}),
    "deep inside": (
        {"items": {"anyOf": [{"properties": {"a": {"type": "STRING"}}}]}},
        {"items": {"anyOf": [{"properties": {"a": TEXT}}]}},
    ),
    # What stays as it is.
    "data": ({"default": {"type": "any"}, "const": None, "enum": [{"items": [1]}], "examples": [{"required": True}]},)
    * 2,
    "unknown keywords": ({"nullable": True, "example": {"type": "any"}, "x-order": 1, "additionalItems": True},) * 2,
    "valid": ({"type": ["array", "null"], "prefixItems": [True], "items": False, "contains": {}, "minContains": 0},)
    * 2,
    "pattern of JavaScript": ({"pattern": r"^(?!__)(?<n>[^\p{Cc}\u{1F600}])\k<n>(?<=a+)$"},) * 2,
    "reference to itself": ({"properties": {"more": {"$ref": "#/properties/x"}, "all": {"$ref": "#"}}},) * 2,
    "reference to an anchor": ({"$ref": "#here", "$defs": {"A": {"$anchor": "here"}}},) * 2,
}


def with_property(schema: Any) -> JSON:
    return {"type": "object", "properties": {"x": schema}}
