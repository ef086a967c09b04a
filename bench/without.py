"""The proxy without one part of bundle/proxy/lean_litellm.py, for `make bench ARGS=--steps`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bundle.proxy import lean_litellm
from bundle.proxy.lean_litellm import STEPS
from claude_proxy import main

name = sys.argv[1]
lean_litellm.STEPS = tuple(step for step in STEPS if step.__name__ != name)
if name == "importing":
    lean_litellm.importing = lambda _: nullcontext()  # type: ignore[assignment, return-value]
elif name == "warmed":
    lean_litellm.warmed = lambda app, *_, **__: app
sys.exit(main())
