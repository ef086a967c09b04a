"""bundle/render.py: what becomes of the template, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundle.claude_models import aliases
from bundle.cortex.catalogue import Listed
from bundle.errors import ConfigError
from bundle.model_list import ModelList
from bundle.render import check_template, render, render_config, template_rows
from bundle.settings import CLAUDE_ROUTES, Settings
from bundle.tokens import sign
from tests.user import NOW, put

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


def test_a_template_from_before_that_names_the_type_of_the_token_cannot_name_a_wrong_one() -> None:
    old = "extra_headers: {X-Snowflake-Authorization-Token-Type: KEYPAIR_JWT, X-Mine: a}, api_base"
    text = "model_list:\n" + (ROW % ("a", "openai/x")).replace("api_base", old) + "\n" + GENERAL
    for kind in ("KEYPAIR_JWT", "PROGRAMMATIC_ACCESS_TOKEN"):
        row = yaml.safe_load(render(text, VALUES, token_type=kind))["model_list"][0]
        expected = {"X-Snowflake-Authorization-Token-Type": kind, "X-Mine": "a"}
        assert row["litellm_params"]["extra_headers"] == expected


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
        ("model_list: [", ", line 1: this is not valid YAML: expected the node content"),
        ("a: 1\nmodel_list:\n  - a: 1\n   - b: 2\n", ", line 4: this is not valid YAML"),
        ("a: \x07", ": this is not valid YAML: "),
        ("day: 2026-99-99", ": this is not valid YAML: month must be"),
        ("- a", ", line 1: the file must be a mapping"),
        (GENERAL, ": model_list has no rows"),
        (GENERAL + "model_list: []", ", line 2: model_list has no rows"),
        ("model_list:\n" + ROW % ("a", "openai/x") + "\n- {model_name: a}\n" + GENERAL, ", line 3: a row of model_"),
        ("model_list:\n" + ROW % ("a", "openai/x"), ": general_settings.master_key must be"),
        (
            "model_list:\n" + ROW % ("a", "openai/x") + "\ngeneral_settings:\n  master_key: mine\n",
            ", line 4: general_settings.master_key must be",
        ),
        (
            "# - opnai/x\nmodel_list:\n\n" + ROW % ("a", "opnai/x") + "\n" + GENERAL,
            ", line 4: the row a: a model on Cortex starts with openai/",
        ),
        (
            "model_list:\n" + ROW[:-1] % ("a", "x") + ", model_info: {max_output_tokens: lots}}\n" + GENERAL,
            ", line 2: the row a: max_output_tokens must be a whole number",
        ),
        (
            "# ${NOPE}\nmodel_list:\n" + ROW % ("a", "openai/${NOPE}") + "\n" + GENERAL,
            ", line 3: unknown placeholder ${NOPE}. The known ones are: ${CORTEX_API_BASE}, ",
        ),
        ("model_list:\n" + ROW % ("a", "openai/${}") + "\n" + GENERAL, ", line 2: unknown placeholder ${}"),
    ],
)
def test_a_mistake_in_the_template_is_one_message_with_its_line(template: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        render(template, VALUES)
    first, fix = str(refused.value).splitlines()
    assert first.startswith(f"litellm_config.template.yaml{said}")
    assert fix.startswith("To see what was changed in that file: git -C ")


def test_before_a_start_a_mistake_in_the_template_is_said_to_be_not_in_force(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_template(settings)
    broken = tmp_path / "litellm_config.template.yaml"
    broken.write_text(settings.template_path.read_text().replace("openai/claude-opus-4-6 }", "opnai/claude-opus-4-6 }"))
    monkeypatch.setattr(Settings, "template_path", broken)
    line = next(n for n, text in enumerate(broken.read_text().splitlines(), 1) if "model_name: claude-opus-4-6" in text)
    for exists, says in ((False, "Nothing was started"), (True, "The last good one stays in use")):
        if exists:
            put(settings.config_path, "")
        with pytest.raises(ConfigError, match=rf"yaml, line {line}: (.*\n)*This template is NOT in force\. {says}\."):
            check_template(settings)


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


@pytest.mark.parametrize("removed", ["#", "# ?"])
def test_a_row_that_is_a_comment_works_when_its_marks_are_removed_by_hand_or_by_an_editor(
    settings: Settings, removed: str
) -> None:
    text = settings.template_path.read_text()
    rows_of_three_lines = r"^  #- \{.*\n  #.*\n  #.*$"
    text = re.sub(rows_of_three_lines, lambda row: re.sub(rf"(?m)^  {removed}", "  ", row[0]), text, flags=re.MULTILINE)
    document = yaml.safe_load(render(text, VALUES))
    rows = {row["litellm_params"]["model"]: row for row in document["model_list"]}
    assert {"openai/openai-gpt-4.1", "openai/openai-gpt-5.1", "openai/openai-gpt-5.2"} <= rows.keys()
    row = rows["openai/llama4-maverick"]
    assert (row["model_name"], row["model_info"]["max_output_tokens"]) == ("llama4-maverick", 8192)
    assert row["model_info"]["cortex"] is True


def test_the_recipe_of_the_template_makes_another_model_answer_for_a_family(settings: Settings) -> None:
    text = settings.template_path.read_text()
    recipe = re.search(r"((?:  #   .*\n)+)  # \(Rows", text)
    shipped = re.search(r"  - model_name: claude-haiku-\*\n(?:    .*\n)+", text)
    assert recipe
    assert shipped
    edited = text.replace(shipped[0], re.sub(r"(?m)^  #   ", "  ", recipe[1]))
    asked = aliases(yaml.safe_load(render(edited, VALUES))["model_list"])["ANTHROPIC_DEFAULT_HAIKU_MODEL"]
    rows = {row["model_name"]: row["litellm_params"]["model"] for row in yaml.safe_load(edited)["model_list"]}
    assert asked not in rows  # so the row with the * answers
    assert asked.startswith("claude-haiku-")
    assert rows["claude-haiku-*"] == "openai/openai-gpt-4.1"


# --------------------------------------------------------------------------------------------------------------- newest


def filled(name: str, model: str = "openai/newest", route: str = "chat", *models: Listed) -> dict[str, Any]:
    text = "model_list:\n" + ROW % (name, model) + "\n" + GENERAL
    row = yaml.safe_load(render(text, VALUES, route, ModelList("", "", 0, models)))["model_list"][0]
    return {"model": row["litellm_params"]["model"], **row["model_info"]}


def test_newest_is_filled_in_with_its_window_its_limit_and_the_older_ones() -> None:
    row = filled(
        "claude-opus-*", "openai/newest", "chat", Listed("claude-opus-4-8", "GA"), Listed("claude-opus-5", "PUPR")
    )
    assert row["model"] == "openai/claude-opus-4-8"
    assert (row["max_input_tokens"], row["max_output_tokens"]) == (1_000_000, 128_000)
    assert row["newest"][:2] == ["claude-opus-4-8", "claude-opus-4-7"]


def test_newest_follows_the_route_and_a_row_s_own_prefix() -> None:
    assert filled("claude-haiku-*", route="messages")["model"] == "snowflake/claude-haiku-4-5"
    assert filled("claude-haiku-*", "snowflake/newest")["model"] == "snowflake/claude-haiku-4-5"
    assert filled("claude-*")["model"] == "openai/claude-sonnet-5"


@pytest.mark.parametrize("name", ["my-model", "claude-opus-5", "opus-*", "claude-nothing-*"])
def test_newest_in_a_row_of_no_family_is_a_mistake_with_its_line(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"litellm_config.template.yaml, line 2: the row .* Write a model's name there"
    ):
        filled(name)


def test_what_the_row_says_of_a_model_counts_more_than_what_is_known() -> None:
    text = "model_list:\n" + (ROW % ("claude-opus-5", "openai/claude-opus-5"))[:-1]
    row = f"{text}, model_info: {{max_input_tokens: 300000, max_output_tokens: 16384}}}}\n{GENERAL}"
    info = yaml.safe_load(render(row, VALUES))["model_list"][0]["model_info"]
    assert (info["max_input_tokens"], info["max_output_tokens"]) == (300_000, 16_384)


@pytest.mark.parametrize("value", ["0", "-5", "many", "true", "1.5"])
def test_a_window_that_is_no_count_is_a_mistake(value: str) -> None:
    text = (
        "model_list:\n" + (ROW % ("a", "openai/a"))[:-1] + f", model_info: {{max_input_tokens: {value}}}}}\n{GENERAL}"
    )
    with pytest.raises(ConfigError, match="the row a: max_input_tokens must be a whole number"):
        render(text, VALUES)


def test_a_model_that_the_account_does_not_list_is_marked_and_one_of_another_service_is_not() -> None:
    models = [Listed("claude-opus-4-8", "GA")]
    assert filled("claude-opus-4-8", "openai/claude-opus-4-8", "chat", *models).get("listed") is None
    assert filled("x", "openai/claude-opus-4-7", "chat", *models)["listed"] is False
    assert filled("x", "openai/claude-opus-4-7", "chat").get("listed") is None, "nothing is known of the account"


@pytest.mark.parametrize("name", ["newst", "Newest", "NEWEST", "newset"])
def test_a_word_that_is_almost_newest_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no model {name}. Did you mean newest?"):
        filled("claude-opus-*", f"openai/{name}")
