"""A set-up for tests, bench and soak: its folder, key, settings, stand-in for Cortex, and the processes in it.

Without pytest. Tests and soak run the stand-in in their own process, to script it (SetUp). The bench runs it as another
process, so that the stand-in does not slow down what is measured (BareSetUp).
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from bundle.files import write_private
from bundle.refresher import refresh
from bundle.render import render
from bundle.settings import load_settings
from bundle.tokens import sign
from tests.cortex_stub import CortexStub
from tests.ports import free_port

BUNDLE = Path(__file__).resolve().parent.parent
CLAUDE = BUNDLE / "node_modules" / ".bin" / "claude"
ACCOUNT, USER = "MYORG-MYACCT", "JANE"


def wait_until(what: Callable[[], Any], seconds: float = 60, describe: Callable[[], object] = str) -> Any:
    """Wait for a true value of `what()` and return it. After `seconds`, raise TimeoutError with `describe()`."""
    deadline, pause = time.monotonic() + seconds, 0.02
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s; {describe()}")
        time.sleep(pause)
        pause = min(1.15 * pause, 0.2)  # what takes longer than a second may take a moment more, and much less CPU
    return found


def drop_root_powers() -> None:
    """Call this in a child before exec: root then obeys file permissions (no DAC_OVERRIDE, no DAC_READ_SEARCH)."""
    if os.geteuid() == 0:
        prctl, cap_drop = ctypes.CDLL(None).prctl, 24
        for capability in (1, 2):
            if prctl(cap_drop, capability, 0, 0, 0):
                os._exit(77)


def link_or_copy(source: str, target: str) -> None:
    """A hard link is enough: a program that replaces one of the two files does not change the other."""
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)


def copy_bundle(folder: Path, *, own_litellm: bool = False) -> Path:
    """A copy of the bundle. A test may edit its files and, with `own_litellm`, replace the LiteLLM in its `.venv`."""
    folder.mkdir()
    others = ("litellm_config.template.yaml", "prices.yaml", "ecosystem.config.js")
    for file in (*BUNDLE.glob("*.py"), *(BUNDLE / name for name in others)):
        shutil.copy(file, folder)
    for package in ("bundle", "patches"):
        shutil.copytree(BUNDLE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if own_litellm:
        venv.create(folder / ".venv", symlinks=True)
        theirs = Path(sysconfig.get_path("purelib"))
        ours = next((folder / ".venv" / "lib").glob("python*/site-packages"))
        (ours / "all-the-others.pth").write_text(f"{theirs}\n")
        for found in (theirs / "litellm", *theirs.glob("litellm-[0-9]*.dist-info")):
            shutil.copytree(found, ours / found.name, copy_function=link_or_copy)
    return folder


@functools.cache
def usual_key() -> rsa.RSAPrivateKey:
    """All set-ups of this process share one key, because a new one takes a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class BareSetUp:
    """A user's state folder, HOME, key and settings, and the processes that were started in it."""

    def __init__(self, folder: Path, bundle: Path = BUNDLE) -> None:
        self.folder, self.bundle = folder, bundle
        self.key = usual_key()
        self.key_path = folder / "snowflake_key.p8"
        self.write_key(self.key)
        self.port = free_port()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CORTEX_HOME": str(folder),
            "PM2_HOME": str(folder / "pm2"),
            "SNOWFLAKE_ACCOUNT": ACCOUNT,
            "SNOWFLAKE_USER": USER,
            "SNOWFLAKE_PRIVATE_KEY_PATH": str(self.key_path),
            "PROXY_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.before_exec: Callable[[], None] | None = None

    def write_key(self, key: rsa.RSAPrivateKey) -> None:
        self.key_path.touch(mode=0o600)
        self.key_path.write_bytes(pem(key))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def master_key(self) -> str:
        return (self.folder / ".master_key").read_text().strip()

    @property
    def config(self) -> Path:
        return self.folder / "litellm_config.yaml"

    def start(self, script: str, *arguments: str, name: str = "", **environ: str) -> subprocess.Popen[bytes]:
        """Start a script of the bundle, and call it `name` (or by its own name). `log(name)` has its output."""
        name = name or script
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(self.bundle / script), *arguments],
                env={**self.environ, **environ},
                preexec_fn=self.before_exec,  # noqa: PLW1509 - one call into the C library, no lock
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait_for(self, name: str, words: str, seconds: float = 120, *, times: int = 1) -> None:
        """Wait until these words are in the log so many times; fail when the process ends before that."""
        process = self.processes[name]

        def said() -> bool:
            return self.log(name).count(words) >= times

        wait_until(lambda: said() or process.poll() is not None, seconds, lambda: self.log(name))
        assert said(), f"{name} ended: {self.log(name)[-2000:]}"

    def start_proxy(
        self, script: str = "claude_proxy.py", *arguments: str, name: str = "", **environ: str
    ) -> subprocess.Popen[bytes]:
        """Start the proxy and wait until it is ready."""
        name = name or script
        before = self.log(name).count("ready on")
        process = self.start(script, *arguments, name=name, **environ)
        self.wait_for(name, "ready on", times=before + 1)
        return process

    def start_both(self) -> None:
        """Start the refresher and the proxy and wait until the proxy is ready."""
        self.start("auto_refresh.py")
        self.start_proxy()

    def refresh(self) -> None:
        """Write the configuration, as `auto_refresh.py --once` does, but in this process."""
        refresh(load_settings(self.environ), time.time())

    def assert_on_loopback_only(self) -> None:
        """Check that nobody reaches the proxy under another address of this machine."""
        addresses = set()
        with suppress(OSError):  # this machine's name may lead nowhere
            addresses = {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        for address in addresses - {"127.0.0.1", "127.0.1.1"}:
            with socket.socket() as outside:
                outside.settimeout(2)
                assert outside.connect_ex((address, self.port)) != 0, address
        listening = Path("/proc/net/tcp")
        if listening.exists():
            lines = listening.read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
            bound = [line.split()[1] for line in lines if line.split()[3] == "0A"]
            assert [host for host, _, port in (b.partition(":") for b in bound) if int(port, 16) == self.port] == [
                "0100007F"
            ]

    def run(self, *command: str, seconds: float = 120, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command or a script of the bundle in this set-up, and wait for its end."""
        if command[0].endswith(".py"):
            command = (sys.executable, str(self.bundle / command[0]), *command[1:])
        return subprocess.run(
            command,
            env={**self.environ, **environ},
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )

    def stop(self, *names: str) -> None:
        """End these processes, also the ones that are paused. Kill what does not end."""
        ending = [self.processes.pop(name) for name in names]
        for process in ending:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in ending:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:  # noqa: PERF203 - a few processes
                process.kill()
                process.wait(timeout=10)

    def close(self) -> None:
        self.stop(*self.processes)


class SetUp(BareSetUp):
    """A set-up with the stand-in for Cortex in this process (`stub`), and the requests that its user sends."""

    def __init__(self, folder: Path, bundle: Path = BUNDLE, *, bench: bool = False) -> None:
        super().__init__(folder, bundle)
        self.stub = CortexStub(ACCOUNT, USER, [public_pem(self.key)], bench=bench)
        self.stub.start(free_port())
        self.environ["SNOWFLAKE_HOST"] = self.stub.url

    @contextmanager
    def template(self, edit: Callable[[str], str]) -> Iterator[None]:
        """Pause the refresher, and give the running proxy the configuration of an edited template."""
        settings = load_settings(self.environ)
        rendered = render(
            edit(settings.template_path.read_text()),
            {
                "SNOWFLAKE_JWT": sign(settings, time.time()).value,
                "LITELLM_MASTER_KEY": self.master_key,
                "CORTEX_URL": settings.base_url,
            },
            settings.claude_route,
        )
        refresher, log, followed = self.processes["auto_refresh.py"], "claude_proxy.py", "models: "
        refresher.send_signal(signal.SIGSTOP)
        before = self.log(log).count(followed)
        try:
            write_private(self.config, rendered)
            wait_until(lambda: self.log(log).count(followed) > before, 10, lambda: self.log(log))
            yield
        finally:
            refresher.send_signal(signal.SIGCONT)  # it notices the change and writes the file again
        wait_until(lambda: self.log(log).count(followed) > before + 1, 10, lambda: self.log(log))

    def claude(self, prompt: str, *options: str, seconds: float = 120, **environ: str) -> dict[str, Any]:
        """Run the real Claude Code once; return its JSON result."""
        done = self.run(
            str(CLAUDE),
            "-p",
            prompt,
            "--output-format",
            "json",
            *options,
            seconds=seconds,
            **self.claude_env(),
            **environ,
        )
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def claude_env(self) -> dict[str, str]:
        return {
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_AUTH_TOKEN": self.master_key,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }

    def post(self, body: dict[str, Any], path: str = "/v1/messages", **headers: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(
                self.url + path, json=body, headers={"Authorization": f"Bearer {self.master_key}", **headers}
            )

    def ask(self, text: str, model: str = "claude-sonnet-4-5", **more: Any) -> httpx.Response:
        return self.post({"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **more})

    @contextmanager
    def open_answer(self) -> Iterator[Callable[[], str]]:
        """Start a streamed answer and pause it. The function that this yields lets it go on and returns its text."""
        body = {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": True}
        body["messages"] = [{"role": "user", "content": "[[hold: 2]] [[text: one two three]]"}]
        key, first = {"Authorization": f"Bearer {self.master_key}"}, len(self.stub.requests)
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("POST", f"{self.url}/v1/messages", json=body, headers=key) as answer,
        ):
            lines = answer.iter_lines()
            head = [next(lines) for _ in range(3)]
            wait_until(lambda: any(record.get("held") for record in self.stub.requests[first:]), 10)

            def finish() -> str:
                self.stub.release()
                datas = [json.loads(line[6:]) for line in [*head, *lines] if line.startswith("data: ")]
                assert datas[-1]["type"] == "message_stop", datas[-1]
                return "".join(data.get("delta", {}).get("text", "") for data in datas)

            yield finish
            self.stub.release()

    def close(self) -> None:
        super().close()
        self.stub.stop()


class ClockedSetUp(SetUp):
    """A set-up whose processes and stand-in have a clock that the caller moves. (See tests/faults for the rest.)"""

    def __init__(self, folder: Path, bundle: Path = BUNDLE, *, bench: bool = False) -> None:
        super().__init__(folder, bundle, bench=bench)
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.ahead = 0.0
        self.move_clock(0)
        self.environ |= {"PYTHONPATH": str(BUNDLE / "tests" / "faults"), "FAULTS": str(self.faults)}

    def move_clock(self, seconds: float, *, snowflake: bool = True) -> None:
        """Put the clock of the processes forward, and with `snowflake` the stand-in's too."""
        self.ahead += seconds
        clock = self.faults / "clock"
        with clock.open("r+b" if clock.exists() else "wb") as file:
            file.write(struct.pack("d", self.ahead))
        if snowflake:
            self.stub.skew += seconds


def pem(key: PrivateKeyTypes, passphrase: str | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key: rsa.RSAPrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the data of a streamed answer's events, in order."""
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
