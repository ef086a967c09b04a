"""Run the proxy without one part of `patches/lean_litellm.py`: `make bench ARGS=--steps` compares it with the whole."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from bundle.proxy import lean_litellm
from bundle.proxy.lean_litellm import STEPS
from claude_proxy import main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


name = sys.argv[1]
lean_litellm.STEPS = tuple(step for step in STEPS if step.__name__ != name)
if name == "importing":
    lean_litellm.importing = lambda _: nullcontext()  # type: ignore[assignment, return-value]
elif name == "warmed":
    lean_litellm.warmed = lambda app, *_, **__: app
sys.exit(main())
