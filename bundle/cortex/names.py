"""The many names of a Claude model: which row of the template answers for the name that a client asks for.

Claude Code may ask with a name that another provider uses, because a setting for that provider is still there, or with
a bare word such as `opus`. The template has Anthropic's own names. So a foreign name is first spelled as Anthropic
spells it, and if no row fits that either, the row of its family answers. A row that fits the name as it was asked for
always wins.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

from bundle.cortex.catalogue import FAMILIES

# What providers put around Anthropic's name: `us.anthropic.` before it and `-v1:0` after it (Bedrock), `@` before the
# date (Vertex), `anthropic/` before it and `:beta` after it (gateways). `[1m]` is Claude Code's own.
_NAME = re.compile(r"(?:^|[./:~])(claude-[a-z0-9.@-]+)", re.IGNORECASE)
_AFTER = re.compile(r"(-v\d+|@default|@latest)$")
_FAMILY = re.compile(rf"(?:^|-)({'|'.join(FAMILIES)})(?:-|$)")


def answering(asked: str, rows: Collection[str]) -> str:
    """The name under which a row answers for the name `asked`; `asked` itself if none does. `rows` are the template's
    `model_name`s."""
    spelled = _as_anthropic_spells_it(asked)
    if asked in rows or any(_matches(asked, row) and not _matches(spelled, row) for row in rows):
        return asked  # there is a row for just this spelling
    if spelled in rows:
        return spelled
    family = _FAMILY.search(spelled)
    names = [spelled, f"claude-{family[1]}-latest"] if family else [spelled]
    rows_of_one_family = [row for row in rows if not _is_for_all(row)]
    fitting = (name for choice in (rows_of_one_family, rows) for name in names if _fits(name, choice))
    return next(fitting, asked)


def has_row(asked: str, rows: Collection[str]) -> bool:
    """Whether a row answers for this name."""
    return _fits(answering(asked, rows), rows)


def row_for(asked: str, rows: Collection[str]) -> str | None:
    """The `model_name` of the row that answers for this name, the longest of those that fit; None if none does."""
    name = answering(asked, rows)
    fitting = [row for row in rows if name == row or _matches(name, row)]
    return name if name in rows else max(fitting, key=len, default=None)


def _as_anthropic_spells_it(asked: str) -> str:
    """`us.anthropic.claude-sonnet-4-5-20250929-v1:0` as `claude-sonnet-4-5-20250929`."""
    bare = asked.partition("[")[0].strip().lower()
    found = _NAME.search(bare)
    return re.sub(r"[.@]", "-", _AFTER.sub("", found[1])).strip("-") if found else bare


def _fits(name: str, rows: Collection[str]) -> bool:
    return name in rows or any(_matches(name, row) for row in rows)


def _is_for_all(row: str) -> bool:
    return all(_matches(f"claude-{family}-latest", row) for family in FAMILIES)


def _matches(name: str, row: str) -> bool:
    return "*" in row and fnmatchcase(name, row.replace("[", "[[]"))
