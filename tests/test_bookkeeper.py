"""The bookkeeper by itself: its thread, its sums after a restart, and the day's limit."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle import ledger
from bundle.cortex.answers import MessagesAnswer
from bundle.ledger import read_lines
from bundle.prices import FILE as FILE_OF_PRICES
from bundle.proxy import bookkeeper
from bundle.proxy.bookkeeper import MOST_WAITING, PICTURE_BYTES, Bookkeeper, prompt_of
from bundle.proxy.live_config import Exchange
from bundle.proxy.replies import ErrorAnswer, Reply
from bundle.settings import load_settings
from bundle.spending import FILE
from tests.set_up import wait_until

DAY = 24 * 3600


async def nobody(_: Any) -> None:
    """Reads no answer."""


class Books:
    """A bookkeeper with a clock, whose settings are a `.env` in a folder of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.now = 1_790_000_000.0
        self._environ = environ
        self.keeper = self.start()

    def start(self) -> Bookkeeper:
        self.keeper = Bookkeeper(load_settings(self._environ), lambda: self.now)
        return self.keeper

    def answer(self, tokens: int = 0, model: str = "claude-sonnet-4-5", session: str = "s-1") -> None:
        """Note an answer that has used so many tokens of input: a million cost 3 dollars."""
        exchange = Exchange("asked", session, model=model, sent=True)
        exchange.reader = reader = MessagesAnswer()
        usage = {"input_tokens": tokens, "output_tokens": 0}
        reader.answer({"content": [{"type": "text", "text": "hello"}], "usage": usage})
        reply = Reply(nobody)
        reply.status, reply.has_ended = 200, True
        self.keeper.note(exchange, reply)

    def refusal(self) -> ErrorAnswer | None:
        return asyncio.run(self.keeper.refusal())

    def settled(self) -> dict[str, Any]:
        """What `.spent.json` says when all notes are written."""
        self.keeper.close()
        assert not self.keeper._thread.is_alive()
        tree: dict[str, Any] = json.loads((self.folder / FILE).read_text())
        return tree


@pytest.fixture
def books(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Books]:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    environ = {**environ, "CORTEX_HOME": str(folder), "PRICE_FACTOR": "1"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    made = Books(folder, environ)
    yield made
    made.keeper.close()


@pytest.fixture
def own_prices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_bytes(FILE_OF_PRICES.read_bytes())
    monkeypatch.setattr(bookkeeper, "PRICES", path)
    return path


def hang(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let the disk hang until this event is set."""
    goes_on, real = threading.Event(), ledger.append

    def hanging(*arguments: Any) -> None:
        goes_on.wait(20)
        real(*arguments)

    monkeypatch.setattr(ledger, "append", hanging)
    return goes_on


def limit(books: Books, dollars: str) -> None:
    (books.folder / ".env").write_text(f"BUDGET_USD_PER_DAY={dollars}\n")


def test_the_sums_of_the_day_and_of_a_session_go_on_after_a_restart(books: Books) -> None:
    books.answer(1_000_000)
    books.settled()
    books.start()
    books.answer(2_000_000)
    books.answer(1_000_000, session="s-2")
    spent = books.settled()
    assert spent["today"]["usd"] == pytest.approx(12)
    assert {name: session["spent"]["usd"] for name, session in spent["sessions"].items()} == {
        "s-1": pytest.approx(9),
        "s-2": pytest.approx(3),
    }
    assert (books.folder / FILE).stat().st_mode & 0o777 == 0o600


def test_the_next_day_begins_with_nothing_spent(books: Books) -> None:
    books.answer(1_000_000)
    books.settled()
    books.now += DAY
    books.start()
    books.answer(10_000)
    spent = books.settled()
    assert spent["today"]["usd"] == pytest.approx(0.03)
    assert spent["sessions"]["s-1"]["spent"]["usd"] == pytest.approx(3.03)


def test_a_changed_price_counts_for_the_whole_day(books: Books, own_prices: Path) -> None:
    books.answer(1_000_000)
    books.settled()
    own_prices.write_text("prices:\n  claude-sonnet-4-5: { input: 1.00, output: 1.00 }\n")
    books.start()
    books.answer(1_000_000)
    wait_until(lambda: json.loads((books.folder / FILE).read_text())["today"]["usd"] == pytest.approx(2), 10)
    own_prices.write_text("prices:\n  claude-sonnet-4-5: { input: 5.00, output: 1.00 }\n")
    books.answer(1_000_000)
    assert books.settled()["today"]["usd"] == pytest.approx(15)


def test_a_limit_that_was_reached_before_a_restart_is_reached_after_it(books: Books) -> None:
    limit(books, "2")
    books.answer(1_000_000)
    books.settled()
    books.start()
    refused = books.refusal()  # the first request waits until the ledger is read
    assert refused
    assert (refused.status, refused.kind, refused.final) == (402, "billing_error", True)
    assert "$3.00 of $2.00" in refused.message


@pytest.mark.keeps("day-s-limit")
def test_below_the_limit_nothing_is_refused_and_from_it_on_everything_until_midnight(books: Books) -> None:
    limit(books, "5")
    books.answer(1_400_000)
    wait_until(lambda: _usd(books) >= 4.2, 10)
    assert books.refusal() is None
    books.answer(400_000)
    assert wait_until(books.refusal, 10)
    limit(books, "50")
    assert books.refusal() is None
    limit(books, "5")
    assert books.refusal() is not None
    books.now += DAY
    assert books.refusal() is None
    books.now -= DAY  # a clock that is set back brings the day back
    assert books.refusal() is not None


def test_a_limit_that_is_raised_while_an_answer_ends_is_raised(books: Books) -> None:
    limit(books, "2")
    books.answer(1_000_000)
    assert wait_until(books.refusal, 10)
    limit(books, "50")
    books.keeper.note(Exchange("asked", "s-1"), Reply(nobody))
    wait_until(books.keeper._queue.empty, 10)
    assert books.refusal() is None


def test_a_request_that_leaves_while_a_new_limit_is_looked_up_harms_nobody(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = hang(monkeypatch)
    books.answer(1_000_000)
    wait_until(books.keeper._queue.empty, 10)
    limit(books, "2")

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(books.keeper.refusal(), 0.2)

    asyncio.run(leave())
    goes_on.set()
    assert wait_until(books.refusal, 10)


def test_a_price_that_is_corrected_counts_at_the_limit_too(books: Books, own_prices: Path) -> None:
    limit(books, "2")
    books.start()
    books.answer(1_000_000)
    assert wait_until(books.refusal, 10)
    own_prices.write_text("prices:\n  claude-sonnet-4-5: { input: 1.00, output: 1.00 }\n")
    assert books.refusal() is None


def test_after_a_mistake_in_the_settings_the_limit_before_counts_and_the_mistake_is_named(books: Books) -> None:
    limit(books, "2")
    books.answer(1_000_000)
    assert wait_until(books.refusal, 10)
    limit(books, "$20")
    refused = books.refusal()
    assert refused
    assert "so this limit still counts" in refused.message
    assert "BUDGET_USD_PER_DAY is '$20'" in refused.message


def test_a_limit_of_another_shell_says_how_to_get_rid_of_it(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDGET_USD_PER_DAY", "2")
    books._environ["BUDGET_USD_PER_DAY"] = "2"
    books.start()
    books.answer(1_000_000)
    refused = wait_until(books.refusal, 10)
    assert "comes from the shell that has started the proxy" in refused.message
    assert "stop start" in refused.message


def test_a_limit_that_does_not_count_a_model_is_said_once_a_day(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(books, "2")
    for _ in range(2):
        books.answer(1_000_000, model="no-such-model")
        books.settled()
        books.start()
    books.settled()
    assert "does not count all tokens of no-such-model: prices.yaml" in capsys.readouterr().out
    assert json.loads((books.folder / FILE).read_text())["without_price"] == ["no-such-model"]


def test_a_changed_limit_is_shown_without_a_request(books: Books) -> None:
    books.answer(1_000_000)
    wait_until(lambda: _usd(books) > 0, 10)
    limit(books, "7")
    wait_until(lambda: json.loads((books.folder / FILE).read_text())["limit"] == 7, 10)


def test_the_ledger_switched_on_again_counts_what_it_has_at_once(books: Books) -> None:
    limit(books, "2")
    books.answer(1_000_000)
    assert wait_until(books.refusal, 10)
    (books.folder / ".env").write_text("LEDGER=off\n")
    assert books.refusal() is None
    assert not (books.folder / FILE).exists()
    books.start()
    assert books.refusal() is None
    limit(books, "2")
    assert books.refusal() is not None
    assert _usd(books) == pytest.approx(3)


def _usd(books: Books) -> float:
    path = books.folder / FILE
    return float(json.loads(path.read_text())["today"]["usd"]) if path.exists() else 0.0


def test_most_of_the_limit_is_said_once_a_day(books: Books, capsys: pytest.CaptureFixture[str]) -> None:
    limit(books, "5")
    for number in range(1, 4):
        books.answer(1_400_000 if number == 1 else 10_000)
        wait_until(lambda number=number: len([*read_lines(books.folder)]) == number, 10)  # type: ignore[misc]
    books.settled()
    assert capsys.readouterr().out.count("$4.20 of $5.00 are spent today") == 1


@pytest.mark.keeps("ledger-bounds")
def test_a_disk_that_hangs_costs_lines_and_no_answer(
    books: Books, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    goes_on = hang(monkeypatch)
    for number in range(2 * MOST_WAITING):
        books.answer(number)  # returns at once, or this test takes very long
    goes_on.set()
    wait_until(lambda: len([*read_lines(books.folder)]) >= MOST_WAITING, 20)
    books.keeper._put(None)
    books.keeper._thread.join(20)
    kept = len([*read_lines(books.folder)])
    assert MOST_WAITING <= kept < 2 * MOST_WAITING
    assert f"{2 * MOST_WAITING - kept} lines are lost" in capsys.readouterr().out


def _raises(error: Exception) -> Callable[..., None]:
    def raising(*_: Any) -> None:
        raise error

    return raising


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "ledger"), ValueError("a mistake of ours")])
def test_an_error_while_writing_is_said_once_and_the_day_s_sum_goes_on(
    books: Books, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "append", _raises(error))
        for number in range(1, 4):
            books.answer(1_000_000)
            wait_until(lambda number=number: books.keeper._lost == number, 10)  # type: ignore[misc]
        if isinstance(error, OSError):
            wait_until(lambda: _usd(books) == pytest.approx(9), 10)  # the status line goes on, too
    books.answer(1_000_000)
    assert books.settled()["today"]["usd"] == pytest.approx(12)
    said = capsys.readouterr().out
    assert said.count("the ledger is not written") == 1
    assert ("ledger: No space left on device" if isinstance(error, OSError) else str(error)) in said
    assert "written again; 3 lines are lost" in said


def test_with_the_ledger_off_nothing_is_written_and_old_sums_go(books: Books) -> None:
    books.answer(1_000_000)
    books.settled()
    books.start()
    (books.folder / ".env").write_text("LEDGER=off\n")
    books.answer(1_000_000)
    books.keeper.close()
    assert len([*read_lines(books.folder)]) == 1
    assert not (books.folder / FILE).exists()  # the status line must not show it for ever


def test_a_prompt_has_its_system_messages_first_and_is_cut_at_its_first_result() -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "system", "content": "two"},
        {"role": "tool", "content": "three"},
        {"role": "user", "content": "four"},
    ]
    head, rest = prompt_of({"tools": [{"name": "t"}], "messages": messages})
    assert [words for words in ("name", "two", "one") if words.encode() in head] == ["name", "two", "one"]
    assert head.index(b"two") < head.index(b"one")
    assert rest.index(b"three") < rest.index(b"four")
    assert prompt_of({"messages": [{"role": "user", "content": {1, 2}}]}) == (b"", b"")


def test_a_picture_is_a_digest_as_long_as_its_tokens_in_the_prompt_that_is_compared() -> None:
    def prompt(picture: str) -> bytes:
        parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": picture}}]
        return prompt_of({"messages": [{"role": "user", "content": parts}]})[0]

    one, other = (prompt(f"data:image/png;base64,{letter * 1_000_000}") for letter in "AB")
    assert PICTURE_BYTES / 2 < len(one) < 2 * PICTURE_BYTES
    assert one != other
    assert one == prompt("data:image/png;base64," + "A" * 1_000_000)
