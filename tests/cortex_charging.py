"""What the stand-in charges for a prompt: its tokens, and what the prompt cache saves.

One token is four bytes of UTF-8, rounded up per block. An image is 1500 tokens. A test that needs a large prompt writes
`[500000 tokens more]` into it. The prompt is the ordered list of its
blocks (tools, system, messages). A cache mark stores the prefix that ends at its block, if that prefix has at least
1024 tokens. It stays for five minutes after its last use. A mark looks back over twenty blocks for a stored prefix. On
Chat Completions the marks on blocks of system, user and assistant messages count, on Messages every mark counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.cortex_rules import JSON, Options, is_claude

CACHE_SECONDS = 300
CACHE_MINIMUM = 1024
LOOKBACK = 20
IMAGE_TOKENS = 1500


_MORE = re.compile(r"\[(\d{1,7}) tokens more\]")


def count_tokens(text: str) -> int:
    """Four bytes of UTF-8 are a token, rounded up. The words `[N tokens more]` add N tokens."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4) + sum(map(int, _MORE.findall(text)))


@dataclass(frozen=True)
class Block:
    """One block of the prompt. No cached prefix contains a `barrier`."""

    text: str
    mark: bool = False
    barrier: bool = False
    image: bool = False

    @property
    def tokens(self) -> int:
        return IMAGE_TOKENS if self.image else count_tokens(self.text)


@dataclass(frozen=True)
class Usage:
    """The tokens charged for one request. Each token counts once."""

    input: int = 0
    cache_write: int = 0
    cache_read: int = 0
    output: int = 0


def _plain(value: JSON) -> str:
    return json.dumps({k: v for k, v in value.items() if k != "cache_control"}, separators=(",", ":"), sort_keys=True)


def chat_blocks(body: JSON, options: Options) -> list[Block]:
    """The prompt of a Chat Completions body, system messages first as Claude gets them."""
    blocks = [Block(_plain(tool)) for tool in body.get("tools") or ()]
    messages = body["messages"]
    for message in sorted(messages, key=lambda message: message["role"] not in {"system", "developer"}):
        role = message["role"]
        barrier = role == "tool" and not options.mark_covers_tool_results
        content = message.get("content")
        blocks += [Block(f"thinking:{detail['text']}") for detail in message.get("reasoning_details") or ()]
        parts: list[JSON] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        for part in parts:
            mark = "cache_control" in part and role in {"system", "developer", "user", "assistant"}
            image = part["type"] == "image_url"
            text = part["image_url"]["url"] if image else part["text"]
            blocks.append(Block(f"{role}:{text}", mark, barrier, image))
        blocks += [Block(_plain(call["function"])) for call in message.get("tool_calls") or ()]
    return blocks


def messages_blocks(body: JSON) -> list[Block]:
    """The prompt of a Messages body."""
    blocks = [Block(_plain(tool), "cache_control" in tool) for tool in body.get("tools") or ()]
    for message in [{"role": "system", "content": body.get("system") or []}, *body["messages"]]:
        content = message["content"]
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            text = f"{message['role']}:{block['text'] if block['type'] == 'text' else _plain(block)}"
            blocks.append(Block(text, bool(block.get("cache_control")), image=block["type"] == "image"))
    return blocks


def prompt_tokens(blocks: Sequence[Block]) -> int:
    """How many tokens of the window a prompt takes."""
    return sum(block.tokens for block in blocks)


class PromptCache:
    """Stored prefixes and when they end (seconds on the caller's clock)."""

    def __init__(self) -> None:
        self._ends: dict[bytes, float] = {}

    def charge(self, model: str, blocks: Sequence[Block], now: float) -> Usage:
        """What this prompt costs. The prefixes that its marks end are stored."""
        digest, total, reach = hashlib.sha256(model.encode()), 0, len(blocks)
        prefixes: list[tuple[bytes, int]] = []
        for index, block in enumerate(blocks):
            digest.update(f"{len(block.text)}:{block.text}".encode())
            total += block.tokens
            prefixes.append((digest.copy().digest(), total))
            if block.barrier:
                reach = min(reach, index)
        marks = [index for index in range(reach) if blocks[index].mark and prefixes[index][1] >= CACHE_MINIMUM]
        if not is_claude(model):
            marks = []
        read = 0
        for mark in marks:
            for key, size in reversed(prefixes[max(0, mark - LOOKBACK) : mark + 1]):
                if self._ends.get(key, 0) > now:
                    read = max(read, size)
                    self._ends[key] = now + CACHE_SECONDS
                    break
        for mark in marks:
            self._ends[prefixes[mark][0]] = now + CACHE_SECONDS
        stored = prefixes[marks[-1]][1] if marks else 0
        return Usage(total - max(read, stored), max(0, stored - read), read)
