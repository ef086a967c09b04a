"""bundle/files.py: a file with a secret is private from its first byte, and is replaced as a whole or not at all."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import yaml

from bundle.errors import WriteError
from bundle.files import write_private
from bundle.refresher import refresh
from bundle.settings import Settings
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
