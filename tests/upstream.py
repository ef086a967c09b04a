"""An upstream that answers with raw bytes, or not at all: what the strict stand-in never does."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

Answer = Callable[[socket.socket], None]


class RawUpstream:
    """Listens on loopback. `answer` gets each connection after a whole request, and may send what it likes; the
    connection closes when it returns. `requests` are the requests, `open` is the number of connections."""

    def __init__(self) -> None:
        self.answer: Answer = lambda _: None
        self.requests: list[bytes] = []
        self.open = 0
        self.is_deaf = False  # take connections, but read no request
        self.ending = threading.Event()
        self._lock, self._accepting = threading.Lock(), threading.Event()
        self._accepting.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._accepting.wait()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._count(1)
        with connection, suppress(OSError):
            while self.is_deaf and not self.ending.is_set():
                time.sleep(0.1)
            connection.settimeout(2)  # for a next request on this connection
            while request := self._request(connection):
                connection.settimeout(None)
                self.requests.append(request)
                self.answer(connection)
                if not getattr(self.answer, "keeps", False):
                    break
                connection.settimeout(2)
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.open += change

    def _request(self, connection: socket.socket) -> bytes:
        data = b""
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if found and len(body) >= int(length[1] if length else 0):
                return data
            piece = connection.recv(2**16)
            if not piece:
                return b""
            data += piece

    def silent(self, connection: socket.socket) -> None:
        """Send nothing more, without an end: as a host that died. Return when the client has left."""
        with suppress(OSError):
            while not self.ending.is_set() and connection.recv(2**16):
                pass

    @contextmanager
    def full(self) -> Iterator[None]:
        """Answer no attempt to connect: Linux drops what comes when a listener's queue is full."""
        self._accepting.clear()
        self._listener.listen(0)
        with ExitStack() as waiting:
            for number in range(5):
                if number == 1:
                    time.sleep(0.2)  # until `_accept` has taken the first
                connection = waiting.enter_context(socket.socket())
                connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", self.port))
            yield
        self._listener.listen(128)
        self._accepting.set()

    def close(self) -> None:
        self.ending.set()
        self._listener.close()


def head(status: str = "200 OK", kind: str = "text/event-stream", **more: object) -> bytes:
    """The head of an answer. `length=5` adds a Content-Length; without it the answer is chunked."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    if "Content_Length" not in more:
        lines.append("Transfer-Encoding: chunked")
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"
CHAT_TEXT = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"one "}}]}\n\n'
CHAT_END = (
    b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
MESSAGES_TEXT = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"content":[],"model":"c","stop_reason":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
    b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"one "}}\n\n'
)
MESSAGES_END = (
    b'data: {"type":"content_block_stop","index":0}\n\n'
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}\n\n'
    b'data: {"type":"message_stop"}\n\n'
)
