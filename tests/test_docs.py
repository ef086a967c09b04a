"""docs/cortex.md against the code: who refers to a line finds it, and every line says where it comes from."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tests.conftest import BUNDLE
from tests.cortex_rules import Options
from tests.cortex_stub import CortexStub

CORTEX = (BUNDLE / "docs" / "cortex.md").read_text(encoding="utf-8")
ANCHOR = re.compile(r'<a id="([a-z0-9-]+)"></a>')
SOURCES = frozenset({"rec", "live", "doc", "maker", "unsure"})
RECORDED = ("llama", "model_simple", "model_streaming", "native_output", "openai_model", "thinking")
RECORDINGS = frozenset(f"test_snowflake_{name}.yaml" for name in (*RECORDED, "thinking_streaming", "tool_calling", "*"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def tables() -> list[list[list[str]]]:
    """Every table of the document: its lines as cells, the head first, without the line below the head."""
    found = re.findall(r"(?:^\|.*\n)+", CORTEX, re.MULTILINE)
    return [[cells(line) for line in (head, *rows)] for head, _, *rows in map(str.splitlines, found)]


def facts() -> list[list[str]]:
    return [row for _, *rows in tables() for row in rows]


def anchors() -> list[str]:
    return ANCHOR.findall(CORTEX)


def kind(word: str) -> str:
    """What a word in a column of sources is: a source, what says more about one, or nothing that is known."""
    if word in SOURCES:
        return word
    if word in RECORDINGS:
        return "file"
    return "switch" if re.fullmatch(r"(Options|CortexStub)\.\w+", word) else "unknown"


def references() -> Iterator[tuple[str, str]]:
    """Each file of the repository that names a line of the document, and the anchor by which it does."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", "*.py", "*.md", "*.yaml", "Makefile"]
    listed = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=True, timeout=60).stdout
    for path in sorted(set(listed.split("\0")) - {""}):
        if (BUNDLE / path).is_file():  # one that is removed stays listed until the commit
            text = (BUNDLE / path).read_text(encoding="utf-8")
            yield from ((path, name) for name in re.findall(r"\bcortex\.md#([\w-]+)", text))


def switches(owner: str) -> set[str]:
    return set(re.findall(rf"\b{owner}\.(\w+)", CORTEX))


def test_who_refers_to_a_line_of_the_contract_finds_it() -> None:
    named = set(references())
    assert named
    assert {(path, name) for path, name in named if name not in anchors()} == set()


def test_its_own_links_lead_somewhere() -> None:
    assert set(re.findall(r"\]\(#([^)]*)\)", CORTEX)) <= set(anchors())


def test_no_two_lines_have_the_same_anchor() -> None:
    assert [name for name, times in Counter(anchors()).items() if times > 1] == []


def test_every_line_of_a_table_begins_with_its_anchor() -> None:
    assert len(tables()) >= 10
    assert [row for row in facts() if not ANCHOR.match(row[0])] == []


def test_every_anchor_belongs_to_a_line_of_a_table_and_is_well_written() -> None:
    assert anchors() == [ANCHOR.findall(row[0])[0] for row in facts() if ANCHOR.match(row[0])]
    assert CORTEX.count("<a ") == len(anchors())


def test_every_table_ends_with_its_sources_and_no_line_has_a_cell_too_many() -> None:
    for head, *rows in tables():
        assert head[-1] == "Source"
        assert [row for row in rows if len(row) != len(head)] == []


def test_every_line_names_its_source() -> None:
    for row in facts():
        words = re.findall(r"`([^`]*)`", row[-1])
        kinds = [kind(word) for word in words]
        assert kinds, f"no source: {row}"
        assert kinds[0] in SOURCES, f"no source: {row}"
        assert "unknown" not in kinds, f"not a source: {row}"
        assert re.sub(r"`[^`]*`", "", row[-1]).strip(", ") == "", f"more than sources: {row}"


def test_a_recording_is_named_by_its_file_and_a_switch_stands_behind_what_is_unsure() -> None:
    for row in facts():
        kinds = [kind(word) for word in re.findall(r"`([^`]*)`", row[-1])]
        for before, after in pairwise([*kinds, "end"]):
            if before == "rec":
                assert after == "file", f"which recording? {row}"
            if after == "file":
                assert before in {"rec", "file"}, f"a file of what? {row}"
            if after == "switch":
                assert before in {"unsure", "switch"}, f"a switch for what is sure? {row}"


def test_the_notation_explains_every_source() -> None:
    assert set(re.findall(r"^- `(\w+)`:", CORTEX, re.MULTILINE)) == SOURCES


def test_every_switch_that_it_names_exists() -> None:
    assert switches("Options") <= {field.name for field in dataclasses.fields(Options)}
    assert {name for name in switches("CortexStub") if not hasattr(CortexStub("ORG-ACCOUNT", "ME"), name)} == set()


def test_every_switch_of_the_rules_is_named() -> None:
    assert {field.name for field in dataclasses.fields(Options)} - {"models"} <= switches("Options")
