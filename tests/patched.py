"""The file of the real LiteLLM that patches/apply_patch.py changes."""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path

from patches import apply_patch

LITELLM = importlib.metadata.distribution("litellm")
REAL = Path(str(LITELLM.locate_file(apply_patch.TARGET)))


@functools.cache
def shipped_source() -> bytes:
    """The real file as LiteLLM ships it, also when the installed one is patched."""
    content = apply_patch.without_block(REAL.read_bytes())
    assert f"{apply_patch.TARGET},sha256={apply_patch.digest(content)}," in (LITELLM.read_text("RECORD") or "")
    return content


def renamed_before_each_call(shipped: bytes, lines: str) -> bytes:
    """`shipped` with these lines before each call, as a release of LiteLLM that renames the field by itself."""
    source = shipped.splitlines(keepends=True)
    for call in sorted(apply_patch.find_calls(shipped), key=lambda call: -call.statement.lineno):
        at, indent = call.statement.lineno - 1, b" " * call.statement.col_offset
        source[at:at] = [indent + line.encode() + b"\n" for line in lines.split("\n")]
    return b"".join(source)
