"""What the tests of bundle/checks share: a stand-in for the proxy, another program's server, and PM2's list."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bundle.checks.finding import Finding, Installation, read_installation
from bundle.proof import proof
from bundle.supervisor import interpreter
from tests.set_up import BUNDLE, SetUp

Check = Callable[[Installation], Iterator[Finding]]
SECRET = "sk-a-key-that-nobody-may-see-0123456789"


def findings(set_up: SetUp, check: Check, **environ: str) -> dict[str, Finding]:
    """Run one check and return its findings by name."""
    return {finding.name: finding for finding in check(read_installation({**set_up.environ, **environ}, time.time()))}


class FakeProxy(http.server.ThreadingHTTPServer):
    """Answers what the doctor asks of the proxy.

    `refused` has the words of an error by model, `said` a text in place of "OK", and `headers` those of a good answer.
    `answering` has the model that answers for a name, "" for none.
    """

    daemon_threads = True

    def __init__(
        self, port: int, key: str, *, address: str = "127.0.0.1", answers: type[FakeAnswers] | None = None
    ) -> None:
        self.key, self.asked = key, list[Any]()
        self.refused: dict[str, str] = {}
        self.answering: dict[str, str] = {}
        self.said: dict[str, str] = {}
        self.headers: dict[str, dict[str, str]] = {}
        super().__init__((address, port), answers or FakeAnswers)


class FakeAnswers(http.server.BaseHTTPRequestHandler):
    server: FakeProxy

    def log_message(self, *_: object) -> None:
        pass

    def _say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.startswith("/proof?"):
            query = self.path.partition("?")[2].encode()
            self._say(200, json.loads(proof(self.server.key, self.server.server_port, query) or b"{}"))
        elif (name := self.path.removeprefix("/v1/models/")) in self.server.answering:
            answers = self.server.answering[name]
            self._say(200 if answers else 404, {"id": answers} if answers else {"type": "error"})
        else:
            self._say(200 if self.headers["Authorization"] == f"Bearer {self.server.key}" else 401, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        if refused := self.server.refused.get(asked["model"]):
            self._say(403, {"error": {"message": refused}})
            return
        text = {"type": "text_delta", "text": self.server.said.get(asked["model"], "OK")}
        events = ({"type": "content_block_delta", "delta": text}, {"type": "message_stop"})
        self.send_response(200)
        for header in self.server.headers.get(asked["model"], {}).items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events))


class Stranger(http.server.BaseHTTPRequestHandler):
    """The web server of another program. It answers everything with the status `GREETING`."""

    GREETING = 404

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.GREETING)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_CONNECT = answer  # noqa: N815


@contextlib.contextmanager
def serving(server: http.server.HTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def answering(port: int, answer: Callable[[socket.socket, bytes], None]) -> Iterator[list[bytes]]:
    """A program on the port that is not ours. Yields all that it was sent."""
    got: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(10)
                got.append(connection.recv(65536))
                answer(connection, got[-1])
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=[connection], daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield got
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def head(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def pm2_row(name: str, script: str, **facts: Any) -> dict[str, Any]:
    """A row as `pm2 jlist` prints it. PM2 keeps environments in it, so it holds a secret."""
    usual = {
        "status": "online",
        "restart_time": 0,
        "pm_uptime": (time.time() - 7300) * 1000,
        "pm_exec_path": str(BUNDLE / script),
        "exec_interpreter": interpreter(),
        "env": dict.fromkeys(["SNOWFLAKE_PRIVATE_KEY_PATH", "A_TOKEN_FILE", "MAX_TOKENS", "token-refresher"], SECRET),
    }
    return {"name": name, "monit": {"memory": 40 * 2**20}, "pm2_env": {**usual, **facts}}


ROWS = [pm2_row("token-refresher", "auto_refresh.py"), pm2_row("claude-proxy", "claude_proxy.py")]
