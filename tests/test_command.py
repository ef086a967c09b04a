"""The command claude-cortex in ~/.local/bin: it runs in every folder, and replaces nothing of somebody else."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from bundle import command
from bundle.bootstrap import make
from bundle.errors import ConfigError
from tests.set_up import BareSetUp

SHOW = "import os, sys\nprint(os.getcwd(), *sys.argv[1:], sep='|')\n"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a space, an umlaut and a quote, and with a point_claude.py that only shows how it was called."""
    folder = tmp_path / "my bündle's folder"
    folder.mkdir()
    (folder / "point_claude.py").write_text(SHOW)
    monkeypatch.setattr(command, "text", lambda: text(folder))
    return folder


text = command.text


def environ_of(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(home), "PATH": f"{home}/.local/bin:{os.environ['PATH']}", **more}


def test_it_runs_claude_code_in_the_folder_where_it_is_called(tmp_path: Path, bundle: Path) -> None:
    environ = environ_of(tmp_path)
    (line,) = command.install(environ)
    assert str(tmp_path / ".local" / "bin" / "claude-cortex") in line
    work = tmp_path / "my work"
    work.mkdir()
    run = ["claude-cortex", "-p", "it's $HOME  here"]
    done = subprocess.run(run, cwd=work, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == f"{work}|--run|-p|it's $HOME  here\n", done.stderr
    bundle.rename(tmp_path / "elsewhere")
    done = subprocess.run(run, cwd=work, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert f"{bundle} was renamed or deleted" in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.usefixtures("bundle")
def test_a_second_run_is_the_same_and_another_copy_is_replaced_and_said(tmp_path: Path) -> None:
    environ, path = environ_of(tmp_path), command.place(environ_of(tmp_path))
    assert command.install(environ) == command.install(environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.write_text(text(tmp_path / "other"))
    assert command.remove(environ) == ""  # it is of the other copy
    assert "another copy" in command.install(environ)[1]
    assert str(path) in command.remove(environ)
    assert not path.exists()
    assert command.remove(environ) == ""


@pytest.mark.parametrize("foreign", ["file", "link", "folder"])
def test_what_somebody_else_has_put_there_stays(tmp_path: Path, bundle: Path, foreign: str) -> None:
    environ, path = environ_of(tmp_path), command.place(environ_of(tmp_path))
    path.parent.mkdir(parents=True)
    if foreign == "folder":
        path.mkdir()
    elif foreign == "link":
        (tmp_path / "theirs").write_text(text(bundle))
        path.symlink_to(tmp_path / "theirs")
    else:
        path.write_text("#!/bin/sh\n")
    before = path.lstat()
    with pytest.raises(ConfigError, match="is not from this bundle") as error:
        command.install(environ)
    assert make("install-command") in str(error.value)
    assert command.remove(environ) == ""
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.usefixtures("bundle")
def test_a_folder_that_is_not_on_path_is_said_with_the_line_that_adds_it(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    home.mkdir()
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "SHELL": "/bin/zsh"}
    _, said, line = command.install(environ)
    assert "is not on your PATH" in said
    assert "~/.zshrc" in said
    done = subprocess.run(
        ["sh", "-c", f"{line}; command -v claude-cortex"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(home / ".local" / "bin" / "claude-cortex")
    other = tmp_path / "other" / "claude-cortex"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert f"another claude-cortex first: {other}" in command.install({**environ, "PATH": str(other.parent)})[1]


def test_a_home_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    set_up = BareSetUp(tmp_path)
    (tmp_path / ".local").write_text("")  # a file in the place of the folder
    done = set_up.run("point_claude.py", "--install-command")
    assert done.returncode == 78
    assert "cannot write" in done.stderr or "cannot read" in done.stderr
    assert "Traceback" not in done.stderr
    assert shlex.quote(str(tmp_path)) in done.stderr
