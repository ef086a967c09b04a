#!/usr/bin/env python3
"""Draw docs/picture.svg anew: a terminal with the demo, whose text is what the commands really print.

    python docs/picture.py

Runs the demo in this folder and removes it again, with a HOME of its own. Needs a clone without a set-up: with one,
`make status` would show that one. The name of this folder is replaced by ~/claude-cortex, nothing else.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bundle.bootstrap import BUNDLE, enter_venv

if __name__ == "__main__":
    enter_venv(("rich",))

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = BUNDLE / "docs" / "picture.svg"
COMMANDS = ("make demo", "make claude ARGS=\"-p 'Say hello'\"", "make status")


def run(command: str, **environ: str) -> str:
    """What a command prints in this folder."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=BUNDLE,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.replace(str(BUNDLE), "~/claude-cortex").rstrip()


def draw(shown: list[tuple[str, str]]) -> str:
    """An SVG that fetches nothing: rich's own names two fonts on a server."""
    console = Console(record=True, width=100, file=io.StringIO(), legacy_windows=False)
    for command, said in shown:
        console.print(Text.assemble(("$ ", "dim"), (command, "bold green")))
        console.print(Text(said))
        console.print()
    svg = console.export_svg(title="claude-cortex", theme=MONOKAI, unique_id="picture")
    return re.sub(r"\s*(@font-face \{.*?\}|<!--.*?-->)", "", svg, flags=re.DOTALL)


def main() -> int:
    argparse.ArgumentParser(description="Draw docs/picture.svg anew, from a run of the demo.").parse_args()
    if (BUNDLE / "litellm_config.yaml").exists():
        print("This folder has a set-up of its own. Run this in a fresh clone.", file=sys.stderr)
        return 1
    run("make install")
    with tempfile.TemporaryDirectory() as home:
        own = {"HOME": home, "PM2_HOME": f"{home}/pm2"}  # nobody's settings, and nobody's processes
        try:
            shown = [(command, run(command, **own)) for command in COMMANDS]
        finally:
            run("make stop", **own)
    PICTURE.write_text(draw(shown), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
