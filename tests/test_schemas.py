"""Tools as Cortex takes them (bundle/cortex/schemas.py): functions only, whose parameters are one object."""

from __future__ import annotations

from typing import Any

import pytest

from bundle.cortex.models import JSON
from bundle.cortex.schemas import cortex_tools, object_schema
from tests.conversations import GPT, MARK, cortex, tool, user


def test_only_functions_pass_and_only_what_cortex_reads_of_them() -> None:
    notes: list[str] = []
    tools = [
        {**tool("Read", description="reads", strict=True), **MARK, "eager_input_streaming": True},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "code_execution_20250522"},
        {"googleSearch": {}},
        tool("Read", description="another"),
        {"type": "function", "function": {"name": "Bare"}},
    ]
    assert cortex_tools(tools, notes.append) == [tool("Read", description="reads"), tool("Bare")]
    dropped = ("bash", "code_execution_20250522", "None", "Read")
    assert notes == [f"tool {name} dropped" for name in dropped]


def test_a_request_whose_tools_are_all_dropped_has_none() -> None:
    out = cortex(user("x"), tools=[{"type": "bash_20250124", "name": "bash"}], tool_choice="required")
    assert out.keys() == {"model", "messages"}


PROPERTIES: JSON = {"a": {"type": "string"}}
SCHEMAS: dict[str, tuple[Any, JSON]] = {
    "none": (None, {"type": "object", "properties": {}}),
    "empty": ({}, {"type": "object", "properties": {}}),
    "no type": ({"properties": PROPERTIES}, {"type": "object", "properties": PROPERTIES}),
    "another type": ({"type": "string"}, {"type": "object", "properties": {}}),
    "a list of types": (
        {"type": ["object", "null"], "properties": PROPERTIES},
        {"type": "object", "properties": PROPERTIES},
    ),
    "no properties": ({"type": "object", "properties": None}, {"type": "object", "properties": {}}),
    "required in the old way": (
        {"type": "object", "properties": PROPERTIES, "required": True},
        {"type": "object", "properties": PROPERTIES},
    ),
    "alternatives": (
        {"anyOf": [{"properties": {"a": {"type": "string"}}, "required": ["a", "b"]}, {"required": ["b"]}]},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
    ),
    "what every alternative requires": (
        {"oneOf": [{"properties": {"a": {}, "b": {}}, "required": ["a", "b"]}, {"required": ["b"]}]},
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]},
    ),
    "all of": (
        {"properties": {"a": {}}, "required": ["a"], "allOf": [{"properties": {"b": {}}, "required": ["b"]}, True]},
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
    ),
    "alternatives of alternatives": (
        {"anyOf": [{"allOf": [{"properties": {"a": {}}}]}, {"properties": {"b": {}}}]},
        {"type": "object", "properties": {"a": {}, "b": {}}},
    ),
    "the schema's own words win": (
        {"properties": {"a": {"type": "string"}}, "anyOf": [{"properties": {"a": {"type": "number"}}}]},
        {"type": "object", "properties": {"a": {"type": "string"}}},
    ),
    "alternatives that differ": (
        {"oneOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}]},
        {"type": "object", "properties": {"a": {"anyOf": [{"const": 1}, {"const": 2}]}}},
    ),
    "a reference": (
        {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": {}}, "required": ["a"], "description": "d"}}},
        {
            "type": "object",
            "description": "d",
            "properties": {"a": {}},
            "required": ["a"],
            "$defs": {"A": {"properties": {"a": {}}, "required": ["a"], "description": "d"}},
        },
    ),
    "alternatives by reference": (
        {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/no"}], "$defs": {"a/b": {"properties": {"a": {}}}}},
        {"type": "object", "properties": {"a": {}}, "$defs": {"a/b": {"properties": {"a": {}}}}},
    ),
    "a reference to itself": (
        {"$ref": "#/$defs/A", "$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#"}]}}},
        {"type": "object", "properties": {}, "$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#"}]}}},
    ),
    "a property's name that is refused": (
        {"type": "object", "properties": {"$filter": {}, "a": {}}, "required": ["$filter", "a"]},
        {"type": "object", "properties": {"a": {}}, "required": ["a"]},
    ),
}


@pytest.mark.parametrize(("schema", "expected"), SCHEMAS.values(), ids=SCHEMAS)
def test_a_tools_parameters_are_one_object(schema: Any, expected: JSON) -> None:
    assert object_schema(schema) == expected


def test_a_good_schema_passes_as_it_is() -> None:
    schema = {"type": "object", "properties": {"a": {"anyOf": [{}]}}, "required": ["z", "a"], "$defs": {}}
    assert object_schema(schema) is schema


NUMBER, TEXT = {"type": "number"}, {"type": "string"}
# What a property is, and what GPT gets. Claude gets the first one.
FOR_GPT: dict[str, tuple[JSON, JSON]] = {
    "no items": ({"type": "array"}, {"type": "array", "items": {}}),
    "no items, or null": ({"type": ["array", "null"]}, {"type": ["array", "null"], "items": {}}),
    "in an alternative": ({"anyOf": [{"type": "array"}]}, {"anyOf": [{"type": "array", "items": {}}]}),
    "a property named like data": (
        {"properties": {"default": {"type": "array"}, "enum": {"type": "array"}}},
        {"properties": {"default": {"type": "array", "items": {}}, "enum": {"type": "array", "items": {}}}},
    ),
    "data": ({"default": {"type": "array"}, "enum": [{"type": "array"}]},) * 2,
    "a pair": (
        {"type": "array", "prefixItems": [NUMBER, NUMBER], "minItems": 2},
        {"type": "array", "minItems": 2, "items": NUMBER},
    ),
    "a closed tuple": (
        {"type": "array", "prefixItems": [NUMBER, TEXT], "items": False},
        {"maxItems": 2, "type": "array", "items": {"anyOf": [NUMBER, TEXT]}},
    ),
    "an open tuple": ({"prefixItems": [NUMBER], "items": TEXT}, {"items": {"anyOf": [NUMBER, TEXT]}}),
    "any items": ({"type": "array", "items": True}, {"type": "array", "items": {}}),
    "a pattern of JavaScript": ({"type": "string", "pattern": "^[^\\p{Cc}]+$"}, TEXT),
    "lookaround": ({"type": "string", "pattern": "^(?!a)b"}, TEXT),
    "names by patterns": (
        {"patternProperties": {"^(?=a)": {}, "^b": {}}, "additionalProperties": False},
        {"patternProperties": {"^b": {}}},
    ),
    "a usual pattern": ({"type": "string", "pattern": "^[a-z]+$"},) * 2,
}


@pytest.mark.parametrize(("given", "expected"), FOR_GPT.values(), ids=FOR_GPT)
def test_gpt_gets_the_schemas_that_openai_accepts(given: JSON, expected: JSON) -> None:
    schema = {"type": "object", "properties": {"x": given}}
    (gpt,) = cortex(user("x"), model=GPT, tools=[tool("T", schema)])["tools"]
    assert gpt["function"]["parameters"] == {"type": "object", "properties": {"x": expected}}
    (claude,) = cortex(user("x"), tools=[tool("T", schema)])["tools"]
    assert claude["function"]["parameters"] == schema


@pytest.mark.parametrize("word", ["not", "enum", "const"])
def test_gpt_gets_no_condition_at_the_top(word: str) -> None:
    plain = {"type": "object", "properties": {"a": {word: [1]}}}
    (gpt,) = cortex(user("x"), model=GPT, tools=[tool("T", {**plain, word: {}})])["tools"]
    assert gpt["function"]["parameters"] == plain


def test_the_log_names_what_gpt_does_not_get() -> None:
    notes: list[str] = []
    schema = {"properties": {"a": {"type": "array"}, "b": {"type": "array"}, "c": {"pattern": "(?=a)"}}, "enum": []}
    cortex_tools([tool("T", schema), tool("Good", {"type": "object"})], notes.append, openai=True)
    assert notes == [f"schema keyword {word}, tool T" for word in ("enum dropped", "items repaired", "pattern dropped")]
