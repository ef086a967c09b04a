"""The body of a request: what of it passes the front door, and what each refusal says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bundle.cortex.messages import WIRE_FIELDS
from bundle.proxy.front_door import MOST_FIELDS_LOGGED, FrontDoor
from bundle.proxy.live_config import LiveConfig
from bundle.proxy.request_body import FIELDS, MAX_DEPTH, BodyError, estimate_tokens, parse

COUNT = "/v1/messages/count_tokens"
KEY = "sk-the-key-of-this-proxy-0123456789"
GOOD: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
# Names that LiteLLM takes from a body as its own options, and one that no release has.
OPTIONS = [
    *("headers", "extra_headers", "extra_body", "extra_query", "api_base", "base_url", "api_key", "api_version"),
    *("user_config", "model_list", "fallbacks", "context_window_fallbacks", "mock_response", "mock_tool_calls"),
    *(
        "timeout",
        "stream_timeout",
        "request_timeout",
        "num_retries",
        "max_retries",
        "litellm_params",
        "litellm_metadata",
    ),
    *("custom_llm_provider", "cache", "caching", "guardrails", "tags", "user", "proxy_server_request", "secret_fields"),
    *("deployment_id", "model_info", "router_settings_override", "mcp_servers", "container", "metadata", "option_9"),
]


class Passed:
    """LiteLLM's application, of which only what it was given is of interest."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self.body = dict(scope), (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def through_the_door(
    *bodies: bytes, path: str = "/v1/messages", headers: Sequence[tuple[bytes, bytes]] = (), query: bytes = b""
) -> tuple[Passed, int, dict[str, Any]]:
    """What LiteLLM gets of the last request, and the status and the answer for it."""
    passed, sent = Passed(), list[Any]()
    door: Any = FrontDoor(passed, key=KEY, port=8001, config=LiveConfig(Path("/no/such/file")))
    good = [(b"host", b"127.0.0.1:8001"), (b"authorization", b"Bearer " + KEY.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": query}
    scope["headers"] = [*good, (b"content-type", b"application/json"), *headers]

    async def run() -> None:
        for body in bodies:
            sent.clear()

            messages = iter([{"type": "http.request", "body": body}])

            async def receive(messages: Iterator[Any] = messages) -> Any:
                return next(messages, None) or await asyncio.Event().wait()  # the client stays

            async def send(message: Any) -> None:
                sent.append(message)

            await door(dict(scope), receive, send)

    asyncio.run(run())
    return passed, sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.keeps("known-fields")
@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_of_litellm_passes_in_a_body(name: str) -> None:
    value = {"user_id": "x", "api_base": "http://evil.example"}
    passed, status, _ = through_the_door(json.dumps({**GOOD, name: value}).encode())
    assert status == 200
    assert json.loads(passed.body) == GOOD
    assert passed.scope["parsed_body"] == (tuple(GOOD), GOOD)


@pytest.mark.keeps("known-fields")
def test_no_option_of_litellm_passes_in_a_header_or_in_the_query() -> None:
    headers = [(b"x-litellm-timeout", b"1"), (b"x-litellm-api-key", b"x"), (b"anthropic-beta", b"one")]
    passed, _, _ = through_the_door(json.dumps(GOOD).encode(), headers=headers, query=b"beta=true&model=x")
    assert passed.scope["query_string"] == b""
    assert {name for name, _ in passed.scope["headers"]} == {
        *(b"host", b"authorization", b"content-type", b"anthropic-beta")
    }


def test_a_body_with_known_fields_passes_as_it_is() -> None:
    raw = json.dumps({name: GOOD.get(name) for name in sorted(FIELDS)}, indent=1).encode()
    assert through_the_door(raw)[0].body == raw
    assert FIELDS >= WIRE_FIELDS


@pytest.mark.keeps("log-limit")
def test_a_dropped_field_is_logged_once_and_strange_names_cannot_fill_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    strange = {f"field\n\x1b[2J{number}{'x' * 10_000}": 1 for number in range(1000)}
    through_the_door(*[json.dumps({**GOOD, "speed": 1, "metadata": {}}).encode()] * 3)
    assert capsys.readouterr().out == "adapted for Cortex: field speed dropped\n"
    through_the_door(*[json.dumps({**GOOD, **strange}).encode()] * 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= MOST_FIELDS_LOGGED
    assert all(line.isprintable() and len(line) < 200 for line in lines)


HALVES = [rb"\ud83d", rb"\uDE00", rb"\ud83d\ud83d", b"\xed\xa0\xbd", rb"\ude00\ud83d", rb"\\\ud83d"]


@pytest.mark.keeps("half-characters")
@pytest.mark.parametrize("half", HALVES)
def test_half_a_character_is_replaced_in_texts_and_in_names(half: bytes) -> None:
    raw = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"cut %b","%b":{"x":["%b"]}}]}' % (
        half,
        half,
        half,
    )
    passed, status, _ = through_the_door(raw)
    assert status == 200
    text = passed.body.decode()  # it is whole UTF-8
    assert "cut" in text
    assert "\ufffd" in json.loads(text)["messages"][0]["content"]
    json.dumps(json.loads(text), ensure_ascii=False).encode()


@pytest.mark.keeps("half-characters")
def test_whole_characters_and_escaped_backslashes_stay() -> None:
    content = "smile \U0001f600, Hangul \ud7a3, a path C:\\ud83d\\x, the words \\ud83d"
    raw = json.dumps({**GOOD, "system": content, "messages": [{"role": "user", "content": "\ud83d"}]}).encode()
    assert json.loads(through_the_door(raw)[0].body)["system"] == content


@pytest.mark.keeps("bad-json")
@pytest.mark.parametrize("path", ["/v1/messages", COUNT])
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"messages":' + b"[" * 200 + b"]" * 200 + b"}", "nested more than 100 levels"),
        (b'{"messages":' + b'[{"a":' * 60 + b"1" + b"}]" * 60 + b"}", "nested more than 100 levels"),
        (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 100 levels"),
        (b'{"a":' * 100_000, "nested more than 100 levels"),
        (b'{"messages":[}', "not JSON"),
        (b'{"messages":NaN}', "not JSON"),
        (b'{"messages":1E9999}', "not JSON"),
        (b'{"messages":"\xff"}', "not JSON"),
        (json.dumps(GOOD).encode("utf-16"), "not JSON"),
        (b"[]", "not a JSON object"),
        (b"", "not JSON"),
    ],
)
def test_a_body_that_is_no_request_is_a_400_that_says_so(path: str, raw: bytes, words: str) -> None:
    passed, status, answer = through_the_door(raw, path=path)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert words in answer["error"]["message"]
    assert passed.scope == {}


def test_the_deepest_body_that_passes_has_100_levels() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    parse(nested(MAX_DEPTH))
    with pytest.raises(BodyError, match="more than 300000 objects"):
        parse(b'{"messages": [' + b"{}," * 300_000 + b"{}]}")
    with pytest.raises(BodyError):
        parse(nested(MAX_DEPTH + 1))


CUSTOM = {"name": "Bash", "input_schema": {"type": "object"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
OWN = {"type": "bash_20250124", "name": "bash"}


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([SEARCH], "not have this tool (web_search_20250305). Tell the user so, and do without it."),
        ([OWN], "(bash_20250124). Your program runs it: give it as a custom tool of that name (bash), with an input_"),
        ([{"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}], "str_replace_based_edit_tool), "),
        ([{"type": "memory_20250818", "name": "memory"}, SEARCH], "(memory), with an input_schema. Tell the user so,"),
        ([{"type": "computer_20251124"}], "(computer_20251124), with an input_schema."),
        ([{"type": "mcp_toolset", "mcp_server_name": "x"}, {"type": "of_2030\n"}], "(mcp_toolset, of_2030). Tell the"),
    ],
)
def test_tools_that_only_anthropic_has_are_refused_in_words(tools: list[Any], words: str) -> None:
    passed, status, answer = through_the_door(json.dumps({**GOOD, "tools": tools}).encode())
    assert (status, passed.scope) == (400, {})
    assert words in answer["error"]["message"]


@pytest.mark.parametrize("tools", [[SEARCH, OWN, CUSTOM], [{**CUSTOM, "type": "custom"}], [], None])
def test_next_to_a_custom_tool_a_request_with_them_passes(tools: Any) -> None:
    assert through_the_door(json.dumps({**GOOD, "tools": tools}).encode())[1] == 200
    assert through_the_door(json.dumps({**GOOD, "tools": [SEARCH]}).encode(), path=COUNT)[1] == 200


@pytest.mark.parametrize("path", ["/v1/messages", COUNT])
@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}, "x", {}])
def test_a_thread_gets_the_code_on_which_anthropic_s_sdks_send_the_whole_conversation(path: str, thread: Any) -> None:
    # After a pause, the SDK continues a thread with no messages at all.
    raw = json.dumps({**GOOD, "messages": [], "thread": thread}).encode()
    passed, status, answer = through_the_door(raw, path=path)
    assert (status, passed.scope, answer["error"]["type"]) == (400, {}, "invalid_request_error")
    assert answer["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert through_the_door(json.dumps({**GOOD, "thread": None}).encode(), path=path)[1] == 200


@pytest.mark.keeps("bad-json")
@pytest.mark.parametrize("path", ["/v1/messages", COUNT])
@pytest.mark.parametrize("wrong", [{"messages": [1]}, {"system": 5}, {"tools": "no"}, {"thinking": {"type": "x"}}])
def test_a_request_of_another_shape_is_a_400_that_names_the_field(path: str, wrong: dict[str, Any]) -> None:
    passed, status, answer = through_the_door(json.dumps({**GOOD, **wrong}).encode(), path=path)
    assert (status, answer["error"]["type"], passed.scope) == (400, "invalid_request_error", {})
    assert answer["error"]["message"].startswith(next(iter(wrong)))


def test_an_estimate_counts_the_text_of_a_document_and_not_the_bytes_of_an_image() -> None:
    def counted(*content: Any) -> int:
        return estimate_tokens({"messages": [{"role": "user", "content": [*content]}]})

    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "word " * 7000}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 10**6}}
    assert 10_000 <= counted(text) <= 10_050
    assert 1_600 <= counted(image) <= 1_650
    assert counted({"type": "tool_use", "input": {"type": "image", "source": "x" * 3500}}) > 1_000
