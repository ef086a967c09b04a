"""A session that fills its context goes on: Claude Code compacts by itself, on either route."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.claude_home import answered_by, on_messages_route
from tests.session import (
    SMALL_OPUS,
    WINDOWS,
    Session,
    fill_the_context,
    fill_the_window,
    windows_shown,
    with_entries,
)
from tests.set_up import SetUp

pytestmark = pytest.mark.real

MODEL = "claude-sonnet-4-6"


def test_context_shows_the_window_of_the_model_that_answers(running: SetUp, tmp_path: Path) -> None:
    assert windows_shown(Session(running, tmp_path / "project")) == WINDOWS


@pytest.mark.parametrize(
    ("alias", "window", "edited"),
    [("sonnet", 1_000_000, str), ("haiku", 200_000, str), ("opus", 200_000, answered_by(*SMALL_OPUS))],
    ids=["a million", "200,000", "a small model under a large name"],
)
def test_a_session_is_compacted_before_its_window_is_full(
    running: SetUp, tmp_path: Path, alias: str, window: int, edited: Callable[[str], str]
) -> None:
    with running.template(edited) if edited is not str else nullcontext():
        options = with_entries(running, edited)
        fill_the_window(Session(running, tmp_path / "project", options=options), alias, window)


@pytest.mark.parametrize("route", ["chat", "messages"])
def test_a_session_that_fills_its_context_goes_on(running: SetUp, tmp_path: Path, route: str) -> None:
    on_messages = running.template(on_messages_route)
    with on_messages if route == "messages" else nullcontext():
        session = Session(running, tmp_path / "project")
        try:
            fill_the_context(session)
        finally:
            running.stub.set_options(windows={})


@pytest.mark.parametrize("stream", [True, False])
def test_a_full_context_is_told_in_anthropic_s_words(running: SetUp, stream: bool) -> None:
    running.stub.set_options(windows={MODEL: 150_000})
    try:
        answer = running.ask("x" * 700_000, MODEL, stream=stream)
    finally:
        running.stub.set_options(windows={})
    assert answer.status_code == 400
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error == {"type": "invalid_request_error", "message": "prompt is too long: 200004 tokens > 150000 maximum"}


def test_a_full_context_inside_a_200_is_told_in_anthropic_s_words_too(running: SetUp) -> None:
    words = "prompt is too long: 210000 tokens > 200000 maximum"
    running.stub.replay = [{"message": words}, f'data: {{"message": "{words}"}}\n\n']
    whole = running.ask("hello", MODEL)
    assert (whole.status_code, whole.json()["error"]["message"]) == (400, words)
    assert words in running.ask("hello", MODEL, stream=True).text


def test_a_number_that_equals_the_requested_output_is_an_output_limit(running: SetUp) -> None:
    running.stub.set_options(windows={MODEL: 100})
    try:
        answer = running.ask("hello " * 100, MODEL, max_tokens=100)
    finally:
        running.stub.set_options(windows={})
    assert answer.status_code == 400
    assert "max_output_tokens" in answer.json()["error"]["message"]


def test_too_much_output_is_no_full_context(running: SetUp) -> None:
    row = f"model: openai/{MODEL} }}\n    model_info: {{ <<: *info"
    with running.template(lambda text: text.replace(row, f"{row}, max_output_tokens: 100000")):
        answers = [running.ask("hello", MODEL, max_tokens=90_000) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 200], "64000 is what the model takes: learnt"
    assert running.stub.requests[-1]["body"]["max_completion_tokens"] == 64_000
