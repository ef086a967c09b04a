"""LiteLLM's proxy in this process: port, start, watch, stop.

`litellm --config litellm_config.yaml` alone would listen on every network interface, show its admin pages, start
without the patch after an upgrade, and fail with a traceback while the configuration is not there yet. So this puts the
patch in place, takes the port, waits for the configuration, and only then lets LiteLLM answer.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import uvicorn

from bundle.bootstrap import PM2
from bundle.errors import ConfigError, WriteError, say
from bundle.files import stamp
from bundle.proxy import lean_litellm
from bundle.proxy.front_door import LITELLM_ROUTES, App, FrontDoor, printable
from bundle.proxy.live_config import live_config
from bundle.settings import Settings, master_key
from bundle.supervisor import bound_log, port_owner, report_ready, supervisor_channel, supervisor_gone
from patches import apply_patch

DRAIN_SECONDS = 30  # ecosystem.config.js gives five more before it kills
CONFIG_PATIENCE_SECONDS = 3  # a configuration whose token is dead does after this: tokens can be signed here
PREDECESSOR_SECONDS = DRAIN_SECONDS + 15
WATCH_SECONDS = 5  # between two looks at LiteLLM's files
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


def restore_patch() -> None:
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
            return master_key(settings)
        except WriteError as error:  # noqa: PERF203 - waiting is the point
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


def wait_for_config(settings: Settings) -> bool:
    """Wait for the refresher's first `litellm_config.yaml`; order of start does not matter. False: PM2 is gone."""
    channel = supervisor_channel(os.environ)
    waited = 0.0
    while True:
        live_config.reload()
        if live_config.document and (live_config.is_live() or waited >= CONFIG_PATIENCE_SECONDS):
            return True
        if waited % 30 == 5:
            say(f"waiting for {settings.config_path}: is token-refresher running? See why not: make logs")
        readable, _, _ = select.select([] if channel is None else [channel], [], [], 0.25)
        if channel in readable and channel is not None and supervisor_gone(channel):
            say(PM2_GONE)
            return False
        waited += 0.25


def serve(settings: Settings, key: str, listener: socket.socket) -> None:
    """Import LiteLLM (seconds), wait for the configuration, answer until told to end. Raises ConfigError."""
    os.environ.update(LITELLM_ENVIRONMENT)
    os.environ["CONFIG_FILE_PATH"] = str(settings.config_path)
    paths = {path for _, path in LITELLM_ROUTES}
    with lean_litellm.importing(paths):
        from litellm.proxy import proxy_server  # noqa: PLC0415 - after the patch, and with this environment

    if not wait_for_config(settings):
        return
    proxy_server.print = lambda *_, **__: None  # it would print all rows, in colours, at each start
    keep_routes(proxy_server.app.router.routes, paths)
    app = lean_litellm.warmed(proxy_server.app, lean_litellm.apply(), key=key, config=live_config)
    door = FrontDoor(app, key=key, port=settings.proxy_port, config=live_config)
    server = ProxyServer(door, settings.proxy_port, lambda: proxy_server.llm_router)
    with suppress(SystemExit):  # uvicorn's way to say that the application did not start
        server.run(sockets=[listener])
    if not server.started:
        raise ConfigError(
            f"LiteLLM does not start with this configuration: {door.start_failure}\n"
            f"Fix litellm_config.template.yaml, then: {PM2} restart claude-proxy"
        )


class ProxyServer(uvicorn.Server):
    """Serves `app` on loopback, tells PM2 when it is ready, and watches what may change under it.

    `router` returns LiteLLM's router, which exists only after the application has started.
    """

    def __init__(self, app: App, port: int, router: Callable[[], Any]) -> None:
        config = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            # Between two turns of a session Claude Code keeps its connection; opening a new one costs time.
            timeout_keep_alive=75,
        )
        super().__init__(config)
        self._port, self._router = port, router
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        work = (self._ready(), watch_config(self._router), self._watch_litellm())
        self._tasks = [asyncio.create_task(each) for each in work]
        channel = supervisor_channel(os.environ)
        if channel is not None:
            asyncio.get_running_loop().add_reader(channel, self._on_supervisor, channel)

    async def _ready(self) -> None:
        await asyncio.to_thread(_get, f"http://127.0.0.1:{self._port}/health/liveliness")
        say(f"ready on http://127.0.0.1:{self._port}")
        report_ready(supervisor_channel(os.environ))

    def _on_supervisor(self, channel: int) -> None:
        if supervisor_gone(channel):
            asyncio.get_running_loop().remove_reader(channel)
            self._end(PM2_GONE)

    async def _watch_litellm(self) -> None:
        await replaced(litellm_files(), asyncio.sleep)
        self._end("LiteLLM was replaced under this process: ending, so that PM2 starts the new one")

    def _end(self, why: str) -> None:
        say(why)
        self.should_exit = True


async def watch_config(router: Callable[[], Any]) -> None:
    """Take up each change of the model rows, forever; say which other changes need a restart."""
    started_with = before = other_sections(live_config.document)
    followed: dict[str, Any] = {}
    while True:
        await asyncio.sleep(1)
        live_config.reload()
        if live_config.document is followed:
            continue
        followed = live_config.document
        try:
            follow_rows(router(), followed["model_list"])
        except Exception as error:  # noqa: BLE001 - LiteLLM raises many kinds, and none may end this
            say(f"the changed rows of the template are not used, the old ones stay: {printable(str(error))}")
        now = other_sections(followed)
        if now not in (before, started_with):
            changed = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
            say(f"{' and '.join(changed)} changed: takes effect with `{PM2} restart claude-proxy`")
        before = now


async def replaced(files: Sequence[Path], sleep: Callable[[float], Awaitable[None]]) -> None:
    """Return when the files have been replaced and are quiet: the installer is done, and what runs is the old code."""
    started_with = before = stamp(files)
    while True:
        await sleep(WATCH_SECONDS)
        bound_log(os.environ)
        now = stamp(files)
        if now != started_with and now == before and files[0].exists():
            return
        before = now


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
