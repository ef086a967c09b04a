"""docs/ against the code.

docs/cortex.md: who refers to a line finds it, and every line says where it comes from. Everything else: what a script
of docs/ makes is up to date, and the imports of the bundle go one way.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from bundle.cortex.errors import CASES
from docs import generate, import_graph
from tests.cortex_rules import Options
from tests.cortex_stub import CortexStub
from tests.set_up import BUNDLE

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


# --------------------------------------------------------------------------------------------------- troubleshooting.md


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: path.name)
def test_the_generated_tables_are_up_to_date(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert page == generate.PAGES[path](page), "Bring it up to date: python docs/generate.py"


def test_every_promise_has_a_test_and_every_marked_test_a_promise() -> None:
    page = (BUNDLE / "SECURITY.md").read_text(encoding="utf-8")
    promises = re.findall(r'<a id="([\w-]+)"></a>', page)
    assert len(promises) == len(set(promises))
    assert set(promises) - generate.markers().keys() == {"memory"}  # `make soak` keeps it
    assert generate.markers().keys() <= set(promises)


def test_the_words_that_it_shows_are_explained_by_their_own_line() -> None:
    for case in CASES:
        shown = generate.phrases(case.words)
        assert bool(shown) == bool(case.words)
        for phrase in shown:
            assert re.search(case.words, phrase.replace("N", "200000") + " "), phrase


def test_it_names_nothing_of_the_machine_on_which_it_was_made() -> None:
    assert str(BUNDLE) not in generate.table()
    assert "node_modules" not in generate.table()


# ------------------------------------------------------------------------------------------------------ architecture.md


def test_the_imports_have_no_circle_and_nobody_imports_a_script() -> None:
    graph = import_graph.read()
    assert "bundle.bootstrap" in graph
    import_graph.levels(graph)
    scripts = {path.stem for path in BUNDLE.glob("*.py")}
    assert {(name, each) for name, imported in graph.items() for each in imported & scripts} == set()


def test_the_contract_imports_nothing_of_ours_and_the_patch_only_the_bootstrap() -> None:
    graph = import_graph.read()
    for name in (name for name in graph if name.startswith("bundle.cortex.")):
        assert {each for each in graph[name] if not each.startswith("bundle.cortex")} <= {"bundle"}
    assert graph["patches.apply_patch"] - {"bundle"} == {"bundle.bootstrap"}


def test_the_imports_go_the_way_that_the_page_shows() -> None:
    graph = import_graph.read()
    order = import_graph.order_of((BUNDLE / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert "bundle.bootstrap" in order
    assert import_graph.going_up(graph, order) == []


def test_every_module_has_a_place_in_the_order_of_the_page_and_every_place_a_module() -> None:
    order = import_graph.order_of((BUNDLE / "docs" / "architecture.md").read_text(encoding="utf-8"))
    modules = import_graph.read().keys() - {"bundle"}
    assert [name for name in modules if not any(f"{name}.".startswith(f"{place}.") for place in order)] == []
    assert [place for place in order if not any(f"{name}.".startswith(f"{place}.") for name in modules)] == []


def test_the_graph_of_imports_sees_every_form_of_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os, bundle.high\nfrom bundle import low as other\n")
    (tmp_path / "bundle" / "deep").mkdir(parents=True)
    (tmp_path / "bundle" / "__init__.py").touch()
    (tmp_path / "bundle" / "low.py").touch()
    (tmp_path / "bundle" / "high.py").write_text("def late():\n    from .low import word\n")
    (tmp_path / "bundle" / "deep" / "__init__.py").write_text("from . import inner\n")
    (tmp_path / "bundle" / "deep" / "inner.py").write_text("from ..high import late\n")
    graph = import_graph.read(tmp_path)
    assert graph["script"] == {"bundle", "bundle.high", "bundle.low"}
    assert graph["bundle.high"] == {"bundle.low"}
    assert graph["bundle.deep"] == {"bundle.deep.inner"}
    assert graph["bundle.deep.inner"] == {"bundle.high"}
    assert import_graph.levels(graph)["bundle.deep"] == 3


def test_a_circle_and_an_import_that_goes_up_are_found() -> None:
    graph = {"high": {"low"}, "folder.one": {"high", "folder.two"}, "folder.two": set(), "low": set()}
    order = import_graph.order_of("```order\nhigh        # a remark\nfolder low\n```")
    assert order == {"high": 0, "folder": 1, "low": 1}
    assert import_graph.going_up(graph, order) == ["folder.one imports high"]
    with pytest.raises(CycleError):
        import_graph.levels({**graph, "low": {"folder.one"}})


# ------------------------------------------------------------------------------------------ the picture, and the issues


def test_the_picture_shows_the_commands_and_fetches_nothing() -> None:
    picture = (BUNDLE / "docs" / "picture.svg").read_text(encoding="utf-8")
    assert "docs/picture.svg" in (BUNDLE / "README.md").read_text(encoding="utf-8")
    text = " ".join("".join(ElementTree.fromstring(picture).itertext()).split())  # noqa: S314 - our own file
    for words in ("make demo", "make claude", "make status", "not a model", "token-refresher: online"):
        assert words in text
    assert re.findall(r"https?://[^\"]+", picture) == ["http://www.w3.org/2000/svg"]
    assert set(re.findall(r"url\((.)", picture)) == {"#"}
    assert "/home/" not in picture
    assert str(BUNDLE) not in picture


def test_a_report_asks_for_what_doctor_says_and_warns_of_every_file_with_a_secret() -> None:
    form = yaml.safe_load((BUNDLE / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    said = str(form["body"])
    assert "python3 doctor.py --json" in said
    for secret in (".env", ".master_key", "litellm_config.yaml", "claude.json", "snowflake_key.p8"):
        assert secret in said
