#!/usr/bin/env python3
"""What PM2 runs as `claude-proxy`: LiteLLM's proxy in this process, on loopback, behind a door for Claude Code only.

`litellm --config litellm_config.yaml` alone would listen on every network interface, show its admin pages, start
without the patch after an upgrade, and fail with a traceback while the configuration is not there yet. So this puts the
patch in place, takes the port, waits for the configuration, and only then lets LiteLLM answer. It takes no arguments.

Stopping: the port closes at once, so that Claude Code's retry meets the next process; open answers are given
DRAIN_SECONDS to finish.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Container, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from bundle.bootstrap import EX_CONFIG, PM2, enter_venv
from patches import apply_patch

if __name__ == "__main__":
    enter_venv()

import uvicorn

import auto_refresh
from auto_refresh import ConfigError, Settings, say
from patches import lean_litellm
from patches.front_door import LITELLM_ROUTES, FrontDoor, printable
from patches.live_config import live

DRAIN_SECONDS = 30  # ecosystem.config.js gives five more before it kills
CONFIG_PATIENCE_SECONDS = 3  # a configuration whose token is dead does after this: tokens can be signed here
PREDECESSOR_SECONDS = DRAIN_SECONDS + 15
PM2_GONE = "PM2 is gone: ending, so that its next start finds the port free"

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
        if before.state is not apply_patch.PatchState.PATCHED:
            after = apply_patch.apply()
            if after.state is not before.state:
                say(f"LiteLLM {after.version} was not patched; patched it: {after.path}")
    except apply_patch.PatchError as error:
        raise ConfigError(str(error)) from None


def first_key(settings: Settings) -> str:
    """The proxy's own key; waits while the disk is full and it cannot be kept."""
    said = ""
    while True:
        try:
            return auto_refresh.master_key(settings)
        except auto_refresh.WriteError as error:  # noqa: PERF203 - waiting is the point
            if str(error) != said:
                say(f"{error}\nTrying again until it works.")
                said = str(error)
            time.sleep(2)


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
    if "/claude_proxy.py" in shown.stdout:  # also where its path has spaces
        return f"python claude_proxy.py (pid {pid})"
    words = shown.stdout.split()
    # Arguments of a stranger's process may hold secrets: the program and its first argument name it well enough.
    return f"{' '.join(Path(word).name for word in words[:2])} (pid {pid})" if words else f"pid {pid}"


def _listener_by_lsof(port: int) -> str:
    try:
        command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-t"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
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
        with suppress(OSError):  # the process has ended, or is not ours to look into
            if str(link.readlink()) in inodes:
                return link.parts[2]
    return ""


def wait_for_config(settings: Settings) -> bool:
    """Wait for the refresher's first `litellm_config.yaml`; order of start does not matter. False: PM2 is gone."""
    channel = auto_refresh.supervisor_channel(os.environ)
    waited = 0.0
    while True:
        live.reload()
        if live.document and (live.is_live() or waited >= CONFIG_PATIENCE_SECONDS):
            return True
        if waited % 30 == 5:
            say(f"waiting for {settings.config_path}: is token-refresher running? See why not: make logs")
        readable, _, _ = select.select([] if channel is None else [channel], [], [], 0.25)
        if channel in readable and channel is not None and auto_refresh.supervisor_gone(channel):
            say(PM2_GONE)
            return False
        waited += 0.25


def serve(settings: Settings, key: str, listener: socket.socket) -> None:
    """Import LiteLLM (seconds), wait for the configuration, answer until told to end."""
    os.environ.update(LITELLM_ENVIRONMENT)
    os.environ["CONFIG_FILE_PATH"] = str(settings.config_path)
    paths = {path for _, path in LITELLM_ROUTES}
    with lean_litellm.importing(paths):
        from litellm.proxy import proxy_server  # noqa: PLC0415

    if not wait_for_config(settings):
        return
    # It prints all rows in colours at each start: nothing for a log.
    proxy_server.print = lambda *_, **__: None
    keep_routes(proxy_server.app.router.routes, paths)
    app = lean_litellm.warmed(proxy_server.app, lean_litellm.apply(), key=key, live=live)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            works = (self._ready(), self._watch_config(), self._watch_litellm())
            self._tasks = [asyncio.create_task(work) for work in works]
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
                self._end(PM2_GONE)

        async def _watch_config(self) -> None:
            started_with = before = other_sections(live.document)
            followed: dict[str, Any] = {}
            while True:
                await asyncio.sleep(1)
                live.reload()
                if live.document is followed:
                    continue
                followed = live.document
                try:
                    follow_rows(proxy_server.llm_router, live.document["model_list"])
                except Exception as error:  # noqa: BLE001 - LiteLLM raises many kinds, and none may end this
                    say(f"the changed rows of the template are not used, the old ones stay: {printable(str(error))}")
                now = other_sections(live.document)
                if now not in (before, started_with):
                    changed = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
                    say(f"{' and '.join(changed)} changed: takes effect with `{PM2} restart claude-proxy`")
                before = now

        async def _watch_litellm(self) -> None:
            files = litellm_files()
            started_with = before = auto_refresh.stamp(files)
            while True:
                await asyncio.sleep(5)
                auto_refresh.bound_log(os.environ)
                now = auto_refresh.stamp(files)
                # Replaced and quiet since the last look: the installer is done, and what runs here is the old one.
                if now != started_with and now == before and files[0].exists():
                    self._end("LiteLLM was replaced under this process: ending, so that PM2 starts the new one")
                    return
                before = now

        def _end(self, why: str) -> None:
            say(why)
            self.should_exit = True

    door = FrontDoor(app, key=key, port=settings.proxy_port, live=live)
    config = uvicorn.Config(
        door,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        # Between two turns of a session Claude Code keeps its connection; opening a new one each time is not free.
        timeout_keep_alive=75,
    )
    server = Server(config)
    with suppress(SystemExit):  # uvicorn's way to say that the application did not start
        server.run(sockets=[listener])
    if not server.started:
        raise ConfigError(
            f"LiteLLM does not start with this configuration: {door.start_failure}\n"
            f"Mend litellm_config.template.yaml, then: {PM2} restart claude-proxy"
        )


def follow_rows(router: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Give LiteLLM's router the rows that it does not have, and take away those that are gone, by their ids.

    (Setting the whole list anew would leave old wildcard rows answering.) Raises ValueError for a row that LiteLLM does
    not take; all is then as it was before.
    """
    wanted = {row["model_info"]["id"]: row for row in rows}
    known = set(router.get_model_ids())
    if known == wanted.keys():
        return
    from litellm.types.router import Deployment  # noqa: PLC0415 - this file must not import LiteLLM before its patch

    added = [name for name in wanted if name not in known]
    gone = [name for name in known if name not in wanted]
    for name in added:  # first, so that no name is without an answer in between
        try:
            router.add_deployment(Deployment(**copy.deepcopy(wanted[name])))
        except Exception as error:  # noqa: BLE001, PERF203 - LiteLLM raises many kinds
            for undone in added:
                router.delete_deployment(id=undone)
            # What pydantic says from there on quotes the row, with a part of its token.
            words = " ".join(str(error).split()).partition("[type=")[0]
            raise ValueError(f"{name}: {words}") from None
    for name in gone:
        router.delete_deployment(id=name)
    say(f"models: {len(added)} rows added or changed, {len(gone)} old ones removed")


def other_sections(document: dict[str, Any]) -> dict[str, Any]:
    """All of the configuration but the rows: LiteLLM reads it at start only."""
    return {name: section for name, section in document.items() if name != "model_list"}


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


def main() -> int:
    try:
        live.settings = settings = auto_refresh.load_settings()
        key = first_key(settings)
        if not settings.config_path.exists():
            # What keeps the refresher from writing it is said here too, in place of waiting for what will not come.
            auto_refresh.render_config(settings, auto_refresh.sign(settings, time.time()))
        listener = take_port(settings.proxy_port)
        mend_patch()
        serve(settings, key, listener)
    except ConfigError as error:
        say(f"claude_proxy.py: {error}", sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:  # PM2 stops with SIGINT, and uvicorn passes it on when it is done
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
