"""Starts, watches and stops LiteLLM's proxy in this process.

The command `litellm --config litellm_config.yaml` would listen on every network interface, show its admin pages, run
without the patch after an upgrade, and fail with a traceback if the configuration does not exist yet. So this module
applies the patch, opens the port on loopback, waits for the configuration, and only then lets LiteLLM answer.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from bundle.bootstrap import BUNDLE, PM2, make
from bundle.errors import ConfigError, WriteError, printable, say
from bundle.files import stamp
from bundle.proxy import lean_litellm
from bundle.proxy.bookkeeper import Bookkeeper
from bundle.proxy.connections import BoundedProtocol, raise_descriptor_limit
from bundle.proxy.front_door import LITELLM_ROUTES, App, FrontDoor
from bundle.proxy.live_config import live_config
from bundle.running import other_copy_on, port_owner, stop_command
from bundle.settings import Settings, master_key, renew_key, saved_key
from bundle.supervisor import (
    Folders,
    bound_log,
    end_lost_daemon,
    report_ready,
    supervisor_channel,
    supervisor_gone,
)
from patches import apply_patch

DRAIN_SECONDS = 30  # PM2 kills this process 5 seconds later (ecosystem.config.js)
CONFIG_PATIENCE_SECONDS = 3  # then start with an expired token in the file: the proxy can sign one itself
OLD_PROXY_SECONDS = DRAIN_SECONDS + 15  # how long to wait for an old proxy process to leave the port
WATCH_SECONDS = 5  # between two checks of LiteLLM's files
PM2_GONE = "PM2 has ended; exiting too, so that the port is free when PM2 starts again"
# Set before LiteLLM is imported, whatever the environment says.
LITELLM_ENVIRONMENT = {
    # LiteLLM would download price lists, news and presets, which are not used here.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_MODE": "PRODUCTION",  # otherwise LiteLLM loads a .env file by itself
    # LiteLLM logs errors with tracebacks; the front door logs each error once, in one line.
    "LITELLM_LOG": "CRITICAL",
    # A host that dies without a word (a network that changed, a server that lost power) is noticed after a minute.
    "AIOHTTP_SO_KEEPALIVE": "True",
    "AIOHTTP_TCP_KEEPIDLE": "30",
    "AIOHTTP_TCP_KEEPINTVL": "10",
    "AIOHTTP_TCP_KEEPCNT": "3",
    # LiteLLM would end an answer that repeats itself (a table, a separator), with an error that shows its words.
    "REPEATED_STREAMING_CHUNK_LIMIT": str(10**9),
    **dict.fromkeys(("NO_DOCS", "NO_REDOC", "NO_OPENAPI", "DISABLE_ADMIN_UI"), "True"),
    # With this option LiteLLM would not run the statements that the patch changes.
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "false",
}


def restore_patch() -> None:
    """Apply the patch if an upgrade has removed it; raises ConfigError if that is not possible."""
    try:
        before = apply_patch.inspect()
        if before.state is not apply_patch.PatchState.PATCHED:
            after = apply_patch.apply()
            if after.state is not before.state:
                say(f"LiteLLM {after.version} was not patched; patched it: {after.path}")
    except apply_patch.PatchError as error:
        raise ConfigError(str(error)) from None


def make_key(settings: Settings) -> None:
    """Make the proxy's own key, if there is none. Waits while it cannot be saved because the disk is full."""
    last_message = ""
    while True:
        try:
            master_key(settings)
            return
        except WriteError as error:  # noqa: PERF203 - waiting is the point
            if str(error) != last_message:
                last_message = str(error)
                say(f"{error}\nTrying again until it works.")
            time.sleep(2)


def take_port(settings: Settings) -> socket.socket:
    """Listen on the port before LiteLLM is imported, so that early clients wait instead of failing. Wait for an old
    proxy process that is finishing its answers. If another program has the port, raises ConfigError and renews the key:
    a Claude Code that runs may have sent it there."""
    port = settings.proxy_port
    deadline, is_logged = time.monotonic() + OLD_PROXY_SECONDS, False
    while True:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}.") from None
            if other := other_copy_on(port):
                raise ConfigError(
                    f"port {port} is taken by the proxy of another copy of this bundle, in {other}.\n"
                    f"Stop that one: {stop_command(other)}\nOr put another port into .env: PROXY_PORT=8002\n"
                    f"Then: {make('stop', 'start')}"
                ) from None
            owner = port_owner(port)
            is_ours = "claude_proxy.py" in owner
            if not is_ours or time.monotonic() > deadline:
                lines = [
                    f"port {port} is taken by {owner or 'another program'}.",
                    f"End that program, or put another port into .env (PROXY_PORT=8002), then: {make('stop', 'start')}",
                    *([] if is_ours else [renew_key(settings)]),
                ]
                raise ConfigError("\n".join(lines)) from None
            if not is_logged:
                is_logged = True
                say(f"port {port} is still used by {owner}; waiting until it has finished")
            time.sleep(0.5)


def wait_for_config(settings: Settings) -> str:
    """Wait until the refresher has written `litellm_config.yaml` with the proxy's own key, and return the key: LiteLLM
    and the front door must have the same one. Returns "" if PM2 has ended in the meantime. Raises ConfigError if a
    folder is gone."""
    channel, folders = supervisor_channel(os.environ), Folders(BUNDLE, settings.folder)
    waited = 0.0
    while True:
        live_config.reload()
        key, general = saved_key(settings), live_config.document.get("general_settings", {})
        has_key = bool(key) and general.get("master_key") == key
        if has_key and (live_config.is_live() or waited >= CONFIG_PATIENCE_SECONDS):
            return key
        if waited % 30 == 5:  # after 5 seconds, then every 30
            why = f"is token-refresher running? If not, see why: {make('logs')}"
            if key and general.get("master_key", key) != key:
                why = "it has another key than this process. A key of your own belongs into .env, as LITELLM_MASTER_KEY"
            say(f"waiting for {settings.config_path}: {why}")
        readable, _, _ = select.select([] if channel is None else [channel], [], [], 0.25)
        if readable and supervisor_gone(readable[0]):
            say(PM2_GONE)
            return ""
        if gone := folders.gone():
            end_lost_daemon(os.environ)
            raise ConfigError(gone)
        waited += 0.25


def serve(settings: Settings, listener: socket.socket) -> None:
    """Import LiteLLM (takes seconds), wait for the configuration, and answer until a signal. Raises ConfigError."""
    os.environ.update(LITELLM_ENVIRONMENT)
    os.environ["CONFIG_FILE_PATH"] = str(settings.config_path)
    paths = {path for _, path in LITELLM_ROUTES}
    with lean_litellm.importing(paths):
        from litellm.proxy import proxy_server  # noqa: PLC0415 - after the patch, and with this environment

    if not (key := wait_for_config(settings)):
        return
    proxy_server.print = lambda *_, **__: None  # LiteLLM prints all rows in colours at each start
    keep_routes(proxy_server.app.router.routes, paths)
    app = lean_litellm.warmed(proxy_server.app, lean_litellm.apply(), key=key, config=live_config)
    books = Bookkeeper(settings)
    door = FrontDoor(app, key=key, port=settings.proxy_port, config=live_config, books=books)
    server = ProxyServer(door, settings, lambda: proxy_server.llm_router, books)
    with suppress(SystemExit):  # uvicorn raises it if the application does not start
        server.run(sockets=[listener])
    if not server.started:
        raise ConfigError(
            f"LiteLLM does not start with this configuration: {door.start_failure}\n"
            f"Fix litellm_config.template.yaml, then: {PM2} restart claude-proxy"
        )
    if server.folder_gone:
        raise ConfigError(server.folder_gone)  # with a status after which PM2 does not start this process again


class ProxyServer(uvicorn.Server):
    """Serves `app` on loopback, reports to PM2 that it is ready, and watches the configuration and LiteLLM's files.
    `router` is a function, because LiteLLM's router does not exist before the application has started."""

    def __init__(
        self, app: App, settings: Settings, router: Callable[[], Any], books: Bookkeeper | None = None
    ) -> None:
        raise_descriptor_limit()
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",  # a websocket would leave this protocol, and the front door accepts none
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            # Claude Code keeps its connection between two turns of a session, and a new connection costs time.
            timeout_keep_alive=75,
        )
        super().__init__(config)
        self._port, self._router, self._books = settings.proxy_port, router, books
        self._folders = Folders(BUNDLE, settings.folder)
        self.folder_gone = ""  # the message about a folder that was renamed or deleted
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        coroutines = (self._ready(), watch_config(self._router), self._watch_litellm(), self._watch_folders())
        self._tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        channel = supervisor_channel(os.environ)
        if channel is not None:
            asyncio.get_running_loop().add_reader(channel, self._on_supervisor, channel)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # Here, because after this uvicorn raises the signal again, which ends the process.
        if self._books is not None:
            await asyncio.to_thread(self._books.close)

    async def _ready(self) -> None:
        """Ask this process until it answers, and report that. A stop that comes first ends this without a word."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:  # loopback needs no company's proxy
            while not await is_answered(client, f"http://127.0.0.1:{self._port}/health/liveliness"):
                if self.should_exit:
                    return
                await asyncio.sleep(1)
        say(f"ready on http://127.0.0.1:{self._port}")
        report_ready(supervisor_channel(os.environ))

    def _on_supervisor(self, channel: int) -> None:
        if supervisor_gone(channel):
            asyncio.get_running_loop().remove_reader(channel)
            self._end(PM2_GONE)

    async def _watch_litellm(self) -> None:
        await wait_for_upgrade(litellm_files())
        self._end("LiteLLM was replaced under this process; exiting, so that PM2 starts the new version")

    async def _watch_folders(self) -> None:
        while not (gone := self._folders.gone()):
            await asyncio.sleep(WATCH_SECONDS)
        end_lost_daemon(os.environ)
        self.folder_gone = gone
        self.should_exit = True

    def _end(self, reason: str) -> None:
        say(reason)
        self.should_exit = True


async def is_answered(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).is_success
    except httpx.HTTPError:
        return False


async def watch_config(router: Callable[[], Any]) -> None:
    """Use each change of the model rows, forever, and log which other changes need a restart."""
    started_with = before = other_sections(live_config.document)
    used: dict[str, Any] = {}
    while True:
        await asyncio.sleep(1)
        live_config.reload()
        if live_config.document is used:
            continue
        used = live_config.document
        try:
            update_rows(router(), used["model_list"])
        except Exception as error:  # noqa: BLE001 - LiteLLM raises many kinds, and none may end this
            say(f"the changed rows of the template are not used, the old ones stay: {printable(error)}")
        now = other_sections(used)
        if now not in (before, started_with):
            changed = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
            say(f"{' and '.join(changed)} changed: takes effect with `{PM2} restart claude-proxy`")
        before = now


async def wait_for_upgrade(files: Sequence[Path]) -> None:
    """Return after the files have changed and then stayed the same between two checks: the installer has finished."""
    started_with = before = stamp(files)
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        bound_log(os.environ)
        now = stamp(files)
        if now != started_with and now == before and files[0].exists():
            return
        before = now


def update_rows(router: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Add the new rows to LiteLLM's router, and remove the rows that are no longer in the configuration. (If the whole
    list were replaced, old wildcard rows would stay active.) Raises ValueError for a row that LiteLLM does not accept;
    in that case nothing is changed."""
    wanted = {row["model_info"]["id"]: row for row in rows}
    known = set(router.get_model_ids())
    if known == wanted.keys():
        return
    from litellm.types.router import Deployment  # noqa: PLC0415 - this file must not import LiteLLM before its patch

    added, removed = [row_id for row_id in wanted if row_id not in known], known - wanted.keys()
    for row_id in added:  # before the old rows are removed, so that every model name works all the time
        try:
            router.add_deployment(Deployment(**copy.deepcopy(wanted[row_id])))
        except Exception as error:  # noqa: BLE001, PERF203 - LiteLLM raises many kinds
            for undone in added:
                router.delete_deployment(id=undone)
            # After "[type=" pydantic's message contains the row and a part of its token.
            message = " ".join(str(error).split()).partition("[type=")[0]
            raise ValueError(f"{row_id}: {message}") from None
    for row_id in removed:
        router.delete_deployment(id=row_id)
    say(f"models: {len(added)} rows added or changed, {len(removed)} old ones removed")


def other_sections(document: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the model rows. LiteLLM reads this part only at start."""
    return {name: section for name, section in document.items() if name != "model_list"}


def keep_routes(routes: list[Any], paths: Container[str]) -> None:
    """Remove every route that is not in `paths`, because LiteLLM compares each request with every route."""
    for route in routes:
        if hasattr(route, "original_router"):
            keep_routes(route.original_router.routes, paths)
    routes[:] = [
        route
        for route in routes
        if getattr(route, "path", None) in paths or getattr(getattr(route, "original_router", None), "routes", None)
    ]


def litellm_files() -> list[Path]:
    """Files that change when LiteLLM is upgraded, reinstalled or patched. The first is the patched file."""
    distribution = metadata.distribution("litellm")
    return [
        Path(str(distribution.locate_file("litellm/llms/openai/openai.py"))),
        Path(str(distribution.locate_file(f"litellm-{distribution.version}.dist-info/RECORD"))),
    ]
