"""Halves of characters in JSON (`"\\ud83d"` without its second half), which no UTF-8 can hold.

A text that was cut in the middle of an emoji has one. Cortex answers 400 to it, and the history of a session repeats it
with each turn. In an answer it breaks LiteLLM.
"""

from __future__ import annotations

import re

# Escapes in the order in which a JSON reader takes them, so that `\\ud83d` (a backslash and five letters) stays. The
# last alternative is a half that was written as three bytes.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.|(?P<raw>\xed[\xa0-\xbf][\x80-\xbf])",
    re.DOTALL,
)


def without_halves(raw: bytes) -> bytes:
    """The JSON with each half of a character replaced by U+FFFD, in values and in keys."""
    if b"\\ud" not in raw and b"\\uD" not in raw and b"\xed" not in raw:
        return raw
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found["half"] or found["raw"] else found[0], raw)
