"""Claude Code's settings: the entries that make it use the proxy, the user's settings.json, and a check of all files.

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
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from bundle.errors import ConfigError
from bundle.files import make_private_folder, write_private
from bundle.settings import Settings, master_key

Json = dict[str, Any]

SWITCHES = {
    "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",  # Cortex refuses fields and betas that it does not know
    "CLAUDE_CODE_DISABLE_1M_CONTEXT": "1",  # Cortex documents no beta for a context of a million tokens
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # telemetry, error reports and update checks go to Anthropic
    "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a line that differs in each session, so that sessions share no cache
}
FAMILIES = ("opus", "sonnet", "haiku", "fable")  # the aliases of /model
DENIED = "WebSearch"  # runs on Anthropic's servers; Cortex has no such tool
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
# These add a second key to the requests, or send the requests elsewhere. An empty value switches them off.
CONFLICTS = ("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
EXPORTED = "the exported variable"
# Only an administrator can change the settings in this folder, and they override all others.
MANAGED = Path("/Library/Application Support/ClaudeCode" if sys.platform == "darwin" else "/etc/claude-code")


def aliases(template: str) -> dict[str, str]:
    """The variables that set the model of each alias of /model, such as `opus`, from the template (YAML text).

    A family's model is the model in its wildcard row. Claude Code requests it by name if the template has such a row.
    """
    rows = {row["model_name"]: row["litellm_params"]["model"] for row in yaml.safe_load(template)["model_list"]}
    variables = {}
    for family in FAMILIES:
        model = rows.get(f"claude-{family}-*", "").partition("/")[2]
        if model:
            name = f"ANTHROPIC_DEFAULT_{family.upper()}_MODEL"
            known = model in rows or model.startswith(f"claude-{family}-")
            variables[name] = model if known else f"claude-{family}-latest"
            variables[f"{name}_NAME"] = re.sub(r"(\d)-(?=\d)", r"\1.", model).replace("-", " ").title()
            variables[f"{name}_DESCRIPTION"] = f"{model} on Snowflake Cortex"
    return variables


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


def proxy_entries(settings: Settings, environ: Mapping[str, str]) -> Json:
    """The entries that Claude Code's settings need, with the proxy's key. Raises ConfigError."""
    try:
        models = aliases(settings.template_path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"cannot read the models in {settings.template_path}: {why}") from None
    env = {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{settings.proxy_port}",
        "ANTHROPIC_AUTH_TOKEN": master_key(settings),
        **models,
        **SWITCHES,
        **dict.fromkeys(CONFLICTS, ""),
        **around_proxy(environ),
    }
    return {"env": env, "permissions": {"deny": [DENIED]}}


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
    env = {**tree.get("env", {}), **entries["env"]}
    return {**tree, "env": env, "permissions": {**permissions, "deny": deny}}


def without_entries(now: Json, before: Json, written: Json) -> Json:
    """The settings `now`, where each `written` entry that is still unchanged gets its old value back, or is removed."""
    tree = copy.deepcopy(now)
    env, permissions, old = tree.get("env", {}), tree.get("permissions", {}), before.get("permissions", {})
    replaced = written["replaced"] if "replaced" in written else before.get("env", {})
    for name, value in written.get("env", {}).items():
        if name in env and env[name] == value:
            env.update({name: replaced[name]}) if name in replaced else env.pop(name)
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
        self.record_text, written = read_settings(self.record)
        self.on_disk, self.now = read_settings(self.path)
        self.text = self.on_disk
        if self.on_disk is None:  # the user removed settings.json, or never had one
            self.text, self.now = self.backup_text, self.before
        self.own = without_entries(self.now, self.before, written)  # the user's own settings
        self.pointed = self.own != self.now
        original = self.backup if self.pointed else self.target
        self.mode = stat.S_IMODE(original.stat().st_mode) if original.exists() else 0o600

    def _write(self, text: str) -> None:
        if self.target.exists() and not self.target.stat().st_mode & stat.S_IWUSR:
            fix = f"Unlock it: chmod u+w {shlex.quote(str(self.target))}"
            raise ConfigError(f"{self.target} is read-only; nothing was changed.\n{fix}")
        write_private(self.target, text)

    def point(self, entries: Json) -> list[str]:
        """Write the entries; returns the message for the user. Raises ConfigError, and then nothing has changed."""
        tree, env, url = with_entries(self.own, entries), self.own.get("env", {}), entries["env"]["ANTHROPIC_BASE_URL"]
        if self.on_disk is not None and tree == self.now:
            return [f"{self.path} already points Claude Code at {url}."]
        make_private_folder(self.path.parent)
        if self.text is not None and not self.pointed:  # else the text has our entries, and the backup exists already
            write_private(self.backup, self.text)
            self.backup.chmod(self.mode)
        replaced = {name: env[name] for name in entries["env"] if name in env}
        write_private(self.record, to_text({**entries, "replaced": replaced}))
        try:
            self._write(to_text(tree, self.text))
        except ConfigError:
            if self.record_text is not None:
                write_private(self.record, self.record_text)
            else:
                self.record.unlink()
                self.backup.unlink(missing_ok=True)
            raise
        lines = [f"{self.path} now points Claude Code at {url}.", "Undo this with: python3 point_claude.py --undo"]
        if self.mode & 0o077 and not self.pointed:
            lines.append(f"Other users could read {self.target}; now only you can, because it holds the proxy's key.")
        if self.path.is_symlink():
            lines.append(f"{self.path} is a link. Keep {self.target} out of version control: it holds the proxy's key.")
        return lines

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
        return [f"{self.path} no longer points at the proxy.{removed}"]


class Problem(NamedTuple):
    """A reason why `claude` does not use the proxy, and the fix; `final`: the reason stops `make claude` too."""

    found: str
    fix: str
    final: bool = False


ALL_RUNS = "python3 point_claude.py"
NOT_POINTED = Problem("nothing points Claude Code at the proxy", f"For all runs: {ALL_RUNS}; for one run: make claude")


def settings_in_force(environ: Mapping[str, str], folder: Path) -> list[tuple[str, Json]]:
    """(where, settings) of everything that a `claude` started in `folder` reads. Later ones override earlier ones."""
    paths = [
        config_folder(environ) / "settings.json",
        folder / ".claude" / "settings.json",
        folder / ".claude" / "settings.local.json",
        MANAGED / "managed-settings.json",
        *sorted((MANAGED / "managed-settings.d").glob("*.json")),
    ]
    return [(EXPORTED, {"env": dict(environ)}), *((str(path), read_settings(path)[1]) for path in paths)]


def check(port: int, key: str, environ: Mapping[str, str], folder: Path) -> list[Problem]:
    """The reasons why a `claude` started in `folder` does not use the proxy on `port` with `key`; empty if it does."""
    found = settings_in_force(environ, folder)
    values = {name: str(value) for _, tree in found for name, value in tree.get("env", {}).items()}
    places = {name: where for where, tree in found for name in tree.get("env", {})}

    def problem(name: str, wrong: str, where: str, fix: str = "") -> Problem:
        final = where.startswith(str(MANAGED))
        fix = "Only whoever manages this machine can change it" if final else fix or f"Take {name} out of {where}"
        return Problem(f"{name} {wrong}: {where}", fix, final)

    def wrong_entry(name: str, wrong: str, fix: str = "") -> Problem:
        where = places.get(name, "no setting")
        overwritten = where in {"no setting", EXPORTED, str(config_folder(environ) / "settings.json")}
        return problem(name, wrong, where, ALL_RUNS if overwritten else fix)

    others = []
    for name in CONFLICTS:
        value, where = values.get(name, ""), places.get(name, "")
        if value if name.endswith("KEY") else value.lower() in {"1", "true", "yes", "on"}:
            others.append(problem(name, "is set, but must not be", where, f"unset {name}" if where == EXPORTED else ""))
    wrong = "adds a key that is not the proxy's"
    others += [problem("apiKeyHelper", wrong, where) for where, tree in found if "apiKeyHelper" in tree]
    around = around_proxy(values)
    wrong = "does not list 127.0.0.1, so the company proxy gets the requests"
    for name in (name for name, value in around.items() if value != values.get(name, "")):
        others.append(wrong_entry(name, wrong, f"Add 127.0.0.1 to {name} in {places.get(name)}"))

    url, given = f"http://127.0.0.1:{port}", values.get("ANTHROPIC_BASE_URL", "")
    if not given:
        return [NOT_POINTED, *(other for other in others if other.final)]
    problems = []
    if given.rstrip("/") != url:  # `localhost` may be ::1, where another user's program can listen
        host = "an invalid URL"
        with suppress(ValueError):  # raised by an invalid IPv6 address
            host = urlsplit(given).hostname or host  # show only the host: the URL may contain a password
        problems.append(wrong_entry("ANTHROPIC_BASE_URL", f"leads to {host}, not to {url}"))
    if values.get("ANTHROPIC_AUTH_TOKEN", "") != key:
        problems.append(wrong_entry("ANTHROPIC_AUTH_TOKEN", "is not the proxy's key"))
    return [*problems, *others]
