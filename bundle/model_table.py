"""The models of an account side by side with the rows of the template: what `make models` shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bundle.cortex.catalogue import FAMILIES, NEWEST, Listed, claude_family, output_of, window_of
from bundle.cortex.models import version_of
from bundle.model_list import ModelList
from bundle.prices import Price
from bundle.render import is_cortex, model_of

NOT_LISTED = "not listed"
# Models of other kinds and other products are in Snowflake's list too (docs/cortex.md#models-not-rest).
_ON_REST = re.compile(r"(claude|openai-(1p-)?gpt|(snowflake-)?llama|mistral|deepseek)(?!.*(embed|guard|scout|gpt-4o))")


def by_model(
    rows: Sequence[Mapping[str, Any]], listed: ModelList, prices: Mapping[str, Price], *, everything: bool = False
) -> list[dict[str, Any]]:
    """One entry for each model that the account lists or that a row names: Claude first, the newest first.

    `rows` are the rendered rows. In an entry, `cross_region` is whether the model needs cross-region inference, and
    `reachable` whether the account's setting lets it be used (None: not known). `rows` are the names for which it
    answers, `newest` those of them that follow the account by themselves.
    """
    names: dict[str, list[Mapping[str, Any]]] = {}
    for row in filter(is_cortex, rows):
        names.setdefault(model_of(row), []).append(row)
    known = {model.name: model for model in listed.models if everything or _ON_REST.match(model.name)}
    known |= {name: listed.find(name) or Listed(name, NOT_LISTED) for name in names}
    return [_entry(known[name], names.get(name, ()), listed, prices.get(name)) for name in sorted(known, key=_order)]


def _entry(model: Listed, rows: Sequence[Mapping[str, Any]], listed: ModelList, price: Price | None) -> dict[str, Any]:
    info: Mapping[str, Any] = rows[0]["model_info"] if rows else {}
    is_listed = model.stage != NOT_LISTED
    return {
        "model": model.name,
        "stage": model.stage,
        "legacy": model.legacy,
        "ends": model.ends,
        # Of models that are not Claude, Cortex's windows are not known well enough to show them.
        "window": info.get("max_input_tokens") or (window_of(model.name) if claude_family(model.name) else None),
        "output": info.get("max_output_tokens") or output_of(model.name),
        "price": asdict(price) if price else None,
        "cross_region": listed.needs_cross_region(model) if is_listed and listed.region else None,
        "reachable": listed.reaches(model) if is_listed else None,
        "rows": [row["model_name"] for row in rows],
        "newest": [row["model_name"] for row in rows if NEWEST in row["model_info"]],
    }


def _order(name: str) -> tuple[int, tuple[int, ...], str]:
    """Claude first, family by family, the newest first; then the others by name."""
    family = claude_family(name)
    if family:
        return FAMILIES.index(family), tuple(-number for number in (*version_of(name), 0)[:2]), name
    return len(FAMILIES) + (not name.startswith("claude")), (), name
