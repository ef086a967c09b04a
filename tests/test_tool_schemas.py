"""Any tool of any MCP server: Cortex takes it, and as much of it as possible stays (bundle/proxy/tool_schemas.py)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema_specifications import REGISTRY

from bundle.cortex.models import JSON
from bundle.cortex.schemas import LISTS, MAPS, ONE, openai_schema
from bundle.proxy import tool_schemas
from bundle.proxy.tool_schemas import ToolsError, repaired_schema, repaired_tools
from tests.cortex_functions import check_function
from tests.cortex_rules import Options
from tests.cortex_shared_rules import check_schema
from tests.odd_schemas import PARAMETERS, TEXT, with_property

META = Draft202012Validator(Draft202012Validator.META_SCHEMA)


def is_accepted(schema: JSON) -> bool:
    """By the rules of the stand-in for Claude, and, in OpenAI's form, by those for GPT."""
    check_schema(schema, "tools.0.custom.input_schema")
    check_function("T", openai_schema(schema), Options())
    return bool(META.is_valid(schema) and META.is_valid(openai_schema(schema)))


@pytest.mark.parametrize(("odd", "expected"), PARAMETERS.values(), ids=PARAMETERS)
def test_an_odd_keyword_is_repaired_or_dropped_and_all_else_stays(odd: Any, expected: Any) -> None:
    schema = with_property(odd)
    before = copy.deepcopy(schema)
    repaired, changes = repaired_schema(schema)
    assert repaired == with_property(expected)
    assert schema == before
    assert bool(changes) == (odd != expected and not isinstance(odd, bool))
    assert repaired_schema(repaired) == (repaired, ())
    assert is_accepted(repaired)


@pytest.mark.parametrize("odd", [None, True, 5, "object", [], {"type": "string"}, {"properties": [1]}])
def test_what_is_no_object_becomes_one(odd: Any) -> None:
    assert repaired_schema(odd)[0] == {"type": "object", "properties": {}}


def test_a_good_schema_passes_as_it_is() -> None:
    schema = with_property({"type": "string", "enum": ["a"], "x-mine": {"type": "any"}})
    assert repaired_schema(schema)[0] is schema


def test_the_draft_that_a_schema_names_is_not_sent() -> None:
    named = {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"$schema": TEXT, "schema": TEXT}}
    assert repaired_schema(named) == ({"type": "object", "properties": {"schema": TEXT}}, ())


@pytest.mark.parametrize("pattern", ["(" * 3000 + ")" * 3000, "a{99999999999}", "a" * 20_000, "[[a]", "(?z)"])
def test_a_pattern_that_python_cannot_read_is_no_error(pattern: str) -> None:
    repaired, changes = repaired_schema(with_property({**TEXT, "pattern": pattern}))
    assert is_accepted(repaired)
    assert changes == (() if pattern == "[[a]" else ("pattern dropped",))


@pytest.mark.parametrize("place", ["0", "00", "1", "x", "-1", "9" * 5000, "0/no"])
def test_a_reference_into_a_list_is_followed_or_dropped(place: str) -> None:
    schema = {"type": "object", "properties": {"x": {"anyOf": [TEXT]}, "y": {"$ref": f"#/properties/x/anyOf/{place}"}}}
    assert repaired_schema(schema)[1] == (() if place in {"0", "00"} else ("$ref dropped",))


def test_the_keywords_that_hold_schemas_are_those_of_the_standard() -> None:
    found: dict[str, set[str]] = {"one": set(), "lists": set(), "maps": set()}
    top: JSON = Draft202012Validator.META_SCHEMA
    base = "https://json-schema.org/draft/2020-12/"
    for page in (top, *(REGISTRY.contents(base + each["$ref"]) for each in top["allOf"])):
        for key, value in page["properties"].items():
            if value is True:
                continue
            if value.get("$dynamicRef"):
                found["one"].add(key)
            elif value.get("$ref") == "#/$defs/schemaArray":
                found["lists"].add(key)
            elif "$dynamicRef" in json.dumps(value.get("additionalProperties")):
                found["maps"].add(key)
    assert found == {"one": set(ONE), "lists": set(LISTS), "maps": set(MAPS)}


KEYWORDS = sorted(tool_schemas._KEYWORDS)
WORDS = st.sampled_from(
    ["object", "array", "string", "STRING", "any", "date", "#/properties/a", "#", "[", "20", "true"]
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | WORDS
NAMES = st.sampled_from([*KEYWORDS, "a", "$bad", "default"]) | st.text(max_size=3)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=25
)
SCHEMAS = st.dictionaries(NAMES, ANYTHING, max_size=4) | st.dictionaries(st.just("properties"), ANYTHING) | ANYTHING


@settings(deadline=None, derandomize=True, max_examples=300)
@given(schema=SCHEMAS)
def test_any_json_becomes_a_schema_that_cortex_takes(schema: Any) -> None:
    before = copy.deepcopy(schema)
    repaired, _ = repaired_schema(schema)
    assert repaired["type"] == "object"
    assert is_accepted(repaired)
    assert repaired_schema(repaired) == (repaired, ())
    assert openai_schema(openai_schema(repaired)) == openai_schema(repaired)
    assert json.dumps(schema) == json.dumps(before)


def test_each_schema_is_repaired_once_and_comes_out_with_the_same_bytes_on_each_turn() -> None:
    schema = with_property({"type": "STRING", "maxLength": "7", "title": "only here"})
    first = json.dumps(repaired_schema(schema)[0])
    before = tool_schemas._kept_repair.cache_info()
    repaired_schema(schema)[0].clear()  # whoever changes what comes out changes only that
    assert json.dumps(repaired_schema(copy.deepcopy(schema))[0]) == first
    after = tool_schemas._kept_repair.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 2)


def test_the_log_names_tool_and_keyword_once_for_each() -> None:
    notes: list[str] = []
    odd = {"type": "object", "properties": {"a": {"type": "STRING"}, "b": {"type": "INT", "enum": None}}}
    tools = [{"name": "Odd", "input_schema": odd}, {"name": "Good", "input_schema": with_property(TEXT)}]
    repaired_tools(tools, "claude", notes.append)
    assert notes == ["schema keyword type repaired, tool Odd", "schema keyword enum dropped, tool Odd"]


def test_only_schemas_are_changed_and_the_tools_of_anthropics_servers_are_not_touched() -> None:
    server: JSON = {"type": "web_search_20250305", "name": "web search"}
    bare: JSON = {"name": "Bare", "type": "custom"}
    odd: JSON = {"name": "Odd", "description": "d", "input_schema": True, "cache_control": {"type": "ephemeral"}}
    out = repaired_tools([server, bare, odd], "claude", lambda _: None)
    assert out == [server, bare, {**odd, "input_schema": {"type": "object", "properties": {}}}]


@pytest.mark.parametrize("name", ["catalog.get", "do it", "", "a" * 129, "grüße", "a\n"])
def test_a_name_that_anthropic_refuses_is_refused_in_its_words(name: str) -> None:
    with pytest.raises(ToolsError, match=r"tools\.1\.custom\.name: String should match pattern .* MCP server"):
        repaired_tools([{"name": "a" * 128}, {"name": name}], "claude", lambda _: None)


def test_gpt_takes_128_tools_and_more_are_refused_with_the_remedy() -> None:
    tools: list[JSON] = [{"name": f"t{number}", "input_schema": {}} for number in range(129)]
    assert len(repaired_tools([*tools[:128], tools[0]], "openai", lambda _: None)) == 129  # one name comes twice
    assert len(repaired_tools(tools, "claude", lambda _: None)) == 129
    with pytest.raises(ToolsError, match=r"129 tools.*at most 128.*/mcp.*Claude model"):
        repaired_tools(tools, "openai", lambda _: None)
