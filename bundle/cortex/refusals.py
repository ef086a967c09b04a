"""What Cortex itself has refused: fields that no later request has, so that no session ends on one.

The problem: what the service takes differs by model, account and month, and nobody here can try it. A refused field
comes with every later turn of a session. The mechanism: a 400 that names a field teaches it (`learn_chat`,
`learn_messages`); the requests after that leave without it. The one that was refused is answered with an error that
Claude Code asks again by itself. Kept as long as the process. Standard library only, no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bundle.cortex.requests import BESIDE_REASONING

JSON = dict[str, Any]

MAX_WORDS = 2_000  # of an answer's text that a pattern may see

# The fields that a request can do without, and the words that name them. Of several that one answer names, the first
# here is left out: the next answer tells whether that was enough.
FIELDS: Mapping[str, re.Pattern[str]] = {
    "temperature": re.compile(r"temperature", re.IGNORECASE),
    "top_p": re.compile(r"\btop_?p\b", re.IGNORECASE),
    "top_k": re.compile(r"\btop_?k\b", re.IGNORECASE),
    "reasoning_effort": re.compile(r"reasoning|effort", re.IGNORECASE),
    "reasoning": re.compile(r"reasoning|thinking", re.IGNORECASE),
    "thinking": re.compile(r"thinking", re.IGNORECASE),
    "effort": re.compile(r"effort", re.IGNORECASE),
    "stop": re.compile(r"\bstop\b|\bstop.?sequences?\b", re.IGNORECASE),
    "stop_sequences": re.compile(r"stop.?sequences?", re.IGNORECASE),
    "response_format": re.compile(r"response.?format|json.?schema|structured.?output", re.IGNORECASE),
    "output_config": re.compile(r"output_(?:config|format)|json.?schema|structured.?output", re.IGNORECASE),
    "tool_choice": re.compile(r"tool.?choice", re.IGNORECASE),
    "stream_options": re.compile(r"stream_options|include_usage", re.IGNORECASE),
}
# Only these words say that a field is not taken at all. Others complain of its value, which is the client's to change.
_NOT_TAKEN = re.compile(
    r"not (?:\w+ )?(?:supported|permitted|allowed|available|compatible)|not support|unsupported|may not|may only be set"
    r"|deprecated|\bunknown\b|unrecogni[sz]ed|extra inputs|thinking.{1,3}is enabled",
    re.IGNORECASE,
)
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
_IN_TOOLS = re.compile(r"tools[.\[]\S*|(?:function|tool) '[^']*'")

_OUTPUT = re.compile(r"max tokens of (\d{1,9}) exceeded|max_tokens: \d{1,9} > (\d{1,9})")
_EXTRA = re.compile(r"([\w-]+(?:\.[\w-]+)*): Extra inputs are not permitted")
# Without one of these a request is none, or another one, so no answer of Cortex takes them out.
_NEEDED = frozenset(
    {"model", "messages", "max_tokens", "max_completion_tokens", "role", "content", "type", "system", "tools", "stream"}
    | {"name", "input_schema", "id", "input", "tool_use_id", "text", "source", "data", "media_type", "signature"}
)
_MARK_PATHS = (("system", "*"), ("tools", "*"), ("messages", "*", "content", "*"))


@dataclass
class Refusals:
    """What was refused so far, by the bare name of the model.

    `chat` has fields of chat completions, `cache_control ROLE` for marks, and `BESIDE_REASONING`; `fields` has paths in
    a body of the Messages API, and `betas` its betas, of any model; `limits` is the most output tokens of a model where
    it has named a lower number than was asked for.
    """

    chat: dict[str, set[str]] = field(default_factory=dict)
    fields: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    betas: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)

    def learn_chat(self, words: str, sent: JSON, before: Collection[str] = ()) -> list[str]:
        """Remember what a 400 of chat completions names. Returns what the request had of that, in words: another try
        will be without it.

        `words` is the answer's message, `sent` the body that was refused, and `before` what was known of the model when
        it left: where that came along all the same, another try would be of no use.
        """
        words = words[:MAX_WORDS]
        model = str(sent.get("model"))
        if limit := self._learn_limit(words, model, sent.get("max_completion_tokens")):
            return [limit]
        if not (name := _field_of(words, sent)):
            roles = marked_roles(sent["messages"], words) if _names_marks(words) else []
            found = [f"cache_control {role}" for role in roles]
        else:
            found = [BESIDE_REASONING if name == "temperature" and "reasoning" in sent else name]
        new = [each for each in found if each not in before]
        self.chat.setdefault(model, set()).update(new)
        return [f"{each.replace('cache_control ', 'cache_control on ')} for {model}" for each in new]

    def learn_messages(self, words: str, sent: JSON, betas: Iterable[str]) -> list[str]:
        """The same for the Messages API. "Invalid beta flag" does not say which: all are."""
        words = words[:MAX_WORDS]
        model = str(sent.get("model"))
        if limit := self._learn_limit(words, model, sent.get("max_tokens")):
            return [limit]
        paths = [tuple("*" if step.isdigit() else step for step in name.split(".")) for name in _EXTRA.findall(words)]
        flags = {beta for beta in betas if beta} if "invalid beta flag" in words else set()
        if not paths and not flags:
            sent = {**sent, **(sent.get("output_config") or {})}  # an effort stands one level down
            name = _field_of(words, sent)
            marks = [(*place, "cache_control") for place in _MARK_PATHS] if _names_marks(words) else []
            paths = [("output_config", name) if name == "effort" else (name,)] if name else marks
        fields = {path for path in paths if path[-1] not in _NEEDED and without(sent, path) != sent}
        self.fields.setdefault(model, set()).update(fields)
        self.betas |= flags
        told = [f"field {'.'.join(path)} for {model}" for path in fields]
        return sorted([*told, *(f"beta {flag}" for flag in flags)])

    def _learn_limit(self, words: str, model: str, asked: object) -> str:
        """docs/cortex.md#chat-output-limit: a number below the one that was asked for is the model's own limit. (A
        number above it is the context window: docs/cortex.md#status-context-full.)"""
        found = _OUTPUT.search(words)
        limit = int(found[1] or found[2]) if found else 0
        if not limit or not isinstance(asked, int) or limit >= asked:
            return ""
        self.limits[model] = limit
        return f"more than {limit} output tokens for {model}"


def _field_of(words: str, sent: JSON) -> str:
    """The field of the body that an answer says is not taken; empty where it is about something else."""
    if _ABOUT_SOMETHING_ELSE.search(words) or not _NOT_TAKEN.search(words):
        return ""
    words = _IN_TOOLS.sub("", words)
    for tool in sent.get("tools") or ():
        words = words.replace(str((tool.get("function") or tool).get("name") or "tools"), "")
    return next((name for name, pattern in FIELDS.items() if name in sent and pattern.search(words)), "")


def _names_marks(words: str) -> bool:
    return bool(_MARKS.search(words) and _NOT_TAKEN.search(words))


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
