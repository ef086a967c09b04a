"""`make update` in a real clone: the newest version, the user's edits, and the way back. `make start` is a stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.set_up import BUNDLE

# Says what it starts; no model answers if the version says so.
MAKEFILE = "start demo:\n\t@echo starting $$(cat version) with $$(cat template) as $@\n\t@! grep -q broken version\n"


class Clones:
    """The makers' repository (`origin`), and the user's clone of it (`folder`)."""

    def __init__(self, folder: Path) -> None:
        self.origin, self.folder = folder / "origin", folder / "my clone"
        self.environ = {**os.environ, "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
        self.origin.mkdir()
        self.git(self.origin, "init", "--quiet", "--initial-branch=main")
        for name in ("user.name", "user.email"):
            self.git(self.origin, "config", "--global", name, "jane@example.com")
        (self.origin / "bundle").mkdir()
        for name in ("update.py", "bundle/__init__.py", "bundle/bootstrap.py", "bundle/errors.py"):
            shutil.copy(BUNDLE / name, self.origin / name)
        self.publish(Makefile=MAKEFILE, version="first", template="one\ntwo\nthree\nfour\nfive\n")
        self.git(folder, "clone", "--quiet", str(self.origin), str(self.folder))

    def git(self, folder: Path, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], env=self.environ, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def publish(self, **files: str) -> None:
        for name, text in files.items():
            (self.origin / name).write_text(text)
        self.git(self.origin, "add", "--all")
        self.git(self.origin, "commit", "--quiet", "--message", f"version {files['version']}")

    def update(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.folder / "update.py")]
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
        )

    def edit(self, text: str) -> None:
        (self.folder / "template").write_text(text)

    @property
    def files(self) -> tuple[str, str]:
        return (self.folder / "version").read_text(), (self.folder / "template").read_text()

    def assert_nothing_is_left_in_the_stash(self) -> None:
        assert self.git(self.folder, "stash", "list") == ""


@pytest.fixture
def clones(tmp_path: Path) -> Clones:
    return Clones(tmp_path)


def test_the_newest_version_is_started_with_the_user_s_edits(clones: Clones) -> None:
    clones.edit("one\ntwo\nthree\nfour\nMINE\n")
    clones.publish(version="second", template="ONE\ntwo\nthree\nfour\nfive\n")
    done = clones.update()
    assert done.returncode == 0, done.stderr
    assert clones.files == ("second", "ONE\ntwo\nthree\nfour\nMINE\n")
    assert "version second" in done.stdout
    assert done.stdout.endswith("starting second with ONE two three four MINE as start\n")
    clones.assert_nothing_is_left_in_the_stash()


def test_a_version_that_does_not_work_is_taken_back_with_the_edits_as_they_were(clones: Clones) -> None:
    clones.edit("one\ntwo\nthree\nfour\nMINE\n")
    before = clones.git(clones.folder, "rev-parse", "HEAD")
    clones.publish(version="broken", template="ONE\ntwo\nthree\nfour\nfive\n")
    done = clones.update()
    assert done.returncode == 1
    assert clones.files == ("first", "one\ntwo\nthree\nfour\nMINE\n")
    assert clones.git(clones.folder, "rev-parse", "HEAD") == before
    assert "starting first with one two three four MINE" in done.stdout
    assert f"The version before ({before[:10]}) is back, and works." in done.stderr
    clones.assert_nothing_is_left_in_the_stash()


def test_when_the_version_before_does_not_work_either_it_says_so(clones: Clones) -> None:
    clones.edit("mine\n")
    (clones.folder / "version").write_text("first, and broken by the user")
    clones.publish(version="first", Makefile=f"{MAKEFILE}# newer\n")
    done = clones.update()
    assert done.returncode == 1
    assert "but no model answers there either" in done.stderr
    assert f"make -C '{clones.folder}' start" in done.stderr
    assert clones.files == ("first, and broken by the user", "mine\n")


def test_edits_of_the_same_lines_stop_the_update_before_anything_has_changed(clones: Clones) -> None:
    clones.edit("MINE\ntwo\nthree\nfour\nfive\n")
    clones.publish(version="second", template="ONE\ntwo\nthree\nfour\nfive\n")
    done = clones.update()
    assert (done.returncode, done.stdout) == (1, "")
    assert "the same lines as your edits of template. Nothing was changed." in done.stderr
    assert clones.files == ("first", "MINE\ntwo\nthree\nfour\nfive\n")
    for line in done.stderr.splitlines():
        if "git -C" in line:
            subprocess.run(["sh", "-c", line.partition(": ")[2]], check=True)
    assert "MINE" in (clones.folder / "my-edits.diff").read_text()
    clones.assert_nothing_is_left_in_the_stash()
    assert clones.update().returncode == 0
    assert clones.files == ("second", "ONE\ntwo\nthree\nfour\nfive\n")


def test_a_file_that_was_edited_and_put_back_does_not_stop_the_update(clones: Clones) -> None:
    text = (clones.folder / "template").read_text()
    clones.edit("other\n")
    clones.edit(text)
    clones.publish(version="second")
    done = clones.update()
    assert (done.returncode, clones.files[0]) == (0, "second"), done.stderr


def test_a_file_of_the_user_in_the_way_of_a_new_one_is_not_overwritten(clones: Clones) -> None:
    (clones.folder / "notes").write_text("the user's")
    clones.edit("mine\n")
    clones.publish(version="second", notes="the makers'")
    done = clones.update()
    assert done.returncode == 1
    assert "would be overwritten" in done.stderr
    assert ((clones.folder / "notes").read_text(), clones.files) == ("the user's", ("first", "mine\n"))


def test_without_a_newer_version_nothing_is_started(clones: Clones) -> None:
    clones.edit("mine\n")
    done = clones.update()
    assert (done.returncode, "newest version already" in done.stdout) == (0, True)
    assert "starting" not in done.stdout
    assert clones.files == ("first", "mine\n")


def test_without_a_repository_git_s_words_are_shown_and_no_traceback(clones: Clones) -> None:
    shutil.rmtree(clones.origin)
    done = clones.update()
    assert done.returncode == 1
    assert "git fetch did not work. It says:" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_stays_the_demo(clones: Clones) -> None:
    (clones.folder / ".demo").mkdir()
    clones.publish(version="second")
    assert clones.update().stdout.endswith("as demo\n")
