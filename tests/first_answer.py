"""What start.py does after starting: waits for the first answer. For set-ups of tests that run without PM2."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bundle.checks.finding import read_installation
from bundle.checks.first_answer import wait_for_answer

if __name__ == "__main__":
    sys.exit(not wait_for_answer(read_installation(os.environ, time.time())))
