"""The command `claude-cortex` in ~/.local/bin: Claude Code on Cortex, in whatever folder it is called.

It is a shell script of a few lines that runs point_claude.py of this folder. A file that this bundle has not made is
never replaced and never removed.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from bundle.bootstrap import BUNDLE, make
from bundle.errors import ConfigError
from bundle.files import make_private_folder, write_error, write_private

NAME = "claude-cortex"
MARK = "# Claude Code on Snowflake Cortex. The Makefile of that folder makes this file, and removes it.\n"


def place(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home()) / ".local" / "bin" / NAME


def text(bundle: Path = BUNDLE) -> str:
    return f"""#!/bin/sh
{MARK}folder={shlex.quote(str(bundle))}
python="$folder/.venv/bin/python"
[ -x "$python" ] || python=python3
if [ ! -f "$folder/point_claude.py" ]; then
    echo "{NAME}: $folder was renamed or deleted. In the new folder, run: make install-command" >&2
    echo "If there is none any more, remove this command: rm '$0'" >&2
    exit 78
fi
exec "$python" "$folder/point_claude.py" --run "$@"
"""


def install(environ: Mapping[str, str]) -> list[str]:
    """Write the command; returns the message for the user. Raises ConfigError, and then nothing has changed."""
    path = place(environ)
    old = _read(path)
    if old is not None and MARK not in old:
        raise ConfigError(
            f"{path} is not from this bundle, and was left alone.\n"
            f"Rename it or remove it, then: {make('install-command')}"
        )
    try:
        make_private_folder(path.parent)
        write_private(path, text())
        path.chmod(0o755)
    except OSError as error:
        raise write_error(path, error) from None
    lines = [f"{path} runs Claude Code on Cortex in the folder where you are. Try: {NAME} -p 'Say hello'"]
    if old is not None and old != text():
        lines.append("It ran another copy of this bundle before.")
    return [*lines, *_about_path(path, environ)]


def _about_path(path: Path, environ: Mapping[str, str]) -> list[str]:
    found = shutil.which(NAME, path=environ.get("PATH", ""))
    if found and not path.samefile(found):
        return [f"But your PATH has another {NAME} first: {found}"]
    if found:
        return []
    shell = Path(environ.get("SHELL", "")).name
    export = f'export PATH={shlex.quote(str(path.parent))}:"$PATH"'
    file = {"zsh": "~/.zshrc", "bash": "~/.bashrc"}.get(shell, "the file that your shell reads at its start")
    return [f"But {path.parent} is not on your PATH. Put this line into {file}, then open a new terminal:", export]


def remove(environ: Mapping[str, str]) -> str:
    """Remove the command if it is of this folder; returns what was done, or ""."""
    path = place(environ)
    if _read(path) != text():
        return ""
    try:
        path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot remove {path}: {error.strerror}.\nRemove it: rm {shlex.quote(str(path))}") from None
    return f"removed {path}"


def _read(path: Path) -> str | None:
    """The text of the file; None if there is none. A link or a folder has a text that is not ours."""
    if path.is_symlink() or path.is_dir():
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}.\nCheck with: ls -l {shlex.quote(str(path))}"
        ) from None
