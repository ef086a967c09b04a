"""Remembers which fields Cortex has refused, so that later requests leave them out.

The problem: which fields Cortex accepts differs by model and account and changes over time, and cannot be tested
without an account. Claude Code sends a refused field again with every later turn, so with one such field every later
request of the session would fail. The mechanism: when a 400 names a field, the field is remembered (`learn_chat`,
`learn_messages`), and later requests are sent without it. The refused request itself is answered with a 503, after
which Claude Code tries again. The list of refused fields is lost when the process ends.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bundle.cortex.blocks import blocks_of, mark_within
from bundle.cortex.errors import MAX_CHARACTERS
from bundle.cortex.models import JSON
from bundle.cortex.requests import BESIDE_REASONING
from bundle.cortex.thinking import DETAILS

# Optional fields, each with a pattern that finds it in Cortex's message. If an answer names several fields, only
# the first of them in this list is left out; the answer to the next request shows whether that was enough.
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
# Only these words say that a field is not accepted at all. A message without them is about a wrong value, which only
# the client can change.
_NOT_ACCEPTED = re.compile(
    r"not (?:\w+ )?(?:supported|permitted|allowed|available|compatible)|not support|unsupported|may not|may only be set"
    r"|deprecated|\bunknown\b|unrecogni[sz]ed|extra inputs|thinking.{1,3}is enabled",
    re.IGNORECASE,
)
# Messages about other problems. They may mention a field, but no field is left out because of them.
_OTHER_PROBLEM = re.compile(
    r"throttled|unknown model|region|toolUse|toolResult|tool_result|max.?tokens|too long|context|final position|prefill"
    r"|signature",
    re.IGNORECASE,
)
# About thinking that was sent back. Only the history can be wrong then, never the wish to think.
_THINKING_SENT_BACK = re.compile(
    r"signature|reasoning_details|thinking\W{0,3}blocks?\b|expected\W{0,3}thinking", re.IGNORECASE
)
_CACHE_MARK = re.compile(r"cache_?control|cache.?point|prompt.?caching", re.IGNORECASE)
_DOCUMENT = re.compile(r"\bdocuments?\b|\bpdfs?\b|application/pdf", re.IGNORECASE)
_DOCUMENT_FIELD = re.compile(r"document\.(?:title|context|cache_control)\b")
_NO_SUCH_BLOCK = re.compile(
    r"n.?t support|not (?:\w+ )?(?:supported|permitted|allowed|available|accepted)|unsupported|expected tags"
    r"|\bunknown\b|unrecogni[sz]ed|invalid (?:content )?(?:block )?type|extra inputs",
    re.IGNORECASE,
)
_MARKED_MESSAGE = re.compile(r"messages[.\[](\d{1,6})")
_ROLE = re.compile(r"\b(assistant|system|user)\b")
# The user chooses the names inside tools: a parameter of a tool may be called `temperature`.
_IN_TOOLS = re.compile(r"tools[.\[]\S*|(?:function|tool) '[^']*'")
_OUTPUT_LIMIT = re.compile(r"max tokens of (\d{1,9}) exceeded|max_tokens: \d{1,9} > (\d{1,9})")
_NOT_PERMITTED = ": Extra inputs are not permitted"  # stands behind the path of a field
_REVERSED_PATH = re.compile(r"[\w.-]*")
# Fields that are never left out: without any of them the request would be invalid, or would mean something else.
_REQUIRED = frozenset(
    {"model", "messages", "max_tokens", "max_completion_tokens", "role", "content", "type", "system", "tools", "stream"}
    | {"name", "input_schema", "id", "input", "tool_use_id", "text", "source", "data", "media_type", "signature"}
)
# Others choose the names of models and fields, so what is remembered of them has an end.
MAX_MODELS = 100
MAX_FIELDS = 50
T = TypeVar("T")
_MARK_PATHS = (("system", "*"), ("tools", "*"), ("messages", "*", "content", "*"))


@dataclass
class Refusals:
    """What Cortex has refused so far. The keys of the three dicts are model names without a provider prefix.

    - `chat`: fields of chat completions, `cache_control ROLE` for cache marks in messages of a role,
      `BESIDE_REASONING` for the temperature that a request with reasoning has, and `DETAILS` for signed thinking in
      messages.
    - `fields`: paths in a body of the Messages API.
    - `betas`: betas of the Messages API, for all models.
    - `documents`: models that accept no PDF on the Messages API.
    - `limits`: the model's output limit, which Cortex names when a request asks for more.
    """

    chat: dict[str, set[str]] = field(default_factory=dict)
    fields: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    betas: set[str] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)

    def learn_chat(self, words: str, sent: JSON, before: Collection[str] = ()) -> list[str]:
        """Remember what a 400 of chat completions names. Returns a phrase for each thing that the next request will
        leave out. An empty list means that trying again does not help.

        `words` is the message of the answer, `sent` the body that was refused. `before` names the fields that were
        known as refused when the request was sent: if the answer names one of them again, leaving it out did not help.
        """
        words = words[:MAX_CHARACTERS]
        model = str(sent.get("model"))
        if limit := self._learn_limit(words, model, sent.get("max_completion_tokens")):
            return [limit]
        if _THINKING_SENT_BACK.search(words) and any(DETAILS in message for message in sent["messages"]):
            found = [DETAILS]
        elif name := _field_of(words, sent):
            found = [BESIDE_REASONING if name == "temperature" and "reasoning" in sent else name]
        else:
            roles = marked_roles(sent["messages"], words) if _is_about_marks(words) else []
            found = [f"cache_control {role}" for role in roles]
        new = [each for each in found if each not in before]
        _remember(self.chat, model, new)
        return [f"{each.replace('cache_control ', 'cache_control on ')} for {model}" for each in new]

    def learn_messages(self, words: str, sent: JSON, betas: Iterable[str]) -> list[str]:
        """Like `learn_chat`, for the Messages API. "invalid beta flag" does not name the beta, so all betas of the
        request count as refused."""
        words = words[:MAX_CHARACTERS]
        model = str(sent.get("model"))
        if limit := self._learn_limit(words, model, sent.get("max_tokens")):
            return [limit]
        paths = [tuple("*" if step.isdigit() else step for step in name.split(".")) for name in _extra_fields(words)]
        flags = {beta for beta in betas if beta} if "invalid beta flag" in words else set()
        if _refuses_documents(words, sent):
            self.documents = {*(self.documents if len(self.documents) < MAX_MODELS else ()), model}
            return [f"PDFs for {model}"]
        if not paths and not flags:
            name = _field_of(words, {**sent, **(sent.get("output_config") or {})})
            marks = [(*place, "cache_control") for place in _MARK_PATHS] if _is_about_marks(words) else []
            paths = [("output_config", name) if name == "effort" else (name,)] if name else marks
        fields = {path for path in paths if path[-1] not in _REQUIRED and without(sent, path) != sent}
        _remember(self.fields, model, fields)
        self.betas = {*(self.betas if len(self.betas) < MAX_FIELDS else ()), *flags}
        left_out = [f"field {'.'.join(path)} for {model}" for path in fields]
        return sorted([*left_out, *(f"beta {flag}" for flag in flags)])

    def _learn_limit(self, words: str, model: str, asked: object) -> str:
        """Remember the model's output limit if the message names one; returns a phrase for it. A number below the
        requested maximum is that limit (docs/cortex.md#chat-output-limit), a number above it is the context window."""
        found = _OUTPUT_LIMIT.search(words)
        limit = int(found[1] or found[2]) if found else 0
        if not limit or not isinstance(asked, int) or limit >= asked:
            return ""
        self.limits[model] = limit
        _bound(self.limits)
        return f"more than {limit} output tokens for {model}"


def _remember(known: dict[str, set[T]], model: str, new: Iterable[T]) -> None:
    """Add to what a model refuses. Too much is forgotten: to learn it again costs one more try."""
    fields = known.pop(model, set())
    known[model] = {*(fields if len(fields) < MAX_FIELDS else ()), *new}
    _bound(known)


def _bound(known: dict[str, Any]) -> None:
    while len(known) > MAX_MODELS:
        del known[next(iter(known))]  # the one that was added first


def _extra_fields(words: str) -> list[str]:
    """The fields that are called extra inputs. Each is read backwards from the words after it, in one pass."""
    parts = words.split(_NOT_PERMITTED)[:-1]
    fields = (match[0][::-1].strip(".") for part in parts if (match := _REVERSED_PATH.match(part[::-1])))
    return [field for field in dict.fromkeys(fields) if field]


def _field_of(words: str, sent: JSON) -> str:
    """The field of the body that is not accepted according to the words; empty if they are about another problem."""
    if _OTHER_PROBLEM.search(words) or not _NOT_ACCEPTED.search(words):
        return ""
    words = _IN_TOOLS.sub("", words)
    for tool in sent.get("tools") or ():
        words = words.replace(str((tool.get("function") or tool).get("name") or "tools"), "")
    return next((name for name, pattern in FIELDS.items() if name in sent and pattern.search(words)), "")


def _refuses_documents(words: str, sent: JSON) -> bool:
    """Whether the kind of block is refused, not one of its fields, and not one PDF because of its pages or size."""
    if not _DOCUMENT.search(words) or not _NO_SUCH_BLOCK.search(words) or _DOCUMENT_FIELD.search(words):
        return False
    blocks = [block for message in sent["messages"] for block in blocks_of(message.get("content"))]
    inner = [item for block in blocks for item in blocks_of(block.get("content"))]
    return any(block.get("type") == "document" for block in (*blocks, *inner))


def _is_about_marks(words: str) -> bool:
    return bool(_CACHE_MARK.search(words) and _NOT_ACCEPTED.search(words))


def marked_roles(messages: Sequence[JSON], words: str) -> list[str]:
    """The roles whose cache marks are refused: the role of the message that the text names by its number, else the
    roles that it names, else the roles of all marked messages."""
    marked = {str(message["role"]) for message in messages if mark_within(message.get("content"))}
    if (found := _MARKED_MESSAGE.search(words)) and int(found[1]) < len(messages):
        named = {str(messages[int(found[1])]["role"])}
    else:
        named = set(_ROLE.findall(words))
    return sorted(marked & named or marked)


def without(node: Any, path: Sequence[str]) -> Any:
    """The body without the value at a path such as `tools.*.custom.strict`. A part of the path that is not a key is
    skipped: Cortex's paths also name the type of a block or tool (`custom`)."""
    step, rest = path[0], path[1:]
    if isinstance(node, list):
        if step == "*":
            return [without(item, rest) if rest else item for item in node]
    elif not isinstance(node, dict):
        return node
    elif step in node and node.get("type") != step:  # (a step that is the node's type is no key)
        if rest:
            return {**node, step: without(node[step], rest)}
        return {key: value for key, value in node.items() if key != step}
    return without(node, rest) if rest else node
