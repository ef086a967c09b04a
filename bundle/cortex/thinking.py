"""Claude's signed thinking in the history of a chat completion (`reasoning_details`).

The problem: Claude goes on thinking within a turn only if it gets back, unchanged, what it has thought before its calls
(docs/cortex.md#chat-reasoning-history, docs/cortex.md#chat-reasoning-midturn). The mechanism: LiteLLM hands over the
thinking of each assistant message as `thinking_blocks`, which become `reasoning_details` in the recorded form.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundle.cortex.models import JSON
from bundle.cortex.turns import turn_start

DETAILS = "reasoning_details"  # in messages; in `refused`: this model has refused them


def signed_details(message: JSON) -> JSON:
    """The field `reasoning_details` of an assistant message, or nothing if a part of its thinking has no signature."""
    texts = [(block.get("thinking"), block.get("signature")) for block in message.get("thinking_blocks") or ()]
    # The second form is that of a message that was rewritten before.
    texts = texts or [(detail.get("text"), detail.get("signature")) for detail in message.get(DETAILS) or ()]
    if not texts or not all(isinstance(text, str) and signature for text, signature in texts):
        return {}
    made = {"type": "reasoning.text", "format": "anthropic-claude-v1"}
    return {
        DETAILS: [
            {**made, "id": f"reasoning-text-{index + 1}", "index": index, "signature": signature, "text": text}
            for index, (text, signature) in enumerate(texts)
        ]
    }


def of_this_turn(messages: Sequence[JSON]) -> list[JSON]:
    """The messages, with thinking in the current turn only: Claude does not need that of older turns. A turn loses its
    thinking once, when the next one begins, and stays the same from then on, as the prompt cache needs."""
    turn = turn_start(messages)
    return [*without_details(messages[:turn]), *messages[turn:]]


def without_details(messages: Sequence[JSON]) -> list[JSON]:
    return [{k: v for k, v in each.items() if k != DETAILS} if DETAILS in each else each for each in messages]
