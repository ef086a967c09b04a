"""Errors in Anthropic's terms: Cortex's own words, the status that Claude Code acts on rightly, and a remedy."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from bundle.cortex.errors import (
    CASES,
    SQL_CASES,
    commands,
    context_full,
    explain,
    explain_failure,
    explain_query,
    refuses_model,
)
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
    "pat_invalid": (401, False, "python3 configure.py"),
    "pat_expired": (401, False, "SHOW USER PROGRAMMATIC ACCESS TOKENS"),
    "pat_disabled": (401, False, "ALTER USER ADD PROGRAMMATIC ACCESS TOKEN"),
    "pat_no_policy": (401, False, "SET NETWORK_POLICY"),
    "budget": (402, False, "administrator"),
    "no_role": (403, False, "GRANT DATABASE ROLE SNOWFLAKE.CORTEX_USER TO ROLE"),
    "trial": (403, False, "Trial accounts"),
    "network_policy": (403, False, "NETWORK POLICY"),
    "model_not_allowed": (403, False, "CORTEX_MODELS_ALLOWLIST"),
    "too_many": (429, True, "limits"),
    "internal": (500, True, "/compact"),
    "inference_timeout": (503, True, "too long"),
    "goaway": (503, True, "trying another"),
    "goaway_200": (503, True, "trying another"),
    "session_token": (503, True, "make doctor"),
    "unprocessable": (422, False, ""),
}


def test_every_error_that_the_stand_in_knows_is_expected_here() -> None:
    assert EXPECTED.keys() == FAULTS.keys() - {"too_long"}


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
        ("unknown model claude-x", "make models"),
        (TOOL_PAIRING, "/compact"),
        (FINAL_ASSISTANT, "/compact"),
    ],
)
def test_a_refused_request_says_what_fixes_it(words: str, remedy: str) -> None:
    told = explain(400, json.dumps({"message": words}))
    assert (told.status, told.kind, told.retry) == (400, "invalid_request_error", False)
    assert remedy in told.message


def test_a_code_is_enough_to_name_a_server_that_goes_away() -> None:
    assert explain(502, '{"error_code": 392606, "message": "gone"}').status == 503
    assert explain(200, '{"code": "390112", "message": "gone"}').retry
    assert explain(502, '{"code": "392606"}').status == 503
    assert "session" in explain(502, '{"error": {"code": "390112", "message": "gone"}}').message


FULL = {
    "max tokens of 200000 exceeded": (0, 200_000),
    "max tokens of 1000000 exceeded": (0, 1_000_000),
    "prompt is too long: 205668 tokens > 200000 maximum": (205_668, 200_000),
    "messages: prompt is too long": (0, 0),
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 150000": (0, 128_000),
    "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000": (0, 272_000),
    "invalid request parameters: Input is too long for requested model.": (0, 0),
    '{"code": "context_length_exceeded"}': (0, 0),
    "too many input tokens": (0, 0),
}


@pytest.mark.parametrize("words", FULL)
def test_a_full_context_is_said_in_the_words_that_claude_code_compacts_on(words: str) -> None:
    assert context_full(words, 64_000) == FULL[words]
    told = explain(400, json.dumps({"message": words}), asked=64_000, count=lambda: 210_000)
    prompt, window = FULL[words]
    assert (told.status, told.kind, told.retry) == (400, "invalid_request_error", False)
    expected = prompt or max(210_000, window + 1)
    assert told.message == f"prompt is too long: {expected} tokens > {window or expected - 1} maximum"


@pytest.mark.parametrize(
    ("number", "asked", "full"),
    [
        (64_000, 64_000, False),
        (16_384, 64_000, False),
        (200_000, 64_000, True),
        (200_000, 500_000, True),
        (9, None, True),
    ],
)
def test_a_limit_of_the_output_is_no_full_context(number: int, asked: int | None, full: bool) -> None:
    words = f"max tokens of {number} exceeded"
    assert (context_full(words, asked) is not None) == full
    told = explain(400, json.dumps({"message": words}), asked=asked)
    assert ("max_output_tokens" in told.message) == (not full)


def test_words_on_which_claude_code_asks_for_less_output_pass_as_they_are() -> None:
    words = "input length and `max_tokens` exceed context limit: 180000 + 64000 > 200000, decrease input length"
    told = explain(400, json.dumps({"message": words}), asked=64_000)
    assert (told.status, told.retry) == (400, False)
    assert words in told.message
    assert "too long" not in told.message


def test_too_many_tokens_a_minute_are_no_full_context() -> None:
    for status in (400, 429):
        told = explain(status, '{"message": "Too many input tokens per minute"}')
        assert (told.status, "too long" in told.message) == (status, False)
    assert explain(429, '{"message": "too many input tokens"}').retry


@pytest.mark.parametrize("words", ["all requests were throttled by remote service", "the text is long", "max tokens"])
def test_other_words_are_no_full_context(words: str) -> None:
    assert context_full(words, 64_000) is None


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
        (408, "litellm.Timeout: Timeout Error: timed out", 408, True, "timed out"),
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


@pytest.mark.parametrize(
    "words",
    [
        "tools.3: mcp__db__connect is not a tool",
        "the certificate of tools.0.name is too long",
        "claude-opus: possible lossless compression is refused",
        "the stream was not completed, not whole, timed out",
    ],
)
def test_words_make_no_error_a_broken_connection(words: str) -> None:
    explained = explain_failure(400, f"litellm.BadRequestError: {words}")
    assert (explained.status, explained.retry, explained.message) == (400, False, words)


@pytest.mark.parametrize("status", [400, 408, 500])
def test_a_broken_connection_is_retried_whatever_litellm_makes_of_it(status: int) -> None:
    explained = explain_failure(status, "litellm.BadRequestError: odd", "it sent nothing for 300 seconds")
    assert (explained.status, explained.retry) == (502, True)
    assert explained.message.startswith("Snowflake Cortex cannot be reached, or broke off: it sent nothing for 300 s")
    assert "make doctor" in explained.message


def test_the_commands_in_a_message_work_in_every_folder() -> None:
    folder = Path("/home/o'hara/a b")
    key = explain(401, "{}", folder).message.splitlines()[2]
    assert shlex.split(key) == ["python3", f"{folder}/auto_refresh.py", "--public-key"]
    for message in (
        explain(404, "{}", folder).message,
        explain_query("https://x", 500, "", "", folder),
        explain_failure(502, "x", "it broke", folder).message,
    ):
        command = message.partition(": make ")[2]
        assert shlex.split(command) == ["-C", str(folder), "doctor"], message
    for case in (*CASES, *SQL_CASES):
        assert not re.search(r"\{(make|folder)\}", commands(case.remedy)), case


@pytest.mark.parametrize("name", FAULTS)
def test_of_all_errors_only_three_refuse_the_model_itself(name: str) -> None:
    status, body = FAULTS[name]
    assert refuses_model(status, json.dumps(body)) == (name in {"not_in_region", "model_not_allowed"})
    assert refuses_model(400, '{"message": "unknown model claude-opus-5"}')


def test_what_else_is_not_in_the_region_is_no_refusal_of_the_model() -> None:
    assert not refuses_model(400, '{"message": "prompt caching is not available in your region"}')
