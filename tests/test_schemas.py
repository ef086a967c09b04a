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


def test_gpt_is_told_what_an_array_holds() -> None:
    array: JSON = {"type": "array"}
    schema = {"type": "object", "properties": {"a": array, "b": {"anyOf": [array]}, "c": {"default": array}}}
    (gpt,) = cortex(user("x"), model=GPT, tools=[tool("T", schema)])["tools"]
    assert gpt["function"]["parameters"]["properties"] == {
        "a": {"type": "array", "items": {}},
        "b": {"anyOf": [{"type": "array", "items": {}}]},
        "c": {"default": array},
    }
    (claude,) = cortex(user("x"), tools=[tool("T", schema)])["tools"]
    assert claude["function"]["parameters"] == schema
