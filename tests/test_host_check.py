"""bundle/host_check.py: whether an account's host is there is seen without a token, and without a package."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bundle import host_check
from bundle.host_check import trouble_with
from tests.cortex_stub import CortexStub
from tests.set_up import ACCOUNT, USER

pytestmark = pytest.mark.usefixtures("nobody_s_environment")


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """A server that gives each request this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_host_that_answers_as_snowflake_does_is_there() -> None:
    with CortexStub(ACCOUNT, USER) as stub:
        assert trouble_with(stub.url) is None
        assert [request["path"] for request in stub.requests] == ["/api/v2/cortex/v1/chat/completions"]


@pytest.mark.parametrize(
    ("status", "body"), [(404, b"<html>Oops!</html>"), (403, b"Forbidden"), (200, b"<html>Log in")]
)
def test_a_web_page_in_place_of_an_answer_is_named(status: int, body: bytes) -> None:
    with answering(status, body) as url:
        trouble = trouble_with(url)
    assert trouble
    assert f"answers ({status}), but not as Snowflake does for an account that exists" in trouble[0]


def test_a_login_page_of_the_network_is_named_and_not_followed() -> None:
    with answering(302, b"", location="https://login.example.com/") as url:
        trouble = trouble_with(url)
    assert trouble
    assert "login.example.com" in trouble[0]


def test_a_name_that_no_host_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    trouble = trouble_with("https://myorg-wrong.snowflakecomputing.com")
    assert trouble
    assert trouble[0] == "there is no host myorg-wrong.snowflakecomputing.com"
    assert not host_check.names_are_found()


def test_behind_a_socks_proxy_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib cannot use it. The doctor looks again when the packages are there."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    assert trouble_with("https://myorg-wrong.snowflakecomputing.com") is None
