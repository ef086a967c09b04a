"""The models that Cortex serves: their windows, their output limits, and which one is the newest of its family.

The problem: accounts differ in the models that they serve, and new models come every few months. The mechanism: a row
of the template may say `newest`. `candidates` then orders the models of its family: first the newest that the account
lists as generally available, or else the newest that the documentation names, then the older ones. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from bundle.cortex.models import family_of, version_of

NEWEST = "newest"  # in a row of the template, in place of a model's name
# The Claude models of the REST API, newest first (docs/cortex.md#models-rest).
DOCUMENTED = {
    "opus": ("claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6", "claude-opus-4-5"),
    "sonnet": ("claude-sonnet-5", "claude-sonnet-4-6", "claude-sonnet-4-5", "claude-4-sonnet"),
    "haiku": ("claude-haiku-4-5",),
}
FAMILIES = (*DOCUMENTED, "fable")  # the aliases of /model
GENERALLY_AVAILABLE, LEGACY, ENDED = "GA", "LEGACY", "EOL"  # of `lifecycle_status` (docs/cortex.md#sql-models)
WINDOW, LARGE_WINDOW = 200_000, 1_000_000  # docs/cortex.md#models-window
LARGE_SINCE = (4, 6)
# The output limits that the makers publish (docs/cortex.md#models-output). Cortex names its own limit when it refuses.
OUTPUT_LIMITS = {
    "openai-gpt-4.1": 32_768,
    "openai-gpt-5-chat": 16_384,
    "deepseek-r1": 32_768,
    **dict.fromkeys(("openai-gpt-5", "openai-gpt-5-mini", "openai-gpt-5-nano"), 128_000),
    **dict.fromkeys(("openai-gpt-5.1", "openai-gpt-5.2", "openai-gpt-5.4"), 128_000),
    **dict.fromkeys(("llama4-maverick", "llama3.1-8b", "llama3.1-70b", "llama3.1-405b"), 8_192),
    **dict.fromkeys(("snowflake-llama-3.3-70b", "mistral-large2", "mistral-large", "mistral-7b"), 8_192),
}
_CLAUDE = re.compile(rf"claude-(?:({'|'.join(FAMILIES)})-\d+(?:-\d{{1,2}})?|\d+(?:-\d{{1,2}})?-({'|'.join(FAMILIES)}))")
_DATE = re.compile(r"-\d{6,8}$")
_UPPER = {"gpt": "GPT", "openai": "OpenAI", "deepseek": "DeepSeek"}


@dataclass(frozen=True)
class Listed:
    """A model as the account lists it (docs/cortex.md#sql-models).

    `stage` is GA, PUPR, PRPR, LEGACY, EOL, another word, or "" for none. `legacy` and `ends` are free texts, mostly
    dates, or "". `regions` are the regions that serve the model, and `scopes` the values of
    CORTEX_ENABLED_CROSS_REGION with which other regions can use it.
    """

    name: str
    stage: str = ""
    legacy: str = ""
    ends: str = ""
    regions: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


def claude_family(model: str) -> str:
    """`opus` for `claude-opus-4-8`, `sonnet` for `claude-4-sonnet`; "" for other names, also for variants of a model
    such as `claude-opus-5-fast`."""
    found = _CLAUDE.fullmatch(model)
    return (found[1] or found[2]) if found else ""


def candidates(family: str, listed: Collection[Listed] = ()) -> list[str]:
    """The models to try for `newest` of a Claude family, the preferred one first, then the older ones. Empty if nothing
    is known of the family. A model in preview is never one of them, nor one that has ended, if there is another."""
    own = {model.name: model.stage for model in listed if claude_family(model.name) == family}
    ready = [name for name, stage in own.items() if stage == GENERALLY_AVAILABLE]
    legacy = [name for name, stage in own.items() if stage == LEGACY]
    documented = DOCUMENTED.get(family, ())
    unlisted = [name for name in documented if name not in own]
    # If the account has nothing but previews of a family, the documented model is asked for: Cortex says what is wrong.
    first = max(ready or unlisted or legacy, key=version_of, default=documented[0] if documented else "")
    older = {name for name in (*ready, *legacy, *unlisted) if version_of(name) < version_of(first)}
    return [first, *sorted(older, key=version_of, reverse=True)] if first else []


def window_of(model: str) -> int:
    """How many tokens of context a model has (docs/cortex.md#models-window)."""
    large = claude_family(model) not in {"", "haiku"} and version_of(model) >= LARGE_SINCE
    return LARGE_WINDOW if large else WINDOW


def output_of(model: str) -> int | None:
    """The most output tokens that a model can be asked for; None: not known (docs/cortex.md#models-output)."""
    if family_of(model) != "claude":
        return OUTPUT_LIMITS.get(model)
    family, version = claude_family(model), version_of(model)
    large = version >= LARGE_SINCE if family == "opus" else version >= (5,) and family not in {"", "haiku"}
    return 128_000 if large else 64_000


def readable(model: str) -> str:
    """A name for people: `claude-sonnet-4-5-20250929` as `Claude Sonnet 4.5`, `openai-gpt-5.2` as `OpenAI GPT 5.2`."""
    words = re.sub(r"(\d)-(?=\d)", r"\1.", _DATE.sub("", model)).split("-")
    return " ".join(_UPPER.get(word, word[:1].upper() + word[1:]) for word in words)
