#!/usr/bin/env python3
"""Which file of the bundle imports which, as text.

    python docs/import_graph.py                          the levels: a file imports from lower levels only
    python docs/import_graph.py docs/architecture.md     also check the order that this page gives

The order is the page's list between ```order and ```: files or folders, as dotted names. A file may import what stands
in its own line or below it. Exit status: 0 all is well, 1 a circle or an import that goes up, 2 no order in the page.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

BUNDLE = Path(__file__).resolve().parent.parent
Graph = dict[str, set[str]]  # each file, as a dotted name, with the files that it imports


def read(root: Path = BUNDLE) -> Graph:
    """The imports of every file, wherever in the file they stand."""
    paths = [*root.glob("*.py"), *(path for name in ("patches", "bundle") for path in (root / name).rglob("*.py"))]
    files = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return {name: _imported(path, root) & files.keys() - {name} for name, path in files.items()}


def _imported(path: Path, root: Path) -> set[str]:
    found: set[str] = set()
    folders = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = folders[: len(folders) - node.level + 1] if node.level else ()
            base = ".".join([*relative, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def levels(graph: Graph) -> dict[str, int]:
    """0 for what imports nothing of ours, else one more than the highest that it imports. CycleError at a circle."""
    found: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[each] for each in graph[name]), default=-1)
    return found


def order_of(page: str) -> dict[str, int]:
    """The names in the order that a page gives, each with the number of its line."""
    block = re.search(r"```order\n(.*?)```", page, re.DOTALL)
    lines = block[1].splitlines() if block else []
    return {name: number for number, line in enumerate(lines) for name in line.partition("#")[0].split()}


def going_up(graph: Graph, order: dict[str, int]) -> list[str]:
    """Each import of a file that stands above the one that imports it."""

    def place(name: str) -> int | None:
        while name and name not in order:  # a folder that is listed stands for what is in it
            name = name.rpartition(".")[0]
        return order.get(name)

    pairs = [(name, each, place(name), place(each)) for name in sorted(graph) for each in sorted(graph[name])]
    return [f"{name} imports {each}" for name, each, at, to in pairs if at is not None and to is not None and to < at]


def main() -> int:
    parser = argparse.ArgumentParser(description="Which file of the bundle imports which.")
    parser.add_argument("page", nargs="?", type=Path, help="also check the order that it gives")
    page: Path | None = parser.parse_args().page
    graph = read()
    try:
        found = levels(graph)
    except CycleError as error:
        print("A circle:", " imports ".join(reversed(error.args[1])), file=sys.stderr)
        return 1
    for level, name in sorted((-found[name], name) for name in graph):
        print(f"{-level}  {name:<28} {' '.join(sorted(graph[name]))}".rstrip())
    order = order_of(page.read_text(encoding="utf-8")) if page else {}
    wrong = going_up(graph, order)
    sys.stderr.writelines(f"Goes up: {line}\n" for line in wrong)
    return 1 if wrong else 2 if page and not order else 0


if __name__ == "__main__":
    sys.exit(main())
