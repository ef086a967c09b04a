#!/usr/bin/env python3
"""What is wrong with this set-up, and the command that mends it.

A request passes Claude Code, the proxy, a patched LiteLLM, perhaps a company's network, and Snowflake's login, role and
model lists; what is wrong in one of them shows in another. So each is looked at by itself, all side by side.

    python doctor.py            look at everything; costs nothing
    python doctor.py --live     also ask every model for one word, through the proxy, in the way Claude Code asks
    python doctor.py --json     for scripts
    python doctor.py --status   one screen: token, processes, last error
    python doctor.py --wait     after a start: until a model has answered through the proxy, else what is wrong

Nothing is changed or started, and no token or key is shown; only `--wait` asks, in a terminal, whether to write
CLAUDE_ROUTE into `.env` when a route refuses Claude Code. Exit status: 0 nothing fails (warnings may), 1 otherwise.
"""

from __future__ import annotations

import argparse
import email.utils
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import termios
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from bundle.bootstrap import BUNDLE, enter_venv
from patches import apply_patch

if __name__ == "__main__":
    enter_venv()

import httpx
import yaml

import auto_refresh
import claude_check
import configure
import point_claude
from auto_refresh import CLAUDE_ROUTES, ConfigError, Settings
from claude_proxy import port_owner
from patches.cortex_errors import explain
from patches.live_config import is_cortex, token_times

CLOCK_SECONDS = 30.0  # Snowflake refuses tokens from the future; how far it lets a clock be ahead is not documented
START_SECONDS = 150.0  # a slow machine needs half a minute
FREE_BYTES = 50 * 2**20
SWITCH_SECONDS = 30.0  # an edit of .env is live within four
NAMES = {"token-refresher": "auto_refresh.py", "claude-proxy": "claude_proxy.py"}
SECRET_NAME = re.compile(r"(?i)(KEY|TOKEN|SECRET|PASSWORD|PASSPHRASE|_PASS|_PAT)(?!_(FILE|PATH|FILE_PATH)$)(_|$)")
SECRET_FILES = (".master_key", "litellm_config.yaml", ".refresher.json", "claude.json")


@dataclass(frozen=True)
class Finding:
    """`state` is ok, warn, fail or skip; `mend` is what to do, with a command or SQL statement in it."""

    name: str
    state: str
    found: str
    mend: str = ""
    group: str = ""


class NotConfiguredError(Exception):
    """A check needs the settings, and there are none: another check says why."""


@dataclass(frozen=True)
class Setup:
    """What the checks look at; `now` in seconds since the epoch. Without settings, `trouble` says why."""

    folder: Path
    environ: Mapping[str, str]
    now: float
    given: Settings | None = None
    trouble: str = ""

    @property
    def settings(self) -> Settings:
        if self.given is None:
            raise NotConfiguredError
        return self.given

    @property
    def master_key(self) -> str:
        """Unlike `auto_refresh.master_key` this makes none: looking must not change what is looked at."""
        path = self.folder / ".master_key"
        return self.settings.given_master_key or (path.read_text(encoding="ascii").strip() if path.exists() else "-")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The model rows of litellm_config.yaml; none when it is not there or damaged."""
        try:
            document = yaml.safe_load((self.folder / "litellm_config.yaml").read_text(encoding="utf-8"))
            return [row for row in document["model_list"] if row["litellm_params"]["model"] and row["model_name"]]
        except (OSError, yaml.YAMLError, LookupError, TypeError):
            return []


def look(environ: Mapping[str, str], now: float) -> Setup:
    folder = auto_refresh.state_folder(environ)
    try:
        return Setup(folder, environ, now, given=auto_refresh.load_settings(environ))
    except ConfigError as error:
        return Setup(folder, environ, now, trouble=str(error))


Found = Iterator[Finding]


def judged(name: str, good: bool, found: str, mend: str, otherwise: str = "fail") -> Finding:
    return Finding(name, "ok", found) if good else Finding(name, otherwise, found, mend)


def said(name: str, message: object, state: str = "fail") -> Finding:
    """A message whose first line says what is wrong, and the others what mends it."""
    found, _, mend = str(message).partition("\n")
    return Finding(name, state, found, mend)


# -------------------------------------------------------------------------------------------------------- this machine


def programs(setup: Setup) -> Found:
    used = interpreter()
    version = ".".join(map(str, sys.version_info[:3]))
    mend = "make PYTHON=python3.12 install (any from 3.10 on)"
    yield judged("Python", sys.version_info >= (3, 10), f"{version} ({sys.executable})", mend)
    if Path(used).parent != Path(sys.executable).parent:
        yield Finding("Python", "warn", f"PM2 uses another one: {used}", f"Look with that: {used} doctor.py")
    node = run("node", "--version", environ=setup.environ).strip().lstrip("v")
    new_enough = int(node.partition(".")[0] or 0) >= 18
    yield judged("Node.js", new_enough, node or "not on PATH", "Install 18 or newer: https://nodejs.org")
    pm2 = pm2_version(setup.environ)
    yield judged("PM2", int(pm2.partition(".")[0] or 0) >= 5, pm2 or "not installed", "make install")
    yield litellm_release(metadata.version("litellm"))


def litellm_release(version: str) -> Finding:
    mend = f"{sys.executable} -m pip install --require-hashes -r {BUNDLE / 'requirements.txt'}"
    if version in apply_patch.MALICIOUS:
        found = f"{version} steals credentials ({apply_patch.MALICIOUS[version]})"
        return Finding("LiteLLM", "fail", f"{found}. Replace it, then every key that this machine could read", mend)
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < apply_patch.FLOOR:
        return Finding("LiteLLM", "fail", f"{version} lets a host header go around its keys (CVE-2026-49468)", mend)
    found = f"{version}, made for {apply_patch.MADE_FOR}"
    return judged("LiteLLM", version == apply_patch.MADE_FOR, found, mend, "warn")


def machine(setup: Setup) -> Found:
    free, writable = shutil.disk_usage(setup.folder).free, os.access(setup.folder, os.W_OK)
    found = f"{setup.folder} {'can' if writable else 'cannot'} be written, {free / 2**30:.1f} GB free"
    yield judged("Disk", writable and free > FREE_BYTES, found, f"df -h {setup.folder}; ls -ld {setup.folder}")
    if certificates := setup.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=certificates)
            yield Finding("Certificates", "ok", certificates)
        except OSError as error:  # ssl.SSLError is one
            found = f"SSL_CERT_FILE is {certificates}: {error.strerror or 'no certificate in it'}"
            yield Finding("Certificates", "fail", found, "Let it name your company's (PEM), or: unset SSL_CERT_FILE")


# ----------------------------------------------------------------------------------------------- key and configuration


def private_key(setup: Setup) -> Found:
    settings = setup.settings
    key = auto_refresh.load_key(settings.private_key_path, settings.passphrase)
    yield Finding("Private key", "ok", f"{settings.private_key_path}, RSA {key.key_size}, nobody else can read it")
    yield Finding("Fingerprint", "ok", f"{auto_refresh.fingerprint(key)} (to compare: DESC USER {settings.user})")


def account(setup: Setup) -> Found:
    if setup.trouble:
        yield said("Account", setup.trouble)
        return
    settings, running = setup.settings, auto_refresh.read_state(setup.folder)
    host = urlsplit(settings.base_url).netloc
    yield Finding("Account", "ok", f"{settings.account}, user {settings.user}, at {host}; from {settings.origin}")
    used, here = f"{running.get('account')}.{running.get('user')}", f"{settings.account}.{settings.user}"
    if running.get("account") and used != here:
        found = f"the running refresher was started for {used}, and this shell says {here}"
        yield Finding("In use", "warn", found, "Put the right one into .env, then: make stop start")


def template(setup: Setup) -> Found:
    names = [row["model_name"] for row in auto_refresh.template_rows(setup.settings, setup.settings.claude_route)]
    twice = sorted({name for name in names if names.count(name) > 1})
    found = f"rows of the same name, LiteLLM takes turns: {', '.join(twice)}" if twice else f"{len(names)} rows"
    yield judged("Models", not twice, found, "Remove all but one from litellm_config.template.yaml", "warn")


def secret_files(setup: Setup) -> Found:
    there = [path for path in (setup.folder / name for name in SECRET_FILES) if path.exists()]
    open_ones = " ".join(str(path) for path in there if path.stat().st_mode & 0o077)
    found = f"others can read {open_ones}" if open_ones else f"{len(there)} files that nobody else can read"
    yield judged("Secrets", not open_ones, found, f"chmod 600 {open_ones}")


# ------------------------------------------------------------------------------------------------- processes and patch


def token(setup: Setup) -> Found:
    state = auto_refresh.read_state(setup.folder)
    _, expires = token_times(next((row["litellm_params"]["api_key"] for row in setup.rows if is_cortex(row)), ""))
    left = expires - setup.now
    found = f"valid for {span(left)}" if left > 0 else f"it ended {span(-left)} ago" if expires else "there is none yet"
    yield judged("Token", left > 0, found, "token-refresher does not renew it: make start")
    if state.get("last_error"):
        yield said("Refresher", state["last_error"])


def processes(setup: Setup) -> Found:
    listed = pm2_processes(setup.environ)
    if listed is None:
        yield Finding("PM2", "fail", "it does not run", "make start")
        return
    running, ours = daemon_version(setup.environ), pm2_version(setup.environ)
    if running not in {"", ours}:
        found = f"the running daemon is of PM2 {running}, and this is {ours}: it works, but was not tested"
        yield Finding(
            "PM2", "warn", found, "pm2 update (it restarts all that PM2 runs, also what is not of this bundle)"
        )
    for name in NAMES:
        yield process(name, find_process(listed, name), setup)


def process(name: str, row: Mapping[str, Any], setup: Setup) -> Finding:
    """Judge a row of `pm2 jlist`; rows hold whole environments, so nothing but what is named here is shown."""
    if not row:
        return Finding(name, "fail", "it does not run", "make start")
    facts = row["pm2_env"]
    status, up = facts.get("status"), setup.now - facts.get("pm_uptime", 0) / 1000
    if facts.get("pm_exec_path") != str(BUNDLE / NAMES[name]):
        mend = f"{pm2_program(setup.environ)} delete {row['name']}; make start"
        return Finding(name, "fail", f"PM2 runs another copy: {facts.get('pm_exec_path')}", mend)
    if status == "launching":
        return Finding(name, "warn", "it is starting", "Look again in half a minute: make doctor")
    if status != "online":
        words = last_line(setup, str(row.get("name", name)))
        return Finding(name, "fail", f"{status}; last words: {words or 'none'}", "Mend what it says, then: make start")
    if facts.get("exec_interpreter") not in {interpreter(), "python3"}:
        found = f"it runs with {facts.get('exec_interpreter')}, no longer the right one: {interpreter()}"
        return Finding(name, "warn", found, "make stop start")
    if secrets := sorted(name for name in facts.get("env") or {} if SECRET_NAME.search(name)):
        found = f"PM2 has {', '.join(secrets)} of a shell, by --update-env, and writes them to dump.pm2"
        return Finding(name, "warn", found, "make stop start; and if you keep PM2's list: pm2 save --force")
    restarts, memory = facts.get("restart_time", 0), row.get("monit", {}).get("memory", 0) // 2**20
    steady = restarts < 3 or up > 600
    found = f"online for {span(up)}, {restarts} restarts, {memory} MB"
    return judged(name, steady, found if steady else f"{found}: it fails again and again", "See why: make logs", "warn")


def patch(_: Setup) -> Found:
    try:
        report = apply_patch.inspect()
        yield said("openai.py", report.detail, "ok" if report.ok else "fail")
    except apply_patch.PatchError as error:
        yield said("openai.py", error)


# --------------------------------------------------------------------------------------------------------------- proxy


def proxy(setup: Setup) -> Found:
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
            mend = "End that program, or put another port into .env (PROXY_PORT=8002), then: make stop start"
            yield Finding("Port", "fail", f"{port} is taken by {owner}", mend)
        return
    yield Finding("Port", "ok", f"the proxy answers on 127.0.0.1:{port}")
    fits = ask_proxy(setup, "GET", "/v1/models").status_code == 200
    mend = "make stop start"
    if setup.environ.get("LITELLM_MASTER_KEY"):  # PM2 hands on no secret of the shell
        mend = "unset LITELLM_MASTER_KEY (or put it into .env), then: make stop start"
    yield judged("Key", fits, f"the proxy {'takes' if fits else 'does not take'} the configured key", mend)
    outside = reachable_from_outside(port)
    found = f"anybody in your network can reach {outside}:{port}" if outside else "loopback only"
    yield judged("Address", not outside, found, "Run claude_proxy.py instead of litellm: make stop start")


def ask_proxy(setup: Setup, method: str, path: str, body: object = None, seconds: float = 5) -> httpx.Response:
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


# --------------------------------------------------------------------------------------------------------- Claude Code


def claude(setup: Setup) -> Found:
    own = str(BUNDLE / "node_modules" / ".bin" / "claude")
    version = run("claude", "--version", environ=setup.environ) or run(own, "--version", environ=setup.environ)
    yield judged("Version", bool(version), version.strip() or "not installed", "make install")
    try:
        problems = point_claude.check(setup.settings.proxy_port, setup.master_key, setup.environ, Path.cwd())
    except ConfigError as error:
        yield said("Settings", error)
        return
    if problems == [point_claude.NOT_POINTED]:
        yield Finding("Goes to", "ok", "the proxy as `make claude`, Anthropic as plain `claude`")
    elif not problems:
        yield Finding("Goes to", "ok", "the proxy")
    else:
        yield from (Finding("Goes to", "fail" if one.final else "warn", one.found, one.fix) for one in problems)


# ----------------------------------------------------------------------------------------------------------- Snowflake


@dataclass(frozen=True)
class Probe:
    """Cortex's answer to an empty request, which costs nothing; `ahead` is this clock against Snowflake's, seconds."""

    status: int
    body: str
    ahead: float | None


def probe(settings: Settings, token_value: str) -> Probe:
    """Authentication is checked before the body, so an empty one tells whether the token is taken. Raises as httpx."""
    headers = {"Authorization": f"Bearer {token_value}", "X-Snowflake-Authorization-Token-Type": "KEYPAIR_JWT"}
    # A stand-in on this machine is never behind a company's proxy.
    https = settings.base_url.startswith("https:")
    with httpx.Client(timeout=httpx.Timeout(10, connect=5), trust_env=https) as client:
        answer = client.post(settings.base_url + claude_check.CHAT.path, headers=headers, json={})
        date, now = email.utils.parsedate_tz(answer.headers.get("date", "")), time.time()
    return Probe(answer.status_code, answer.text, now - email.utils.mktime_tz(date) if date else None)


def snowflake(setup: Setup) -> Found:
    settings, signed = setup.settings, None
    host, through = urlsplit(settings.base_url).hostname or "", company_proxy(settings.base_url)
    with suppress(ConfigError):  # the key's own check says why; the way to Snowflake can be looked at all the same
        signed = auto_refresh.sign(settings, time.time())
    try:
        answer = probe(settings, signed.value if signed else "none")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError) as error:
        yield unreachable(host, through, error)
        return
    yield Finding("Host", "ok", f"{host} answers {f'through {through}' if through else 'directly'}")
    if answer.ahead is not None:
        found = f"{span(abs(answer.ahead))} {'ahead of' if answer.ahead > 0 else 'behind'} Snowflake's"
        mend = "Set it by the network: sudo timedatectl set-ntp true (macOS: sudo sntp -sS time.apple.com)"
        state = "fail" if answer.status == 401 else "warn"
        yield judged("Clock", abs(answer.ahead) < CLOCK_SECONDS, found, mend, state)
    yield login(answer, settings) if signed else Finding("Login", "skip", "there is no usable key")


def company_proxy(url: str) -> str:
    """HOST:PORT of the HTTP proxy between here and `url`, without its password; empty when there is none."""
    parts, proxies = urlsplit(url), getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all") or ""
    return "" if proxy_bypass(parts.hostname or "") else re.sub(r"^(\w+://)?(.*@)?|/$", "", address)


def unreachable(host: str, through: str, error: BaseException) -> Finding:
    """Which part of the way failed: the errors inside an error of httpx tell."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(one, ssl.SSLError) for one in chain):
        mend = "A company proxy that opens TLS has its own certificates: export SSL_CERT_FILE=…, then make stop start"
        return Finding("Host", "fail", f"the certificate of {host} is not trusted: {error}", mend)
    if through:
        mend = f"Check HTTPS_PROXY (user and password too), or go around it: export NO_PROXY={host}"
        return Finding("Host", "fail", f"the HTTP proxy {through} does not let us through: {error}", mend)
    if any(isinstance(one, socket.gaierror) for one in chain):
        mend = "Check SNOWFLAKE_ACCOUNT in .env (a locator needs its region), DNS and VPN"
        return Finding("Host", "fail", f"there is no host {host}", mend)
    mend = "Check network, VPN and firewall; in a company perhaps: export HTTPS_PROXY=http://HOST:PORT"
    return Finding("Host", "fail", f"{host} cannot be reached: {str(error) or type(error).__name__}", mend)


def login(answer: Probe, settings: Settings) -> Finding:
    """What the status of an empty request says of key, user, role and network policy."""
    who, told = f"{settings.account}.{settings.user}", explain(answer.status, answer.body)
    try:
        # Some of Cortex's errors, which pass, come as a 200.
        cortex_s = isinstance(json.loads(answer.body), dict) and (told.retry or answer.status not in {200, 404})
    except ValueError:
        cortex_s = False
    if not cortex_s:
        found = f"{settings.base_url} is not Cortex: it answers {answer.status} in other words"
        return Finding("Login", "fail", found, "Check account and host in .env, and for a log-in page of your network")
    if answer.status == 401:
        key = auto_refresh.load_key(settings.private_key_path, settings.passphrase)
        failure = re.search(r"\[([0-9a-f-]{36})\]", answer.body)  # a request_id is there too
        mend = f"""Compare: DESC USER {settings.user}; must show the fingerprint {auto_refresh.fingerprint(key)}
If it does not: {auto_refresh.register_statement(settings.user, key)}
If it does, this says why (394300 login name, 394302 clock, 394307 account):
SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{failure[1] if failure else "UUID"}');"""
        return Finding("Login", "fail", f"Snowflake refuses {who} with this key", mend)
    if answer.status == 400 and not told.retry:
        return Finding("Login", "ok", f"Snowflake takes {who} with this key")
    return said("Login", told.message, "warn" if told.retry else "fail")


def models(setup: Setup) -> Found:
    """One word from each distinct model; a wildcard row is asked under a made-up name of its family."""
    names: dict[str, list[str]] = {}
    for row in setup.rows:
        names.setdefault(row["litellm_params"]["model"], []).append(row["model_name"])
    try:
        ask_proxy(setup, "GET", "/health/liveliness")
    except httpx.HTTPError:
        yield Finding("Models", "skip", "the proxy does not answer")
        return
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda pair: ask_model(setup, *pair), names.items())


def ask_model(setup: Setup, model: str, names: Sequence[str]) -> Finding:
    name = min(names, key=lambda name: "*" in name)
    # What Claude Code asks for by itself ends at a wildcard row; any other matters only to who picks it.
    state = "fail" if any("*" in name for name in names) else "warn"
    report = check_model(setup, model, name)
    if report.answers == "whole":
        return Finding(model, "ok", f"{report.found}, for {', '.join(names)}")
    return Finding(model, "warn" if report.answers == "in part" else state, report.found, report.remedy)


def check_model(setup: Setup, model: str, name: str) -> claude_check.Report:
    ours = any(is_cortex(row) and row["litellm_params"]["model"] == model for row in setup.rows)
    return claude_check.check(setup.settings, setup.master_key, model, name, has_routes=ours)


# --------------------------------------------------------------------------------------------------- asking and saying


def run(*command: str, environ: Mapping[str, str]) -> str:
    """The command's output; empty when it cannot be run."""
    program = shutil.which(command[0], path=environ.get("PATH")) or command[0]
    environ = {**environ, "PM2_DISCRETE_MODE": "1", "PM2_DISABLE_VERSION_CHECK": "1"}
    try:
        return subprocess.run(
            [program, *command[1:]], env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def interpreter() -> str:
    """What ecosystem.config.js lets PM2 run the scripts with."""
    venv = BUNDLE / ".venv" / "bin" / "python"
    return str(venv) if venv.exists() else shutil.which("python3") or "python3"


def pm2_program(environ: Mapping[str, str]) -> str:
    ours = BUNDLE / "node_modules" / ".bin" / "pm2"
    return str(ours) if ours.exists() else shutil.which("pm2", path=environ.get("PATH")) or "pm2"


def pm2_version(environ: Mapping[str, str]) -> str:
    package = Path(pm2_program(environ)).resolve().parent.parent / "package.json"  # asking PM2 itself would start it
    return str(json.loads(package.read_text(encoding="utf-8"))["version"]) if package.exists() else ""


def pm2_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("PM2_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".pm2")


def daemon_version(environ: Mapping[str, str]) -> str:
    """The version that PM2's daemon said when it started; empty when that cannot be told."""
    try:
        log = (pm2_home(environ) / "pm2.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return str((re.findall(r"PM2 version +: (\S+)", log) or [""])[-1])


def pm2_processes(environ: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """What PM2 runs, or None when its daemon does not: `jlist` would start one, so its socket is tried first."""
    try:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.settimeout(5)
            daemon.connect(str(pm2_home(environ) / "rpc.sock"))
        lines = run(pm2_program(environ), "jlist", environ=environ).splitlines()
        listed: list[dict[str, Any]] = json.loads(next(line for line in reversed(lines) if line.startswith("[")))
    except (OSError, StopIteration, ValueError):
        return None
    return listed


def find_process(listed: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((row for row in listed if row.get("name") in {name, f"demo-{name}"}), {})


def last_line(setup: Setup, name: str, pattern: str = r"\S") -> str:
    """The last line of a process's log in which the pattern occurs."""
    try:
        with (setup.folder / "logs" / f"{name}.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 65536))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if re.search(pattern, line)), "")


def span(seconds: float) -> str:
    """A length of time in its largest unit, cut."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60))
    unit, size = next((pair for pair in units if seconds >= 2 * pair[1]), ("seconds", 1))
    return f"{max(0, int(seconds // size))} {unit}"


CHECKS: Mapping[str, Sequence[Callable[[Setup], Found]]] = {
    "This machine": (programs, machine),
    "Key": (private_key,),
    "Configuration": (account, template, secret_files),
    "Processes": (processes, token),
    "Patch": (patch,),
    "Proxy": (proxy,),
    "Claude Code": (claude,),
    "Snowflake": (snowflake,),
}


def examine(setup: Setup, *, live: bool = False) -> list[Finding]:
    """All findings, in the order of CHECKS; the checks run side by side."""

    def one(group: str, check: Callable[[Setup], Found]) -> list[Finding]:
        title, findings = check.__name__.replace("_", " ").capitalize(), []
        try:
            for finding in check(setup):
                findings.append(finding)  # noqa: PERF402 - what was found before an error counts
        except NotConfiguredError:
            findings.append(Finding(title, "skip", "waits for the configuration"))
        except ConfigError as error:
            findings.append(said(title, error))
        except Exception as error:  # noqa: BLE001 - a check that breaks must not hide what the others found
            findings.append(Finding(title, "fail", f"cannot be checked: {type(error).__name__}: {error}", "make logs"))
        return [replace(finding, group=group) for finding in findings]

    table = [(group, check) for group, checks in CHECKS.items() for check in checks]
    table += [("Models", models)] if live else []
    with ThreadPoolExecutor(len(table)) as pool:
        return [finding for found in pool.map(lambda row: one(*row), table) for finding in found]


def page(findings: Sequence[Finding], width: int, *, colour: bool) -> str:
    """For people: prose is wrapped at `width` columns, what is to be copied is not."""
    codes, group = {"ok": 32, "warn": 33, "fail": 31, "skip": 2}, ""
    lines: list[str] = []
    wrap = textwrap.TextWrapper(max(20, width - 7), break_long_words=False, break_on_hyphens=False).wrap
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group] if lines else [group]
        state = f"{'FAIL' if finding.state == 'fail' else finding.state:<4}"
        first, *rest = wrap(f"{finding.name}: {finding.found}")
        lines.append(f"  {f'{chr(27)}[{codes[finding.state]}m{state}{chr(27)}[0m' if colour else state} {first}")
        lines += [f"       {line}" for line in [*rest, *finding.mend.splitlines()]]
    count = Counter(finding.state for finding in findings)
    verdict = f"{count['fail']} to mend, the first one first" if count["fail"] else "Nothing fails"
    return "\n".join([*lines, "", f"{verdict}; {count['ok']} in order, {count['warn']} warnings."])


def status(setup: Setup) -> tuple[str, bool]:
    """The screen of `--status`, and whether all is well."""
    state, listed = auto_refresh.read_state(setup.folder), pm2_processes(setup.environ) or []
    findings = [process(name, find_process(listed, name), setup) for name in NAMES]
    lines = [*auto_refresh.status_lines({**state, "last_error": None}, setup.now)]
    lines += [f"{finding.name + ':':<17}{finding.found}" for finding in findings]
    log = find_process(listed, "claude-proxy").get("name", "claude-proxy")
    last = last_line(setup, log, r"\berror \d{3} |ERROR|\.py: ")
    lines.append(f"last error: {state.get('last_error') or last or 'none'}")
    good = state.get("expires", 0) > setup.now and all(finding.state == "ok" for finding in findings)
    return "\n".join([*lines, "use it:     make claude" if good else "what is wrong: make doctor"]), good


def wait(setup: Setup) -> bool:
    """Wait until a model has answered through the proxy; else show what fails. PM2 calls an early death a success."""
    if setup.trouble:
        print(setup.trouble)
        return False
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if "alive" in ask_proxy(setup, "GET", "/health/liveliness").text:
                break
        listed = pm2_processes(setup.environ) or []
        if any(find_process(listed, name).get("pm2_env", {}).get("status") in {"errored", "stopped"} for name in NAMES):
            break
        time.sleep(0.5)
    names, reports = ask_families(setup)
    if not setup.settings.claude_route_from and (better := better_for_all(reports)):
        model, route = better
        return offer(setup, model, names[model], reports, route)
    return greet(setup, reports)


def better_for_all(reports: Mapping[str, claude_check.Report]) -> tuple[str, claude_check.Route] | None:
    """The other route, and a model that shows it, where no model works whole on this one and none would lose by it."""
    if any(
        report.answers == "whole" or (report.answers == "in part" and not report.better) for report in reports.values()
    ):
        return None
    return next(((model, report.better) for model, report in reports.items() if report.better), None)


def ask_families(setup: Setup) -> tuple[dict[str, str], dict[str, claude_check.Report]]:
    """The models that Claude Code gets by itself, the cheapest first: the row of each, and how it answers."""
    rows = [row for row in setup.rows if "*" in row["model_name"]] or setup.rows
    names: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: "haiku" not in row["model_name"]):
        names.setdefault(row["litellm_params"]["model"], row["model_name"])
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda pair: check_model(setup, *pair), names.items())
        return names, dict(zip(names, asked, strict=True))


def greet(setup: Setup, reports: Mapping[str, claude_check.Report]) -> bool:
    """Say which models answer, and what there is to know all the same; or, when none does, what is wrong. That the
    region lacks one model is no reason to fail, that it lacks all is."""
    if not any(report.answers != "no" for report in reports.values()):
        wrong = [finding for finding in examine(setup, live=True) if finding.state in {"fail", "warn"}]
        print(page(wrong, shutil.get_terminal_size().columns, colour=False))
        return False
    warnings = [finding for finding in processes(setup) if finding.state == "warn"]
    same: dict[tuple[str, str], list[str]] = {}
    for model, report in reports.items():
        if report.answers != "whole":
            same.setdefault((report.found, report.remedy), []).append(model.partition("/")[2])
    warnings += [Finding(", ".join(names), "warn", *words) for words, names in same.items()]
    for finding in warnings:
        print(f"Warning: {finding.name}: {finding.found}\n{finding.mend}".rstrip())
    *first, last = [model.partition("/")[2] for model, report in reports.items() if report.answers != "no"]
    print(
        f"{', '.join(first)} and {last} on Snowflake Cortex answer."
        if first
        else f"{last} on Snowflake Cortex answers."
    )
    return True


def offer(
    setup: Setup, model: str, name: str, reports: Mapping[str, claude_check.Report], better: claude_check.Route
) -> bool:
    """Say that the other route is the better one, and change to it if somebody is there who says yes; or keep this one
    and ask no more. Whether Claude Code then works."""
    report = reports[model]
    print(f"{model.partition('/')[2]}: {report.found}.")
    yes = agrees("Switch to it? [Y/n] ")
    if yes is None:
        print(report.remedy)
        return False
    route = better if yes else claude_check.other_route(better)
    try:
        configure.save(setup.folder / ".env", "CLAUDE_ROUTE", route.word)
    except ConfigError as error:
        print(error)
        return False
    print(f"CLAUDE_ROUTE={route.word} is in {setup.folder / '.env'} now.", flush=True)
    setup = look(setup.environ, time.time())
    if yes:
        return switched(setup, f"{CLAUDE_ROUTES[route.word]}/{model.partition('/')[2]}", name)
    if all(report.answers == "no" for report in reports.values()):
        print(f"So Claude Code gets no answer.\n{report.remedy}")
        return False
    return greet(setup, reports)


def agrees(question: str) -> bool | None:
    """Whether somebody says yes (Enter will do); None when nobody is there, or nobody wants to say."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    with suppress(termios.error):  # an Enter too many from before is not meant
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    try:
        while (answer := input(question).strip().lower()) not in {"", "y", "yes", "n", "no"}:
            pass
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return answer in {"", "y", "yes"}


def switched(setup: Setup, model: str, name: str) -> bool:
    """Wait until refresher and proxy have taken up the new route; whether the row's model then answers."""
    deadline = time.monotonic() + SWITCH_SECONDS
    while not any(row["model_name"] == name and row["litellm_params"]["model"] == model for row in setup.rows):
        if time.monotonic() > deadline:
            # Its own environment, from the shell in which it was started, beats .env.
            print("token-refresher does not take it up. See why: make logs; or let it start anew: make stop start")
            return False
        time.sleep(0.25)
    while True:
        time.sleep(1.5)  # the proxy looks at the rows once a second
        report = check_model(setup, model, name)
        if report.answers == "whole" or time.monotonic() > deadline:
            break
    if report.answers == "no":
        print(f"{model.partition('/')[2]}: {report.found}\n{report.remedy}".rstrip())
        return False
    return greet(setup, ask_families(setup)[1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What is wrong with this set-up, and the command that mends it.")
    parser.add_argument("--live", action="store_true", help="also ask every model for one word (a few tokens each)")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--status", action="store_true", help="one screen: token, processes, last error")
    parser.add_argument("--wait", action="store_true", help="after a start: wait until a model has answered")
    options = parser.parse_args(arguments)
    setup = look(os.environ, time.time())
    if options.wait:
        return 0 if wait(setup) else 1
    if options.status:
        screen, good = status(setup)
        print(screen)
        return 0 if good else 1
    findings = examine(setup, live=options.live)
    good = not any(finding.state == "fail" for finding in findings)
    if options.json:
        print(json.dumps({"ok": good, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        terminal = sys.stdout.isatty()
        plain = not terminal or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        print(page(findings, shutil.get_terminal_size().columns if terminal else 10_000, colour=not plain))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
