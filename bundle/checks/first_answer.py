"""After a start: waits until a model answers, and offers the other route if this route refuses Claude Code. At the
day's limit no model is asked."""

from __future__ import annotations

import shutil
import sys
import termios
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bundle.bootstrap import make
from bundle.checks.costs import reached_limit
from bundle.checks.finding import Finding, Installation, read_installation
from bundle.checks.model_check import Report, Route, other_route
from bundle.checks.processes import processes
from bundle.checks.report import causes, check_model, examine, listing
from bundle.env_file import set_in_env_file
from bundle.errors import ConfigError, say
from bundle.settings import CLAUDE_ROUTES, renew_key
from bundle.supervisor import SCRIPTS, find_process, pm2_processes

START_SECONDS = 150.0  # a slow machine needs half a minute
LOOP_RESTARTS = 3
SWITCH_SECONDS = 30.0  # a change of .env takes effect within four seconds


def wait_for_answer(installation: Installation) -> bool:
    """Wait until a model answers through the proxy, or show what is wrong. (PM2 cannot tell: it reports success even if
    a process ends soon after its start.) At the day's limit it is enough that the proxy answers."""
    try:
        if installation.settings_error:
            raise ConfigError(installation.settings_error)
        _ = installation.master_key  # raises for a key that is not used
    except ConfigError as error:
        print(error)
        return False
    if not wait_for_proxy(installation):
        return print_what_is_wrong(installation)
    if print_reached_limit(installation):
        return True
    names, reports = ask_families(installation)
    if not installation.settings.claude_route_from and (better := switch_to_offer(reports)):
        model, route = better
        return offer(installation, model, names[model], reports, route)
    return print_result(installation, reports)


def wait_for_proxy(installation: Installation) -> bool:
    """Wait until our own proxy answers and PM2, if it runs, has both processes online. Returns whether that came true.
    If another program listens on the port, the proxy's key is renewed."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        listed = pm2_processes(installation.environ) or []
        rows = [find_process(listed, name).get("pm2_env", {}) for name in SCRIPTS]
        states = {row.get("status", "online") for row in rows}
        # The start has set PM2's counts of restarts to 0, so these are failures.
        if states & {"errored", "stopped"} or any(row.get("restart_time", 0) >= LOOP_RESTARTS for row in rows):
            break
        state = installation.listener().state
        if state == "foreign":
            print(renew_key(installation.settings))
        if state in {"foreign", "another key"}:  # neither goes away by waiting
            break
        if state == "ours" and states == {"online"}:
            return True
        time.sleep(0.5)
    return False


def print_reached_limit(installation: Installation) -> bool:
    """If today's limit is reached, say so. Whatever runs is not to blame for that: `make update` must keep it."""
    if (reached := reached_limit(installation)) is None:
        return False
    print(f"Both processes run. Today's limit is reached, so no model was asked.\n{reached.found}\n{reached.fix}")
    return True


def print_what_is_wrong(installation: Installation) -> bool:
    """Print what is wrong at the root, and not what only follows from it."""
    wrong = causes(examine(installation, live=True))
    print(listing(wrong, shutil.get_terminal_size().columns, colour=False))
    print(f"\nAll that was looked at: {make('doctor')}")
    return False


def switch_to_offer(reports: Mapping[str, Report]) -> tuple[str, Route] | None:
    """A model that is better on the other route, and that route. None if a change would help no model, or if a model
    answers on this route and would not be better on the other route."""
    if any(report.answers != "no" and not report.better for report in reports.values()):
        return None
    return next(((model, report.better) for model, report in reports.items() if report.better), None)


def ask_families(installation: Installation) -> tuple[dict[str, str], dict[str, Report]]:
    """Ask the models that Claude Code uses by default. Returns the row and the report of each, the cheapest first."""
    rows = [row for row in installation.rows if "*" in row["model_name"]] or installation.rows
    names: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: "haiku" not in row["model_name"]):
        names.setdefault(row["litellm_params"]["model"], row["model_name"])
    with ThreadPoolExecutor(4) as pool:
        reports = pool.map(lambda pair: check_model(installation, *pair), names.items())
        return names, dict(zip(names, reports, strict=True))


def print_result(installation: Installation, reports: Mapping[str, Report]) -> bool:
    """Print which models answer, and the warnings. If no model answers, print all that is wrong and return False (but
    the day's limit is nothing wrong)."""
    names = [report.model or bare_name(model) for model, report in reports.items() if report.answers != "no"]
    answering = list(dict.fromkeys(names))
    if not answering:  # (these requests may have been the last ones of today)
        return print_reached_limit(installation) or print_what_is_wrong(installation)
    warnings = [finding for finding in processes(installation) if finding.state == "warn"]
    models_by_problem: dict[tuple[str, str], list[str]] = {}
    for model, report in reports.items():
        if report.answers != "whole" or report.model:
            models_by_problem.setdefault((report.found, report.remedy), []).append(bare_name(model))
    warnings += [Finding(", ".join(names), "warn", *problem) for problem, names in models_by_problem.items()]
    for finding in warnings:
        print(f"Warning: {finding.name}: {finding.found}\n{finding.fix}".rstrip())
    *first, last = answering
    print(f"{', '.join(first)} and {last}" if first else last, f"on Snowflake Cortex answer{'' if first else 's'}.")
    return True


def offer(installation: Installation, model: str, name: str, reports: Mapping[str, Report], better: Route) -> bool:
    """Ask the user whether to change to the better route, and write the choice into .env, so that the user is not asked
    again. Returns whether Claude Code works afterwards."""
    report = reports[model]
    say(f"{bare_name(model)}: {report.found}.")
    yes = ask_yes_or_no("Switch to it? [Y/n] ")
    if yes is None:
        say(report.remedy)
        return False
    route = better if yes else other_route(better)
    try:
        set_in_env_file(installation.folder / ".env", "CLAUDE_ROUTE", route.word)
    except ConfigError as error:
        print(error)
        return False
    print(f"CLAUDE_ROUTE={route.word} is in {installation.folder / '.env'} now.", flush=True)
    installation = read_installation(installation.environ, time.time())
    if yes:
        return switched(installation, f"{CLAUDE_ROUTES[route.word]}/{bare_name(model)}", name)
    if all(report.answers == "no" for report in reports.values()):
        say(f"So Claude Code gets no answer.\n{report.remedy}")
        return False
    return print_result(installation, reports)


def ask_yes_or_no(question: str) -> bool | None:
    """The answer of the user (Enter means yes). None without a terminal or at the end of the input."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    with suppress(termios.error):  # discard keys that were pressed before the question
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    try:
        while (answer := input(question).strip().lower()) not in {"", "y", "yes", "n", "no"}:
            pass
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return answer in {"", "y", "yes"}


def switched(installation: Installation, model: str, name: str) -> bool:
    """Wait until the refresher and the proxy use the new route. Returns whether Claude Code works then."""
    deadline = time.monotonic() + SWITCH_SECONDS
    while (name, model) not in ((row["model_name"], row["litellm_params"]["model"]) for row in installation.rows):
        if time.monotonic() > deadline:
            # The reason may be CLAUDE_ROUTE in the refresher's environment, which has priority over .env.
            print(f"token-refresher does not use the new setting. See why: {make('logs')}")
            print(f"Or restart it: {make('stop', 'start')}")
            return False
        time.sleep(0.25)
    while True:
        time.sleep(1.5)  # the proxy checks the rows once a second
        report = check_model(installation, model, name)
        if report.answers == "whole" or time.monotonic() > deadline:
            break
    if report.answers == "no":
        say(f"{bare_name(model)}: {report.found}\n{report.remedy}".rstrip())
        return False
    return print_result(installation, ask_families(installation)[1])


def bare_name(model: str) -> str:
    return model.partition("/")[2]
