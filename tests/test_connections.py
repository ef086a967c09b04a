"""Connections on which nothing is asked: they are bounded, and cost nobody an answer."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from bundle.proxy import connections, request_body
from bundle.proxy.connections import BoundedProtocol, max_connections, raise_descriptor_limit
from bundle.proxy.front_door import MAX_REQUESTS, FrontDoor
from bundle.proxy.server import ProxyServer
from tests.ports import free_port
from tests.set_up import BUNDLE, SetUp

KEY = "sk-the-key-of-this-proxy-0123456789"
HEAD = f"POST /v1/messages/count_tokens HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
BODY = '{"model":"m","messages":[{"role":"user","content":"hello"}]}'


async def talk(port: int, *pieces: str, seconds: float = 5) -> bytes:
    """Send these pieces, one each 0.1 seconds, and return what comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece.encode())
            await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(), seconds)
        return b""
    finally:
        writer.close()


def served(coroutine: Any) -> Any:
    """Run `coroutine(port)` beside a front door on a real port."""

    async def run() -> Any:
        port = free_port()
        door: Any = FrontDoor(lambda *_: None, key=KEY, port=port, config=None)  # type: ignore[arg-type]
        config = uvicorn.Config(
            door, http=BoundedProtocol, port=port, lifespan="off", log_level="error", timeout_keep_alive=75
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            return await coroutine(port)
        finally:
            server.should_exit = True
            await serving

    return asyncio.run(run())


@pytest.mark.keeps("connections")
@pytest.mark.parametrize(
    "pieces",
    [
        [""],
        ["HEAD / HT"],
        [*"HEAD / HTTP/1.1"],  # a byte now and then does not help
        ["HEAD / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n", *"HEAD / HTTP/1.1"],
        ["POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n", *"a body without the key"],
    ],
)
def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch, pieces: list[str]) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)

    async def attack(port: int) -> float:
        began = time.monotonic()
        await talk(port, *[piece.format(port=port) for piece in pieces])
        return time.monotonic() - began

    assert served(attack) < 4.5


@pytest.mark.keeps("connections")
def test_a_body_that_does_not_come_is_a_408_that_claude_code_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.3)

    async def attack(port: int) -> bytes:
        head = f"{HEAD}Host: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: 100\r\n\r\n"
        return await talk(port, head, "{")

    answer = served(attack)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"x-should-retry" not in answer


@pytest.mark.keeps("connections")
def test_an_open_connection_between_two_requests_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)

    async def wait(port: int) -> bytes:
        head, body = f"{HEAD}Host: 127.0.0.1:{port}\r\n", BODY
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n{body}"
        return await talk(port, whole, *[""] * 6, whole.replace("\r\n", "\r\nConnection: close\r\n", 1))

    assert served(wait).count(b"input_tokens") == 2


@pytest.mark.keeps("connections")
def test_the_oldest_idle_connection_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)

    async def attack(port: int) -> tuple[bytes, bytes]:
        body = BODY
        working = f"{HEAD}Host: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        first = asyncio.create_task(talk(port, working, *[""] * 10, body))
        await asyncio.sleep(0.3)  # it is older than the idle ones, and waits for its body
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        try:
            return await talk(port, working + body), await first
        finally:
            for _, writer in idle:
                writer.close()

    for answer in served(attack):
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Content-Length: 1000000000"])
@pytest.mark.keeps("connections")
def test_an_endless_body_without_the_key_is_answered_and_not_parsed(framing: str) -> None:
    chunks = b"1\r\nx\r\n" * 10_000

    async def attack(port: int) -> tuple[bytes, bytes, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n{framing}\r\n\r\n".encode())
        refused, began = await reader.read(1000), time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 10:
                writer.write(chunks)
                await writer.drain()
        writer.close()
        seconds = time.monotonic() - began
        return refused, await talk(port, f"HEAD / HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n"), seconds

    refused, alive, seconds = served(attack)
    assert refused.startswith(b"HTTP/1.1 401")
    assert alive.startswith(b"HTTP/1.1 200")
    assert seconds < 8  # the connection has ended


@pytest.mark.keeps("connections")
def test_a_connection_goes_on_after_a_refused_request_whose_body_comes_late() -> None:
    async def ask(port: int) -> bytes:
        head = f"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 2\r\n\r\n"
        return await talk(port, head, "{}", head.replace("\r\n", "\r\nConnection: close\r\n", 1), "{}")

    assert served(ask).count(b"HTTP/1.1 401") == 2


def test_more_requests_than_there_is_room_for_get_an_answer_that_is_repeated() -> None:
    async def ask() -> tuple[list[Any], list[Any]]:
        door: Any = FrontDoor(lambda *_: None, key=KEY, port=1, config=None)  # type: ignore[arg-type]
        headers = {"host": "127.0.0.1:1", "authorization": f"Bearer {KEY}", "content-type": "application/json"}
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/messages/count_tokens"}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
        body = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await body.wait()
            return {"type": "http.request", "body": BODY.encode()}

        sent: list[list[Any]] = [[] for _ in range(MAX_REQUESTS + 1)]

        async def one(messages: list[Any]) -> None:
            async def send(message: Any) -> None:
                messages.append(message)

            await door(dict(scope), receive, send)

        tasks = [asyncio.create_task(one(messages)) for messages in sent]
        await tasks[-1]
        body.set()
        await asyncio.gather(*tasks)
        return [messages[0]["status"] for messages in sent], sent[-1]

    statuses, last = asyncio.run(ask())
    assert statuses == [*[200] * MAX_REQUESTS, 529]
    assert b"overloaded_error" in last[1]["body"]
    assert not [name for name, _ in last[0]["headers"] if name == b"x-should-retry"]


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("descriptors")
def test_the_limit_of_descriptors_is_raised_and_the_connections_stay_well_below_it() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert max_connections() == 64
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(connections.DESCRIPTORS, hard), hard)
    assert MAX_REQUESTS * 2 < max_connections() <= connections.MAX_CONNECTIONS


def test_the_server_uses_this_protocol_and_no_websocket() -> None:
    config = ProxyServer(lambda *_: None, SimpleNamespace(proxy_port=1, folder=BUNDLE), lambda: None).config  # type: ignore[arg-type]
    assert (config.http, config.ws) == (BoundedProtocol, "none")


@pytest.mark.keeps("connections")
@pytest.mark.real
@pytest.mark.usefixtures("descriptors")
def test_1100_idle_connections_lock_nobody_out(set_up: SetUp) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    set_up.before_exec = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    set_up.start_both()
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(socket.create_connection(("127.0.0.1", set_up.port), timeout=10))
        assert set_up.ask("hello").status_code == 200
        assert set_up.ask("hello", stream=True).status_code == 200
    assert "ready on" in set_up.log("claude_proxy.py").splitlines()[-1]
