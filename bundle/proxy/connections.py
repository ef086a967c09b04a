"""The connections of clients: how many there may be, and for how long each may be silent.

Uvicorn waits for ever for a request on a new connection, and has no limit of connections. So any program of this
machine could take all file descriptors of the proxy, without the key, and nobody would be answered any more.

Security invariants
- A connection on which no request with the key is being answered costs nobody else an answer: when there are too many
  connections, the oldest of these is closed.
- The head of a request must come within HEAD_SECONDS. (For its body see request_body.py.)
- After an answer, little more of its request is parsed. Uvicorn would parse an endless body, and nothing else would
  go on.
"""

from __future__ import annotations

import asyncio
import resource
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20  # from this machine a head comes in milliseconds
LEFTOVER_BYTES = 64 * 2**10  # of a request after its answer: many clients send head and body apart
LINGER_SECONDS = 1  # before the connection is closed, so that the client can read the answer
DESCRIPTORS = 8192  # what the proxy asks the system for
MAX_CONNECTIONS = 1024  # twice as many as front_door.MAX_REQUESTS, because Claude Code keeps unused ones open


def raise_descriptor_limit() -> None:
    """Raise the number of files and connections that this process may open: many systems give 1024, macOS 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_connections() -> int:
    """How many connections there may be: a request needs one more to Cortex, and LiteLLM needs some files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 4)


class BoundedProtocol(H11Protocol):
    """Uvicorn's connection, with a deadline and with a limit of connections."""

    _deadline: asyncio.TimerHandle | None = None
    _leftover = 0  # how many bytes of a request may still come after its answer
    _is_dropped = False  # more came than that
    _since = 0.0  # when this connection was opened or began its last request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()
        if len(self.connections) > max_connections():
            idle = [each for each in cast("set[BoundedProtocol]", self.connections) if not each.is_working()]
            min(idle, key=lambda each: each._since).drop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._leftover = LEFTOVER_BYTES

    def data_received(self, data: bytes) -> None:
        if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._leftover -= len(data)
            if self._leftover < 0:
                if not self._is_dropped:
                    self._is_dropped = True
                    self.loop.call_later(LINGER_SECONDS, self.drop)
                return
        if self._deadline is None or self.timeout_keep_alive_task is not None:  # the first bytes of another request
            self._start_deadline()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def is_working(self) -> bool:
        """Whether a request with the key is being answered."""
        return self.cycle is not None and not self.cycle.response_complete and bool(self.scope["state"].get("with_key"))

    def drop(self) -> None:
        self.connections.discard(self)
        self.transport.abort()

    def _start_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._since = self.loop.time()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._on_deadline)

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.timeout_keep_alive_task is None and not self.is_working():
            self.drop()
