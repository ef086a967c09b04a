"""Checks of the processes that PM2 runs, and the text of `doctor.py --status`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bundle.bootstrap import BUNDLE
from bundle.checks.finding import (
    Finding,
    Findings,
    Installation,
    NotConfiguredError,
    duration,
    finding_from_message,
    make_finding,
)
from bundle.claude_settings import old_models
from bundle.errors import ConfigError
from bundle.refresher import read_state, status_lines
from bundle.render import is_cortex
from bundle.supervisor import daemon_version, find_process, interpreter, pm2_processes, pm2_program, pm2_version
from bundle.tokens import token_times

SCRIPTS = {"token-refresher": "auto_refresh.py", "claude-proxy": "claude_proxy.py"}
SECRET_NAME = re.compile(r"(?i)(KEY|TOKEN|SECRET|PASSWORD|PASSPHRASE|_PASS|_PAT)(?!_(FILE|PATH|FILE_PATH)$)(_|$)")


def token(installation: Installation) -> Findings:
    state = read_state(installation.folder)
    tokens = [row["litellm_params"]["api_key"] for row in installation.rows if is_cortex(row)]
    _, expires = token_times(tokens[0] if tokens else "")
    left = expires - installation.now
    found = f"valid for {duration(left)}" if left > 0 else f"it ended {duration(-left)} ago"
    fix = "token-refresher does not renew it. Run: make start"
    yield make_finding("Token", left > 0, found if expires else "there is none yet", fix)
    if state.get("last_error"):
        yield finding_from_message("Refresher", state["last_error"])


def processes(installation: Installation) -> Findings:
    listed = pm2_processes(installation.environ)
    if listed is None:
        yield Finding("PM2", "fail", "it does not run", "make start")
        return
    running, installed = daemon_version(installation.environ), pm2_version(installation.environ)
    if running not in {"", installed}:
        found = f"PM2 {running} runs, but PM2 {installed} is installed: this works, but it was not tested"
        yield Finding("PM2", "warn", found, "pm2 update (restarts all processes of PM2, also those of other projects)")
    for name in SCRIPTS:
        yield process(name, find_process(listed, name), installation)


def process(name: str, row: Mapping[str, Any], installation: Installation) -> Finding:
    """Check a row of `pm2 jlist`. Rows contain whole environments, so only the fields named here are shown."""
    if not row:
        return Finding(name, "fail", "it does not run", "make start")
    facts = row["pm2_env"]
    state, up = facts.get("status"), installation.now - facts.get("pm_uptime", 0) / 1000
    if facts.get("pm_exec_path") != str(BUNDLE / SCRIPTS[name]):
        fix = f"{shlex.quote(pm2_program(installation.environ))} delete {row['name']}; make start"
        return Finding(name, "fail", f"PM2 runs another copy: {facts.get('pm_exec_path')}", fix)
    if state == "launching":
        return Finding(name, "warn", "it is starting", "Look again in half a minute: make doctor")
    if state != "online":
        found = f"{state}; last line of its log: {last_line(installation, str(row.get('name', name))) or 'none'}"
        return Finding(name, "fail", found, "Fix that error, then: make start")
    if facts.get("exec_interpreter") not in {interpreter(), "python3"}:
        found = f"it runs with {facts.get('exec_interpreter')}, not with {interpreter()}"
        return Finding(name, "warn", found, "make stop start")
    if secrets := sorted(name for name in facts.get("env") or {} if SECRET_NAME.search(name)):
        found = f"PM2 has {', '.join(secrets)} of a shell (from --update-env), and writes them to dump.pm2"
        return Finding(name, "warn", found, "make stop start; and if you keep PM2's list: pm2 save --force")
    restarts, memory = facts.get("restart_time", 0), row.get("monit", {}).get("memory", 0) // 2**20
    is_stable = restarts < 3 or up > 600
    found = f"online for {duration(up)}, {restarts} restarts, {memory} MB{'' if is_stable else ': it often fails'}"
    return make_finding(name, is_stable, found, "See why: make logs", "warn")


def last_line(installation: Installation, name: str, pattern: str = r"\S") -> str:
    """The last line of a process's log that contains the pattern."""
    try:
        with (installation.folder / "logs" / f"{name}.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 65536))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if re.search(pattern, line)), "")


def status(installation: Installation) -> tuple[str, bool]:
    """The text of `--status`, and whether everything works."""
    state, listed = read_state(installation.folder), pm2_processes(installation.environ) or []
    findings = [process(name, find_process(listed, name), installation) for name in SCRIPTS]
    lines = [*status_lines({**state, "last_error": None}, installation.now)]
    lines += [f"{finding.name + ':':<17}{finding.found}" for finding in findings]
    log = find_process(listed, "claude-proxy").get("name", "claude-proxy")
    last = last_line(installation, log, r"\berror \d{3} |ERROR|\.py: ")
    error = state.get("last_error") or installation.settings_error.partition("\n")[0] or last or "none"
    lines.append(f"last error: {error}")
    with suppress(ConfigError, NotConfiguredError):  # the settings or the template cannot be read: another line says so
        lines += old_models(installation.settings, installation.environ).splitlines()
    works = (state.get("expires") or 0) > installation.now and all(finding.state == "ok" for finding in findings)
    return "\n".join([*lines, "use it:     make claude" if works else "what is wrong: make doctor"]), works
