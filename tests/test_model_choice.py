"""bundle/proxy/model_choice.py by itself: which model answers for a row, and what the list of models says."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from bundle.cortex.catalogue import Listed
from bundle.model_list import ModelList
from bundle.proxy.model_choice import (
    FORGET_SECONDS,
    LONGEST_NAME,
    MOST_REFUSED,
    RefusedModels,
    entries,
    entry_of,
    limits,
    page,
)
from bundle.render import render
from tests.set_up import BUNDLE

TEMPLATE = (BUNDLE / "litellm_config.template.yaml").read_text(encoding="utf-8")
WORDS = (400, "unknown model")
OPUS = ["claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6", "claude-opus-4-5"]
Rows = list[dict[str, Any]]


def rows_of(template: str = TEMPLATE, *listed: str) -> Rows:
    values = {"SNOWFLAKE_JWT": "-", "LITELLM_MASTER_KEY": "-", "CORTEX_URL": "http://cortex"}
    models = ModelList("A", "h", 0, tuple(Listed(name, "GA") for name in listed)) if listed else None
    return list(yaml.safe_load(render(template, values, listed=models))["model_list"])


def row_of(rows: Rows, name: str = "claude-opus-*") -> dict[str, Any]:
    return next(row for row in rows if row["model_name"] == name)


def refused(rows: Rows, *models: str, row: str = "claude-opus-*") -> RefusedModels:
    found = RefusedModels()
    for model in models:
        found.refuse(model, row_of(rows, row)["model_info"], rows, WORDS)
    return found


def answering(found: RefusedModels, row: dict[str, Any]) -> str:
    return found.answering(row["litellm_params"]["model"], row["model_info"])


def ids(rows: Rows, found: RefusedModels | None = None) -> list[str]:
    return [entry["id"] for entry in entries(rows, found or RefusedModels())]


# -------------------------------------------------------------------------------------------------- which model answers


def test_each_refusal_names_the_next_older_model_and_the_last_one_none() -> None:
    rows, found = rows_of(), RefusedModels()
    info = row_of(rows)["model_info"]
    assert [found.refuse(model, info, rows, WORDS) for model in OPUS] == [*OPUS[1:], ""]
    assert answering(found, row_of(rows)) == OPUS[0]


def test_two_requests_that_are_refused_at_the_same_time_are_one_step() -> None:
    rows = rows_of()
    assert answering(refused(rows, OPUS[0], OPUS[0]), row_of(rows)) == OPUS[1]


def test_a_row_that_names_its_model_has_no_other() -> None:
    rows, found = rows_of(), RefusedModels()
    own = row_of(rows, OPUS[0])
    assert found.refuse(OPUS[0], own["model_info"], rows, WORDS) == ""
    assert answering(found, own) == OPUS[0]
    assert answering(found, row_of(rows)) == OPUS[1]  # the row of the family need not ask again


def test_a_changed_row_has_refused_nothing_and_an_old_row_that_is_still_asked_keeps_its_step() -> None:
    old, new = rows_of(), rows_of(TEMPLATE.replace("supports_reasoning: false", "supports_reasoning: false\n  x: 1"))
    found = refused(old, OPUS[0])
    assert answering(found, row_of(new)) == OPUS[0]
    assert found.refuse(OPUS[0], row_of(old)["model_info"], new, WORDS) == OPUS[1]
    assert answering(found, row_of(new)) == OPUS[1]


def test_an_answer_of_a_refused_model_ends_the_refusal() -> None:
    rows = rows_of()
    found = refused(rows, OPUS[0])
    found.accept(OPUS[0])
    assert (found.words(OPUS[0]), answering(found, row_of(rows))) == ((0, ""), OPUS[0])


def test_an_answer_of_a_refused_model_ends_all_refusals_because_their_reason_may_have_gone() -> None:
    rows = rows_of()
    found = refused(rows, *OPUS)
    found.accept(OPUS[0])
    assert found.refuse(OPUS[0], row_of(rows)["model_info"], rows, WORDS) == OPUS[1]
    found.accept(OPUS[1])  # this one was not refused
    assert answering(found, row_of(rows)) == OPUS[1]


def test_a_refusal_is_forgotten_after_an_hour() -> None:
    rows, now = rows_of(), [100.0]
    found = RefusedModels(lambda: now[0])
    found.refuse(OPUS[0], row_of(rows)["model_info"], rows, WORDS)
    now[0] += FORGET_SECONDS - 1
    assert answering(found, row_of(rows)) == OPUS[1]
    now[0] += 1
    assert (answering(found, row_of(rows)), found.words(OPUS[0])) == (OPUS[0], (0, ""))


def test_a_row_that_has_changed_is_shown_with_its_newest_model_although_that_was_refused_before() -> None:
    found = refused(rows_of(), OPUS[0])
    changed = rows_of(
        TEMPLATE.replace("openai/newest }\n    model_info: {", "openai/newest }\n    model_info: { number: 1,")
    )
    assert row_of(changed)["model_info"]["number"] == 1
    shown = entry_of("claude-opus-latest", changed, found)
    assert shown is not None
    assert shown["display_name"] == "Claude Opus 5"


def test_names_that_clients_choose_do_not_fill_the_memory() -> None:
    rows, found = rows_of(), RefusedModels()
    for number in range(2 * MOST_REFUSED):
        found.refuse(f"made-up-{number}", {"id": "x"}, rows, WORDS)
    assert sum(found.words(f"made-up-{number}")[0] != 0 for number in range(2 * MOST_REFUSED)) == MOST_REFUSED


@pytest.mark.parametrize(
    ("info", "model", "expected"),
    [
        ({}, OPUS[0], (1_000_000, 128_000)),
        ({}, OPUS[4], (200_000, 64_000)),
        ({"max_output_tokens": 9_000, "max_input_tokens": 150_000}, OPUS[4], (150_000, 9_000)),
        ({"max_output_tokens": 200_000, "max_input_tokens": 2_000_000}, OPUS[0], (2_000_000, 200_000)),
        ({"max_output_tokens": 200_000, "max_input_tokens": 2_000_000}, OPUS[4], (200_000, 64_000)),
    ],
)
def test_an_older_model_has_its_own_limits_and_never_more_than_the_row_says(
    info: dict[str, Any], model: str, expected: tuple[int, int]
) -> None:
    assert limits({**row_of(rows_of())["model_info"], **info}, model) == expected


# --------------------------------------------------------------------------------------------------- the list of models


def test_the_list_has_each_name_of_the_template_once_in_words_for_people() -> None:
    listed = entries(rows_of(), RefusedModels())
    shown = [entry["display_name"] for entry in listed]
    assert len(set(shown)) == len(shown)
    assert {"Claude Opus 5", "Claude Sonnet 4.5", "Claude Haiku 4.5"} <= set(shown)
    assert "claude-haiku-4-5" in ids(rows_of())
    assert "claude-haiku-4-5-20251001" not in ids(rows_of())  # the same line again
    assert not [name for name in ids(rows_of()) if "*" in name or "latest" in name]


def test_an_entry_has_the_shape_of_anthropic_s_api() -> None:
    (opus,) = (entry for entry in entries(rows_of(), RefusedModels()) if entry["id"] == "claude-opus-5")
    assert opus == {
        "type": "model",
        "id": "claude-opus-5",
        "display_name": "Claude Opus 5",
        "created_at": "1970-01-01T00:00:00Z",
        "max_input_tokens": 1_000_000,
        "max_tokens": 128_000,
    }


def test_what_a_family_stands_for_is_listed_and_what_the_account_does_not_list_is_not() -> None:
    rows = rows_of(TEMPLATE, "claude-opus-5-5", "claude-opus-4-8", "claude-haiku-4-5")
    assert ids(rows) == ["claude-opus-4-8", "claude-haiku-4-5", "claude-opus-5-5"]


def test_what_cortex_has_refused_is_not_listed_and_what_answers_instead_is() -> None:
    rows = rows_of(TEMPLATE, "claude-opus-5-5", "claude-opus-5-1", "claude-opus-4-8")
    assert ids(rows, refused(rows, "claude-opus-5-5")) == ["claude-opus-4-8", "claude-opus-5-1"]
    assert "claude-opus-4-8" not in ids(rows, refused(rows, "claude-opus-4-8", row="claude-opus-4-8"))
    assert ids(rows_of(), refused(rows_of(), *OPUS))[0] == "claude-sonnet-5"


GPT = TEMPLATE.replace("openai/newest", "openai/openai-gpt-4.1").replace(
    "model: openai/claude-haiku-4-5 }", "model: openai/openai-gpt-4.1 }"
)


def test_another_model_under_a_claude_name_is_named() -> None:
    shown = {entry["id"]: entry["display_name"] for entry in entries(rows_of(GPT), RefusedModels())}
    assert shown["claude-haiku-4-5"] == "Claude Haiku 4.5 (answered by OpenAI GPT 4.1)"
    assert shown["claude-opus-latest"] == "Claude Opus Latest (answered by OpenAI GPT 4.1)"
    assert shown["claude-opus-5"] == "Claude Opus 5"


def test_a_pattern_in_the_model_too_is_not_listed() -> None:
    row = "  - model_name: local/*\n    litellm_params: { model: ollama/* }\n\nlitellm_settings:"
    assert ids(rows_of(TEMPLATE.replace("litellm_settings:", row, 1))) == ids(rows_of())


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("claude-opus-5", "claude-opus-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5-20251001"),
        ("claude-opus-9-9", "claude-opus-5"),
        ("opus", "claude-opus-5"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5-20250929"),
        ("claude-of-no-family", "claude-sonnet-5"),
        ("gpt-9", None),
        ("", None),
        ("*", None),
        ("claude-opus-*", "claude-opus-5"),
        ("claude-" + "x" * LONGEST_NAME, None),
    ],
)
def test_one_model_is_found_under_each_name_that_a_row_answers(asked: str, found: str | None) -> None:
    entry = entry_of(asked, rows_of(), RefusedModels())
    assert (entry and entry["id"]) == found


def test_one_model_is_the_one_that_answers_now() -> None:
    rows = rows_of()
    found = refused(rows, *OPUS[:3])
    entry = entry_of("claude-opus-9-9", rows, found)
    assert entry is not None
    assert (entry["id"], entry["max_tokens"]) == ("claude-opus-4-6", 128_000)
    assert entry_of("claude-opus-5", rows, found) is None
    other = entry_of("claude-opus-9-9", rows_of(GPT), RefusedModels())
    assert other is not None
    assert (other["id"], other["display_name"]) == (
        "claude-opus-9-9",
        "Claude Opus 9.9 (answered by OpenAI GPT 4.1)",
    )


MODELS = [{"id": name} for name in "abcde"]


@pytest.mark.parametrize(
    ("query", "expected", "has_more"),
    [
        ("", "abcde", False),
        ("limit=1000", "abcde", False),
        ("limit=2", "ab", True),
        ("limit=2&after_id=b", "cd", True),
        ("limit=2&after_id=c", "de", False),
        ("after_id=e", "", False),
        ("before_id=d", "abc", False),
        ("limit=2&before_id=d", "bc", True),
        ("before_id=b&limit=9", "a", False),
        ("limit=-1&after_id=x&before_id=&limit=%00&other=1&&=", "abcde", False),
    ],
)
def test_a_client_can_page_through_the_models(query: str, expected: str, has_more: bool) -> None:
    found = page(MODELS, query)
    assert ("".join(each["id"] for each in found["data"]), found["has_more"]) == (expected, has_more)
    assert (found["first_id"], found["last_id"]) == ((expected[0], expected[-1]) if expected else (None, None))
