"""The front door on the real port: nobody else gets in, not even to another route of LiteLLM."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.proxy.front_door import LITELLM_ROUTES, OWN_ROUTES
from bundle.proxy.request_body import MAX_BODY_BYTES
from tests.set_up import BUNDLE, CLAUDE, TOKEN, SetUp

# --------------------------------------------------------------------------------------------------- over the real port


pytestmark = pytest.mark.real


def exchange(set_up: SetUp, *lines: str, body: bytes = b"", seconds: float = 5) -> bytes:
    """Send these lines as a request, and return the bytes of the answer."""
    with socket.create_connection(("127.0.0.1", set_up.port), timeout=seconds) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        received = b""
        with contextlib.suppress(TimeoutError):
            while piece := connection.recv(65536):
                received += piece
                connection.settimeout(1)  # what is left of an answer follows at once
        return received


def send(set_up: SetUp, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {set_up.master_key}", **more.pop("headers", {})}
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.request(method, set_up.url + path, headers=headers, **more)


@pytest.mark.keeps("loopback-only")
def test_it_listens_on_loopback_only_whatever_host_says(running: SetUp) -> None:
    running.assert_on_loopback_only()  # with HOST set: test_host_in_the_environment_opens_the_port_to_nobody


@pytest.mark.keeps("no-web-page")
def test_a_page_s_preflight_gets_no_permission(running: SetUp) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = send(running, "OPTIONS", "/v1/messages", headers=asked)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.keeps("key-is-needed")
@pytest.mark.parametrize(
    ("status", "headers", "more"),
    [
        (401, {"Authorization": "Bearer wrong"}, {"json": {}}),
        (401, {"Authorization": ""}, {"json": {}}),
        (403, {"Host": "evil.example"}, {"json": {}}),
        (403, {"Origin": "https://evil.example"}, {"json": {}}),
        (415, {"Content-Type": "text/plain"}, {"content": b"{}"}),
        (400, {"Content-Type": "application/json"}, {"content": b"[" * 100_000}),
        (400, {"Content-Type": "application/json"}, {"content": b"null"}),
        (400, {"Content-Type": "application/json"}, {"content": b""}),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_refused_request_gets_anthropic_s_format_is_final_and_does_not_reach_cortex(
    running: SetUp, path: str, status: int, headers: dict[str, str], more: dict[str, Any]
) -> None:
    before = len(running.stub.requests)
    answer = send(running, "POST", path, headers=headers, **more)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    body = answer.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["request_id"] == answer.headers["request-id"]
    assert (body["type"], set(body["error"])) == ("error", {"type", "message"})
    assert running.master_key not in answer.text
    assert len(running.stub.requests) == before


def test_claude_code_shows_the_refusal_of_a_wrong_key_at_once(running: SetUp) -> None:
    # When a refusal is not final, Claude Code tries again for minutes, and this run would take too long.
    done = running.run(
        str(CLAUDE), "-p", "hello", seconds=60, **{**running.claude_env(), "ANTHROPIC_AUTH_TOKEN": "sk-wrong"}
    )
    assert "The key does not match this proxy's" in done.stdout


@pytest.mark.keeps("no-web-page")
def test_a_websocket_is_closed_before_it_opens(running: SetUp) -> None:
    for path in ("/v1/messages", "/v1/realtime", "/"):
        answer = exchange(
            running,
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{running.port}",
            f"Authorization: Bearer {running.master_key}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 404"))


@pytest.mark.keeps("few-routes")
@pytest.mark.parametrize(
    "lines",
    [
        ["GET /v1/models HTTP/1.1", "Host: 127.0.0.1:{port}", "Host: evil.example"],
        ["GET http://evil.example/v1/models HTTP/1.1", "Host: 127.0.0.1:{port}"],
        ["GET /v1/models HTTP/1.0"],
        ["CONNECT evil.example:443 HTTP/1.1", "Host: 127.0.0.1:{port}"],
        ["TRACE /v1/models HTTP/1.1", "Host: 127.0.0.1:{port}"],
        ["PRI * HTTP/2.0", "", "SM"],
    ],
)
def test_a_strange_request_is_refused_even_with_the_key(running: SetUp, lines: list[str]) -> None:
    head = [line.format(port=running.port) for line in lines]
    answer = exchange(running, *head, f"Authorization: Bearer {running.master_key}", "Connection: close", seconds=2)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert b'"data"' not in answer


SHOW_ROUTES = """
import gc, json, os
gc.disable()  # a quarter of the time of the import
from bundle.proxy.server import LITELLM_ENVIRONMENT
os.environ.update(LITELLM_ENVIRONMENT)
from litellm.proxy.proxy_server import app
from litellm.proxy._lazy_features import LAZY_FEATURES
def found(routes):
    for route in routes:
        yield from found(getattr(getattr(route, "original_router", None), "routes", None) or [])
        if getattr(route, "path", None) is not None:
            yield route.path, sorted(getattr(route, "methods", None) or [])
# LiteLLM imports these routes at the first request.
lazy = [(path, []) for feature in LAZY_FEATURES for path in (*feature.path_prefixes, *feature.path_suffixes)]
print("ROUTES" + json.dumps([*found(app.router.routes), *lazy]))
"""


@pytest.fixture(scope="module")
def litellm_routes() -> list[tuple[str, list[str]]]:
    """All routes of LiteLLM's own application, as it is installed."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_ROUTES], cwd=BUNDLE, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    routes: list[tuple[str, list[str]]] = json.loads(done.stdout.rpartition("ROUTES")[2])
    return routes


@pytest.mark.keeps("few-routes")
def test_no_other_route_of_litellm_is_served_not_even_with_the_key(
    running: SetUp, litellm_routes: list[tuple[str, list[str]]]
) -> None:
    paths = {path for path, _ in litellm_routes}
    assert {"/key/generate", "/model/new", "/health", "/chat/completions", "/v1/messages"} <= paths
    assert len(paths) > 300
    before = len(running.stub.requests)
    served = set()
    headers = {"Authorization": f"Bearer {running.master_key}"}
    with httpx.Client(trust_env=False, timeout=30, headers=headers, base_url=running.url) as client:
        for path, methods in litellm_routes:
            for method in sorted({*methods, "GET", "POST"}):
                answer = client.request(method, re.sub(r"\{[^}]*\}", "x", path), json={} if method == "POST" else None)
                if answer.status_code != 404:
                    served.add((method, path))
    # LiteLLM's releases differ in how many of our own paths they have too.
    assert served == {(method, path) for method, path in LITELLM_ROUTES | OWN_ROUTES if path in paths - {"/"}}
    assert served >= LITELLM_ROUTES
    assert len(running.stub.requests) == before


@pytest.mark.keeps("few-routes")
@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/ui", "/ui/", "/fallback/login", "/metrics"])
def test_no_page_for_a_browser_is_served(running: SetUp, path: str) -> None:
    assert send(running, "GET", path).status_code == 404


# -------------------------------------------------------------------------------------------------------------- bounded

OVER = MAX_BODY_BYTES + 1


def pieces(size: int) -> Iterator[bytes]:
    yield b'{"messages":"'
    for _ in range(size // 65536 + 1):
        yield b"a" * 65536
    yield b'"}'


@pytest.mark.keeps("body-limit")
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_more_than_64_mib_is_refused_in_words(running: SetUp, announced: bool) -> None:
    content: Any = b"".join(pieces(OVER)) if announced else pieces(OVER)
    answer = send(running, "POST", "/v1/messages", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "request_too_large"
    assert "/compact" in answer.json()["error"]["message"]


@pytest.mark.keeps("key-is-needed")
def test_without_the_key_not_a_byte_of_the_body_is_read(running: SetUp) -> None:
    head = [
        "POST /v1/messages HTTP/1.1",
        f"Host: 127.0.0.1:{running.port}",
        "Content-Type: application/json",
        "Content-Length: 1000000",
    ]
    assert exchange(running, *head, seconds=2).startswith(b"HTTP/1.1 401")


@pytest.mark.keeps("body-limit")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_bodies_that_are_refused_leave_no_memory_behind(running: SetUp) -> None:
    pid = running.processes["claude_proxy.py"].pid

    def resident() -> int:
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) // 1024

    send(running, "POST", "/v1/messages", content=pieces(OVER), headers={"Content-Type": "application/json"})
    before = resident()
    for _ in range(8):
        send(running, "POST", "/v1/messages", content=pieces(OVER), headers={"Content-Type": "application/json"})
    assert resident() - before < 40


@pytest.mark.parametrize("stream", [True, False])
def test_esc_before_the_first_word_is_no_error(running: SetUp, stream: bool) -> None:
    log, before = len(running.log("claude_proxy.py")), len(running.stub.requests)
    running.stub.fault("slow_start", times=1, seconds=2)
    asked = {"model": "claude-sonnet-4-5", "max_tokens": 9, "stream": stream}
    asked["messages"] = [{"role": "user", "content": "hello"}]
    headers = {"Authorization": f"Bearer {running.master_key}"}
    with httpx.Client(trust_env=False, timeout=1) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{running.url}/v1/messages", json=asked, headers=headers)
    running.stub.wait_for(lambda record: record["number"] >= before and record.get("done"), 10)
    assert running.ask("are you well?").status_code == 200
    assert running.log("claude_proxy.py")[log:] == ""


@pytest.mark.keeps("errors-without-tokens")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["bad_token", "html", "broken_json", "internal", "drop", "cut"])
def test_no_token_is_in_the_body_of_an_error(running: SetUp, fault: str, stream: bool) -> None:
    running.stub.fault(fault)
    try:
        answer = running.ask("hello", stream=stream)
    finally:
        running.stub.clear_faults()
    assert "error" in answer.text
    assert not TOKEN.search(answer.text)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("us.anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        ("anthropic/claude-sonnet-4.5", "claude-sonnet-4-5"),
        ("haiku", "claude-haiku-4-5"),
        ("opus", "claude-opus-5"),  # what `claude --model 'opus[1m]'` asks for
    ],
)
def test_a_name_of_another_provider_is_answered(running: SetUp, asked: str, answered: str) -> None:
    assert running.ask("hello", asked).status_code == 200
    assert running.stub.requests[-1]["body"]["model"] == answered
