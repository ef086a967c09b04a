"""An HTTP server on loopback in a thread of its own, whose port a test may close and open again.

The stand-in is such a server. Tests call `start`, `stop`, `close_port` and `open_port` from their own thread. What is
named `async` runs in the server's event loop.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any, TypeVar

from aiohttp import web

S = TypeVar("S", bound="Server")


class Server:
    """The listening socket and its thread; a subclass says in `_handle` what it answers."""

    def __init__(self, max_body: int) -> None:
        self.port = 0
        self._max_body = max_body
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._released: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pause: asyncio.Task[None] | None = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    # -- for tests --

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self: S, port: int = 0) -> S:
        """Serve from a thread of its own; returns when the port is open."""
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cortex-stub", daemon=True)
        self._thread.start()
        self._call(self.serve())
        return self

    def stop(self) -> None:
        """Close everything; the port is free afterwards."""
        if self._loop is None or self._thread is None:
            return
        self._call(self.shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._loop = self._thread = None

    def __enter__(self: S) -> S:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def close_port(self) -> None:
        """Refuse connections and end those that are open, until `open_port`."""
        self._call(self._close())

    def open_port(self) -> None:
        self._call(self._listen())

    def release(self) -> None:
        """Let the streams that are held now (their records have `held`) go on."""
        if self._loop:
            self._loop.call_soon_threadsafe(self.release_now)

    def _call(self, work: Any) -> None:
        if self._loop is None:
            raise RuntimeError("the stand-in is not running")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    # -- in the event loop --

    async def serve(self) -> None:
        """Open the port in the running event loop."""
        self._released = asyncio.Event()
        app = web.Application(client_max_size=self._max_body)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        if self._runner is not None and self._site is None:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
            await self._site.start()
            self.port = self._runner.addresses[-1][1]

    async def _close(self) -> None:
        if self._site is not None and self._runner is not None and self._runner.server is not None:
            await self._site.stop()
            self._site = None
            for connection in self._runner.server.connections:
                connection.force_close()

    async def shut_down(self) -> None:
        if self._released is not None:
            self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def release_now(self) -> None:
        """Like `release`, but called in the event loop."""
        if self._released is not None:
            self._released.set()
            self._released.clear()

    async def _held(self, record: dict[str, Any]) -> None:
        record["held"] = True
        if self._released is not None:
            await asyncio.wait_for(self._released.wait(), 120)

    def close_port_for(self, seconds: float) -> None:
        """Close the port soon and open it again; for a caller in the event loop."""

        async def pause() -> None:
            await asyncio.sleep(0.05)  # send the response to this request first
            await self._close()
            await asyncio.sleep(seconds)
            await self._listen()

        self._pause = asyncio.get_running_loop().create_task(pause())


def parse_body(raw: bytes, *, lean: bool) -> Any:
    """A body, or None if it is not JSON. `lean` reads only what an answer needs, at a fixed cost."""
    if lean and b"[[" not in raw:
        model = re.search(rb'"model":\s*"([^"]*)"', raw)
        return {
            "model": model.group(1).decode() if model else "",
            "stream": re.search(rb'"stream":\s*true', raw) is not None,
            "stream_options": {"include_usage": b'"include_usage"' in raw},
            "messages": [],
            "max_tokens": 4096,
        }
    try:
        return json.loads(raw or b"null")
    except ValueError:
        return None
