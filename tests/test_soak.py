"""bench/soak.py in its short form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.keeps("live-token")
@pytest.mark.real
def test_half_a_minute_of_the_soak_fails_no_request() -> None:
    script = str(Path(__file__).parent.parent / "bench" / "soak.py")
    done = subprocess.run([sys.executable, script, "--short", "--json"], capture_output=True, text=True, check=False)
    numbers = json.loads(done.stdout)
    ours = numbers["ours"]
    assert (ours["failed"], ours["cut"], ours["dead_token"]) == (0, 0, 0), ours["reasons"]
    assert done.returncode == 0
    assert ours["requests"] >= 400
    assert ours["tokens"] >= 7
    assert numbers["signed_in_memory"] >= 2
