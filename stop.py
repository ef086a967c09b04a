#!/usr/bin/env python3
"""Stop everything that this folder has started, remove the demo, and look whether all of it is gone (`make stop`).

Standard library only, for any Python from 3.9 on: it works without `.venv` and without `node_modules`, as long as some
PM2 is installed. What it does not stop: another copy of this bundle, and processes that were started by hand (it names
them). Exit status: 0 nothing is left, 1 something is.
"""

from __future__ import annotations

import argparse
import os
import sys

from bundle.bootstrap import make
from bundle.errors import ConfigError
from bundle.lifecycle import stop


def main() -> int:
    argparse.ArgumentParser(description="Stop everything that this folder has started.").parse_args()
    try:
        return 0 if stop(os.environ) else 1
    except ConfigError as error:
        print(f"stop.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. Something may still run. To see it: {make('status')}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
