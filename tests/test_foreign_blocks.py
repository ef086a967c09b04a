"""Blocks that Cortex does not have, through the real LiteLLM and the real Claude Code: what reaches Cortex of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from bundle.cortex.documents import PDF_LEFT_OUT, TOOL_FAILED
from bundle.proxy.request_shape import fault
from tests.claude_home import on_messages_route
from tests.cortex_rules import JSON
from tests.foreign import BLOCKS, in_place
from tests.messages import IMAGE, body, call, result, says, text, user
from tests.session import ask
from tests.session import call as tool_call
from tests.set_up import SetUp

pytestmark = pytest.mark.real

MODEL = "claude-sonnet-4-6"
A_PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n%%EOF\n"


@pytest.fixture(scope="module", params=["chat", "messages"])
def route(request: pytest.FixtureRequest, running: SetUp) -> Iterator[str]:
    with running.template(on_messages_route) if request.param == "messages" else nullcontext():
        yield str(request.param)


def asked_since(running: SetUp, before: int) -> list[JSON]:
    return [record for record in running.stub.requests[before:] if record["route"] != "sql"]


def passing(place: str) -> list[tuple[JSON, str]]:
    """The blocks that Anthropic's API takes in this place: the front door refuses others."""
    return [(block, words) for block, words in BLOCKS if not fault({**in_place(place, block), "model": MODEL})]


def test_every_block_in_every_place_reaches_the_model_as_text(running: SetUp, route: str) -> None:
    album = {"type": "document", "source": {"type": "content", "content": [text("left"), IMAGE, text("right")]}}
    in_turn, in_result = passing("user"), passing("tool_result")
    assert [passing(place) for place in ("assistant", "a system message")] == [in_turn, in_turn]
    blocks, inner = [block for block, _ in in_turn], [block for block, _ in in_result]
    failed = result("b", [*inner, album], is_error=True)
    asked = body(
        user(*blocks, text("go")),
        says(text("well"), *blocks, call("a"), call("b")),
        user(result("a", inner), failed, *blocks, album),
        {"role": "system", "content": blocks},
    )
    before = len(running.stub.requests)
    answer = running.post({**asked, "model": MODEL})
    assert answer.status_code == 200, answer.text
    (record,) = asked_since(running, before)
    told = json.dumps(record["body"], ensure_ascii=False)
    for found, places in ((in_turn, 4), (in_result, 2)):
        for _, words in found:
            assert told.count(json.dumps(words, ensure_ascii=False)[1:-1]) >= places, words
    assert len(in_turn) > 40
    assert told.count(TOOL_FAILED) >= 1
    kinds = Counter(re.findall(r'"type": "(\w+)"', told))
    assert kinds["image_url" if route == "chat" else "image"] == 2
    assert "is_error" not in told  # (there is an image in that result)


def test_a_failed_tool_is_told_and_an_earlier_turn_stays_the_same(running: SetUp, route: str) -> None:
    turns = [user(text("go")), says(call("a")), user(result("a", "no such file", is_error=True))]
    before = len(running.stub.requests)
    for messages in (turns, [*turns, says(text("ok")), user(text("on"))]):
        assert running.post({**body(*messages), "model": MODEL}).status_code == 200
    first, second = (record["body"]["messages"] for record in asked_since(running, before))
    results = [first[2], second[2]]
    if route == "chat":
        assert [each["content"] for each in results] == [f"{TOOL_FAILED}\nno such file"] * 2
    else:
        assert [each["content"][0]["is_error"] for each in results] == [True, True]
    assert second[: len(first)] == first


def test_claude_code_reads_a_pdf_and_goes_on(running: SetUp, route: str, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(A_PDF)
    script = ask([tool_call("Read", file_path=str(tmp_path / "a.pdf"))], "read")
    options = running.stub.options
    # What is learnt of a model lasts until a restart, so another one is asked if PDFs are accepted.
    models = {"claude-sonnet-4-5": False, **({"claude-opus-4-6": True} if route == "messages" else {})}
    for model, accepted in models.items():
        before = len(running.stub.requests)
        running.stub.set_options(documents=accepted)
        try:
            done = running.claude(script, "--model", model, "--allowedTools", "Read")
        finally:
            running.stub.options = options
        assert done["result"] == "read"
        asked = asked_since(running, before)
        told = json.dumps(asked[-1]["body"]["messages"])
        assert ("application/pdf" in told) == accepted
        assert (PDF_LEFT_OUT in told) == (not accepted)
        refused = [record["refusal"] for record in asked if record["status"] != 200]
        assert len(refused) == (route == "messages" and not accepted)
        assert f"Cortex refused PDFs for {model}" in running.log("claude_proxy.py") or not refused
