"""An upstream that dies, hangs, sends without end, or sends elsewhere, through the real proxy on both routes."""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.set_up import SetUp, copy_bundle, events, wait_until
from tests.upstream import CHAT_END, CHAT_TEXT, END, MESSAGES_END, MESSAGES_TEXT, RawUpstream, chunk, head

pytestmark = pytest.mark.real

SHORT = {"SILENCE_SECONDS": 2, "WHOLE_ANSWER_SECONDS": 3, "CONNECT_SECONDS": 1}
ROWS = """\
  - { model_name: chat, litellm_params: { <<: *cortex, model: openai/claude-a }, model_info: { <<: *info } }
  - { model_name: messages, litellm_params: { <<: *cortex, model: snowflake/claude-b }, model_info: { <<: *info } }

litellm_settings:"""
TEXT = {"chat": CHAT_TEXT, "messages": MESSAGES_TEXT}
NOT_STREAMED = {
    "chat": b'{"choices":[{"message":{"role":"assistant","content":"one"}}]}',
    "messages": b'{"id":"m","type":"message","role":"assistant","content":[{"type":"text","text":"one"}],"usage":{}}',
}
WHOLE = {"chat": CHAT_TEXT + CHAT_END, "messages": MESSAGES_TEXT + MESSAGES_END}
TCP_REPAIR = 19
ROUTES = pytest.mark.parametrize("route", ["chat", "messages"])
STREAMED = pytest.mark.parametrize("stream", [True, False])


class Proxy(SetUp):
    """The proxy of a bundle whose bounds on time are seconds, in front of an upstream of raw bytes."""

    def __init__(self, folder: Path) -> None:
        bundle = copy_bundle(folder / "bundle")
        file = bundle / "bundle" / "proxy" / "upstream.py"
        if file.exists():
            text = file.read_text()
            for name, seconds in SHORT.items():
                text = re.sub(rf"(?m)^{name} = \d+", f"{name} = {seconds}", text)
            file.write_text(text)
        server = bundle / "bundle" / "proxy" / "server.py"
        server.write_text(server.read_text().replace('"AIOHTTP_TCP_KEEPIDLE": "30"', '"AIOHTTP_TCP_KEEPIDLE": "1"'))
        template = bundle / "litellm_config.template.yaml"
        template.write_text(template.read_text().replace("\nlitellm_settings:", f"\n{ROWS}", 1))
        super().__init__(folder, bundle)
        self.upstream = RawUpstream()
        self.environ["SNOWFLAKE_HOST"] = self.upstream.url

    def asked(self, route: str, *, stream: bool) -> httpx.Response:
        return self.ask("hello", route, stream=stream)

    def close(self) -> None:
        super().close()
        self.upstream.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path_factory.mktemp("upstream"))
    try:
        proxy.start("auto_refresh.py")
        proxy.start_proxy()
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def proxy(made: Proxy) -> Iterator[Proxy]:
    made.upstream.requests.clear()
    yield made
    made.upstream.answer = lambda _: None
    wait_until(lambda: made.upstream.open == 0, 5)  # no test leaves a connection behind


def error_of(answer: httpx.Response) -> str:
    """The message of an error that Claude Code retries."""
    if answer.status_code == 200:
        error = events(answer)[-1]
    else:
        assert answer.status_code >= 500, answer.text
        assert "x-should-retry" not in answer.headers
        error = answer.json()
    assert error["type"] == "error"
    return str(error["error"]["message"])


# ---------------------------------------------------------------------------------------------------------------- death


@pytest.mark.keeps("silence")
@ROUTES
@STREAMED
def test_an_upstream_that_dies_before_its_head_is_an_error_that_claude_code_retries(
    proxy: Proxy, route: str, stream: bool
) -> None:
    proxy.upstream.answer = proxy.upstream.silent
    began = time.monotonic()
    message = error_of(proxy.asked(route, stream=stream))
    assert f"it sent nothing for {2 if stream else 3} seconds" in message
    assert f"make -C {proxy.bundle} doctor" in message
    assert time.monotonic() - began < 10
    assert len(proxy.upstream.requests) == 1


@pytest.mark.keeps("silence")
@ROUTES
@STREAMED
def test_an_upstream_that_dies_in_the_middle_is_an_error_that_claude_code_retries(
    proxy: Proxy, route: str, stream: bool
) -> None:
    def answer(connection: socket.socket) -> None:
        if stream:
            connection.sendall(head() + chunk(TEXT[route]))
        else:
            connection.sendall(head(kind="application/json", Content_Length=1000) + b'{"id":')
        proxy.upstream.silent(connection)

    proxy.upstream.answer = answer
    began = time.monotonic()
    assert f"it sent nothing for {2 if stream else 3} seconds" in error_of(proxy.asked(route, stream=stream))
    assert time.monotonic() - began < 10
    assert len(proxy.upstream.requests) == 1


@ROUTES
def test_a_connection_that_ended_without_a_fin_is_noticed_before_the_bound_on_silence(proxy: Proxy, route: str) -> None:
    refused: list[OSError] = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(head() + chunk(TEXT[route]))
        time.sleep(0.2)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # from now on a close sends nothing
        except OSError as error:
            refused.append(error)

    proxy.upstream.answer = answer
    message = error_of(proxy.asked(route, stream=True))
    if refused:
        pytest.skip(f"needs root on Linux: {refused[0]}")
    assert "reset by peer" in message or "not completed" in message
    assert len(proxy.upstream.requests) == 1


@pytest.mark.keeps("silence")
@ROUTES
def test_a_host_that_takes_no_connection_is_given_up_soon(proxy: Proxy, route: str) -> None:
    with proxy.upstream.full():
        began = time.monotonic()
        assert "no connection within 1 seconds" in error_of(proxy.asked(route, stream=True))
        assert time.monotonic() - began < 8


@pytest.mark.keeps("silence")
@ROUTES
def test_an_upstream_that_dies_while_a_large_request_is_sent_is_given_up_too(proxy: Proxy, route: str) -> None:
    proxy.upstream.is_deaf = True
    try:
        began = time.monotonic()
        message = error_of(proxy.ask("x" * 12_000_000, route, stream=True))
        took = time.monotonic() - began
    finally:
        proxy.upstream.is_deaf = False
    assert "it sent nothing for 2 seconds" in message
    assert took < 20


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's list of connections")
@ROUTES
def test_connections_to_cortex_are_probed(proxy: Proxy, route: str) -> None:
    proxy.upstream.answer = proxy.upstream.silent
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(proxy.asked, route, stream=False)
        wait_until(lambda: proxy.upstream.requests, 10)
        time.sleep(0.5)
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        timers = {row[5][:2] for row in rows if int(row[2].split(":")[1], 16) == proxy.upstream.port and row[3] == "01"}
        answer.result()
    assert timers == {"02"}  # the timer of keep-alive


# ----------------------------------------------------------------------------------------------------------------- size


@pytest.mark.keeps("answer-limit")
@ROUTES
@STREAMED
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/html"])
def test_of_an_endless_error_little_is_read(proxy: Proxy, route: str, stream: bool, kind: str) -> None:
    sent = 0

    def answer(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(head("400 Bad Request", kind))
        while not proxy.upstream.ending.is_set():
            connection.sendall(chunk(b"x" * 2**16))
            sent += 2**16

    proxy.upstream.answer = answer
    answered = proxy.asked(route, stream=stream)
    assert answered.status_code == 400
    assert "Snowflake Cortex: xxxx" in answered.json()["error"]["message"]
    assert len(answered.content) < 10_000
    assert sent < 16 * 2**20  # what fits into the buffers of both ends


@ROUTES
def test_an_error_of_400_kb_does_not_stop_the_other_sessions(proxy: Proxy, route: str) -> None:
    def seconds(size: int) -> float:
        body = json.dumps({"message": "x " * (size // 2)}).encode()

        def answer(connection: socket.socket) -> None:
            connection.sendall(head("400 Bad Request", "application/json", Content_Length=len(body)) + body)

        proxy.upstream.answer = answer
        began = time.monotonic()
        assert proxy.asked(route, stream=False).status_code == 400
        return time.monotonic() - began

    small, large = (min(seconds(size) for _ in range(3)) for size in (600, 600_000))
    assert large < 2 * small + 0.1


@pytest.mark.keeps("answer-limit")
@ROUTES
@pytest.mark.parametrize("what", ["lines", "one line"])
def test_an_endless_answer_is_an_error_at_its_bound(proxy: Proxy, route: str, what: str) -> None:
    piece = (b": " + b"x" * 1020 + b"\n\n") * 512 if what == "lines" else b"x" * 2**19

    def answer(connection: socket.socket) -> None:
        connection.sendall(head() + chunk(TEXT[route]))
        for _ in range(400):
            connection.sendall(chunk(piece))

    proxy.upstream.answer = answer
    assert "more than" in error_of(proxy.asked(route, stream=True))


@pytest.mark.keeps("answer-limit")
@ROUTES
def test_an_endless_body_is_an_error_at_its_bound(proxy: Proxy, route: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head(kind="application/json"))
        while not proxy.upstream.ending.is_set():
            connection.sendall(chunk(b" " * 2**19))

    proxy.upstream.answer = answer
    assert "more than 4 MiB" in error_of(proxy.asked(route, stream=False))


@pytest.mark.keeps("answer-limit")
@ROUTES
@pytest.mark.parametrize("times", [1, 2])
def test_a_packed_body_is_unpacked_once_and_to_its_bound(proxy: Proxy, route: str, times: int) -> None:
    packed = b" " * 2**28
    for _ in range(times):
        packed = gzip.compress(packed, 1)
    coding = ", ".join(["gzip"] * times)

    def answer(connection: socket.socket) -> None:
        connection.sendall(head(kind="application/json", Content_Encoding=coding, Content_Length=len(packed)) + packed)

    proxy.upstream.answer = answer
    message = error_of(proxy.asked(route, stream=False))
    assert ("more than 4 MiB" in message) == (times == 1)


@ROUTES
def test_a_stream_that_a_company_s_proxy_has_packed_is_read(proxy: Proxy, route: str) -> None:
    packed = gzip.compress(WHOLE[route])
    proxy.upstream.answer = lambda connection: connection.sendall(head(Content_Encoding="gzip") + chunk(packed) + END)
    assert events(proxy.asked(route, stream=True))[-1]["type"] == "message_stop"


@pytest.mark.keeps("answer-limit")
@ROUTES
@pytest.mark.parametrize("rest", ["silence", "more"])
def test_what_follows_the_end_of_a_stream_is_not_waited_for(proxy: Proxy, route: str, rest: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head() + chunk(WHOLE[route]))
        while rest == "more" and not proxy.upstream.ending.is_set():
            connection.sendall(chunk(b"data: {}\n\n" * 100))
        proxy.upstream.silent(connection)

    proxy.upstream.answer = answer
    began = time.monotonic()
    assert events(proxy.asked(route, stream=True))[-1]["type"] == "message_stop"
    assert time.monotonic() - began < 1.9  # less than the bound on silence
    wait_until(lambda: proxy.upstream.open == 0, 5)


@ROUTES
def test_a_connection_is_used_again_after_a_stream_that_ended_as_it_should(proxy: Proxy, route: str) -> None:
    used = set()

    def answer(connection: socket.socket) -> None:
        used.add(connection.getpeername())
        # On chat OpenAI's SDK reads nothing after [DONE], so there the end must come with it.
        connection.sendall(head() + chunk(WHOLE[route]) + (END if route == "chat" else b""))
        if route == "messages":
            time.sleep(0.1)
            connection.sendall(END)

    answer.keeps = True  # type: ignore[attr-defined]
    proxy.upstream.answer = answer
    for _ in range(3):
        assert events(proxy.asked(route, stream=True))[-1]["type"] == "message_stop"
    assert len(used) == 1


# ------------------------------------------------------------------------------------------------------------ elsewhere


@pytest.mark.keeps("no-redirects")
@ROUTES
@STREAMED
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_followed_by_nobody_and_is_told(proxy: Proxy, route: str, stream: bool, status: str) -> None:
    elsewhere = RawUpstream()
    elsewhere.answer = lambda connection: connection.sendall(head() + chunk(WHOLE[route]) + END)
    to = f"http://localhost:{elsewhere.port}/api/v2/cortex/v1/chat/completions"

    def answer(connection: socket.socket) -> None:
        kind, body = ("text/event-stream", WHOLE[route]) if stream else ("application/json", NOT_STREAMED[route])
        connection.sendall(head(status, kind, Location=to, Content_Length=len(body)) + body)  # as if it were an answer

    proxy.upstream.answer = answer
    try:
        answered = proxy.asked(route, stream=stream)
    finally:
        elsewhere.close()
    assert elsewhere.requests == []
    assert len(proxy.upstream.requests) == 1
    assert (answered.status_code, answered.headers.get("x-should-retry")) == (502, "false")
    message = answered.json()["error"]["message"]
    assert f"127.0.0.1 sends requests on to localhost ({status[:3]}); not followed" in message
    assert "SNOWFLAKE_HOST" in message
    assert f"make -C {proxy.bundle} doctor" in message


# ------------------------------------------------------------------------------------------------------------------ Esc


def leave(proxy: Proxy, route: str, *, stream: bool, after: float) -> None:
    """Send a request, and close the connection after so many seconds."""
    asked = {"model": route, "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {proxy.master_key}"}
    timeout = httpx.Timeout(10, read=after)
    with httpx.Client(trust_env=False, timeout=timeout) as client, suppress(httpx.ReadTimeout):
        client.post(f"{proxy.url}/v1/messages", json=asked, headers=headers)


@pytest.mark.keeps("client-leaves")
@ROUTES
@pytest.mark.parametrize(("when", "stream"), [("head", True), ("head", False), ("word", True), ("middle", True)])
def test_esc_while_the_model_is_silent_ends_the_call_to_cortex(
    proxy: Proxy, route: str, when: str, stream: bool
) -> None:
    def answer(connection: socket.socket) -> None:
        sent = {"head": b"", "word": head(), "middle": head() + chunk(TEXT[route])}
        connection.sendall(sent[when])
        proxy.upstream.silent(connection)

    wait_until(lambda: proxy.upstream.open == 0, 10)
    log = len(proxy.log("claude_proxy.py"))
    proxy.upstream.answer = answer
    leave(proxy, route, stream=stream, after=0.7)
    began = time.monotonic()
    assert proxy.upstream.requests
    wait_until(lambda: proxy.upstream.open == 0, 1)
    sys.stderr.write(f"{route} {when} {stream}: ended after {time.monotonic() - began:.3f} s\n")
    time.sleep(0.2)
    assert len(proxy.upstream.requests) == 1
    assert proxy.log("claude_proxy.py")[log:] == ""


@pytest.mark.keeps("client-leaves")
@ROUTES
def test_a_storm_of_fifty_escs_leaves_no_call_to_cortex(proxy: Proxy, route: str) -> None:
    wait_until(lambda: proxy.upstream.open == 0, 10)
    proxy.upstream.answer = proxy.upstream.silent
    with ThreadPoolExecutor(50) as pool:
        for number in range(50):
            pool.submit(leave, proxy, route, stream=number % 2 == 0, after=1.0 + number / 100)
    wait_until(lambda: proxy.upstream.open == 0, 1.5)
    proxy.upstream.answer = lambda connection: connection.sendall(head() + chunk(WHOLE[route]) + END)
    assert events(proxy.asked(route, stream=True))[-1]["type"] == "message_stop"
