"""The tools of a request as Anthropic's API wants them: each schema is one of draft 2020-12, each name is allowed.

The problem: one odd schema of one MCP server makes each request of a session a 400. The mechanism: the standard's own
schema of schemas, from the package jsonschema, decides keyword by keyword what is wrong. `cortex/schema_repairs.py`
knows what was meant; a keyword without an obvious meaning is dropped, and all else stays. The whole schema of schemas
takes jsonschema 8 ms for each kilobyte, one keyword a few µs. Each schema is looked at once in the life of the proxy.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema_specifications import REGISTRY

from bundle.cortex.models import JSON, Family, Note
from bundle.cortex.schema_repairs import candidates, plain_node, without_lost_refs
from bundle.cortex.schemas import inside, object_schema

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
MAX_GPT_TOOLS = 128
MAX_KEPT = 64 * 1024  # characters of a schema whose repair is kept


class ToolsError(Exception):
    """Tools that no repair makes acceptable; `str()` says why and what to do."""


def repaired_tools(tools: Iterable[JSON], family: Family, note: Note) -> list[JSON]:
    """The tools of a request of Anthropic's API, with repaired schemas. Raises ToolsError.

    Tools that Anthropic's servers would run pass as they are. docs/cortex.md#chat-tool-names: another name is a 400, as
    from Anthropic: with a new name the client would not know its tool again. docs/cortex.md#chat-tool-count.
    """
    out, names = [], set()
    for index, tool in enumerate(tools):
        plain, name = tool, tool.get("name")
        if (tool.get("type") or "custom") == "custom" and isinstance(name, str):
            names.add(name)
            if not TOOL_NAME.fullmatch(name):
                raise ToolsError(
                    f"tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$', and it is "
                    f"{name[:200]!r}. Rename this tool, or switch off its MCP server."
                )
            if "input_schema" in tool:
                schema, changes = repaired_schema(tool["input_schema"])
                plain = {**tool, "input_schema": schema}
                for change in changes:
                    note(f"schema keyword {change}, tool {name}")
        out.append(plain)
    if family == "openai" and len(names) > MAX_GPT_TOOLS:
        raise ToolsError(
            f"This request has {len(names)} tools, and GPT models take at most {MAX_GPT_TOOLS}. Switch off MCP servers "
            "(in Claude Code: /mcp), or use a Claude model (/model)."
        )
    return out


def repaired_schema(schema: Any) -> tuple[JSON, tuple[str, ...]]:
    """A tool's schema as draft 2020-12 with one object at the top, and what was changed: `KEYWORD repaired` or
    `KEYWORD dropped`. A good schema comes back as it is."""
    text = json.dumps(schema)
    repaired, changes = (_kept_repair if len(text) <= MAX_KEPT else _repair)(text)
    return (schema, ()) if repaired is None else (json.loads(repaired), changes)


def _repair(text: str) -> tuple[str | None, tuple[str, ...]]:
    schema, changes = json.loads(text), list[str]()
    plain = object_schema(_sound(schema, changes.append) if isinstance(schema, dict) else {})
    if 'Ref"' in text or '"$ref"' in text:
        plain = without_lost_refs(plain, changes.append)
    repaired = json.dumps(plain)
    return None if repaired == text else repaired, tuple(dict.fromkeys(changes))


# As text, because LiteLLM may change what it gets.
_kept_repair = functools.lru_cache(maxsize=1000)(_repair)


def _sound(schema: Any, note: Note) -> Any:
    """The schema, and all schemas inside it, with keywords only that draft 2020-12 accepts. A keyword that the draft
    does not know stays: the standard says to ignore it."""
    if not isinstance(schema, dict):
        return schema
    out = plain_node(schema, note)
    for key, value in list(out.items()):
        if (key, type(value)) in {("type", str), ("required", list)}:
            continue  # the most frequent ones, of which `plain_node` leaves none that is odd
        if (accepts := _KEYWORDS.get(key)) is None or accepts(value):
            continue
        meant = next((each for each in candidates(key, value) if accepts(each)), None)
        if meant is None:
            note(f"{key} dropped")
            del out[key]
        else:
            note(f"{key} repaired")
            out[key] = meant
    return inside(out, functools.partial(_sound, note=note))


def _keywords() -> dict[str, Callable[[Any], bool]]:
    """For each keyword of draft 2020-12, whether a value fits, from the vocabularies of the standard's schema. Whether
    the members of a value are schemas is not asked: `plain_node` leaves only schemas, and `_sound` looks into them."""
    top = Draft202012Validator.META_SCHEMA
    base = top["$id"].rpartition("/")[0]
    pages = [top, *(REGISTRY.contents(f"{base}/{each['$ref']}") for each in top["allOf"])]
    by_name = {page["$id"].removeprefix(f"{base}/"): page for page in pages}

    def flat(value: Any, page: JSON, *, is_member: bool = True) -> Any:
        if isinstance(value, list):
            return [flat(item, page) for item in value]
        if not isinstance(value, dict):
            return value
        if "$dynamicRef" in value:
            return is_member or {"type": ["object", "boolean"]}
        own = {key: flat(item, page) for key, item in value.items() if key != "$ref"}
        if not isinstance(ref := value.get("$ref"), str):
            return own
        name, _, definition = ref.partition("#/$defs/")
        home = by_name[name] if name else page
        return {**flat(home["$defs"][definition], home), **own}

    found = {key: flat(value, page, is_member=False) for page in pages for key, value in page["properties"].items()}
    return {key: Draft202012Validator(each).is_valid for key, each in found.items()}


_KEYWORDS = _keywords()
