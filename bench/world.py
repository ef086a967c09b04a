"""What is measured: the stand-in for Cortex, LiteLLM as it comes, and this bundle, each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import yaml

from bench.load import Target
from bundle.files import write_private
from bundle.proxy.server import LITELLM_ENVIRONMENT
from configure import make_key_pair

BUNDLE = Path(__file__).resolve().parent.parent
ACCOUNT, USER = "BENCH-ACCOUNT", "BENCH"
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Running:
    """A process that answers, and how long its start took."""

    target: Target
    process: subprocess.Popen[bytes]
    seconds: float

    def megabytes(self) -> float:
        return megabytes(self.process)


class World:
    """A set-up of its own in a temporary folder. `close` ends what was started here, and nothing else."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        key = self.folder / "snowflake_key.p8"
        public = make_key_pair(key)
        arguments = ["--bench", "--account", ACCOUNT, "--user", USER, "--public-key", str(public)]
        stand_in = self._spawn("stand-in", [sys.executable, str(BUNDLE / "tests" / "cortex_stub.py"), *arguments], {})
        cortex = self._wait_for(stand_in, "stand-in", r"listening on (\S+)")
        self.environ = {
            "CORTEX_HOME": str(self.folder),
            "SNOWFLAKE_ACCOUNT": ACCOUNT,
            "SNOWFLAKE_USER": USER,
            "SNOWFLAKE_HOST": cortex,
            "SNOWFLAKE_PRIVATE_KEY_PATH": str(key),
        }
        self.refresher = self._spawn("refresher", [sys.executable, str(BUNDLE / "auto_refresh.py")], self.environ)
        config = self.folder / "litellm_config.yaml"
        _until(config.exists, "the refresher wrote no litellm_config.yaml")
        self.config: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
        token = self.config["model_list"][0]["litellm_params"]["api_key"]
        self.direct = Target(
            int(cortex.rpartition(":")[2]), "/api/v2/cortex/v1/chat/completions", {"Authorization": f"Bearer {token}"}
        )

    def start_litellm(self) -> Running:
        """LiteLLM's own command with the same models and settings, without our callback. It is as patched as ours."""
        settings = {key: value for key, value in self.config["litellm_settings"].items() if key != "callbacks"}
        path = self.folder / "plain_config.yaml"
        write_private(path, yaml.safe_dump({**self.config, "litellm_settings": settings}))
        port = free_port()
        # It would ask for price lists and news on the internet: without that it starts faster, in its favour.
        environ = {key: value for key, value in LITELLM_ENVIRONMENT.items() if "_LOCAL_" in key}
        command = [str(Path(sys.executable).with_name("litellm")), "--config", str(path), "--host", "127.0.0.1"]
        start = time.perf_counter()
        process = self._spawn("litellm", [*command, "--port", str(port)], environ)
        _until(lambda: _answers(port) or not _alive(process), "LiteLLM does not start")
        seconds = time.perf_counter() - start
        if not _alive(process):
            raise RuntimeError(f"LiteLLM ended: {self._log('litellm')[-2000:]}")
        return self._running(port, process, seconds)

    def start_bundle(self, without: str = "") -> Running:
        """This bundle's proxy; `without` one part of lean_litellm.py."""
        port = free_port()
        script = [str(BUNDLE / "bench" / "without.py"), without] if without else [str(BUNDLE / "claude_proxy.py")]
        name = f"proxy-{port}"
        start = time.perf_counter()
        process = self._spawn(name, [sys.executable, *script], {**self.environ, "PROXY_PORT": str(port)})
        self._wait_for(process, name, "(ready on)")
        return self._running(port, process, time.perf_counter() - start)

    def _running(self, port: int, process: subprocess.Popen[bytes], seconds: float) -> Running:
        key = self.config["general_settings"]["master_key"]
        return Running(Target(port, "/v1/messages", {"Authorization": f"Bearer {key}"}), process, seconds)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._processes.remove(process)

    def close(self) -> None:
        for process in list(self._processes):
            self.stop(process)
        shutil.rmtree(self.folder)

    def _spawn(self, name: str, command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        given = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONUNBUFFERED": "1", **environ}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=given, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _wait_for(self, process: subprocess.Popen[bytes], name: str, pattern: str) -> str:
        found: list[str] = []

        def look() -> bool:
            found[:] = re.findall(pattern, self._log(name))
            return bool(found) or not _alive(process)

        _until(look, f"{name} does not start")
        if not found:
            raise RuntimeError(f"{name} ended: {self._log(name)[-2000:]}")
        return found[0]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def megabytes(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process."""
    return _ps(process.pid, "rss=", lambda text: int(text) / 1024)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time that a process has used; where `ps` alone tells it (macOS), to a hundredth."""
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


def _until(done: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{trouble} (waited {PATIENCE_SECONDS} s)")
        time.sleep(0.02)


def _alive(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def _answers(port: int) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/health/liveliness", timeout=30):
            return True
    except (URLError, ConnectionError):
        return False
