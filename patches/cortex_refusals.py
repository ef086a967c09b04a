"""What Cortex itself has refused: fields that no later request has, so that no session ends on one.

The problem: what the service takes differs by model, account and month, and nobody here can try it. A refused field
comes with every later turn of a session. The mechanism: a 400 that names a field teaches it (`learn_chat`,
`learn_messages`); the requests after that leave without it. The one that was refused is answered with an error that
Claude Code asks again by itself. Kept as long as the process. Standard library only, no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]

MAX_WORDS = 2_000  # of an answer's text that a pattern may see

# The fields of chat completions that a request can do without, and the words that name them. Of several that one answer
# names, the first here is left out: the next answer tells whether that was enough.
CHAT_FIELDS: Mapping[str, re.Pattern[str]] = {
    "temperature": re.compile(r"temperature", re.IGNORECASE),
    "top_p": re.compile(r"\btop_?p\b", re.IGNORECASE),
    "reasoning_effort": re.compile(r"reasoning|effort", re.IGNORECASE),
    "reasoning": re.compile(r"reasoning|thinking", re.IGNORECASE),
    "stop": re.compile(r"\bstop\b|\bstop.?sequences?\b", re.IGNORECASE),
    "response_format": re.compile(r"response.?format|json.?schema|structured.?output", re.IGNORECASE),
    "tool_choice": re.compile(r"tool.?choice", re.IGNORECASE),
    "stream_options": re.compile(r"stream_options|include_usage", re.IGNORECASE),
}
_MARKS = re.compile(r"cache_?control|cache.?point|prompt.?caching", re.IGNORECASE)
_MARKED_MESSAGE = re.compile(r"messages[.\[](\d{1,6})")
_ROLE = re.compile(r"\b(assistant|system|user)\b")
# Answers about something else that may name a field by the way: no field is left out because of one.
_ABOUT_SOMETHING_ELSE = re.compile(
    r"throttled|unknown model|region|toolUse|toolResult|tool_result|max.?tokens|too long|context|final position|prefill"
    r"|signature",
    re.IGNORECASE,
)
# What stands inside tools belongs to the user: a parameter may be called `temperature`.
_IN_TOOLS = re.compile(r"tools[.\[]\S*|function '[^']*'")

_OUTPUT = re.compile(r"max tokens of (\d{1,9}) exceeded|max_tokens: \d{1,9} > (\d{1,9})")
_EXTRA = re.compile(r"([\w-]+(?:\.[\w-]+)*): Extra inputs are not permitted")
# Without one of these a request is none, so no answer of Cortex takes them out.
_NEEDED = frozenset({"model", "messages", "max_tokens", "role", "content", "type"})


@dataclass
class Refusals:
    """What was refused so far.

    `chat` has the fields of chat completions by model, and `cache_control ROLE` for marks; `fields` and `betas` are
    those of the Messages API; `limits` is the most output tokens of a model where it has named a lower one than was
    asked for.
    """

    chat: dict[str, set[str]] = field(default_factory=dict)
    fields: set[tuple[str, ...]] = field(default_factory=set)
    betas: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)

    def learn_chat(self, words: str, sent: JSON) -> list[str]:
        """Remember what a 400 of chat completions names. Returns what the request had of that, in words: another try
        will be without it. `words` is the answer's message, `sent` the body that was refused."""
        words = words[:MAX_WORDS]
        model = str(sent.get("model"))
        if limit := self._learn_limit(words, model, sent.get("max_completion_tokens")):
            return [limit]
        if _ABOUT_SOMETHING_ELSE.search(words):
            return []
        words = _IN_TOOLS.sub("", words)
        known = self.chat.setdefault(model, set())
        for name, pattern in CHAT_FIELDS.items():
            # Known or not: a request that was under way when it was learnt needs another try as well, and no more.
            if name in sent and pattern.search(words):
                known.add(name)
                return [f"{name} for {model}"]
        if _MARKS.search(words):
            roles = marked_roles(sent["messages"], words)
            known |= {f"cache_control {role}" for role in roles}
            return [f"cache_control on {role} for {model}" for role in roles]
        return []

    def learn_messages(self, words: str, sent: JSON, betas: Iterable[str]) -> list[str]:
        """The same for the Messages API. "Invalid beta flag" does not say which: all are."""
        words = words[:MAX_WORDS]
        if limit := self._learn_limit(words, str(sent.get("model")), sent.get("max_tokens")):
            return [limit]
        paths = [tuple("*" if step.isdigit() else step for step in name.split(".")) for name in _EXTRA.findall(words)]
        fields = {path for path in paths if path[-1] not in _NEEDED and without(sent, path) != sent}
        flags = {beta for beta in betas if beta} if "invalid beta flag" in words else set()
        self.fields |= fields
        self.betas |= flags
        return sorted([*(f"field {'.'.join(path)}" for path in fields), *(f"beta {flag}" for flag in flags)])

    def _learn_limit(self, words: str, model: str, asked: object) -> str:
        """docs/cortex.md#chat-output-limit: a number below the one that was asked for is the model's own limit. (A
        number above it is the context window: docs/cortex.md#status-context-full.)"""
        found = _OUTPUT.search(words)
        limit = int(found[1] or found[2]) if found else 0
        if not limit or not isinstance(asked, int) or limit >= asked:
            return ""
        self.limits[model] = limit
        return f"more than {limit} output tokens for {model}"


def marked_roles(messages: Sequence[JSON], words: str) -> list[str]:
    """The roles whose cache marks an answer is about: the message's that it names, those it names, else all marked."""
    marked = {str(message["role"]) for message in messages if _has_mark(message.get("content"))}
    if (found := _MARKED_MESSAGE.search(words)) and int(found[1]) < len(messages):
        named = {str(messages[int(found[1])]["role"])}
    else:
        named = set(_ROLE.findall(words))
    return sorted(marked & named or marked)


def _has_mark(content: object) -> bool:
    return isinstance(content, list) and any("cache_control" in block for block in content)


def without(node: Any, path: Sequence[str]) -> Any:
    """The body without what is at a path such as `tools.*.custom.strict`. A step that is no key names the kind of the
    thing that it stands in (`custom`), and is passed over."""
    step, rest = path[0], path[1:]
    if isinstance(node, list):
        if step == "*":
            return [without(item, rest) if rest else item for item in node]
    elif not isinstance(node, dict):
        return node
    elif step in node and node.get("type") != step:
        if rest:
            return {**node, step: without(node[step], rest)}
        return {key: value for key, value in node.items() if key != step}
    return without(node, rest) if rest else node
