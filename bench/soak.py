#!/usr/bin/env python3
"""A day in minutes: Claude Code's load on the proxy while token after token ends.

    python bench/soak.py            10,000 requests over 50 tokens, and the plain set-up beside it; about ten minutes
    python bench/soak.py --short    half a minute of it, without the plain set-up (a test runs this)
    python bench/soak.py --json     the same numbers for a program

The clock of the refresher, the proxy and the stand-in for Cortex is put forward by 50 minutes again and again, as if
the machine had slept. The refresher then renews the token; each third time it is stopped meanwhile, until the token is
about to end, so that the proxy has to sign. The plain set-up is LiteLLM under PM2, with the token renewed as people do
it: a new configuration file, then `pm2 reload`. Needs no account, uses loopback only. The exit status is 1 when a
request to the bundle failed, was cut, or carried a dead token, or when its memory grows with each token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.world import megabytes
from bundle.files import write_private
from bundle.proxy.server import LITELLM_ENVIRONMENT
from bundle.render import render_config
from bundle.settings import load_settings
from bundle.tokens import sign
from tests.ports import free_port
from tests.set_up import BUNDLE, ClockedSetUp, wait_until

PM2 = str(BUNDLE / "node_modules" / ".bin" / "pm2")
CLIENTS = 16
LONG_EVERY = 50  # each 50th answer takes two seconds, so that a token ends while it runs
WAIT_SECONDS = 1.0  # Claude Code waits about as long before it tries again
PATIENCE_SECONDS = 60
LIMIT_SECONDS = 900  # a part that takes longer hangs, and ends the run
GROWTH_KB = 2  # that a token may cost on average over a thousand; the steps of an allocator cost less


@dataclass
class Outcome:
    """What happened to the requests of one part."""

    requests: int = 0
    answered: int = 0
    streamed: int = 0
    tokens: int = 0
    failed: int = 0
    cut: int = 0
    dead_token: int = 0
    longest_gap: float = 0.0  # seconds in which no client got an answer
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


class World(ClockedSetUp):
    """A set-up that runs; `close` ends what was started here, and nothing else."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))  # a socket's path must be short
        super().__init__(folder, bench=True)
        self.environ["PM2_DISCRETE_MODE"] = "1"
        self.under_way: set[int] = set()  # requests without their answer
        try:
            self.start_both()
        except BaseException:
            self.close()
            raise

    @property
    def refresher(self) -> subprocess.Popen[bytes]:
        return self.processes["auto_refresh.py"]

    def pm2(self, *arguments: str) -> None:
        done = self.run(PM2, *arguments)
        if done.returncode:
            raise RuntimeError(f"pm2 {arguments[0]}: {done.stdout}{done.stderr}")

    def memory_kb(self) -> int:
        """The proxy's resident memory."""
        return round(megabytes(self.processes["claude_proxy.py"]) * 1024)

    def close(self) -> None:
        super().close()
        if (self.folder / "pm2" / "rpc.sock").exists():
            self.pm2("kill")
        shutil.rmtree(self.folder)


async def soon(done: Callable[[], object]) -> None:
    """Wait until this is true, while the load goes on."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited for {PATIENCE_SECONDS} s in vain")
        await asyncio.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------- load


class CutError(Exception):
    """An answer began and did not come to its end."""


async def ask(client: httpx.AsyncClient, number: int) -> None:
    """Send one request; every second one is streamed. Raise CutError, or httpx.HTTPError when no answer began."""
    stream = number % 2 == 1
    text = "[[stream: 20 0.1]]" if number % LONG_EVERY == 1 else "Say hello."
    body = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": [{"role": "user", "content": text}]}
    async with client.stream("POST", "/v1/messages", json={**body, "stream": stream}) as answer:
        if answer.status_code != 200:
            raise httpx.HTTPError(f"status {answer.status_code}: {(await answer.aread()).decode()[:200]}")
        try:
            whole = (await answer.aread()).decode()
        except httpx.HTTPError as error:
            raise CutError(type(error).__name__) from None
    if not (whole.rstrip().endswith('"message_stop"}') if stream else json.loads(whole)["stop_reason"]):
        raise CutError(whole[-200:])


async def load(
    world: World, port: int, count: int, meanwhile: Callable[[Outcome], Awaitable[None]], pause: float = 0
) -> Outcome:
    """Send requests until `count` are answered and `meanwhile` has ended. Each client waits `pause` seconds between two
    requests."""
    outcome, first, last_answer = Outcome(), len(world.stub.requests), time.monotonic()
    ended = False

    async def work() -> None:
        nonlocal last_answer
        while outcome.answered < count or not ended:
            number = outcome.requests
            outcome.requests += 1
            outcome.streamed += number % 2
            world.under_way.add(number)
            try:
                await ask(client, number)
            except (CutError, httpx.HTTPError) as error:
                outcome.cut += isinstance(error, CutError)
                outcome.failed += not isinstance(error, CutError)
                reason = f"{type(error).__name__}: {error}"
                outcome.reasons[reason] = outcome.reasons.get(reason, 0) + 1
                await asyncio.sleep(WAIT_SECONDS)
            else:
                outcome.answered += 1
                now = time.monotonic()
                outcome.longest_gap, last_answer = max(outcome.longest_gap, now - last_answer), now
                await asyncio.sleep(pause)
            finally:
                world.under_way.discard(number)

    async def rotate() -> None:
        nonlocal ended
        try:
            await meanwhile(outcome)
        finally:
            ended = True

    key = {"Authorization": f"Bearer {world.master_key}"}
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS, keepalive_expiry=60)
    start = time.monotonic()
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers=key, limits=limits, timeout=60, trust_env=False
    ) as client:
        await asyncio.wait_for(asyncio.gather(rotate(), *(work() for _ in range(CLIENTS))), LIMIT_SECONDS)
    outcome.seconds = time.monotonic() - start
    records = world.stub.requests[first:]
    outcome.tokens = len({record["token_id"] for record in records})
    outcome.dead_token = sum("reason" in record for record in records)
    return outcome


# --------------------------------------------------------------------------------------------------------------- parts


def all_day(world: World, requests: int, rotations: int, pause: float) -> tuple[Outcome, list[int]]:
    """Put load on the bundle while tokens end. Return the outcome, and the proxy's memory after each token."""
    memory: list[int] = []

    async def rotate(outcome: Outcome) -> None:
        for number in range(rotations):
            # Wait for this share of the load, so that the requests are spread over the rotations.
            await soon(lambda: outcome.answered >= requests * (number + 0.5) / rotations)  # noqa: B023
            before = world.config.read_bytes()
            if number % 3 == 2:
                world.refresher.send_signal(signal.SIGSTOP)
                world.move_clock(3001)
                await asyncio.sleep(0.5)
                world.move_clock(485)  # 54 seconds are left, so the proxy signs a token itself
                signed = len(world.stub.requests)
                await soon(lambda: any(r["iat"] > world.stub.now() - 120 for r in world.stub.requests[signed:]))  # noqa: B023
                world.refresher.send_signal(signal.SIGCONT)
            else:
                world.move_clock(3001)
            await soon(lambda: world.config.read_bytes() != before)  # noqa: B023
            # Requests with the old token must arrive before the clock moves on.
            old = set(world.under_way)
            await soon(lambda: not old & world.under_way)  # noqa: B023
            memory.append(world.memory_kb())

    return asyncio.run(load(world, world.port, requests, rotate, pause)), memory


def only_tokens(world: World, rotations: int) -> list[int]:
    """Send one request with each of many tokens. Return the proxy's memory at ten moments."""
    memory: list[int] = []
    with httpx.Client(
        base_url=f"http://127.0.0.1:{world.port}",
        headers={"Authorization": f"Bearer {world.master_key}"},
        trust_env=False,
        timeout=60,
    ) as client:
        body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        for number in range(rotations):
            before = world.config.stat().st_ino, world.config.stat().st_mtime_ns
            world.move_clock(1)  # tokens of the same second are the same
            world.refresher.send_signal(signal.SIGHUP)
            wait_until(lambda: (world.config.stat().st_ino, world.config.stat().st_mtime_ns) != before)  # noqa: B023
            client.post("/v1/messages", json=body).raise_for_status()
            if (number + 1) % max(1, rotations // 10) == 0:
                memory.append(world.memory_kb())
    return memory


def by_reload(world: World, requests: int, rotations: int) -> Outcome:
    """Run LiteLLM under PM2 with a `pm2 reload` for each token. Return the outcome."""
    config, port = world.folder / "plain_config.yaml", free_port()

    def renew() -> None:
        settings = load_settings(world.environ)
        token = sign(settings, world.stub.now())
        document = yaml.safe_load(render_config(settings, token))
        document["litellm_settings"].pop("callbacks")
        write_private(config, yaml.safe_dump(document))

    async def rotate(outcome: Outcome) -> None:
        for number in range(rotations):
            await soon(lambda: outcome.answered >= requests * (number + 0.5) / rotations)  # noqa: B023
            renew()
            before = len(world.stub.requests)
            await asyncio.to_thread(world.pm2, "reload", "plain")
            await soon(lambda: len(world.stub.requests) > before + CLIENTS)  # noqa: B023 - it answers again

    renew()
    quiet = {name: value for name, value in LITELLM_ENVIRONMENT.items() if "_LOCAL_" in name}
    world.environ |= quiet  # LiteLLM would ask for price lists on the internet, and start later
    litellm = str(Path(sys.executable).with_name("litellm"))
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    world.pm2("start", litellm, "--interpreter", sys.executable, "--name", "plain", "--", *options)
    wait_until(lambda: answers(port), describe=lambda: "LiteLLM does not start")
    return asyncio.run(load(world, port, requests, rotate))


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/liveliness", trust_env=False, timeout=30).is_success
    except httpx.HTTPError:
        return False


# -------------------------------------------------------------------------------------------------------------- report


def growth(memory: list[int]) -> float:
    """Return how many kB the memory grows per step in its second half (slope of the best line)."""
    half = memory[len(memory) // 2 :]
    return statistics.linear_regression(range(len(half)), half).slope if len(half) > 1 else 0.0


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="half a minute, without the plain set-up")
    parser.add_argument("--json", action="store_true", help="for a program")
    options = parser.parse_args(arguments)
    requests, rotations, tokens, pause = (400, 6, 20, 0.3) if options.short else (10_000, 51, 1_000, 0.0)

    def progress(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    with closing(World()) as world:
        progress(f"{requests} requests from {CLIENTS} clients over {rotations} tokens …")
        ours, memory = all_day(world, requests, rotations, pause)
        progress(f"{tokens} tokens, a request each …")
        more_memory = only_tokens(world, tokens)
        in_memory = world.log("claude_proxy.py").count("signed one in memory")
        plain = None
        if not options.short:
            progress("the same load on LiteLLM, with pm2 reload …")
            plain = by_reload(world, 1_000, 5)
    per_token = growth(more_memory) * len(more_memory) / tokens
    good = not (ours.failed or ours.cut or ours.dead_token) and (options.short or per_token < GROWTH_KB)
    if options.json:
        numbers: dict[str, object] = {
            "ours": asdict(ours),
            "plain": plain and asdict(plain),
            "signed_in_memory": in_memory,
        }
        numbers |= {
            "memory_kb": memory,
            "kb_per_rotation": growth(memory),
            "kb_per_token_alone": per_token,
            "good": good,
        }
        print(json.dumps(numbers, indent=2))
        return 0 if good else 1

    parts = [part for part in (ours, plain) if part]

    def row(name: str, show: Callable[[Outcome], str]) -> tuple[str, ...]:
        return (name, *map(show, parts))

    print(
        table(
            [
                ("", "this bundle", "LiteLLM, pm2 reload")[: len(parts) + 1],
                row("requests (streamed)", lambda part: f"{part.requests} ({part.streamed})"),
                row("new tokens", lambda part: str(part.tokens)),
                row("failed", lambda part: str(part.failed)),
                row("broken off", lambda part: str(part.cut)),
                row("with an expired token", lambda part: str(part.dead_token)),
                row(
                    "failed or cut, per new token",
                    lambda part: f"{(part.failed + part.cut) / max(1, part.tokens - 1):.1f}",
                ),
                row("longest time without an answer", lambda part: f"{part.longest_gap:.1f} s"),
                row("answers a second", lambda part: f"{part.answered / part.seconds:.0f}"),
            ]
        )
    )
    for part in parts:
        for reason, count in sorted(part.reasons.items(), key=lambda pair: -pair[1])[:3]:
            print(f"  {count} x {reason[:100]}")
    print(
        f"Signed in memory: {in_memory}. The proxy's memory: {memory[0] / 1024:.0f} MB, half way "
        f"{memory[len(memory) // 2] / 1024:.0f} MB, at the end {memory[-1] / 1024:.0f} MB: {growth(memory):.1f} kB a "
        f"rotation in the second half. After {tokens} more tokens {more_memory[-1] / 1024:.0f} MB: "
        f"{per_token:.2f} kB each."
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
