"""bundle/proxy/server.py: a stop that comes while the proxy starts."""

from __future__ import annotations

import asyncio
import gc
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from bundle.bootstrap import BUNDLE
from bundle.proxy.server import ProxyServer
from tests.ports import free_port


def run_and_stop_while_it_starts() -> None:
    async def app(_: Any, receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            server.should_exit = True  # what uvicorn does at a signal
            await asyncio.sleep(0.3)  # in "shutdown": the question below finds the port closed
            await send({"type": f"lifespan.{phase}.complete"})

    listener = socket.create_server(("127.0.0.1", free_port()))
    settings: Any = SimpleNamespace(proxy_port=listener.getsockname()[1], folder=BUNDLE)
    server = ProxyServer(app, settings, lambda: None)
    server.run(sockets=[listener])
    assert server.started


def test_a_stop_while_the_proxy_starts_leaves_no_traceback_in_its_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The proxy asks itself whether it answers, and by then it has closed its port. PM2 stops a proxy that starts when
    its user starts it again right after a fix."""
    run_and_stop_while_it_starts()
    gc.collect()  # only then asyncio tells of a task that failed
    assert caplog.text + "".join(capfd.readouterr()) == ""
