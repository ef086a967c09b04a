"""What patches/apply_patch.py promises, kept on copies of the real LiteLLM's file.

Each test has a site-packages folder of its own with LiteLLM's real openai.py and a RECORD that fits. The script runs as
a process with `-S`, so that the only LiteLLM it can find, and change, is that one.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle import bootstrap
from patches import apply_patch
from patches.apply_patch import BLOCK, CALLS, Exit, State
from tests.conftest import drop_root_powers

ROOT = Path(__file__).parent.parent
LITELLM = importlib.metadata.distribution("litellm")
REAL = Path(str(LITELLM.locate_file(apply_patch.TARGET)))
NOBODY = 65534


@dataclass(frozen=True)
class Bundle:
    """A copy of the script in a bundle folder, beside a site-packages folder with a LiteLLM of its own."""

    folder: Path

    @property
    def site(self) -> Path:
        return self.folder / "site"

    @property
    def file(self) -> Path:
        return self.site / apply_patch.TARGET

    @property
    def script(self) -> Path:
        return self.folder / "bundle" / "patches" / "apply_patch.py"

    def ship(self, content: bytes, version: str = "1.106.2") -> None:
        """Install a LiteLLM whose openai.py is this one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        (self.site / "litellm" / "__init__.py").write_text("raise RuntimeError('LiteLLM was imported')\n")
        self.file.write_bytes(content)
        info = self.site / f"litellm-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: litellm\nVersion: {version}\n")
        record = f"litellm/__init__.py,,\n{apply_patch.TARGET},sha256={apply_patch.digest(content)},{len(content)}\n"
        (info / "RECORD").write_text(record)

    def run(self, *arguments: str, start: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", str(self.script), *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.site), "HOME": str(self.folder)},
            preexec_fn=start,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def patched(self) -> bool:
        return self.file.read_bytes().count(BLOCK[0]) == len(CALLS)


@pytest.fixture(scope="session")
def shipped() -> bytes:
    """The real file as LiteLLM ships it, also when the one that the tests run with is patched."""
    content = apply_patch.without_block(REAL.read_bytes())
    assert f"{apply_patch.TARGET},sha256={apply_patch.digest(content)}," in (LITELLM.read_text("RECORD") or "")
    return content


@pytest.fixture
def bundle(tmp_path: Path, shipped: bytes) -> Bundle:
    bundle = empty_bundle(tmp_path)
    bundle.ship(shipped)
    return bundle


def empty_bundle(folder: Path) -> Bundle:
    bundle = Bundle(folder)
    bundle.script.parent.mkdir(parents=True)
    shutil.copy(apply_patch.__file__, bundle.script)
    shared = bundle.script.parent.parent / "bundle"
    shared.mkdir()
    for module in ("__init__.py", "bootstrap.py"):
        shutil.copy(Path(bootstrap.__file__).with_name(module), shared)
    return bundle


def fingerprint(path: Path) -> tuple[bytes, int, int]:
    status = path.lstat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ino


# Apply, check, undo, diff


def test_all_four_calls_are_patched_and_the_version_file_and_interpreter_are_named(bundle: Bundle) -> None:
    result = bundle.run()
    assert (result.returncode, result.stderr) == (Exit.OK, "")
    assert bundle.patched()
    for named in ("LiteLLM 1.106.2 is patched", str(bundle.file), sys.executable, "pm2 restart claude-proxy"):
        assert named in result.stdout


def test_a_second_run_changes_nothing(bundle: Bundle) -> None:
    bundle.run()
    before = fingerprint(bundle.file)
    result = bundle.run()
    assert result.returncode == Exit.OK
    assert "Nothing to change" in result.stdout
    assert fingerprint(bundle.file) == before


def test_check_tells_patched_from_not_patched_and_writes_nothing(bundle: Bundle) -> None:
    before = fingerprint(bundle.file)
    result = bundle.run("--check")
    assert (result.returncode, result.stdout) == (Exit.NOT_PATCHED, "")
    assert f"Patch it: {sys.executable} {bundle.script}" in result.stderr
    assert fingerprint(bundle.file) == before
    bundle.run()
    before = fingerprint(bundle.file)
    assert bundle.run("--check").returncode == Exit.OK
    assert fingerprint(bundle.file) == before


@pytest.mark.parametrize(
    "layout",
    [
        lambda source: source,
        lambda source: source.replace(b"\n", b"\r\n"),
        lambda source: source.rstrip(b"\n"),
        lambda source: b"\xef\xbb\xbf" + source,
        lambda source: source.replace(b"\nclass ", b"\n\x0c\nclass "),
    ],
    ids=["as shipped", "CRLF", "no newline at the end", "byte order mark", "form feeds"],
)
def test_undo_restores_every_byte(tmp_path: Path, shipped: bytes, layout: Callable[[bytes], bytes]) -> None:
    bundle = empty_bundle(tmp_path)
    source = layout(shipped)
    bundle.ship(source)
    assert bundle.run().returncode == Exit.OK
    patched = bundle.file.read_bytes()
    assert bundle.patched()
    assert (b"\r\n" in patched) == (b"\r\n" in source)
    assert len(re.findall(rb"(?<!\r)\n", patched)) == (0 if b"\r\n" in source else patched.count(b"\n"))
    assert bundle.run("--undo").returncode == Exit.OK
    assert bundle.file.read_bytes() == source
    again = fingerprint(bundle.file)
    assert bundle.run("--undo").returncode == Exit.OK
    assert fingerprint(bundle.file) == again


def test_diff_before_is_what_apply_does_and_diff_after_is_what_it_did(bundle: Bundle, shipped: bytes) -> None:
    would = bundle.run("--diff")
    assert bundle.file.read_bytes() == shipped
    bundle.run()
    assert bundle.run("--diff").stdout == would.stdout
    patched = bundle.file.read_bytes()
    bundle.file.write_bytes(shipped)
    git = ["git", "-C", str(bundle.site), "apply", "--unsafe-paths", f"--directory={bundle.site}", "-"]
    subprocess.run(git, input=would.stdout, text=True, check=True, timeout=60, capture_output=True)
    assert bundle.file.read_bytes() == patched


def test_an_unknown_option_is_a_usage_error(bundle: Bundle) -> None:
    assert bundle.run("--chekc").returncode == Exit.USAGE
    assert bundle.run("--check", "--undo").returncode == Exit.USAGE


def test_the_page_of_help_names_every_exit_status(bundle: Bundle) -> None:
    text = bundle.run("--help").stdout
    assert [int(code) for code in re.findall(r"\b([0-9])(?= [a-zL])", text[text.index("Exit status") :])] == list(Exit)


def test_the_release_named_in_messages_is_the_pinned_one() -> None:
    assert f"litellm[proxy]=={apply_patch.MADE_FOR}\n" in (ROOT / "requirements.in").read_text()


# What LiteLLM's file can look like


def test_an_edit_by_somebody_else_is_named_and_kept(bundle: Bundle, shipped: bytes) -> None:
    edited = shipped + b"\n# mine\n"
    bundle.file.write_bytes(edited)
    for arguments, status in (("--check", Exit.NOT_PATCHED), ("", Exit.OK), ("--check", Exit.OK), ("--undo", Exit.OK)):
        result = bundle.run(*arguments.split())
        assert result.returncode == status
        assert "Somebody else has changed this file too" in result.stdout + result.stderr
    assert bundle.file.read_bytes() == edited


def test_pristine_ours_and_somebody_elses_are_told_apart(shipped: bytes) -> None:
    def judge(source: bytes, record: str | None) -> tuple[State, bool | None]:
        return apply_patch.judge(source, record)[:2]

    record = apply_patch.digest(shipped)
    patched = apply_patch.judge(shipped, record).wanted
    assert patched
    assert judge(shipped, record) == (State.PRISTINE, True)
    assert judge(patched, record) == (State.PATCHED, True)
    assert judge(shipped + b"#\n", record) == (State.FOREIGN, False)
    assert judge(patched + b"#\n", record) == (State.PATCHED, False)
    assert judge(shipped, None) == (State.FOREIGN, None)


def test_a_partial_patch_is_completed_or_taken_out(bundle: Bundle, shipped: bytes) -> None:
    bundle.run()
    patched = bundle.file.read_bytes()
    first, second = (match.start() for match in list(re.finditer(rb"[ ]*" + re.escape(BLOCK[0]), patched))[:2])
    partial = patched[:first] + apply_patch.without_block(patched[first:second]) + patched[second:]
    bundle.file.write_bytes(partial)
    result = bundle.run("--check")
    assert result.returncode == Exit.NOT_PATCHED
    assert "only in part" in result.stderr
    assert bundle.run().returncode == Exit.OK
    assert bundle.file.read_bytes() == patched
    bundle.file.write_bytes(partial)
    assert bundle.run("--undo").returncode == Exit.OK
    assert bundle.file.read_bytes() == shipped


@pytest.mark.parametrize("arguments", [[], ["--check"], ["--undo"], ["--diff"]])
def test_an_edit_inside_our_own_lines_is_not_thrown_away(bundle: Bundle, arguments: list[str]) -> None:
    bundle.run()
    edited = bundle.file.read_bytes().replace(b'data.pop("max_tokens")', b'data.pop("max_tokens", 7)', 1)
    bundle.file.write_bytes(edited)
    result = bundle.run(*arguments)
    assert result.returncode == Exit.CHANGED
    assert "pip install --force-reinstall --no-deps litellm==1.106.2" in result.stderr
    assert bundle.file.read_bytes() == edited


def test_a_hand_made_edit_that_broke_the_file_is_named(bundle: Bundle, shipped: bytes) -> None:
    line = b"                        ) = self.make_sync_openai_chat_completion_request("
    assert line in shipped
    bundle.file.write_bytes(shipped.replace(line, b'                        data.pop("max_tokens")\n' + line))
    result = bundle.run()
    assert result.returncode == Exit.CHANGED
    assert "no valid Python" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (
            b"async def acompletion(",
            b"async def acompletion_v2(",
            "0 calls of self.make_openai_chat_completion_request",
        ),
        (b"class OpenAIChatCompletion(", b"class ChatCompletion(", "0 classes of that name"),
        (b"data=data,\n                    timeout", b"data=body,\n                    timeout", "without data=data"),
        (
            b"        headers, response = self.make_sync_openai_chat_completion_request(\n"
            b"            openai_client=openai_client,\n            data=data,\n            timeout=timeout,\n"
            b"            logging_obj=logging_obj,\n        )\n",
            b"        if not data:\n            pass\n"
            b"        elif self.make_sync_openai_chat_completion_request(data=data):\n            pass\n",
            "a layout in which our lines would not take effect",
        ),
        (b"def __init__(self) -> None:\n", b"def __init__(self) -> None:\n        \x00\n", "no valid Python"),
    ],
    ids=["method renamed", "class renamed", "other payload", "call in an elif", "newer syntax"],
)
@pytest.mark.parametrize("arguments", [[], ["--check"], ["--diff"]], ids=["apply", "check", "diff"])
def test_code_that_has_moved_is_left_alone_and_said(
    tmp_path: Path, shipped: bytes, *, old: bytes, new: bytes, found: str, arguments: list[str]
) -> None:
    bundle = empty_bundle(tmp_path)
    assert old in shipped
    moved = shipped.replace(old, new)
    bundle.ship(moved, "1.200.0")
    result = bundle.run(*arguments)
    assert result.returncode == Exit.MOVED
    for named in ("LiteLLM 1.200.0", apply_patch.MADE_FOR, str(bundle.file), "looked for", found, "pip install"):
        assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert bundle.file.read_bytes() == moved


def test_a_litellm_without_the_file_is_said(bundle: Bundle) -> None:
    shutil.rmtree(bundle.file.parent)
    for arguments in ([], ["--undo"], ["--check"]):
        result = bundle.run(*arguments)
        assert result.returncode == Exit.MOVED
        assert "no such file" in result.stderr


BY_HAND = (
    'if "max_tokens" in data: data.setdefault("max_completion_tokens", data.pop("max_tokens"))',
    'if data.get("max_tokens") is not None: data["max_completion_tokens"] = data.pop("max_tokens")',
    'if "max_tokens" in data:\n    data["max_completion_tokens"] = data["max_tokens"]\n    del data["max_tokens"]',
)
NOT_ENOUGH = (
    'data["max_completion_tokens"] = data.pop("max_tokens")',  # a request without a limit is a KeyError
    'if not data.get("max_completion_tokens"): data["max_completion_tokens"] = data.pop("max_tokens", None)',
    'if model.startswith("o1"): data["max_completion_tokens"] = data.pop("max_tokens")',
    'if data["model"] == "o1": data["max_completion_tokens"] = data.pop("max_tokens")',
    'if stream: data["max_completion_tokens"] = data.pop("max_tokens")',
    'if data.get("user") != "x" and "max_tokens" in data: data["max_completion_tokens"] = data.pop("max_tokens")',
    'data.pop("max_tokens", None)',
    'data["max_completion_tokens"] = data.get("max_tokens")',
)


def renamed_before_each_call(shipped: bytes, lines: str) -> bytes:
    calls, reasons = apply_patch.find_calls(shipped)
    assert not reasons
    source = shipped.splitlines(keepends=True)
    for call in sorted(calls, key=lambda call: -call.statement.lineno):
        indent = b" " * call.statement.col_offset
        at = call.statement.lineno - 1
        source[at:at] = [indent + line.encode() + b"\n" for line in lines.split("\n")]
    return b"".join(source)


@pytest.mark.parametrize("lines", BY_HAND)
def test_code_that_renames_by_itself_is_good_news_and_left_alone(tmp_path: Path, shipped: bytes, lines: str) -> None:
    bundle = empty_bundle(tmp_path)
    bundle.ship(renamed_before_each_call(shipped, lines), "1.200.0")
    before = fingerprint(bundle.file)
    for arguments in ([], ["--check"], ["--undo"]):
        result = bundle.run(*arguments)
        assert result.returncode == Exit.OK
        assert "Good news: LiteLLM 1.200.0 needs no patch" in result.stdout
    assert bundle.run("--diff").stdout == ""
    assert fingerprint(bundle.file) == before


def test_code_that_renames_where_it_sends_is_good_news_too(shipped: bytes) -> None:
    signature = re.compile(
        rb'(def make_(?:sync_)?openai_chat_completion_request\(\n(?:.*\n)*?        """\n(?:.*\n)*?        """\n)'
    )
    source, count = signature.subn(rb"\1        " + BY_HAND[0].encode() + b"\n", shipped)
    assert count == 2
    assert apply_patch.judge(source, apply_patch.digest(source)).state is State.UNNEEDED


@pytest.mark.parametrize("lines", NOT_ENOUGH)
def test_code_that_renames_only_sometimes_is_patched_all_the_same(shipped: bytes, lines: str) -> None:
    assert not apply_patch.renames(ast.parse(lines).body)
    source = renamed_before_each_call(shipped, lines)
    assert apply_patch.judge(source, apply_patch.digest(source)).state is State.PRISTINE


# Which LiteLLM


def test_a_missing_litellm_is_said_with_the_command_that_installs_it(tmp_path: Path) -> None:
    bundle = empty_bundle(tmp_path)
    bundle.site.mkdir()
    (bundle.site / "litellm").mkdir()  # what an uninstall can leave behind
    for arguments in ([], ["--check"], ["--undo"], ["--diff"]):
        result = bundle.run(*arguments)
        assert result.returncode == Exit.MISSING
        assert "LiteLLM is not installed" in result.stderr
        assert f"pip install -r {bundle.folder}/bundle/requirements.txt" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("version", ["1.82.7", "1.82.8", "1.107.0"])
def test_a_release_that_steals_credentials_is_refused(tmp_path: Path, shipped: bytes, version: str) -> None:
    bundle = empty_bundle(tmp_path)
    bundle.ship(shipped, version)
    for arguments in ([], ["--check"]):
        result = bundle.run(*arguments)
        assert result.returncode == Exit.MALICIOUS
        assert f"LiteLLM {version} steals credentials" in result.stderr
        assert "pip install -r" in result.stderr
    assert bundle.file.read_bytes() == shipped


def test_a_script_whose_packages_are_missing_says_so_and_how_to_install_them(bundle: Bundle) -> None:
    code = "from bundle import bootstrap; bootstrap.enter_venv(['json', 'no_such_package'])"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(bundle.script.parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 78
    assert result.stderr == f"{sys.executable} lacks no_such_package. Install what is needed: make install\n"


def test_under_pm2_a_package_that_pip_is_replacing_is_waited_for(bundle: Bundle) -> None:
    code = "from bundle import bootstrap; bootstrap.enter_venv(['slow_package']); import slow_package"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(bundle.script.parent.parent), "NODE_CHANNEL_FD": "3"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert "lacks slow_package" in process.stderr.readline()
        (bundle.script.parent.parent / "slow_package.py").touch()
        assert process.wait(timeout=30) == 0


def test_a_release_with_a_known_hole_is_patched_and_named(tmp_path: Path, shipped: bytes) -> None:
    bundle = empty_bundle(tmp_path)
    bundle.ship(shipped, "1.83.14")
    result = bundle.run()
    assert result.returncode == Exit.OK
    assert "CVE-2026-49468" in result.stdout


def test_the_environment_that_pm2_uses_is_the_one_that_is_patched(bundle: Bundle) -> None:
    environment = bundle.folder / "bundle" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    result = bundle.run("--check")
    python = environment / "bin" / "python"
    assert result.returncode == Exit.NOT_PATCHED
    assert f"interpreter  {python}" in result.stderr
    itself = subprocess.run(
        [environment / "bin" / "python3", bundle.script, "--check"],
        env={"PYTHONPATH": str(bundle.site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Using" not in itself.stderr
    assert str(bundle.file) in itself.stderr


# The file system


def test_a_hard_link_in_a_cache_keeps_its_content(bundle: Bundle, shipped: bytes) -> None:
    cached = bundle.folder / "cached.py"
    os.link(bundle.file, cached)
    assert bundle.run().returncode == Exit.OK
    assert bundle.patched()
    assert cached.read_bytes() == shipped


def test_a_symlink_into_a_cache_is_replaced_and_not_followed(bundle: Bundle, shipped: bytes) -> None:
    cached = bundle.folder / "cached.py"
    shutil.move(bundle.file, cached)
    bundle.file.symlink_to(cached)
    assert bundle.run().returncode == Exit.OK
    assert bundle.patched()
    assert not bundle.file.is_symlink()
    assert cached.read_bytes() == shipped


def test_a_package_folder_that_is_a_symlink_is_patched_where_it_is_found(bundle: Bundle) -> None:
    shutil.move(bundle.site / "litellm", bundle.folder / "elsewhere")
    (bundle.site / "litellm").symlink_to(bundle.folder / "elsewhere")
    result = bundle.run()
    assert result.returncode == Exit.OK
    assert str(bundle.file) in result.stdout
    assert bundle.patched()


@pytest.mark.parametrize("mode", [0o644, 0o664, 0o444])
def test_the_files_mode_stays_and_no_other_file_is_left(bundle: Bundle, mode: int) -> None:
    bundle.file.chmod(mode)
    assert bundle.run().returncode == Exit.OK
    assert bundle.patched()
    assert stat.S_IMODE(bundle.file.stat().st_mode) == mode
    assert sorted(path.name for path in bundle.file.parent.iterdir()) == ["__pycache__", "openai.py"]


def test_bytecode_of_the_old_source_is_not_used(bundle: Bundle) -> None:
    cache = Path(
        py_compile.compile(
            str(bundle.file), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        or ""
    )
    stale = cache.read_bytes()
    other = cache.with_name("openai.cpython-39.pyc")
    other.write_bytes(b"of another interpreter")
    bundle.run()
    assert not other.exists()
    assert cache.read_bytes() != stale
    code = f"import importlib.util as u; print(u.cache_from_source({str(bundle.file)!r}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).strip() == str(cache)
    assert b"setdefault" in cache.read_bytes()


def test_runs_at_the_same_time_end_with_a_whole_patch(bundle: Bundle, shipped: bytes) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bundle.site)}
    patched = apply_patch.judge(shipped, None).wanted
    both: list[list[list[str]]] = [[[], [], [], []], [[], ["--undo"], [], ["--undo"]]]
    for kinds in both:
        runs = [
            subprocess.Popen(
                [sys.executable, "-S", str(bundle.script), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for arguments in kinds
        ]
        outputs = [run.communicate(timeout=60)[0] for run in runs]
        assert [run.returncode for run in runs] == [0, 0, 0, 0], outputs
        assert bundle.file.read_bytes() in ({patched} if kinds[1] == [] else {patched, shipped})
        if kinds[1] == []:
            assert sum("pm2 restart" in output for output in outputs) == 1
        assert sorted(path.name for path in bundle.file.parent.iterdir()) == ["__pycache__", "openai.py"]


def test_a_file_that_pip_replaces_meanwhile_is_kept(bundle: Bundle) -> None:
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(bundle.script.parent)!r})
import apply_patch
fsync = os.fsync
def pip_at_the_worst_moment(descriptor):
    pathlib.Path({str(bundle.file)!r}).write_text("# newer")
    fsync(descriptor)
os.fsync = pip_at_the_worst_moment
sys.exit(apply_patch.main([]))
"""
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(bundle.site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == Exit.CHANGED
    assert f"Somebody else wrote {bundle.file} at the same moment" in result.stderr
    assert bundle.file.read_text() == "# newer"
    assert [path.name for path in bundle.file.parent.iterdir()] == ["openai.py"]


def run_without_roots_powers(bundle: Bundle, *arguments: str) -> subprocess.CompletedProcess[str]:
    return bundle.run(*arguments, start=drop_root_powers)


def test_a_read_only_folder_gets_one_message_with_the_command_that_mends_it(bundle: Bundle, shipped: bytes) -> None:
    folder = bundle.file.parent
    folder.chmod(0o555)
    result = run_without_roots_powers(bundle)
    assert result.returncode == Exit.NO_ACCESS
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].endswith(f"chmod u+rwx {folder}")
    assert bundle.file.read_bytes() == shipped
    assert run_without_roots_powers(bundle, "--check").returncode == Exit.NOT_PATCHED
    subprocess.run(["chmod", "u+rwx", folder], check=True, timeout=60)
    assert run_without_roots_powers(bundle).returncode == Exit.OK
    folder.chmod(0o555)
    again = run_without_roots_powers(bundle)
    folder.chmod(0o755)
    assert again.returncode == Exit.OK
    assert "Nothing to change" in again.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_another_users_folder_gets_the_command_with_sudo(bundle: Bundle, shipped: bytes) -> None:
    os.chown(bundle.file.parent, NOBODY, NOBODY)
    result = run_without_roots_powers(bundle)
    assert result.returncode == Exit.NO_ACCESS
    assert f"sudo {sys.executable} {bundle.script}" in result.stderr
    assert bundle.file.read_bytes() == shipped


@pytest.mark.skipif(os.geteuid() != 0, reason="plays sudo")
def test_sudo_leaves_the_file_its_owner(bundle: Bundle) -> None:
    os.chown(bundle.file, NOBODY, NOBODY)
    assert bundle.run().returncode == Exit.OK
    assert (bundle.file.stat().st_uid, bundle.file.stat().st_gid) == (NOBODY, NOBODY)


def test_an_unreadable_file_is_said(bundle: Bundle) -> None:
    bundle.file.chmod(0)
    result = run_without_roots_powers(bundle, "--check")
    assert result.returncode == Exit.NO_ACCESS
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr


# On the wire

SENT_BODIES = """
import asyncio, json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

bodies = []
CHOICE = {"index": 0, "finish_reason": "stop"}
BASE = {"id": "x", "created": 1, "model": "m"}


class Upstream(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bodies.append(body)
        text = {"role": "assistant", "content": "hi"}
        if body.get("stream"):
            chunk = BASE | {"object": "chat.completion.chunk", "choices": [CHOICE | {"delta": text}]}
            kind, answer = "text/event-stream", f"data: {json.dumps(chunk)}\\n\\ndata: [DONE]\\n\\n"
        else:
            whole = BASE | {"object": "chat.completion", "choices": [CHOICE | {"message": text}]}
            kind, answer = "application/json", json.dumps(whole)
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()

import litellm
import litellm.llms.openai.openai

request = {
    "model": "openai/claude-sonnet-4-5",
    "api_base": f"http://127.0.0.1:{server.server_port}",
    "api_key": "none",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 7,
}


async def awaited():
    await litellm.acompletion(**request)
    async for _ in await litellm.acompletion(**request, stream=True):
        pass


litellm.completion(**request)
list(litellm.completion(**request, stream=True))
asyncio.run(awaited())
litellm.completion(**request | {"max_completion_tokens": 9})
server.shutdown()
print(json.dumps({"file": litellm.llms.openai.openai.__file__, "bodies": bodies}))
"""


def overlay(site: Path, shipped: bytes) -> None:
    """A site-packages folder whose LiteLLM is the installed one by links, all but openai.py."""
    source, target = REAL.parents[2], site / "litellm"
    for level in ("", "llms", "llms/openai"):
        (target / level).mkdir(parents=True)
        for entry in (source / level).iterdir():
            if entry.name not in {"__pycache__", "openai.py"} and not (level != "llms/openai" and entry.name == "llms"):
                (target / level / entry.name).symlink_to(entry)
        if level == "llms":
            (target / level / "openai").unlink()
    (target / "llms/openai/openai.py").write_bytes(shipped)


@pytest.mark.real
@pytest.mark.filterwarnings("default")
def test_the_real_litellm_sends_only_the_new_name_on_all_four_ways(tmp_path: Path, shipped: bytes) -> None:
    bundle = empty_bundle(tmp_path)
    overlay(bundle.site, shipped)
    assert bundle.run().returncode == Exit.OK
    result = subprocess.run(
        [sys.executable, "-c", SENT_BODIES],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(bundle.site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["file"] == str(bundle.file)
    assert [bool(body.get("stream")) for body in seen["bodies"]] == [False, True, False, True, False]
    assert [body.get("max_completion_tokens") for body in seen["bodies"]] == [7, 7, 7, 7, 9]
    assert not any("max_tokens" in body for body in seen["bodies"])
