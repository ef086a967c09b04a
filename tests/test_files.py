"""bundle/files.py: a file with a secret is private from its first byte, and is replaced as a whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from bundle import files
from bundle.env_file import set_in_env_file
from bundle.errors import ConfigError, SayOnce, WriteError
from bundle.files import instance_lock, write_private
from bundle.refresher import refresh
from bundle.settings import Settings
from tests.set_up import BUNDLE
from tests.user import NOW


def test_no_secret_is_ever_readable_by_others_even_with_umask_0(settings: Settings) -> None:
    old = os.umask(0)
    try:
        refresh(settings, time.time())
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in settings.folder.iterdir() if path.is_file()}
    assert modes == {"litellm_config.yaml": 0o600, ".master_key": 0o600}


def test_a_reader_sees_the_old_file_or_the_new_one(settings: Settings) -> None:
    # Whoever holds the old file open keeps reading the old text: it was replaced, not rewritten.
    refresh(settings, NOW)
    with settings.config_path.open() as reader:
        first = reader.read(100)
        refresh(settings, NOW + 60)
        whole = first + reader.read()
    assert yaml.safe_load(whole)["model_list"]
    assert whole != settings.config_path.read_text()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(settings, NOW)
    before = settings.config_path.read_bytes()

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(WriteError, match="No space left"):
        refresh(settings, NOW + 60)
    assert settings.config_path.read_bytes() == before
    assert not list(settings.folder.glob(".litellm_config*"))


@pytest.mark.keeps("secret-files")
def test_a_temporary_file_is_private_from_its_first_byte_under_umask_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    real_fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.update({path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()})
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    old = os.umask(0)
    try:
        write_private(tmp_path / "secret", "a token")
    finally:
        os.umask(old)
    assert any(name.endswith(".tmp") for name in seen)
    assert set(seen.values()) == {0o600}


@pytest.mark.keeps("odd-file-systems")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_synced_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real_fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write_private(tmp_path / "secret", "a token")
    assert (tmp_path / "secret").read_text() == "a token"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.keeps("odd-file-systems")
def test_where_there_are_no_hard_links_the_first_file_still_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for text in ("first", "second"):
        write_private(tmp_path / "key", text, only_if_absent=True)
    assert (tmp_path / "key").read_text() == "first"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.keeps("odd-file-systems")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_where_there_are_no_locks_the_work_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(files, "_say_once", SayOnce())
    for _ in range(3):
        with instance_lock(tmp_path / "lock") as holder:
            assert holder is None
    assert capsys.readouterr().out.count("without a lock") == 1


def test_another_error_of_a_lock_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(ConfigError, match="Input/output error"), instance_lock(tmp_path / "lock"):
        pass


@pytest.mark.keeps("secret-files")
def test_git_ignores_what_is_left_of_a_file_that_was_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(BUNDLE / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True, timeout=60)
    seen: set[str] = set()
    real_replace = os.replace

    def look(path: Path, target: Path) -> None:
        seen.update(each.name for each in tmp_path.iterdir())
        real_replace(path, target)

    monkeypatch.setattr(Path, "replace", look)
    monkeypatch.setattr(os, "replace", look)
    for name in (".env", ".master_key", "litellm_config.yaml", ".refresher.json", "claude.json"):
        write_private(tmp_path / name, "A=secret")
    set_in_env_file(tmp_path / ".env", "PRIVATE_KEY_PASSPHRASE", "a secret")
    left = sorted(seen - {".git", ".gitignore"})
    assert len(left) > 8
    ignored = subprocess.run(
        ["git", "-C", tmp_path, "check-ignore", *left], capture_output=True, text=True, check=False, timeout=60
    )
    assert ignored.stdout.splitlines() == left
