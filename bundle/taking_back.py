"""What `make uninstall` removes, what it leaves to the user, and what is left if something could not be removed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundle.bootstrap import BUNDLE, state_folder
from bundle.claude_settings import UserSettings
from bundle.command import place
from bundle.command import text as command_text
from bundle.errors import ConfigError
from bundle.ledger import FOLDER as LEDGER
from bundle.refresher import read_state
from bundle.settings import load_settings
from bundle.supervisor import pm2_home
from patches import apply_patch

# What the bundle writes into its folder, apart from what `make install` installs there. `.env` is the user's, and so is
# the ledger: its numbers of a year cannot be had again.
WRITTEN = (
    *("litellm_config.yaml", "litellm_config.yaml.*", ".master_key", "claude.json"),
    *(".refresher.json", ".refresher.lock", ".models.json", "logs", "cortex-report.md", ".*.tmp"),
    ".spent.json",
)


def written_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in WRITTEN for path in folder.glob(pattern)})


def remove_files(folder: Path) -> list[str]:
    """Remove what the bundle has written into its folder; returns what was done. `left_behind` finds what stays."""
    removed = []
    for path in written_files(folder):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            removed.append(path.name)
    return [f"removed {', '.join(removed)} in {folder}"] if removed else []


def saved_lists(environ: Mapping[str, str]) -> Iterator[tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]]:
    """(file, its rows, those of this folder) for each list of `pm2 save` that has rows of this folder."""
    for name in ("dump.pm2", "dump.pm2.bak"):
        path = pm2_home(environ) / name
        with suppress(OSError, ValueError, AttributeError):
            rows = json.loads(path.read_text(encoding="utf-8"))
            ours = [row for row in rows if Path(str(row.get("pm_exec_path"))).is_relative_to(BUNDLE)]
            if ours:
                yield path, rows, ours


def forget_in_saved_lists(environ: Mapping[str, str]) -> list[str]:
    """Take our rows out of PM2's saved lists, from which it starts processes after a reboot. (`pm2 save` would also
    save every other change since the last one.)"""
    done = []
    for path, rows, ours in saved_lists(environ):
        with suppress(OSError):
            path.write_text(json.dumps([row for row in rows if row not in ours], indent=2), encoding="utf-8")
            done.append(f"took {' and '.join(str(row.get('name')) for row in ours)} out of {path}")
    return done


def unpatch() -> str:
    """Take the patch out of a LiteLLM that is not in this folder; returns what was done, or why it could not be."""
    report = apply_patch.inspect()
    if report.path is None or report.path.is_relative_to(BUNDLE) or report.current == report.original:
        return ""
    try:
        apply_patch.apply(undo=True)
    except apply_patch.PatchError as error:
        return f"the patch stays in {report.path}: {error}"
    return f"took the patch out of {report.path}"


def left_behind(environ: Mapping[str, str]) -> list[str]:
    """What is still there although it was to be removed."""
    left = [str(path) for path in written_files(state_folder(environ))]
    left += [f"our rows in {path}" for path, _, _ in saved_lists(environ)]
    left += [f"our entries in {user.path}" for user in [UserSettings(environ)] if user.pointed]
    with suppress(OSError):
        left += [str(place(environ))] if place(environ).read_text(encoding="utf-8") == command_text() else []
    return left


def what_remains(environ: Mapping[str, str]) -> list[str]:
    """What `make uninstall` leaves, and how the user ends it."""
    user, key, pat = str(read_state(state_folder(environ)).get("user") or "<user>"), "", ""
    with suppress(ConfigError):
        settings = load_settings(environ)
        user, key = settings.user, str(settings.private_key_path)
        pat = settings.pat.place if settings.pat else settings.pat_note.partition(" is not used")[0]
    name = user if re.fullmatch(r"[A-Z_][A-Z0-9_$]*|<user>", user) else '"' + user.replace('"', '""') + '"'
    lines = []
    if pat:
        lines += [
            f"- The programmatic access token from {pat}. It stays valid until you remove it in Snowflake:",
            "    SHOW USER PROGRAMMATIC ACCESS TOKENS; then ALTER USER REMOVE PROGRAMMATIC ACCESS TOKEN <name>;",
        ]
    if not pat or Path(key).exists():
        lines += [
            "- The public key in Snowflake. To make Snowflake refuse the key, run this in Snowsight (RSA_PUBLIC_KEY_2",
            "  if your key is there; the NAME of the user in DESC USER, if it is not the login name):",
            f"    ALTER USER {name} UNSET RSA_PUBLIC_KEY;",
        ]
    if key and Path(key).exists():
        lines.append(f"- The key pair: {key}. Other programs may use it.")
    env_file = state_folder(environ) / ".env"
    if env_file.exists():
        lines.append(f"- Your settings: {env_file}")
    ledger = state_folder(environ) / LEDGER
    if ledger.exists():
        lines.append(f"- The ledger, with what each answer has used: {ledger}")
    lines.append(f"- This folder: {BUNDLE}. Delete it when you need nothing in it.")
    if shutil.which("systemctl") and list(Path("/etc/systemd/system").glob("pm2-*.service")):
        lines.append("- PM2 at boot. If you have run `pm2 startup` only for this: pm2 unstartup")
    return lines
