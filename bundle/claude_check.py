"""Why a `claude` that is started here does not use the proxy, or asks for a model that nothing answers for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import yaml

from bundle import claude_settings
from bundle.bootstrap import script
from bundle.claude_settings import EXPORTED, Json, around_proxy, config_folder, is_conflict, settings_in_force
from bundle.cortex.names import has_row
from bundle.errors import ConfigError, printable
from bundle.settings import Settings


class Problem(NamedTuple):
    """A reason why `claude` does not use the proxy, and the fix; `final`: the reason stops `make claude` too."""

    found: str
    fix: str
    final: bool = False


ALL_RUNS = script("point_claude.py")
NOT_POINTED = Problem(
    "nothing points Claude Code at the proxy",
    f"For all runs: {ALL_RUNS}; for one run: {script('point_claude.py', '--run')}",
)
MODELS = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL")
NO_NAMES = frozenset({"default", "best", "opusplan", "inherit"})  # Claude Code puts a model's name in their place


def check(port: int, key: str, environ: Mapping[str, str], folder: Path) -> list[Problem]:
    """The reasons why a `claude` started in `folder` does not use the proxy on `port` with `key`; empty if it does."""
    found = settings_in_force(environ, folder)
    values = {name: str(value) for _, tree in found for name, value in tree.get("env", {}).items()}
    places = {name: where for where, tree in found for name in tree.get("env", {})}

    def wrong_entry(name: str, wrong: str, fix: str = "") -> Problem:
        where = places.get(name, "no setting")
        overwritten = where in {"no setting", EXPORTED, str(config_folder(environ) / "settings.json")}
        return _problem(name, wrong, where, ALL_RUNS if overwritten else fix)

    others = []
    for name in filter(is_conflict, values):
        value = values[name]
        if value if name.endswith("KEY") else value.lower() in {"1", "true", "yes", "on"}:
            others.append(_problem(name, "is set, but must not be", places[name]))
    helpers = [(where, tree["apiKeyHelper"]) for where, tree in found if "apiKeyHelper" in tree]
    if helpers and helpers[-1][1]:
        others.append(_problem("apiKeyHelper", "adds a key that is not the proxy's", helpers[-1][0]))
    around = around_proxy(values)
    wrong = "does not list 127.0.0.1, so the company proxy gets the requests"
    others += [
        wrong_entry(name, wrong, f"Add 127.0.0.1 to {name} in {places.get(name)}")
        for name, value in around.items()
        if value != values.get(name, "")
    ]

    url, given = f"http://127.0.0.1:{port}", values.get("ANTHROPIC_BASE_URL", "")
    if not given:
        return [NOT_POINTED, *(other for other in others if other.final)]
    problems = []
    if given.rstrip("/") != url:  # `localhost` may be ::1, where another user's program can listen
        host = "an invalid URL"
        with suppress(ValueError):  # raised by an invalid IPv6 address
            host = urlsplit(given).hostname or host  # show only the host: the URL may contain a password
        leads = "must not end in /v1" if given.rstrip("/") == f"{url}/v1" else f"leads to {host}, not to {url}"
        problems.append(wrong_entry("ANTHROPIC_BASE_URL", leads))
    if values.get("ANTHROPIC_AUTH_TOKEN", "") != key:
        problems.append(wrong_entry("ANTHROPIC_AUTH_TOKEN", "is not the proxy's key"))
    return [*problems, *others]


def check_models(settings: Settings, environ: Mapping[str, str], folder: Path) -> list[Problem]:
    """The settings that make a `claude` started in `folder` ask for a model that no row of the template answers for,
    and models of an older template. Nothing is said of a template that cannot be read: another check does that."""
    try:
        rows = [row["model_name"] for row in yaml.safe_load(settings.template_path.read_text("utf-8"))["model_list"]]
        old = claude_settings.old_models(settings, environ)
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, ConfigError):
        return []
    problems = [Problem(old.partition(".\n")[0], ALL_RUNS)] if old else []
    asked = dict(_models_asked_for(settings_in_force(environ, folder)))  # the last place counts
    for name, (where, model) in asked.items():
        if model and model.partition("[")[0] not in NO_NAMES and not has_row(model, rows):
            wrong = f"is {printable(model, 100)}, and no row of {settings.template_path.name} answers for that"
            problems.append(_problem(name, wrong, where))
    return problems


def _models_asked_for(found: list[tuple[str, Json]]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(setting, (where, model)) for each setting that names a model."""
    for where, tree in found:
        env = tree.get("env", {})
        yield from ((name, (where, str(env[name]))) for name in MODELS if name in env)
        if isinstance(tree.get("model"), str):
            yield "model", (where, tree["model"])


def _problem(name: str, wrong: str, where: str, fix: str = "") -> Problem:
    final = where.startswith(str(claude_settings.MANAGED))
    fix = fix or (f"unset {name}" if where == EXPORTED else f"Take {name} out of {where}")
    return Problem(
        f"{name} {wrong}: {where}", "Only whoever manages this machine can change it" if final else fix, final
    )
