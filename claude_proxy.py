#!/usr/bin/env python3
"""What PM2 runs as `claude-proxy`: LiteLLM's proxy in this process, on loopback, behind a door for Claude Code only.

`litellm --config litellm_config.yaml` alone would listen on every network interface, show its admin pages, start without
the patch after an upgrade, and fail with a traceback while the configuration is not there yet. So this puts the patch in
place, takes the port, waits for the configuration, and only then lets LiteLLM answer.

    python claude_proxy.py          run for ever (PM2 does this)
    python claude_proxy.py --wait   wait until the running proxy has answered a real request, and say how to go on

Stopping: the port closes at once, so that Claude Code's retry meets the next process; open answers are given
DRAIN_SECONDS to finish.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Container, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import uvicorn

import auto_refresh
from auto_refresh import EX_CONFIG, ConfigError, Settings, say
from patches import apply_patch
from patches.front_door import LITELLM_ROUTES, FrontDoor
from patches.live_config import live

DRAIN_SECONDS = 30  # ecosystem.config.js gives five more before it kills
CONFIG_PATIENCE_SECONDS = 10  # a configuration whose token is dead does after this: tokens can be signed here
PREDECESSOR_SECONDS = DRAIN_SECONDS + 15

# Set before LiteLLM is imported, whatever the environment says.
LITELLM_ENVIRONMENT = {
    # It would ask for price lists, news and presets on the internet; nothing here uses them.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_MODE": "PRODUCTION",  # it would load a .env of its own accord
    # Its own lines about errors come with tracebacks; the front door logs each error once, in words.
    "LITELLM_LOG": "CRITICAL",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
    "DISABLE_ADMIN_UI": "True",
    # The route around the statements that the patch is for.
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "false",
}


def mend_patch() -> None:
    """Apply the patch where an upgrade has undone it; raises ConfigError when that is not possible."""
    try:
        before = apply_patch.inspect()
        if before.state is not apply_patch.State.PATCHED:
            after = apply_patch.apply()
            if after.state is not before.state:
                say(f"LiteLLM {after.version} was not patched; patched it: {after.path}")
    except apply_patch.PatchError as error:
        raise ConfigError(str(error)) from None


def take_port(port: int) -> socket.socket:
    """Listen on 127.0.0.1:`port` already: what connects while LiteLLM is being imported waits instead of failing.

    Waits for a predecessor of ours that is finishing its answers; raises ConfigError naming any other holder.
    """
    deadline = time.monotonic() + PREDECESSOR_SECONDS
    said = False
    while True:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}.") from None
            owner = port_owner(port)
            if "claude_proxy.py" not in owner or time.monotonic() > deadline:
                raise ConfigError(
                    f"port {port} is taken by {owner or 'another program'}.\n"
                    "End that program, or put another port into .env: PROXY_PORT=8002"
                ) from None
            if not said:
                say(f"port {port} is still held by {owner}; waiting for it to finish")
                said = True
            time.sleep(0.5)
        else:
            return listener


def port_owner(port: int) -> str:
    """`command (pid N)` of the process that listens on `port`, or "" when that cannot be told."""
    pid = _listener_by_lsof(port) or _listener_by_proc(port)
    if not pid:
        return ""
    shown = subprocess.run(["ps", "-o", "args=", "-p", pid], capture_output=True, text=True, check=False)
    words = shown.stdout.split()
    # Arguments of a stranger's process may hold secrets: the program and its first argument name it well enough.
    return f"{' '.join(Path(word).name for word in words[:2])} (pid {pid})" if words else f"pid {pid}"


def _listener_by_lsof(port: int) -> str:
    try:
        found = subprocess.run(
            ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-t"], capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (found.stdout.split() or [""])[0]


def _listener_by_proc(port: int) -> str:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        try:
            if os.readlink(link) in inodes:
                return link.parts[2]
        except OSError:
            continue  # the process has ended, or is not ours to look into
    return ""


def wait_for_config(settings: Settings) -> None:
    """Wait for the refresher's first `litellm_config.yaml`; order of start does not matter."""
    waited = 0.0
    while True:
        live.reload()
        if live.document and (live.is_live() or waited >= CONFIG_PATIENCE_SECONDS):
            return
        if waited and waited % 30 == 0:
            say(f"waiting for {settings.config_path}: is token-refresher running? See: pm2 logs token-refresher")
        time.sleep(0.25)
        waited += 0.25


def serve(settings: Settings, key: str, listener: socket.socket) -> None:
    """Import LiteLLM (seconds), wait for the configuration, answer until told to end."""
    os.environ.update(LITELLM_ENVIRONMENT)
    os.environ["CONFIG_FILE_PATH"] = str(settings.config_path)
    gc.disable()  # a fifth of the import's time goes into collecting what is going to stay
    from litellm.proxy.proxy_server import app  # noqa: PLC0415

    gc.enable()
    gc.freeze()

    wait_for_config(settings)
    keep_routes(app.router.routes, {path for _, path in LITELLM_ROUTES})

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self._tasks = [asyncio.create_task(work) for work in (self._ready(), self._watch_litellm())]
            channel = auto_refresh.supervisor_channel(os.environ)
            if channel is not None:
                asyncio.get_running_loop().add_reader(channel, self._on_supervisor, channel)

        async def _ready(self) -> None:
            await asyncio.to_thread(_get, f"http://127.0.0.1:{settings.proxy_port}/health/liveliness")
            say(f"ready on http://127.0.0.1:{settings.proxy_port}")
            auto_refresh.report_ready(auto_refresh.supervisor_channel(os.environ))

        def _on_supervisor(self, channel: int) -> None:
            if auto_refresh.supervisor_gone(channel):
                asyncio.get_running_loop().remove_reader(channel)
                self._end("PM2 is gone: ending, so that its next start finds the port free")

        async def _watch_litellm(self) -> None:
            files = litellm_files()
            started_with = before = auto_refresh.stamp(files)
            while True:
                await asyncio.sleep(5)
                now = auto_refresh.stamp(files)
                # Replaced and quiet since the last look: the installer is done, and what runs here is the old one.
                if now != started_with and now == before and util.find_spec("litellm") and files[0].exists():
                    self._end("LiteLLM was replaced under this process: ending, so that PM2 starts the new one")
                    return
                before = now

        def _end(self, why: str) -> None:
            say(why)
            self.should_exit = True

    config = uvicorn.Config(
        FrontDoor(app, key=key, port=settings.proxy_port, live=live),
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        # Between two turns of a session Claude Code keeps its connection; opening a new one each time is not free.
        timeout_keep_alive=75,
    )
    server = Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise SystemExit("LiteLLM did not start; its own words are above")


def keep_routes(routes: list[Any], paths: Container[str]) -> None:
    """Remove all other routes in place, those of included routers too: each request is matched against all of them."""
    for route in routes:
        if hasattr(route, "original_router"):
            keep_routes(route.original_router.routes, paths)
    routes[:] = [
        route
        for route in routes
        if getattr(route, "path", None) in paths or getattr(getattr(route, "original_router", None), "routes", None)
    ]


def litellm_files() -> list[Path]:
    """Files that change when LiteLLM is upgraded, reinstalled or patched; the first is what the patch is in."""
    distribution = metadata.distribution("litellm")
    return [
        Path(str(distribution.locate_file("litellm/llms/openai/openai.py"))),
        Path(str(distribution.locate_file(f"litellm-{distribution.version}.dist-info/RECORD"))),
    ]


def _get(url: str) -> bytes:
    with build_opener(ProxyHandler({})).open(url, timeout=30) as answer:  # loopback never goes through a proxy
        body: Any = answer.read()
    return bytes(body)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        settings = auto_refresh.load_settings()
        key = auto_refresh.master_key(settings)
        listener = take_port(settings.proxy_port)
        mend_patch()
        serve(settings, key, listener)
    except ConfigError as error:
        print(f"claude_proxy.py: {error}", file=sys.stderr, flush=True)
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
