"""Each command that a message prints works from every folder, exists, and does not overwrite a user's file."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bundle import bootstrap
from tests.set_up import BUNDLE

SCRIPTS = sorted(BUNDLE.glob("*.py"))
SOURCES = [*SCRIPTS, *sorted((BUNDLE / "bundle").rglob("*.py")), BUNDLE / "patches/apply_patch.py"]
TARGETS = set(re.findall(r"^([a-z-]+):", (BUNDLE / "Makefile").read_text(), re.MULTILINE))
# A target or a script without its folder works in one folder only. (Nobody knows the new place of a folder that is
# gone, and `(pid` follows after the name of a process.)
BARE = re.compile(
    rf"(?<!new place, run: )(?<!new folder, run: )\bmake (?!-C)(?:{'|'.join(sorted(TARGETS, key=len, reverse=True))})\b"
    r"|\bpython3? [\w/]+\.py\b(?! \(pid)"
)
# What writes into a file, takes it away or opens it to others. (`mv -n` and `cp -n` overwrite nothing.)
UNSAFE = re.compile(
    r"(?<=\w) >>? ?['\"{~/.\w]+$| -out |\bmv (?!-n)|\bcp (?!-n)|\brm -r|\brm .*(\.p8|_key)"
    r"|\bchmod [ago]*\+[rwx]*w|\bchmod \d*[4-7]\d\b"
)


class Text(NamedTuple):
    """A text in the code that a user may read. In an f-string, each value stands as `{}`."""

    where: str
    text: str


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def texts(path: Path) -> Iterator[Text]:
    outside = {id(part) for node in nodes(path) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in nodes(path):
        match node:
            case ast.Expr(value=ast.Constant()):  # a docstring: nobody sees it at run time
                outside.add(id(node.value))
    name = path.relative_to(BUNDLE)
    for node in nodes(path):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.JoinedStr):
            yield Text(
                where, "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in outside:
            yield Text(where, node.value)


class Call(NamedTuple):
    """A call of bootstrap.make or bootstrap.script with the words that it was given (None: not a constant)."""

    where: str
    function: str
    words: tuple[str | None, ...]


def calls(path: Path) -> Iterator[Call]:
    for node in nodes(path):
        match node:
            case ast.Call(func=ast.Name(id="make" | "script" as name) | ast.Attribute(attr="make" | "script" as name)):
                words = tuple(str(arg.value) if isinstance(arg, ast.Constant) else None for arg in node.args)
                yield Call(f"{path.relative_to(BUNDLE)}:{node.lineno}", name, words)


@functools.cache
def all_texts() -> list[Text]:
    return [text for path in SOURCES for text in texts(path)]


@functools.cache
def all_calls() -> list[Call]:
    return [call for path in SOURCES for call in calls(path)]


def test_no_message_has_a_command_that_works_in_one_folder_only() -> None:
    assert len(all_texts()) > 500
    assert [text for text in all_texts() if BARE.search(text.text)] == []


def test_no_message_has_a_command_that_overwrites_removes_or_opens_a_file() -> None:
    assert [text for text in all_texts() if UNSAFE.search(text.text)] == []


def test_each_printed_make_command_names_targets_that_exist() -> None:
    made = [call for call in all_calls() if call.function == "make"]
    assert len(made) > 10
    for call in made:
        for word in call.words:
            assert word is not None, call
            assert word in TARGETS or re.fullmatch(r"[A-Z]+=.*", word), call


def ask(path: Path, option: str, home: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "CORTEX_HOME": str(home), "PM2_HOME": str(home)}
    command = [sys.executable, str(path), option]
    return subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", [*SCRIPTS, BUNDLE / "patches/apply_patch.py"], ids=lambda path: path.name)
def test_a_script_that_is_asked_for_help_or_for_an_unknown_option_does_nothing_else(path: Path, tmp_path: Path) -> None:
    for option, status in (("--help", 0), ("--no-such-option", 2)):
        done = ask(path, option, tmp_path)
        assert (done.returncode, (done.stdout + done.stderr).startswith("usage: ")) == (status, True), done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted({call.words[0] or "" for call in all_calls() if call.function == "script"}))
def test_each_printed_script_takes_the_options_that_are_printed_with_it(name: str, tmp_path: Path) -> None:
    done = ask(BUNDLE / name, "--help", tmp_path)
    for call in all_calls():
        if call.function == "script" and call.words[0] == name:
            for word in call.words[1:]:
                assert word is not None, call
                assert not word.startswith("-") or word in done.stdout, call


def test_a_printed_command_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BUNDLE", Path("/home/o'hara/a b"))
    printed = bootstrap.make("stop", "ARGS=--days 3")
    assert subprocess.run(
        ["sh", "-c", f"printf '%s|' {printed}"], capture_output=True, text=True, check=True
    ).stdout == ("make|-C|/home/o'hara/a b|stop|ARGS=--days 3|")
