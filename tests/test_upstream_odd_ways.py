"""The real LiteLLM before an upstream that never ends, or that encodes its answer as nobody asked."""

from __future__ import annotations

import http.server
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bench.world import cpu_seconds, megabytes
from tests.checked import serving
from tests.ports import free_port
from tests.set_up import SetUp, wait_until
from tests.user import put

pytestmark = pytest.mark.real

TEXT = "NUMBER" + " word" * 400
CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
DELTA = {"index": 0, "delta": {"role": "assistant", "content": TEXT}, "finish_reason": None}
START = {"type": "message", "role": "assistant", "id": "m", "model": "m", "content": [], "usage": {"input_tokens": 1}}
HEAD: dict[str, list[dict[str, Any]]] = {
    "chat": [],
    "messages": [
        {"type": "message_start", "message": START},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ],
}
HELLO = [{"role": "user", "content": "hello"}]
PIECE: dict[str, dict[str, Any]] = {
    "chat": {**CHUNK, "choices": [DELTA]},
    "messages": {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "NUMBER" + " word" * 400},
    },
}


class Upstream(http.server.ThreadingHTTPServer):
    """In place of Cortex: an endless stream, or the bytes `encoded` with the encoding `br`. `sent` counts its bytes."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.sent, self.encoded, self.status, self.ended = 0, b"", 200, threading.Event()
        super().__init__(("127.0.0.1", port), Answers)


class Answers(http.server.BaseHTTPRequestHandler):
    server: Upstream

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        self.send_header("Content-Type", "text/event-stream")
        if self.server.encoded:
            self.send_header("Content-Encoding", "br")
            self.send_header("Content-Length", str(len(self.server.encoded)))
        self.end_headers()
        if self.server.encoded:
            self.wfile.write(self.server.encoded)
            return
        route = "chat" if "chat" in self.path else "messages"
        try:
            for event in HEAD[route]:
                self.wfile.write(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()))
            name = b"" if route == "chat" else b"event: content_block_delta\n"
            # LiteLLM ends a stream that repeats a piece a hundred times, so that each has its number.
            start, end = (name + b"data: " + json.dumps(PIECE[route]).encode() + b"\n\n").split(b"NUMBER")
            for number in itertools.count():
                self.server.sent += self.wfile.write(b"%b%d%b" % (start, number, end))
                if self.server.ended.is_set():
                    break
        except OSError:
            self.server.ended.set()


@pytest.fixture(scope="module")
def both_routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SetUp, Upstream]]:
    made = SetUp(tmp_path_factory.mktemp("odd"))
    upstream = Upstream(free_port())
    made.environ["SNOWFLAKE_HOST"] = f"http://127.0.0.1:{upstream.server_port}"
    with serving(upstream):
        try:
            made.start_both()
            yield made, upstream
        finally:
            upstream.ended.set()
            made.close()


@pytest.fixture(scope="module", params=["chat", "messages"])
def before(request: pytest.FixtureRequest, both_routes: tuple[SetUp, Upstream]) -> tuple[SetUp, Upstream]:
    """The proxy on this route, with the same upstream."""
    made, _ = both_routes
    provider = {"chat": "openai", "messages": "snowflake"}[request.param]
    followed = made.log("claude_proxy.py").count("models: ")
    if f"model: {provider}/claude-" not in made.config.read_text():
        put(made.folder / ".env", f"CLAUDE_ROUTE={request.param}\n")
        wait_until(lambda: made.log("claude_proxy.py").count("models: ") > followed, 30)
    return both_routes


def wait_until_it_rests(upstream: Upstream, proxy: subprocess.Popen[bytes]) -> None:
    """Wait until the proxy has read nothing and done nothing for three seconds. Before that, what is on its way
    fills the buffers of the sockets, which a busy machine does slowly; and between two large reads it is at work. Fail
    if much more is read than the buffers hold, or if it goes on for a minute."""
    began, rests = time.monotonic(), 0.0
    while rests < 3:
        sent, used, since = upstream.sent, cpu_seconds(proxy), time.monotonic()
        while upstream.sent == sent and cpu_seconds(proxy) - used < 0.1 and rests < 3:
            time.sleep(0.1)
            rests = time.monotonic() - since
        assert upstream.sent < 64 * 2**20, "the upstream is still read"
        assert since - began < 60, "the upstream is still read"


@pytest.mark.keeps("unread-answer")
def test_a_client_that_does_not_read_an_endless_answer_costs_no_memory(before: tuple[SetUp, Upstream]) -> None:
    set_up, upstream = before
    upstream.encoded, upstream.sent = b"", 0
    upstream.ended.clear()
    proxy = set_up.processes["claude_proxy.py"]
    # (So many tokens that the limit of events does not end the answer before.)
    body = {"model": "claude-sonnet-4-5", "max_tokens": 64_000, "stream": True, "messages": HELLO}
    held = megabytes(proxy)
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream(
            "POST", f"{set_up.url}/v1/messages", json=body, headers={"Authorization": f"Bearer {set_up.master_key}"}
        ) as answer,
    ):
        assert answer.status_code == 200
        pieces = answer.iter_bytes(100)  # (if nothing held the iterator, httpx would close the connection)
        assert next(pieces)
        wait_until_it_rests(upstream, proxy)
        assert not upstream.ended.is_set(), "the answer has ended, so nothing was held back"
        assert megabytes(proxy) - held < 64
    assert upstream.ended.wait(30), "the client has left, and the call to Cortex goes on"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "encoded", [b"\x0b\x02\x80text\x03", b"x" * 10_000, b"{}"], ids=["brotli", "no brotli", "JSON"]
)
def test_an_answer_in_an_encoding_that_nobody_asked_for_is_an_error_in_words(
    before: tuple[SetUp, Upstream], encoded: bytes, *, stream: bool
) -> None:
    set_up, upstream = before
    upstream.encoded = encoded
    answer = set_up.ask("hello", stream=stream)
    error = answer.text.partition("event: error")[2] if answer.status_code == 200 else answer.text
    assert answer.status_code in {200, 502, 503, 529}, answer.text
    assert '"error"' in error, answer.text
    assert "Traceback" not in answer.text
    assert set_up.processes["claude_proxy.py"].poll() is None


@pytest.mark.keeps("answer-limit")
def test_a_stream_has_a_limit_of_events_because_litellm_keeps_each(before: tuple[SetUp, Upstream]) -> None:
    set_up, upstream = before
    upstream.encoded = b""
    upstream.ended.clear()
    answer = set_up.ask("hello", stream=True, max_tokens=100)
    assert "more than 1200 events" in answer.text.partition("event: error")[2]
    assert upstream.ended.wait(30)


@pytest.mark.keeps("answer-limit")
def test_a_stream_that_nobody_asked_for_is_an_error_and_none_of_its_words_is_logged(
    before: tuple[SetUp, Upstream],
) -> None:
    set_up, upstream = before
    upstream.encoded = b""
    upstream.ended.clear()
    answer = set_up.ask("hello", stream=False)
    assert answer.status_code == 502
    assert "more than 4 MiB" in answer.text
    assert "word word" not in set_up.log("claude_proxy.py")


@pytest.mark.parametrize("stream", [True, False])
def test_a_status_that_does_not_exist_is_an_error_in_words(before: tuple[SetUp, Upstream], *, stream: bool) -> None:
    set_up, upstream = before
    upstream.encoded, upstream.status = b"{}", 999
    try:
        answer = set_up.ask("hello", stream=stream)
    finally:
        upstream.status = 200
    assert answer.status_code == 502
    assert answer.json()["error"]["message"].startswith("Snowflake Cortex: ")
