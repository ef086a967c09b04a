"""The tables and the bars of `make usage`: as much as fits into the terminal, and never a wrapped line."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from rich.bar import Bar
from rich.console import Console, JustifyMethod
from rich.table import Table

from bundle.spending import TOKENS, dollars
from bundle.usage_report import Row, added, percent, range_of

PIPE = 10_000  # columns: what is not a terminal gets each line whole
LONGEST_LINE, LONGEST_BAR, SHORTEST_BAR = 100, 50, 10
# What a table shows. The first choice that fits is taken, else the last one.
CHOICES: tuple[tuple[str, ...], ...] = (
    ("session", "requests", "input", "output", "cache_read", "cache_write", "total", "cached", "spent"),
    ("input", "output", "cache_read", "cache_write", "cached", "spent"),
    ("total", "cached", "spent"),
    ("total", "spent"),
)
OVERVIEW = (("requests", "total", "cached", "spent", "range"), ("total", "cached", "spent", "range"), *CHOICES[2:])
# What tells the rows of a table apart. It is always shown; a model's name is folded if nothing fits.
LEADS: Mapping[str, tuple[str, ...]] = {
    "day": ("date", "model"),
    "model": ("model",),
    "session": ("began", "model"),
    "hour": ("date", "hour", "model"),
}
TITLES: Mapping[str, str] = {
    "of": "",
    "cache_read": "cache read",
    "cache_write": "cache write",
    "total": "tokens",
    "cached": "from cache",
}
Cells = dict[str, str]


def whole(number: int) -> str:
    return f"{number:,}"


def short(number: int) -> str:
    """At most seven characters: 9,999, 45.7k, 12.3M."""
    for size, least, letter in ((10**9, 10**9, "B"), (10**6, 10**6, "M"), (10**3, 10**4, "k")):
        if number >= least:
            return f"{number / size:.1f}{letter}"
    return f"{number:,}"


class Page:
    """Prints to standard output, `width` columns wide, with an empty line between two things. `styled`: with colour,
    short numbers and bars."""

    def __init__(self, width: int, *, styled: bool) -> None:
        self._width, self._styled, self._has_begun = width, styled, False
        self._numbers: tuple[Callable[[int], str], ...] = (short,) if styled else (whole, short)
        self._console = Console(highlight=False, markup=False, width=width, force_terminal=styled)

    def say(self, text: str) -> None:
        """Print a paragraph, if there is one."""
        if not text:
            return
        self._begin()
        width = self._width if self._width == PIPE else min(self._width, LONGEST_LINE)
        print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), flush=True)

    def sums(self, rows: Sequence[Row]) -> None:
        """Print the overview."""
        self._table(rows, ("of",), OVERVIEW)

    def table(self, rows: Sequence[Row], by: str) -> None:
        """Print a table of these rows, and below them their sum."""
        self._table(rows, LEADS[by], CHOICES, added(rows, {LEADS[by][0]: "all"}))

    def _table(
        self, rows: Sequence[Row], leads: Sequence[str], choices: Sequence[Sequence[str]], last: Row | None = None
    ) -> None:
        every = [*rows, last] if last else rows
        titles, cells, gap = self._fitting(every, leads, choices)
        shown = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
        for title in titles:
            justify: JustifyMethod = "left" if title in leads else "right"
            shown.add_column(self._title(title), justify=justify, overflow="fold", no_wrap=title != "model")
        for row, each in zip(every, cells, strict=True):
            shown.add_row(*(each.get(title, "") for title in titles), style="bold" if row is last else None)
        self._begin()
        self._console.print(shown)

    def bars(self, days: Sequence[Row]) -> None:
        """A bar for each day, in dollars; in tokens if nothing has a price. Only for a terminal with colour."""
        in_dollars = any(row.amount.usd for row in days)
        sizes = [row.amount.usd if in_dollars else row.total for row in days]
        labels = [dollars(row.amount) if in_dollars else short(row.total) for row in days]
        room = self._width - len("2026-11-24") - max(map(len, labels), default=0) - 4
        if not self._styled or room < SHORTEST_BAR:
            return
        chart = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        for row, size, label in zip(days, sizes, labels, strict=True):
            bar = Bar(max(sizes) or 1, 0, size, width=min(LONGEST_BAR, room), color="cyan")
            chart.add_row(row.keys["date"], bar, label)
        self._begin()
        self._console.print(chart)

    def _begin(self) -> None:
        if self._has_begun:
            print(flush=True)
        self._has_begun = True

    def _title(self, name: str) -> str:
        title = TITLES.get(name, name)
        return title if self._width == PIPE else title.replace(" ", "\n", 1)

    def _fitting(
        self, rows: Sequence[Row], leads: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> tuple[list[str], list[Cells], int]:
        """The columns of the first choice that fits, else of the last one; their cells, and the gap between them."""
        found: list[tuple[list[str], list[Cells], int]] = []
        for choice, number in ((choice, number) for choice in choices for number in self._numbers):
            cells = [_cells(row, number) for row in rows]
            titles = [*leads, *(name for name in choice if any(each.get(name) for each in cells))]
            gap = 2 if choice is choices[0] else 1
            found.append((titles, cells, gap))
            if sum(self._column(title, cells) + gap for title in titles) - gap <= self._width:
                break
        return found[-1]

    def _column(self, title: str, cells: Sequence[Cells]) -> int:
        """How wide a column is."""
        return max(map(len, [*self._title(title).splitlines(), *(each.get(title, "") for each in cells)]))


def _cells(row: Row, number: Callable[[int], str]) -> Cells:
    amount, keys = row.amount, dict(row.keys)
    if "session" in keys:
        keys |= {"began": f"{keys['date']} {keys['began']}", "session": keys["session"][:8] or "no session"}
    return {
        **keys,
        **{name: number(getattr(amount, name)) for name in ("requests", *TOKENS)},
        "total": number(row.total),
        "cached": percent(amount.cached_share),
        "spent": dollars(amount),
        "range": range_of(amount),
    }
