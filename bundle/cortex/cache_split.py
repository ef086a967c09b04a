"""Estimates how many of the cached tokens of a chat completion were read from the cache, and how many were written.

The problem: for Claude, a chat completion reports reads and writes as one number (docs/cortex.md#answer-usage), and a
write costs twelve times as much as a read. The mechanism: what an earlier request has put into the cache is read by the
next one that begins with the same bytes. So this module remembers for five minutes how far each cached prompt reached
and how many tokens that was. It keeps digests, and no text.

What it cannot see: what another machine of the account has cached, what was cached before this process started, and a
prefix that Cortex has dropped early.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

CACHE_SECONDS = 300  # after its last use (docs/cortex.md#chat-cache-least)
MOST_PREFIXES = 500  # that are remembered; a day's work has some ten at a time
# A mark as it is written into JSON without spaces. In a text its quotes would be escaped, so nothing else matches.
_MARK = b'"cache_control":{"type":"ephemeral"}'

# A prompt in two parts: up to the first result of a tool, and the rest. Both are JSON without spaces, in the order of
# the prompt (tools, system, messages), and hold all that decides about the cache.
Prompt = tuple[bytes, bytes]


@dataclass
class _Prefix:
    """The beginning of a prompt in the cache, from when to when. Its tokens are known from a longer cached prompt, in
    proportion to the bytes; `share` is the one that it had there, from 0 to 1. The larger, the more exact."""

    since: float
    until: float
    tokens: int = 0
    share: float = 0.0


@dataclass(frozen=True)
class Seen:
    """A prompt whose answer has begun. `ends` are the marks of which one is the last that counts. `own` are its marked
    prefixes, `found` those of its prefixes that were in the cache before, by length. Lengths are in bytes, without the
    marks; `length` is that of the whole prompt."""

    length: int
    ends: tuple[int, ...]
    own: dict[int, _Prefix]
    found: dict[int, _Prefix]


class CacheSplit:
    """Remembers what is in the cache of each model. Call `begin` when an answer begins, in the order in which answers
    begin, and `read` at its end. Times are in seconds since the epoch: a laptop's sleep counts too."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, bytes], _Prefix] = {}  # the key: model, length in bytes, digest

    def begin(self, model: str, prompt: Prompt, *, asked: float, answered: float) -> Seen:
        """Note what this prompt finds in the cache, and that its own marked prefixes are there from now on.

        `asked` is when the request was sent, `answered` when its answer began: before that, no other request can read
        what it writes.
        """
        head, before_results = _without_marks(prompt[0])
        rest, after = _without_marks(prompt[1])
        text, marks = head + rest, [*before_results, *(len(head) + length for length in after)]
        lengths = sorted({*(known[1] for known in self._known if known[0] == model), *marks})
        digests = _digests(text, [length for length in lengths if length <= len(text)])
        found: dict[int, _Prefix] = {}
        for length, digest in digests.items():
            known = self._known.get((model, length, digest))
            if known and known.since <= asked <= known.until:
                found[length] = known
                known.until = asked + CACHE_SECONDS
        own = {length: found.get(length) or _Prefix(answered, asked + CACHE_SECONDS) for length in marks}
        for length, prefix in own.items():
            key = (model, length, digests[length])
            self._known.pop(key, None)
            self._known[key] = prefix  # at the end of the dictionary: the oldest are forgotten first
        for key in list(self._known)[: max(0, len(self._known) - MOST_PREFIXES)]:
            del self._known[key]
        # Nobody knows whether a mark covers results before it (docs/cortex.md#chat-cache-results).
        ends = tuple({*before_results[-1:], *marks[-1:]})
        return Seen(len(text), ends, own, found)

    def read(self, seen: Seen, *, cached: int, total: int) -> int:
        """How many of the `cached` tokens were most likely read. `total` is the number of all tokens of the prompt."""
        if not cached or not seen.ends:
            return 0
        # The number of cached tokens tells which of the two ends counts.
        end = min(seen.ends, key=lambda length: abs(length - seen.length * cached / max(total, cached)))
        for length, prefix in {**seen.found, **seen.own}.items():
            if prefix.share < length / end <= 1:
                prefix.tokens, prefix.share = round(cached * length / end), length / end
        sizes = (prefix.tokens for length, prefix in seen.found.items() if length <= end)
        return min(max(sizes, default=0), cached)


def _without_marks(part: bytes) -> tuple[bytes, list[int]]:
    """The text without its marks, and the length up to each mark."""
    first, *others = part.split(_MARK)
    pieces, lengths, length = [first], [], 0
    for piece in others:
        if pieces[-1].endswith(b","):
            pieces[-1] = pieces[-1][:-1]
        length += len(pieces[-1])
        lengths.append(length)
        pieces.append(piece)
    return b"".join(pieces), lengths


def _digests(text: bytes, lengths: Sequence[int]) -> dict[int, bytes]:
    """The digest of the text up to each of these lengths, which are in ascending order."""
    digest, start, found = hashlib.sha256(), 0, {}
    for length in lengths:
        digest.update(memoryview(text)[start:length])
        start = length
        found[length] = digest.copy().digest()
    return found
