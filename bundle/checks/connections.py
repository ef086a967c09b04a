"""Checks of each connection: from Claude Code to the proxy, the proxy itself, and from here to Snowflake."""

from __future__ import annotations

import email.utils
import json
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from bundle.bootstrap import BUNDLE, make, script
from bundle.checks.finding import Finding, Findings, Installation, duration, finding_from_message, make_finding
from bundle.checks.model_check import CHAT, post
from bundle.claude_check import NOT_POINTED, check, check_models
from bundle.claude_models import check_start
from bundle.cortex.errors import as_pat, explain
from bundle.errors import ConfigError
from bundle.network import company_proxy, redirected, why_unreachable
from bundle.render import newest_models
from bundle.settings import Settings
from bundle.supervisor import output_of
from bundle.tokens import auth_headers, fingerprint, load_key, name_note, register_statement, token_now

CLOCK_SECONDS = 30.0  # Snowflake refuses tokens from the future; its tolerance is not documented


def proxy(installation: Installation) -> Findings:
    """Who listens on the port, from whom, and with which key. (The proof shows the key, so the key is not sent.)"""
    port, found = installation.settings.proxy_port, installation.listener()
    if found.state == "another key":
        fix = found.fix
        if installation.environ.get("LITELLM_MASTER_KEY"):  # PM2 gets no secret of the shell
            fix = f"unset LITELLM_MASTER_KEY (or put it into .env), then: {make('stop', 'start')}"
        yield Finding("Key", "fail", found.found, fix)
    elif found.state != "ours":
        name, state = (
            "Port" if found.state == "foreign" else "Listener",
            "warn" if found.state == "starting" else "fail",
        )
        yield Finding(name, state, found.found, found.fix)
        return
    else:
        yield Finding("Port", "ok", found.found)
        yield Finding("Key", "ok", "the proxy has the configured key")
    why = f"Why, and what to do: {make('doctor', 'ARGS=--live')}"
    yield from (Finding("Model", "warn", sentence, why) for sentence in stand_ins(installation))
    address = reachable_from_outside(port)
    found_there = f"anybody in your network can reach {address}:{port}" if address else "loopback only"
    fix = f"Run claude_proxy.py instead of litellm: {make('stop', 'start')}"
    yield make_finding("Address", not address, found_there, fix)


def reachable_from_outside(port: int) -> str:
    """This machine's address in its network if `port` accepts connections there, otherwise empty."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but shows the address that would be used
            address = str(probe.getsockname()[0])
        with socket.create_connection((address, port), timeout=2):
            return "" if address.startswith("127.") else address
    except OSError:
        return ""


def claude(installation: Installation) -> Findings:
    environ, installed = installation.environ, str(BUNDLE / "node_modules" / ".bin" / "claude")
    version = output_of("claude", "--version", environ=environ) or output_of(installed, "--version", environ=environ)
    yield make_finding("Version", bool(version), version.strip() or "not installed", make("install"))
    try:
        check_start(installation.settings)
        port = installation.settings.proxy_port
        problems = check(port, installation.master_key or "-", environ, Path.cwd())
        models = check_models(installation.settings, environ, Path.cwd())
    except ConfigError as error:
        yield finding_from_message("Settings", error)
        return
    run_claude = script("point_claude.py", "--run")
    if problems == [NOT_POINTED]:
        yield Finding("Goes to", "ok", f"`{run_claude}` uses the proxy, plain `claude` uses Anthropic")
    elif not problems:
        yield Finding("Goes to", "ok", "the proxy")
    else:
        for found, fix, final in problems:
            yield Finding("Goes to", "fail" if final else "warn", found, fix)
    yield from (Finding("Asks for", "warn", found, fix) for found, fix, _ in models)


def snowflake(installation: Installation) -> Findings:
    settings, token = installation.settings, None
    host, proxy_address = urlsplit(settings.base_url).hostname or "", company_proxy(settings.base_url)
    with suppress(ConfigError):  # the check of the key shows the error; the connection can be checked without a token
        token = token_now(settings, time.time())
    headers = auth_headers(token) if token else {"Authorization": "Bearer none"}
    try:
        # Cortex checks the token before the body, so an empty body is enough.
        response = post(settings.base_url + CHAT.path, {}, headers, seconds=10)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError) as error:
        yield Finding("Host", "fail", *why_unreachable(host, proxy_address, error))
        return
    if response.is_redirect:
        location = response.headers.get("location", "")
        yield Finding("Host", "fail", *redirected(settings.base_url, response.status_code, location))
        return
    date, now = email.utils.parsedate_tz(response.headers.get("date", "")), time.time()
    ahead = now - email.utils.mktime_tz(date) if date else None
    yield Finding("Host", "ok", f"{host} answers {f'through {proxy_address}' if proxy_address else 'directly'}")
    if ahead is not None and settings.pat is None:  # (of a token that is not signed here, the time does not matter)
        found = f"{duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} Snowflake's"
        fix = "Set it by the network: sudo timedatectl set-ntp true (macOS: sudo sntp -sS time.apple.com)"
        state = "fail" if response.status_code == 401 else "warn"
        yield make_finding("Clock", abs(ahead) < CLOCK_SECONDS, found, fix, state)
    no_key = Finding("Login", "skip", f"there is no usable {'access token' if settings.pat else 'key'}")
    yield login(response.status_code, response.text, settings) if token else no_key


def login(status: int, body: str, settings: Settings) -> Finding:
    """What the answer to an empty request, which costs nothing, shows about key, user, role and network policy."""
    who = f"{settings.account}.{settings.user}"
    with_what = "this key" if settings.pat is None else "this programmatic access token"
    error = explain(status, body if settings.pat is None else as_pat(status, body), BUNDLE)
    try:
        # Cortex sends some temporary errors with status 200.
        is_from_cortex = isinstance(json.loads(body), dict) and (error.retry or status not in {200, 404})
    except ValueError:
        is_from_cortex = False
    if not is_from_cortex:
        found = f"{settings.base_url} is not Cortex: it answers {status} with an unknown body"
        fix = "Check account and host in .env. Check whether your network shows a login page first."
        return Finding("Login", "fail", found, fix)
    if status == 401 and settings.pat is not None:
        words, _, remedy = error.message.partition("\n")
        found = f"Snowflake refuses {who} with {with_what} ({words.removeprefix('Snowflake Cortex: ')})"
        return Finding("Login", "fail", found, f"{remedy}\nThe old one is {settings.pat.place}.")
    if status == 401:
        key = load_key(settings.private_key_path, settings.passphrase)
        failure = re.search(r"\[([0-9a-f-]{36})\]", body)  # (the answer also contains a request_id)
        fix = f"""Compare: DESC USER {settings.user}; must show the fingerprint {fingerprint(key)}
If it does not: {register_statement(settings.user, key)}
{name_note(settings.user)}
If it does, this says why (394300 login name, 394302 clock, 394307 account):
SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{failure[1] if failure else "UUID"}');"""
        return Finding("Login", "fail", f"Snowflake refuses {who} with {with_what}", fix)
    if status == 400 and not error.retry:
        return Finding("Login", "ok", f"Snowflake accepts {who} with {with_what}")
    return finding_from_message("Login", error.message, "warn" if error.retry else "fail")


def stand_ins(installation: Installation) -> list[str]:
    """A sentence for each row that says `newest` for which an older model answers now, because Cortex has refused the
    one that was filled in. Only the proxy knows that. Empty if it does not answer."""
    filled = newest_models(installation.rows)
    if not filled or installation.listener().state != "ours":
        return []
    url = f"http://127.0.0.1:{installation.settings.proxy_port}/v1/models"
    found = []
    with suppress(httpx.HTTPError, ValueError, TypeError), httpx.Client(trust_env=False, timeout=3) as client:
        for row, model in filled.items():
            asked = row.replace("*", "latest")
            headers = {"Authorization": f"Bearer {installation.master_key}"}
            answer = client.get(f"{url}/{asked}", headers=headers)
            answers = answer.json().get("id", asked)
            if answer.status_code == httpx.codes.NOT_FOUND:
                found.append(f"{row}: no model answers. Cortex has refused {model} and all older ones")
            elif answers not in {model, asked}:
                found.append(f"{row}: {answers} answers, because Cortex has refused {model}")
    return found
