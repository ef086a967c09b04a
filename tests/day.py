"""A set-up that runs all day, for tests that change its template, settings, clock and disk."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from tests.set_up import ClockedSetUp, copy_bundle, wait_until

REFRESHER, PROXY = "auto_refresh.py", "claude_proxy.py"
SECONDS = 30  # in which an edit takes effect, on a very busy machine; it is three on an idle one
HOUR = 3600


@functools.cache  # the tests wait for another one in a loop, and YAML takes long
def token_in(text: str) -> str:
    with suppress(yaml.YAMLError, KeyError, TypeError):
        return str(yaml.safe_load(text)["model_list"][0]["litellm_params"]["api_key"])
    return ""


class Day(ClockedSetUp):
    """A set-up whose template, settings, clock and disk belong to the tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, bundle=copy_bundle(folder / "bundle"))
        script = self.bundle / "bundle" / "proxy" / "server.py"
        script.write_text(script.read_text().replace("DRAIN_SECONDS = 30", "DRAIN_SECONDS = 3"))
        self.template_file = self.bundle / "litellm_config.template.yaml"
        self.shipped = self.template_file.read_text()
        self.env_file = folder / ".env"
        names = ("SNOWFLAKE_HOST", "PROXY_PORT")
        self.settings = "".join(f"{name}={self.environ.pop(name)}\n" for name in names)
        self.env_file.write_text(self.settings)

    def now(self) -> float:
        """The time on the clock of both processes."""
        return time.time() + self.ahead

    def edit(self, old: str, new: str) -> None:
        """Put `new` in the place of `old` in the template, as an editor does."""
        text = self.template_file.read_text()
        assert old in text
        self.template_file.write_text(text.replace(old, new))

    def token(self) -> str:
        """The token in the configuration; "" while the file is not whole."""
        with suppress(OSError):
            return token_in(self.config.read_text())
        return ""

    def refreshed(self, before: str) -> str:
        """Wait until the file has another token than `before`, and return it."""
        return str(
            wait_until(lambda: self.token() not in {before, ""} and self.token(), SECONDS, lambda: self.log(REFRESHER))
        )

    def answered(self, model: str = "claude-sonnet-4-5") -> dict[str, Any]:
        """Ask a question, check that it got its answer, and return the request that reached Cortex."""
        first = len(self.stub.requests)
        answer = self.ask("hello", model)
        assert answer.status_code == 200, answer.text
        return next(record for record in self.stub.requests[first:] if record["status"] == 200)

    def said(self, script: str, words: str, since: int = 0) -> str:
        """Wait until these words are in the log from `since` on, and return that part of the log."""
        wait_until(lambda: words in self.log(script)[since:], SECONDS, lambda: self.log(script)[since:])
        return self.log(script)[since:]

    @contextmanager
    def stopped(self, *scripts: str) -> Iterator[None]:
        """Pause these processes while the block runs."""
        for script in scripts:
            self.processes[script].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for script in scripts:
                self.processes[script].send_signal(signal.SIGCONT)

    @contextmanager
    def old_token(self) -> Iterator[None]:
        """Run the block with a token that is ten minutes old, and with a refresher that does not renew it."""
        before = self.token()
        self.move_clock(3001)
        self.refreshed(before)
        with self.stopped(REFRESHER):
            self.move_clock(600)
            yield

    def kill(self, script: str) -> None:
        self.processes[script].kill()
        self.processes[script].wait(timeout=10)

    def start_refresher(self) -> None:
        before = len(self.log(REFRESHER))
        self.start(REFRESHER)
        self.said(REFRESHER, "has started", before)

    def put_back(self) -> None:
        """Undo what the test changed, and nothing else. The processes must heal by themselves."""
        for fault in self.faults.glob("*-*"):
            fault.unlink()
        self.stub.clear_faults()
        self.stub.open_port()
        self.move_clock(self.stub.skew - self.ahead, snowflake=False)
        if self.processes[REFRESHER].poll() is not None:
            self.start_refresher()
        if self.processes[PROXY].poll() is not None:
            self.start_proxy()
        before = self.token()
        edited = [
            path.write_text(text)
            for path, text in ((self.template_file, self.shipped), (self.env_file, self.settings))
            if path.read_text() != text
        ]
        if edited:
            self.refreshed(before)
