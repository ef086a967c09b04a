"""Python loads this by itself at the start of the processes under test: their clock, disk and death are the test's.

The folder that $FAULTS names holds `clock` (how many seconds theirs is ahead, a double that is read at each look at the
clock) and, while the fault is on, the empty files `disk-full` and `die-before-rename`.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

if "FAULTS" in os.environ:
    folder = Path(os.environ["FAULTS"])
    with (folder / "clock").open("r+b") as file:
        ahead = mmap.mmap(file.fileno(), 8)
    real_time, real_fsync, real_replace = time.time, os.fsync, os.replace

    def moved_time() -> float:
        seconds: float = struct.unpack("d", ahead)[0]
        return real_time() + seconds

    def full_fsync(descriptor: Any) -> None:
        if (folder / "disk-full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    def deadly_replace(source: Any, target: Any, **more: Any) -> None:
        if (folder / "die-before-rename").exists() and str(target).endswith("litellm_config.yaml"):
            os.kill(os.getpid(), signal.SIGKILL)
        real_replace(source, target, **more)

    time.time, os.fsync, os.replace = moved_time, full_fsync, deadly_replace  # type: ignore[assignment]
