"""What is measured: the stand-in for Cortex, LiteLLM as it comes, and this bundle, each in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import yaml

from bench.load import Target
from bundle.files import write_private
from bundle.proxy.server import LITELLM_ENVIRONMENT
from tests.ports import free_port
from tests.set_up import ACCOUNT, USER, BareSetUp, public_pem, wait_until

START_SECONDS = 120


@dataclass(frozen=True)
class Running:
    """A process that answers, and how long its start took."""

    target: Target
    name: str
    process: subprocess.Popen[bytes]
    seconds: float

    def megabytes(self) -> float:
        return megabytes(self.process)


class World(BareSetUp):
    """A set-up in a temporary folder. `close` ends what was started here, and nothing else."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="bench-")))
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        public = self.folder / "public.pem"
        public.write_text(public_pem(self.key))
        arguments = ["--bench", "--account", ACCOUNT, "--user", USER, "--public-key", str(public)]
        self.start("tests/cortex_stub.py", *arguments, name="stand-in")
        self.wait_for("stand-in", "listening on ", START_SECONDS)
        cortex = self.log("stand-in").split()[2]
        self.environ["SNOWFLAKE_HOST"] = cortex
        self.refresher = self.start("auto_refresh.py")
        wait_until(self.config.exists, START_SECONDS, lambda: self.log("auto_refresh.py"))
        self.document: dict[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        token = self.document["model_list"][0]["litellm_params"]["api_key"]
        self.direct = Target(
            int(cortex.rpartition(":")[2]), "/api/v2/cortex/v1/chat/completions", {"Authorization": f"Bearer {token}"}
        )

    def start_litellm(self) -> Running:
        """Start LiteLLM's own command with the same models and settings, without our callback. It has our patch."""
        settings = {key: value for key, value in self.document["litellm_settings"].items() if key != "callbacks"}
        path = self.folder / "plain_config.yaml"
        write_private(path, yaml.safe_dump({**self.document, "litellm_settings": settings}))
        port = free_port()
        # LiteLLM would ask for price lists and news on the internet. Without that it starts faster.
        environ = {key: value for key, value in LITELLM_ENVIRONMENT.items() if "_LOCAL_" in key}
        script, where = str(Path(sys.executable).with_name("litellm")), ["--host", "127.0.0.1", "--port", str(port)]
        start = time.perf_counter()
        process = self.start(script, "--config", str(path), *where, name="litellm", **environ)
        wait_until(lambda: _answers(port) or not _alive(process), START_SECONDS, lambda: self.log("litellm"))
        seconds = time.perf_counter() - start
        if not _alive(process):
            raise RuntimeError(f"LiteLLM ended: {self.log('litellm')[-2000:]}")
        return self._running(port, "litellm", process, seconds)

    def start_bundle(self, without: str = "", **environ: str) -> Running:
        """Start this bundle's proxy with more settings in `environ`; `without` one part of lean_litellm.py."""
        port = free_port()
        script = ["bench/without.py", without] if without else ["claude_proxy.py"]
        name = f"proxy-{port}"
        start = time.perf_counter()
        process = self.start_proxy(*script, name=name, PROXY_PORT=str(port), **environ)
        return self._running(port, name, process, time.perf_counter() - start)

    def _running(self, port: int, name: str, process: subprocess.Popen[bytes], seconds: float) -> Running:
        key = {"Authorization": f"Bearer {self.master_key}"}
        return Running(Target(port, "/v1/messages", key), name, process, seconds)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.folder)


def megabytes(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process."""
    return _ps(process.pid, "rss=", lambda text: int(text) / 1024)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time that a process has used. On macOS it is exact to a hundredth of a second."""
    threads = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if threads:
        return sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9
    return _ps(process.pid, "time=", _clock)


def _clock(text: str) -> float:
    seconds = 0.0
    for part in text.replace("-", ":").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _ps(pid: int, column: str, read: Callable[[str], float]) -> float:
    shown = subprocess.run(["ps", "-o", column, "-p", str(pid)], capture_output=True, text=True, check=True)
    return read(shown.stdout.strip())


def _alive(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def _answers(port: int) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/health/liveliness", timeout=30):
            return True
    except (URLError, ConnectionError):
        return False
