"""What can be told from a model's name, and the limits of one row of the configuration."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

JSON = dict[str, Any]
Family = Literal["claude", "openai", "other"]
Note = Callable[[str], None]


def no_note(_: str) -> None:
    pass


MARK: JSON = {"type": "ephemeral"}


@dataclass(frozen=True)
class Limits:
    """One deployment's settings: the model's most output tokens (None: not known), and whether to mark tool results.

    `cache_tool_results` adds a constant user block after each run of results and puts the cache mark there. It is off
    because neither that Cortex then caches the results before it nor that a model does not mind the block was ever
    measured.
    """

    max_output_tokens: int | None = None
    cache_tool_results: bool = False


def family_of(model: str) -> Family:
    """What kind of model a Cortex name is, with or without a provider prefix such as `openai/`."""
    name = model.rsplit("/", 1)[-1]
    return "claude" if name.startswith("claude") else "openai" if name.startswith("openai-") else "other"


def version_of(model: str) -> tuple[int, ...]:
    """`claude-opus-4-7` as (4, 7), `claude-4-sonnet` as (4,); a name without a version counts as the newest."""
    steps = re.split(r"\W|_", model.rsplit("/", 1)[-1])
    numbers = [int(step) for step in steps if step.isdigit() and len(step) <= 2]  # longer ones are dates
    return tuple(numbers[:2]) or (99,)


def is_adaptive(model: str) -> bool:
    """Whether a Claude model is 4.6 or newer: these think adaptively, and take no assistant message at the end
    (docs/cortex.md#models-adaptive, docs/cortex.md#chat-prefill)."""
    return version_of(model) >= (4, 6)


MIN_BUDGET = 1_024  # the fewest tokens that Claude takes for its thinking
EFFORT_BUDGETS = {"low": 4_096, "medium": 16_384, "high": 31_999}  # tokens of thinking that an effort stands for
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
