"""A short session of the Python Agent SDK through the proxy, with a tool of an MCP server in the SDK's own process."""

from __future__ import annotations

import json
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, create_sdk_mcp_server, query, tool

from tests.clients.asked import YES, Asked, Check, said
from tests.set_up import CLAUDE


async def agent_sdk(a: Asked) -> str:
    given: list[dict[str, Any]] = []

    @tool("add", "Adds two numbers.", {"a": float, "b": float})
    async def add(numbers: dict[str, Any]) -> dict[str, Any]:
        given.append(numbers)
        return {"content": [{"type": "text", "text": f"the sum is {numbers['a'] + numbers['b']}"}]}

    options = ClaudeAgentOptions(
        cli_path=CLAUDE,  # the one of package-lock.json, instead of one inside the SDK
        model=a.model("claude-sonnet-4-6"),
        mcp_servers={"sums": create_sdk_mcp_server("sums", tools=[add])},
        allowed_tools=["mcp__sums__add"],
        setting_sources=[],
        cwd=a.set_up.folder,
        env={**a.set_up.environ, **a.set_up.claude_env()},
    )
    prompt = f'{a.mark} [[tools: mcp__sums__add {{"a": 2, "b": 3}}]] [[text: five]]'
    *_, last = [message async for message in query(prompt=prompt, options=options)]
    assert isinstance(last, ResultMessage), last
    assert (last.is_error, last.result) == (False, "five"), last
    assert given == [{"a": 2, "b": 3}], given
    body = a.received()
    assert "the sum is 5" in said(body)
    assert "mcp__sums__add" in json.dumps(body["tools"])
    return YES


CHECKS: dict[str, Check] = {"agent_sdk": agent_sdk}
