"""Checks of the processes that PM2 runs, and the text of `doctor.py --status`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from bundle.bootstrap import PM2, make, script
from bundle.checks.connections import stand_ins
from bundle.checks.costs import costs
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
from bundle.credential import PAT, TOKEN_TYPE
from bundle.errors import ConfigError, printable
from bundle.lifecycle import how_to_stop, is_gone
from bundle.refresher import read_state, status_lines
from bundle.refresher import works as token_works
from bundle.render import is_cortex
from bundle.running import Running, running, stop_command
from bundle.supervisor import (
    SCRIPTS,
    daemon_version,
    find_process,
    folder_of,
    interpreter,
    is_this_folder,
    pm2_home,
    pm2_processes,
    pm2_version,
)
from bundle.tokens import token_now, token_times

SECRET_NAME = re.compile(r"(?i)(KEY|TOKEN|SECRET|PASSWORD|PASSPHRASE|_PASS|_PAT)(?!_(FILE|PATH|FILE_PATH)$)(_|$)")


LOOP_SECONDS = 15.0  # a process that has run for so long after a restart is not in a loop of failures
BY_HAND_SECONDS = 45.0  # a restart by the user ends the old process first, which may take 35 seconds
LOG_BYTES = 65536
ANSWERS_AGAIN = "answers again"  # the proxy says it on the first good answer after an error
_ERROR = re.compile(r"\berror \d{3} |error in the middle of an answer|ERROR|\.py: ")
_FATAL = re.compile(r"^\w+\.py: |^[\w.]*(Error|Exception)\b")
_GOOD = re.compile(r"^ready on |^new token|the refresher has started")


def token(installation: Installation) -> Findings:
    state = read_state(installation.folder)
    params: dict[str, Any] = next((row["litellm_params"] for row in installation.rows if is_cortex(row)), {})
    yield token_in_use(installation, params.get("api_key", ""), params.get("extra_headers") or {})
    if state.get("last_error"):
        yield finding_from_message("Refresher", state["last_error"])


def token_in_use(installation: Installation, written: str, headers: Mapping[str, str]) -> Finding:
    """What the proxy sends: `written` is the token in its configuration. A programmatic access token has no end that
    is known here; it is right if it is the one that the settings name."""
    settings, is_pat = installation.valid_settings, headers.get(TOKEN_TYPE) == PAT
    fix = f"token-refresher does not renew it. Run: {make('start')}"
    if not written:
        return Finding("Token", "fail", "there is none yet", fix)
    is_wanted = settings is None or is_pat == (settings.pat is not None)
    if is_wanted and is_pat and settings is not None:
        is_wanted = written == token_now(settings, installation.now).value
    if not is_wanted:
        return Finding("Token", "fail", "litellm_config.yaml has another one than the settings name", fix)
    if is_pat:
        return Finding("Token", "ok", "a programmatic access token; its end is not known here")
    _, expires = token_times(written)
    left = expires - installation.now
    found = f"valid for {duration(left)}" if left > 0 else f"it ended {duration(-left)} ago"
    return make_finding("Token", left > 0, found if expires else "there is none yet", fix)


def processes(installation: Installation) -> Findings:
    listed = pm2_processes(installation.environ)
    if listed is None:
        without = running(installation.folder)
        found = f"it does not run, but without it {' and '.join(map(str, without))}" if without else "it does not run"
        yield Finding("PM2", "fail", found, then_start(without, installation))
        return
    started, installed = daemon_version(installation.environ), pm2_version(installation.environ)
    if started not in {"", installed}:
        found = f"PM2 {started} runs, but PM2 {installed} is installed: this works, but it was not tested"
        yield Finding(
            "PM2", "warn", found, f"{PM2} update (restarts all processes of PM2, also those of other projects)"
        )
    for name in SCRIPTS:
        yield process(name, find_process(listed, name), installation)
    yield from strays(listed, installation)


def strays(listed: Sequence[Mapping[str, Any]], installation: Installation) -> Findings:
    """The processes of this folder that PM2 does not run: two proxies cannot share the port, and two refreshers would
    write the same files."""
    pids = {row.get("pid") for row in listed}
    for stray in running(installation.folder):
        # (One that PM2 has started since it gave its list is not a stray.)
        if stray.pid not in pids and stray.pm2_home != pm2_home(installation.environ):
            found = f"one runs with pid {stray.pid} that is not in PM2's list"
            yield Finding(stray.name, "fail", found, then_start([stray], installation))


def then_start(strays: Sequence[Running], installation: Installation) -> str:
    if not strays:
        return make("start")
    return "\n".join([*(how_to_stop(stray, installation.environ) for stray in strays), f"Then: {make('start')}"])


def process(name: str, row: Mapping[str, Any], installation: Installation) -> Finding:
    """Check a row of `pm2 jlist`. Rows contain whole environments, so only the fields named here are shown."""
    if not row:
        return Finding(name, "fail", "PM2 does not run it", make("start"))
    facts = row["pm2_env"]
    state, up = facts.get("status"), installation.now - facts.get("pm_uptime", 0) / 1000
    if not is_this_folder(folder_of(row)):
        script_path = facts.get("pm_exec_path")
        if is_gone(row):
            return Finding(name, "fail", f"its folder was renamed or deleted: PM2 has {script_path}", make("start"))
        fix = f"{stop_command(folder_of(row))} && {make('start')}"
        return Finding(name, "fail", f"PM2 runs another copy: {script_path}", fix)
    restarts, memory = facts.get("restart_time", 0), row.get("monit", {}).get("memory", 0) // 2**20
    # PM2 sets `created_at` when the user starts or restarts the process, and not after a failure.
    by_hand = (facts.get("created_at") or 0) / 1000
    words = last_words(log_lines(installation, str(row.get("name", name))))
    # (`unstable_restarts`: it ended within a second of its start.)
    is_failing = (words.is_error and not 0 < words.at < int(by_hand)) or facts.get("unstable_restarts", 0) >= 2
    if restarts and is_failing and (state == "launching" or (state == "online" and up < LOOP_SECONDS)):
        found = f"it fails and starts again ({restarts} restarts); its last words: {words.text}"
        return Finding(name, "fail", found, f"Fix that error, then: {make('stop', 'start')}")
    if state == "launching":
        return Finding(name, "warn", "it is starting", f"Look again in half a minute: {make('doctor')}")
    if state != "online":
        found = f"{state}; its last words: {words.text or 'none'}"
        return Finding(name, "fail", found, f"Fix that error, then: {make('start')}")
    if facts.get("exec_interpreter") not in {interpreter(), "python3"}:
        found = f"it runs with {facts.get('exec_interpreter')}, not with {interpreter()}"
        return Finding(name, "warn", found, make("stop", "start"))
    if secrets := sorted(name for name in facts.get("env") or {} if SECRET_NAME.search(name)):
        found = f"PM2 has {', '.join(secrets)} of a shell (from --update-env), and writes them to dump.pm2"
        fix = f"{make('stop', 'start')}\nAnd if you keep PM2's list: {PM2} save --force"
        return Finding(name, "warn", found, fix)
    failed_since = facts.get("pm_uptime", 0) / 1000 - by_hand > BY_HAND_SECONDS
    is_stable = restarts < 3 or up > 600 or not failed_since
    found = f"online for {duration(up)}, {restarts} restarts, {memory} MB{'' if is_stable else ': it often fails'}"
    return make_finding(name, is_stable, found, f"See why: {make('logs')}", "warn")


class Line(NamedTuple):
    """A line of a log. `at` is the time that PM2 has put before it, 0 if there is none."""

    at: float
    text: str


class LastWords(NamedTuple):
    """The line that tells how a process ended, and whether it is an error. (It said nothing good after that.)"""

    at: float
    text: str
    is_error: bool


def log_lines(installation: Installation, name: str) -> list[Line]:
    """The last lines of a process's log, oldest first, without the empty ones."""
    try:
        with (installation.folder / "logs" / f"{name}.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in map(parse_line, lines) if line.text]


def parse_line(line: str) -> Line:
    stamp, _, rest = line.partition(": ")
    with suppress(ValueError):
        return Line(datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S").astimezone().timestamp(), rest.strip())
    return Line(0, line.strip())


def last_words(lines: Sequence[Line]) -> LastWords:
    """The last error, if nothing good came after it: a message may have more lines, and a traceback has many. Otherwise
    the last line."""
    for line in reversed(lines):
        if _FATAL.search(line.text):
            return LastWords(line.at, printable(line.text), is_error=True)
        if _GOOD.search(line.text):
            break
    return LastWords(lines[-1].at, printable(lines[-1].text), is_error=False) if lines else LastWords(0, "", False)


def last_error(lines: Sequence[Line], online_since: float) -> str:
    """The last error in the proxy's log, and since when it is over: a model has answered after it, or the process was
    started anew (`online_since`; 0 if it is not online)."""
    number = next((number for number in reversed(range(len(lines))) if _ERROR.search(lines[number].text)), None)
    if number is None:
        return "none"
    error, later = lines[number], lines[number + 1 :]
    over = next((line.at for line in later if line.text == ANSWERS_AGAIN), None)
    if over is None and 0 < error.at < int(online_since):
        over = online_since
    when = f" since {datetime.fromtimestamp(over).astimezone():%H:%M}" if over else ""
    return f"(over{when}) {printable(error.text)}" if over is not None else printable(error.text)


def status(installation: Installation) -> tuple[str, bool]:
    """The text of `--status`, and whether everything works."""
    state, listed = read_state(installation.folder), pm2_processes(installation.environ) or []
    findings = [process(name, find_process(listed, name), installation) for name in SCRIPTS]
    findings += strays(listed, installation)
    lines = [*status_lines({**state, "last_error": None}, installation.now)]
    with suppress(ConfigError, NotConfiguredError):
        note = installation.settings.pat_note.splitlines()
        lines += [f"{word:<10}{line}" for word, line in zip(("note:", ""), note, strict=False)]
        lines += [f"warning:  {sentence}" for sentence in stand_ins(installation)]
    lines += [f"{finding.name + ':':<17}{finding.found}" for finding in findings]
    works = token_works(state, installation.now) and all(finding.state == "ok" for finding in findings)
    with suppress(NotConfiguredError):
        today = next(costs(installation))
        lines.append(f"{'spent today:':<17}{today.found}")
        works = works and today.state != "fail"
    proxy = find_process(listed, "claude-proxy")
    facts = proxy.get("pm2_env", {})
    since = facts.get("pm_uptime", 0) / 1000 if facts.get("status") == "online" else 0
    last = last_error(log_lines(installation, proxy.get("name", "claude-proxy")), since)
    error = state.get("last_error") or installation.settings_error.partition("\n")[0] or last
    lines.append(f"last error: {error}")
    with suppress(ConfigError, NotConfiguredError):  # the settings or the template cannot be read: another line says so
        lines += old_models(installation.settings, installation.environ).splitlines()
    return "\n".join(
        [*lines, f"use it:     {script('point_claude.py', '--run')}" if works else f"what is wrong: {make('doctor')}"]
    ), works
