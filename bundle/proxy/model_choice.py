"""Which model answers for a row now, and what `GET /v1/models` says about it.

A row whose template says `newest` has the names of all models to try, newest first (`model_info.newest`, from
bundle/render.py). Snowflake's list has models that the REST API does not know (docs/cortex.md#sql-models-rest), and
others may not be allowed or not be in the region. So when Cortex refuses a model of such a row, the next older one
answers from then on, for an hour. A row that names its model itself is never changed. No I/O here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from bundle.cortex.catalogue import NEWEST, output_of, readable, window_of
from bundle.cortex.names import row_for
from bundle.render import LIMITS

Row = Mapping[str, Any]  # one row of litellm_config.yaml
MOST_REFUSED = 100  # models that are remembered; with a wildcard in `model`, clients choose their names
FORGET_SECONDS = 3600  # one refused request an hour costs nothing, and Claude Code does not show it
LONGEST_NAME = 200
# Anthropic's API has this date for a model whose date it does not know.
CREATED_AT = "1970-01-01T00:00:00Z"


def bare(model: str) -> str:
    """A model's name as Cortex knows it, without the provider prefix of its row."""
    return model.partition("/")[2] or model


def limits(info: Row, model: str) -> tuple[int | None, int | None]:
    """The context window and the output limit of `model`, which answers for a row with this `model_info`. The numbers
    of a row are about its first model. An older one may have less, and never gets more."""
    written = [info.get(name) for name in LIMITS]
    if model != (info.get(NEWEST) or [model])[0]:
        known = (window_of(model), output_of(model))
        written = [min(filter(None, pair), default=None) for pair in zip(written, known, strict=True)]
    return written[0], written[1]


class Refusal(NamedTuple):
    """An answer of Cortex that refuses a model. `until` is when it is forgotten; `rows` are the ids of the rows for
    which an older model answers."""

    status: int
    words: str
    until: float
    rows: set[str]


class RefusedModels:
    """The models that Cortex has refused lately. Each refusal is forgotten after FORGET_SECONDS, so that a model that
    an administrator has allowed meanwhile answers again. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals: dict[str, Refusal] = {}  # by model

    def _current(self, model: str) -> Refusal | None:
        found = self._refusals.get(model)
        return found if found and self._clock() < found.until else None

    def words(self, model: str) -> tuple[int, str]:
        """The status and the message with which Cortex has refused a model; (0, "") if it has not."""
        found = self._current(model)
        return (found.status, found.words) if found else (0, "")

    def refuses(self, model: str, info: Row) -> bool:
        """Whether Cortex has refused this model to the row with this `model_info`."""
        found = self._current(model)
        return found is not None and (NEWEST not in info or info["id"] in found.rows)

    def answering(self, model: str, info: Row) -> str:
        """The model that answers for a row with this `litellm_params.model` (with its provider) and this `model_info`.
        If Cortex has refused all of them, it is the first: the user gets Cortex's error, and an administrator who
        allows that model changes the next answer."""
        names = info.get(NEWEST) or [bare(model)]
        return next((name for name in names if not self.refuses(name, info)), str(names[0]))

    def refuse(self, model: str, info: Row, rows: Iterable[Row], words: tuple[int, str]) -> str:
        """Remember that Cortex refused `model` to the row with this `model_info`. Returns the model that answers for
        the row from now on; "" if the refusal stays, because there is no other one. `rows` are all rows: each one that
        has this model in its list does without it, until the row changes (and gets another id)."""
        infos = [info, *(row["model_info"] for row in rows)]
        ids = {each["id"] for each in infos if model in (each.get(NEWEST) or ())}
        self._refusals[model] = Refusal(*words, self._clock() + FORGET_SECONDS, ids)
        while len(self._refusals) > MOST_REFUSED:
            del self._refusals[next(iter(self._refusals))]
        if info["id"] not in ids:
            return ""
        successor = self.answering(model, info)
        return "" if self.refuses(successor, info) else successor

    def accept(self, model: str) -> None:
        """Remember that Cortex has answered with `model`. If it had refused that one, the reason has gone, and with it
        perhaps the reason for every other refusal: all are forgotten."""
        if model in self._refusals:
            self._refusals.clear()


def entries(rows: Sequence[Row], refused: RefusedModels) -> list[dict[str, Any]]:
    """The models of `GET /v1/models`: each name that a row has, and what the rows with a pattern stand for now.

    Left out: a model that the account does not list or that Cortex has refused. Of two names that read alike (one with
    a date, one without), the shorter one stays: in a list to pick from, the other one would be the same line again.
    """
    names = [row["model_name"] for row in rows]
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: "*" in row["model_name"]):  # (the patterns at the end)
        model = _answering(row, refused)
        is_listed = row["model_info"].get("listed", True) or model != bare(row["litellm_params"]["model"])
        is_refused = refused.refuses(model, row["model_info"])
        if is_listed and not is_refused and (name := _name_for(row["model_name"], model, names)):
            found.setdefault(name, _entry(name, row, model))
    shortest: dict[str, str] = {}
    for name in sorted(found, key=len):
        shortest.setdefault(found[name]["display_name"], name)
    return [entry for entry in found.values() if entry["id"] in shortest.values()]


def page(found: Sequence[dict[str, Any]], query: str) -> dict[str, Any]:
    """The part of the models for which the query asks, as Anthropic's API pages: `limit`, `after_id`, `before_id`. A
    value that makes no sense is as good as none."""
    asked = dict(parse_qsl(query[:1_000]))
    ids = [entry["id"] for entry in found]
    first = ids.index(asked["after_id"]) + 1 if asked.get("after_id") in ids else 0
    last = ids.index(asked["before_id"]) if asked.get("before_id") in ids else len(ids)
    limit = asked.get("limit", "")
    most = int(limit) if re.fullmatch(r"0*[1-9]\d{0,3}", limit) else len(ids)
    backwards = "before_id" in asked and "after_id" not in asked
    data = found[max(first, last - most) : last] if backwards else found[first : min(last, first + most)]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    has_more = len(data) < last - first
    return {"data": [*data], "has_more": has_more, "first_id": ends[0], "last_id": ends[1]}


def entry_of(asked: str, rows: Sequence[Row], refused: RefusedModels) -> dict[str, Any] | None:
    """The entry of one model, for every name that a row answers; None if no model answers. A name that only a pattern
    answers gets the entry of the model that answers."""
    by_name = {row["model_name"]: row for row in reversed(rows)}
    row = by_name.get((row_for(asked, by_name) or "") if len(asked) <= LONGEST_NAME else "")
    if row is None or refused.refuses(model := _answering(row, refused), row["model_info"]):
        return None
    if "*" not in row["model_name"]:
        return _entry(row["model_name"], row, model)
    own = by_name.get(row_for(model, by_name) or "")  # the row that answers for the model's own name
    return _entry(model if own and _answering(own, refused) == model else asked, row, model)


def _name_for(row: str, model: str, rows: Sequence[str]) -> str:
    """The name under which a client can ask for what a row answers: the row's own name, or for a pattern the model's
    name, if it is such a name. `claude-haiku-*` on another family's model is `claude-haiku-latest`. "" if another row
    answers for that name, or if clients choose the model's name."""
    if "*" not in row:
        return row
    name = model if row_for(model, [row]) else row.replace("*", "latest")
    return name if row_for(name, rows) == row and "*" not in model else ""


def _answering(row: Row, refused: RefusedModels) -> str:
    return refused.answering(row["litellm_params"]["model"], row["model_info"])


def _entry(name: str, row: Row, model: str) -> dict[str, Any]:
    """One model in the format of Anthropic's API."""
    shown, answers = readable(name), readable(model)
    window, output = limits(row["model_info"], model)
    sizes = {"max_input_tokens": window, "max_tokens": output}
    return {
        "type": "model",
        "id": name,
        "display_name": shown if shown == answers else f"{shown} (answered by {answers})",
        "created_at": CREATED_AT,
        **{key: value for key, value in sizes.items() if value},
    }
