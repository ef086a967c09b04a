"""What every module here needs: types, a model's family and version, and the settings of one configured model.

The problem: models on Cortex differ in what they accept, and a request names its model only. The mechanism: the name
tells the family (Claude, OpenAI, other) and the version; the rest is set in the model's row of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

JSON = dict[str, Any]
Family = Literal["claude", "openai", "other"]
Note = Callable[[str], None]  # called with a short phrase for each thing that was dropped or changed

MARK: JSON = {"type": "ephemeral"}  # the only value of `cache_control` that both endpoints are known to accept
MIN_BUDGET = 1_024  # the fewest thinking tokens that Claude accepts
BUDGETS = {"low": 4_096, "medium": 16_384, "high": 31_999}  # the thinking tokens that each effort stands for
# Cortex knows three efforts; clients know more.
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def no_note(_: str) -> None:
    pass


@dataclass(frozen=True)
class Limits:
    """The settings of one configured model. `max_output_tokens` is its maximum of output tokens (None: not known)."""

    max_output_tokens: int | None = None


def family_of(model: str) -> Family:
    """The family of a model, from its name with or without a provider prefix such as `openai/`."""
    name = model.rsplit("/", 1)[-1]
    return "claude" if name.startswith("claude") else "openai" if name.startswith("openai-") else "other"


def version_of(model: str) -> tuple[int, ...]:
    """`claude-opus-4-7` as (4, 7), `claude-4-sonnet` as (4,); a name without a version counts as the newest."""
    steps = re.split(r"\W|_", model.rsplit("/", 1)[-1])
    numbers = [int(step) for step in steps if step.isdigit() and len(step) <= 2]  # longer numbers are dates
    return tuple(numbers[:2]) or (99,)


def is_adaptive(model: str) -> bool:
    """Whether a Claude model is 4.6 or newer: these models think adaptively, and refuse an assistant message at the end
    (docs/cortex.md#models-adaptive, docs/cortex.md#chat-prefill)."""
    return version_of(model) >= (4, 6)
