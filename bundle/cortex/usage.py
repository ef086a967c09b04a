"""The numbers of tokens in Cortex's answers, in the form that OpenAI's and Anthropic's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bundle.cortex.models import JSON

USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")
USAGE_DETAILS = (("prompt_tokens_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens"))
MAX_COUNT = 10**9  # tokens; a larger number is a mistake of the service


@dataclass(frozen=True)
class Used:
    """The tokens that an answer has used. Each is counted once. `cached` are reads and writes together, where Cortex
    does not tell them apart; `cache_read` and `cache_write` are then 0."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    cached: int = 0


def used_on_chat(usage: Mapping[str, JSON | int], *, claude: bool) -> Used:
    """What a chat completion has used; `usage` is the result of `openai_usage`. Only Claude has a cache that is written
    to, and paid for (docs/cortex.md#answer-usage)."""
    details = usage.get("prompt_tokens_details")
    cached = count(details.get("cached_tokens") if isinstance(details, dict) else 0)
    prompt, output = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    uncached = max(0, prompt - cached)
    return Used(uncached, output=output, cached=cached) if claude else Used(uncached, cached, output=output)


def used_on_messages(usage: Mapping[str, object]) -> Used:
    """What an answer of the Messages API has used."""
    read, write = count(usage.get("cache_read_input_tokens")), count(usage.get("cache_creation_input_tokens"))
    return Used(count(usage.get("input_tokens")), read, write, count(usage.get("output_tokens")))


def count(value: object) -> int:
    """A number of tokens; 0 for what cannot be one."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    return int(number) if 0 <= number <= MAX_COUNT else 0


def anthropic_usage(usage: object) -> JSON:
    """The counts of a usage of the Messages API, and its short texts, such as the service tier."""
    plain: JSON = {}
    for key, value in usage.items() if isinstance(usage, dict) else ():
        if isinstance(value, dict) and not key.endswith("_tokens"):
            plain[key] = {name: count(number) for name, number in value.items()}
        elif key.endswith("_tokens") or not (value is None or isinstance(value, str)):
            plain[key] = count(value)
        elif value is None or len(value) < 100:
            plain[key] = value
    return plain


def openai_usage(usage: object) -> JSON:
    """docs/cortex.md#answer-usage: for Claude, `prompt_tokens` excludes the cached tokens, and `cached_tokens` counts
    cache reads plus cache writes, which cannot be separated.

    OpenAI's `prompt_tokens` includes the cached tokens. If `total_tokens` is the sum of prompt, cached and
    completion tokens, the cached tokens are added to the prompt; otherwise the usage already has OpenAI's form and
    stays unchanged.
    """
    if not (usage and isinstance(usage, dict)):
        return {}
    plain: JSON = {key: count(usage.get(key)) for key in USAGE_FIELDS}
    for group, name in USAGE_DETAILS:
        details = usage.get(group)
        if number := count(details.get(name) if isinstance(details, dict) else 0):
            plain[group] = {name: number}
    cached = plain.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    if cached and plain["total_tokens"] == plain["prompt_tokens"] + cached + plain["completion_tokens"]:
        plain["prompt_tokens"] += cached
    return plain


def with_new_tokens(usage: JSON) -> JSON:
    """The usage at the end of a stream, with at least one token of the prompt that is not from the cache: Claude Code
    keeps the estimate of the stream's first event (replies.py) when the last event says 0, and adds the cached ones."""
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {**usage, "prompt_tokens": max(usage["prompt_tokens"], cached + 1)} if cached else usage
