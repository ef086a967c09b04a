"""What OpenAI refuses in the parameters of a function (docs/cortex.md#chat-tool-openai), with its own words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.cortex_shared_rules import JSON, refuse, schema_error

if TYPE_CHECKING:
    from tests.cortex_rules import Options

MAX_FUNCTIONS = 128
TOP = "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level."
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
_ONE = {"items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else", "contentSchema"}
_ONE |= {"unevaluatedItems", "unevaluatedProperties", "prefixItems", "allOf", "anyOf", "oneOf"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}


def check_function(name: str, schema: JSON, options: Options) -> None:
    said = f"Invalid schema for function '{name}': "
    if schema.get("type") != "object":
        refuse(f"{said}schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'.")
    if schema.keys() & {"oneOf", "anyOf", "allOf", "enum", "not"}:
        refuse(said + TOP)
    if error := schema_error(schema):
        refuse(f"{said}{error}.")
    _check(schema, said, (), options)


def _check(schema: object, said: str, path: tuple[str, ...], options: Options) -> None:
    """Go into the schemas inside a schema. A property may have the name of a keyword."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            _check(item, said, (*path, str(number)), options)
    if not isinstance(schema, dict):
        return
    kinds = schema.get("type")
    if "array" in (kinds if isinstance(kinds, list) else [kinds]) and not isinstance(schema.get("items"), dict):
        refuse(f"{said}In context={path}, array schema missing items.")
    for pattern in (schema.get("pattern", ""), *schema.get("patternProperties", ())):
        try:
            re.compile(pattern)
        except re.error:
            refuse(f"{said}{pattern!r} is not a 'regex'.")
        if _LOOKAROUND.search(pattern) and not options.lookaround:
            refuse(
                f"Invalid JSON schema: regex lookaround is not supported. Found at ${''.join(f'.{p}' for p in path)}."
            )
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            for name, item in value.items():
                _check(item, said, (*path, key, name), options)
        elif key in _ONE:
            _check(value, said, (*path, key), options)
