"""A PDF: sent to the Messages API until a model refuses it there, else told in words (docs/cortex.md)."""

from __future__ import annotations

import json

import pytest

from bundle.cortex.documents import PDF_LEFT_OUT
from bundle.cortex.messages import messages_request
from bundle.cortex.models import Limits
from bundle.cortex.refusals import Refusals
from bundle.proxy.request_body import BYTES_PER_TOKEN, IMAGE_TOKENS, PDF_BYTES_PER_TOKEN, estimate_tokens
from tests.cortex_rules import JSON, Options
from tests.foreign import in_place, on_chat
from tests.messages import IMAGE, MARK, PDF, adapted, body, said, says, text, user

PDFS = Options(documents=True)


@pytest.mark.parametrize("place", ["user", "tool_result"])
def test_a_pdf_goes_to_the_messages_api_as_it_is(place: str) -> None:
    titled = {**PDF, "title": "T", "context": "C"}
    asked = in_place(place, {**titled, "citations": {"enabled": True}})
    out = adapted(asked, options=PDFS)
    assert json.dumps(titled) in said(out)
    assert PDF_LEFT_OUT in said(on_chat(asked))


@pytest.mark.parametrize("place", ["assistant", "system"])
def test_where_no_file_may_be_a_pdf_is_told_in_words(place: str) -> None:
    asked = in_place(place, PDF)
    for out in (on_chat(asked), adapted(asked)):
        assert PDF_LEFT_OUT in json.dumps(out)


@pytest.mark.parametrize(
    "words",
    [
        "messages.0.content.0: Input tag 'document' found using 'type' does not match any of the expected tags",
        "messages.0.content.0.document: Extra inputs are not permitted",
        "document blocks are not supported; use text, image, thinking",
        "This model doesn't support PDF input",
    ],
)
def test_a_model_that_refuses_pdfs_gets_words_from_then_on(words: str) -> None:
    asked = body(user(PDF, text("read it")), thinking={"type": "adaptive"}, max_tokens=3000)
    refusals = Refusals()
    sent = messages_request(asked, limits=Limits(), refusals=refusals)[0]
    assert refusals.learn_messages(words, sent, []) == ["PDFs for claude-sonnet-4-5"]
    out = adapted(asked, refusals=refusals)
    assert PDF_LEFT_OUT in said(out)
    assert out["thinking"] == sent["thinking"]
    assert "PDFs" not in str(refusals.learn_messages(words, out, []))  # another try would not help
    other = messages_request({**asked, "model": "claude-opus-5"}, limits=Limits(), refusals=refusals)[0]
    assert '"document"' in said(other)


@pytest.mark.parametrize(
    "words",
    [
        "messages.0.content.0.document.source.base64.data: A maximum of 100 PDF pages may be provided.",
        "messages.0.content.0.document.source.base64: The PDF specified is password protected.",
        "messages.0.content.0.document.source.base64: The PDF specified was not valid.",
        "internal error",
    ],
)
def test_an_error_about_one_pdf_is_the_client_s_to_mend(words: str) -> None:
    sent = messages_request(body(user(PDF)), limits=Limits())[0]
    refusals = Refusals()
    assert refusals.learn_messages(words, sent, []) == []
    assert not refusals.documents


def test_a_refused_field_of_a_document_is_left_out_and_the_document_stays() -> None:
    refusals = Refusals()
    asked = body(user({**PDF, "title": "T"}))
    sent = messages_request(asked, limits=Limits(), refusals=refusals)[0]
    assert refusals.learn_messages("messages.0.content.0.document.title: Extra inputs are not permitted", sent, [])
    assert adapted(asked, refusals=refusals, options=PDFS)["messages"] == [user(PDF)]


def test_the_oldest_pdfs_go_when_a_request_would_be_too_large() -> None:
    large = {**PDF, "source": {**PDF["source"], "data": "A" * (7 * 2**20)}, "cache_control": MARK}
    out = adapted(body(user(large), says(text("ok")), user(large, large)), options=PDFS)
    (first,) = out["messages"][0]["content"]
    assert "An older PDF was left out" in first["text"]
    assert first["cache_control"] == MARK
    assert said(out).count('"document"') == 1  # they go in steps (excess_images)


def test_a_document_counts_as_its_text_and_a_pdf_by_its_size() -> None:
    def count(block: JSON) -> int:
        return estimate_tokens(body(user(block)))

    words = "x" * 70_000
    letter = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": words}}
    assert count(letter) == pytest.approx(len(words) / BYTES_PER_TOKEN, abs=50)
    nested = {"type": "document", "source": {"type": "content", "content": [letter, IMAGE]}}
    assert count(nested) == pytest.approx(len(words) / BYTES_PER_TOKEN + IMAGE_TOKENS, abs=50)
    large = {**PDF, "source": {**PDF["source"], "data": "A" * 3_000_000}}
    assert count(large) == pytest.approx(3_000_000 / PDF_BYTES_PER_TOKEN, abs=50)
    assert count(PDF) == pytest.approx(IMAGE_TOKENS, abs=50)
    away = {**IMAGE, "source": {"type": "url", "url": "https://example.com/a"}}
    assert count(away) < 100  # it is left out, and the model gets a sentence
