"""bundle/cortex/names.py: which row answers for the many names of a Claude model."""

from __future__ import annotations

import pytest
import yaml

from bundle.cortex.names import answering, has_row, row_for
from tests.claude_home import TEMPLATE

ROWS = [row["model_name"] for row in yaml.safe_load(TEMPLATE)["model_list"]]


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5-20250929"),
        ("global.anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        ("anthropic.claude-3-5-haiku-20241022-v1:0", "claude-haiku-*"),
        ("arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-opus-4-1-20250805-v1:0", "claude-opus-*"),
        ("anthropic/claude-sonnet-4.5", "claude-sonnet-4-5"),
        ("openrouter/anthropic/claude-3.7-sonnet:thinking", "claude-sonnet-*"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5-20250929"),
        ("claude-haiku-4-5@default", "claude-haiku-4-5"),
        ("anthropic--claude-4.5-opus", "claude-opus-*"),
        ("claude-opus-4-7[1m]", "claude-opus-4-7"),
        ("claude-3-5-haiku-20241022", "claude-haiku-*"),  # and not the row for all other names, which has Sonnet
        ("opus", "claude-opus-*"),
        ("opus[1m]", "claude-opus-*"),
        ("sonnet", "claude-sonnet-*"),
        ("haiku", "claude-haiku-*"),
        ("fable", "claude-*"),
        ("claude-fable-5", "claude-*"),
    ],
)
def test_a_name_of_another_provider_is_answered_by_its_model_or_its_family(asked: str, row: str) -> None:
    name = answering(asked, ROWS)
    assert name == row if "*" not in row else name.startswith(row.strip("*"))
    if "*" in row:
        assert name not in ROWS
    assert has_row(asked, ROWS)
    assert row_for(asked, ROWS) == row


@pytest.mark.parametrize("asked", ["claude-opus-4-5-20251101", "claude-sonnet-9", "claude-4-sonnet", "claude-new"])
def test_anthropic_s_own_name_goes_to_the_rows_as_it_is(asked: str) -> None:
    assert answering(asked, ROWS) == asked


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.*"),
        ("anthropic/claude-sonnet-4.5", "anthropic/claude-sonnet-4.5"),
        ("opus", "opus"),
        ("openai-gpt-4.1", "openai-gpt-4.1"),
        ("openai/gpt-4.1", "openai/*"),
    ],
)
def test_a_row_for_the_very_name_wins(asked: str, row: str) -> None:
    assert answering(asked, [*ROWS, row]) == asked


@pytest.mark.parametrize("asked", ["gpt-5", "openai-gpt-4.1", "opusplan", "my-sonnets", "claude", "", "[1m]"])
def test_a_name_without_a_row_stays_as_it_is(asked: str) -> None:
    assert answering(asked, ROWS) == asked
    assert not has_row(asked, ROWS)
    assert row_for(asked, ROWS) is None


def test_without_a_row_for_its_family_the_row_for_all_other_names_answers() -> None:
    assert answering("us.anthropic.claude-opus-4-6-v1", ["claude-*"]) == "claude-opus-4-6"
    assert answering("haiku", ["claude-*"]) == "claude-haiku-latest"
    assert answering("haiku", ["claude-opus-*"]) == "haiku"
