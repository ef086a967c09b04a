"""bundle/render.py: what becomes of the template, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from bundle.errors import ConfigError
from bundle.render import render, render_config, template_rows
from bundle.settings import CLAUDE_ROUTES, Settings
from bundle.tokens import sign
from tests.user import NOW

VALUES = {"SNOWFLAKE_JWT": "the.token.here", "LITELLM_MASTER_KEY": "sk-key", "CORTEX_URL": "https://h"}
ROW = "- {model_name: %s, litellm_params: {model: '%s', api_key: '${SNOWFLAKE_JWT}', api_base: '${CORTEX_API_BASE}'}}"
GENERAL = "general_settings: {master_key: '${LITELLM_MASTER_KEY}'}\n"


def rendered(*rows: str, more: str = "") -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(render("model_list:\n" + "\n".join(rows) + "\n" + GENERAL + more, VALUES))
    return document


def test_the_prefix_alone_decides_the_route() -> None:
    document = rendered(ROW % ("a", "openai/x"), ROW % ("b", "snowflake/x"))
    bases = [row["litellm_params"]["api_base"] for row in document["model_list"]]
    assert bases == ["https://h/api/v2/cortex/v1", "https://h/api/v2"]


def test_one_word_changes_the_route_of_all_claude_models_and_of_nothing_else() -> None:
    other = "- {model_name: o, litellm_params: {model: openai/claude-x, api_key: own, api_base: 'https://elsewhere'}}"
    models = ("openai/claude-x", "snowflake/claude-y", "openai/openai-gpt-5", "openai/gemini-claude")
    text = "model_list:\n" + "\n".join([*(ROW % (model, model) for model in models), other]) + "\n" + GENERAL

    def rows(word: str) -> list[tuple[str, str]]:
        params = [row["litellm_params"] for row in yaml.safe_load(render(text, VALUES, word))["model_list"]]
        return [(param["model"], param["api_base"].removeprefix("https://h/api/v2")) for param in params]

    chat = [
        ("openai/claude-x", "/cortex/v1"),
        ("snowflake/claude-y", ""),
        ("openai/openai-gpt-5", "/cortex/v1"),
        ("openai/gemini-claude", "/cortex/v1"),
        ("openai/claude-x", "https://elsewhere"),
    ]
    assert rows("chat") == chat
    assert render(text, VALUES) == render(text, VALUES, "chat")
    assert rows("messages") == [("snowflake/claude-x", ""), *chat[1:]]
    # The proxy follows rows by their ids.
    ids = [yaml.safe_load(render(text, VALUES, word))["model_list"][0]["model_info"]["id"] for word in CLAUDE_ROUTES]
    assert ids[0] != ids[1]


def test_the_shipped_rows_of_claude_models_follow_the_word(settings: Settings) -> None:
    for word, provider in CLAUDE_ROUTES.items():
        rendered = render_config(replace(settings, claude_route=word), sign(settings, NOW))
        models = {row["litellm_params"]["model"] for row in yaml.safe_load(rendered)["model_list"]}
        assert {model.partition("/")[0] for model in models} == {provider}
        assert models == {row["litellm_params"]["model"] for row in template_rows(settings, word)}


def test_a_value_cannot_change_the_structure() -> None:
    nasty = {**VALUES, "LITELLM_MASTER_KEY": 'x"}\nmodel_list: [] #: &a *b'}
    document = yaml.safe_load(render("model_list:\n" + ROW % ("a", "openai/x") + "\n" + GENERAL, nasty))
    assert document["general_settings"]["master_key"] == nasty["LITELLM_MASTER_KEY"]
    assert len(document["model_list"]) == 1


def test_a_row_keeps_its_id_over_new_tokens_and_changes_it_with_its_content() -> None:
    before, edited = rendered(ROW % ("a", "openai/x")), rendered(ROW % ("a", "openai/y"))
    text = "model_list:\n" + ROW % ("a", "openai/x") + "\n" + GENERAL
    renewed = yaml.safe_load(render(text, {**VALUES, "SNOWFLAKE_JWT": "another"}))
    ids = [document["model_list"][0]["model_info"]["id"] for document in (before, renewed, edited)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.keeps("token-to-snowflake-only")
def test_a_row_with_its_own_key_and_address_does_not_get_the_token() -> None:
    other = "- {model_name: o, litellm_params: {model: openai/x, api_key: own, api_base: 'https://elsewhere'}}"
    document = rendered(ROW % ("a", "openai/x"), other)
    assert [row["model_info"]["cortex"] for row in document["model_list"]] == [True, False]
    assert document["model_list"][1]["litellm_params"] == {
        "model": "openai/x",
        "api_key": "own",
        "api_base": "https://elsewhere",
    }


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("model_list: [", "not valid YAML"),
        ("- a", "must be a mapping"),
        (GENERAL, "no rows"),
        ("model_list: [{model_name: a}]\n" + GENERAL, "row 1 of model_list"),
        ("model_list:\n" + ROW % ("a", "openai/x"), "master_key"),
        (
            "model_list:\n" + ROW % ("a", "opnai/x") + "\n" + GENERAL,
            r"row 1 \(a\): a model on Cortex starts with openai/",
        ),
        (
            "model_list:\n" + ROW[:-1] % ("a", "x") + ", model_info: {max_output_tokens: lots}}\n" + GENERAL,
            "whole number",
        ),
        ("model_list:\n" + ROW % ("a", "openai/${NOPE}") + "\n" + GENERAL, r"unknown placeholder \$\{NOPE\}"),
        ("model_list:\n" + ROW % ("a", "openai/${}") + "\n" + GENERAL, r"unknown placeholder \$\{\}"),
    ],
)
def test_a_broken_template_is_refused_with_what_is_wrong(template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        render(template, VALUES)


def test_the_shipped_template_gives_every_family_a_catch_all_and_the_settings_that_are_needed(
    settings: Settings,
) -> None:
    document = yaml.safe_load(render_config(settings, sign(settings, NOW)))
    rows = {row["model_name"]: row for row in document["model_list"]}
    assert rows["claude-sonnet-4-5-20250929"]["litellm_params"]["model"] == "openai/claude-sonnet-4-5"
    assert rows["claude-haiku-4-5-20251001"]["litellm_params"]["model"] == "openai/claude-haiku-4-5"
    assert {"claude-opus-*", "claude-sonnet-*", "claude-haiku-*", "claude-*"} <= rows.keys()
    assert all(row["model_info"]["max_output_tokens"] and row["model_info"]["cortex"] for row in rows.values())
    assert all(row["model_info"]["supports_reasoning"] is False for row in rows.values())
    assert document["litellm_settings"]["use_chat_completions_url_for_anthropic_messages"] is True
    assert document["router_settings"] == {"disable_cooldowns": True, "num_retries": 0}
    assert not [key for key in document if key.startswith("x-")]


def test_every_commented_example_of_the_template_renders(settings: Settings) -> None:
    text = settings.template_path.read_text()
    text = re.sub(r"^  # (?=- model_name|  litellm_params|  model_info)", "  ", text, flags=re.MULTILINE)
    document = yaml.safe_load(render(text, VALUES))
    models = {row["litellm_params"]["model"] for row in document["model_list"]}
    assert {"openai/openai-gpt-4.1", "openai/gemini-3-pro", "openai/llama4-maverick"} <= models
