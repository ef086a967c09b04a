"""What `make compat`, `make lock` and `make audit` run: old enough, known by a hash, and without the user's secrets."""

from __future__ import annotations

import datetime
import re
import subprocess
from pathlib import Path

import pytest

from tests import compat, compat_litellm
from tests.set_up import BUNDLE

SECRETS = ("LITELLM_MASTER_KEY", "PRIVATE_KEY_PASSPHRASE", "SNOWFLAKE_PRIVATE_KEY_PATH", "GITHUB_TOKEN", "PM2_HOME")


@pytest.mark.keeps("supply-chain")
@pytest.mark.parametrize("download", [False, True])
def test_what_compat_runs_sees_no_home_and_no_secret_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    given = compat.environment(tmp_path, download=download)
    assert given["HOME"] == str(tmp_path)
    assert not given.keys() & set(SECRETS)
    assert "secret" not in given.values()


@pytest.mark.keeps("supply-chain")
def test_compat_takes_a_release_that_is_two_weeks_old_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        assert isinstance(options["env"], dict)
        assert options["env"]["HOME"] != str(Path.home())
        if "download" in command:
            Path(command[command.index("-d") + 1], "litellm-1.0-py3-none-any.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    compat_litellm.download(compat_litellm.NEWEST, tmp_path)
    compiled, downloaded = asked
    newest = datetime.datetime.fromisoformat(compiled[compiled.index("--exclude-newer") + 1])
    assert (datetime.datetime.now(datetime.timezone.utc) - newest).days >= 14
    assert "--generate-hashes" in compiled
    assert "--require-hashes" in downloaded


@pytest.mark.keeps("supply-chain")
@pytest.mark.parametrize("path", ["Makefile", "tests/compat_claude.py", "tests/compat_litellm.py"])
def test_each_command_that_installs_python_packages_asks_for_hashes(path: str) -> None:
    text = (BUNDLE / path).read_text()
    installs = re.findall(r'.*(?:-m pip install |"pip", "(?:install|download)").*(?:\n.*--require-hashes.*)?', text)
    assert installs
    assert [lines for lines in installs if "--require-hashes" not in lines] == []
