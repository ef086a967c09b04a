"""bundle/install.py: it shows progress, settings of pip and npm cannot spoil it, and what is missing is named."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from bundle import install
from bundle.errors import ConfigError
from bundle.install import complete_claude, make_environment, node_packages, pip_state, python_packages
from tests.set_up import BUNDLE
from tests.terminal import Terminal


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


# An `npm` that says how it was called, and installs a `pm2`.
NPM = """
[ "$1 $2" = "config get" ] && { echo "$CACHE"; exit; }
echo "$@" > called; echo "cache=$npm_config_cache" >> called
mkdir -p node_modules/.bin; touch node_modules/.bin/pm2
"""


@pytest.fixture
def npm(tmp_path: Path) -> dict[str, str]:
    """An environment with a stand-in for npm."""
    program(tmp_path / "bin" / "npm", NPM)
    program(tmp_path / "bin" / "node", "echo v20.1.0")
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CACHE": str(tmp_path / "cache")}


def test_the_state_of_pip_is_counted_from_what_it_says() -> None:
    said = "Collecting a==1\n  Downloading a.whl\nCollecting b[c]==2 (from -r x)\n"
    assert pip_state(said, 0) == "2 downloaded"
    assert pip_state(f"{said}Installing collected packages: a, b\n", 1) == "1 of 2 installed"
    assert pip_state(f"{said}Installing collected packages: a, b\n", 7) == "2 of 2 installed"


def test_a_long_installation_is_never_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "QUIET_SECONDS", 0.3)
    install.run(["sh", "-c", "echo one; sleep 1"], os.environ, "Installing it", lambda said: said.strip(), cwd=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Installing it …"
    assert len(lines) > 2
    assert all(line.startswith("Installing it … one, ") for line in lines[1:])


def test_in_a_terminal_the_progress_is_one_line_that_is_written_again() -> None:
    code = (
        "import os; from bundle import install; install.run(['sleep', '1.2'], os.environ, 'Installing', lambda _: 'x')"
    )
    with Terminal([sys.executable, "-S", "-c", code], {"PATH": os.environ["PATH"]}, cwd=BUNDLE) as person:
        assert person.finish() == 0
        assert person.screen.count("\n") == 1
        assert person.screen.count("\rInstalling … x, ") > 1


def test_a_command_that_fails_shows_its_last_words_and_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        install.run(["sh", "-c", "seq 100; echo no space >&2; exit 3"], os.environ, "Installing it", str, cwd=tmp_path)
    lines = str(refused.value).splitlines()
    assert lines[install.LAST_LINES - 1] == "no space"
    assert "1" not in lines
    assert lines[-2] == "Installing it: sh failed (3). The lines above say why."
    assert lines[-1] == f"Then try again: make -C {BUNDLE} install"


# --------------------------------------------------------------------------------------------------------------- python


def test_a_missing_venv_module_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    python = program(tmp_path / "python", "echo 'ensurepip is not available'; exit 1")
    with pytest.raises(ConfigError, match="apt install python3-venv"):
        make_environment(tmp_path / ".venv", os.environ, str(python))
    python = program(tmp_path / "python", "echo 'No space left on device' >&2; exit 1")
    with pytest.raises(ConfigError, match="No space left on device"):
        make_environment(tmp_path / ".venv", os.environ, str(python))


def test_settings_of_pip_that_install_elsewhere_are_overruled_or_named(tmp_path: Path) -> None:
    inside = f"""
case "$*" in
  *"-m pip install"*) echo "$@" > {tmp_path}/called; env >> {tmp_path}/called;;
  *) [ -e {tmp_path}/good ] || echo litellm yaml;;
esac"""
    python = program(tmp_path / "python", f"mkdir -p $3/bin; cp {tmp_path}/inside $3/bin/python")
    program(tmp_path / "inside", inside)
    environ = {"PATH": os.environ["PATH"], "PIP_USER": "1", "PIP_TARGET": "/elsewhere", "PIP_CERT": "/a.pem"}
    with pytest.raises(ConfigError, match=r"litellm, yaml is not in .*\n.* -m pip config list\n"):
        python_packages(tmp_path, environ, str(python))
    called = (tmp_path / "called").read_text()
    assert "--no-user" in called
    assert "PIP_CERT=/a.pem" in called  # everything else of the user's counts
    assert "PIP_USER" not in called
    assert "PIP_TARGET" not in called
    (tmp_path / "good").touch()
    python_packages(tmp_path, environ, str(python))


# ----------------------------------------------------------------------------------------------------------------- node


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (None, "Node.js 18 or newer with npm is needed"),
        ("echo v16.20.0", "Node.js 18 or newer is needed; this is v16.20"),
    ],
)
def test_a_node_that_is_missing_or_too_old_is_named(
    tmp_path: Path, npm: dict[str, str], node: str | None, words: str
) -> None:
    (tmp_path / "bin" / "node").unlink()
    if node:
        program(tmp_path / "bin" / "node", node)
    with pytest.raises(ConfigError, match=words):
        node_packages(tmp_path, {**npm, "PATH": str(tmp_path / "bin")})


def test_claude_code_is_installed_whatever_npm_leaves_out_and_only_if_there_is_none(
    tmp_path: Path, npm: dict[str, str]
) -> None:
    program(tmp_path / "node_modules" / ".bin" / "claude", "echo 2.1.197")
    node_packages(tmp_path, npm)
    called = (tmp_path / "called").read_text()
    assert " ci " in called
    assert "--include=optional --include=dev" in called
    program(tmp_path / "bin" / "claude", "echo 2.1.197")
    node_packages(tmp_path, npm)
    called = (tmp_path / "called").read_text()
    assert "--omit=dev" in called
    assert "cache=\n" in called


def test_an_npm_that_cannot_write_its_cache_gets_another_one(tmp_path: Path, npm: dict[str, str]) -> None:
    (tmp_path / "file").touch()
    node_packages(tmp_path, {**npm, "CACHE": str(tmp_path / "file" / "cache")})
    cache = (tmp_path / "called").read_text().splitlines()[1].removeprefix("cache=")
    assert cache
    assert not Path(cache).exists()


def test_a_claude_whose_script_npm_may_not_run_is_completed_and_one_that_has_no_program_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = shutil.which("node")
    assert node
    claude = program(tmp_path / "node_modules" / ".bin" / "claude", "exit 1")
    package = tmp_path / "node_modules" / "@anthropic-ai" / "claude-code"
    package.mkdir(parents=True)
    environ = {"PATH": os.environ["PATH"]}
    complete_claude(tmp_path, environ, node)
    assert "Warning: Claude Code is not installed" in capsys.readouterr().err
    (package / "install.cjs").write_text(f"require('fs').writeFileSync({str(claude)!r}, '#!/bin/sh\\necho 2.1.197\\n')")
    complete_claude(tmp_path, environ, node)
    assert capsys.readouterr().err == ""
