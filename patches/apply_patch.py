#!/usr/bin/env python3
"""Make the installed LiteLLM send `max_completion_tokens`, because Cortex refuses `max_tokens`.

In litellm/llms/openai/openai.py, class OpenAIChatCompletion, four statements pass the request, a local dict called
`data`, to the function that sends it. This script puts four lines before each statement. They rename the key. The
script finds the statements in the syntax tree, so their line numbers and layout do not matter.

What it promises:
- All four statements are patched, or none. The new text is checked in memory before the file is written.
- A second run changes nothing. --undo removes only our lines: the rest of the file stays the same, byte for byte.
- The file is replaced, never written into: it may be a hard link or symlink into uv's cache, which must not change.
- Other people's changes in the file stay. The script finds them by the hash in LiteLLM's RECORD.
- If the bundle's folder has a `.venv`, its LiteLLM is patched, because PM2 runs the proxy with it.

Exit status: 0 done, or nothing to do; 1 not patched (--check); 2 usage; 3 LiteLLM is not installed; 4 LiteLLM's code
is not as expected; 5 somebody else changed the lines that the patch needs; 6 the file cannot be read or written; 7 this
LiteLLM release is known to be malicious; 8 this release is newer than the tested one, and requirements.txt does not
pin it.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))  # a script has only its own folder on sys.path

from bundle.bootstrap import BUNDLE, PM2, enter_venv, make

THIS = shlex.join([sys.executable, str(Path(__file__).absolute())])
TARGET = "litellm/llms/openai/openai.py"
CLASS = "OpenAIChatCompletion"
Function = ast.FunctionDef | ast.AsyncFunctionDef
CALLS = {  # each method, and the function that it passes `data` to
    "completion": "make_sync_openai_chat_completion_request",
    "acompletion": "make_openai_chat_completion_request",
    "streaming": "make_sync_openai_chat_completion_request",
    "async_streaming": "make_openai_chat_completion_request",
}

MARK = b"claude-code-on-snowflake-cortex"
# If a request has both names, the new name keeps its value, because a caller sets that name on purpose.
BLOCK = (
    b"# >>> " + MARK + b": Cortex refuses max_tokens",
    b'if "max_tokens" in data:',
    b'    data.setdefault("max_completion_tokens", data.pop("max_tokens"))',
    b"# <<< " + MARK,
)
OUR_RENAME = ast.unparse(ast.parse(b"\n".join(BLOCK)))
# LiteLLM needs no patch if one of these stands before each call. A LiteLLM that renames in another way is patched too,
# and then our lines find nothing to rename.
RENAMES = {OUR_RENAME, "if 'max_tokens' in data:\n    data['max_completion_tokens'] = data.pop('max_tokens')"}

MADE_FOR = "1.106.2"  # the release that requirements.in pins
# Releases that attackers published, with the source of that claim. PyPI removed them; a mirror may still have them.
MALICIOUS = {"1.82.7": "PYSEC-2026-2", "1.82.8": "PYSEC-2026-2", "1.107.0": "compromised release of 2026-10-21"}
FLOOR = (1, 84, 0)  # the first release without CVE-2026-49468
LOCK = BUNDLE / "requirements.txt"  # a user who trusts another release pins it here, with its hash


class PatchState(Enum):
    """The state of the patch, with its exit status and message. PatchReport.detail replaces the {placeholders}."""

    PATCHED = 0, "{release} is patched: its four chat calls send max_completion_tokens."
    UNNEEDED = 0, "{release} needs no patch: its own code renames max_tokens."
    NOT_PATCHED = 1, "{release} is not patched: Cortex refuses its requests (max_tokens).\nPatch it: {this}"
    LOST = 4, "{release} is damaged: a file of it is missing.\nInstall it again, then patch it: {reinstall} && {this}"
    PARTIAL = 1, "{release} is patched only in part: Cortex refuses its requests (max_tokens).\nPatch it: {this}"
    MISSING = 3, "LiteLLM is not installed for this interpreter.\nInstall it: {install}"
    MOVED = (
        4,
        "The code to patch was not found in {release}. This patch was made for {made_for}.\n  found        {reason}\n"
        "A newer LiteLLM may send max_completion_tokens itself. If Cortex still answers that max_tokens is\n"
        "deprecated, it does not. Then install the release that works: {install}",
    )
    CHANGED = (
        5,
        "Somebody else changed {release} where the patch belongs.\n  found        {reason}\n"
        "Reinstall it, then patch it: {reinstall} && {this}",
    )
    NO_ACCESS = 6, "The file cannot be read or written: {reason}"
    MALICIOUS = (
        7,
        "{release} steals credentials ({reason}). Do not start it.\nReplace it: {install}\n"
        "Then replace every key and password that this machine could read since it was installed.",
    )

    NEWER = (
        8,
        "{release} is newer than {made_for}, which was tested. Attackers have published releases of LiteLLM.\n"
        "Install the tested one: {install}\n"
        "If you trust yours, pin it in requirements.in: litellm[proxy]=={version}\nThen run: {lock_and_start}",
    )

    def __init__(self, exit_status: int, message: str) -> None:
        self.exit_status = exit_status
        self.message = message


class PatchError(Exception):
    """Nothing was changed. `str()` is the message for the user."""

    def __init__(self, message: str, state: PatchState) -> None:
        super().__init__(message)
        self.state = state


@dataclass(frozen=True)
class PatchReport:
    """The state of the patch in a file. `str()` is the message for the user."""

    state: PatchState
    reason: str = ""
    current: bytes = b""  # the file's text
    original: bytes | None = None  # the text without our lines; None if somebody edited our lines
    patched: bytes | None = None  # the text with our lines; None if our lines do not fit
    foreign: bool = False  # LiteLLM shipped another text than `original`
    version: str | None = None
    path: Path | None = None
    changed: bool = False  # this call wrote the file

    @property
    def ok(self) -> bool:
        """Whether LiteLLM sends `max_completion_tokens`."""
        return self.state.exit_status == 0

    @property
    def detail(self) -> str:
        """The message: the state in the first line, the reason and the fix in the others."""
        pip = f"{shlex.quote(sys.executable)} -m pip install"
        lock = shlex.quote(str(LOCK))
        reinstall = f"{pip} --force-reinstall --no-deps --require-hashes -r {lock}"
        if sys.prefix == sys.base_prefix:  # Debian's and Homebrew's Python refuse to install outside of a .venv
            venv = shlex.quote(str(BUNDLE / ".venv"))
            pip = f"python3 -m venv {venv} && {venv}/bin/python -m pip install"
        version = "".join(letter if letter.isprintable() else " " for letter in (self.version or "")[:40])
        text = self.state.message.format(
            release=f"LiteLLM {version or '(unknown version)'}",
            version=version,
            reason=self.reason,
            made_for=MADE_FOR,
            install=f"{pip} -r {lock}",
            reinstall=reinstall,
            this=THIS,
            lock_and_start=make("lock", "stop", "start"),
        )
        foreign = "\nThis file also has changes that are not ours: its hash differs from LiteLLM's RECORD. They stay."
        return text + foreign if self.foreign else text

    def __str__(self) -> str:
        first, *rest = self.detail.splitlines()
        file = [f"  file         {self.path}"] if self.path else []
        return "\n".join([first, *file, f"  interpreter  {sys.executable}", *rest])


class ChatCall(NamedTuple):
    label: str  # the function, its argument and the method
    statement: ast.stmt
    previous: str  # the statement directly before this one, as ast.unparse writes it


def judge(current: bytes, shipped: str | None) -> PatchReport:
    """Find out the state of the file's text. `shipped` is the file's hash in RECORD, or None if RECORD has none."""
    original = without_block(current)
    if MARK in original:
        return PatchReport(PatchState.CHANGED, "somebody else's edit between our markers")
    foreign = shipped not in {None, digest(original)}
    try:
        calls = find_calls(original)
        patched = with_block(original, calls)
        if {call.previous for call in find_calls(patched)} != {OUR_RENAME} or without_block(patched) != original:
            raise ValueError("a layout where our lines would have no effect")
    except (SyntaxError, ValueError) as error:
        return PatchReport(PatchState.CHANGED if foreign else PatchState.MOVED, str(error), current, original)
    if current == original and {call.previous for call in calls} <= RENAMES:
        return PatchReport(PatchState.UNNEEDED, "", current, original, original, foreign)
    states = {patched: PatchState.PATCHED, original: PatchState.NOT_PATCHED}
    return PatchReport(states.get(current, PatchState.PARTIAL), "", current, original, patched, foreign)


def digest(content: bytes) -> str:
    """A SHA-256 as RECORD writes it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def find_calls(source: bytes) -> list[ChatCall]:
    """Find the four calls. Raises SyntaxError or ValueError if the source is not as expected."""
    classes = [node for node in ast.parse(source, TARGET).body if isinstance(node, ast.ClassDef) and node.name == CLASS]
    methods = [node for chat in classes for node in chat.body if isinstance(node, Function)]
    calls = [call for method in methods for call in _calls_in(method)]
    expected = Counter(f"self.{function}(data=data) in {CLASS}.{method}" for method, function in CALLS.items())
    counts = Counter(call.label for call in calls)
    if wrong := [label for label in sorted(counts | expected) if counts[label] != expected[label]]:
        raise ValueError(", ".join(f"{counts[label]} times {label}" for label in wrong))
    return calls


def _calls_in(method: Function) -> Iterator[ChatCall]:
    """The calls in simple statements. (Our lines cannot stand before an `elif`, a part of a compound statement.)"""
    blocks = [block for node in ast.walk(method) for _, block in ast.iter_fields(node) if isinstance(block, list)]
    for previous, statement in (pair for block in blocks for pair in pairwise([None, *block])):
        if not isinstance(statement, ast.stmt) or hasattr(statement, "body"):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS.values():
                data = next((ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "data"), "")
                label = f"self.{node.func.attr}(data={data}) in {CLASS}.{method.name}"
                yield ChatCall(label, statement, ast.unparse(previous) if previous else "")


def with_block(original: bytes, calls: list[ChatCall]) -> bytes:
    """Put our lines before each call's statement, with its indentation and line ending."""
    lines = original.splitlines(keepends=True)  # bytes: str.splitlines also splits where Python's parser does not
    for statement in sorted((call.statement for call in calls), key=lambda statement: -statement.lineno):
        index = statement.lineno - 1
        indent = lines[index][: statement.col_offset]
        newline = lines[index][len(lines[index].rstrip(b"\r\n")) :]
        lines[index:index] = [indent + text + newline for text in BLOCK]
    return b"".join(lines)


def without_block(source: bytes) -> bytes:
    """Remove our lines. A block that somebody edited stays, with its markers."""
    block = b"".join(rb"[ \t]*" + re.escape(text.strip()) + rb"\r?\n" for text in BLOCK)
    return re.sub(rb"^" + block, b"", source, flags=re.MULTILINE)


class Installed(NamedTuple):
    path: Path  # not resolved: the target of a symlink is in uv's cache
    version: str | None
    shipped: str | None  # the file's hash in RECORD


def _find() -> Installed | None:
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:  # no origin: an empty folder that an uninstall left behind
        return None
    distribution = next(iter(importlib.metadata.distributions(name="litellm")), None)
    record = (distribution.read_text("RECORD") if distribution else None) or ""
    listed = re.search(rf"^{re.escape(TARGET)},sha256=([\w-]+)", record, re.MULTILINE)
    version = distribution.version if distribution else None
    return Installed(Path(spec.origin).parent.parent / TARGET, version, listed[1] if listed else None)


def is_newer(version: str) -> bool:
    """Whether a release is newer than the tested one and not pinned in requirements.txt, or of an unusual form."""
    if version == MADE_FOR:
        return False
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}", version):
        tested, given = (tuple(map(int, each.split("."))) for each in (MADE_FOR, version))
        if given < tested:
            return False
    pins = re.findall(r"^litellm(?:\[\w+\])?==([^ \n]+)", LOCK.read_text() if LOCK.exists() else "", re.MULTILINE)
    return version not in pins


def inspect() -> PatchReport:
    """Report the state of this interpreter's LiteLLM, without importing it. PatchError if the file cannot be read."""
    installed = _find()
    if installed is None:
        return PatchReport(PatchState.MISSING)
    if installed.version and installed.version in MALICIOUS:
        report = PatchReport(PatchState.MALICIOUS, MALICIOUS[installed.version])
    elif installed.version and is_newer(installed.version):
        report = PatchReport(PatchState.NEWER)
    else:
        try:
            report = judge(installed.path.read_bytes(), installed.shipped)
        except FileNotFoundError:
            # RECORD tells a damaged installation from a release that has moved the code to another file.
            report = PatchReport(PatchState.LOST if installed.shipped else PatchState.MOVED, "no such file")
        except OSError as error:
            raise _no_access(installed.path, error) from error
    return replace(report, version=installed.version, path=installed.path)


def diff() -> str:
    """The applied patch, or the patch that would be applied, as a unified diff. PatchError if it does not fit."""
    report = inspect()
    if report.original is None or report.patched is None:
        raise PatchError(str(report), report.state)
    before = report.original if report.state is PatchState.PATCHED else report.current
    old, new = (
        [line.decode(errors="replace") for line in text.splitlines(keepends=True)] for text in (before, report.patched)
    )
    return "".join(difflib.unified_diff(old, new, f"a/{TARGET}", f"b/{TARGET}"))


def apply(*, undo: bool = False) -> PatchReport:
    """Patch this interpreter's LiteLLM, or with `undo` remove our lines. PatchError if that is not possible."""
    report = inspect()
    new_text = report.original if undo else report.patched
    if report.path is None or new_text is None:
        raise PatchError(str(report), report.state)
    if report.current == new_text:
        return report
    try:
        _replace_file(report.path, report.current, new_text)
    except OSError as error:
        raise _no_access(report.path, error) from error
    # Python uses an old .pyc if the file has the same size and was changed in the same second.
    with contextlib.suppress(OSError):
        for compiled in (report.path.parent / "__pycache__").glob(f"{report.path.stem}.*.pyc"):
            compiled.unlink()
    return replace(inspect(), changed=True)


def _replace_file(path: Path, old: bytes, new: bytes) -> None:
    """Replace the file in one step: a reader sees the old or the new text, and hard-linked copies do not change."""
    status = path.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(new)
            file.flush()
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, status.st_uid, status.st_gid)  # with sudo, the file keeps its owner
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            os.fsync(descriptor)
        if path.read_bytes() not in {old, new}:  # `new`: another run of this script was faster
            message = f"Another program (pip?) wrote {path} at the same time. When it has ended, run this again: {THIS}"
            raise PatchError(message, PatchState.CHANGED)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _no_access(path: Path, error: OSError) -> PatchError:
    folder, file = shlex.quote(str(path.parent)), shlex.quote(str(path))
    if not isinstance(error, PermissionError):
        remedy = f"Fix the cause, then run this again: {THIS}"
    elif os.access(path.parent, os.F_OK) and path.parent.stat().st_uid == os.geteuid():
        remedy = f"Allow yourself access, then run this again: chmod u+rwx {folder} && chmod u+r {file} && {THIS}"
    else:
        remedy = f"The folder belongs to another user. Run this as its owner or as root: sudo {THIS}"
    return PatchError(f"Cannot read or write {path}: {error.strerror}.\n{remedy}", PatchState.NO_ACCESS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="show whether LiteLLM is patched, change nothing")
    choice.add_argument("--undo", action="store_true", help="remove the patch (stop the proxy first)")
    choice.add_argument("--diff", action="store_true", help="show what the patch changes, change nothing")
    options = parser.parse_args(arguments)
    enter_venv(())
    try:
        if options.diff:
            sys.stdout.write(diff())
            return 0
        if options.check:
            report = inspect()
            print(report, file=sys.stdout if report.ok else sys.stderr)
            return report.state.exit_status
        if options.undo and inspect().state in {PatchState.PATCHED, PatchState.PARTIAL}:
            print("Stop the proxy first, because a running proxy puts the patch back within seconds:")
            print(f"  {PM2} stop claude-proxy && {THIS} --undo", flush=True)
        report = apply(undo=options.undo)
    except PatchError as error:
        print(f"{error}\nNothing was changed.", file=sys.stderr)
        return error.state.exit_status
    print(report)
    if not report.changed:
        print("Nothing to change.")
    elif options.undo:
        print("Removed the patch.")
    else:
        print(f"A running proxy still uses the old code. Restart it: {PM2} restart claude-proxy")
    if options.undo and report.state is PatchState.NOT_PATCHED:
        print("The proxy puts the patch back at its next start. To stay without the patch, do not start the proxy.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
