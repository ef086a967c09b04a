#!/usr/bin/env python3
"""Write the generated tables anew: docs/troubleshooting.md (errors), docs/clients.md (features), SECURITY.md (tests).

    python docs/generate.py            write them
    python docs/generate.py --check    only say whether they are up to date: exit status 0 or 1

The errors come from the table that the proxy itself uses, the features from the one that the tests of the SDKs assert.
The tests of a promise are those with its marker, `@pytest.mark.keeps("ID")`. Everything else is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bundle.bootstrap import BUNDLE
from bundle.cortex.errors import CASES, commands, explain
from tests.clients.table import markdown

BEGIN, END = "<!-- begin: written by docs/generate.py -->\n", "<!-- end -->\n"
HEAD = ["Status", "Cortex's words", "What it means and what to do", "Claude Code tries again"]
FULL = (
    "`max tokens of N exceeded`, where N is the model's window (200000 or 1000000), or `prompt is too long`",
    "The context is full. Claude Code compacts the conversation by itself and goes on. If it cannot: /clear",
)
UNKNOWN = "Cortex's own words are all that is known. Try: make doctor"


def phrases(pattern: str) -> list[str]:
    """The words that a pattern of CASES looks for, as a person would read them in a message."""
    plain = re.sub(r"\((\w+)(?:\|\w+)+\)", r"\1", pattern)  # the first of several words for the same
    plain = plain.replace(r"\d+", "N").replace(r"\S+", "…").removeprefix("^")
    return [" ".join(each.split()) for each in plain.split("|") if each.strip()]


def row(status: str, words: str, remedy: str, *, retry: bool) -> str:
    remedy = (
        commands(remedy)
        .replace("{uuid}", "UUID")
        .strip()
        .replace("<", "&lt;")
        .replace("|", "\\|")
        .replace("\n", "<br>")
    )
    return f"| {status} | {words} | {remedy} | {'yes' if retry else 'no'} |"


def table() -> str:
    """The table, in the order in which the proxy looks through its own."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|---|---|"]
    lines.append(row("400", *FULL, retry=False))
    seen: set[int] = set()
    for case in CASES:
        words = " or ".join(f"`{each}`" for each in phrases(case.words))
        words = words or ("any other words" if case.status in seen else "any words")
        seen.add(case.status)
        status = str(case.status or "any") + (f", becomes {case.becomes}" if case.becomes else "")
        lines.append(row(status, words, case.remedy, retry=case.retry))
    for status, example in (("any other 4xx", 418), ("any other 5xx", 500)):
        rest = explain(example, json.dumps({"message": "?"}))
        lines.append(row(status, "any words", rest.message.partition("\n")[2] or UNKNOWN, retry=rest.retry))
    return "\n".join(lines) + "\n"


def between(page: str, written: str) -> str:
    """A page whose part between BEGIN and END is this one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return before + begin + "\n" + written + "\n" + end + after


def troubleshooting(page: str) -> str:
    """docs/troubleshooting.md with its table brought up to date."""
    return between(page, table())


def releases() -> str:
    """Which releases the tests of the SDKs run, from the lock files."""
    python = dict(re.findall(r"(?m)^([a-z-]+)==(\S+)", (BUNDLE / "requirements-dev.txt").read_text()))
    node = json.loads((BUNDLE / "tests" / "clients" / "package.json").read_text())["dependencies"]
    claude = json.loads((BUNDLE / "package.json").read_text())["devDependencies"]["@anthropic-ai/claude-code"]
    return (
        f"Each cell was tried with the Python SDK (`anthropic` {python['anthropic']}) and the TypeScript SDK "
        f"(`@anthropic-ai/sdk` {node['@anthropic-ai/sdk']}), with the same outcome.\n"
        f"The Agent SDKs are `claude-agent-sdk` {python['claude-agent-sdk']} and `@anthropic-ai/claude-agent-sdk` "
        f"{node['@anthropic-ai/claude-agent-sdk']}, with Claude Code {claude}.\n"
    )


def clients(page: str) -> str:
    """docs/clients.md with its table brought up to date."""
    return between(page, f"{releases()}\n{markdown()}")


def markers() -> dict[str, list[str]]:
    """The tests of each promise, by its id, as `@pytest.mark.keeps` names them."""
    found: dict[str, list[str]] = {}
    for path in sorted((BUNDLE / "tests").rglob("test_*.py")):
        for node in (node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.keeps":
                    found.setdefault(ast.literal_eval(mark.args[0]), []).append(node.name)
    return found


def security(page: str) -> str:
    """SECURITY.md with the tests of each promise brought up to date. A promise without a test keeps its cell."""
    kept = markers()

    def cell(row: re.Match[str]) -> str:
        tests = ", ".join(f"`{name}`" for name in kept.get(row["id"], ()))
        return f"{row['promise']} | {tests or row['tests']} |"

    return re.sub(r'(?m)^(?P<promise>\| <a id="(?P<id>[\w-]+)"></a>.*?) \| (?P<tests>.*) \|$', cell, page)


PAGES = {
    BUNDLE / "docs" / "troubleshooting.md": troubleshooting,
    BUNDLE / "docs" / "clients.md": clients,
    BUNDLE / "SECURITY.md": security,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated tables of the documentation anew.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    check, stale = parser.parse_args().check, False
    for path, render in PAGES.items():
        page = path.read_text(encoding="utf-8")
        if (wanted := render(page)) != page:
            stale = True
            if check:
                print(f"{path} is out of date. Bring it up to date: python docs/generate.py", file=sys.stderr)
            else:
                path.write_text(wanted, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
