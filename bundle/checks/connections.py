"""Checks of each connection: Claude Code to the proxy, the proxy itself, and the way to Snowflake."""

from __future__ import annotations

import email.utils
import json
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from bundle import claude_settings
from bundle.bootstrap import BUNDLE
from bundle.checks.finding import Finding, Findings, Installation, from_message, span, verdict
from bundle.checks.model_check import CHAT
from bundle.cortex.errors import explain
from bundle.errors import ConfigError
from bundle.network import company_proxy, why_unreachable
from bundle.settings import Settings
from bundle.supervisor import output_of, port_owner
from bundle.tokens import auth_headers, fingerprint, load_key, register_statement, sign

CLOCK_SECONDS = 30.0  # Snowflake refuses tokens from the future; how far it lets a clock be ahead is not documented


def proxy(setup: Installation) -> Findings:
    port = setup.settings.proxy_port
    try:
        ours = "alive" in ask_proxy(setup, "GET", "/health/liveliness").text
    except httpx.ConnectError:
        yield Finding("Port", "fail", f"nothing listens on 127.0.0.1:{port}", "make start")
        return
    except httpx.HTTPError:
        ours = False
    if not ours:
        owner = port_owner(port) or "another program"
        if "claude_proxy.py" in owner:
            yield Finding("Port", "warn", f"{owner} does not answer yet", "Look again in half a minute: make doctor")
        else:
            fix = "End that program, or put another port into .env (PROXY_PORT=8002), then: make stop start"
            yield Finding("Port", "fail", f"{port} is taken by {owner}", fix)
        return
    yield Finding("Port", "ok", f"the proxy answers on 127.0.0.1:{port}")
    fits = ask_proxy(setup, "GET", "/v1/models").status_code == 200
    fix = "make stop start"
    if setup.environ.get("LITELLM_MASTER_KEY"):  # PM2 hands on no secret of the shell
        fix = "unset LITELLM_MASTER_KEY (or put it into .env), then: make stop start"
    yield verdict("Key", fits, f"the proxy {'takes' if fits else 'does not take'} the configured key", fix)
    outside = reachable_from_outside(port)
    found = f"anybody in your network can reach {outside}:{port}" if outside else "loopback only"
    yield verdict("Address", not outside, found, "Run claude_proxy.py instead of litellm: make stop start")


def ask_proxy(setup: Installation, method: str, path: str, body: object = None, seconds: float = 5) -> httpx.Response:
    url, headers = f"http://127.0.0.1:{setup.settings.proxy_port}", {"Authorization": f"Bearer {setup.master_key}"}
    with httpx.Client(trust_env=False, timeout=seconds) as client:  # loopback never goes through a company's proxy
        return client.request(method, url + path, headers=headers, json=body)


def reachable_from_outside(port: int) -> str:
    """This machine's address in its network, when `port` takes connections there."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect(("192.0.2.1", 9))  # sends nothing, but shows the address that would be used
            address = str(route.getsockname()[0])
        with socket.create_connection((address, port), timeout=2):
            return "" if address.startswith("127.") else address
    except OSError:
        return ""


def claude(setup: Installation) -> Findings:
    own = str(BUNDLE / "node_modules" / ".bin" / "claude")
    version = output_of("claude", "--version", environ=setup.environ) or output_of(
        own, "--version", environ=setup.environ
    )
    yield verdict("Version", bool(version), version.strip() or "not installed", "make install")
    try:
        problems = claude_settings.check(setup.settings.proxy_port, setup.master_key, setup.environ, Path.cwd())
    except ConfigError as error:
        yield from_message("Settings", error)
        return
    if problems == [claude_settings.NOT_POINTED]:
        yield Finding("Goes to", "ok", "the proxy as `make claude`, Anthropic as plain `claude`")
    elif not problems:
        yield Finding("Goes to", "ok", "the proxy")
    else:
        yield from (Finding("Goes to", "fail" if one.final else "warn", one.found, one.fix) for one in problems)


@dataclass(frozen=True)
class LoginAnswer:
    """Cortex's answer to an empty request, which costs nothing; `ahead` is this clock against Snowflake's, seconds."""

    status: int
    body: str
    ahead: float | None


def ask_for_login(settings: Settings, token_value: str) -> LoginAnswer:
    """Authentication is checked before the body, so an empty one tells whether the token is taken. Raises as httpx."""
    # A stand-in on this machine is never behind a company's proxy.
    https = settings.base_url.startswith("https:")
    with httpx.Client(timeout=httpx.Timeout(10, connect=5), trust_env=https) as client:
        answer = client.post(settings.base_url + CHAT.path, headers=auth_headers(token_value), json={})
        date, now = email.utils.parsedate_tz(answer.headers.get("date", "")), time.time()
    return LoginAnswer(answer.status_code, answer.text, now - email.utils.mktime_tz(date) if date else None)


def snowflake(setup: Installation) -> Findings:
    settings, signed = setup.settings, None
    host, through = urlsplit(settings.base_url).hostname or "", company_proxy(settings.base_url)
    with suppress(ConfigError):  # the key's own check says why; the way to Snowflake can be looked at all the same
        signed = sign(settings, time.time())
    try:
        answer = ask_for_login(settings, signed.value if signed else "none")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError) as error:
        yield Finding("Host", "fail", *why_unreachable(host, through, error))
        return
    yield Finding("Host", "ok", f"{host} answers {f'through {through}' if through else 'directly'}")
    if answer.ahead is not None:
        found = f"{span(abs(answer.ahead))} {'ahead of' if answer.ahead > 0 else 'behind'} Snowflake's"
        fix = "Set it by the network: sudo timedatectl set-ntp true (macOS: sudo sntp -sS time.apple.com)"
        state = "fail" if answer.status == 401 else "warn"
        yield verdict("Clock", abs(answer.ahead) < CLOCK_SECONDS, found, fix, state)
    yield login(answer, settings) if signed else Finding("Login", "skip", "there is no usable key")


def login(answer: LoginAnswer, settings: Settings) -> Finding:
    """What the status of an empty request says of key, user, role and network policy."""
    who, told = f"{settings.account}.{settings.user}", explain(answer.status, answer.body)
    try:
        # Some of Cortex's errors, which pass, come as a 200.
        is_from_cortex = isinstance(json.loads(answer.body), dict) and (told.retry or answer.status not in {200, 404})
    except ValueError:
        is_from_cortex = False
    if not is_from_cortex:
        found = f"{settings.base_url} is not Cortex: it answers {answer.status} in other words"
        return Finding("Login", "fail", found, "Check account and host in .env, and for a log-in page of your network")
    if answer.status == 401:
        key = load_key(settings.private_key_path, settings.passphrase)
        failure = re.search(r"\[([0-9a-f-]{36})\]", answer.body)  # a request_id is there too
        fix = f"""Compare: DESC USER {settings.user}; must show the fingerprint {fingerprint(key)}
If it does not: {register_statement(settings.user, key)}
If it does, this says why (394300 login name, 394302 clock, 394307 account):
SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{failure[1] if failure else "UUID"}');"""
        return Finding("Login", "fail", f"Snowflake refuses {who} with this key", fix)
    if answer.status == 400 and not told.retry:
        return Finding("Login", "ok", f"Snowflake takes {who} with this key")
    return from_message("Login", told.message, "warn" if told.retry else "fail")
