#!/usr/bin/env python3
"""Point Claude Code at the proxy, for one run or for good, and take it back.

Claude Code reads where to send its requests from the `env` of its settings files. For one run, this writes a settings
file of its own and starts `claude --settings FILE`: the user's settings stay alone. For good, it puts the same entries
into the user's settings.json by editing its text, so that every other byte stays, and keeps two copies beside it (as it
was before, and as written) from which `--undo` works out what to take back, also after later edits by the user.

    python point_claude.py                    all runs: edit ~/.claude/settings.json (or CLAUDE_CONFIG_DIR's)
    python point_claude.py --undo             take that back
    python point_claude.py --run [ARGS…]      this run only: start claude with ARGS
    python point_claude.py --file             write the file for `claude --settings` and print that command
    python point_claude.py --print            show the block, without the key
    python point_claude.py --check            do the settings in force lead to the proxy, and if not, whose fault is it

The proxy's key is in no argument list and no output; every file that gets it is mode 0600. ~/.claude.json is never
touched: it holds the login, and nothing that is needed here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bundle.bootstrap import BUNDLE, EX_CONFIG, enter_venv

if __name__ == "__main__":
    enter_venv()

import yaml

from bundle.errors import ConfigError
from bundle.files import write_private
from bundle.settings import Settings, load_settings, master_key

Json = dict[str, Any]

SWITCHES = {
    # Fields and betas that Claude Code tries out on Anthropic's own service; Cortex refuses those it does not know.
    "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
    # Cortex documents no beta for a context of a million tokens.
    "CLAUDE_CODE_DISABLE_1M_CONTEXT": "1",
    # Telemetry, error reports and update checks go to Anthropic; who keeps inference at home wants these at home too.
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    # A line at the start of the system prompt that differs in each session: no session could use another's cache.
    "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
}
FAMILIES = ("opus", "sonnet", "haiku", "fable")  # the aliases of /model
DENIED = "WebSearch"  # runs on Anthropic's servers; Cortex has no such tool
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
# Would be sent along to the proxy (after a question), or take the requests elsewhere; empty is as good as not there.
RIVALS = ("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
# Nobody but who manages the machine can change what is in here, and it beats all else.
MANAGED = Path("/Library/Application Support/ClaudeCode" if sys.platform == "darwin" else "/etc/claude-code")
EXPORTED = "the exported variable"
INSTALL_CLAUDE = "npm install -g @anthropic-ai/claude-code"


# --------------------------------------------------------------------------------------------------------- the block


def aliases(template: str) -> dict[str, str]:
    """The alias variables for the models in the template (YAML text): what `opus` asks for is named as it answers.

    A family's model is that of its catch-all row, asked for by its own name when there is a row of that name.
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
    """The NO_PROXY that keeps 127.0.0.1 out of a company proxy: Claude Code sends even that there, key and all."""
    if not any(environ.get(name) for name in PROXY_VARIABLES):
        return {}
    listed = {name: environ[name] for name in ("NO_PROXY", "no_proxy") if environ.get(name)} or {"NO_PROXY": ""}
    return {name: value if _excepts_us(value) else f"{value},127.0.0.1".strip(",") for name, value in listed.items()}


def _excepts_us(no_proxy: str) -> bool:
    # A star means everything only where it stands alone: Claude Code does not find it in a list.
    return no_proxy.strip() == "*" or "127.0.0.1" in [part.strip() for part in no_proxy.split(",")]


def block(settings: Settings, environ: Mapping[str, str]) -> Json:
    """What Claude Code's settings need; holds the proxy's key. Raises ConfigError."""
    try:
        models = aliases(settings.template_path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError) as error:
        raise ConfigError(
            f"cannot read the models in {settings.template_path}: {' '.join(str(error).split())}"
        ) from None
    env = {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{settings.proxy_port}",
        "ANTHROPIC_AUTH_TOKEN": master_key(settings),
        **models,
        **SWITCHES,
        **dict.fromkeys(RIVALS, ""),
        **around_proxy(environ),
    }
    return {"env": env, "permissions": {"deny": [DENIED]}}


def to_text(tree: Json) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


# -------------------------------------------------------------------------------------------------------- for one run


def write_run_file(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Write the settings file for `claude --settings`, and return its path."""
    network = dict(environ)
    with suppress(ConfigError):  # the user's settings may set a company proxy; broken, they are none of ours here
        path = config_folder(environ) / "settings.json"
        network |= parse(_read(path), path).get("env", {})
    write_private(settings.folder / "claude.json", to_text(block(settings, network)))
    return settings.folder / "claude.json"


def find_claude(environ: Mapping[str, str]) -> str:
    own = BUNDLE / "node_modules" / ".bin" / "claude"
    found = shutil.which("claude", path=environ.get("PATH")) or (str(own) if os.access(own, os.X_OK) else None)
    if not found:
        raise ConfigError(
            f"Claude Code is not installed: there is no `claude` on PATH.\nInstall it with: {INSTALL_CLAUDE}"
        )
    return found


def run(settings: Settings, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become `claude`, pointed at the proxy; returns only by raising ConfigError."""
    claude = find_claude(environ)
    path = write_run_file(settings, environ)
    child = {name: value for name, value in environ.items() if name not in RIVALS}
    sys.stdout.flush()
    os.execve(claude, [claude, "--settings", str(path), *arguments], child)  # noqa: S606


# ---------------------------------------------------------------------------------------------------------- for good

_DECODER = json.JSONDecoder()


class Member(NamedTuple):
    """Where a member of an object or array stands in the JSON text; `key` is its name or its number."""

    key: str | int
    start: int
    value: int
    end: int


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n\ufeff":
        at += 1
    return at


def _members(text: str, at: int) -> list[Member]:
    """The members of the object or array of valid JSON that opens at `at`."""
    found: list[Member] = []
    named, at = text[at] == "{", _skip(text, at + 1)
    while text[at] not in "}]":
        start, key = at, len(found)
        if named:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        found.append(Member(key, start, at, end))
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


Way = Sequence[str | int]


def put(text: str, path: Way, value: Any) -> str:
    """Set the member at `path` in the JSON text, making what is missing on the way; every other byte stays.

    New members look like their neighbours: indentation, newlines, one line or many.
    """
    depth, at, inside = 0, _skip(text, 0), _members(text, _skip(text, 0))
    while found := [member for member in inside if member.key == path[depth]]:
        last = found[-1]  # of a name that occurs twice, the last one counts
        depth += 1
        if depth == len(path):
            return text[: last.value] + json.dumps(value, ensure_ascii=False) + text[last.end :]
        at, inside = last.value, _members(text, last.value)
    for step in reversed(path[depth + 1 :]):
        value = {step: value} if isinstance(step, str) else [value]

    newline = "\r\n" if "\r\n" in text else "\n"
    top = _skip(text, 0) + 1
    unit = text[top : _skip(text, top)].rpartition("\n")[2] or "  "
    gap = text[at + 1 : inside[0].start] if inside else newline + unit * (depth + 1)
    shown = json.dumps(value, ensure_ascii=False, indent=unit if "\n" in gap else None)
    entry = shown.replace("\n", newline + gap.rpartition("\n")[2])
    if isinstance(path[depth], str):
        entry = f"{json.dumps(path[depth])}: {entry}"
    if inside:
        return text[: inside[-1].end] + "," + (gap or " ") + entry + text[inside[-1].end :]
    return text[: at + 1] + gap + entry + newline + unit * depth + text[_skip(text, at + 1) :]


def drop(text: str, path: Way) -> str:
    """Remove the member at `path`, which is there, from the JSON text; every other byte stays."""
    at, inside, index = _skip(text, 0), list[Member](), 0
    for name in path:
        inside = _members(text, at)
        index = max(number for number, member in enumerate(inside) if member.key == name)
        opening, at = at, inside[index].value
    if index:
        return text[: inside[index - 1].end] + text[inside[index].end :]
    if len(inside) > 1:
        return text[: inside[0].start] + text[inside[1].start :]
    return text[: opening + 1] + text[_skip(text, inside[0].end) :]


def parse(text: str | None, where: Path) -> Json:
    """The settings in `text` (None or blank: none); raises ConfigError for what Claude Code could not read either."""
    try:
        tree = json.loads(text.lstrip("\ufeff")) if text and text.strip("\ufeff \t\r\n") else {}
        deny = tree.get("permissions", {}).get("deny", [])
        if not isinstance(tree.get("env", {}), dict) or not isinstance(deny, list):
            raise AttributeError
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON: {error}.\nNothing was changed. Mend it first.") from None
    except AttributeError:
        why = '"env" and "permissions" must be objects, "deny" in it a list'
        raise ConfigError(
            f"{where} has not the shape of settings: {why}.\nNothing was changed. Mend it first."
        ) from None
    return dict(tree)


def merge(text: str | None, wanted: Json, where: Path) -> str:
    """The settings with the block's entries in them."""
    tree = parse(text, where)
    text = text if text and tree else "{}\n"
    for name, value in wanted["env"].items():
        if tree.get("env", {}).get(name) != value:
            text = put(text, ("env", name), value)
    deny = tree.get("permissions", {}).get("deny", [])
    return text if DENIED in deny else put(text, ("permissions", "deny", len(deny)), DENIED)


def take_back(text: str | None, before: str | None, written: str | None, where: Path) -> str | None:
    """The settings without our entries; None when there was no file. `before` and `written` are the two copies.

    Not edited since: what was there before. Edited: the entries that still are as written go, or go back.
    """
    if text == written or text is None:
        return before
    now, old, new = parse(text, where), parse(before, where), parse(written, where)
    for name, value in new.get("env", {}).items():
        was = old.get("env", {}).get(name)
        if value != was and now.get("env", {}).get(name) == value:
            text = drop(text, ("env", name)) if was is None else put(text, ("env", name), was)
    denied = [tree.get("permissions", {}).get("deny", []) for tree in (now, old)]
    if DENIED in denied[0] and DENIED not in denied[1]:
        text = drop(text, ("permissions", "deny", denied[0].index(DENIED)))
    if parse(text, where).get("permissions") == {"deny": []} and "permissions" not in old:
        text = drop(text, ("permissions",))
    if parse(text, where).get("env") == {} and "env" not in old:
        text = drop(text, ("env",))
    return None if before is None and not parse(text, where) else text


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.\nNothing was changed.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.\nNothing was changed. Mend it first.") from None


def config_folder(environ: Mapping[str, str]) -> Path:
    given = environ.get("CLAUDE_CONFIG_DIR")
    return Path(given).expanduser().absolute() if given else Path(environ.get("HOME") or Path.home()) / ".claude"


class UserSettings:
    """settings.json with its two copies. A link is followed for the file itself; the copies stand beside the link."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = config_folder(environ) / "settings.json"
        self.target = Path(os.path.realpath(self.path))
        self.before, self.written = (self.path.with_name(f"settings.json.{word}-cortex") for word in ("before", "with"))
        self.text = self.original = _read(self.path)
        self.pointed = self.written.exists()
        if self.pointed:
            self.original = take_back(self.text, _read(self.before), _read(self.written), self.path)
        known = self.before if self.before.exists() else self.target
        self.mode = stat.S_IMODE(known.stat().st_mode) if known.exists() else 0o600  # as it was before us
        self.read_only = self.target.exists() and not self.target.stat().st_mode & stat.S_IWUSR

    def _write(self, text: str) -> None:
        if self.read_only:
            raise ConfigError(f"{self.target} is read-only; nothing was changed.\nUnlock it: chmod u+w {self.target}")
        write_private(self.target, text)

    def point(self, wanted: Json) -> list[str]:
        """Write the block's entries; returns what to tell the user. Raises ConfigError, with nothing changed."""
        text, url = merge(self.original, wanted, self.path), wanted["env"]["ANTHROPIC_BASE_URL"]
        if text == self.text:
            return [f"{self.path} points Claude Code at {url} already."]
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.original is not None:
                write_private(self.before, self.original)
                self.before.chmod(self.mode)
            write_private(self.written, text)
            self._write(text)
        except (ConfigError, OSError):
            for copy in () if self.pointed else (self.before, self.written):
                with suppress(OSError):
                    copy.unlink()
            raise
        said = [f"{self.path} now points Claude Code at {url}.", "Take it back with: python3 point_claude.py --undo"]
        if self.mode & 0o077 and not self.pointed:
            said.append(f"Other users could read {self.target}; now only you can, because it holds the proxy's key.")
        if self.path.is_symlink():
            said.append(f"It is a link: keep {self.target} out of version control, it holds the proxy's key.")
        return said

    def undo(self) -> list[str]:
        """Take the entries out; returns what to tell the user. Raises ConfigError, with nothing changed."""
        if not self.pointed:
            return [f"{self.path} was not changed by this bundle: nothing to take back."]
        if self.original is None:
            self.target.unlink(missing_ok=True)
        elif self.original != self.text:
            self._write(self.original)
        if self.original is not None:
            self.target.chmod(self.mode)
        for copy in (self.before, self.written):
            copy.unlink(missing_ok=True)
        return [f"{self.path} no longer points at the proxy." + ("" if self.original else " There was none before.")]


# ------------------------------------------------------------------------------------------------------------- check


class Problem(NamedTuple):
    """What keeps a plain `claude` from the proxy, and what mends it; `final`: it keeps `make claude` from it too."""

    found: str
    mend: str
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
    return [(EXPORTED, {"env": dict(environ)}), *((str(path), parse(_read(path), path)) for path in paths)]


def check(port: int, key: str, environ: Mapping[str, str], folder: Path) -> list[Problem]:
    """What keeps a `claude` started in `folder` from the proxy on `port` with that key; none when nothing does."""
    found = sources(environ, folder)
    winners = {name: (str(value), where) for where, tree in found for name, value in tree.get("env", {}).items()}
    values = {name: value for name, (value, _) in winners.items()}

    def problem(wrong: str, where: str, mend: str) -> Problem:
        if where.startswith(str(MANAGED)):
            return Problem(f"{wrong}: {where}", "Only who manages this machine can change that file", final=True)
        return Problem(f"{wrong}: {where}", mend)

    def ours(name: str, wrong: str, elsewhere: str) -> Problem:
        where = winners.get(name, ("", "no setting"))[1]
        renewable = where in {"no setting", EXPORTED, str(config_folder(environ) / "settings.json")}
        return problem(wrong, where, "python3 point_claude.py" if renewable else f"{elsewhere} {where}")

    others = []
    for name in RIVALS:
        value, where = winners.get(name, ("", ""))
        if value if name.endswith("KEY") else value.lower() in {"1", "true", "yes", "on"}:
            mend = f"unset {name}" if where == EXPORTED else f"Take {name} out of {where}"
            others.append(problem(f"{name} must not be set, and is", where, mend))
    for where, tree in found:
        if "apiKeyHelper" in tree:
            mend = f"Take apiKeyHelper out of {where}"
            others.append(problem("apiKeyHelper adds a key that is not the proxy's", where, mend))
    around = around_proxy(values)
    for name, value in around.items():
        if value != values.get(name, ""):
            wrong = f"requests to 127.0.0.1 go through the company proxy, {name} does not except it"
            others.append(ours(name, wrong, f"Add 127.0.0.1 to {name} in"))

    url, given = f"http://127.0.0.1:{port}", values.get("ANTHROPIC_BASE_URL", "")
    if not given:
        return [NOT_POINTED, *(one for one in others if one.final)]
    problems = []
    if given.rstrip("/") not in {url, "" if around else f"http://localhost:{port}"}:
        host = "what is no URL"
        with suppress(ValueError):  # a broken IPv6 address; the whole is not shown, it may hold a password
            host = urlsplit(given).hostname or host
        wrong = f"ANTHROPIC_BASE_URL leads to {host}, not to {url}"
        problems.append(ours("ANTHROPIC_BASE_URL", wrong, "Take ANTHROPIC_BASE_URL out of"))
    if values.get("ANTHROPIC_AUTH_TOKEN", "") != key:
        wrong = "ANTHROPIC_AUTH_TOKEN is not the proxy's key"
        problems.append(ours("ANTHROPIC_AUTH_TOKEN", wrong, "Take ANTHROPIC_AUTH_TOKEN out of"))
    return [*problems, *others]


# ------------------------------------------------------------------------------------------------------- command line


def printed(settings: Settings, environ: Mapping[str, str]) -> str:
    """The block with the place of the key instead of the key."""
    tree = block(settings, environ)
    place = "LITELLM_MASTER_KEY" if settings.given_master_key else settings.folder / ".master_key"
    tree["env"]["ANTHROPIC_AUTH_TOKEN"] = f"<the key in {place}>"
    return to_text(tree)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description="Point Claude Code at the proxy. Without an option: for all runs, in your settings.json."
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--undo", action="store_true", help="take that back")
    choice.add_argument("--run", nargs="...", metavar="ARGS", help="this run only: start claude with ARGS")
    choice.add_argument("--file", action="store_true", help="write a file for `claude --settings`, print that command")
    choice.add_argument("--print", action="store_true", help="show the block, without the key")
    choice.add_argument("--check", action="store_true", help="say what keeps a claude started here from the proxy")
    options = parser.parse_args(words)
    try:
        if options.undo:  # needs no configuration, so that it works when that is gone
            print("\n".join(UserSettings(os.environ).undo()))
            return 0
        settings = load_settings()
        if options.check:
            problems = check(settings.proxy_port, master_key(settings), os.environ, Path.cwd())
            lines = [f"{problem.found}\n  {problem.mend}" for problem in problems]
            print("\n".join(lines) or f"A claude started here reaches http://127.0.0.1:{settings.proxy_port}.")
            return 1 if problems else 0
        if options.run is not None:
            run(settings, options.run, os.environ)
        elif options.file:
            claude = find_claude(os.environ) if not shutil.which("claude") else "claude"
            print(shlex.join([claude, "--settings", str(write_run_file(settings, os.environ))]))
        elif options.print:
            print(printed(settings, os.environ), end="")
        else:
            user = UserSettings(os.environ)
            own = parse(user.original, user.path).get("env", {})
            print("\n".join(user.point(block(settings, {**os.environ, **own}))))
    except ConfigError as error:
        print(f"point_claude.py: {error}", file=sys.stderr, flush=True)
        return EX_CONFIG
    except OSError as error:
        print(f"point_claude.py: cannot change {error.filename}: {error.strerror}.", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
