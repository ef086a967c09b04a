"""Checks of what PM2 runs, and the one screen of `doctor.py --status`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from bundle.bootstrap import BUNDLE
from bundle.checks.finding import Finding, Findings, Installation, from_message, span, verdict
from bundle.refresher import read_state, status_lines
from bundle.render import is_cortex
from bundle.supervisor import daemon_version, find_process, interpreter, pm2_processes, pm2_program, pm2_version
from bundle.tokens import token_times

NAMES = {"token-refresher": "auto_refresh.py", "claude-proxy": "claude_proxy.py"}
SECRET_NAME = re.compile(r"(?i)(KEY|TOKEN|SECRET|PASSWORD|PASSPHRASE|_PASS|_PAT)(?!_(FILE|PATH|FILE_PATH)$)(_|$)")


def token(setup: Installation) -> Findings:
    state = read_state(setup.folder)
    _, expires = token_times(next((row["litellm_params"]["api_key"] for row in setup.rows if is_cortex(row)), ""))
    left = expires - setup.now
    found = f"valid for {span(left)}" if left > 0 else f"it ended {span(-left)} ago" if expires else "there is none yet"
    yield verdict("Token", left > 0, found, "token-refresher does not renew it: make start")
    if state.get("last_error"):
        yield from_message("Refresher", state["last_error"])


def processes(setup: Installation) -> Findings:
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


def process(name: str, row: Mapping[str, Any], setup: Installation) -> Finding:
    """Judge a row of `pm2 jlist`; rows hold whole environments, so nothing but what is named here is shown."""
    if not row:
        return Finding(name, "fail", "it does not run", "make start")
    facts = row["pm2_env"]
    status, up = facts.get("status"), setup.now - facts.get("pm_uptime", 0) / 1000
    if facts.get("pm_exec_path") != str(BUNDLE / NAMES[name]):
        fix = f"{pm2_program(setup.environ)} delete {row['name']}; make start"
        return Finding(name, "fail", f"PM2 runs another copy: {facts.get('pm_exec_path')}", fix)
    if status == "launching":
        return Finding(name, "warn", "it is starting", "Look again in half a minute: make doctor")
    if status != "online":
        words = last_line(setup, str(row.get("name", name)))
        return Finding(name, "fail", f"{status}; last words: {words or 'none'}", "Fix what it says, then: make start")
    if facts.get("exec_interpreter") not in {interpreter(), "python3"}:
        found = f"it runs with {facts.get('exec_interpreter')}, no longer the right one: {interpreter()}"
        return Finding(name, "warn", found, "make stop start")
    if secrets := sorted(name for name in facts.get("env") or {} if SECRET_NAME.search(name)):
        found = f"PM2 has {', '.join(secrets)} of a shell, by --update-env, and writes them to dump.pm2"
        return Finding(name, "warn", found, "make stop start; and if you keep PM2's list: pm2 save --force")
    restarts, memory = facts.get("restart_time", 0), row.get("monit", {}).get("memory", 0) // 2**20
    steady = restarts < 3 or up > 600
    found = f"online for {span(up)}, {restarts} restarts, {memory} MB"
    return verdict(
        name, steady, found if steady else f"{found}: it fails again and again", "See why: make logs", "warn"
    )


def last_line(setup: Installation, name: str, pattern: str = r"\S") -> str:
    """The last line of a process's log in which the pattern occurs."""
    try:
        with (setup.folder / "logs" / f"{name}.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 65536))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if re.search(pattern, line)), "")


def status(setup: Installation) -> tuple[str, bool]:
    """The screen of `--status`, and whether all is well."""
    state, listed = read_state(setup.folder), pm2_processes(setup.environ) or []
    findings = [process(name, find_process(listed, name), setup) for name in NAMES]
    lines = [*status_lines({**state, "last_error": None}, setup.now)]
    lines += [f"{finding.name + ':':<17}{finding.found}" for finding in findings]
    log = find_process(listed, "claude-proxy").get("name", "claude-proxy")
    last = last_line(setup, log, r"\berror \d{3} |ERROR|\.py: ")
    lines.append(f"last error: {state.get('last_error') or last or 'none'}")
    good = state.get("expires", 0) > setup.now and all(finding.state == "ok" for finding in findings)
    return "\n".join([*lines, "use it:     make claude" if good else "what is wrong: make doctor"]), good
