"""What Snowflake Cortex refuses: pure functions from a request body to a `BadRequest` or None.

`check_chat` judges a Chat Completions body, `check_messages` judges a body and its headers for the Messages endpoint.
Both are strict on purpose: a request that passes here should pass on the real service.

There are three kinds of rules:

- Rules that are documented or measured cannot be changed. Cortex's own words are the texts of `max_tokens`,
  `json object response format`, `unknown model`, `max tokens of`, `toolUse`/`toolResult`, the final assistant turn,
  `Extra inputs are not permitted` and `invalid beta flag`.
- Rules on which sources disagree, or which nobody has tried, are fields of `Options`. They are strict by default.
- Rules that hold for any service of this kind (roles, types, unique names) cannot be changed. Their words are our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tests.cortex_chat_rules import (
    FINAL_ASSISTANT,
    THINKING_ALONE,
    THINKING_FIRST,
    THINKING_FORCED,
    THINKING_TEMPERATURE,
    TOOL_PAIRING,
    chat_rules,
)
from tests.cortex_messages_rules import BETAS, messages_rules
from tests.cortex_shared_rules import (
    DEFAULT_OUTPUT,
    JSON,
    MAX_BODY,
    MAX_OUTPUT,
    NO_PREFILL,
    RefusedError,
    as_object,
    is_claude,
    is_openai,
    thinking_signature,
)

__all__ = [
    "BETAS",
    "DEFAULTS",
    "DEFAULT_OUTPUT",
    "FINAL_ASSISTANT",
    "JSON",
    "LARGE",
    "MAX_BODY",
    "MODELS",
    "NO_PREFILL",
    "THINKING_ALONE",
    "THINKING_FIRST",
    "THINKING_FORCED",
    "THINKING_TEMPERATURE",
    "TOOL_PAIRING",
    "BadRequest",
    "Options",
    "check_chat",
    "check_messages",
    "check_window",
    "is_claude",
    "is_openai",
    "thinking_signature",
]

# The models of the REST API (docs/cortex.md#models-rest) and their output limits. Gemini, Grok, `llama4-scout` and
# `openai-gpt-4o` are not on it. The limits are those of the makers: Cortex documents only that none is above 131072.
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


@dataclass(frozen=True)
class BadRequest:
    """An answer other than 200: its HTTP status and the `message` of Snowflake's envelope."""

    status: int
    message: str


@dataclass(frozen=True)
class Options:
    """The account's models, and one switch for each thing that is not known of the real service.

    `models` maps a bare model name to its output limit in tokens. `windows` maps a model name to its context window, if
    it differs from the documented one. Every default is the stricter reading.
    """

    models: Mapping[str, int] = field(default_factory=lambda: MODELS)
    output_cap: int | None = None  # 16384 in one documentation table; another project found that too low
    claude_stop: str = "ignored"  # the other values are "honoured" and "refused"
    older_shapes: bool = False  # answers with role "", tool type "", arguments "" for a call without parameters
    mark_covers_tool_results: bool = False  # does a later user block's mark cache the tool results before it?
    whitespace_is_empty: bool = False  # does a text of white space count as an empty block?
    empty_tool_result: bool = False  # may a tool result be an empty string?
    claude_code_beta: bool = False  # is `claude-code-20250219` accepted?
    full_thinking_beta: bool = False  # is `dev-full-thinking-2025-05-14` accepted? documented, but seen rejected
    one_hour_ttl: bool = False  # is `ttl: "1h"` accepted on Messages?
    documents: bool = False  # are PDFs accepted on Messages, as `document` blocks?
    images_in_failed_results: bool = False  # may a result with `is_error` hold an image on Messages?
    thinking_needs_temperature: bool = True  # does `reasoning` need an explicit `temperature: 1`?
    thinking_mid_turn: bool = False  # is thinking accepted after tool calls of this turn without thinking?
    signed_streams: bool = False  # does a stream's thinking end with its signature?
    details_alone: bool = False  # is signed thinking in the history accepted without `reasoning`?
    stream_extras: bool = False  # do the deltas of a stream have the empty keys of an unstreamed answer?
    prefill: bool = False  # do Claude 4.6 and newer accept an assistant message at the end?
    newest_temperature: bool = False  # do Claude 4.7 and newer accept a temperature other than 1?
    odd_tool_ids: bool = False  # does Claude accept a tool id with more than letters, digits, `_` and `-`?
    lookaround: bool = False  # does GPT accept `(?=…)` and the like in the patterns of tools?
    windows: Mapping[str, int] = field(default_factory=dict)
    window_counts_output: bool = True  # does the requested output count against the window?
    refused_fields: Sequence[str] = ()  # top-level fields that Claude refuses here, on both routes
    refused_marks: Sequence[str] = ()  # roles whose cache marks Chat Completions refuses

    def limit(self, model: str) -> int:
        """The most output tokens that a request may ask of a known model."""
        return min(self.models[model], self.output_cap or MAX_OUTPUT, MAX_OUTPUT)

    def window(self, model: str) -> int:
        """How many tokens of context a known model has."""
        return self.windows.get(model, LARGE_WINDOW if model in LARGE else WINDOW)


DEFAULTS = Options()


def check_chat(body: object, options: Options = DEFAULTS, size: int | None = None) -> BadRequest | None:
    """Judge a Chat Completions body; `size` is its length on the wire in bytes (measured here when not given)."""
    try:
        chat_rules(as_object(body, "request body"), options, size)
    except RefusedError as refused:
        return BadRequest(400, str(refused))
    return None


def check_messages(
    body: object, headers: Mapping[str, str], options: Options = DEFAULTS, size: int | None = None
) -> BadRequest | None:
    """Judge a Messages body with its headers (names in lower case)."""
    try:
        messages_rules(as_object(body, "request body"), headers, options, size)
    except RefusedError as refused:
        return BadRequest(400, str(refused))
    return None


def check_window(model: str, prompt: int, asked: int | None, options: Options = DEFAULTS) -> BadRequest | None:
    """Judge whether a prompt of that many tokens fits the model's window.

    `asked` is the requested output: it counts if `window_counts_output`. The words are Cortex's own
    (docs/cortex.md#status-context-full).
    """
    window = options.window(model)
    used = prompt + (min(asked or DEFAULT_OUTPUT, options.limit(model)) if options.window_counts_output else 0)
    return BadRequest(400, f"max tokens of {window} exceeded") if used > window else None
