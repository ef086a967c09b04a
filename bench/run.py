#!/usr/bin/env python3
"""How fast the bundle is, beside LiteLLM as it comes and beside the upstream alone, in one run.

    python bench/run.py           one table, and the goals
    python bench/run.py --json    the same numbers for a program
    python bench/run.py --steps   what each part of bundle/proxy/lean_litellm.py saves (ten minutes)

The upstream is the local stand-in for Cortex, which answers at once: what is measured is what a proxy adds. All three
are asked in turns, in several rounds, so that what else the machine does hits all of them; the numbers are medians over
the rounds. Needs no account, uses loopback only, and takes a few minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.load import JSON, Answer, Target, long_answer_body, run_load, session_body, small_body
from bench.own import body_size, hook_costs, refresher_costs
from bench.world import Running, World, cpu_seconds, megabytes
from bundle.proxy.lean_litellm import STEPS

STARTS = 3
ROUNDS = 5
CHUNKS = 2000
PACED_CHUNKS, PACE_SECONDS = 500, 0.004  # faster than any model, and slow enough that chunks arrive one by one
DIRECT, LITELLM, BUNDLE = "upstream alone", "LiteLLM", "this bundle"


@dataclass(frozen=True)
class Load:
    """A kind of request: how many a round sends, and how many of them at once."""

    name: str
    body: JSON
    count: int
    at_once: int = 1


LOADS = (
    Load("small", small_body(), 30),
    Load("small, streamed", small_body(stream=True), 30),
    Load("100 k tokens", session_body(), 6),
    Load("100 k tokens, streamed", session_body(stream=True), 6),
    Load("small, 32 at once", small_body(), 128, 32),
    Load("small, streamed, 32 at once", small_body(stream=True), 128, 32),
    Load("100 k tokens, 32 at once", session_body(), 32, 32),
    Load("100 k tokens, streamed, 32 at once", session_body(stream=True), 32, 32),
    Load(f"{CHUNKS} chunks", long_answer_body(CHUNKS), 2),
)
LONG = LOADS[-1]
STEP_LOADS = [replace(load, count=count) for load, count in zip((*LOADS[:4], LONG), (25, 25, 3, 3, 1), strict=True)]


def progress(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------ measuring


def in_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run this in uvloop if LiteLLM has installed it, so that the load itself costs little."""
    loop = asyncio.new_event_loop()
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415

        loop.close()
        loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def first_request(running: Running) -> tuple[float, float]:
    """Milliseconds of the first request after ready, and of a warm one. Streamed, as Claude Code asks."""

    async def ask() -> list[Answer]:
        return (await run_load(running.target, small_body(stream=True), count=21))[0]

    first, *warm = [answer.total * 1000 for answer in in_loop(ask())]
    return first, statistics.median(warm)


def measure_starts(world: World) -> tuple[JSON, dict[str, Running]]:
    """Start both in turns. Those of the last turn keep running."""
    seen: dict[str, list[JSON]] = {LITELLM: [], BUNDLE: []}
    starts: dict[str, Callable[[], Running]] = {LITELLM: world.start_litellm, BUNDLE: world.start_bundle}
    left: dict[str, Running] = {}
    for number in range(STARTS):
        for name, start in starts.items():
            progress(f"start {number + 1} of {STARTS}: {name}")
            running = start()
            memory = running.megabytes()
            first, warm = first_request(running)
            seen[name].append({"seconds": running.seconds, "megabytes": memory, "first_ms": first, "warm_ms": warm})
            if number < STARTS - 1:
                world.stop(running.name)
            else:
                left[name] = running
    return {name: {key: median(rows, key) for key in rows[0]} for name, rows in seen.items()}, left


def median(rows: list[JSON], key: str) -> float:
    return float(statistics.median(row[key] for row in rows))


async def measure_loads(targets: dict[str, Target]) -> JSON:
    """Put every load on every target, in turns, `ROUNDS` times."""
    answers: dict[str, dict[str, list[Answer]]] = {load.name: {name: [] for name in targets} for load in LOADS}
    rates: dict[str, dict[str, list[float]]] = {load.name: {name: [] for name in targets} for load in LOADS}
    for number in range(ROUNDS):
        for load in LOADS:
            progress(f"round {number + 1} of {ROUNDS}: {load.name}")
            for name, target in targets.items():
                came, seconds = await ask(target, load)
                answers[load.name][name] += came
                rates[load.name][name].append(load.count / seconds)
    return {
        load.name: {
            name: {**percentiles(answers[load.name][name]), "per_second": statistics.median(rates[load.name][name])}
            for name in targets
        }
        for load in LOADS
    }


async def ask(target: Target, load: Load) -> tuple[list[Answer], float]:
    body = load.body
    if "/cortex/" in target.path and body["stream"]:
        body = {**body, "stream_options": {"include_usage": True}}  # as a proxy asks
    return await run_load(target, body, count=load.count, at_once=load.at_once)


async def measure_paced(running: dict[str, Running]) -> dict[str, float]:
    """Milliseconds of processor time per chunk when chunks come one by one, the rest of the request included."""
    body = long_answer_body(PACED_CHUNKS, PACE_SECONDS)
    used: dict[str, list[float]] = {name: [] for name in running}
    for number in range(ROUNDS):
        progress(f"round {number + 1} of {ROUNDS}: {PACED_CHUNKS} chunks, one by one")
        for name, one in running.items():
            before = cpu_seconds(one.process)
            await run_load(one.target, body, count=1)
            used[name].append((cpu_seconds(one.process) - before) * 1000 / PACED_CHUNKS)
    return {name: statistics.median(values) for name, values in used.items()}


def percentiles(answers: list[Answer]) -> JSON:
    """Milliseconds to the first byte of content and to the last."""
    out = {}
    for what in ("first", "total"):
        sizes = sorted(getattr(answer, what) * 1000 for answer in answers)
        out[f"{what}_p50"], out[f"{what}_p99"] = statistics.median(sizes), sizes[int(len(sizes) * 0.99)]
    return out


def measure() -> JSON:
    started = time.monotonic()
    with closing(World()) as world:
        results: JSON = {"machine": machine(), "body_bytes": {load.name: body_size(load.body) for load in LOADS}}
        results["starts"], running = measure_starts(world)
        used, since = cpu_seconds(world.refresher), time.monotonic()
        targets = {DIRECT: world.direct, **{name: one.target for name, one in running.items()}}
        results["loads"] = in_loop(measure_loads(targets))
        results["paced_ms"] = in_loop(measure_paced(running))
        results["megabytes_after"] = {name: one.megabytes() for name, one in running.items()}
        results["refresher"] = {
            "megabytes": megabytes(world.refresher),
            "cpu_percent": 100 * (cpu_seconds(world.refresher) - used) / (time.monotonic() - since),
            **refresher_costs(world.environ),
        }
        progress("the hooks by themselves")
        results["own"] = hook_costs(world.environ, world.document)
    results["minutes"] = (time.monotonic() - started) / 60
    results["goals"] = goals(results)
    return results


def measure_steps() -> JSON:
    """Measure how much longer the proxy takes without each of its parts, asked in turns."""

    results: JSON = {"machine": machine(), "steps": {}}
    with closing(World()) as world:
        for part in ("importing", "warmed"):
            progress(f"without {part}")
            starts: dict[str, list[JSON]] = {"": [], part: []}
            for _ in range(STARTS):
                for without, seen in starts.items():
                    running = world.start_bundle(without)
                    seen.append({"start": running.seconds * 1000, "first request": first_request(running)[0]})
                    world.stop(running.name)
            keys = ("start", "first request")
            results["steps"][part] = {key: median(starts[part], key) - median(starts[""], key) for key in keys}
        for part in (step.__name__ for step in STEPS):
            progress(f"without {part}")
            both = [world.start_bundle(), world.start_bundle(part)]
            results["steps"][part] = in_loop(compare(both))
            for running in both:
                world.stop(running.name)
    return results


async def compare(both: list[Running]) -> JSON:
    """By load: how many milliseconds more the second of two takes for a request (difference of lower quartiles)."""
    saved = {}
    for load in STEP_LOADS:
        taken: list[list[float]] = [[], []]
        for _ in range(4 * ROUNDS):
            for running, sizes in zip(both, taken, strict=True):
                came, _ = await ask(running.target, load)
                sizes += [answer.total * 1000 for answer in came[1:] or came]
        whole, without = (statistics.quantiles(sizes, n=4)[0] for sizes in taken)
        saved[load.name] = (without - whole) / (CHUNKS if load is STEP_LOADS[-1] else 1)
    return saved


# ---------------------------------------------------------------------------------------------------------------- goals


def added(results: JSON, load: str, what: str = "total_p50") -> dict[str, float]:
    """How many milliseconds each proxy adds to those of the upstream."""
    rows = results["loads"][load]
    return {name: rows[name][what] - rows[DIRECT][what] for name in (LITELLM, BUNDLE)}


def goals(results: JSON) -> list[JSON]:
    """The goals of the project and what was measured. A goal is an upper limit, or with `least` a lower one."""

    def ratio(values: JSON) -> float:
        return float(values[BUNDLE] / values[LITELLM])

    def rate(load: str) -> float:
        return ratio({name: row["per_second"] for name, row in results["loads"][load].items()})

    starts, own, refresher = results["starts"], results["own"], results["refresher"]
    rows = [
        ("added to a small request, x LiteLLM", ratio(added(results, "small")), 0.5),
        ("added to a small request, streamed, x LiteLLM", ratio(added(results, "small, streamed")), 0.5),
        ("requests/s, 32 at once, x LiteLLM", rate("small, 32 at once"), 2.0),
        ("requests/s, 32 at once, streamed, x LiteLLM", rate("small, streamed, 32 at once"), 2.0),
        ("per chunk of a long stream, x LiteLLM", ratio(added(results, LONG.name)), 0.5),
        ("added to 100 k tokens with tools, x LiteLLM", ratio(added(results, "100 k tokens")), 0.7),
        ("the same, streamed, x LiteLLM", ratio(added(results, "100 k tokens, streamed")), 0.7),
        ("start to ready, x LiteLLM", ratio({name: row["seconds"] for name, row in starts.items()}), 0.7),
        ("first request after ready, x a warm one", starts[BUNDLE]["first_ms"] / starts[BUNDLE]["warm_ms"], 2.0),
        ("hooks, ms per small request", own["hooks"], 0.2),
        ("refresher, MB", refresher["megabytes"], 55.0),  # with the HTTP client that asks for the account's models
        ("refresher, % of a core", refresher["cpu_percent"], 0.1),
    ]
    return [
        {"goal": name, "measured": value, "least" if "/s" in name else "most": wanted, "met": met(name, value, wanted)}
        for name, value, wanted in rows
    ]


def met(name: str, value: float, wanted: float) -> bool:
    return value >= wanted if "/s" in name else value <= wanted


# ------------------------------------------------------------------------------------------------------------- printing


def machine() -> str:
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("litellm", "openai", "uvicorn"))
    return (
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} x {model or 'processor'}, "
        f"load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [head, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])], *rows]
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    )


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def report(results: JSON) -> str:
    rows: list[list[str]] = []
    loads, starts, own, refresher = (results[key] for key in ("loads", "starts", "own", "refresher"))
    for load in LOADS[:-1]:
        for what, title in (("first", "first byte"), ("total", "total")):
            cells = [f"{short(row[f'{what}_p50'])} / {short(row[f'{what}_p99'])}" for row in loads[load.name].values()]
            extra = added(results, load.name, f"{what}_p50")
            rows.append([f"{load.name}: {title}, ms", *cells, short(extra[BUNDLE] / extra[LITELLM])])
        if load.at_once > 1:
            rates = {name: row["per_second"] for name, row in loads[load.name].items()}
            rows.append(
                [f"{load.name}: requests/s", *map(short, rates.values()), short(rates[BUNDLE] / rates[LITELLM])]
            )

    def both(title: str, values: dict[str, float], alone: str = "") -> None:
        rows.append([title, alone, *map(short, values.values()), short(values[BUNDLE] / values[LITELLM])])

    long = {name: value / CHUNKS for name, value in added(results, LONG.name).items()}
    alone = short(loads[LONG.name][DIRECT]["total_p50"] / CHUNKS)
    both(f"one chunk of a stream of {CHUNKS} without pauses, ms", long, alone)
    both("a chunk that comes on its own, ms of processor", results["paced_ms"])
    both("start to ready, s", {name: row["seconds"] for name, row in starts.items()})
    both("first request, streamed, ms", {name: row["first_ms"] for name, row in starts.items()})
    both("memory at ready, MB", {name: row["megabytes"] for name, row in starts.items()})
    both("memory after the load, MB", results["megabytes_after"])
    large = loads["100 k tokens"][LITELLM]["total_p50"] - loads["100 k tokens"][DIRECT]["total_p50"]
    for title, value, ratio in (
        ("hooks, ms per small request", own["hooks"], ""),
        ("the dialect's functions on 100 k tokens, ms", own["dialect_large"], short(own["dialect_large"] / large)),
        ("refresher: memory, MB", refresher["megabytes"], ""),
        ("refresher: processor, % of a core", refresher["cpu_percent"], ""),
        ("refresher: signing, ms", refresher["sign"], ""),
        ("refresher: rendering, ms", refresher["render"], ""),
        ("refresher: writing, ms", refresher["write"], ""),
    ):
        rows.append([title, "", "", short(value), ratio])
    size = results["body_bytes"]["100 k tokens"] // 1000
    return "\n".join(
        [
            results["machine"],
            f"Medians of {ROUNDS} rounds in turns, {STARTS} starts; p50 / p99. 100 k tokens: {size} kB with 25 tools.",
            "The ratio is of what a proxy adds to the upstream's own time.",
            "",
            table(["", DIRECT, LITELLM, BUNDLE, "ratio"], rows),
            "",
            goal_table(results["goals"]),
        ]
    )


def goal_table(found: list[JSON]) -> str:
    rows = [
        [
            goal["goal"],
            short(goal["measured"]),
            f"at least {goal['least']}" if "least" in goal else f"at most {goal['most']}",
            "yes" if goal["met"] else "NO",
        ]
        for goal in found
    ]
    return table(["goal", "measured", "wanted", "met"], rows)


def steps_report(results: JSON) -> str:
    columns = ["start", "first request", *(load.name for load in STEP_LOADS)]
    rows = [
        [part, *(short(saved[column]) if column in saved else "" for column in columns)]
        for part, saved in results["steps"].items()
    ]
    heads = [f"one of {column}" if column == LONG.name else column for column in columns]
    note = "Milliseconds that each part of bundle/proxy/lean_litellm.py saves: what it takes longer without that part."
    return "\n".join([results["machine"], note, "", table(["without", *heads], rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument("--steps", action="store_true", help="what each part of bundle/proxy/lean_litellm.py saves")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that World.close ends what was started
    results = measure_steps() if options.steps else measure()
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print(steps_report(results) if options.steps else report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
