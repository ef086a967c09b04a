"""Regular expressions in schemas: which of them the services accept.

The standard says that `pattern` is written as in JavaScript. OpenAI compiles it with Python's `re` instead, and refuses
what does not compile (docs/cortex.md#chat-tool-patterns). Anthropic does not look at it.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable

from bundle.cortex.models import JSON, Note, no_note

MAX_PATTERN = 10_000  # characters; a longer one is no hint for a model
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
# What JavaScript has and Python has not, and what Python has in its place: only to see whether the rest is well formed.
_JAVASCRIPT = (
    (re.compile(r"\\[pP]\{[^{}]*\}"), r"\\w"),
    (re.compile(r"\\u\{[0-9a-fA-F]+\}"), "x"),
    (re.compile(r"\\k<([A-Za-z_]\w*)>"), r"(?P=\1)"),
    (re.compile(r"\(\?<([A-Za-z_]\w*)>"), r"(?P<\1>"),
    (re.compile(r"\(\?<([=!])"), r"(?\1"),  # Python wants a fixed width behind `?<=`
    (re.compile(r"\\([A-Za-z])(?<![bBdDsSwWnrtfvux])"), r"\1"),
    (re.compile(r"\[\^\]"), "."),
)


@functools.lru_cache(maxsize=1000)
def _compiles(pattern: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of what a later release may read in another way
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def plain_patterns(schema: JSON, accepts: Callable[[object], bool], note: Note = no_note) -> JSON:
    """One schema without the expressions that are not accepted."""
    out = dict(schema)
    if "pattern" in out and not accepts(out["pattern"]):
        del out["pattern"]
        note("pattern dropped")
    patterns = out.get("patternProperties")
    if isinstance(patterns, dict) and not all(map(accepts, patterns)):
        out["patternProperties"] = {name: value for name, value in patterns.items() if accepts(name)}
        note("patternProperties repaired")
        if out.get("additionalProperties") is False:
            del out["additionalProperties"]  # the names that an argument may have are not known any more
    return out


def is_pattern(pattern: object) -> bool:
    """Whether the expression is well formed, in JavaScript's way or in Python's."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        return False
    plain = pattern
    for theirs, ours in _JAVASCRIPT:
        plain = theirs.sub(ours, plain)
    return _compiles(pattern) or _compiles(plain)


def is_openai_pattern(pattern: object) -> bool:
    """docs/cortex.md#chat-tool-patterns, docs/cortex.md#chat-tool-lookaround: whether OpenAI accepts the expression."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        return False
    return _compiles(pattern) and not _LOOKAROUND.search(pattern)
