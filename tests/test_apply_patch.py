"""What patches/apply_patch.py promises, tested on copies of the real LiteLLM's file.

Each test has its own site-packages folder with LiteLLM's real openai.py and a RECORD that fits. The script runs as a
process with `-S`, so it cannot find, or change, any other LiteLLM.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from patches import apply_patch
from patches.apply_patch import BLOCK, CALLS, PatchState
from tests.patched import renamed_before_each_call, shipped_source
from tests.set_up import drop_root_powers

ROOT = Path(__file__).parent.parent
NOBODY = 65534


class Bundle:
    """A copy of the script in a bundle folder, beside a site-packages folder with its own LiteLLM."""

    def __init__(self, folder: Path, shipped: bytes) -> None:
        self.folder, self.site = folder, folder / "site"
        self.file = self.site / apply_patch.TARGET
        self.script = folder / "bundle" / "patches" / "apply_patch.py"
        shutil.copytree(ROOT / "bundle", folder / "bundle" / "bundle")
        self.script.parent.mkdir()
        shutil.copy(apply_patch.__file__, self.script)
        self.ship(shipped)

    def ship(self, content: bytes, version: str = "1.106.2") -> None:
        """Install a LiteLLM with this openai.py, which requirements.txt pins."""
        (self.script.parent.parent / "requirements.txt").write_text(f"litellm[proxy]=={version} \\\n    --hash=x\n")
        shutil.rmtree(self.site, ignore_errors=True)
        self.file.parent.mkdir(parents=True)
        (self.site / "litellm" / "__init__.py").write_text("raise RuntimeError('LiteLLM was imported')\n")
        self.file.write_bytes(content)
        info = self.site / f"litellm-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: litellm\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{apply_patch.TARGET},sha256={apply_patch.digest(content)},{len(content)}\n")

    def ship_unpinned(self, content: bytes, version: str) -> None:
        self.ship(content, version)
        (self.script.parent.parent / "requirements.txt").unlink()

    def start(self, *command: str | Path, as_user: bool = False) -> subprocess.Popen[str]:
        """Start a process that finds this LiteLLM only. `as_user`: file permissions count, also for root."""
        return subprocess.Popen(
            command,
            cwd=self.folder,  # `python -c` imports from there first
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.site)},
            preexec_fn=drop_root_powers if as_user else None,  # noqa: PLW1509
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, as_user: bool = False) -> tuple[int, str, str]:
        process = self.start(sys.executable, "-S", self.script, *arguments, as_user=as_user)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err

    def paste(self, message: str, before: str) -> str:
        """Run the command that `message` shows after these words, as the user would."""
        command = message.partition(before)[2].splitlines()[0]
        return self.start("sh", "-c", command, as_user=True).communicate(timeout=60)[0]

    def patched(self) -> bool:
        return self.file.read_bytes().count(BLOCK[0]) == len(CALLS)


@pytest.fixture
def shipped() -> bytes:
    return shipped_source()


@pytest.fixture
def bundle(tmp_path: Path, shipped: bytes) -> Bundle:
    return Bundle(tmp_path / "it's here", shipped)  # every command in a message must be quoted


def fingerprint(path: Path) -> tuple[bytes, int, int]:
    status = path.lstat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ino


def test_all_four_calls_are_patched_once_and_the_version_file_and_interpreter_are_named(bundle: Bundle) -> None:
    status, out, err = bundle.run()
    assert (status, err, bundle.patched()) == (0, "", True)
    for named in ("LiteLLM 1.106.2 is patched", str(bundle.file), sys.executable, "pm2 restart claude-proxy"):
        assert named in out
    before = fingerprint(bundle.file)
    status, out, _ = bundle.run()
    assert (status, out.splitlines()[-1], fingerprint(bundle.file)) == (0, "Nothing to change.", before)


def test_check_tells_patched_from_not_patched_and_writes_nothing(bundle: Bundle) -> None:
    before = fingerprint(bundle.file)
    status, out, err = bundle.run("--check")
    assert (status, out) == (1, "")
    assert "LiteLLM 1.106.2 is not patched" in err
    assert fingerprint(bundle.file) == before
    assert "is patched" in bundle.paste(err, "Patch it: ")
    before = fingerprint(bundle.file)
    assert bundle.run("--check")[0] == 0
    assert fingerprint(bundle.file) == before


def test_undo_restores_every_byte(bundle: Bundle, shipped: bytes) -> None:
    form_feed = shipped.replace(b"\nclass ", b"\n\x0c\nclass ")
    for source in (shipped.rstrip(b"\n"), shipped.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + shipped, form_feed):
        bundle.ship(source)
        assert bundle.run()[0] == 0
        patched = bundle.file.read_bytes()
        assert bundle.patched()
        assert patched.count(b"\r\n") == (patched.count(b"\n") if b"\r\n" in source else 0)
        assert bundle.run("--undo")[0] == 0
        assert bundle.file.read_bytes() == source


def test_undo_says_first_to_stop_the_proxy_and_then_that_its_next_start_patches_again(bundle: Bundle) -> None:
    assert "Stop the proxy" not in bundle.run()[1]
    first, command, *_, removed, last = bundle.run("--undo")[1].splitlines()
    assert first == "Stop the proxy first, because a running proxy puts the patch back within seconds:"
    assert command.startswith("  pm2 stop claude-proxy && ")
    assert command.endswith(" --undo")
    assert removed == "Removed the patch."
    assert last.startswith("The proxy puts the patch back at its next start.")
    again = bundle.run("--undo")[1].splitlines()
    assert first not in again
    assert again[-2:] == ["Nothing to change.", last]


def test_diff_before_is_what_apply_does_and_diff_after_is_what_it_did(bundle: Bundle, shipped: bytes) -> None:
    would = bundle.run("--diff")
    assert bundle.file.read_bytes() == shipped
    bundle.run()
    assert bundle.run("--diff") == would
    patched = bundle.file.read_bytes()
    bundle.file.write_bytes(shipped)
    git = ["git", "-C", str(bundle.site), "apply", "--unsafe-paths", f"--directory={bundle.site}", "-"]
    subprocess.run(git, input=would[1], text=True, check=True, timeout=60, capture_output=True)
    assert bundle.file.read_bytes() == patched


def test_a_usage_error_is_status_2_and_the_page_of_help_names_every_status(bundle: Bundle) -> None:
    assert [bundle.run(*wrong)[0] for wrong in (["--chekc"], ["--check", "--undo"])] == [2, 2]
    text = bundle.run("--help")[1].partition("Exit status")[2]
    named = [int(code) for code in re.findall(r"\b([0-9])(?= [a-zL])", text)]
    assert named == sorted({2} | {state.exit_status for state in PatchState})


def test_an_edit_by_somebody_else_is_named_and_kept(bundle: Bundle, shipped: bytes) -> None:
    edited = shipped + b"\n# mine\n"
    bundle.file.write_bytes(edited)
    for arguments, expected in (("--check", 1), ("", 0), ("--check", 0), ("--undo", 0)):
        status, out, err = bundle.run(*arguments.split())
        assert status == expected
        assert "This file also has changes that are not ours" in out + err
    assert bundle.file.read_bytes() == edited


def test_a_partial_patch_is_completed_or_removed(bundle: Bundle, shipped: bytes) -> None:
    bundle.run()
    patched = bundle.file.read_bytes()
    half = patched.index(BLOCK[0], patched.index(BLOCK[3]))
    partial = apply_patch.without_block(patched[:half]) + patched[half:]
    for arguments, expected, text in (("--check", 1, partial), ("", 0, patched), ("--undo", 0, shipped)):
        bundle.file.write_bytes(partial)
        status, _, err = bundle.run(*arguments.split())
        assert (status, bundle.file.read_bytes(), "only in part" in err) == (expected, text, arguments == "--check")


def edit_our_lines(bundle: Bundle, shipped: bytes) -> None:
    patched = apply_patch.judge(shipped, None).patched or b""
    bundle.file.write_bytes(patched.replace(b'data.pop("max_tokens")', b'data.pop("max_tokens", 7)', 1))


REFUSED: dict[str, tuple[Callable[[Bundle, bytes], object], int, str]] = {
    "missing": (lambda b, _: (b.site / "litellm/__init__.py").unlink(), 3, "LiteLLM is not installed"),
    "no file": (lambda b, _: shutil.rmtree(b.file.parent), 4, "is damaged: a file of it is missing"),
    "moved": (
        lambda b, s: b.ship(s.replace(b"def acompletion(", b"def other("), "1.200.0"),
        4,
        "not found in LiteLLM 1.200.0",
    ),
    "edited": (edit_our_lines, 5, "Somebody else changed LiteLLM 1.106.2 where the patch belongs"),
    "1.82.7": (lambda b, s: b.ship(s, "1.82.7"), 7, "LiteLLM 1.82.7 steals credentials"),
    "1.82.8": (lambda b, s: b.ship(s, "1.82.8"), 7, "LiteLLM 1.82.8 steals credentials"),
    "1.107.0": (lambda b, s: b.ship(s, "1.107.0"), 7, "LiteLLM 1.107.0 steals credentials"),
    "newer": (lambda b, s: b.ship_unpinned(s, "1.106.3"), 8, "LiteLLM 1.106.3 is newer than 1.106.2"),
    "a later build": (lambda b, s: b.ship_unpinned(s, "1.106.2.post1"), 8, "LiteLLM 1.106.2.post1 is newer"),
    "codes": (lambda b, s: b.ship_unpinned(s, "9\x1b[2J" + "9" * 99), 8, "LiteLLM 9 [2J999"),
}


@pytest.mark.keeps("litellm-release")
@pytest.mark.parametrize("case", REFUSED)
def test_a_litellm_that_cannot_be_patched_is_left_alone_and_said_with_the_fix(
    bundle: Bundle, shipped: bytes, case: str
) -> None:
    prepare, expected, said = REFUSED[case]
    prepare(bundle, shipped)
    before = bundle.file.read_bytes() if bundle.file.exists() else b""
    options: dict[str, list[list[str]]] = {
        "moved": [[], ["--check"], ["--diff"]],  # such a file has no patch that --undo could remove
        "1.82.8": [[]],
        "1.107.0": [[]],  # they take the same way as 1.82.7
        "codes": [[]],
    }
    for arguments in options.get(case, [[], ["--check"], ["--diff"], ["--undo"]]):
        status, out, err = bundle.run(*arguments)
        assert (status, out) == (expected, "")
        assert said in err
        assert err.replace("\n", "").isprintable()
        fix = (
            f"--force-reinstall --no-deps --require-hashes -r '{bundle.folder.parent}/it'"
            if case in {"edited", "no file"}
            else f"-r '{bundle.folder.parent}/it'"
        )
        assert f"pip install {fix}" in err
    assert before == (bundle.file.read_bytes() if bundle.file.exists() else b"")


def test_code_that_renames_by_itself_needs_no_patch_and_is_left_alone(bundle: Bundle, shipped: bytes) -> None:
    lines = 'if "max_tokens" in data:  # LiteLLM\n    data["max_completion_tokens"] = data.pop("max_tokens")'
    bundle.ship(renamed_before_each_call(shipped, lines), "1.200.0")
    before = fingerprint(bundle.file)
    for arguments in ([], ["--check"], ["--undo"]):
        status, out, _ = bundle.run(*arguments)
        assert status == 0
        assert "LiteLLM 1.200.0 needs no patch" in out
        assert "puts the patch back" not in out
    assert fingerprint(bundle.file) == before


def test_the_environment_that_pm2_uses_is_the_one_that_is_patched(bundle: Bundle) -> None:
    environment = bundle.folder / "bundle" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    status, _, err = bundle.run("--check")
    assert status == 1
    assert f"interpreter  {environment / 'bin' / 'python'}" in err


def test_a_cache_behind_a_hard_link_or_symlink_keeps_its_content(bundle: Bundle, shipped: bytes) -> None:
    for name, link in (("hard", os.link), ("symbolic", os.symlink)):
        cached = bundle.folder / name
        cached.write_bytes(shipped)
        bundle.file.unlink()
        link(cached, bundle.file)
        assert bundle.run()[0] == 0
        assert bundle.patched()
        assert not bundle.file.is_symlink()
        assert cached.read_bytes() == shipped


def test_the_files_mode_and_owner_stay_and_no_other_file_is_left(bundle: Bundle) -> None:
    bundle.file.chmod(0o464)
    if os.geteuid() == 0:  # as under sudo
        os.chown(bundle.file, NOBODY, NOBODY)
    before = bundle.file.stat()
    assert (bundle.run()[0], bundle.patched()) == (0, True)
    after = bundle.file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert list(bundle.file.parent.iterdir()) == [bundle.file]


def test_bytecode_of_the_old_source_is_removed(bundle: Bundle) -> None:
    cache = bundle.file.parent / "__pycache__"
    cache.mkdir()
    for name in ("openai.cpython-39.pyc", "openai.cpython-311.opt-1.pyc", "common_utils.cpython-39.pyc"):
        (cache / name).touch()
    bundle.run()
    assert [path.name for path in cache.iterdir()] == ["common_utils.cpython-39.pyc"]


def test_runs_at_the_same_time_end_with_a_whole_patch(bundle: Bundle, shipped: bytes) -> None:
    patched = apply_patch.judge(shipped, None).patched
    for kinds, texts, statuses in (
        ([[], [], [], []], {patched}, {0}),
        ([[], ["--undo"], [], ["--undo"]], {patched, shipped}, {0, 5}),  # 5: "run this again"
    ):
        runs = [bundle.start(sys.executable, "-S", bundle.script, *arguments) for arguments in kinds]
        for run in runs:
            run.communicate(timeout=60)
        assert {run.returncode for run in runs} <= statuses
        assert bundle.file.read_bytes() in texts


def test_a_file_that_pip_replaces_meanwhile_is_kept(bundle: Bundle) -> None:
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(bundle.script.parent)!r})
import apply_patch
os.fsync = lambda _: pathlib.Path({str(bundle.file)!r}).write_text("# newer")
sys.exit(apply_patch.main([]))
"""
    process = bundle.start(sys.executable, "-S", "-c", code)
    assert f"Another program (pip?) wrote {bundle.file} at the same time" in process.communicate(timeout=60)[1]
    assert process.returncode == 5
    assert bundle.file.read_text() == "# newer"
    assert list(bundle.file.parent.iterdir()) == [bundle.file]


def test_what_cannot_be_written_or_read_gets_the_command_that_fixes_it(bundle: Bundle, shipped: bytes) -> None:
    for folder_mode, file_mode in ((0o555, 0o644), (0o755, 0)):
        bundle.ship(shipped)
        bundle.file.chmod(file_mode)
        bundle.file.parent.chmod(folder_mode)
        status, _, err = bundle.run(as_user=True)
        assert status == 6
        assert f"Cannot read or write {bundle.file}: Permission denied" in err
        assert "is patched" in bundle.paste(err, "run this again: ")
        bundle.file.parent.chmod(0o555)  # a file that is patched already is not written
        status, out, _ = bundle.run(as_user=True)
        bundle.file.parent.chmod(0o755)
        assert (status, out.splitlines()[-1]) == (0, "Nothing to change.")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_another_users_folder_gets_the_command_with_sudo(bundle: Bundle, shipped: bytes) -> None:
    os.chown(bundle.file.parent, NOBODY, NOBODY)
    status, _, err = bundle.run(as_user=True)
    assert status == 6
    assert f"sudo {sys.executable} '" in err
    assert bundle.file.read_bytes() == shipped
