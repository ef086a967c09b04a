"""What Claude Code is told about the models: the aliases of /model with their windows, and what it starts with.

The problem: Claude Code derives the size of a context window from a model's name, and each release knows other names.
The mechanism, measured with 2.1.197 and 2.1.332: in both, a name with `[1m]` has a window of a million. (Claude Code
does not send the suffix.) Without it, the names of models with 200,000 tokens have that window in both. For a name that
it does not know, the older one takes 200,000, the newer one CLAUDE_CODE_MAX_CONTEXT_TOKENS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bundle.cortex.catalogue import FAMILIES, LARGE_WINDOW, NEWEST, WINDOW, readable, window_of
from bundle.cortex.names import has_row, row_for
from bundle.errors import ConfigError, printable
from bundle.render import TEMPLATE, model_of, template_rows
from bundle.settings import Settings

Json = dict[str, Any]

ALIAS = "ANTHROPIC_DEFAULT_"  # the variables that set the model of an alias start with it
LATEST = "-latest"  # behind a name: the family's row answers
SUFFIX = "[1m]"  # behind a name: Claude Code then takes the window for a million tokens
NO_LARGE_WINDOW = "CLAUDE_CODE_DISABLE_1M_CONTEXT"
WINDOW_OF_UNKNOWN = {"CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(WINDOW)}
# The prompt and the requested output may count together (docs/cortex.md#status-context-full). So Claude Code must
# compact before the prompt leaves no room for an answer. 88 percent (of the window without 20,000) is 862,400 tokens of
# a million, where up to 128,000 are requested, and 158,400 of 200,000, where 32,000 are.
PERCENT = {"CLAUDE_AUTOCOMPACT_PCT_OVERRIDE": "88"}
# Without this entry Claude Code compacts some models only after a refusal. A smaller window of the model counts.
COMPACTION = {"autoCompactWindow": LARGE_WINDOW}
START_EFFORTS = ("low", "medium", "high")  # docs/cortex.md#chat-reasoning: Cortex knows no others
START_MODEL, START_EFFORT = "sonnet", "medium"  # the README says why
# What Claude Code starts with: the entry that sets it, and the variable that has priority over that entry.
MODEL, EFFORT = ("model", "ANTHROPIC_MODEL"), ("effortLevel", "CLAUDE_CODE_EFFORT_LEVEL")
# Claude Code puts a model's name in the place of these words.
BEST, PLAN = "best", "opusplan"


def rows_of(settings: Settings) -> list[Json]:
    """The rows that are in force. A mistake in the template is not: then those of the last good one are, in
    litellm_config.yaml. Raises ConfigError."""
    try:
        return template_rows(settings, settings.claude_route)
    except ConfigError:
        try:
            rows: list[Json] = yaml.safe_load(settings.config_path.read_text(encoding="utf-8"))["model_list"]
            aliases(rows)  # whether these are rows at all
        except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError):
            rows = []
        if not rows:
            raise
        return rows


def variables(rows: Sequence[Json]) -> dict[str, str]:
    """The variables of Claude Code that follow from the rows of the rendered template."""
    small = all(_window(row) < LARGE_WINDOW for row in rows)
    return {**aliases(rows), **({NO_LARGE_WINDOW: "1"} if small else {})}


def aliases(rows: Sequence[Json]) -> dict[str, str]:
    """The variables that set the model of each alias of /model, such as `opus`.

    A family's model is the model in its row with the *. The alias asks for it by its name, if that name leads to this
    model, and Claude Code does not take it for a larger one. Else the alias asks for a name that no release knows.

    For a row that says `newest`, `-latest` stands behind the name. Claude Code treats such a name like the model's own.
    But no row has it, so the family's row answers, and with it the next older model if Cortex refuses this one.
    """
    named = {row["model_name"]: row for row in rows}
    found = {}
    for family in FAMILIES:
        row = named.get(f"claude-{family}-*")
        if row is None:
            continue
        model, large = model_of(row), _window(row) >= LARGE_WINDOW
        asked = f"{model}{LATEST}" if NEWEST in (row.get("model_info") or {}) else model
        answers = named.get(row_for(asked, named) or "")
        fits = answers is not None and model_of(answers) == model and (_window(answers) >= LARGE_WINDOW) == large
        fits = fits and (large or window_of(model) < LARGE_WINDOW)
        name = f"{ALIAS}{family.upper()}_MODEL"
        found[name] = (asked if fits else f"claude-{family}{LATEST}") + (SUFFIX if large else "")
        found[f"{name}_NAME"] = readable(model)
        found[f"{name}_DESCRIPTION"] = f"{model} on Snowflake Cortex"
    return found


def start_entries(settings: Settings, rows: Sequence[Json], theirs: Mapping[str, Any]) -> Json:
    """The entries `model` and `effortLevel`, and an `env` that switches off what has priority over them.

    `theirs` is the user's own settings, with all variables as `env`: what the user has chosen there stays, unless
    CLAUDE_START_MODEL or CLAUDE_START_EFFORT is set. Raises ConfigError for a model that no row answers for, and for an
    effort that Cortex does not know.
    """
    names = [row["model_name"] for row in rows]
    given = settings.start_model
    where = f"It is set in {settings.folder / '.env'}, or exported."
    if given and given not in {BEST, PLAN} and not has_row(given, names):
        wrong = f"CLAUDE_START_MODEL is {printable(given, 60)!r}, and no row of {TEMPLATE} answers for that name"
        raise ConfigError(f"{wrong}.\n{where} Try opus, sonnet or haiku.")
    if settings.start_effort and settings.start_effort not in START_EFFORTS:
        wrong = f"CLAUDE_START_EFFORT is {printable(settings.start_effort, 60)!r}; it must be low, medium or high"
        raise ConfigError(f"{wrong}.\n{where}")
    default = START_MODEL if has_row(START_MODEL, names) else ""
    entries: Json = {}
    env: dict[str, str] = {}
    choices = ((MODEL, _with_window(given, rows), default), (EFFORT, settings.start_effort, START_EFFORT))
    for (entry, variable), ours, otherwise in choices:
        if ours or (otherwise and not _chosen(theirs, entry, variable)):
            entries[entry] = ours or otherwise
        if ours and theirs.get("env", {}).get(variable):
            env[variable] = ""
    return {**entries, "env": env}


def check_start(settings: Settings) -> None:
    """Raises ConfigError if CLAUDE_START_MODEL or CLAUDE_START_EFFORT is wrong."""
    start_entries(settings, rows_of(settings), {})


def start_words(entries: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What Claude Code starts with, for people, and what sets another choice."""
    model, effort = (
        printable(entries.get(entry) or _chosen(theirs, entry, variable), 60) for entry, variable in (MODEL, EFFORT)
    )
    others = "CLAUDE_START_MODEL and CLAUDE_START_EFFORT in .env set others."
    return f"Claude Code starts with {model or 'its own default model'}, at {effort or 'its own'} effort. {others}"


def _chosen(theirs: Mapping[str, Any], entry: str, variable: str) -> str:
    """What the user's settings say for `entry`, or "". Newer releases keep an effort beside each model's name."""
    by_model = theirs.get("modelSettings")
    kept = [found.get(entry) for found in by_model.values() if isinstance(found, dict)] if by_model else []
    found = (theirs.get("env", {}).get(variable), theirs.get(entry), *kept)
    return next((str(value) for value in found if value), "")


def compaction(theirs: Mapping[str, Any]) -> Json:
    """The entries that make Claude Code compact in time. What the user has set, as /autocompact does, stays."""
    entries = {name: value for name, value in COMPACTION.items() if not theirs.get(name)}
    env = {name: value for name, value in PERCENT.items() if not theirs.get("env", {}).get(name)}
    return {**entries, "env": env}


def _with_window(model: str, rows: Sequence[Json]) -> str:
    """The name of a model with SUFFIX, if the row that answers for it has a large window. Aliases stay."""
    if model in {"", BEST, PLAN, *FAMILIES} or model.endswith(SUFFIX):
        return model
    named = {row["model_name"]: row for row in rows}
    row = named.get(row_for(model, named) or "")
    return model + SUFFIX if row and _window(row) >= LARGE_WINDOW else model


def _window(row: Json) -> int:
    """The context window of a row in tokens. (A configuration of an older release does not say it.)"""
    return int((row.get("model_info") or {}).get("max_input_tokens") or window_of(model_of(row)))
