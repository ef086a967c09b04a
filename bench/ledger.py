#!/usr/bin/env python3
"""What the ledger adds to a request: `python bench/ledger.py` (three minutes).

Two proxies of this bundle, one with LEDGER=off, and the upstream alone are asked in turns. The answers of the stand-in
say that the prompt came from the cache, so that each line needs an estimate of what was read.
"""

from __future__ import annotations

import signal
import statistics
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.run import LOADS, ask, in_loop, machine, progress, short, table
from bench.world import World, cpu_seconds
from bundle.ledger import read_lines

ROUNDS = 40
WITHOUT, WITH, DIRECT = "LEDGER=off", "with the ledger", "upstream alone"


async def measure(world: World) -> list[list[str]]:
    """A row for each load: medians in milliseconds, the ratio of what is added, and the processor's milliseconds."""
    off, on = world.start_bundle(LEDGER="off"), world.start_bundle()
    targets = {DIRECT: world.direct, WITHOUT: off.target, WITH: on.target}
    rows = []
    for load in LOADS[:4]:
        progress(load.name)
        taken: dict[str, list[float]] = {name: [] for name in targets}
        used = {WITHOUT: 0.0, WITH: 0.0}
        for _ in range(ROUNDS):
            for name, target in targets.items():
                running = {WITHOUT: off, WITH: on}.get(name)
                before = cpu_seconds(running.process) if running else 0.0
                came, _ = await ask(target, load)
                taken[name] += [answer.total * 1000 for answer in came]
                if running:
                    used[name] += cpu_seconds(running.process) - before
        middle = {name: statistics.median(sizes) for name, sizes in taken.items()}
        ratio = (middle[WITH] - middle[DIRECT]) / (middle[WITHOUT] - middle[DIRECT])
        cpu = [used[name] * 1000 / (ROUNDS * load.count) for name in (WITHOUT, WITH)]
        rows.append([load.name, *(short(value) for value in middle.values()), f"{ratio:.3f}", *map(short, cpu)])
    return rows


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that World.close ends what was started
    with closing(World()) as world:
        rows = in_loop(measure(world))
        lines = [*read_lines(world.folder)]
    print(machine())
    print(f"Medians in milliseconds, {ROUNDS} rounds in turns. {len(lines)} lines were written.\n")
    head = ["", DIRECT, WITHOUT, WITH, "ratio of what is added", "processor, off", "processor, with"]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
