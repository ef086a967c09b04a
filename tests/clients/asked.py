"""What each check of the Python SDK gets: a client, a route, and a look at what reached the stand-in.

A check asks the proxy for one thing, asserts what came out and what the stand-in received, and returns the outcome that
it has seen. The table (table.py) says which outcome is right. The checks of one process run at the same time, so each
one writes its own mark into its prompt, by which it finds its requests.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from anthropic import Anthropic, APIError, AsyncAnthropic

from tests.cortex_rules import JSON
from tests.set_up import SetUp

YES, AS_TEXT, IN_PART, NOT = "yes", "as text", "in part", "not supported"
TOOL: JSON = {
    "name": "weather",
    "description": "Tells the weather of a town.",
    "input_schema": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
}
OTHER_TOOL: JSON = {**TOOL, "name": "traffic"}


@dataclass(frozen=True)
class Asked:
    """One check on one route ("chat", "messages" or "gpt")."""

    name: str
    route: str
    client: AsyncAnthropic
    plain: Anthropic  # the same client, not asynchronous
    set_up: SetUp

    @property
    def mark(self) -> str:
        return f"[{self.name}/python/{self.route}]"

    @property
    def is_chat(self) -> bool:
        return self.route != "messages"

    def model(self, claude: str = "claude-haiku-4-5", gpt: str = "openai-gpt-4.1") -> str:
        return {"chat": claude, "messages": f"messages-{claude}", "gpt": gpt}[self.route]

    def user(self, words: str = "", *blocks: JSON) -> JSON:
        """A user's message with the mark of this check; `words` may script the stand-in's model."""
        return {"role": "user", "content": [*blocks, {"type": "text", "text": f"{self.mark} {words}"}]}

    def body(self, words: str = "", *blocks: JSON, **more: Any) -> dict[str, Any]:
        """The arguments of a request."""
        return {"model": self.model(), "max_tokens": 500, "messages": [self.user(words, *blocks)], **more}

    def ask(self, words: str = "", *blocks: JSON, **more: Any) -> Awaitable[Any]:
        """Send a request."""
        return self.client.messages.create(**self.body(words, *blocks, **more))

    def records(self) -> list[JSON]:
        """The records of the stand-in about the requests of this check, oldest first."""
        return self.set_up.stub.with_words(self.mark)

    def received(self) -> JSON:
        """The body of the newest request of this check that the stand-in accepted."""
        body: JSON = [record for record in self.records() if record["status"] == 200][-1]["body"]
        return body

    async def wait_for(self, seen: Callable[[JSON], Any], seconds: float = 10) -> None:
        """Wait for a record of this check for which `seen` is true."""
        end = time.monotonic() + seconds
        while not any(seen(record) for record in self.records()):
            assert time.monotonic() < end, f"not seen at the stand-in within {seconds} s"
            await asyncio.sleep(0.05)


Check = Callable[[Asked], Awaitable[str]]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def calls_of(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


def said(body: JSON) -> str:
    """Everything that the model gets to read of a body's messages, as one string."""
    return json.dumps(body["messages"], ensure_ascii=False)


async def error_of(call: Awaitable[Any], kind: type[APIError]) -> Any:
    """The error of a call, which must be of this class."""
    try:
        await call
    except kind as found:
        return found
    raise AssertionError("answered")


def refused(error: Any, *words: str) -> None:
    """Check that an error is final and says these words."""
    assert error.type == "invalid_request_error", error.type
    assert error.response.headers["x-should-retry"] == "false"
    for each in words:
        assert each in str(error), str(error)
