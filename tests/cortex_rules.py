"""What Snowflake Cortex refuses: pure functions from a request body to a refusal or None.

`check_chat` judges a Chat Completions body, `check_messages` a body and its headers for the Messages endpoint. Both
are strict on purpose: a request that passes here should pass on the real service, never the other way round.

Where a rule comes from decides how it is written:

- Documented, or measured on the real service: fixed. The texts of `max_tokens`, `json object response format`,
  `unknown model`, `max tokens of`, `toolUse`/`toolResult`, the final assistant turn, `Extra inputs are not permitted`
  and `invalid beta flag` are Cortex's own words.
- Sources disagree, or nobody has tried: a field of `Options`, strict by default.
- True of any service of this shape (roles, types, unique names): fixed, in words of our own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

JSON = dict[str, Any]

MIB = 1024 * 1024
MAX_BODY = 20 * MIB
MAX_IMAGES = 20
MAX_MARKS = 4
MAX_OUTPUT = 131_072
DEFAULT_OUTPUT = 4096

# What the REST API serves (docs/cortex.md#models-rest); Gemini, Grok, `llama4-scout` and `openai-gpt-4o` are not among
# them. Output limits are those that the makers publish; Cortex documents only that nothing is above 131072.
MODELS: Mapping[str, int] = MappingProxyType(
    {
        "claude-4-sonnet": 64_000,
        "claude-haiku-4-5": 64_000,
        "claude-sonnet-4-5": 64_000,
        "claude-sonnet-4-6": 64_000,
        "claude-sonnet-5": 128_000,
        "claude-opus-4-5": 64_000,
        "claude-opus-4-6": 128_000,
        "claude-opus-4-7": 128_000,
        "claude-opus-4-8": 128_000,
        "claude-opus-5": 128_000,
        "openai-gpt-4.1": 32_768,
        "openai-gpt-5": 128_000,
        "openai-gpt-5-mini": 128_000,
        "openai-gpt-5-nano": 128_000,
        "openai-gpt-5.1": 128_000,
        "openai-gpt-5.2": 128_000,
        "openai-gpt-5-chat": 16_384,
        "openai-gpt-5.4": 128_000,
        "llama4-maverick": 8192,
        "llama3.1-8b": 8192,
        "llama3.1-70b": 8192,
        "llama3.1-405b": 8192,
        "deepseek-r1": 32_768,
        "mistral-large2": 8192,
        "mistral-large": 8192,
        "mistral-7b": 8192,
        "snowflake-llama-3.3-70b": 8192,
    }
)

# Context windows in tokens (docs/cortex.md#models-window).
WINDOW, LARGE_WINDOW = 200_000, 1_000_000
LARGE = frozenset(
    {"claude-opus-4-6", "claude-opus-4-7", "claude-opus-4-8", "claude-opus-5", "claude-sonnet-4-6", "claude-sonnet-5"}
)

TOOL_PAIRING = (
    "invalid request parameters: Each 'toolUse' block must be accompanied with a matching 'toolResult' block."
)
FINAL_ASSISTANT = (
    "invalid request parameters: Requests cannot contain `assistant` role in the final position when `tools` are used."
)
NO_PREFILL = (
    "invalid request parameters: This model does not support assistant message prefill. "
    "The conversation must end with a user message."
)
THINKING_TEMPERATURE = "invalid request parameters: `temperature` may only be set to 1 when thinking is enabled."
THINKING_FIRST = (
    "invalid request parameters: Expected `thinking` or `redacted_thinking`, but found `tool_use`. When `thinking` is "
    "enabled, a final `assistant` message must start with a thinking block."
)
THINKING_FORCED = "invalid request parameters: Thinking may not be enabled when tool_choice forces tool use."

BETAS = frozenset(
    {
        "token-efficient-tools-2025-02-19",
        "interleaved-thinking-2025-05-14",
        "output-128k-2025-02-19",
        "context-management-2025-06-27",
        "effort-2025-11-24",
        "tool-search-tool-2025-10-19",
        "tool-examples-2025-10-29",
    }
)


@dataclass(frozen=True)
class Refusal:
    """An answer other than 200: its HTTP status and the `message` of Snowflake's envelope."""

    status: int
    message: str


@dataclass(frozen=True)
class Options:
    """The account's models, and one switch for each thing that is not known of the real service.

    `models` maps a bare model name to its output limit in tokens, `windows` one to its context window where that is
    another than the documented one. Every default is the stricter reading.
    """

    models: Mapping[str, int] = field(default_factory=lambda: MODELS)
    output_cap: int | None = None  # 16384 in one documentation table, "too low" to another project
    claude_stop: str = "ignored"  # or "honoured", "refused"
    older_shapes: bool = False  # role "", tool type "", arguments "" for a call without parameters
    mark_covers_tool_results: bool = False  # does a later user block's mark cache the tool results before it?
    whitespace_is_empty: bool = False  # does a text of white space count as an empty block?
    empty_tool_result: bool = False  # may a tool result be an empty string?
    claude_code_beta: bool = False  # is `claude-code-20250219` accepted?
    full_thinking_beta: bool = False  # documented as accepted, seen rejected
    one_hour_ttl: bool = False  # is `ttl: "1h"` accepted on Messages?
    documents: bool = False  # are `document` blocks accepted on Messages?
    thinking_needs_temperature: bool = True  # must `reasoning` come with `temperature: 1`, or is 1 the default?
    thinking_mid_turn: bool = False  # is thinking taken after calls of this turn that came without it?
    signed_streams: bool = False  # does a stream's thinking end with its signature?
    stream_extras: bool = False  # do a stream's deltas carry the empty keys that whole answers carry?
    prefill: bool = False  # do Claude 4.6 and newer take an assistant message at the end?
    newest_temperature: bool = False  # do Claude 4.7 and newer take another temperature than 1?
    odd_tool_ids: bool = False  # does Claude take a tool id with other characters than letters, digits, `_` and `-`?
    windows: Mapping[str, int] = field(default_factory=dict)
    window_counts_output: bool = True  # does the output that is asked for count against the window?
    refused_fields: Sequence[str] = ()  # top-level fields that Claude refuses here, on either route
    refused_marks: Sequence[str] = ()  # roles whose cache marks are refused on chat completions

    def limit(self, model: str) -> int:
        """The most output tokens that may be asked of a known model."""
        return min(self.models[model], self.output_cap or MAX_OUTPUT, MAX_OUTPUT)

    def window(self, model: str) -> int:
        """How many tokens of context a known model has."""
        return self.windows.get(model, LARGE_WINDOW if model in LARGE else WINDOW)


DEFAULTS = Options()


class _RefusedError(Exception):
    """Carries the message of a 400 out of nested checks."""


def refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def is_claude(model: str) -> bool:
    return model.startswith("claude-")


def is_openai(model: str) -> bool:
    return model.startswith("openai-")


def thinking_signature(text: str) -> str:
    """The signature this stand-in gives to a thinking text, so that a changed one can be told apart."""
    return base64.b64encode(hashlib.sha256(b"signed thinking:" + text.encode()).digest()).decode()


def check_chat(body: object, options: Options = DEFAULTS, size: int | None = None) -> Refusal | None:
    """Judge a Chat Completions body; `size` is its length on the wire in bytes (measured here when not given)."""
    try:
        _chat(_object(body, "request body"), options, size)
    except _RefusedError as refused:
        return Refusal(400, str(refused))
    return None


def check_messages(
    body: object, headers: Mapping[str, str], options: Options = DEFAULTS, size: int | None = None
) -> Refusal | None:
    """Judge a Messages body with its headers (names in lower case)."""
    try:
        _messages(_object(body, "request body"), headers, options, size)
    except _RefusedError as refused:
        return Refusal(400, str(refused))
    return None


def check_window(model: str, prompt: int, asked: int | None, options: Options = DEFAULTS) -> Refusal | None:
    """Whether a prompt of that many tokens fits the model's window, with the output that is asked for where it counts.

    The words are Cortex's own (docs/cortex.md#status-context-full).
    """
    window = options.window(model)
    used = prompt + (min(asked or DEFAULT_OUTPUT, options.limit(model)) if options.window_counts_output else 0)
    return Refusal(400, f"max tokens of {window} exceeded") if used > window else None


# --- both endpoints -------------------------------------------------------------------------------------------------


def _object(value: object, path: str) -> JSON:
    if not isinstance(value, dict):
        refuse(f"{path}: must be an object")
    return value


def _array(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        refuse(f"{path}: must be an array")
    return value


def _string(value: object, path: str) -> str:
    if not isinstance(value, str) or not value:
        refuse(f"{path}: must be a non-empty string")
    return value


def _number(value: object, path: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        refuse(f"{path}: must be a number from {low:g} to {high:g}")


def _tokens(value: object, path: str, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(f"{path}: must be a positive integer")
    if value > limit:
        refuse(f"max tokens of {limit} exceeded")


def _model(body: JSON, options: Options) -> str:
    name = _string(body.get("model"), "model")
    if name not in options.models:
        refuse(f"unknown model {name}")
    return name


def _size(body: JSON, size: int | None) -> None:
    if (len(json.dumps(body).encode()) if size is None else size) > MAX_BODY:
        refuse("request body exceeds 20 MiB")


def _text(value: object, path: str, options: Options) -> None:
    if not isinstance(value, str):
        refuse(f"{path}: must be a string")
    if not (value.strip() if options.whitespace_is_empty else value):
        refuse(f"{path}: text content blocks must be non-empty")


def _marks(value: object) -> int:
    """How many `cache_control` keys there are, except in what the user defines: tool arguments and schemas."""
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(
            _marks(item) for key, item in value.items() if key not in {"input", "input_schema", "function"}
        )
    if isinstance(value, list):
        return sum(map(_marks, value))
    return 0


def _mark_limit(body: JSON) -> None:
    # Counted wherever they stand: whether ignored marks count is not known, and more than four are never useful.
    if (count := _marks(body)) > MAX_MARKS:
        refuse(f"A maximum of {MAX_MARKS} blocks with cache_control may be provided. Found {count}.")


def _image(media: object, data: object, path: str) -> None:
    if media not in {"image/png", "image/jpeg", "image/gif", "image/webp"}:
        refuse(f"{path}: unsupported media type {media}")
    try:
        decoded = base64.b64decode(_string(data, path), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        refuse(f"{path}: image data is not base64")


def _schema(schema: object, path: str) -> None:
    """A tool's parameters: what both Anthropic and OpenAI want of the top level, and plain JSON Schema below."""
    top = _object(schema, path)
    if top.get("type") != "object":
        refuse(f"{path}.type: Input should be 'object'")
    for word in ("oneOf", "anyOf", "allOf"):
        if word in top:
            refuse(f"{path}: input_schema does not support oneOf, allOf, or anyOf at the top level")
    for name in _object(top.get("properties", {}), f"{path}.properties"):
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", name):
            refuse(f"{path}.properties: Property keys should match pattern '^[a-zA-Z0-9_.-]{{1,64}}$'")
    for name in _array(top.get("required", []), f"{path}.required"):
        _string(name, f"{path}.required")


def _arrays_have_items(schema: object, path: str) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "array" and "items" not in schema:
            refuse(f"Invalid schema for {path}: array schema missing items")
        for key, value in schema.items():
            if key not in {"enum", "const", "default", "examples"}:
                _arrays_have_items(value, path)
    elif isinstance(schema, list):
        for value in schema:
            _arrays_have_items(value, path)


# --- Chat Completions -----------------------------------------------------------------------------------------------


def _chat(body: JSON, options: Options, size: int | None) -> None:
    _size(body, size)
    if "max_tokens" in body:
        refuse("max_tokens is deprecated in favor of max_completion_tokens")
    model = _model(body, options)
    for name in ("service_tier", "store"):
        if name in body:
            refuse(f"{name} is not supported")
    if body.get("max_completion_tokens") is not None:
        _tokens(body["max_completion_tokens"], "max_completion_tokens", options.limit(model))
    _refused(body, model, options, "{} is not supported for this model")
    _chat_settings(body, model, options)
    _chat_tools(body, model)
    messages = _array(body.get("messages"), "messages")
    if not messages:
        refuse("messages: must not be empty")
    for index, message in enumerate(messages):
        _chat_message(_object(message, f"messages.{index}"), f"messages.{index}", options)
    if body.get("tools") and messages[-1]["role"] == "assistant":
        refuse(FINAL_ASSISTANT)
    _no_prefill(messages, model, options)
    _chat_pairing(messages, one_at_a_time=is_claude(model))
    if is_claude(model):
        _chat_ids(messages, options)
        _chat_thinking(body, messages, options)
        _chat_marks(messages, options)
    images = sum(part.get("type") == "image_url" for message in messages for part in _parts(message))
    if images > MAX_IMAGES:
        refuse(f"too many images: {images} > {MAX_IMAGES}")
    _mark_limit(body)


def _chat_settings(body: JSON, model: str, options: Options) -> None:
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            _number(body[name], name, 0, 2 if name == "temperature" and not is_claude(model) else 1)
    if not isinstance(body.get("stream", False), bool):
        refuse("stream: must be a boolean")
    if body.get("stream_options") is not None:
        _object(body["stream_options"], "stream_options")
        if not body.get("stream"):
            refuse("stream_options: only allowed when stream is enabled")
    if (stop := body.get("stop")) is not None:
        if is_claude(model) and options.claude_stop == "refused":
            refuse("stop is not supported")
        stops = [stop] if isinstance(stop, str) else _array(stop, "stop")
        if len(stops) > 4:
            refuse("stop: at most 4 sequences")
        for text in stops:
            _string(text, "stop")
    if (wanted := body.get("response_format")) is not None:
        kind = _object(wanted, "response_format").get("type")
        if kind == "json_object" and is_claude(model):
            refuse("json object response format is not supported")
        if kind not in {"text", "json_object", "json_schema"}:
            refuse("response_format.type: must be text, json_object or json_schema")
    if (reasoning := body.get("reasoning")) is not None:
        reasoning = _object(reasoning, "reasoning")
        if is_claude(model) and len(reasoning.keys() & {"effort", "max_tokens"}) != 1:
            refuse("reasoning: takes either effort or max_tokens")
        if is_claude(model) and reasoning.get("effort", "low") not in {"low", "medium", "high"}:
            refuse("reasoning.effort: must be low, medium or high")
        if is_claude(model) and body.get("temperature", 0 if options.thinking_needs_temperature else 1) != 1:
            refuse(THINKING_TEMPERATURE)
    elif is_claude(model):
        _newest_temperature(body, model, options)
    gpt_56 = re.match(r"openai-(1p-)?gpt-5[.-]6-", model)
    if gpt_56 and body.get("tools") and body.get("reasoning_effort") is not None:
        refuse("reasoning_effort is not supported together with tools")


def _refused(body: JSON, model: str, options: Options, words: str) -> None:
    for name in options.refused_fields if is_claude(model) else ():
        if body.get(name) is not None:
            refuse(words.format(name))


def _newest_temperature(body: JSON, model: str, options: Options) -> None:
    if claude_version(model)[1] >= (4, 7) and body.get("temperature", 1) != 1 and not options.newest_temperature:
        refuse("`temperature` is not supported for this model. Only the default of 1 is accepted.")


def _no_prefill(messages: Sequence[JSON], model: str, options: Options) -> None:
    newer = is_claude(model) and claude_version(model)[1] >= (4, 6)
    if newer and messages[-1]["role"] == "assistant" and not options.prefill:
        refuse(NO_PREFILL)


def _tool_id(value: object, options: Options) -> None:
    if not options.odd_tool_ids and not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", str(value)):
        refuse("invalid request parameters: tool use id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'")


def _chat_ids(messages: Sequence[JSON], options: Options) -> None:
    seen: set[str] = set()
    for message in messages:
        for call in message.get("tool_calls") or ():
            _tool_id(call["id"], options)
            if call["id"] in seen:
                refuse("invalid request parameters: `tool_use` ids must be unique")
            seen.add(call["id"])


def _chat_thinking(body: JSON, messages: Sequence[JSON], options: Options) -> None:
    """Thinking in the history is as it was signed, and a turn that goes on thinking has thought before its calls."""
    for index, message in enumerate(messages):
        for detail in message.get("reasoning_details") or ():
            given = _object(detail, f"messages.{index}.reasoning_details")
            if given.get("signature") not in (None, thinking_signature(str(given.get("text")))):
                refuse(f"invalid request parameters: messages.{index}: Invalid `signature` in `thinking` block")
    if body.get("reasoning") is None:
        return
    choice = body.get("tool_choice")
    if choice == "required" or isinstance(choice, dict):
        refuse(THINKING_FORCED)
    last: JSON = next((message for message in reversed(messages) if message["role"] == "assistant"), {})
    signed = any(detail.get("signature") for detail in last.get("reasoning_details") or ())
    if last.get("tool_calls") and not signed and not options.thinking_mid_turn:
        refuse(THINKING_FIRST)


def _chat_marks(messages: Sequence[JSON], options: Options) -> None:
    for index, message in enumerate(messages):
        if message["role"] in options.refused_marks and _marks(message):
            refuse(f"messages.{index}.content.0.cache_control: Extra inputs are not permitted")


def _chat_tools(body: JSON, model: str) -> None:
    if body.get("tools") is None:
        if body.get("tool_choice") is not None:
            refuse("tool_choice: only allowed when tools are specified")
        return
    if not (is_claude(model) or is_openai(model)):
        refuse(f"tools are not supported for model {model}")
    tools = _array(body["tools"], "tools")
    if not tools:
        refuse("tools: must not be empty")
    names: set[str] = set()
    for index, item in enumerate(tools):
        tool = _object(item, f"tools.{index}")
        if tool.get("type") != "function":
            refuse(f"tools.{index}.type: only function is supported")
        function = _object(tool.get("function"), f"tools.{index}.function")
        name = _string(function.get("name"), f"tools.{index}.function.name")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
            refuse(f"tools.{index}.function.name: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if name in names:
            refuse(f"tools: Tool names must be unique: {name}")
        names.add(name)
        if not isinstance(function.get("description", ""), str):
            refuse(f"tools.{index}.function.description: must be a string")
        if "parameters" in function:
            _schema(function["parameters"], f"tools.{index}.function.parameters")
            if is_openai(model):
                _arrays_have_items(function["parameters"], f"function '{name}'")
    if (choice := body.get("tool_choice")) is None or choice in ("none", "auto", "required"):
        return
    chosen = _object(choice, "tool_choice").get("function")
    if choice.get("type") != "function" or _object(chosen, "tool_choice.function").get("name") not in names:
        refuse("tool_choice: must be none, auto, required or one of the tools")


def _parts(message: JSON) -> Sequence[JSON]:
    content = message.get("content")
    return content if isinstance(content, list) else ()


def _chat_message(message: JSON, path: str, options: Options) -> None:
    role = message.get("role")
    if role not in {"system", "developer", "user", "assistant", "tool"}:
        refuse(f"{path}.role: unknown role {role}")
    calls = message.get("tool_calls")
    if role != "assistant" and calls:
        refuse(f"{path}.tool_calls: only on an assistant message")
    if calls is not None:
        _chat_calls(calls, f"{path}.tool_calls")
    if role == "tool":
        _string(message.get("tool_call_id"), f"{path}.tool_call_id")
    content = message.get("content")
    if role == "assistant" and calls and content in (None, ""):
        return
    if role == "tool" and content == "" and options.empty_tool_result:
        return
    if not isinstance(content, list):
        _text(content, f"{path}.content", options)
        return
    if not content:
        refuse(f"{path}.content: must not be empty")
    for index, item in enumerate(content):
        part = _object(item, f"{path}.content.{index}")
        here = f"{path}.content.{index}"
        if part.get("type") == "text":
            _text(part.get("text"), f"{here}.text", options)
        elif part.get("type") == "image_url" and role == "user":
            url = _object(part.get("image_url"), f"{here}.image_url").get("url")
            # Only the short head is matched: the expression never runs over megabytes of data.
            head, _, data = _string(url, f"{here}.image_url.url").partition(",")
            if not (match := re.fullmatch(r"data:([\w.+/-]+);base64", head)):
                refuse(f"{here}.image_url.url: only base64 data URLs are supported")
            _image(match.group(1), data, f"{here}.image_url.url")
        else:
            refuse(f"{here}.type: {part.get('type')} is not supported for role {role}")
        if "cache_control" in part and _object(part["cache_control"], here).get("type") != "ephemeral":
            refuse(f"{here}.cache_control.type: must be ephemeral")


def _chat_calls(calls: object, path: str) -> None:
    ids = set()
    for index, item in enumerate(_array(calls, path)):
        call = _object(item, f"{path}.{index}")
        if call.get("type") != "function":
            refuse(f"{path}.{index}.type: must be function")
        ids.add(_string(call.get("id"), f"{path}.{index}.id"))
        function = _object(call.get("function"), f"{path}.{index}.function")
        _string(function.get("name"), f"{path}.{index}.function.name")
        arguments = function.get("arguments")
        try:
            # Cortex itself has been seen to send "" for a call without parameters, so it takes it back.
            parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else None
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            refuse(f"{path}.{index}.function.arguments: must be a JSON object in a string")
    if len(ids) != len(_array(calls, path)):
        refuse(f"{path}: ids must be unique")


def _chat_pairing(messages: Sequence[JSON], *, one_at_a_time: bool) -> None:
    """Each group of calls is followed at once by exactly its results; Claude takes one call a turn."""
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                refuse(TOOL_PAIRING)
            open_calls.discard(message["tool_call_id"])
            continue
        calls = message.get("tool_calls") or []
        if open_calls or (one_at_a_time and len(calls) > 1):
            refuse(TOOL_PAIRING)
        open_calls = {call["id"] for call in calls}
    if open_calls:
        refuse(TOOL_PAIRING)


# --- Messages -------------------------------------------------------------------------------------------------------

_TOP = frozenset(
    {"model", "messages", "max_tokens", "system", "metadata", "stop_sequences", "stream", "temperature"}
) | {*("top_k", "top_p", "tools", "tool_choice", "thinking", "output_config")}
_BLOCKS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text", "cache_control"}),
    "image": frozenset({"source", "cache_control"}),
    "document": frozenset({"source", "title", "context", "cache_control"}),
    "tool_use": frozenset({"id", "name", "input", "cache_control"}),
    "tool_result": frozenset({"tool_use_id", "content", "is_error", "cache_control"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset({"data"}),
}
_ROLES: Mapping[str, frozenset[str]] = {
    "user": frozenset({"text", "image", "document", "tool_result"}),
    "assistant": frozenset({"text", "tool_use", "thinking", "redacted_thinking"}),
    "system": frozenset({"text"}),
    "tool_result": frozenset({"text", "image"}),
}


def _only(value: JSON, known: frozenset[str], path: str) -> None:
    for key in value:
        if key not in known:
            refuse(f"{path}{key}: Extra inputs are not permitted")


def claude_version(model: str) -> tuple[str, tuple[int, int]]:
    """`claude-opus-4-7` as ("opus", (4, 7)); `claude-4-sonnet` as ("sonnet", (4, 0))."""
    if match := re.fullmatch(r"claude-([a-z]+)-(\d+)(?:-(\d{1,2}))?", model):
        return match.group(1), (int(match.group(2)), int(match.group(3) or 0))
    if match := re.fullmatch(r"claude-(\d+)(?:-(\d+))?-([a-z]+)", model):
        return match.group(3), (int(match.group(1)), int(match.group(2) or 0))
    return "", (0, 0)


def _messages(body: JSON, headers: Mapping[str, str], options: Options, size: int | None) -> None:
    _size(body, size)
    if headers.get("anthropic-version") != "2023-06-01":
        refuse("anthropic-version: header is required")
    sent = {beta.strip() for beta in headers.get("anthropic-beta", "").split(",")} - {""}
    known = BETAS | ({"claude-code-20250219"} if options.claude_code_beta else set())
    if sent - (known | ({"dev-full-thinking-2025-05-14"} if options.full_thinking_beta else set())):
        refuse("invalid beta flag")
    extra = {"context_management"} if "context-management-2025-06-27" in sent else set()
    _only(body, _TOP | extra, "")
    if "output_config" in body:
        config = {"format", "effort"} if "effort-2025-11-24" in sent else {"format"}
        _only(_object(body["output_config"], "output_config"), frozenset(config), "output_config.")
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            refuse(f"{name}: Field required")
    model = _model(body, options)
    if not is_claude(model):
        refuse(f"model {model} is not supported on this endpoint")
    _tokens(body["max_tokens"], "max_tokens", options.limit(model))
    _refused(body, model, options, "{}: Extra inputs are not permitted")
    _thinking(body, model)
    _settings(body)
    _newest_temperature(body, model, options)
    names = _tools(body, sent, options)
    if (choice := body.get("tool_choice")) is not None:
        kind = _object(choice, "tool_choice").get("type")
        _only(choice, frozenset({"type", "name", "disable_parallel_tool_use"}), f"tool_choice.{kind}.")
        if kind not in {"auto", "any", "none", "tool"} or (kind == "tool" and choice.get("name") not in names):
            refuse("tool_choice: must be auto, any, none or one of the tools")
    if "system" in body:
        _content(body["system"], "system", "system", options)
    messages = _array(body["messages"], "messages")
    if not messages:
        refuse("messages: at least one message is required")
    for index, item in enumerate(messages):
        message = _object(item, f"messages.{index}")
        _only(message, frozenset({"role", "content"}), f"messages.{index}.")
        if message.get("role") not in {"user", "assistant"}:
            refuse(f"messages.{index}.role: Input should be 'user' or 'assistant'")
        _content(message.get("content"), message["role"], f"messages.{index}.content", options)
    if messages[0]["role"] != "user":
        refuse("messages: first message must use the user role")
    _no_prefill(messages, model, options)
    _pairing(messages)
    ids = [block["id"] for block in _all_blocks(messages) if block["type"] == "tool_use"]
    for id_ in ids:
        _tool_id(id_, options)
    if len(ids) != len(set(ids)):
        refuse("messages: `tool_use` ids must be unique")
    if sum(block["type"] == "image" for block in _all_blocks(messages)) > MAX_IMAGES:
        refuse(f"too many images: more than {MAX_IMAGES}")
    _mark_limit(body)


def _settings(body: JSON) -> None:
    for name in ("temperature", "top_p"):
        if name in body:
            _number(body[name], name, 0, 1)
    if not isinstance(body.get("stream", False), bool):
        refuse("stream: Input should be a valid boolean")
    if "metadata" in body:
        _only(_object(body["metadata"], "metadata"), frozenset({"user_id"}), "metadata.")
    for text in _array(body.get("stop_sequences", []), "stop_sequences"):
        _string(text, "stop_sequences")


def _thinking(body: JSON, model: str) -> None:
    if "thinking" not in body:
        return
    thinking = _object(body["thinking"], "thinking")
    family, version = claude_version(model)
    kind = thinking.get("type")
    if kind == "enabled":
        _only(thinking, frozenset({"type", "budget_tokens"}), "thinking.enabled.")
        if family == "opus" and version >= (4, 7):
            refuse(f"thinking.type: enabled is not supported for model {model}, use adaptive")
        budget = thinking.get("budget_tokens")
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1024:
            refuse("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if budget >= body["max_tokens"]:
            refuse("`max_tokens` must be greater than `thinking.budget_tokens`")
    elif kind == "adaptive":
        _only(thinking, frozenset({"type"}), "thinking.adaptive.")
        if version < (4, 6):
            refuse(f"thinking.type: adaptive is not supported for model {model}")
    elif kind == "disabled":
        _only(thinking, frozenset({"type"}), "thinking.disabled.")
        return
    else:
        refuse("thinking.type: Input should be 'adaptive', 'enabled' or 'disabled'")
    if body.get("temperature", 1) != 1:
        refuse("`temperature` may only be set to 1 when thinking is enabled")


def _tools(body: JSON, betas: set[str], options: Options) -> set[str]:
    known = {"name", "description", "input_schema", "cache_control", "type"}
    known |= {"defer_loading"} if "tool-search-tool-2025-10-19" in betas else set()
    known |= {"input_examples"} if "tool-examples-2025-10-29" in betas else set()
    names: set[str] = set()
    for index, item in enumerate(_array(body.get("tools", []), "tools")):
        tool = _object(item, f"tools.{index}")
        if tool.get("type", "custom") != "custom":
            refuse(f"tools.{index}: Input tag '{tool['type']}' found using 'type' does not match 'custom'")
        _only(tool, frozenset(known), f"tools.{index}.custom.")
        name = _string(tool.get("name"), f"tools.{index}.custom.name")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", name):
            refuse(f"tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if name in names:
            refuse("tools: Tool names must be unique.")
        names.add(name)
        _schema(tool.get("input_schema"), f"tools.{index}.custom.input_schema")
        _cache_control(tool, f"tools.{index}.custom", options)
    return names


def _cache_control(block: JSON, path: str, options: Options) -> None:
    if block.get("cache_control") is None:
        return
    mark = _object(block["cache_control"], f"{path}.cache_control")
    _only(mark, frozenset({"type", "ttl"} if options.one_hour_ttl else {"type"}), f"{path}.cache_control.ephemeral.")
    if mark.get("type") != "ephemeral" or mark.get("ttl", "5m") not in {"5m", "1h"}:
        refuse(f"{path}.cache_control.type: Input should be 'ephemeral'")


def _content(content: object, where: str, path: str, options: Options) -> None:
    if isinstance(content, str):
        _text(content, path, options)
        return
    blocks = _array(content, path)
    if not blocks and where != "tool_result":
        refuse(f"{path}: must not be empty")
    for index, item in enumerate(blocks):
        block = _object(item, f"{path}.{index}")
        kind = block.get("type")
        if kind not in _ROLES[where] or (kind == "document" and not options.documents):
            refuse(f"{path}.{index}: block type {kind} is not supported here")
        here = f"{path}.{index}.{kind}"
        _only(block, _BLOCKS[kind] | {"type"}, f"{here}.")
        _cache_control(block, here, options)
        if kind == "text":
            _text(block.get("text"), f"{here}.text", options)
        elif kind == "image":
            source = _object(block.get("source"), f"{here}.source")
            if source.get("type") != "base64":
                refuse(f"{here}.source: only base64 images are supported")
            _image(source.get("media_type"), source.get("data"), f"{here}.source")
        elif kind == "tool_use":
            _string(block.get("id"), f"{here}.id")
            _string(block.get("name"), f"{here}.name")
            _object(block.get("input"), f"{here}.input")
        elif kind == "tool_result":
            _string(block.get("tool_use_id"), f"{here}.tool_use_id")
            if block.get("content") not in (None, "") or not options.empty_tool_result:
                _content(block.get("content"), "tool_result", f"{here}.content", options)
        elif kind == "thinking" and block.get("signature") != thinking_signature(str(block.get("thinking"))):
            refuse(f"{path}.{index}: Invalid `signature` in `thinking` block")


def _all_blocks(messages: Sequence[JSON]) -> Iterator[JSON]:
    for message in messages:
        for block in _parts(message):
            yield block
            if block["type"] == "tool_result":
                yield from _parts(block)


def _pairing(messages: Sequence[JSON]) -> None:
    """Every `tool_use` is answered at the start of the very next message, and nothing else is answered there."""
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        blocks = _parts(message)
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if any(block["type"] != "tool_result" for block in blocks[: len(results)]):
            refuse(f"messages.{index}: `tool_result` blocks must come first in a user turn")
        if missing := open_calls - set(results):
            refuse(
                f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(sorted(missing))}"
            )
        if len(results) != len(set(results)) or set(results) - open_calls:
            refuse(f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks")
        open_calls = {block["id"] for block in blocks if block["type"] == "tool_use"}
    if open_calls:
        refuse("messages: `tool_use` ids were found without `tool_result` blocks immediately after")
