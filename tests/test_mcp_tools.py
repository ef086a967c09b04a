"""Sessions with MCP servers whose tools have odd schemas: Cortex answers, and the tools can be called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.claude_home import on_messages_route, with_model
from tests.odd_schemas import PARAMETERS, with_property
from tests.session import ask, call
from tests.set_up import CLAUDE, SetUp

pytestmark = pytest.mark.real

GPT, SONNET = "openai-gpt-5.2", "claude-sonnet-4-6"
# Claude Code takes no tool of a server where a property is no object, so such a one is deeper here. It also leaves out
# tools with alternatives at the top.
PUBLISHED = {
    f"t{number}": with_property(odd if isinstance(odd, dict) else {"properties": {"y": odd}})
    for number, (odd, _) in enumerate(PARAMETERS.values())
}
PUBLISHED["top"] = {"type": "object", "properties": {"default": {"type": "array"}}, "enum": [], "not": {"type": "null"}}
# What other clients may send.
ODD: dict[str, Any] = {f"t{number}": with_property(odd) for number, (odd, _) in enumerate(PARAMETERS.values())}
ODD |= {
    "top": PUBLISHED["top"],
    "top_any": {"type": "any", "properties": None},
    "top_choice": {"anyOf": [{"$ref": "#/definitions/A"}], "definitions": {"A": with_property(None)}},
}
SERVER = Path(__file__).with_name("mcp_server.py")


@pytest.fixture(scope="module", params=["chat", "messages", "gpt"])
def model(request: pytest.FixtureRequest, running: SetUp) -> Iterator[str]:
    """The model of a Claude row on either route, and of a GPT row."""
    if request.param == "chat":
        yield SONNET
        return
    edits: dict[str, Callable[[str], str]] = {"messages": on_messages_route, "gpt": lambda text: with_model(text, GPT)}
    with running.template(edits[request.param]):
        yield GPT if request.param == "gpt" else SONNET


def names(body: dict[str, Any]) -> set[str]:
    return {tool.get("function", tool)["name"] for tool in body["tools"]}


def tools(named: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "description": "does it", "input_schema": schema} for name, schema in named.items()]


def session_with_odd_tools(running: SetUp, model: str, claude: Path = CLAUDE) -> tuple[str, list[dict[str, Any]]]:
    """What Claude Code says at the end of a session with all odd tools, and the bodies that came to Cortex."""
    published = running.folder / "tools.json"
    published.write_text(json.dumps([{"name": name, "inputSchema": schema} for name, schema in PUBLISHED.items()]))
    server = {"command": sys.executable, "args": [str(SERVER), str(published)]}
    options = ["--mcp-config", json.dumps({"mcpServers": {"odd": server}}), "--strict-mcp-config"]
    options += ["--model", model, "--allowedTools", "mcp__odd", "--output-format", "json"]
    prompt = ask([call("mcp__odd__t0", x=1), call("mcp__odd__t9", x="two")], [call("mcp__odd__t4", x=[3])], "done")
    before = len(running.stub.requests)
    done = running.run(str(claude), "-p", prompt, *options, seconds=120, **running.claude_env())
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    records = running.stub.requests[before:]
    assert {record["status"] for record in records} == {200}, [record.get("refusal") for record in records]
    return str(result["result"]), [record["body"] for record in records]


def test_a_session_with_every_odd_tool_of_mcp_servers_works(running: SetUp, model: str) -> None:
    said, bodies = session_with_odd_tools(running, model)
    assert said == "done"
    heard = json.dumps(bodies[-1]["messages"])
    assert all(
        words in heard.replace("\\", "") for words in ('t0 got {"x": 1}', 't9 got {"x": "two"}', 't4 got {"x": [3]}')
    )
    sent = [body for body in bodies if body.get("tools")]
    assert len({json.dumps(body["tools"]) for body in sent}) == 1, "other bytes on another turn"
    assert {f"mcp__odd__{name}" for name in PUBLISHED} <= names(sent[0])


def test_every_odd_tool_of_any_client_reaches_cortex_and_the_log_says_what_was_changed(
    running: SetUp, model: str
) -> None:
    # (docs/cortex.md#chat-tool-schemas: one bad tool refuses all, so one request tries them all.)
    answer = running.ask("hello", model=model, tools=tools(ODD), context_management={"edits": []})
    assert answer.status_code == 200, answer.text
    assert names(running.stub.requests[-1]["body"]) == ODD.keys()
    log = running.log("claude_proxy.py")
    assert log.count("adapted for Cortex: schema keyword exclusiveMinimum repaired, tool t0\n") == 1


def test_a_tools_name_that_no_model_accepts_is_refused_once_and_named(running: SetUp, model: str) -> None:
    before = len(running.stub.requests)
    answer = running.ask("hello", model=model, tools=tools({"good": {}, "catalog.get": {}}))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("tools.1.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'")
    assert "'catalog.get'. Rename this tool" in error["message"]
    assert len(running.stub.requests) == before


def test_gpt_takes_128_tools_and_the_129th_is_refused_with_the_remedy(running: SetUp, model: str) -> None:
    many = tools({f"t{number}": {} for number in range(129)})
    answer = running.ask("hello", model=model, tools=many)
    if model != GPT:
        assert answer.status_code == 200, answer.text
        return
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    for words in ("This request has 129 tools", "at most 128", "/mcp", "/model"):
        assert words in answer.json()["error"]["message"]
    assert running.ask("hello", model=model, tools=many[:128]).status_code == 200
