"""Runs all checks in parallel, and formats their findings for people."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bundle.bootstrap import make
from bundle.checks import model_check
from bundle.checks.connections import claude, proxy, snowflake
from bundle.checks.costs import costs
from bundle.checks.finding import Finding, Findings, Installation, NotConfiguredError, finding_from_message
from bundle.checks.model_check import Report
from bundle.checks.processes import processes, token
from bundle.checks.this_machine import (
    access_token,
    account,
    machine,
    model_list,
    patch,
    private_key,
    programs,
    secret_files,
    template,
)
from bundle.cortex.catalogue import NEWEST
from bundle.errors import ConfigError
from bundle.render import is_cortex


def models(installation: Installation) -> Findings:
    """Ask each model once. If several rows have the same model, one of them is used: if possible one for which an older
    model may answer, because Claude Code uses such rows by default."""
    names: dict[str, list[str]] = {}
    for row in sorted(installation.rows, key=lambda row: (NEWEST not in info_of(row), "*" in row["model_name"])):
        names.setdefault(row["litellm_params"]["model"], []).append(row["model_name"])
    if installation.listener().state != "ours":
        yield Finding("Models", "skip", "the proxy does not answer")
        return
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda pair: ask_model(installation, *pair), names.items())


def info_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("model_info") or {}


def ask_model(installation: Installation, model: str, names: Sequence[str]) -> Finding:
    result = check_model(installation, model, names[0])
    if result.answers == "whole" and not result.model:
        return Finding(model, "ok", f"{result.found}, for {', '.join(names)}")
    # Claude Code uses the wildcard rows by default. The other rows are used only if the user chooses them.
    state = "fail" if result.answers == "no" and "*" in "".join(names) else "warn"
    return Finding(model, state, result.found, result.remedy)


def check_model(installation: Installation, model: str, name: str) -> Report:
    has_routes = any(is_cortex(row) and row["litellm_params"]["model"] == model for row in installation.rows)
    return model_check.check(installation.settings, installation.master_key, model, name, has_routes=has_routes)


CHECKS: Mapping[str, Sequence[Callable[[Installation], Findings]]] = {
    "This machine": (programs, machine),
    "Key": (private_key, access_token),
    "Configuration": (account, template, model_list, secret_files),
    "Processes": (processes, token),
    "Patch": (patch,),
    "Proxy": (proxy,),
    "Claude Code": (claude,),
    "Costs": (costs,),
    "Snowflake": (snowflake,),
}


# What cannot be right while the finding of this name is a fault: findings of these names, or of these groups.
FOLLOWERS: Mapping[str, Sequence[str]] = {
    "Account": ("Processes", "Models"),
    "LiteLLM": ("openai.py", "claude-proxy"),
    "Disk": ("token-refresher", "Token", "Refresher", "Ledger"),
    "Certificates": ("Host",),
    "Private key": ("token-refresher", "Token", "Refresher", "Listener", "Login"),
    "Access token": ("token-refresher", "Token", "Refresher", "Listener", "Login"),
    "Template": ("Refresher",),  # the old rows go on
    "openai.py": ("claude-proxy",),
    "PM2": ("Token", "Listener"),
    "Port": ("claude-proxy", "Models"),  # another program has it
    "token-refresher": ("Token", "Refresher", "Listener"),
    "claude-proxy": ("Listener",),
    "Token": ("Models",),
    "Listener": ("Models",),
    "Key": ("Models",),
    "Spent today": ("Models",),
    "Host": ("Models",),
    "Clock": ("Login", "Models"),
    "Login": ("Models",),
}


def without_followers(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with "skip" for each fault that follows from another one: it shows nothing new."""
    faults = [finding for finding in findings if finding.state == "fail"]

    def cause(finding: Finding) -> str:
        """The name of the fault from which this one follows in the end; "" if it follows from none."""
        places = {finding.name, finding.group}
        before = next((each for each in faults if places.intersection(FOLLOWERS.get(each.name, ()))), None)
        return (cause(before) or before.name) if before else ""

    return [
        replace(finding, state="skip", found=f"needs {name}, which fails", fix="")
        if finding.state in {"fail", "warn"} and (name := cause(finding))
        else finding
        for finding in findings
    ]


def causes(findings: Sequence[Finding]) -> list[Finding]:
    """What is wrong at the root: the faults that follow from no other one. Without a fault: the warnings."""
    found = without_followers(findings)
    return [finding for finding in found if finding.state == "fail"] or [
        finding for finding in found if finding.state == "warn"
    ]


def examine(installation: Installation, *, live: bool = False) -> list[Finding]:
    """All findings, in the order of CHECKS. The checks run in parallel, then the models are asked, if they can be."""

    def run(group: str, check: Callable[[Installation], Findings]) -> list[Finding]:
        title, findings = check.__name__.replace("_", " ").capitalize(), []
        try:
            for finding in check(installation):
                findings.append(finding)  # noqa: PERF402 - keeps the findings made before an error
        except NotConfiguredError:
            findings.append(Finding(title, "skip", "needs valid settings"))
        except ConfigError as error:
            findings.append(finding_from_message(title, error))
        except Exception as error:  # noqa: BLE001 - a check that breaks must not hide what the others found
            findings.append(Finding(title, "fail", f"cannot be checked: {type(error).__name__}: {error}", make("logs")))
        return [replace(finding, group=group) for finding in findings]

    pairs = [(group, check) for group, checks in CHECKS.items() for check in checks]
    with ThreadPoolExecutor(len(pairs)) as pool:
        found = [finding for findings in pool.map(lambda pair: run(*pair), pairs) for finding in findings]
    if live:
        asked = Finding("Models", "warn", "not asked yet", group="Models")
        *_, told = without_followers([*found, asked])
        found += run("Models", models) if told == asked else [told]
    return without_followers(found)


def listing(findings: Sequence[Finding], width: int, *, colour: bool) -> str:
    """The findings as text. Sentences are wrapped at `width` columns; commands and SQL statements are not."""
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
    return "\n".join(lines)


def page(findings: Sequence[Finding], width: int, *, colour: bool) -> str:
    """The listing of the findings, and how many there are of each state."""
    count = Counter(finding.state for finding in findings)
    summary = f"{count['fail']} to fix (start with the first)" if count["fail"] else "Nothing fails"
    warnings = "1 warning" if count["warn"] == 1 else f"{count['warn']} warnings"
    return f"{listing(findings, width, colour=colour)}\n\n{summary}; {count['ok']} ok, {warnings}."
