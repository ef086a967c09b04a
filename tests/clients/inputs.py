"""Checks of the Python SDK: what a request may contain besides text, and fields that Cortex does not have."""

from __future__ import annotations

import base64
import json
from typing import Any

from anthropic import BadRequestError

from tests.clients.asked import (
    AS_TEXT,
    IN_PART,
    NOT,
    OTHER_TOOL,
    TOOL,
    YES,
    Asked,
    Check,
    calls_of,
    error_of,
    refused,
    said,
    text_of,
)
from tests.cortex_rules import JSON

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
PNG: JSON = {"type": "base64", "media_type": "image/png", "data": PIXEL}
PDF = base64.b64encode(b"%PDF-1.4 a page").decode()
PLAIN: JSON = {"type": "text", "media_type": "text/plain", "data": "the harvest was good"}
PARTS: JSON = {"type": "content", "content": [{"type": "text", "text": "the winter was mild"}]}
FOUND: JSON = {
    "type": "search_result",
    "source": "https://example.com/towns",
    "title": "Towns",
    "content": [{"type": "text", "text": "the town is old"}],
    "citations": {"enabled": True},
}


def document(source: JSON, **more: Any) -> JSON:
    return {"type": "document", "source": source, **more}


def results(*blocks: JSON, **more: Any) -> list[JSON]:
    """A call and its result, as the end of a history."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"town": "A"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(blocks), **more}
    return [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]


async def after(a: Asked, history: list[JSON]) -> JSON:
    """What the stand-in receives of a request that ends with this history."""
    asked = a.body("[[text: done]]", tools=[TOOL])
    answer = await a.client.messages.create(**{**asked, "messages": [*asked["messages"], *history]})
    assert text_of(answer) == "done"
    return a.received()


def holds_image(body: JSON) -> bool:
    return PIXEL in said(body) and ('"image_url"' in said(body) or '"source"' in said(body))


def told_as_left_out(body: JSON, data: str) -> bool:
    """Whether the model is told that something was left out, and does not get it."""
    return data not in said(body) and "left out" in said(body)


async def image(a: Asked) -> str:
    await a.ask("", {"type": "image", "source": PNG})
    assert holds_image(a.received())
    return YES


async def image_by_url(a: Asked) -> str:
    source = {"type": "url", "url": "https://example.com/a.png"}
    await a.ask("", {"type": "image", "source": source})
    assert "left out" in said(a.received())
    return NOT


async def text_document(a: Asked) -> str:
    for source, words in ((PLAIN, "the harvest was good"), (PARTS, "the winter was mild")):
        block = document(source, title="Report", context="of last year", citations={"enabled": True})
        await a.ask("", block)
        body = a.received()
        assert words in said(body), f"source {source['type']}: its text did not reach Cortex: {said(body)}"
        assert "Report" in said(body), "its title did not reach Cortex"
    return AS_TEXT


async def pdf_document(a: Asked) -> str:
    pdf = {"type": "base64", "media_type": "application/pdf", "data": PDF}
    await a.client.with_options(max_retries=2).messages.create(**a.body("", document(pdf)))
    body = a.received()
    if PDF in said(body):
        return YES
    assert told_as_left_out(body, PDF), said(body)
    return NOT


async def search_result(a: Asked) -> str:
    await a.ask("", FOUND)
    body = a.received()
    assert "the town is old" in said(body), f"its text did not reach Cortex: {said(body)}"
    assert "https://example.com/towns" in said(body), "its source did not reach Cortex"
    return AS_TEXT


async def tool_result_error(a: Asked) -> str:
    good, bad = [await after(a, results({"type": "text", "text": "x"}, is_error=is_bad)) for is_bad in (False, True)]
    if a.route == "messages":
        (block,) = bad["messages"][-1]["content"]
        assert block["is_error"] is True
        return YES
    assert said(good) != said(bad), "the model is not told that the call failed"
    assert "error" in said(bad).lower() or "fail" in said(bad).lower()
    return AS_TEXT


async def tool_result_image(a: Asked) -> str:
    body = await after(a, results({"type": "text", "text": "a picture"}, {"type": "image", "source": PNG}))
    assert "a picture" in said(body)
    assert holds_image(body)
    return YES


async def tool_result_document(a: Asked) -> str:
    for block, words in (
        (document(PLAIN), "the harvest was good"),
        (document(PARTS), "the winter was mild"),
        (FOUND, "the town is old"),
    ):
        body = await after(a, results(block))
        assert words in said(body), f"{block['type']}: its text did not reach Cortex: {said(body)}"
    return AS_TEXT


async def results_of_server_tools(a: Asked) -> str:
    """A history that Anthropic's own servers have made: their calls and results are read as text."""
    page = {
        "type": "web_fetch_result",
        "url": "https://example.com",
        "content": document(PLAIN),
    }
    run = {"type": "code_execution_result", "stdout": "forty-two", "stderr": "", "return_code": 0, "content": []}
    blocks = [
        {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "look", "server_name": "towns", "input": {"town": "A"}},
        {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "content": [{"type": "text", "text": "it is old"}]},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_fetch", "input": {"url": "https://example.com"}},
        {"type": "web_fetch_tool_result", "tool_use_id": "srvtoolu_1", "content": page},
        {"type": "server_tool_use", "id": "srvtoolu_2", "name": "code_execution", "input": {"code": "print(42)"}},
        {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_2", "content": run},
        {"type": "text", "text": "I have looked."},
    ]
    asked = a.body("[[text: looked]] [[text: done]]")
    history = [{"role": "assistant", "content": blocks}, {"role": "user", "content": "and now?"}]
    answer = await a.client.messages.create(**{**asked, "messages": [*asked["messages"], *history]})
    assert text_of(answer)
    body = a.received()
    for words in ("it is old", "the harvest was good", "forty-two", "I have looked."):
        assert words in said(body), f"{words!r} did not reach Cortex: {said(body)}"
    return AS_TEXT


async def cache_marks(a: Asked) -> str:
    system = [{"type": "text", "text": f"{a.mark} " + "rule " * 2000, "cache_control": {"type": "ephemeral"}}]
    first, second = [(await a.ask(system=system)).usage for _ in range(2)]
    charged = [record["usage"] for record in a.records()]
    if a.route == "gpt":
        assert "cache_control" not in json.dumps(a.received())
        return NOT
    assert (charged[0]["cache_write"] > 2000, charged[1]["cache_read"] > 2000) == (True, True), charged
    assert second.cache_read_input_tokens == charged[1]["cache_read"]
    return YES if first.cache_creation_input_tokens == charged[0]["cache_write"] else IN_PART


async def cache_mark_of_the_request(a: Asked) -> str:
    """`cache_control` at the top of a request marks its last block."""
    asked = a.body("long " * 2000, cache_control={"type": "ephemeral"})
    for _ in range(2):
        await a.client.messages.create(**asked)
    charged = [record["usage"] for record in a.records()]
    return YES if charged[1]["cache_read"] > 2000 else NOT


async def metadata(a: Asked) -> str:
    await a.ask(metadata={"user_id": "somebody"})
    return YES if "somebody" in json.dumps(a.received()) else NOT


async def threads(a: Asked) -> str:
    """The server would keep the history. The runner of tools asks for it, and goes on without it (case C4)."""
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        asked = a.client.beta.messages.create(**a.body(), extra_body={"thread": thread})
        error = await error_of(asked, BadRequestError)
        refused(error)
        assert error.error_code == "thread_unsupported_request"
    assert a.records() == []
    return NOT


async def _dropped(a: Asked, beta: str, **fields: Any) -> str:
    """Whether a beta's fields are left out of a request that is answered all the same."""
    answer: Any = await a.client.beta.messages.create(**a.body("[[text: ok]]"), betas=[beta], **fields)
    assert text_of(answer) == "ok"
    assert not fields.keys() & a.received().keys()
    return NOT


async def context_management(a: Asked) -> str:
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    return await _dropped(a, "context-management-2025-06-27", context_management=edits)


async def mcp_servers(a: Asked) -> str:
    """Anthropic's servers would call these MCP servers."""
    servers = [{"type": "url", "url": "https://example.com/mcp", "name": "towns"}]
    return await _dropped(a, "mcp-client-2025-11-20", mcp_servers=servers)


async def container(a: Asked) -> str:
    return await _dropped(a, "code-execution-2025-08-25", container="container_1")


async def service_tier(a: Asked) -> str:
    return await _dropped(a, "context-1m-2025-08-07", service_tier="auto", speed="fast")


async def _refused_tool(a: Asked, kind: str, name: str) -> str:
    refused(await error_of(a.ask(tools=[{"type": kind, "name": name}]), BadRequestError), kind)
    assert a.records() == []
    return NOT


async def server_tool(a: Asked) -> str:
    """WebSearch alone, as Claude Code sends it."""
    return await _refused_tool(a, "web_search_20250305", "web_search")


async def client_tool_of_anthropic(a: Asked) -> str:
    """The client runs such a tool, but only Anthropic's service knows its schema (case C5)."""
    return await _refused_tool(a, "bash_20250124", "bash")


async def server_tool_beside_others(a: Asked) -> str:
    tools = [{"type": "web_search_20250305", "name": "web_search"}, TOOL, OTHER_TOOL]
    answer = await a.ask('[[tools: weather {"town": "A"}]]', tools=tools)
    assert calls_of(answer)[0].name == "weather"
    sent = a.received()["tools"]
    assert [tool.get("name") or tool["function"]["name"] for tool in sent] == ["weather", "traffic"]
    return NOT


CHECKS: dict[str, Check] = {
    each.__name__: each
    for each in (
        *(image, image_by_url, text_document, pdf_document, search_result),
        *(tool_result_error, tool_result_image, tool_result_document, results_of_server_tools),
        *(cache_marks, cache_mark_of_the_request, metadata, threads, context_management, mcp_servers, container),
        *(service_tier, server_tool, server_tool_beside_others, client_tool_of_anthropic),
    )
}
