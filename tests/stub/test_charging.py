"""What the stand-in charges, what its prompt cache saves, and when a prompt is too long for a model's window."""

from __future__ import annotations

import pytest

from tests import cortex_rules as rules
from tests.cortex_charging import Block, PromptCache, Usage
from tests.cortex_rules import Options
from tests.cortex_stub import CHAT, MESSAGES, CortexStub
from tests.stub.sending import (
    CLAUDE,
    GPT,
    MARKED,
    USER,
    calls,
    chat,
    got,
    native,
    parts,
    post,
    result,
    said,
    turns,
    use,
)

LONG = "word " * 1200  # 1500 tokens


def test_usage_on_chat_excludes_cached_tokens_and_joins_reads_and_writes(stub: CortexStub) -> None:
    body = parts({**MARKED, "text": LONG}, {"type": "text", "text": "and now?"})
    first, second = (post(stub, CHAT, body).json()["usage"] for _ in range(2))
    charged = [record["usage"] for record in stub.requests]
    assert [(usage["cache_write"] > 1400, usage["cache_read"] > 1400) for usage in charged] == [
        (True, False),
        (False, True),
    ]
    for usage in (first, second):
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached > 1400
        assert usage["prompt_tokens"] < 20
        assert usage["total_tokens"] == usage["prompt_tokens"] + cached + usage["completion_tokens"]
    assert stub.totals()["requests"] == 2
    assert stub.totals()["cache_read"] == charged[1]["cache_read"] == charged[0]["cache_write"]


def test_on_chat_a_mark_on_a_tool_result_is_ignored_and_on_messages_it_counts(stub: CortexStub) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    post(stub, CHAT, said(USER, calls("a"), {**result("a", [{"type": "text", "text": LONG, **mark}]), **mark}))
    assert stub.totals()["cache_write"] == 0
    post(stub, MESSAGES, turns(("user", "x"), ("assistant", [use("a")]), ("user", [got("a", **mark, content=LONG)])))
    assert stub.totals()["cache_write"] > 1400


def test_whether_a_later_mark_covers_tool_results_is_a_switch(stub: CortexStub) -> None:
    history = (calls("a"), result("a", LONG), {"role": "user", "content": [MARKED]})
    body = said({"role": "system", "content": [{**MARKED, "text": LONG}]}, USER, *history)
    post(stub, CHAT, body)
    assert 1400 < stub.totals()["cache_write"] < 1600
    stub.set_options(mark_covers_tool_results=True)
    post(stub, CHAT, body)
    assert stub.totals()["cache_write"] > 2900


def marked(*texts: str) -> list[Block]:
    return [Block(text, mark=index == len(texts) - 1) for index, text in enumerate(texts)]


def test_the_prompt_cache_follows_its_rules() -> None:
    cache = PromptCache()
    assert cache.charge(CLAUDE, marked("x" * 4 * 1023), 0) == Usage(input=1023), "below the minimum"
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 0) == Usage(cache_write=1024)
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 299) == Usage(cache_read=1024)
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 598) == Usage(cache_read=1024), "a read prolongs it"
    assert cache.charge("claude-opus-5", marked("x" * 4 * 1024), 598) == Usage(cache_write=1024), "one cache a model"
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024, "y" * 8), 600) == Usage(cache_read=1024, cache_write=2)
    assert cache.charge(CLAUDE, [Block("z"), *marked("x" * 4 * 1024)], 600) == Usage(cache_write=1025), "a prefix only"
    far = ["x" * 4 * 1024, *["y"] * 21]
    assert cache.charge(CLAUDE, marked(*far[:-1]), 600).cache_read == 1024, "a mark looks back over twenty blocks"
    fresh = PromptCache()
    fresh.charge(CLAUDE, marked(far[0]), 600)
    assert fresh.charge(CLAUDE, marked(*far), 600).cache_read == 0, "and not over more"
    assert cache.charge(CLAUDE, marked("x" * 4 * 1024), 2000) == Usage(cache_write=1024), "five minutes"
    assert cache.charge(GPT, marked("x" * 4 * 1024), 0) == Usage(input=1024)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_prompt_over_the_window_is_refused_in_cortex_s_words(stub: CortexStub, path: str) -> None:
    stub.set_options(windows={CLAUDE: 6000})
    body = chat("x" * 4 * 3000, max_completion_tokens=2000) if path == CHAT else native("x" * 4 * 3000, max_tokens=2000)
    assert post(stub, path, body).status_code == 200
    stub.set_options(windows={CLAUDE: 4000})
    assert post(stub, path, body).json()["message"] == "max tokens of 4000 exceeded"
    assert stub.requests[-1]["overflow"]
    stub.set_options(window_counts_output=False)
    assert post(stub, path, body).status_code == 200
    stub.set_options(windows={CLAUDE: 2000})
    assert post(stub, path, body).status_code == 400


def test_windows_are_as_documented() -> None:
    large = {name for name in rules.MODELS if Options().window(name) == 1_000_000}
    assert large == set(rules.LARGE)
    assert Options().window("claude-haiku-4-5") == 200_000
