"""Writes the ledger, keeps the sums of today and of each session, and watches the day's limit.

All of it happens in a thread of its own. A request only puts notes into a queue: one when its answer begins, one at its
end. So a disk that is full or hangs loses lines, and never an answer. All sums belong to that thread; the event loop
reads only the last `_Verdict`, and asks for a new one when a file with settings or prices has changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from bundle import files, ledger, model_list
from bundle.bootstrap import make
from bundle.cortex.cache_split import CacheSplit, Prompt, Seen
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
from bundle.spending import FILE, WARN_SHARE, Sums, cost_of, dollars, first_day, money

MOST_WAITING = 1_000  # notes in the queue; then lines are lost
MOST_PROMPTS = 50  # of them with a prompt; then nothing is estimated. A disk that hangs must not fill the memory
# After each write, so that many answers cost little more than one. The first answer after a pause is written at once:
# Claude Code then shows the new sums in its status line.
PAUSE_SECONDS = 0.25
LOOK_SECONDS = 5  # how long a request waits for a new verdict
IDLE_SECONDS = 1  # after which the files are looked at without a request, so that `.spent.json` says what is in force
CLOSE_SECONDS = 2
PICTURE_BYTES = 6_000  # what a picture of some 1,500 tokens would have as text


@dataclass(frozen=True)
class _Begun:
    """An answer that has begun, at this time (in seconds since the epoch)."""

    exchange: Exchange
    at: float


@dataclass(frozen=True)
class _Note:
    """An answer that has ended: `at` in seconds since the epoch, `ended` on the monotonic clock."""

    exchange: Exchange
    request_id: str
    status: int
    at: float
    ended: float

    @property
    def ms(self) -> float:
        return (self.ended - self.exchange.started) * 1000

    @property
    def first_ms(self) -> float | None:
        first = self.exchange.first_at
        return None if first is None else (first - self.exchange.started) * 1000

    @property
    def used(self) -> Used | None:
        """None if Cortex has not said it. What Cortex has refused costs nothing."""
        exchange = self.exchange
        if exchange.reader is not None:
            return exchange.reader.used
        return Used() if exchange.answer is not None else None

    @property
    def is_whole(self) -> bool:
        return self.exchange.reader is None or self.exchange.reader.has_whole_usage


@dataclass(frozen=True)
class _Verdict:
    """Whether requests are refused (`message`), on which day, and for which state of the files."""

    message: str = ""
    day: str = ""
    stamp: Stamp | None = None


class Bookkeeper:
    """From the event loop: call `refusal` before each request, `begun` when its answer begins, `note` at its end, and
    `close` after the last one. `clock` gives seconds since the epoch."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._mistake = ""  # in the settings as they are now; those before it are used
        self._stamp: Stamp | None = None  # of the settings and prices that are used
        self._prices: dict[str, Price] = {}
        self._factor = 1.0
        self._sums, self._split = Sums(), CacheSplit()
        self._lost, self._trouble = 0, ""
        self._warned: set[tuple[str, object]] = set()
        self._shown = ""  # what `.spent.json` says
        self._verdict = _Verdict()
        self._queue: queue.Queue[_Begun | _Note | Future[None] | None] = queue.Queue(MOST_WAITING)
        self._wake = threading.Event()  # ends the pause
        self._thread = threading.Thread(target=self._run, name="bookkeeper", daemon=True)
        self._thread.start()

    # -- in the event loop --

    def begun(self, exchange: Exchange) -> None:
        """Note that this answer has begun. It never waits."""
        if exchange.prompt is not None and self._queue.qsize() < MOST_PROMPTS:
            self._put(_Begun(exchange, self._clock()))

    def note(self, exchange: Exchange, reply: Reply) -> None:
        """Note that this answer has ended. It never waits."""
        status = reply.status if reply.has_ended or reply.status >= 400 else CLIENT_LEFT
        if self._queue.qsize() >= MOST_PROMPTS:
            exchange.prompt = None
            self._wake.set()
        if not self._put(_Note(exchange, reply.id, status, self._clock(), time.monotonic())):
            self._lost += 1

    async def refusal(self) -> ErrorAnswer | None:
        """The error for each request after the day's limit was reached; else None."""
        verdict = self._verdict
        if self._files() != verdict.stamp or self._day() != verdict.day:
            look: Future[None] = Future()
            if self._put(look):
                self._wake.set()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.wrap_future(look), LOOK_SECONDS)
            verdict = self._verdict
        return ErrorAnswer(402, "billing_error", verdict.message) if verdict.message else None

    def close(self) -> None:
        """Write what is still waiting, within CLOSE_SECONDS."""
        if self._put(None):
            self._wake.set()
            self._thread.join(CLOSE_SECONDS)

    def _put(self, item: _Begun | _Note | Future[None] | None) -> bool:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def _files(self) -> Stamp:
        """The state of all files that decide what is refused."""
        return files.stamp([*self._settings.sources, PRICES, self._settings.folder / MODELS])

    def _day(self) -> str:
        return f"{datetime.fromtimestamp(self._clock()).astimezone():%Y-%m-%d}"

    # -- in the thread --

    def _run(self) -> None:
        items: list[_Begun | _Note | Future[None] | None] = []
        while None not in items:
            has_notes = self._work(items)
            if has_notes:
                self._wake.wait(PAUSE_SECONDS)
            self._wake.clear()
            items = []
            with suppress(queue.Empty):
                items = [self._queue.get(timeout=IDLE_SECONDS)]
            while not self._queue.empty():
                items.append(self._queue.get())
        self._work(items)

    def _work(self, items: list[_Begun | _Note | Future[None] | None]) -> bool:
        """Do all that these items need; returns whether there were answers that have ended."""
        notes = [item for item in items if isinstance(item, _Note)]
        try:
            self._use_files()
            lines = []
            for item in items:
                if isinstance(item, _Begun):
                    self._begin(item.exchange, item.at)
                elif isinstance(item, _Note):
                    lines += self._lines(item)
            if lines or (self._stamp, self._day()) != (self._verdict.stamp, self._verdict.day):
                self._keep(lines)
        except Exception as error:  # noqa: BLE001 - whatever happens here, the proxy and this thread go on
            self._lose(len(notes), f"{type(error).__name__}: {error}")
        for item in items:
            if isinstance(item, Future) and item.set_running_or_notify_cancel():  # else its request has left
                item.set_result(None)
        return bool(notes)

    def _begin(self, exchange: Exchange, at: float) -> None:
        if exchange.prompt is not None:
            prompt, exchange.prompt = prompt_of(exchange.prompt), None
            exchange.seen = self._split.begin(exchange.model, prompt, asked=exchange.asked_at, answered=at)

    def _lines(self, note: _Note) -> list[Line]:
        """The line of this answer, if Cortex has seen its request."""
        if self._settings.log_requests:
            say(request_line(note))
        exchange, used, read = note.exchange, note.used, None
        if not exchange.sent:
            return []
        if used and used.cached:
            self._begin(exchange, note.at)  # of an answer that came all at once
            seen: Seen | None = exchange.seen
            read = self._split.read(seen, cached=used.cached, total=used.input + used.cached) if seen else None
        exchange.prompt = exchange.seen = None
        return [
            ledger.line(
                note.at,
                session=exchange.session,
                asked=exchange.asked,
                model=exchange.model,
                route="chat" if exchange.is_chat else "messages",
                status=note.status,
                used=used,
                read=read,
                first_ms=note.first_ms,
                ms=note.ms,
                is_whole=note.is_whole,
            )
        ]

    def _keep(self, lines: list[Line]) -> None:
        if self._settings.ledger:
            for line in lines:
                self._add(line)
        self._judge()
        if not self._settings.ledger:
            with suppress(OSError):
                (self._settings.folder / FILE).unlink(missing_ok=True)  # nobody must take old sums for today's
            self._shown = ""
            return
        try:
            if lines:
                ledger.append(self._settings.folder, lines)
            if lines and (self._trouble or self._lost):
                say(f"the ledger is written again; {self._lost} lines are lost")
                self._lost, self._trouble = 0, ""
        except OSError as error:
            place = error.filename or self._settings.folder / ledger.FOLDER
            self._lose(len(lines), f"{place}: {error.strerror}")
        except ConfigError as error:
            self._lose(len(lines), str(error))
        self._show()

    def _show(self) -> None:
        """Write `.spent.json` if it says something else now."""
        text = self._sums.of(self._day(), self._settings.budget).text()
        if text != self._shown:
            try:
                write_private(self._settings.folder / FILE, text)
                self._shown = text
            except ConfigError as error:
                self._once("sums", f"WARNING: the sums in {FILE} are old: {error}")

    def _lose(self, number: int, why: str) -> None:
        self._lost += number
        if not self._trouble:
            say(f"WARNING: the ledger is not written: {printable(why)}\nAnswers go on; their lines are lost.")
        self._trouble = why

    def _once(self, key: object, text: str) -> None:
        """Say it once a day."""
        if (self._day(), key) not in self._warned:
            self._warned.add((self._day(), key))
            say(text)

    def _add(self, line: Line) -> None:
        self._sums.add(line, cost_of(line, self._prices, self._factor))

    # -- settings, prices and the limit --

    def _use_files(self) -> None:
        """Use the settings and the prices as they are now; after a mistake, those before. If that changes what was
        spent, or at the start, read the ledger."""
        if (stamp := self._files()) == self._stamp:
            return
        is_start, had_ledger, before = self._stamp is None, self._settings.ledger, (self._prices, self._factor)
        self._stamp, self._mistake = stamp, ""
        try:
            self._settings = load_settings()
        except ConfigError as error:
            self._mistake = str(error).partition("\n")[0]
        try:
            self._factor = price_factor(self._settings.price_factor, model_list.read(self._settings)).number
            self._prices = read_prices(PRICES)
        except ConfigError as error:
            say(f"WARNING: {error}")
        if is_start or had_ledger != self._settings.ledger or before != (self._prices, self._factor):
            self._read_ledger()

    def _read_ledger(self) -> None:
        self._sums = Sums()
        if self._settings.ledger:
            try:
                for line in ledger.read_lines(self._settings.folder, first_day(self._now())):
                    self._add(line)
            except ConfigError as error:
                say(f"WARNING: the ledger of the last days is not counted: {error}")

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock()).astimezone()

    def _judge(self) -> None:
        """Decide whether requests are refused from now on, and warn when most of the limit is spent."""
        limit, day, message = self._settings.budget, self._day(), ""
        spent = self._sums.of(day, limit)
        if limit is not None:
            place = f"BUDGET_USD_PER_DAY in {self._settings.budget_from}"
            amount = f"{dollars(spent.today)} of {money(limit)}"
            if spent.today.usd >= limit:
                message = self._refused(amount, place)
            elif spent.today.usd >= WARN_SHARE * limit:
                self._once(limit, f"WARNING: {amount} are spent today ({place})")
            if spent.without_price:
                names = ", ".join(spent.without_price)
                self._once(
                    "price",
                    f"WARNING: {place} does not count all tokens of {names}: prices.yaml has no price for some of them",
                )
        self._verdict = _Verdict(message, day, self._stamp)

    def _refused(self, amount: str, place: str) -> str:
        ways = f"It ends at midnight. To go on today, raise or remove {place}."
        if self._settings.budget_from == "the environment":
            ways = (
                "It ends at midnight. BUDGET_USD_PER_DAY comes from the shell that has started the proxy. "
                f"To go on today, run this in a shell without it: {make('stop', 'start')}"
            )
        if self._mistake:
            ways = f"The settings have a mistake, so this limit still counts: {self._mistake}"
        return f"The limit of this day is reached: {amount} are spent. {ways} On what it was spent: {make('usage')}"


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """The prompt of a chat completion, as Claude gets it: system messages first. Empty if it cannot be written."""
    messages = sorted(body.get("messages") or [], key=lambda message: message["role"] not in {"system", "developer"})
    first = next((place for place, message in enumerate(messages) if message["role"] == "tool"), len(messages))
    try:
        head = b"".join(map(orjson.dumps, [body.get("tools"), *map(_small, messages[:first])]))
        return head, b"".join(map(orjson.dumps, map(_small, messages[first:])))
    except TypeError:
        return b"", b""


def _small(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with a digest in the place of each picture, as long as its tokens would be as text."""
    parts = message.get("content")
    if not isinstance(parts, list) or not any(part.get("type") == "image_url" for part in parts):
        return message
    return {**message, "content": [_small_part(part) for part in parts]}


def _small_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part.get("type") != "image_url":
        return part
    digest = hashlib.sha256(str(part["image_url"]).encode()).hexdigest()
    return {**part, "image_url": digest * (PICTURE_BYTES // len(digest))}


def request_line(note: _Note) -> str:
    """The line about a request in the log."""
    used, exchange = note.used, note.exchange
    tokens = "tokens not known"
    if used:
        cached = f"{used.cached} cached" if used.cached else f"{used.cache_read} read, {used.cache_write} written"
        tokens = f"{used.input} in, {cached}, {used.output if note.is_whole else 'not known'} out"
    started = datetime.fromtimestamp(note.at - note.ms / 1000).astimezone()
    model = printable(exchange.model or exchange.asked, 100)
    return f"request {started:%H:%M:%S} {note.request_id} {model} {note.status} ({tokens}) {note.ms:.0f} ms"
