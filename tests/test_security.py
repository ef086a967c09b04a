"""SECURITY.md: each promise names the tests that check it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.set_up import BUNDLE


def test_every_promise_of_the_security_page_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (?!\*\*|What)(.+) \| (.+) \|$", (BUNDLE / "SECURITY.md").read_text(), re.MULTILINE)
    tests = set(
        re.findall(r"^def (test_\w+)\(", "\n".join(map(Path.read_text, BUNDLE.glob("tests/test_*.py"))), re.MULTILINE)
    )
    targets = set(re.findall(r"^([\w-]+):", (BUNDLE / "Makefile").read_text(), re.MULTILINE))
    assert len(rows) > 15
    for promise, kept_by in rows:
        names = re.findall(r"`(?:make )?([\w-]+)`", kept_by)
        assert names, promise
        assert set(names) <= tests | targets, promise
