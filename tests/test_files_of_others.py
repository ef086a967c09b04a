"""What another user can put into a folder that is open to all: links, and files in the place of ours."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import configure
from bundle.checks.finding import read_installation
from bundle.checks.this_machine import machine
from bundle.claude_settings import UserSettings
from bundle.errors import ConfigError
from bundle.files import instance_lock, refuse_foreign
from bundle.proxy.live_config import LiveConfig
from bundle.refresher import Refresher, refresh
from bundle.settings import Settings, load_settings, master_key, renew_key, saved_key
from point_claude import write_run_file
from tests.claude_home import BLOCK
from tests.set_up import BUNDLE
from tests.user import put

ANOTHER_USER = 54321
LINKS: list[Callable[..., None]] = [os.symlink, os.link]


@pytest.fixture
def umask_0() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def given_away(path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, ANOTHER_USER, ANOTHER_USER)
    return path


@pytest.mark.keeps("files-of-others")
@pytest.mark.parametrize("link", LINKS)
def test_a_lock_that_is_a_link_to_a_file_of_ours_empties_nothing(tmp_path: Path, link: Callable[..., None]) -> None:
    precious = put(tmp_path / "snowflake_key.p8", "precious")
    link(precious, tmp_path / ".lock")
    with pytest.raises(ConfigError, match="link"), instance_lock(tmp_path / ".lock"):
        pass
    assert precious.read_text() == "precious"


@pytest.mark.keeps("files-of-others")
def test_a_lock_that_somebody_else_has_made_does_not_keep_the_refresher_out_in_silence(tmp_path: Path) -> None:
    lock = given_away(put(tmp_path / ".lock", "1\n", 0o666))
    with pytest.raises(ConfigError, match=rf"(?s)belongs to another user.*rm {lock}"), instance_lock(lock):
        pass
    assert lock.read_text() == "1\n"


WRITERS: dict[str, Callable[[Settings], object]] = {
    "litellm_config.yaml": lambda settings: refresh(settings, time.time()),
    ".master_key": renew_key,
    ".refresher.json": lambda settings: Refresher(lambda: settings).refresh(time.time(), "a test"),
    "claude.json": lambda settings: write_run_file(settings, {"HOME": str(settings.folder)}),
}


@pytest.mark.usefixtures("umask_0")
@pytest.mark.keeps("files-of-others")
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(
    settings: Settings, name: str, write: Callable[[Settings], object], link: Callable[..., None]
) -> None:
    precious, path = put(settings.folder / "precious", "precious", 0o644), settings.folder / name
    link(precious, path)
    write(settings)
    assert precious.read_text() == "precious"
    assert (path.is_symlink(), path.stat().st_nlink, stat.S_IMODE(path.stat().st_mode)) == (False, 1, 0o600)


@pytest.mark.usefixtures("umask_0")
@pytest.mark.keeps("files-of-others")
@pytest.mark.parametrize("name", ["settings.json.before-cortex", "settings.json.with-cortex"])
def test_a_link_in_the_place_of_a_backup_is_replaced_and_not_followed(tmp_path: Path, name: str) -> None:
    folder, precious = tmp_path / ".claude", put(tmp_path / "precious", "{}", 0o644)
    put(folder / "settings.json", json.dumps({"model": "opus"}), 0o600)
    (folder / name).symlink_to(precious)
    UserSettings({"HOME": str(tmp_path)}).point(BLOCK)
    assert precious.read_text() == "{}"
    assert {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.iterdir()} == dict.fromkeys(
        ["settings.json", "settings.json.before-cortex", "settings.json.with-cortex"], 0o600
    )


@pytest.mark.keeps("files-of-others")
def test_a_key_a_setting_or_a_configuration_of_another_user_is_not_used(
    settings: Settings, environ: dict[str, str]
) -> None:
    refresh(settings, time.time())
    config = LiveConfig(settings.config_path)
    given_away(settings.config_path)  # its api_base would get the token
    assert not config.reload()
    assert config.document == {}
    given_away(settings.folder / ".master_key")
    with pytest.raises(ConfigError, match="belongs to another user"):
        master_key(settings)
    given_away(put(settings.folder / ".env", "SNOWFLAKE_HOST=evil.example\n", 0o644))
    with pytest.raises(ConfigError, match="belongs to another user"):
        load_settings(environ)


@pytest.mark.keeps("files-of-others")
@pytest.mark.parametrize(
    ("uid", "folder", "me", "good"),
    [
        (1000, 1000, 1000, True),
        (0, 1000, 1000, True),
        (1000, 1000, 0, True),  # a container that runs as root, with a folder of its user
        (2000, 1000, 1000, False),
        (2000, 0, 1000, False),
        (2000, 1000, 0, False),
    ],
)
def test_a_file_of_ours_of_root_or_of_the_folder_s_owner_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int, folder: int, me: int, *, good: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(Path, "stat", lambda _: SimpleNamespace(st_uid=folder))
    try:
        refuse_foreign(tmp_path / "file", SimpleNamespace(st_uid=uid))  # type: ignore[arg-type]
    except ConfigError:
        assert not good
    else:
        assert good


def test_doctor_names_a_folder_that_everybody_can_write_to(settings: Settings, environ: dict[str, str]) -> None:
    def folders() -> list[str]:
        found = machine(read_installation(environ, time.time()))
        return [f"{finding.state} {finding.fix}" for finding in found if finding.name == "Folder"]

    assert folders() == []
    settings.folder.chmod(0o777)
    assert folders() == [f"warn chmod o-w {settings.folder}"]


@pytest.mark.usefixtures("umask_0")
@pytest.mark.keeps("secret-files")
def test_every_folder_that_is_made_is_closed_to_others_under_umask_0(tmp_path: Path) -> None:
    configure.make_key_pair(tmp_path / "a" / "b" / "key.p8")
    UserSettings({"CLAUDE_CONFIG_DIR": str(tmp_path / "c" / "d")}).point(BLOCK)
    ecosystem = f"require({json.dumps(str(BUNDLE / 'ecosystem.config.js'))})"
    environ = {"PATH": os.environ["PATH"], "CORTEX_HOME": str(tmp_path / "e" / "f")}
    subprocess.run(["node", "-e", ecosystem], env=environ, check=True)
    made = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_dir()}
    assert set(made) == {"a", "a/b", "c", "c/d", "e", "e/f", "e/f/logs"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.values()} == {0o700}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.usefixtures("umask_0")
@pytest.mark.keeps("secret-files")
def test_the_env_file_stays_private_under_umask_0_and_keeps_its_link(settings: Settings) -> None:
    real = put(settings.folder / "elsewhere" / "env", "# mine\n")
    (settings.folder / ".env").symlink_to(real)
    code = (
        "import sys, pathlib; from bundle.env_file import set_in_env_file; "
        "set_in_env_file(pathlib.Path(sys.argv[1]), 'SNOWFLAKE_USER', 'x')"
    )
    for name in (".env", "new.env"):
        subprocess.run([sys.executable, "-c", code, str(settings.folder / name)], cwd=BUNDLE, check=True)
        assert stat.S_IMODE((settings.folder / name).stat().st_mode) == 0o600
    assert (settings.folder / ".env").is_symlink()
    assert "SNOWFLAKE_USER" in real.read_text()


def test_a_pipe_in_the_place_of_the_key_is_named_and_not_waited_for(settings: Settings) -> None:
    os.mkfifo(settings.folder / ".master_key", 0o600)
    with pytest.raises(ConfigError, match="it is not a file"):
        saved_key(settings)
