"""Writes the ledger, keeps the sums of today and of each session, and watches the day's limit.

All of it happens in a thread of its own, after the answer: a request only puts a note into a queue. A disk that is full
or hangs loses lines, and never an answer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from bundle import files, ledger, model_list
from bundle.bootstrap import make
from bundle.cortex.cache_split import CacheSplit, Prompt
from bundle.cortex.usage import Used
from bundle.errors import ConfigError, printable, say
from bundle.files import Stamp, write_private
from bundle.ledger import Line
from bundle.model_list import FILE as MODELS
from bundle.prices import FILE as PRICES
from bundle.prices import Price, price_factor, read_prices
from bundle.proxy.live_config import Exchange
from bundle.proxy.replies import CLIENT_LEFT, ErrorAnswer, Reply
from bundle.settings import Settings, load_settings
from bundle.spending import FILE, WARN_SHARE, Spent, cost_of, first_day, money

MOST_WAITING = 500  # notes; each holds a prompt. A disk that hangs must not fill the memory
# After each write, so that many answers cost little more than one. The first answer after a pause is written at once:
# Claude Code then shows the new sums in its status line.
PAUSE_SECONDS = 0.25
MANY = 50  # notes that end the pause
CLOSE_SECONDS = 2


@dataclass
class Note:
    """One answer that has ended. `started` and `first` are monotonic, `ended` is both: (monotonic, clock)."""

    exchange: Exchange
    request_id: str
    status: int
    used: Used | None
    first: float | None
    ended: tuple[float, float]

    @property
    def ms(self) -> float:
        return (self.ended[0] - self.exchange.started) * 1000

    @property
    def first_ms(self) -> float | None:
        return None if self.first is None else (self.first - self.exchange.started) * 1000


class Bookkeeper:
    """Call `note` for each answer and `refusal` before each request, both from the event loop; `close` at the end.
    `clock` gives seconds since the epoch."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._stamp: Stamp = files.stamp(settings.sources)
        self._prices: dict[str, Price] = {}
        self._factor = 1.0
        self._prices_stamp: Stamp | None = None  # of the files that decide about prices
        self._spent = Spent(limit=settings.budget)
        self._split = CacheSplit()
        self._lost, self._trouble, self._warned = 0, "", ""  # `_warned`: the day of the warning
        self._over = ""  # the message while the day's limit is reached
        self._queue: queue.Queue[Note | None] = queue.Queue(MOST_WAITING)
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bookkeeper", daemon=True)
        self._thread.start()

    # -- in the event loop --

    def note(self, exchange: Exchange, reply: Reply) -> None:
        """Keep what this answer has used. It never waits."""
        status = reply.status if reply.has_ended or reply.status >= 400 else CLIENT_LEFT
        used = exchange.reader.used if exchange.reader else None
        ended = (time.monotonic(), self._clock())
        try:
            self._queue.put_nowait(Note(exchange, reply.id, status, used, reply.first_at, ended))
        except queue.Full:
            self._lost += 1

    def refusal(self) -> ErrorAnswer | None:
        """The error for each request after the day's limit was reached; else None."""
        if files.stamp(self._settings.sources) != self._stamp or (self._over and self._day() != self._spent.day):
            self._use_settings()
            self._look_at_limit()
        return ErrorAnswer(402, "billing_error", self._over) if self._over else None

    def close(self) -> None:
        """Write what is still waiting, within CLOSE_SECONDS."""
        self._is_closing.set()
        try:
            self._queue.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(CLOSE_SECONDS)

    # -- in the thread --

    def _run(self) -> None:
        self._use_prices()
        self._read_ledger()
        is_open = True
        while is_open:
            notes = [self._queue.get()]
            while not self._queue.empty():
                notes.append(self._queue.get())
            is_open = None not in notes
            try:
                self._keep([note for note in notes if note is not None])
            except Exception as error:  # noqa: BLE001 - whatever happens here, the proxy goes on
                self._lose(len(notes), f"{type(error).__name__}: {error}")
            until = time.monotonic() + PAUSE_SECONDS
            while not self._is_closing.wait(PAUSE_SECONDS / 5) and time.monotonic() < until:
                if self._queue.qsize() >= MANY:
                    break

    def _read_ledger(self) -> None:
        """Start with the sums of what was spent before this process, or before a change of the prices."""
        self._spent = Spent(limit=self._settings.budget)
        self._spent.start_day(self._now())
        if self._settings.ledger:
            try:
                for line in ledger.read_lines(self._settings.folder, first_day(self._now())):
                    self._add(line)
                self._write_sums()
            except ConfigError as error:
                say(f"WARNING: the ledger of the last days is not counted: {error}")
        self._look_at_limit()

    def _keep(self, notes: list[Note]) -> None:
        self._use_settings()
        if self._use_prices():
            self._read_ledger()
        lines = [self._line(note) for note in notes if note.exchange.sent]
        if self._settings.log_requests:
            for note in notes:
                say(request_line(note))
        if not self._settings.ledger:
            with suppress(OSError):
                (self._settings.folder / FILE).unlink(missing_ok=True)  # nobody must take old sums for today's
            return
        if not lines:
            return
        self._spent.start_day(self._now())
        for line in lines:
            self._add(line)
        self._look_at_limit()
        waiting = len(lines)  # to be written
        try:
            ledger.append(self._settings.folder, lines)
            waiting = 0
            self._write_sums()
        except OSError as error:
            self._lose(waiting, f"{error.filename}: {error.strerror}")
            return
        except ConfigError as error:
            self._lose(waiting, str(error))
            return
        if self._trouble or self._lost:
            say(f"the ledger is written again; {self._lost} lines are lost")
            self._lost, self._trouble = 0, ""

    def _lose(self, number: int, why: str) -> None:
        self._lost += number
        if not self._trouble:
            say(f"WARNING: the ledger is not written: {printable(why)}\nAnswers go on; their lines are lost.")
        self._trouble = why

    def _line(self, note: Note) -> Line:
        exchange, used = note.exchange, note.used
        read = None
        if used and used.cached:
            total, answered = used.input + used.cached, note.first or note.ended[0]
            prompt, asked = prompt_of(exchange.prompt or {}), exchange.started
            read = self._split.read(
                exchange.model, prompt, cached=used.cached, total=total, asked=asked, answered=answered
            )
        exchange.prompt = None
        return ledger.line(
            note.ended[1],
            session=exchange.session,
            asked=exchange.asked,
            model=exchange.model,
            route="chat" if exchange.is_chat else "messages",
            status=note.status,
            used=used,
            read=read,
            first_ms=note.first_ms,
            ms=note.ms,
        )

    def _add(self, line: Line) -> None:
        self._spent.add(line, cost_of(line, self._prices, self._factor))

    def _write_sums(self) -> None:
        write_private(self._settings.folder / FILE, self._spent.text())

    # -- settings, prices and the limit --

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock()).astimezone()

    def _day(self) -> str:
        return f"{self._now():%Y-%m-%d}"

    def _use_settings(self) -> None:
        """Use the settings as they are now; after a mistake, those before."""
        if (stamp := files.stamp(self._settings.sources)) != self._stamp:
            self._stamp = stamp
            try:
                self._settings = load_settings()
            except ConfigError:  # the refresher's log shows the error
                return
        self._spent.limit = self._settings.budget

    def _use_prices(self) -> bool:
        """Use the prices as they are now, or after a mistake those before; returns whether they have changed."""
        before, models = (self._prices, self._factor), self._settings.folder / MODELS
        if (stamp := files.stamp([PRICES, models, *self._settings.sources])) != self._prices_stamp:
            self._prices_stamp = stamp
            try:
                self._factor = price_factor(self._settings.price_factor, model_list.read(self._settings)).number
                self._prices = read_prices(PRICES)
            except ConfigError as error:
                say(f"WARNING: {error}")
        return before != (self._prices, self._factor)

    def _look_at_limit(self) -> None:
        """Warn once a day when most of the limit is spent; from the limit on, `refusal` refuses."""
        limit, today = self._settings.budget, self._spent.today
        if self._spent.day != self._day():
            self._spent.start_day(self._now())
            today = self._spent.today
        if limit is None or today.usd < WARN_SHARE * limit:
            self._over = ""
            return
        place = f"BUDGET_USD_PER_DAY in {self._settings.budget_from}"
        spent = f"{'at least ' if today.unpriced else ''}{money(today.usd)} of {money(limit)}"
        if today.usd < limit:
            self._over = ""
            if self._warned != self._spent.day:
                say(f"WARNING: {spent} are spent today ({place})")
        else:
            self._over = (
                f"The limit of this day is reached: {spent} are spent. It ends at midnight. To go on today, raise or "
                f"remove {place}. On what it was spent: {make('usage')}"
            )
        self._warned = self._spent.day


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """The prompt of a chat completion, as Claude gets it: system messages first. Empty if it cannot be written."""
    messages = sorted(body.get("messages") or [], key=lambda message: message["role"] not in {"system", "developer"})
    first = next((place for place, message in enumerate(messages) if message["role"] == "tool"), len(messages))
    try:
        head, rest = (
            b"".join(map(orjson.dumps, part)) for part in ([body.get("tools"), *messages[:first]], messages[first:])
        )
    except TypeError:
        return b"", b""
    return head, rest


def request_line(note: Note) -> str:
    """The line about a request in the log."""
    used, exchange = note.used, note.exchange
    tokens = "tokens not known"
    if used:
        cached = f"{used.cached} cached" if used.cached else f"{used.cache_read} read, {used.cache_write} written"
        tokens = f"{used.input} in, {cached}, {used.output} out"
    started = datetime.fromtimestamp(note.ended[1] - note.ms / 1000).astimezone()
    model = printable(exchange.model or exchange.asked, 100)
    return f"request {started:%H:%M:%S} {note.request_id} {model} {note.status} ({tokens}) {note.ms:.0f} ms"
