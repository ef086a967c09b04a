#!/usr/bin/env python3
"""Show what is wrong with this set-up, and the command that fixes it.

A request passes Claude Code, the proxy, a patched LiteLLM, perhaps a company's network, and Snowflake's login, role and
model lists. A fault in one of these parts often shows as an error in another, so doctor checks each part separately.

Doctor changes and starts nothing, and shows no token or key. Exit status: 1 if a check failed, else 0, even with
warnings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from bundle.bootstrap import enter_venv

if __name__ == "__main__":
    enter_venv()

from bundle.checks.finding import read_installation
from bundle.checks.processes import status
from bundle.checks.report import examine, page
from bundle.errors import printed, say


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show what is wrong with this set-up, and the command that fixes it.")
    parser.add_argument("--live", action="store_true", help="also send each model a request like those of Claude Code")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--status", action="store_true", help="show one screen: token, processes, last error")
    options = parser.parse_args(arguments)
    installation = read_installation(os.environ, time.time())
    if options.status:
        screen, good = status(installation)
        say(screen)
    else:
        findings = examine(installation, live=options.live)
        good = not any(finding.state == "fail" for finding in findings)
        if options.json:
            print(json.dumps({"ok": good, "findings": [asdict(finding) for finding in findings]}, indent=2))
        else:
            terminal = sys.stdout.isatty()
            plain = not terminal or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
            print(page(findings, shutil.get_terminal_size().columns if terminal else 10_000, colour=not plain))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(printed("doctor.py", main))
