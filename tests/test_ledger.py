"""The ledger's files, the sums in dollars, and the estimate of what the cache gave."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from bundle.cortex.answers import ChatAnswer, MessagesAnswer, RequestFacts
from bundle.cortex.cache_split import CACHE_SECONDS, MOST_PREFIXES, CacheSplit
from bundle.cortex.usage import Used
from bundle.errors import ConfigError
from bundle.ledger import COUNTED, ESTIMATED, MOST_FILES, Line, append, ledger_files, line, read_lines
from bundle.prices import Price, cost
from bundle.spending import MOST_DAYS, MOST_MODELS, MOST_SESSIONS, Sum, Sums, cost_of, dollars, sums
from tests import recorded

NOON = datetime(2026, 11, 29, 12, tzinfo=timezone.utc).timestamp()
PRICE = Price(input=3, cache_write=3.75, cache_read=0.3, output=15)


def a_line(now: float = NOON, used: Used | None = Used(7, 4000, 805, 6), **more: Any) -> Line:  # noqa: B008 - frozen
    given: dict[str, Any] = {"session": "s-1", "asked": "claude-opus-5", "model": "claude-opus-4-6", "route": "chat"}
    return line(now, **{**given, "status": 200, "first_ms": 10.4, "ms": 20.6, **more}, used=used)


# ------------------------------------------------------------------------------------------------------------ the files


@pytest.mark.keeps("ledger")
def test_a_line_comes_back_as_it_was_written_from_a_file_for_its_month_that_only_the_owner_reads(
    tmp_path: Path,
) -> None:
    written = [a_line(), a_line(used=None, status=499), a_line(NOON + 40 * 86400)]
    append(tmp_path, written)
    assert [*read_lines(tmp_path)] == written
    assert [path.name for path in ledger_files(tmp_path)] == ["2026-11.jsonl", "2027-01.jsonl"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in ledger_files(tmp_path)} == {0o600}
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o700


def test_only_lines_since_a_time_are_read(tmp_path: Path) -> None:
    append(tmp_path, [a_line(NOON - 40 * 86400), a_line(NOON - 60), a_line(NOON)])
    since = datetime.fromtimestamp(NOON - 30, timezone(timedelta(hours=-9)))
    assert [found.time for found in read_lines(tmp_path, since)] == ["2026-11-29T12:00:00+00:00"]


@pytest.mark.keeps("ledger-bounds")
def test_thirteen_months_are_kept_and_nobody_else_s_files_are_touched(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir(mode=0o700)
    (tmp_path / "ledger" / "0000.jsonl").write_text("mine\n")
    for month in range(20):
        append(tmp_path, [a_line(NOON + month * 31 * 86400)])
    assert len(ledger_files(tmp_path)) == MOST_FILES == 13
    assert ledger_files(tmp_path)[0].name > "2026-12"
    assert (tmp_path / "ledger" / "0000.jsonl").exists()


def test_after_a_crash_in_the_middle_of_a_line_only_that_line_is_lost(tmp_path: Path) -> None:
    append(tmp_path, [a_line(), a_line()])
    (path,) = ledger_files(tmp_path)
    os.truncate(path, path.stat().st_size - 20)
    append(tmp_path, [a_line(NOON + 1)])
    assert [found.time[-9:-6] for found in read_lines(tmp_path)] == [":00", ":01"]


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"[]", b"{}", b'{"time": "yesterday", "status": 200}', b'{"time": 5, "status": []}', b"[" * 100_000],
)
def test_a_damaged_line_is_left_out(tmp_path: Path, damage: bytes) -> None:
    append(tmp_path, [a_line()])
    with ledger_files(tmp_path)[0].open("ab") as file:
        file.write(damage + b"\n")
    append(tmp_path, [a_line()])
    assert len([*read_lines(tmp_path)]) == 2


def test_numbers_and_texts_that_cannot_be_do_no_harm(tmp_path: Path) -> None:
    append(tmp_path, [a_line(model="claude\x1b[31m\n", session="../../etc; rm", asked="x" * 500)])
    (found,) = read_lines(tmp_path)
    assert (found.model, found.session, len(found.asked)) == ("claude [31m", "", 101)
    path = ledger_files(tmp_path)[0]
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "input": -5, "output": "1e9", "model": {"a": 1}}) + "\n")
    (found,) = read_lines(tmp_path)
    assert (found.input, found.output) == (0, 0)


@pytest.mark.keeps("ledger-bounds")
def test_of_a_full_disk_no_half_line_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tmp_path, [a_line()])
    real = os.fdopen

    class Half:
        """A file that takes ten bytes."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> int:
            return int(self._file.write(data[:10]))

    monkeypatch.setattr(os, "fdopen", lambda *args, **more: Half(real(*args, **more)))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        append(tmp_path, [a_line()])
    monkeypatch.undo()
    append(tmp_path, [a_line()])
    assert len(ledger_files(tmp_path)[0].read_text().splitlines()) == len([*read_lines(tmp_path)]) == 2


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir(mode=0o700)
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "ledger" / "2026-11.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        append(tmp_path, [a_line()])
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger" / "2026-11.jsonl").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"2026-11\.jsonl"):
        list(read_lines(tmp_path))


# ------------------------------------------------------------------------------------------------------- what was used


def test_what_an_answer_has_used_is_what_the_recorded_shapes_say() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 4818}
    chat = {**usage, "prompt_tokens_details": {"cached_tokens": 4805}}
    message = {"content": "hello"}
    reader = ChatAnswer(RequestFacts(model="claude-sonnet-4-5"))
    assert not reader.used
    reader.answer({"choices": [{"message": message}], "usage": chat})
    assert reader.used == Used(7, output=6, cached=4805)
    gpt = ChatAnswer(RequestFacts(model="openai-gpt-5"))
    details = {"prompt_tokens_details": {"cached_tokens": 1024}}
    gpt.answer({"choices": [{"message": message}], "usage": {"prompt_tokens": 2000, "completion_tokens": 6, **details}})
    assert gpt.used == Used(976, 1024, 0, 6)


@pytest.mark.parametrize("name", [name for name in vars(recorded) if name.startswith(("CLAUDE_", "GPT_", "LLAMA_"))])
def test_what_a_recorded_answer_has_used_is_its_total(name: str) -> None:
    answer, reader = getattr(recorded, name), ChatAnswer(RequestFacts(model="claude-sonnet-4-6"))
    if isinstance(answer, dict):
        reader.answer(answer)
        usage = answer["usage"]
    else:
        datas = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]
        [*itertools.chain.from_iterable(reader.feed(data.encode()) for data in datas)]
        usage = next(json.loads(data)["usage"] for data in reversed(datas[:-1]) if '"usage"' in data)
    assert reader.used == Used(usage["prompt_tokens"], output=usage["completion_tokens"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_an_answer_of_the_messages_api_counts_its_prompt_at_the_start_and_its_output_at_the_end() -> None:
    reader = MessagesAnswer()
    start = {"input_tokens": 7, "cache_read_input_tokens": 4000, "cache_creation_input_tokens": 805, "output_tokens": 1}
    [*reader.feed(json.dumps({"type": "message_start", "message": {"usage": start}}).encode())]
    assert reader.used == Used(7, 4000, 805, 1)
    delta = {"usage": {"output_tokens": 60, "input_tokens": 0}, "delta": {"stop_reason": "end_turn"}}
    [*reader.feed(json.dumps({"type": "message_delta", **delta}).encode())]
    assert reader.used == Used(7, 4000, 805, 60)


def test_an_empty_answer_has_used_what_it_says() -> None:
    reader = ChatAnswer(RequestFacts(model="claude-sonnet-4-5"))
    usage = {"prompt_tokens": 70, "completion_tokens": 0, "total_tokens": 70}
    with pytest.raises(Exception, match="without content"):
        reader.answer({"choices": [{"message": {"content": ""}}], "usage": usage})
    assert reader.used == Used(70)


# ------------------------------------------------------------------------------------------------------------- dollars


def test_the_cost_is_tokens_times_the_price_of_their_kind_times_the_factor() -> None:
    found = cost(Used(1000, 100_000, 10_000, 500), PRICE, 1.1)
    assert found.usd == pytest.approx(1.1 * (0.003 + 0.03 + 0.0375 + 0.0075))
    assert (found.low, found.high, found.unpriced) == (found.usd, found.usd, 0)


def test_an_estimated_split_shows_the_range_from_all_read_to_all_written() -> None:
    found = cost(Used(0, 100_000, 10_000, 0), PRICE, estimated=True)
    assert found.usd == pytest.approx(0.03 + 0.0375)
    assert [found.low, found.high] == pytest.approx([0.033, 0.4125])


def test_a_token_without_a_price_is_counted_and_never_guessed() -> None:
    part = cost(Used(1000, 5000, 0, 100), Price(input=2, output=10))
    assert [part.usd, part.unpriced] == pytest.approx([0.003, 5000])
    assert cost(Used(1000, 0, 0, 100), None).unpriced == 1100
    total = Sum()
    total.add(a_line(), part)
    assert dollars(total) == "at least $0.0030"
    assert dollars(Sum(unpriced=5)) == "no price"
    assert dollars(Sum()) == "$0.00"


def test_sums_count_answers_that_were_not_refused_and_those_whose_tokens_are_not_known() -> None:
    refused, left, broken = a_line(used=Used(), status=529), a_line(used=None, status=499), a_line(is_whole=False)
    lines = [a_line(), a_line(), refused, left, broken]
    assert (broken.output, broken.input) == (None, 7)
    found = sums(lines, lambda each: each.model, {"claude-opus-4-6": PRICE}, 1.0)["claude-opus-4-6"]
    assert (found.requests, found.unknown) == (3, 2)
    assert (found.input, found.cache_read, found.cache_write, found.output) == (21, 12000, 2415, 12)
    assert found.cached_share == pytest.approx(12000 / 14436)
    assert found.usd == pytest.approx(3 * cost_of(lines[0], {"claude-opus-4-6": PRICE}, 1.0).usd - 6 * 15 / 1e6)


def test_a_day_ends_at_midnight_on_this_machine_s_clock_and_a_session_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    try:
        sums_, prices = Sums(), {"claude-opus-4-6": PRICE}
        late, early = NOON + 19.9 * 3600, NOON + 20.1 * 3600  # about midnight there
        for now in (late, early, late):  # then the clock is set back
            sums_.add(a_line(now), cost_of(a_line(now), prices, 1.0))
        spent = sums_.of("2026-11-30", 5)
        assert (spent.day, spent.today.requests, spent.limit) == ("2026-11-30", 1, 5)
        assert sums_.of("2026-11-29", None).today.requests == 2
        assert spent.sessions["s-1"].spent.requests == 3
        assert spent.sessions["s-1"].models == {"claude-opus-5": "claude-opus-4-6"}
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_newest_sessions_days_and_models_are_kept() -> None:
    found = Sums()
    for number in [*range(MOST_SESSIONS + 5), 10]:
        each = a_line(session=f"s-{number}")
        found.add(each, cost_of(each, {}, 1.0))
    sessions = found.of("2026-11-29", None).sessions
    assert len(sessions) == MOST_SESSIONS
    assert [*sessions][-1] == "s-10"
    assert "s-4" not in sessions
    for number in range(MOST_MODELS + 5):
        each = a_line(NOON + number * 86400, asked=f"model-{number}")
        found.add(each, cost_of(each, {}, 1.0))
    assert len(sessions["s-1"].models) == MOST_MODELS
    assert len(found._days) == MOST_DAYS


def test_models_without_a_price_are_named() -> None:
    found = Sums()
    for model in ("claude-x", "claude-opus-4-6", "claude-x"):
        each = a_line(model=model)
        found.add(each, cost_of(each, {"claude-opus-4-6": PRICE}, 1.0))
    assert found.of("2026-11-29", None).without_price == ["claude-x"]


# ----------------------------------------------------------------------------------------- the split of cached tokens

MARK = b',"cache_control":{"type":"ephemeral"}'
SYSTEM, USER, RESULT, TEXT = (b'{"text":"' + letter * 4000 + b'"' for letter in (b"s", b"u", b"r", b"t"))


def read(split: CacheSplit, *, head: bytes, rest: bytes = b"", now: float = 0.0, **tokens: int) -> int:
    """What a request reads that is sent now, and whose answer begins after two seconds."""
    return split.read(split.begin("claude-x", (head, rest), asked=now, answered=now + 2), **tokens)


def test_what_an_earlier_request_has_stored_is_read_by_the_next_one() -> None:
    split = CacheSplit()
    assert read(split, head=SYSTEM + MARK + b"}", cached=1000, total=1100) == 0
    longer = SYSTEM + b"}" + USER + MARK + b"}"
    assert read(split, head=longer, cached=2000, total=2100, now=10) == 1000
    assert read(split, head=longer, cached=2000, total=2100, now=20) == 2000
    assert read(split, head=b"x" + longer, cached=2000, total=2100, now=30) == 0


def test_of_a_prompt_with_more_marks_the_shared_part_is_read_in_proportion() -> None:
    split = CacheSplit()
    both = SYSTEM + MARK + b"}" + USER + MARK + b"}"
    assert read(split, head=both, cached=2000, total=2000) == 0
    other = SYSTEM + MARK + b"}" + TEXT + MARK + b"}"
    assert read(split, head=other, cached=2000, total=2000, now=10) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("covers", [True, False])
def test_it_is_seen_whether_a_mark_covers_the_results_before_it(covers: bool) -> None:
    split = CacheSplit()
    head, rest = USER + MARK + b"}", RESULT + b"}" + TEXT + MARK + b"}"
    cached = 3000 if covers else 1000
    assert read(split, head=head, rest=rest, cached=cached, total=3000) == 0
    more = RESULT + b"}" + TEXT + b"}" + RESULT + b"}" + TEXT + MARK + b"}"
    then = 5000 if covers else 1000
    assert read(split, head=head, rest=more, cached=then, total=5000, now=10) == cached
    elsewhere = TEXT + b"}" + RESULT + MARK + b"}"
    assert read(split, head=head, rest=elsewhere, cached=cached, total=3000, now=15) == pytest.approx(1000, abs=20)
    other = USER + b"}" + SYSTEM + MARK + b"}"
    assert read(split, head=other, cached=2000, total=2000, now=20) == pytest.approx(1000, abs=20)


def test_the_cache_ends_five_minutes_after_its_last_use_and_begins_with_the_first_answer() -> None:
    split, head = CacheSplit(), SYSTEM + MARK + b"}"
    assert read(split, head=head, cached=1000, total=1100) == 0
    assert read(split, head=head, cached=1000, total=1100, now=1) == 0  # the first one has not answered yet
    assert read(split, head=head, cached=1000, total=1100, now=CACHE_SECONDS - 1) == 1000
    assert read(split, head=head, cached=1000, total=1100, now=2 * CACHE_SECONDS - 10) == 1000
    assert read(split, head=head, cached=1000, total=1100, now=4 * CACHE_SECONDS) == 0
    later = SYSTEM + b"}" + USER + MARK + b"}"
    assert read(split, head=later, cached=2000, total=2100, now=5 * CACHE_SECONDS - 10) == 1000
    assert read(split, head=head, cached=1000, total=1100, now=6 * CACHE_SECONDS - 20) == 1000  # used by the last one


def test_the_tokens_of_a_prefix_come_from_the_prompt_in_which_its_share_was_largest() -> None:
    split = CacheSplit()
    read(split, head=SYSTEM + MARK + b"}" + b'{"text":"hi"' + MARK + b"}", cached=1003, total=1003)
    dense = SYSTEM + MARK + b"}" + TEXT + MARK + b"}"  # its second half has four times as many tokens
    assert read(split, head=dense, cached=5000, total=5000, now=10) == pytest.approx(1000, abs=5)


def test_what_is_read_again_stays_readable_for_others() -> None:
    split, head = CacheSplit(), SYSTEM + MARK + b"}"
    read(split, head=head, cached=1000, total=1000)
    split.begin("claude-x", (head, b""), asked=10, answered=12)
    assert read(split, head=head, cached=1000, total=1000, now=11) == 1000


def test_a_request_reads_what_another_one_has_stored_whose_answer_still_comes() -> None:
    split, one, two = CacheSplit(), SYSTEM + MARK + b"}" + USER + MARK + b"}", SYSTEM + MARK + b"}" + TEXT + MARK + b"}"
    first = split.begin("claude-x", (one, b""), asked=0, answered=2)
    second = split.begin("claude-x", (two, b""), asked=3, answered=4)
    early = split.begin("claude-x", (two, b""), asked=1, answered=5)
    assert split.read(second, cached=2000, total=2000) == pytest.approx(1000, abs=1)
    assert split.read(early, cached=2000, total=2000) == 0
    assert split.read(first, cached=2000, total=2000) == 0


def test_what_is_remembered_has_a_bound() -> None:
    split = CacheSplit()
    for number in range(MOST_PREFIXES + 20):
        read(split, head=b'{"text":"%d"' % number + MARK + b"}", cached=10, total=10, now=number / 100)
    assert len(split._known) == MOST_PREFIXES


def test_each_model_has_its_own_cache_and_without_marks_nothing_is_read() -> None:
    split, head = CacheSplit(), SYSTEM + MARK + b"}"
    assert read(split, head=head, cached=1000, total=1100) == 0
    assert split.read(split.begin("claude-y", (head, b""), asked=10, answered=12), cached=1000, total=1100) == 0
    assert read(split, head=SYSTEM, cached=1000, total=1100, now=10) == 0
    assert read(split, head=b"", cached=1000, total=1000, now=10) == 0


def test_the_line_of_an_estimate_says_that_it_is_one() -> None:
    used = Used(7, output=6, cached=4805)
    found = a_line(used=used, read=4000)
    assert (found.cache_read, found.cache_write, found.split) == (4000, 805, ESTIMATED)
    assert (a_line(used=used).cache_write, a_line(used=used, read=9999).cache_write) == (4805, 0)
    assert a_line().split == COUNTED
