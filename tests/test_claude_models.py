"""bundle/claude_models.py: the aliases of /model have the window of the model that answers, and the first one is a
choice. What Claude Code makes of these entries: tests/test_full_context.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.claude_models import (
    ALIAS,
    COMPACTION,
    NO_LARGE_WINDOW,
    PERCENT,
    aliases,
    check_start,
    compaction,
    rows_of,
    start_entries,
    variables,
)
from bundle.cortex.catalogue import FAMILIES, LARGE_WINDOW
from bundle.cortex.names import answering, row_for
from bundle.errors import ConfigError
from bundle.settings import Settings, load_settings
from tests import claude_home
from tests.claude_home import TEMPLATE, answered_by
from tests.user import put

ROWS = claude_home.rows_of(TEMPLATE)


def row(name: str, model: str, **info: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": f"openai/{model}"}, "model_info": info}


def asked_by_opus(*rows: dict[str, Any]) -> str:
    return aliases(rows)[f"{ALIAS}OPUS_MODEL"]


def test_an_alias_asks_by_name_for_the_model_that_answers_with_its_whole_window() -> None:
    found = aliases(ROWS)
    assert {name: found.get(f"{ALIAS}{name.upper()}_MODEL") for name in FAMILIES} == {
        "opus": "claude-opus-5-latest[1m]",
        "sonnet": "claude-sonnet-5-latest[1m]",
        "haiku": "claude-haiku-4-5-latest",
        "fable": None,  # /model would show Sonnet twice
    }
    assert found[f"{ALIAS}OPUS_MODEL_NAME"] == "Claude Opus 5"
    assert found[f"{ALIAS}OPUS_MODEL_DESCRIPTION"] == "claude-opus-5 on Snowflake Cortex"
    assert asked_by_opus(row("claude-opus-*", "claude-opus-9")) == "claude-opus-9[1m]"


def test_the_alias_of_a_row_that_says_newest_asks_for_that_row_and_not_for_one_of_the_model() -> None:
    """Only the family's row has an older model to go on with."""
    own, newest = row("claude-opus-5", "claude-opus-5"), {"newest": ["claude-opus-5", "claude-opus-4-8"]}
    family = row("claude-opus-*", "claude-opus-5", **newest)
    assert asked_by_opus(own, family) == "claude-opus-5-latest[1m]"
    assert row_for("claude-opus-5-latest", [own["model_name"], family["model_name"]]) == "claude-opus-*"
    assert asked_by_opus(own, row("claude-opus-*", "claude-opus-5")) == "claude-opus-5[1m]"
    of_the_user = row("claude-opus-5-*", "claude-opus-4-8")  # it would take the name
    assert asked_by_opus(of_the_user, family) == "claude-opus-latest[1m]"


def test_a_small_model_under_a_large_name_is_asked_for_by_a_name_that_counts_as_small() -> None:
    """A name counts as large in some release if its model has a million tokens, or if it ends in [1m]."""
    for model, asked in (
        ("openai-gpt-4.1", "claude-opus-latest"),  # no row has this name
        ("claude-sonnet-4-5", "claude-opus-latest"),
        ("claude-opus-4-5", "claude-opus-4-5"),
    ):
        assert asked_by_opus(row("claude-opus-*", model)) == asked
        assert answering(asked, ["claude-opus-*"]) == asked
    gpt = row("openai-gpt-4.1", "openai-gpt-4.1")
    assert asked_by_opus(gpt, row("claude-opus-*", "openai-gpt-4.1")) == "openai-gpt-4.1"


def test_a_window_that_the_row_says_counts_more_than_the_model_s_own() -> None:
    small, large = {"max_input_tokens": 200_000}, {"max_input_tokens": LARGE_WINDOW}
    assert asked_by_opus(row("claude-opus-*", "claude-opus-5", **small)) == "claude-opus-latest"
    assert asked_by_opus(row("claude-opus-*", "openai-gpt-4.1", **large)) == "claude-opus-latest[1m]"
    named = row("claude-opus-5", "claude-opus-5", **small)  # so this name leads to another row, with another window
    assert asked_by_opus(named, row("claude-opus-*", "claude-opus-5")) == "claude-opus-latest[1m]"
    elsewhere = row("claude-opus-5", "claude-opus-4-8")
    assert asked_by_opus(elsewhere, row("claude-opus-*", "claude-opus-5")) == "claude-opus-latest[1m]"
    assert asked_by_opus(row("claude-opus-*", "claude-opus-5", max_input_tokens=400_000)) == "claude-opus-latest"


def test_large_windows_are_switched_off_only_where_there_are_none() -> None:
    assert NO_LARGE_WINDOW not in variables(ROWS)
    small = [row("claude-opus-*", "claude-opus-4-5"), row("claude-haiku-*", "claude-haiku-4-5")]
    assert variables(small)[NO_LARGE_WINDOW] == "1"
    assert NO_LARGE_WINDOW not in variables([*small, row("mine", "claude-sonnet-5")])


def test_a_mistake_in_the_template_leaves_the_models_of_the_last_good_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr("bundle.settings.BUNDLE", home)
    put(settings.template_path, "model_list: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        rows_of(settings)
    for broken in ("", "model_list: [", "[]", "model_list: [1]", "model_list: [{model_name: claude-opus-*}]"):
        put(settings.config_path, broken)
        with pytest.raises(ConfigError, match="not valid YAML"):
            rows_of(settings)
    put(
        settings.config_path, "model_list: [{model_name: claude-opus-*, litellm_params: {model: openai/claude-opus-5}}]"
    )
    assert asked_by_opus(*rows_of(settings)) == "claude-opus-5[1m]"


USER_S = (
    {"model": "opus", "effortLevel": "high"},
    {"env": {"ANTHROPIC_MODEL": "m", "CLAUDE_CODE_EFFORT_LEVEL": "low"}},
)


def test_claude_code_starts_with_sonnet_at_medium_effort_unless_the_user_has_chosen(settings: Settings) -> None:
    assert start_entries(settings, ROWS, {}) == {"model": "sonnet", "effortLevel": "medium", "env": {}}
    for theirs in USER_S:
        assert start_entries(settings, ROWS, theirs) == {"env": {}}
    by_model = {"modelSettings": {"claude-opus-5": {"effortLevel": "high"}, "x": {}}}  # how 2.1.332 keeps /effort
    assert start_entries(settings, ROWS, by_model) == {"model": "sonnet", "env": {}}
    assert start_entries(settings, ROWS, {"model": "opus"}) == {"effortLevel": "medium", "env": {}}
    assert "model" not in start_entries(settings, [row("openai-gpt-4.1", "openai-gpt-4.1")], {})


def test_what_env_says_counts_more_than_what_the_user_has_chosen_in_claude_code(settings: Settings) -> None:
    chosen = replace(settings, start_model="haiku", start_effort="low")
    entries = {"model": "haiku", "effortLevel": "low"}
    assert start_entries(chosen, ROWS, USER_S[0]) == {**entries, "env": {}}
    # These variables would have priority over the entries.
    assert start_entries(chosen, ROWS, USER_S[1]) == {**entries, "env": dict.fromkeys(USER_S[1]["env"], "")}


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        *((word, word) for word in ("opus", "best", "opusplan", "sonnet[1m]")),
        ("claude-sonnet-4-6", "claude-sonnet-4-6[1m]"),
        ("claude-sonnet-4-6[1m]", "claude-sonnet-4-6[1m]"),
        ("claude-opus-9", "claude-opus-9[1m]"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("claude-haiku-9", "claude-haiku-9"),
    ],
)
def test_a_name_in_env_gets_the_window_of_the_row_that_answers_for_it(
    settings: Settings, given: str, entry: str
) -> None:
    assert start_entries(replace(settings, start_model=given), ROWS, {})["model"] == entry


@pytest.mark.parametrize("given", ["openai-gpt-4.1", "default", "sonet"])
def test_a_model_in_env_that_no_row_answers_for_is_one_message(settings: Settings, given: str) -> None:
    with pytest.raises(
        ConfigError, match=f"CLAUDE_START_MODEL is '{given}', and no row of litellm_config.template.yaml"
    ):
        start_entries(replace(settings, start_model=given), ROWS, {})


def test_start_model_and_effort_are_settings(environ: dict[str, str]) -> None:
    found = load_settings({**environ, "CLAUDE_START_MODEL": "opus", "CLAUDE_START_EFFORT": "high"})
    assert (found.start_model, found.start_effort) == ("opus", "high")
    assert load_settings({**environ, "CLAUDE_START_EFFORT": "High"}).start_effort == "high"
    with pytest.raises(ConfigError, match="CLAUDE_START_EFFORT is 'max'; it must be low, medium or high"):
        check_start(load_settings({**environ, "CLAUDE_START_EFFORT": "max"}))  # the settings stay valid: tokens go on
    with pytest.raises(ConfigError, match=r"CLAUDE_START_MODEL is 'opsu', .*\n.*/\.env, or exported"):
        check_start(load_settings({**environ, "CLAUDE_START_MODEL": "opsu"}))
    # Claude Code sets this variable for the commands that it runs: it must not be one of ours.
    assert not load_settings({**environ, "CLAUDE_EFFORT": "max"}).start_effort


def test_a_limit_for_compaction_that_the_user_has_set_stays() -> None:
    assert compaction({}) == {**COMPACTION, "env": PERCENT} == {"autoCompactWindow": LARGE_WINDOW, "env": PERCENT}
    assert compaction({"autoCompactWindow": 300_000}) == {"env": PERCENT}
    assert compaction({"env": dict.fromkeys(PERCENT, "50")}) == {**COMPACTION, "env": {}}


def test_a_family_answered_by_another_model_is_named_after_that_model() -> None:
    found = aliases(claude_home.rows_of(answered_by("claude-haiku-*", "openai-gpt-5.2")(TEMPLATE)))
    assert found[f"{ALIAS}HAIKU_MODEL_NAME"] == "OpenAI GPT 5.2"
    assert found[f"{ALIAS}HAIKU_MODEL"] == "claude-haiku-latest"
