"""Small helpers to build and read the blocks of a message's content.

The problem: both APIs allow a content to be a string, a list of blocks, or empty. The mechanism: the other modules read
every content through `blocks_of`, so that they have one case instead of three.
"""

from __future__ import annotations

from bundle.cortex.models import JSON, MARK


def text_block(text: object) -> JSON:
    return {"type": "text", "text": text if isinstance(text, str) else str(text)}


def is_blank(text: str) -> bool:
    return not text or text.isspace()


def blocks_of(content: object) -> list[JSON]:
    return content if isinstance(content, list) else [text_block(content)] if content else []


def joined_text(content: object) -> str:
    # LiteLLM joins an assistant's blocks without a separator when none of them has a cache mark. We always do the same,
    # so that the text stays equal when the client moves its mark to another block.
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in blocks_of(content))


def mark_of(item: JSON) -> JSON:
    return {"cache_control": MARK} if item.get("cache_control") else {}


def mark_within(content: object) -> JSON:
    return next((mark for part in blocks_of(content) if (mark := mark_of(part))), {})


def unmarked(item: JSON) -> JSON:
    return {k: v for k, v in item.items() if k != "cache_control"} if "cache_control" in item else item
