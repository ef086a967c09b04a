"""Estimates how many of the cached tokens of a chat completion were read from the cache, and how many were written.

The problem: for Claude, a chat completion reports reads and writes as one number (docs/cortex.md#answer-usage), and a
write costs twelve times as much as a read. The mechanism: what an earlier request has put into the cache is read by the
next one that begins with the same bytes. So this module remembers how far each cached prompt reached and how many
tokens that was, for as long as Cortex keeps it. It keeps digests, and no text.

What it cannot see: what another machine of the account has cached, and a prefix that Cortex has dropped early.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

CACHE_SECONDS = 300  # after its last use (docs/cortex.md#chat-cache-least)
MOST_PREFIXES = 500  # that are remembered; a day's work has some ten at a time
# A mark as it is written by orjson. In a text its quotes would be escaped, so nothing else matches.
_MARK = re.compile(rb',?"cache_control":\{"type":"ephemeral"\}')

# A prompt in two parts: up to the first result of a tool, and the rest. Both are JSON without spaces, in the order of
# the prompt (tools, system, messages), and hold all that decides about the cache.
Prompt = tuple[bytes, bytes]


@dataclass
class _Prefix:
    """The beginning of a prompt that is in the cache: how many tokens it has, and from when to when it is there."""

    tokens: int
    since: float
    until: float


class CacheSplit:
    """Remembers what is in the cache of each model. Times are in seconds, on any clock."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, bytes], _Prefix] = {}  # the key: model, length in bytes, digest

    def read(self, model: str, prompt: Prompt, *, cached: int, total: int, asked: float, answered: float) -> int:
        """How many of the `cached` tokens were most likely read, and remember all of them.

        `total` is the number of all tokens of the prompt. `asked` is when the request was sent, `answered` when its
        answer began: from then on other requests can read what it has written.
        """
        text, marks = _without_marks(b"".join(prompt))
        if not cached or not marks:
            return 0
        # Nobody knows whether a mark covers results before it (docs/cortex.md#chat-cache-results), so see which of two
        # marks the number of cached tokens means: the last one before any result, or the last one of all.
        before_results = _without_marks(prompt[0])[1]
        ends = {*before_results[-1:], marks[-1]}
        end = min(ends, key=lambda length: abs(length - len(text) * cached / max(total, cached)))
        lengths = sorted({*(known[1] for known in self._known if known[0] == model), *marks})
        digests = _digests(text, [length for length in lengths if length <= end])
        found = 0
        for length, digest in digests.items():
            known = self._known.get((model, length, digest))
            if known and known.since <= asked <= known.until:
                known.until = asked + CACHE_SECONDS
                found = max(found, min(known.tokens, cached))
        for length in marks:
            if length <= end:
                key = (model, length, digests[length])
                old = self._known.pop(key, None)  # put back at the end: the oldest are forgotten first
                tokens = cached if length == end else old.tokens if old else round(cached * length / end)
                since = old.since if old and old.until > asked else answered
                self._known[key] = _Prefix(tokens, since, asked + CACHE_SECONDS)
        for key in list(self._known)[: max(0, len(self._known) - MOST_PREFIXES)]:
            del self._known[key]
        return found


def _without_marks(prompt: bytes) -> tuple[bytes, list[int]]:
    """The prompt without its marks, and the length up to each mark."""
    parts = _MARK.split(prompt)
    lengths, length = [], 0
    for part in parts[:-1]:
        length += len(part)
        lengths.append(length)
    return b"".join(parts), lengths


def _digests(text: bytes, lengths: Sequence[int]) -> dict[int, bytes]:
    """The digest of the text up to each of these lengths, which are in ascending order."""
    digest, start, found = hashlib.sha256(), 0, {}
    for length in lengths:
        digest.update(memoryview(text)[start:length])
        start = length
        found[length] = digest.copy().digest()
    return found
