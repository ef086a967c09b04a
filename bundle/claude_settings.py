"""Claude Code's settings: the entries that make it use the proxy, and the user's settings.json.

Claude Code rewrites settings.json itself, so this module edits the file as JSON, and keeps its order, indentation and
last newline. While settings.json has the entries, two more files are beside it: `settings.json.before-cortex` is a copy
of the old file, and `settings.json.with-cortex` lists the entries, so that `--undo` finds them even after an edit.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundle import claude_models
from bundle.bootstrap import BUNDLE, script
from bundle.claude_models import ALIAS, NO_LARGE_WINDOW
from bundle.errors import ConfigError
from bundle.files import make_private_folder, write_private
from bundle.settings import Settings, master_key

Json = dict[str, Any]

SWITCHES = {
    "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",  # Cortex refuses fields and betas that it does not know
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # telemetry, error reports and update checks go to Anthropic
    "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a line that differs in each session, so that sessions share no cache
    **claude_models.WINDOW_OF_UNKNOWN,
}
DENIED = "WebSearch"  # runs on Anthropic's servers; Cortex has no such tool
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
# `CLAUDE_CODE_USE_` and a provider sends the requests to that provider. An empty value switches it off.
PROVIDERS = ("BEDROCK", "VERTEX", "FOUNDRY", "MANTLE", "ANTHROPIC_AWS", "ANTHROPIC_GOOGLE_CLOUD", "GATEWAY")
TO_PROVIDER = "CLAUDE_CODE_USE_"
NO_PROVIDER = frozenset(f"{TO_PROVIDER}{name}" for name in ("POWERSHELL_TOOL", "NATIVE_FILE_SEARCH", "COWORK_PLUGINS"))
# These add a second key to the requests, or send the requests elsewhere.
CONFLICTS = ("ANTHROPIC_API_KEY", *(f"{TO_PROVIDER}{name}" for name in PROVIDERS))
OTHERS: Json = {  # entries beside `env` and `permissions`
    "skipWebFetchPreflight": True,  # else WebFetch asks claude.ai about each domain, and fails where that is blocked
    "apiKeyHelper": "",  # a program of the user that prints another key
}
LINE = "statusLine"
# All entries of ours beside `env` and `permissions`.
BESIDE = (*OTHERS, "model", "effortLevel", "autoCompactWindow", LINE)
EXPORTED = "the exported variable"
# Only an administrator can change the settings in this folder, and they override all others.
MANAGED = Path("/Library/Application Support/ClaudeCode" if sys.platform == "darwin" else "/etc/claude-code")


def is_conflict(name: str) -> bool:
    """Whether a variable adds a second key, or sends the requests elsewhere. New releases of Claude Code know more
    providers than PROVIDERS."""
    return name in CONFLICTS or (name.startswith(TO_PROVIDER) and name not in NO_PROVIDER)


def around_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY with 127.0.0.1: without it, Claude Code sends its requests and the key to a company proxy."""
    if not any(environ.get(name) for name in PROXY_VARIABLES):
        return {}
    listed = {name: environ[name] for name in ("NO_PROXY", "no_proxy") if environ.get(name)} or {"NO_PROXY": ""}
    for name, value in listed.items():
        parts = [part.strip() for part in value.split(",")]
        if parts != ["*"] and "127.0.0.1" not in parts:  # Claude Code ignores a `*` inside a longer list
            listed[name] = f"{value},127.0.0.1".strip(",")
    return listed


def proxy_entries(settings: Settings, theirs: Json) -> Json:
    """The entries that Claude Code's settings need, with the proxy's key. `theirs` is what Claude Code gets without
    them: the user's settings, with all variables as `env`. Raises ConfigError."""
    variables = theirs.get("env", {})
    rows = claude_models.rows_of(settings)
    start = claude_models.start_entries(settings, rows, theirs)
    compaction = claude_models.compaction(theirs)
    env = {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{settings.proxy_port}",
        "ANTHROPIC_AUTH_TOKEN": master_key(settings),
        **claude_models.variables(rows),
        **SWITCHES,
        **compaction.pop("env"),
        **start.pop("env"),
        **dict.fromkeys(CONFLICTS, ""),
        **dict.fromkeys(filter(is_conflict, variables), ""),
        **around_proxy(variables),
    }
    line = {} if theirs.get(LINE) else {LINE: line_entry(settings.folder)}
    return {**start, "env": env, "permissions": {"deny": [DENIED]}, **compaction, **OTHERS, **line}


def line_entry(folder: Path) -> Json:
    """The entry for the status line, which reads its dollars in `folder`. Python without its site-packages starts
    almost twice as fast."""
    home = [] if folder == BUNDLE else [f"CORTEX_HOME={shlex.quote(str(folder))}"]
    words = [sys.executable, "-E", "-S", str(BUNDLE / "point_claude.py"), "--statusline"]
    return {"type": "command", "command": " ".join([*home, shlex.join(words)])}


def config_folder(environ: Mapping[str, str]) -> Path:
    given = environ.get("CLAUDE_CONFIG_DIR")
    return Path(given).expanduser().absolute() if given else Path(environ.get("HOME") or Path.home()) / ".claude"


def read_settings(path: Path) -> tuple[str | None, Json]:
    """The text of a settings file (None: no file) and its settings. Raises ConfigError for an invalid file."""
    try:
        text = path.read_bytes().decode("utf-8")
        tree: Json = json.loads(text.lstrip("\ufeff")) if text.strip("\ufeff \t\r\n") else {}
        deny = tree.get("permissions", {}).get("deny", [])
        if not isinstance(tree.get("env", {}), dict) or not isinstance(deny, list):
            raise TypeError
        return text, tree
    except FileNotFoundError:
        return None, {}
    except OSError as error:
        why = f"cannot read {path}: {error.strerror}"
    except ValueError as error:
        why = f"{path} is not valid JSON: {error}"
    except (AttributeError, TypeError):
        why = f'{path} has the wrong shape: "env" and "permissions" must be objects, "permissions.deny" must be a list'
    raise ConfigError(f"{why}.\nNothing was changed. Fix the file first.")


def to_text(tree: Json, like: str | None = None) -> str:
    """The settings as JSON text, with the indentation and the last newline of the text `like`."""
    like = (like or "").lstrip("\ufeff")
    indented = re.search(r'\n([ \t]*)"', like)
    one_line = '"' in like and "\n" not in like.strip()
    shown = json.dumps(tree, indent=indented[1] if indented else None if one_line else 2, ensure_ascii=False)
    newline = "" if like.strip() and not like.endswith("\n") else "\n"
    return shown.encode("utf-8", "backslashreplace").decode() + newline  # UTF-8 cannot encode half a surrogate pair


def with_entries(tree: Json, entries: Json) -> Json:
    permissions = tree.get("permissions", {})
    deny = permissions.get("deny", [])
    deny = deny if DENIED in deny else [*deny, DENIED]
    others = {name: entries[name] for name in BESIDE if name in entries}
    env = {**tree.get("env", {}), **entries["env"]}
    return {**tree, "env": env, "permissions": {**permissions, "deny": deny}, **others}


def without_entries(now: Json, before: Json, written: Json) -> Json:
    """The settings `now`, where each `written` entry that is still unchanged gets its old value back, or is removed."""
    tree = copy.deepcopy(now)
    env, permissions, old = tree.get("env", {}), tree.get("permissions", {}), before.get("permissions", {})
    # (An older release did not write these, but its record may hold the user's.)
    others = {name: written[name] for name in BESIDE if name in written and "replaced_others" in written}
    replaced = written["replaced"] if "replaced" in written else before.get("env", {})
    replaced_others: Json = written.get("replaced_others", {})
    for place, entries, values in ((env, written.get("env", {}), replaced), (tree, others, replaced_others)):
        for name, value in entries.items():
            if name in place and place[name] == value:
                place.update({name: values[name]}) if name in values else place.pop(name)
    added = DENIED in written.get("permissions", {}).get("deny", []) and DENIED not in old.get("deny", [])
    if added and DENIED in permissions.get("deny", []):
        permissions["deny"].remove(DENIED)
    for parent, old_parent, name in ((permissions, old, "deny"), (tree, before, "permissions"), (tree, before, "env")):
        if written and not parent.get(name, True) and name not in old_parent:
            del parent[name]  # empty now, and made for our entries
    return tree


class UserSettings:
    """settings.json and the two files beside it. If settings.json is a symlink, the two files are beside the link."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = config_folder(environ) / "settings.json"
        self.target = Path(os.path.realpath(self.path))  # the file to edit
        # An older release wrote all settings to the second file, and not only the entries. Both forms are read alike.
        self.backup, self.record = (self.path.with_name(f"settings.json.{word}-cortex") for word in ("before", "with"))
        self.backup_text, self.before = read_settings(self.backup)
        self.record_text, self.written = read_settings(self.record)
        self.on_disk, self.now = read_settings(self.path)
        self.text = self.on_disk
        if self.on_disk is None:  # the user removed settings.json, or never had one
            self.text, self.now = self.backup_text, self.before
        self.own = without_entries(self.now, self.before, self.written)  # the user's own settings
        self.pointed = self.own != self.now
        original = self.backup if self.pointed else self.target
        self.mode = stat.S_IMODE(original.stat().st_mode) if original.exists() else 0o600

    def _write(self, text: str) -> None:
        if self.target.exists() and not self.target.stat().st_mode & stat.S_IWUSR:
            fix = f"Unlock it: chmod u+w {shlex.quote(str(self.target))}"
            raise ConfigError(f"{self.target} is read-only; nothing was changed.\n{fix}")
        write_private(self.target, text)

    def _save(self, tree: Json, record: Json) -> None:
        """Write the settings and the two files beside them. Raises ConfigError, and then nothing has changed."""
        make_private_folder(self.path.parent)
        if self.text is not None and not self.pointed:  # else the text has our entries, and the backup exists already
            write_private(self.backup, self.text)
            self.backup.chmod(self.mode)
        write_private(self.record, to_text(record))
        try:
            self._write(to_text(tree, self.text))
        except ConfigError:
            if self.record_text is not None:
                write_private(self.record, self.record_text)
            else:
                self.record.unlink()
                self.backup.unlink(missing_ok=True)
            raise

    def show_line(self, entry: Json) -> list[str]:
        """Write the status line alone, also in the place of the user's own; returns the message for the user. Raises
        ConfigError, and then nothing has changed."""
        if self.on_disk is not None and self.now.get(LINE) == entry:
            return [f"{self.path} already has this status line."]
        written = self.written if self.pointed else {}
        if "replaced_others" not in written:  # of an older release, or of nobody: these are the user's
            written = {name: value for name, value in written.items() if name not in BESIDE}
        theirs = {LINE: self.own[LINE]} if LINE in self.own else {}
        replaced = {**written.get("replaced_others", {}), **theirs}
        self._save({**self.now, LINE: entry}, {**written, LINE: entry, "replaced_others": replaced})
        if "env" not in written:
            self.target.chmod(self.mode)  # it holds no key
        lines = [
            f"{self.path} now has the status line. A running Claude Code shows it from its next answer on.",
            f"Undo this with: {script('point_claude.py', '--undo')}",
        ]
        return [*lines, *(["Your own status line comes back then."] if theirs.get(LINE) else [])]

    def point(self, entries: Json) -> list[str]:
        """Write the entries; returns the message for the user. Raises ConfigError, and then nothing has changed."""
        own, env, url = self.own, self.own.get("env", {}), entries["env"]["ANTHROPIC_BASE_URL"]
        if not own.get("apiKeyHelper"):
            entries = {name: value for name, value in entries.items() if name != "apiKeyHelper"}
        if self.now.get(LINE) != own.get(LINE):  # ours, in the place of the user's own: `--statusline` put it there
            entries = {LINE: self.now[LINE], **entries}
        tree = with_entries(own, entries)
        if self.on_disk is not None and tree == self.now:
            return [f"{self.path} already points Claude Code at {url}."]
        was_open = bool(self.target.exists() and self.target.stat().st_mode & 0o077)
        replaced = {name: env[name] for name in entries["env"] if name in env}
        replaced_others = {name: own[name] for name in BESIDE if name in entries and name in own}
        self._save(tree, {**entries, "replaced": replaced, "replaced_others": replaced_others})
        lines = [
            f"{self.path} now points Claude Code at {url}.",
            f"Undo this with: {script('point_claude.py', '--undo')}",
        ]
        if "apiKeyHelper" in replaced_others:
            lines.append("Its apiKeyHelper is off until then: it adds a key that is not the proxy's.")
        if own.get(LINE) and LINE not in entries:
            lines.append(f"Your own status line stays. To have ours: {script('point_claude.py', '--statusline')}")
        if was_open:
            lines.append(f"Other users could read {self.target}; now only you can, because it holds the proxy's key.")
        if self.path.is_symlink():
            lines.append(f"{self.path} is a link. Keep {self.target} out of version control: it holds the proxy's key.")
        return lines

    def has_old_models(self, models: Mapping[str, str]) -> bool:
        """Whether the entries give another model to an alias of /model than `models`, which the template gives now."""
        env, written = self.now.get("env", {}), self.written.get("env", {})
        names = {name for name in {*written, *models} if name.startswith(ALIAS) and name.endswith("_MODEL")}
        ours = {name for name in names if env.get(name) == written.get(name)}  # the user has not changed them
        return bool(written) and self.pointed and any(env.get(name) != models.get(name) for name in ours)

    def undo(self) -> list[str]:
        """Remove the entries; returns the message for the user. Raises ConfigError, and then nothing has changed."""
        if self.record_text is None:
            return [f"{self.path} was not changed by this bundle: nothing to take back."]
        text = to_text(self.own, self.text) if self.pointed else self.text
        if self.own == self.before:  # the user has changed nothing since
            text = self.backup_text
        if text is None:
            self.target.unlink(missing_ok=True)
        else:
            if text != self.on_disk:
                self._write(text)
            self.target.chmod(self.mode)
        for path in (self.backup, self.record):
            path.unlink(missing_ok=True)
        removed = " The file did not exist before, so it was removed." if text is None else ""
        words = "no longer points at the proxy" if "env" in self.written else "no longer has the status line"
        return [f"{self.path} {words}.{removed}"]


def settings_in_force(environ: Mapping[str, str], folder: Path) -> list[tuple[str, Json]]:
    """(where, settings) of everything that a `claude` started in `folder` reads. Later ones override earlier ones."""
    return [
        (EXPORTED, {"env": dict(environ)}),
        *((str(path), read_settings(path)[1]) for path in files(environ, folder)),
    ]


def files(environ: Mapping[str, str], folder: Path) -> list[Path]:
    """The settings files that a `claude` started in `folder` reads. The first one is the user's."""
    return [
        config_folder(environ) / "settings.json",
        folder / ".claude" / "settings.json",
        folder / ".claude" / "settings.local.json",
        MANAGED / "managed-settings.json",
        *sorted((MANAGED / "managed-settings.d").glob("*.json")),
    ]


def theirs_in_force(environ: Mapping[str, str], folder: Path) -> Json:
    """The settings that a `claude` started in `folder` gets without our entries, with all variables as `env`. A file
    that cannot be read counts as empty: it must not stop a run."""
    merged: Json = {"env": dict(environ)}
    user, *others = files(environ, folder)
    with suppress(ConfigError):
        merged = _over(merged, UserSettings(environ).own)
    for path in [path for path in others if path != user]:  # (in the home folder, the project's file is the user's)
        with suppress(ConfigError):
            merged = _over(merged, read_settings(path)[1])
    return merged


def _over(lower: Json, upper: Json) -> Json:
    return {**lower, **upper, "env": {**lower["env"], **upper.get("env", {})}}


# ------------------------------------------------------------------------------------- after a change of the template


def run_file(settings: Settings) -> Path:
    """The settings file for `claude --settings`."""
    return settings.folder / "claude.json"


def models_of(settings: Settings) -> dict[str, str]:
    """The variables that follow from the template of this set-up. Raises ConfigError."""
    return claude_models.variables(claude_models.rows_of(settings))


def follow_template(settings: Settings) -> None:
    """Give the settings file of `claude --settings`, if it exists, the models of the template. Raises ConfigError."""
    models, path = models_of(settings), run_file(settings)
    tree = read_settings(path)[1]
    old = tree.get("env", {})
    kept = {name: old[name] for name in old if not name.startswith(ALIAS) and name != NO_LARGE_WINDOW}
    env = kept | models
    if tree and env != old:
        write_private(path, to_text({**tree, "env": env}))


def old_models(settings: Settings, environ: Mapping[str, str]) -> str:
    """What the user must know if the own settings have the models of an older template, else "". Raises ConfigError."""
    user = UserSettings(environ)
    if user.has_old_models(models_of(settings)):
        return f"{user.path} has the models of an older template.\nGive it the new ones: {script('point_claude.py')}"
    return ""
