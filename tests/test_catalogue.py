"""bundle/cortex/catalogue.py: which model is the newest of its family, and what is known of each model."""

from __future__ import annotations

import pytest

from bundle.cortex.catalogue import (
    DOCUMENTED,
    LARGE_WINDOW,
    WINDOW,
    Listed,
    candidates,
    claude_family,
    output_of,
    readable,
    window_of,
)
from tests.cortex_rules import MODELS, Options


def listed(**stages: str) -> list[Listed]:
    """`claude_opus_5="GA"` and the like."""
    return [Listed(name.replace("_", "-"), stage) for name, stage in stages.items()]


def test_the_newest_generally_available_model_comes_first_and_a_preview_never() -> None:
    account = listed(claude_opus_5="PUPR", claude_opus_4_8="GA", claude_opus_4_7="GA", claude_haiku_4_5="GA")
    assert candidates("opus", account)[0] == "claude-opus-4-8"
    assert "claude-opus-5" not in candidates("opus", account)
    assert candidates("opus", listed(claude_opus_5="GA", claude_opus_4_8="GA"))[0] == "claude-opus-5"


def test_a_model_that_comes_after_this_release_is_the_newest() -> None:
    assert candidates("haiku", listed(claude_haiku_5="GA", claude_haiku_4_5="GA")) == [
        "claude-haiku-5",
        "claude-haiku-4-5",
    ]
    assert candidates("opus", listed(claude_opus_5="GA", claude_opus_5_1="GA", claude_opus_12="PRPR"))[0] == (
        "claude-opus-5-1"
    )


@pytest.mark.parametrize("account", [[], listed(claude_haiku_4_5="GA"), listed(claude_sonnet_9="PRPR")])
def test_without_a_generally_available_model_the_documented_one_comes_first(account: list[Listed]) -> None:
    assert candidates("sonnet", account)[0] == "claude-sonnet-5"


def test_a_documented_model_that_the_account_lists_as_preview_or_ended_does_not_come_first() -> None:
    assert candidates("sonnet", listed(claude_sonnet_5="PUPR"))[0] == "claude-sonnet-4-6"
    assert candidates("opus", listed(claude_opus_5="EOL", claude_opus_4_8="PRPR"))[0] == "claude-opus-4-7"
    assert candidates("haiku", listed(claude_haiku_4_5="LEGACY")) == ["claude-haiku-4-5"]
    assert candidates("haiku", listed(claude_haiku_4_5="EOL")) == ["claude-haiku-4-5"], "there is no other"


def test_the_older_ones_follow_in_order_each_once_without_what_has_ended() -> None:
    account = listed(claude_opus_4_8="GA", claude_opus_4_7="EOL", claude_opus_4_6="LEGACY", claude_opus_4_5="GA")
    assert candidates("opus", account) == ["claude-opus-4-8", "claude-opus-4-6", "claude-opus-4-5"]
    assert candidates("sonnet") == ["claude-sonnet-5", "claude-sonnet-4-6", "claude-sonnet-4-5", "claude-4-sonnet"]


def test_a_variant_of_a_model_is_not_the_newest() -> None:
    assert candidates("opus", [Listed("claude-opus-5-fast", "GA"), Listed("claude-opus-4-8", "GA")])[0] == (
        "claude-opus-4-8"
    )
    assert [claude_family(name) for name in ("claude-opus-5-fast", "claude-4-sonnet", "openai-gpt-5")] == [
        "",
        "sonnet",
        "",
    ]


def test_a_family_without_a_documented_model_has_only_what_the_account_lists() -> None:
    assert candidates("fable") == []
    assert candidates("fable", listed(claude_fable_5="PRPR")) == []
    assert candidates("fable", listed(claude_fable_5="GA")) == ["claude-fable-5"]


def test_windows_and_output_limits_are_those_of_the_contract() -> None:
    for model, limit in MODELS.items():
        assert window_of(model) == Options().window(model), model
        assert output_of(model) == limit, model


def test_a_model_of_the_future_keeps_the_window_of_its_family_and_an_unknown_one_gets_the_small_one() -> None:
    assert window_of("claude-opus-9") == window_of("claude-sonnet-5-2") == LARGE_WINDOW
    assert {window_of(name) for name in ("claude-haiku-5", "db.schema.tuned", "openai-gpt-9", "claude-x")} == {WINDOW}
    assert output_of("db.schema.tuned") is None


def test_the_documented_models_are_in_order_newest_first() -> None:
    for family, names in DOCUMENTED.items():
        assert candidates(family, [Listed(name, "GA") for name in reversed(names)]) == list(names)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("claude-sonnet-4-5-20250929", "Claude Sonnet 4.5"),
        ("claude-opus-5", "Claude Opus 5"),
        ("claude-4-sonnet", "Claude 4 Sonnet"),
        ("openai-gpt-5.2", "OpenAI GPT 5.2"),
        ("llama4-maverick", "Llama4 Maverick"),
    ],
)
def test_a_name_for_people(model: str, name: str) -> None:
    assert readable(model) == name
