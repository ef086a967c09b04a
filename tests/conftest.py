"""What the tests of the real parts share: a set-up of its own for each, and nothing left running after it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bundle.files import write_private
from bundle.render import render
from bundle.settings import load_settings
from bundle.tokens import sign
from tests.cortex_stub import CortexStub

BUNDLE = Path(__file__).resolve().parent.parent
CLAUDE = BUNDLE / "node_modules" / ".bin" / "claude"
ACCOUNT, USER = "MYORG-MYACCT", "JANE"


def pytest_configure() -> None:
    """A run that is told to end (a CI's time limit) ends what its tests have started, as after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(what: Callable[[], Any], seconds: float = 60, describe: Callable[[], object] = str) -> Any:
    """The first true value of `what()`; fails after `seconds` with what `describe` says."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s; {describe()}"
        time.sleep(0.05)
    return found


def drop_root_powers() -> None:
    """In a child before exec: root obeys file permissions like anybody (capabilities DAC_OVERRIDE, READ_SEARCH)."""
    if os.geteuid() == 0:
        prctl, cap_drop = ctypes.CDLL(None).prctl, 24
        for capability in (1, 2):
            if prctl(cap_drop, capability, 0, 0, 0):
                os._exit(77)


def link_or_copy(source: str, target: str) -> None:
    """A second name is enough: whoever replaces the file under one leaves it alone under the other."""
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)


def copy_bundle(folder: Path, *, own_litellm: bool = False) -> Path:
    """A copy of the bundle, whose files a test may edit; with a `.venv` in which it may replace LiteLLM."""
    folder.mkdir()
    for file in (*BUNDLE.glob("*.py"), BUNDLE / "litellm_config.template.yaml", BUNDLE / "ecosystem.config.js"):
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


class SetUp:
    """A user's set-up: state folder, HOME, key, stand-in, and the processes started in it."""

    def __init__(self, folder: Path, stub: CortexStub | None = None, bundle: Path = BUNDLE) -> None:
        self.folder, self.bundle = folder, bundle
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key_path = folder / "snowflake_key.p8"
        self.write_key(self.key)
        self.stub = stub or CortexStub(ACCOUNT, USER, [public_pem(self.key)])
        self.stub.start()
        self.port = free_port()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CORTEX_HOME": str(folder),
            "PM2_HOME": str(folder / "pm2"),
            "SNOWFLAKE_ACCOUNT": ACCOUNT,
            "SNOWFLAKE_USER": USER,
            "SNOWFLAKE_HOST": self.stub.url,
            "SNOWFLAKE_PRIVATE_KEY_PATH": str(self.key_path),
            "PROXY_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.before_exec: Callable[[], None] | None = None

    def write_key(self, key: rsa.RSAPrivateKey) -> None:
        self.key_path.touch(mode=0o600)
        self.key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def master_key(self) -> str:
        return (self.folder / ".master_key").read_text().strip()

    @property
    def config(self) -> Path:
        return self.folder / "litellm_config.yaml"

    def start(self, script: str, **environ: str) -> subprocess.Popen[bytes]:
        """Run a script of the bundle; its output goes to `log(script)`."""
        with (self.folder / f"{script}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(self.bundle / script)],
                env={**self.environ, **environ},
                preexec_fn=self.before_exec,  # noqa: PLW1509 - one call into the C library, no lock
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.processes[script] = process
        return process

    def log(self, script: str) -> str:
        path = self.folder / f"{script}.log"
        return path.read_text() if path.exists() else ""

    def start_proxy(self, **environ: str) -> subprocess.Popen[bytes]:
        """Start `claude_proxy.py` and wait until it is ready."""
        process = self.start("claude_proxy.py", **environ)
        before = self.log("claude_proxy.py").count("ready on")
        wait_until(
            lambda: self.log("claude_proxy.py").count("ready on") > before or process.poll() is not None,
            120,
            lambda: self.log("claude_proxy.py"),
        )
        assert process.poll() is None, self.log("claude_proxy.py")
        return process

    def run(self, *command: str, seconds: float = 120, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in this set-up; a script's name is run by this Python."""
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

    @contextmanager
    def template(self, edit: Callable[[str], str]) -> Iterator[None]:
        """The running proxy with an edited template, which a refresher that holds still would render."""
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
            refresher.send_signal(signal.SIGCONT)  # it finds the file altered, and writes it anew
        wait_until(lambda: self.log(log).count(followed) > before + 1, 10, lambda: self.log(log))

    def claude(self, prompt: str, *options: str, seconds: float = 120, **environ: str) -> dict[str, Any]:
        """One scripted run of the real Claude Code; its JSON result."""
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
        """An answer that is under way and stands still; what is yielded lets it go on, and returns its text."""
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
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # noqa: PERF203 - a few processes
                process.kill()
                process.wait(timeout=10)
        self.stub.stop()


def public_pem(key: rsa.RSAPrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The data of a streamed answer's events, in order."""
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.fixture
def set_up(tmp_path: Path) -> Iterator[SetUp]:
    made = SetUp(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    """Refresher and proxy, up for all tests that do not break them; `running.stub` is theirs to script."""
    made = SetUp(tmp_path_factory.mktemp("running"))
    made.start("auto_refresh.py")
    made.start_proxy()
    yield made
    made.close()
