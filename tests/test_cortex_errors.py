"""Errors in Anthropic's terms: Cortex's own words, the status that Claude Code acts on rightly, and a remedy."""

from __future__ import annotations

import json

import pytest

from patches.cortex_errors import explain, explain_failure
from tests.cortex_rules import FINAL_ASSISTANT, TOOL_PAIRING
from tests.cortex_stub import FAULTS

UUID = "11111111-2222-3333-4444-555555555555"

# What the stand-in (and so the contract) can answer: the status for Claude Code, whether it may try again, the remedy.
EXPECTED: dict[str, tuple[int, bool, str]] = {
    "throttled": (429, True, "busy"),
    "not_in_region": (400, False, "ALTER ACCOUNT SET CORTEX_ENABLED_CROSS_REGION = 'ANY_REGION'"),
    "bad_token": (401, False, "python3 auto_refresh.py --public-key"),
    "expired_token": (401, False, f"SYSTEM$GET_LOGIN_FAILURE_DETAILS('{UUID}')"),
    "wrong_token_type": (401, False, "token's type"),
    "budget": (402, False, "administrator"),
    "no_role": (403, False, "GRANT DATABASE ROLE SNOWFLAKE.CORTEX_USER TO ROLE"),
    "trial": (403, False, "Trial accounts"),
    "network_policy": (403, False, "NETWORK POLICY"),
    "model_not_allowed": (403, False, "CORTEX_MODELS_ALLOWLIST"),
    "too_many": (429, True, "limits"),
    "internal": (500, True, "/compact"),
    "inference_timeout": (503, True, "too long"),
}


def test_every_error_that_the_stand_in_knows_is_expected_here() -> None:
    assert EXPECTED.keys() == FAULTS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_an_error_keeps_cortex_s_words_and_gets_status_and_remedy(name: str) -> None:
    status, body = FAULTS[name]
    words = body["message"].format(uuid=UUID, model="claude-x")
    told = explain(status, json.dumps({**body, "message": words, "request_id": "r"}))
    expected, retry, remedy = EXPECTED[name]
    assert (told.status, told.retry) == (expected, retry)
    assert words in told.message.splitlines()[0]
    assert remedy in told.message.partition("\n")[2]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("max_tokens is deprecated in favor of max_completion_tokens", "python3 patches/apply_patch.py"),
        ("max tokens of 64000 exceeded", "max_output_tokens"),
        ("unknown model claude-x", "make doctor"),
        (TOOL_PAIRING, "/compact"),
        (FINAL_ASSISTANT, "/compact"),
    ],
)
def test_a_refused_request_says_what_mends_it(words: str, remedy: str) -> None:
    told = explain(400, json.dumps({"message": words}))
    assert (told.status, told.kind, told.retry) == (400, "invalid_request_error", False)
    assert remedy in told.message


@pytest.mark.parametrize(
    ("status", "body", "retry", "words"),
    [
        (200, "<html>Please sign in", False, "a web page instead of an answer"),
        (502, " <!doctype html>", True, "a web page"),
        (418, "short and stout", False, "short and stout"),
        (504, "", True, "no words"),
        (400, '["not an envelope"]', False, "not an envelope"),
    ],
)
def test_what_is_not_snowflake_s_envelope_is_told_all_the_same(status: int, body: str, retry: bool, words: str) -> None:
    told = explain(status, body)
    assert (told.status, told.retry) == (status, retry)
    assert words in told.message


@pytest.mark.parametrize(
    ("status", "words", "expected", "retry", "told"),
    [
        (
            500,
            "litellm.InternalServerError: InternalServerError: OpenAIException - Connection error.",
            502,
            True,
            "ion er",
        ),
        (408, "litellm.Timeout: Timeout Error: timed out", 502, True, "broke off"),
        (400, "You passed in model=gpt-x. There are no healthy deployments for this model", 400, False, "gpt-x"),
        (400, "Invalid JSON payload", 400, False, "Invalid JSON payload"),
        (500, "something odd", 500, True, "something odd"),
    ],
)
def test_an_error_of_litellm_s_own_is_not_said_to_be_cortex_s(
    status: int, words: str, expected: int, retry: bool, told: str
) -> None:
    explained = explain_failure(status, f"{words}\nLiteLLM: model group 'x' failed with the error above.")
    assert (explained.status, explained.retry) == (expected, retry)
    assert told in explained.message
    assert "litellm" not in explained.message.replace("litellm_config", "")
    assert "model group" not in explained.message
