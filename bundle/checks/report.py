"""All checks side by side, and their findings as a page for people."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx

from bundle.checks import model_check
from bundle.checks.connections import ask_proxy, claude, proxy, snowflake
from bundle.checks.finding import Finding, Findings, Installation, NotConfiguredError, from_message
from bundle.checks.model_check import Report
from bundle.checks.processes import processes, token
from bundle.checks.this_machine import account, machine, patch, private_key, programs, secret_files, template
from bundle.errors import ConfigError
from bundle.render import is_cortex


def models(setup: Installation) -> Findings:
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


def ask_model(setup: Installation, model: str, names: Sequence[str]) -> Finding:
    name = min(names, key=lambda name: "*" in name)
    # What Claude Code asks for by itself ends at a wildcard row; any other matters only to who picks it.
    state = "fail" if any("*" in name for name in names) else "warn"
    report = check_model(setup, model, name)
    if report.answers == "whole":
        return Finding(model, "ok", f"{report.found}, for {', '.join(names)}")
    return Finding(model, "warn" if report.answers == "in part" else state, report.found, report.remedy)


def check_model(setup: Installation, model: str, name: str) -> Report:
    ours = any(is_cortex(row) and row["litellm_params"]["model"] == model for row in setup.rows)
    return model_check.check(setup.settings, setup.master_key, model, name, has_routes=ours)


CHECKS: Mapping[str, Sequence[Callable[[Installation], Findings]]] = {
    "This machine": (programs, machine),
    "Key": (private_key,),
    "Configuration": (account, template, secret_files),
    "Processes": (processes, token),
    "Patch": (patch,),
    "Proxy": (proxy,),
    "Claude Code": (claude,),
    "Snowflake": (snowflake,),
}


def examine(setup: Installation, *, live: bool = False) -> list[Finding]:
    """All findings, in the order of CHECKS; the checks run side by side."""

    def one(group: str, check: Callable[[Installation], Findings]) -> list[Finding]:
        title, findings = check.__name__.replace("_", " ").capitalize(), []
        try:
            for finding in check(setup):
                findings.append(finding)  # noqa: PERF402 - what was found before an error counts
        except NotConfiguredError:
            findings.append(Finding(title, "skip", "waits for the configuration"))
        except ConfigError as error:
            findings.append(from_message(title, error))
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
        lines += [f"       {line}" for line in [*rest, *finding.fix.splitlines()]]
    count = Counter(finding.state for finding in findings)
    verdict = f"{count['fail']} to fix, the first one first" if count["fail"] else "Nothing fails"
    return "\n".join([*lines, "", f"{verdict}; {count['ok']} in order, {count['warn']} warnings."])
