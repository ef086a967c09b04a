"""After a start: wait until a model has answered, and offer the other route where this one refuses Claude Code."""

from __future__ import annotations

import shutil
import sys
import termios
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx

from bundle.checks.connections import ask_proxy
from bundle.checks.finding import Finding, Installation, read_installation
from bundle.checks.model_check import Report, Route, other_route
from bundle.checks.processes import NAMES, processes
from bundle.checks.report import check_model, examine, page
from bundle.errors import ConfigError
from bundle.settings import CLAUDE_ROUTES, set_in_env_file
from bundle.supervisor import find_process, pm2_processes

START_SECONDS = 150.0  # a slow machine needs half a minute
SWITCH_SECONDS = 30.0  # an edit of .env is live within four


def wait(setup: Installation) -> bool:
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


def better_for_all(reports: Mapping[str, Report]) -> tuple[str, Route] | None:
    """The other route, and a model that shows it, where no model works whole on this one and none would lose by it."""
    if any(
        report.answers == "whole" or (report.answers == "in part" and not report.better) for report in reports.values()
    ):
        return None
    return next(((model, report.better) for model, report in reports.items() if report.better), None)


def ask_families(setup: Installation) -> tuple[dict[str, str], dict[str, Report]]:
    """The models that Claude Code gets by itself, the cheapest first: the row of each, and how it answers."""
    rows = [row for row in setup.rows if "*" in row["model_name"]] or setup.rows
    names: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: "haiku" not in row["model_name"]):
        names.setdefault(row["litellm_params"]["model"], row["model_name"])
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda pair: check_model(setup, *pair), names.items())
        return names, dict(zip(names, asked, strict=True))


def greet(setup: Installation, reports: Mapping[str, Report]) -> bool:
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
        print(f"Warning: {finding.name}: {finding.found}\n{finding.fix}".rstrip())
    *first, last = [model.partition("/")[2] for model, report in reports.items() if report.answers != "no"]
    print(
        f"{', '.join(first)} and {last} on Snowflake Cortex answer."
        if first
        else f"{last} on Snowflake Cortex answers."
    )
    return True


def offer(setup: Installation, model: str, name: str, reports: Mapping[str, Report], better: Route) -> bool:
    """Say that the other route is the better one, and change to it if somebody is there who says yes; or keep this one
    and ask no more. Whether Claude Code then works."""
    report = reports[model]
    print(f"{model.partition('/')[2]}: {report.found}.")
    yes = agrees("Switch to it? [Y/n] ")
    if yes is None:
        print(report.remedy)
        return False
    route = better if yes else other_route(better)
    try:
        set_in_env_file(setup.folder / ".env", "CLAUDE_ROUTE", route.word)
    except ConfigError as error:
        print(error)
        return False
    print(f"CLAUDE_ROUTE={route.word} is in {setup.folder / '.env'} now.", flush=True)
    setup = read_installation(setup.environ, time.time())
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


def switched(setup: Installation, model: str, name: str) -> bool:
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
