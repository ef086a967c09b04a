#!/usr/bin/env python3
"""Make the installed LiteLLM say `max_completion_tokens` where Cortex refuses `max_tokens`.

The problem: Cortex answers 400 to `max_tokens`, also when both names are sent. LiteLLM's `openai/` provider sends it.

The mechanism: in litellm/llms/openai/openai.py, class OpenAIChatCompletion, four statements hand the payload, a local
dict called `data`, to the function that sends it. A marked block of four lines before each renames the key. The
statements are found in the syntax tree, so that neither line numbers nor layout matter.

What can be relied on:
- all four calls or none: the result is parsed and tried out in memory before anything is written
- applying twice changes nothing; undoing takes out our lines only, so that the rest is the same to the byte
- the file is replaced, never written into: copies that share its inode (uv's hard links) or that it links to
  (symlinks into uv's cache) keep their content
- an edit by somebody else (seen by the hash in LiteLLM's RECORD) is kept and named; only one inside our own lines,
  or one that the four calls did not survive, stops us
- when `.venv` stands beside this folder, its LiteLLM is the one that is patched: PM2 runs the proxy with it

Exit status: 0 done, or nothing to do; 1 not patched (--check); 2 usage; 3 LiteLLM is not installed; 4 LiteLLM's code
has moved; 5 somebody else's change is in the way; 6 the file cannot be read or written; 7 this LiteLLM release is
known to be malicious.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import difflib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import py_compile
import re
import shlex
import stat
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))  # as a script, this file has only its own folder

from bundle.bootstrap import BUNDLE, PM2, enter_venv

THIS = shlex.join([sys.executable, str(Path(__file__).absolute())])
TARGET = "litellm/llms/openai/openai.py"
CLASS = "OpenAIChatCompletion"
CALLS = {
    "completion": "make_sync_openai_chat_completion_request",
    "acompletion": "make_openai_chat_completion_request",
    "streaming": "make_sync_openai_chat_completion_request",
    "async_streaming": "make_openai_chat_completion_request",
}

MARK = b"claude-code-on-snowflake-cortex"
# When both names are there, the new one wins: it is the one that a caller sets on purpose.
BLOCK = (
    b"# >>> " + MARK + b": Cortex refuses max_tokens",
    b'if "max_tokens" in data:',
    b'    data.setdefault("max_completion_tokens", data.pop("max_tokens"))',
    b"# <<< " + MARK,
)

MADE_FOR = "1.106.2"  # the release that requirements.in pins
# Releases that somebody else put on the index, and where that is said. They were removed there; a mirror may have them.
MALICIOUS = {
    "1.82.7": "PYSEC-2026-2",
    "1.82.8": "PYSEC-2026-2",
    "1.107.0": "compromised release of 2026-10-21",
}
FLOOR = (1, 84, 0)  # CVE-2026-49468

# Another run takes well under a second; one that is stopped in the middle must not hang the proxy's start.
LOCK_SECONDS = 10.0


class Exit(IntEnum):
    OK = 0
    NOT_PATCHED = 1
    USAGE = 2  # argparse's own
    MISSING = 3
    MOVED = 4
    CHANGED = 5
    NO_ACCESS = 6
    MALICIOUS = 7


class State(Enum):
    """How it stands, with the exit status of `--check`."""

    PRISTINE = "pristine", Exit.NOT_PATCHED  # as LiteLLM shipped it
    PATCHED = "patched", Exit.OK  # all four blocks in place
    PARTIAL = "partial", Exit.NOT_PATCHED  # some of them, or not where they belong
    UNNEEDED = "unneeded", Exit.OK  # the code renames without us
    FOREIGN = "foreign", Exit.NOT_PATCHED  # not patched, and not known to be as shipped; can be patched
    DAMAGED = "damaged", Exit.CHANGED  # somebody else's edit is where ours would be, or in it
    MOVED = "moved", Exit.MOVED  # the four calls are not where they were
    MISSING = "missing", Exit.MISSING  # this interpreter has no LiteLLM
    MALICIOUS = "malicious", Exit.MALICIOUS  # a release that steals credentials

    def __init__(self, label: str, exit_code: Exit) -> None:
        self.label = label
        self.exit_code = exit_code


class PatchError(Exception):
    """Nothing was changed. `str()` is the message for the user, `exit_code` the status of the process."""

    def __init__(self, message: str, exit_code: Exit) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class PatchReport:
    """What was found. `str()` is the message for the user.

    `genuine` says whether the file without our lines is what LiteLLM shipped; None when RECORD does not list it.
    `changed` says whether this very call wrote the file.
    """

    state: State
    interpreter: str
    version: str | None = None
    path: Path | None = None
    detail: str = ""
    genuine: bool | None = None
    changed: bool = False

    @property
    def ok(self) -> bool:
        """Whether requests leave with `max_completion_tokens`."""
        return self.state.exit_code == Exit.OK

    def __str__(self) -> str:
        first, *rest = self.detail.splitlines()
        file = [f"  file         {self.path}"] if self.path else []
        return "\n".join([first, *file, f"  interpreter  {self.interpreter}", *rest])


class Verdict(NamedTuple):
    """`base` is the source without our lines, `wanted` the source as it should be; None where there is no such."""

    state: State
    genuine: bool | None = None
    base: bytes | None = None
    wanted: bytes | None = None
    reasons: list[str] = []  # noqa: RUF012 - never changed in place


class Call(NamedTuple):
    """`statement` hands `data` over. `before` (in its block) and `inside` (the helper) run first, come what may."""

    method: str
    helper: str
    statement: ast.stmt
    before: list[ast.stmt]
    inside: list[ast.stmt]
    passes_data: bool


def judge(current: bytes, shipped: str | None) -> Verdict:
    """Judge a source by its bytes and RECORD's hash (`digest`) of what was shipped, None when that is unknown."""
    base = without_block(current)
    if MARK in base:
        return Verdict(State.DAMAGED, reasons=["lines between our markers that are not ours"])
    genuine = None if shipped is None else digest(base) == shipped
    calls, reasons = find_calls(base)
    if not reasons:
        if base == current and all(renames(call.before + call.inside) for call in calls):
            return Verdict(State.UNNEEDED, genuine, base, current)
        wanted = with_block(base, calls)
        calls, broken = find_calls(wanted)
        if broken or not all(renames(call.before[-1:]) for call in calls) or without_block(wanted) != base:
            reasons = ["a layout in which our lines would not take effect"]
    if reasons:
        return Verdict(State.DAMAGED if genuine is False else State.MOVED, genuine, base, reasons=reasons)
    if current == wanted:
        return Verdict(State.PATCHED, genuine, base, wanted)
    if current != base:
        return Verdict(State.PARTIAL, genuine, base, wanted)
    return Verdict(State.PRISTINE if genuine else State.FOREIGN, genuine, base, wanted)


def digest(content: bytes) -> str:
    """A SHA-256 as RECORD writes it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def find_calls(source: bytes) -> tuple[list[Call], list[str]]:
    """Find the four calls. The second list says what was found instead; it is empty when all is as expected."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # LiteLLM's invalid escapes are not this user's business
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        return [], [f"no valid Python: {error}"]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == CLASS]
    if len(classes) != 1:
        return [], [f"{len(classes)} classes of that name"]
    functions = {
        node.name: node for node in classes[0].body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    calls = []
    for method in functions.values():
        # Each statement with those before it in its block: bodies, else branches, handlers, at any depth.
        placed = [
            (statement, block[:index])
            for node in ast.walk(method)
            for _, block in ast.iter_fields(node)
            if isinstance(block, list)
            for index, statement in enumerate(block)
            if isinstance(statement, ast.stmt)
        ]
        for node in ast.walk(method):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            helper = node.func.attr
            if helper not in CALLS.values():
                continue
            around = [pair for pair in placed if pair[0].lineno <= node.lineno <= (pair[0].end_lineno or 0)]
            statement, before = max(around, key=lambda pair: pair[0].lineno)
            inside = functions[helper].body if helper in functions else []
            passes_data = any(k.arg == "data" and ast.unparse(k.value) == "data" for k in node.keywords)
            calls.append(Call(method.name, helper, statement, before, inside, passes_data))

    counts = Counter((call.method, call.helper) for call in calls)
    expected = Counter(CALLS.items())
    reasons = [
        f"{counts[pair]} calls of self.{pair[1]} in {pair[0]}"
        for pair in sorted(counts | expected)
        if counts[pair] != expected[pair]
    ]
    return calls, reasons + [f"{call.method} without data=data" for call in calls if not call.passes_data]


def renames(statements: list[ast.stmt]) -> bool:
    """Whether these statements rename the key in every payload, ours and anybody's way of writing it alike.

    They are tried out instead of compared with a pattern. Only such as look at nothing but `data` and its two keys
    count: a rename for some models only is none, and nothing else of LiteLLM runs here.
    """
    code = compile(ast.Module([s for s in statements if _is_about_the_keys(s)], type_ignores=[]), TARGET, "exec")
    for payload in ({"max_tokens": 1}, {"max_tokens": 1, "max_completion_tokens": 2}, {"max_completion_tokens": 2}, {}):
        data = dict(payload)
        try:
            exec(code, {"__builtins__": {}}, {"data": data})  # noqa: S102 - lines of the package that is run anyway
        except (AttributeError, LookupError, TypeError, ValueError):
            return False
        if data.keys() != ({"max_completion_tokens"} if payload else set()):
            return False
    return True


def _is_about_the_keys(statement: ast.stmt) -> bool:
    nodes = list(ast.walk(statement))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    simple = isinstance(statement, ast.Assign | ast.Delete | ast.Expr | ast.If)
    return simple and names == {"data"} and texts <= {"max_tokens", "max_completion_tokens"}


def with_block(base: bytes, calls: list[Call]) -> bytes:
    """Insert the block before each call's statement, with that line's indentation and line ending."""
    # Split as Python's tokenizer does; str.splitlines would also split at form feeds and separators.
    lines = base.splitlines(keepends=True)
    for call in sorted(calls, key=lambda call: call.statement.lineno, reverse=True):
        index = call.statement.lineno - 1
        indent = lines[index][: call.statement.col_offset]
        newline = lines[index][len(lines[index].rstrip(b"\r\n")) :]
        lines[index:index] = [indent + text + newline for text in BLOCK]
    return b"".join(lines)


def without_block(source: bytes) -> bytes:
    """Take out our blocks. Whatever was edited in one is not ours any more and stays, with its markers."""
    block = b"".join(rb"[ \t]*" + re.escape(text.strip()) + rb"(?:\r\n|\r|\n)" for text in BLOCK)
    return re.sub(rb"(?<![^\r\n])" + block, b"", source)


class Installed(NamedTuple):
    """`path` is never resolved: behind a symlink lies uv's cache. `shipped` is RECORD's hash of the file."""

    path: Path
    version: str | None
    shipped: str | None


def inspect() -> PatchReport:
    """Say how this interpreter's LiteLLM stands, without importing it. PatchError when the file is not readable."""
    return _look()[0]


def apply() -> PatchReport:
    """Patch this interpreter's LiteLLM unless it is patched. PatchError when that was not possible."""
    return _change(patch=True)


def undo() -> PatchReport:
    """Take our lines out again, whatever else is in the file. PatchError when that was not possible."""
    return _change(patch=False)


def diff() -> str:
    """The unified diff of what is patched, or else of what would be. PatchError where nothing can be."""
    report, verdict, current = _look()
    if verdict.base is None or verdict.wanted is None:
        raise PatchError(str(report), report.state.exit_code)
    before = verdict.base if report.state is State.PATCHED else current
    old, new = (source.decode(errors="replace").splitlines(keepends=True) for source in (before, verdict.wanted))
    return "".join(difflib.unified_diff(old, new, f"a/{TARGET}", f"b/{TARGET}"))


def _change(*, patch: bool) -> PatchReport:
    report, path, current, goal = _plan(patch=patch)
    if current == goal:
        return report
    with _alone_at(path):
        # Looked at again: whoever held the lock may have done the work meanwhile.
        report, path, current, goal = _plan(patch=patch)
        if current == goal:
            return report
        _replace_file(path, current, goal)
        _renew_bytecode(path)
        report, path, current, goal = _plan(patch=patch)
        if current != goal:
            raise _somebody_else_writes(path)
    return replace(report, changed=True)


def _plan(*, patch: bool) -> tuple[PatchReport, Path, bytes, bytes]:
    """What is there, and what shall be there instead. PatchError when that cannot be said."""
    report, verdict, current = _look()
    goal = verdict.wanted if patch else verdict.base
    if report.path is None or goal is None:
        raise PatchError(str(report), report.state.exit_code)
    return report, report.path, current, goal


def _look() -> tuple[PatchReport, Verdict, bytes]:
    found = _find()
    current = b""
    if found is None:
        verdict = Verdict(State.MISSING)
        return PatchReport(verdict.state, sys.executable, detail=_detail(verdict, None)), verdict, current
    try:
        current = found.path.read_bytes()
        verdict = judge(current, found.shipped)
    except FileNotFoundError:
        verdict = Verdict(State.MOVED, reasons=["no such file"])
    except OSError as error:
        raise _no_access(found.path, error) from error
    if found.version in MALICIOUS:
        verdict = verdict._replace(state=State.MALICIOUS, wanted=None)
    detail = _detail(verdict, found.version)
    report = PatchReport(verdict.state, sys.executable, found.version, found.path, detail, verdict.genuine)
    return report, verdict, current


def _find() -> Installed | None:
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:  # no origin: an empty folder that an uninstall left behind
        return None
    package = Path(spec.origin).parent
    beside = importlib.metadata.distributions(name="litellm", path=[str(package.parent)])
    distribution = next(iter(beside), None) or next(iter(importlib.metadata.distributions(name="litellm")), None)
    record = (distribution.read_text("RECORD") if distribution else None) or ""
    listed = re.search(rf"^{re.escape(TARGET)},sha256=([\w-]+)", record, re.MULTILINE)
    version = distribution.version if distribution else None
    return Installed(package.parent / TARGET, version, listed[1] if listed else None)


@contextlib.contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    """Hold the lock of the file's folder, and sync the folder when done. Names what the system refuses.

    A lock on the folder leaves no lock file behind, and the kernel drops it with the process.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            _lock(folder, path)
            yield
            with contextlib.suppress(OSError):  # what was written stands, also where folders cannot be synced
                os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _no_access(path, error) from error


def _lock(folder: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # noqa: PERF203 - waiting is the point
            time.sleep(0.05)
        except OSError:
            return  # a file system without locks (NFS): each write is still whole, the last one wins
        else:
            return
    message = f"Another run of this script has held {path} for {LOCK_SECONDS:.0f} s. End it, then run this again."
    raise PatchError(message, Exit.NO_ACCESS)


def _replace_file(path: Path, old: bytes, new: bytes) -> None:
    """Put `new` in the place of `old` at once: a reader sees one or the other, other links keep theirs."""
    status = path.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(new)
            file.flush()
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, status.st_uid, status.st_gid)  # under sudo the file stays its user's
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            os.fsync(descriptor)
        if path.read_bytes() != old:
            raise _somebody_else_writes(path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _renew_bytecode(path: Path) -> None:
    """Drop what was compiled from the old source: Python may take it for current (same size and second, or a
    .pyc that is never checked). A missing one would cost time at every start of a proxy that cannot write it."""
    with contextlib.suppress(OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stale in Path(importlib.util.cache_from_source(str(path))).parent.glob(f"{path.stem}.*.pyc"):
            stale.unlink()
        if not sys.dont_write_bytecode:
            py_compile.compile(str(path), doraise=True)


def _detail(verdict: Verdict, version: str | None) -> str:
    """The report's text: the first line says how it stands, the others why and what to do."""
    release = f"LiteLLM {version or '(version unknown)'}"
    requirements = shlex.quote(str(BUNDLE / "requirements.txt"))
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    venv = shlex.quote(str(BUNDLE / ".venv"))
    # Debian's and Homebrew's Python refuse an installation outside a virtual environment.
    install = pip if sys.prefix != sys.base_prefix else f"python3 -m venv {venv} && {venv}/bin/python -m pip install"
    refused = f"Cortex refuses its requests (max_tokens).\nPatch it: {THIS}"
    looked_for = "".join(f"\n    in {method}: self.{helper}(data=data)" for method, helper in CALLS.items())
    found = "".join(f"  found        {reason}\n" for reason in verdict.reasons)
    text = {
        State.PATCHED: f"{release} is patched: its four chat calls send max_completion_tokens.",
        State.UNNEEDED: f"Good news: {release} needs no patch, its code renames max_tokens without us.",
        State.PARTIAL: f"{release} is patched only in part: {refused}",
        State.PRISTINE: f"{release} is not patched: {refused}",
        State.FOREIGN: f"{release} is not patched: {refused}",
        State.DAMAGED: (
            f"{release} was changed by somebody else where this patch belongs. Nothing was changed.\n{found}"
            f"Put back what was shipped, then patch it: {pip} --force-reinstall --no-deps litellm=={version} && {THIS}"
        ),
        State.MOVED: (
            f"{release} no longer has the code that this patch (made for {MADE_FOR}) changes. Nothing was changed.\n"
            f"  looked for   in class {CLASS}, one of each:{looked_for}\n{found}"
            "This may be good news: a newer LiteLLM may send max_completion_tokens by itself. It does not when Cortex\n"
            f'answers "max_tokens is deprecated". Go back to the release that works: {install} -r {requirements}'
        ),
        State.MISSING: (f"LiteLLM is not installed for this interpreter.\nInstall it: {install} -r {requirements}"),
        State.MALICIOUS: (
            f"{release} steals credentials ({MALICIOUS.get(version or '')}). Do not start it; it is not patched.\n"
            f"Replace it: {install} -r {requirements}\n"
            "Then replace every key and password that this machine could read since it was installed."
        ),
    }[verdict.state]
    notes = []
    if verdict.genuine is False and verdict.wanted:
        notes.append("Somebody else has changed this file too (it is not as LiteLLM's RECORD lists it): that is kept.")
    if verdict.genuine is None and verdict.wanted:
        notes.append("LiteLLM's RECORD does not list this file: whether somebody else changed it cannot be told.")
    numbers = tuple(map(int, re.findall(r"\d+", version or "")[:3]))
    if numbers and numbers < FLOOR and verdict.state is not State.MALICIOUS:
        notes.append(f"A host header goes around its keys (CVE-2026-49468). Upgrade it: {install} -r {requirements}")
    return "\n".join([text, *notes])


def _somebody_else_writes(path: Path) -> PatchError:
    message = f"Somebody else wrote {path} at the same moment (pip?). Theirs is kept: run this again when it is done."
    return PatchError(message, Exit.CHANGED)


def _no_access(path: Path, error: OSError) -> PatchError:
    if error.errno not in {errno.EACCES, errno.EPERM}:
        remedy = "Mend that, then run this again."
    elif path.parent.stat().st_uid == os.geteuid():
        remedy = f"Make the folder writable, then run this again: chmod u+rwx {shlex.quote(str(path.parent))}"
    else:
        remedy = f"The folder belongs to another user. Run this again as that one: sudo {THIS}"
    return PatchError(f"Cannot change {path}: {error.strerror}. Nothing was changed.\n{remedy}", Exit.NO_ACCESS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="say how it stands, change nothing")
    choice.add_argument("--undo", action="store_true", help="take the patch out again")
    choice.add_argument("--diff", action="store_true", help="show what is patched, or what would be")
    options = parser.parse_args(arguments)
    enter_venv(())
    try:
        if options.diff:
            sys.stdout.write(diff())
            return Exit.OK
        if options.check:
            report = inspect()
            print(report, file=sys.stdout if report.ok else sys.stderr)
            return report.state.exit_code
        report = undo() if options.undo else apply()
    except PatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(report)
    print(f"A running proxy keeps the old code: {PM2} restart claude-proxy" if report.changed else "Nothing to change.")
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
