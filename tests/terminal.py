"""A program in a pseudo-terminal, and somebody before it who reads and types."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Terminal:
    """`screen` is all that was shown; `close` ends the program if it still runs."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], *, cwd: Path | None = None, columns: int = 80
    ) -> None:
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=follower, stdout=follower, stderr=follower, start_new_session=True
        )
        os.close(follower)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode  # a piece may end inside a character
        self.screen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._leader)

    def read_until(self, words: str, seconds: float = 120, *, after: str = "") -> None:
        """Read until these words are on the screen, behind the last place of `after`."""
        deadline = time.monotonic() + seconds
        while words not in self.screen[max(0, self.screen.rfind(after) if after else 0) :] or after not in self.screen:
            assert time.monotonic() < deadline, f"no {words!r} in {self.screen!r}"
            assert self._read(), f"ended without {words!r}: {self.screen!r}"

    def read_until_drawn(self, words: str, seconds: float = 60) -> None:
        """Read until these words were drawn. Between letters, a program may move the cursor in place of a blank."""
        deadline = time.monotonic() + seconds
        while "".join(words.split()) not in "".join(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.screen).split()):
            assert time.monotonic() < deadline, f"no {words!r} in {self.screen!r}"
            assert self._read(), f"ended without {words!r}: {self.screen!r}"

    def _read(self) -> bool:
        if not select.select([self._leader], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._leader, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.screen += self._decode(data).replace("\r\n", "\n")
        return bool(data)

    def type(self, text: str) -> None:
        self.press(f"{text}\n")

    def press(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def finish(self, seconds: float = 60) -> int:
        """The exit status, after all that is still said."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.screen
        return self.process.wait(timeout=10)
