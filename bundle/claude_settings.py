"""Claude Code's settings: the entries that lead it to the proxy, the user's settings.json, and what is in force.

Claude Code rewrites settings.json itself, so this edits it as JSON, and keeps its order, indentation and last newline.
Two files stand beside it while it points at the proxy. `settings.json.before-cortex` is the file as it was before.
`settings.json.with-cortex` lists the entries that were written: `--undo` knows them even after an edit or a new key.
"""

from __future__ import annotations

import copy
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from bundle.errors import ConfigError
from bundle.files import write_private
from bundle.settings import Settings, master_key

Json = dict[str, Any]

SWITCHES = {
    # Fields and betas that Claude Code tries out on Anthropic's own service; Cortex refuses those it does not know.
    "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
    # Cortex documents no beta for a context of a million tokens.
    "CLAUDE_CODE_DISABLE_1M_CONTEXT": "1",
    # Telemetry, error reports and update checks go to Anthropic; a user of Cortex wants none of them to leave.
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    # A line at the start of the system prompt that differs in each session: no session could use another's cache.
    "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
}
FAMILIES = ("opus", "sonnet", "haiku", "fable")  # the aliases of /model
DENIED = "WebSearch"  # runs on Anthropic's servers; Cortex has no such tool
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
# These send a second key to the proxy, or the requests elsewhere. An empty value is as good as none.
RIVALS = ("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
EXPORTED = "the exported variable"
# Only the person who manages the machine can change what is in this folder, and it beats every other setting.
MANAGED = Path("/Library/Application Support/ClaudeCode" if sys.platform == "darwin" else "/etc/claude-code")


def aliases(template: str) -> dict[str, str]:
    """The alias variables for the models in the template (YAML text): `opus` gets the name of the model that answers.

    A family's model is that of its catch-all row. It is asked for by its own name when there is a row of that name.
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
    """The NO_PROXY that keeps 127.0.0.1 out of a company proxy: Claude Code sends even that there, with the key."""
    if not any(environ.get(name) for name in PROXY_VARIABLES):
        return {}
    listed = {name: environ[name] for name in ("NO_PROXY", "no_proxy") if environ.get(name)} or {"NO_PROXY": ""}
    for name, value in listed.items():
        parts = [part.strip() for part in value.split(",")]
        if parts != ["*"] and "127.0.0.1" not in parts:  # Claude Code takes a star only where it stands alone
            listed[name] = f"{value},127.0.0.1".strip(",")
    return listed


def block(settings: Settings, environ: Mapping[str, str]) -> Json:
    """What Claude Code's settings need; holds the proxy's key. Raises ConfigError."""
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
        **dict.fromkeys(RIVALS, ""),
        **around_proxy(environ),
    }
    return {"env": env, "permissions": {"deny": [DENIED]}}


def config_folder(environ: Mapping[str, str]) -> Path:
    given = environ.get("CLAUDE_CONFIG_DIR")
    return Path(given).expanduser().absolute() if given else Path(environ.get("HOME") or Path.home()) / ".claude"


def load(path: Path) -> tuple[str | None, Json]:
    """The text of a settings file (None: no file) and what it says. Raises ConfigError for one that is broken."""
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
        why = f'{path} has the wrong shape: "env" and "permissions" must be objects, "deny" in "permissions" a list'
    raise ConfigError(f"{why}.\nNothing was changed. Fix the file first.")


def to_text(tree: Json, like: str | None = None) -> str:
    """The settings as JSON text, with the indentation and the last newline of the text `like`."""
    like = (like or "").lstrip("\ufeff")
    indented = re.search(r'\n([ \t]*)"', like)
    one_line = '"' in like and "\n" not in like.strip()
    shown = json.dumps(tree, indent=indented[1] if indented else None if one_line else 2, ensure_ascii=False)
    newline = "" if like.strip() and not like.endswith("\n") else "\n"
    return shown.encode("utf-8", "backslashreplace").decode() + newline  # half a surrogate pair stays an escape


def merge(tree: Json, wanted: Json) -> Json:
    """The settings with the block's entries in them."""
    permissions = tree.get("permissions", {})
    deny = permissions.get("deny", [])
    deny = deny if DENIED in deny else [*deny, DENIED]
    env = {**tree.get("env", {}), **wanted["env"]}
    return {**tree, "env": env, "permissions": {**permissions, "deny": deny}}


def take_back(now: Json, before: Json, written: Json) -> Json:
    """The settings `now` without the entries that are still as `written`: they go, or go back to what they replaced."""
    tree = copy.deepcopy(now)
    env, permissions, old = tree.get("env", {}), tree.get("permissions", {}), before.get("permissions", {})
    replaced = written["replaced"] if "replaced" in written else before.get("env", {})
    for name, value in written.get("env", {}).items():
        if name in env and env[name] == value:
            env.update({name: replaced[name]}) if name in replaced else env.pop(name)
    added = DENIED in written.get("permissions", {}).get("deny", []) and DENIED not in old.get("deny", [])
    if added and DENIED in permissions.get("deny", []):
        permissions["deny"].remove(DENIED)
    for parent, was, name in ((permissions, old, "deny"), (tree, before, "permissions"), (tree, before, "env")):
        if written and not parent.get(name, True) and name not in was:
            del parent[name]  # it was made for our entries
    return tree


class UserSettings:
    """settings.json and the two files beside it. If it is a link, its target changes; the two stand beside the link."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = config_folder(environ) / "settings.json"
        self.target = Path(os.path.realpath(self.path))
        # An older release wrote all settings to the second file, not only its entries: that reads the same.
        self.backup, self.record = (self.path.with_name(f"settings.json.{word}-cortex") for word in ("before", "with"))
        self.saved, self.before = load(self.backup)
        self.recorded, written = load(self.record)
        self.on_disk, self.now = load(self.path)
        self.text = self.on_disk
        if self.on_disk is None:  # removed since, or never there: go on from the backup
            self.text, self.now = self.saved, self.before
        self.users = take_back(self.now, self.before, written)  # without our entries
        self.pointed = self.users != self.now
        known = self.backup if self.pointed else self.target
        self.mode = stat.S_IMODE(known.stat().st_mode) if known.exists() else 0o600  # as it was before us

    def _write(self, text: str) -> None:
        if self.target.exists() and not self.target.stat().st_mode & stat.S_IWUSR:
            raise ConfigError(f"{self.target} is read-only; nothing was changed.\nUnlock it: chmod u+w {self.target}")
        write_private(self.target, text)

    def point(self, wanted: Json) -> list[str]:
        """Write the block's entries; returns what to tell the user. Raises ConfigError, with nothing changed."""
        tree, env, url = merge(self.users, wanted), self.users.get("env", {}), wanted["env"]["ANTHROPIC_BASE_URL"]
        if self.on_disk is not None and tree == self.now:
            return [f"{self.path} points Claude Code at {url} already."]
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.text is not None and not self.pointed:  # an existing backup stays while our entries are in the file
            write_private(self.backup, self.text)
            self.backup.chmod(self.mode)
        replaced = {name: env[name] for name in wanted["env"] if name in env}
        write_private(self.record, to_text({**wanted, "replaced": replaced}))
        try:
            self._write(to_text(tree, self.text))
        except ConfigError:
            if self.recorded is not None:
                write_private(self.record, self.recorded)
            else:
                self.record.unlink()
                self.backup.unlink(missing_ok=True)
            raise
        lines = [f"{self.path} now points Claude Code at {url}.", "Take it back with: python3 point_claude.py --undo"]
        if self.mode & 0o077 and not self.pointed:
            lines.append(f"Other users could read {self.target}; now only you can, because it holds the proxy's key.")
        if self.path.is_symlink():
            lines.append(f"It is a link: keep {self.target} out of version control, it holds the proxy's key.")
        return lines

    def undo(self) -> list[str]:
        """Take the entries out; returns what to tell the user. Raises ConfigError, with nothing changed."""
        if self.recorded is None:
            return [f"{self.path} was not changed by this bundle: nothing to take back."]
        text = to_text(self.users, self.text) if self.pointed else self.text
        if self.users == self.before:  # nothing else was changed since
            text = self.saved
        if text is None:
            self.target.unlink(missing_ok=True)
        else:
            if text != self.on_disk:
                self._write(text)
            self.target.chmod(self.mode)
        for path in (self.backup, self.record):
            path.unlink(missing_ok=True)
        return [f"{self.path} no longer points at the proxy." + (" There was none before." if text is None else "")]


class Problem(NamedTuple):
    """What keeps a plain `claude` from the proxy, and what fixes it; `final`: it keeps `make claude` from it too."""

    found: str
    fix: str
    final: bool = False


NOT_POINTED = Problem("nothing points Claude Code at the proxy", "python3 point_claude.py, or one run: make claude")


def sources(environ: Mapping[str, str], folder: Path) -> list[tuple[str, Json]]:
    """(where, settings) of everything that a `claude` started in `folder` reads; a later one beats an earlier one."""
    paths = [
        config_folder(environ) / "settings.json",
        folder / ".claude" / "settings.json",
        folder / ".claude" / "settings.local.json",
        MANAGED / "managed-settings.json",
        *sorted((MANAGED / "managed-settings.d").glob("*.json")),
    ]
    return [(EXPORTED, {"env": dict(environ)}), *((str(path), load(path)[1]) for path in paths)]


def check(port: int, key: str, environ: Mapping[str, str], folder: Path) -> list[Problem]:
    """What keeps a `claude` started in `folder` from the proxy on `port` with that key; none when nothing does."""
    found = sources(environ, folder)
    winners = {name: (str(value), where) for where, tree in found for name, value in tree.get("env", {}).items()}
    values = {name: value for name, (value, _) in winners.items()}
    renewable = {"no setting", EXPORTED, str(config_folder(environ) / "settings.json")}

    def problem(name: str, wrong: str, where: str, fix: str = "") -> Problem:
        final = where.startswith(str(MANAGED))
        fix = "Only whoever manages this machine can change it" if final else fix or f"Take {name} out of {where}"
        return Problem(f"{name} {wrong}: {where}", fix, final)

    def ours(name: str, wrong: str, elsewhere: str = "") -> Problem:
        where = winners.get(name, ("", "no setting"))[1]
        return problem(name, wrong, where, "python3 point_claude.py" if where in renewable else elsewhere)

    others = []
    for name in RIVALS:
        value, where = winners.get(name, ("", ""))
        if value if name.endswith("KEY") else value.lower() in {"1", "true", "yes", "on"}:
            others.append(problem(name, "must not be set, and is", where, f"unset {name}" if where == EXPORTED else ""))
    wrong = "adds a key that is not the proxy's"
    others += [problem("apiKeyHelper", wrong, where) for where, tree in found if "apiKeyHelper" in tree]
    around = around_proxy(values)
    wrong = "does not list 127.0.0.1, so the company proxy gets the requests"
    for name in (name for name, value in around.items() if value != values.get(name, "")):
        others.append(ours(name, wrong, f"Add 127.0.0.1 to {name} in {winners.get(name, ('', ''))[1]}"))

    url, given = f"http://127.0.0.1:{port}", values.get("ANTHROPIC_BASE_URL", "")
    if not given:
        return [NOT_POINTED, *(one for one in others if one.final)]
    problems = []
    if given.rstrip("/") not in {url, "" if around else f"http://localhost:{port}"}:
        host = "something that is no URL"
        with suppress(ValueError):  # a broken IPv6 address
            host = urlsplit(given).hostname or host  # only the host is shown: the URL may hold a password
        problems.append(ours("ANTHROPIC_BASE_URL", f"leads to {host}, not to {url}"))
    if values.get("ANTHROPIC_AUTH_TOKEN", "") != key:
        problems.append(ours("ANTHROPIC_AUTH_TOKEN", "is not the proxy's key"))
    return [*problems, *others]
