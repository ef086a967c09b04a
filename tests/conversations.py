"""Conversations for the tests of bundle/cortex: functions that build and summarize them, and random requests.

The functions up to `told` make and read messages of Chat Completions. `requests` and `sessions` are strategies of
hypothesis. They make what a client may send to LiteLLM, with every oddity that was ever seen.
"""

from __future__ import annotations

import base64
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from bundle.cortex.models import JSON, Limits, family_of
from bundle.cortex.requests import chat_request
from tests.cortex_rules import thinking_signature

CLAUDE, GPT, LLAMA = "openai/claude-sonnet-4-5", "openai/openai-gpt-5", "openai/llama4-maverick"
MARK: JSON = {"cache_control": {"type": "ephemeral"}}
PIXEL = base64.b64encode(b"\x89PNG pixel").decode()
# Some of LiteLLM's own arguments. The callback keeps them, and they are not sent to Cortex.
KEEP = frozenset({"custom_llm_provider", "metadata", "model_info"})


def text(words: str, **more: Any) -> JSON:
    return {"type": "text", "text": words, **more}


def image(data: str = PIXEL, kind: str = "image/png", **more: Any) -> JSON:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}, **more}


def system(*content: JSON, **more: Any) -> JSON:
    return {"role": "system", "content": list(content), **more}


def user(*content: JSON | str, **more: Any) -> JSON:
    return {"role": "user", "content": [text(c) if isinstance(c, str) else c for c in content], **more}


def assistant(content: Any = None, *ids: str, **more: Any) -> JSON:
    return {"role": "assistant", "content": content, **({"tool_calls": [*map(call, ids)]} if ids else {}), **more}


def thought(words: str, signature: str, index: int = 0) -> JSON:
    """Signed thinking of an assistant as it goes back to Cortex."""
    made = {"type": "reasoning.text", "format": "anthropic-claude-v1", "id": f"reasoning-text-{index + 1}"}
    return {**made, "index": index, "signature": signature, "text": words}


def call(identity: str, arguments: Any = "{}", name: str = "Bash", **more: Any) -> JSON:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def result(identity: str, content: Any = "out", **more: Any) -> JSON:
    return {"role": "tool", "tool_call_id": identity, "content": content, **more}


def tool(name: str = "Bash", parameters: Any = None, **more: Any) -> JSON:
    parameters = {"type": "object", "properties": {}} if parameters is None else parameters
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def cortex(*messages: JSON, model: str = CLAUDE, limits: Limits | None = None, **fields: Any) -> JSON:
    """What `chat_request` makes of a request."""
    body = {"model": model, "messages": list(messages), **fields}
    return chat_request(body, family=family_of(model), limits=limits or Limits(), keep=KEEP)[0]


def sent(*messages: JSON, **fields: Any) -> list[JSON]:
    made: list[JSON] = cortex(*messages, **fields)["messages"]
    return made


def shape(messages: Sequence[JSON]) -> list[str]:
    """A summary of a conversation: `user`, `assistant a b` (with its calls), `tool a`."""
    ids = ([c["id"] for c in m.get("tool_calls") or ()] + [m[k] for k in ("tool_call_id",) if k in m] for m in messages)
    return [" ".join([message["role"], *found]) for message, found in zip(messages, ids, strict=True)]


def marked(messages: Sequence[JSON]) -> list[tuple[int, int]]:
    """Message and block of each mark; block -1 means that the mark is beside the content."""
    found = []
    for position, message in enumerate(messages):
        blocks = message["content"] if isinstance(message["content"], list) else []
        found += [(position, -1) for item in (message, *message.get("tool_calls", ())) if "cache_control" in item]
        found += [(position, number) for number, block in enumerate(blocks) if "cache_control" in block]
    return found


def urls(messages: Sequence[JSON]) -> list[str]:
    contents = [m["content"] for m in messages if isinstance(m.get("content"), list)]
    return [block["image_url"]["url"] for content in contents for block in content if block["type"] == "image_url"]


def told(message: JSON) -> str:
    """All text of a message."""
    content = message["content"]
    return "\n".join(b.get("text", "") for b in content) if isinstance(content, list) else content or ""


WORDS = ["Read it.", "naïve ✓ 漢字", "  led by blanks", "two\n\nparagraphs\n", '{"json": [1]}', "</system-reminder>"]
ARRAY: JSON = {"type": "array"}
ODD_SCHEMAS: list[Any] = [
    {},
    {"type": "object"},
    {"type": "object", "properties": None, "required": None},
    {"type": "object", "required": ["a", 1, ""]},
    {"type": "object", "properties": {"a": ARRAY}, "required": ["a"]},
    {"type": ["object", "null"], "properties": {"$top": {}, "a": {"items": ARRAY}}, "required": ["$top"]},
    {"anyOf": [{"type": "object", "properties": {"a": {}}}, {"$ref": "#/$defs/x"}], "$defs": {"x": ARRAY}},
    {"oneOf": [{"allOf": [{"properties": {"b": ARRAY}, "required": ["b"]}]}], "additionalProperties": False},
]
SERVER_TOOLS: list[JSON] = [
    {"type": "web_search_20250305", "name": "web_search"},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "code_execution_20250825", "name": "code_execution"},
    {"type": "memory_20250818", "name": "memory"},
]
SETTINGS: dict[str, list[Any]] = {
    "thinking": [{"type": "adaptive"}, {"type": "enabled", "budget_tokens": 9_000}, {"type": "disabled"}],
    "output_config": [{"effort": "max"}, {"format": {"type": "json_schema", "schema": {"type": "object"}}}],
    "tool_choice": [{"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": "Read"}],
    "temperature": [0, 1],
    "top_p": [0.9],
    "top_k": [5],
    "stop_sequences": [["."], ["a", "", "b", "c", "d", "e"]],
    "stream": [True, False],
    "metadata": [{"user_id": "me"}],
    "service_tier": ["auto"],
}


@dataclass
class Maker:
    """Draws the parts of one Anthropic conversation. A test finds texts and calls again by their labels."""

    draw: st.DrawFn
    marks: bool
    labels: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    late: list[JSON] = field(default_factory=list)

    def chance(self, one_in: int) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def text(self) -> str:
        words = self.draw(st.sampled_from(["", " \n", *WORDS, *WORDS]))
        return f"{words}#{next(self.labels)}#" if words.strip() else words

    def mark(self) -> JSON:
        if not self.marks or not self.chance(2):
            return {}
        return {"cache_control": {"type": "ephemeral", **({"ttl": "1h"} if self.chance(3) else {})}}

    def image(self, kind: str = "image/png") -> JSON:
        data = base64.b64encode(f"{kind} #{next(self.labels)}#".encode()).decode()
        block = "document" if kind == "application/pdf" else "image"
        return {"type": block, "source": {"type": "base64", "media_type": kind, "data": data}}

    def attachment(self) -> JSON:
        kind = self.draw(st.sampled_from(["image/png", "image/jpeg", "image", "application/pdf", "document", "letter"]))
        if kind == "letter":
            return self.letter()
        if "/" in kind:
            return self.image(kind)
        return {"type": kind, "source": {"type": "url", "url": f"https://example.com/#{next(self.labels)}#"}}

    def label(self) -> str:
        return f"words #{next(self.labels)}#"

    def letter(self) -> JSON:
        """A text in one of the forms that Cortex does not have."""
        kind = self.draw(st.sampled_from(["text", "content", "string", "search_result"]))
        if kind == "search_result":
            content = [text(self.label()) for _ in range(self.draw(st.integers(0, 2)))]
            return {"type": kind, "title": self.label(), "source": self.label(), "content": content}
        more = {name: self.label() for name in ("title", "context") if self.chance(2)}
        if kind == "text":
            source: JSON = {"type": "text", "media_type": "text/plain", "data": self.label()}
        else:
            inside = [text(self.label()), self.image(), text(self.label())]
            source = {"type": "content", "content": inside if kind == "content" else self.label()}
        return {"type": "document", "source": source, **more}

    def served(self) -> list[JSON]:
        """A call of a tool on Anthropic's servers, and its result."""
        name = self.draw(st.sampled_from(["web_search", "web_fetch", "bash_code_execution", "mcp"]))
        called: JSON = {"type": "server_tool_use", "id": "srvtoolu_1", "name": name, "input": {"a": self.label()}}
        if name == "mcp":
            called |= {"type": "mcp_tool_use", "server_name": self.label()}
            content: Any = [text(self.label())]
        elif self.chance(4):
            content = {"type": f"{name}_tool_result_error", "error_code": self.label()}
        elif name == "web_search":
            found = {"type": "web_search_result", "title": self.label(), "url": self.label()}
            content = [{**found, "encrypted_content": "c2VjcmV0"}]
        elif name == "web_fetch":
            content = {"type": "web_fetch_result", "url": self.label(), "content": self.letter()}
        else:
            ran = {"type": f"{name}_result", "return_code": 0, "stdout": self.label(), "stderr": self.label()}
            content = {**ran, "content": []}
        return [called, {"type": f"{name}_tool_result", "tool_use_id": "srvtoolu_1", "content": content}]

    def blocks(self, most: int, *, attachments: bool = True) -> list[JSON]:
        return [
            {**(self.attachment() if attachments and self.chance(4) else text(self.text())), **self.mark()}
            for _ in range(self.draw(st.integers(0, most)))
        ]

    def result(self, identity: str) -> JSON:
        content = self.draw(st.sampled_from(["text", "blocks", "reference", "none"]))
        made: JSON = {"type": "tool_result", "tool_use_id": identity, **self.mark()}
        if self.chance(4):
            made["is_error"] = True
        if content == "text":
            made["content"] = self.text()
        elif content == "blocks":
            made["content"] = self.blocks(3)
        elif content == "reference":
            made["content"] = [{"type": "tool_reference", "tool_name": f"Tool#{next(self.labels)}#"}]
        return made

    def assistant(self) -> tuple[JSON, list[str]]:
        """A message and the ids of its calls."""
        if self.chance(6):
            return {"role": "assistant", "content": self.text()}, []
        content: list[JSON] = []
        if self.chance(3):
            content.append({"type": "thinking", "thinking": "secret", "signature": thinking_signature("secret")})
        if self.chance(8):
            content.append({"type": "redacted_thinking", "data": "c2VjcmV0"})
        content += self.blocks(2, attachments=False)
        if self.chance(4):
            content += [*self.served(), *self.blocks(1, attachments=False)]
        ids = [f"toolu_{next(self.labels)}" for _ in range(self.draw(st.integers(0, 3)))]
        if ids and self.chance(4):
            ids[0] = self.draw(
                st.sampled_from(["call_0", "functions.Bash:0"])
            )  # some providers count from 0 in each turn
        for identity in ids:
            name = self.draw(st.sampled_from(["Read", "Bash", "mcp__" + "x" * 70]))
            given = {"path": f"#{next(self.labels)}#"}
            content.append({"type": "tool_use", "id": identity, "name": name, "input": given, **self.mark()})
        return {"role": "assistant", "content": content}, ids

    def user(self, ids: Sequence[str] = ()) -> list[JSON]:
        """What follows an assistant message with these calls: one message, or two."""
        results: list[JSON] = []
        if ids:  # only after calls: so there is an answer between the late result and its call
            results, self.late = self.late, []
        fates = [self.draw(st.sampled_from(["answered"] * 6 + ["missing", "late", "twice"])) for _ in ids]
        for identity, fate in zip(ids, fates, strict=True):
            made = [self.result(identity) for _ in range({"missing": 0, "twice": 2}.get(fate, 1))]
            if fate == "late":
                self.late += made
            else:
                results += made
        if self.chance(10):
            results.append(self.result("toolu_unknown"))
        results = self.draw(st.permutations(results)) if len(results) > 1 else results
        rest = self.blocks(2)
        if {"missing", "late"} & {*fates}:
            # A client says what happened. If the message were empty, two turns would become one with shared results.
            rest.append(text(f"Interrupted.#{next(self.labels)}#"))
        if not results and not rest and self.chance(2):
            messages: list[JSON] = [{"role": "user", "content": self.text()}]
        else:
            messages = [{"role": "user", "content": [*rest, *results] if self.chance(5) else [*results, *rest]}]
        if self.chance(8):
            messages.append({"role": "user", "content": self.blocks(2)})
        if self.chance(8):
            reminder = {"role": "system", "content": self.text() if self.chance(2) else [text(self.text())]}
            messages.insert(self.draw(st.integers(0, len(messages))), reminder)
        return messages

    def not_empty(self, message: JSON) -> JSON:
        blocks = [text(message["content"])] if isinstance(message["content"], str) else message["content"]
        silent = {"thinking", "redacted_thinking"}
        if any(block["text"].strip() if block["type"] == "text" else block["type"] not in silent for block in blocks):
            return message
        return {**message, "content": f"Well.#{next(self.labels)}#"}

    def system(self) -> JSON:
        if self.chance(3):
            return {}
        return {"system": self.text() if self.chance(2) else self.blocks(3, attachments=False)}

    def tools(self) -> list[JSON]:
        made = [
            {
                "name": name,
                "input_schema": copy.deepcopy(self.draw(st.sampled_from(ODD_SCHEMAS))),
                **({"description": "does it"} if self.chance(2) else {}),
                **({"type": "custom"} if self.chance(4) else {}),
                **({"defer_loading": True} if self.chance(6) else {}),
                **self.mark(),
            }
            for name in self.draw(st.sampled_from([[], ["Read"], ["Read", "Bash"], ["Read", "mcp__" + "x" * 70]]))
        ]
        if self.chance(6):
            made.append({"name": "NoSchema"})
        return made + [dict(server) for server in SERVER_TOOLS if self.chance(6)]


@st.composite
def requests(draw: st.DrawFn) -> JSON:
    make = Maker(draw, marks=draw(st.booleans()))
    messages = make.user() if not make.chance(10) else []
    for _ in range(draw(st.integers(0, 4))):
        message, ids = make.assistant()
        messages += [message, *make.user(ids)]
    if not messages or make.chance(5):
        messages.append(make.assistant()[0])
    if make.chance(8):
        messages.append({"role": "user", "content": [make.image() for _ in range(draw(st.integers(18, 34)))]})
    fields = {name: draw(st.sampled_from(values)) for name, values in SETTINGS.items() if make.chance(3)}
    fields["max_tokens"] = draw(st.sampled_from([1, 8_192, 32_000, 200_000]))
    return {"messages": messages, **make.system(), "tools": make.tools(), **fields}


@st.composite
def sessions(draw: st.DrawFn) -> list[JSON]:
    """The requests of one session. Each one has the messages of the one before, and more.

    No message is empty: LiteLLM drops empty messages, and then treats the messages before and after as one turn.
    """
    make = Maker(draw, marks=draw(st.booleans()))
    fixed: JSON = {"thinking": {"type": "adaptive"}} if make.chance(2) else {}
    fixed |= {"max_tokens": 32_000, "tools": [{"name": "Read", "input_schema": {"type": "object"}}], **make.system()}
    messages = [{"role": "user", "content": "Hello."}, *map(make.not_empty, make.user())]
    asked = []

    def ask() -> None:
        # The client marks the newest block, which is another one in every turn.
        asked.append({**fixed, "messages": newest_marked(messages)})

    ask()
    for _ in range(draw(st.integers(1, 4))):
        message, ids = make.assistant()
        messages.append(make.not_empty(message))
        if not ids and make.chance(2):
            ask()
        messages += map(make.not_empty, make.user(ids))
        ask()
    return asked


def newest_marked(messages: Sequence[JSON]) -> list[JSON]:
    *before, last = messages
    blocks = [text(last["content"])] if isinstance(last["content"], str) else last["content"]
    if not blocks or blocks[-1]["type"] in {"thinking", "redacted_thinking"}:
        return list(messages)
    return [*before, {**last, "content": [*blocks[:-1], {**blocks[-1], **MARK}]}]


ODD = [None, True, 0, -1, 2.5, 10**18, "", "x", [], {}, [5], ["x"], [None], {"type": "x"}, {"type": None}, {"a": [1]}]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a body."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> JSON:
    """A request in which one value, at any depth, is replaced by an odd one, or is missing."""
    made: JSON = {"model": CLAUDE, **copy.deepcopy(draw(requests()))}
    made["tools"] = [each for each in made["tools"] if each["name"] != "NoSchema"]
    node: Any = made
    *path, last = draw(st.sampled_from([*places(made)]))
    for key in path:
        node = node[key]
    odd = draw(st.sampled_from([*ODD, ...]))
    if odd is ...:
        del node[last]
    else:
        node[last] = odd
    return made
