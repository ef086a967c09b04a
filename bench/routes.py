"""What one and the same session costs on each route, counted by the stand-in: `python bench/routes.py`.

The real Claude Code works through a script: one to three calls a turn, whose output is as long as a file or a log. The
stand-in charges for each request as the contract says about Cortex: prefixes up to a cache mark, of at least 1024
tokens, for five minutes. The contract does not say whether a mark behind tool results covers them too, so the chat
route is counted both ways. A token is four bytes here: the columns compare routes, and a bill will differ.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cortex_charging import CACHE_SECONDS
from tests.set_up import SetUp

MODEL = "claude-sonnet-4-6"
TURNS = 25
LINES = (40, 100, 250)  # lines of output of the first, second and third call of a turn
# From Anthropic's price list. The unit is the price of a token of uncached input.
PRICES = {"input": 1.0, "cache_write": 1.25, "cache_read": 0.1, "output": 5.0}
TITLES = ("uncached input", "cache write", "cache read", "output")


@dataclass(frozen=True)
class Case:
    """A row of the template, and whether a cache mark covers the tool results before it."""

    name: str
    prefix: str
    cache_tool_results: bool = False
    mark_covers_tool_results: bool = False

    @property
    def row(self) -> str:
        """The name that Claude Code asks for. It knows no such model, so it treats all rows alike."""
        return f"bench-{self.prefix}-{str(self.cache_tool_results).lower()}"

    def yaml(self) -> str:
        flag = str(self.cache_tool_results).lower()
        return (
            f"  - model_name: {self.row}\n"
            f"    litellm_params: {{ <<: *cortex, model: {self.prefix}/{MODEL} }}\n"
            f"    model_info: {{ <<: *info, max_output_tokens: 64000, cache_tool_results: {flag} }}\n"
        )


CASES = (
    Case("`snowflake/` (Messages)", "snowflake"),
    Case("`openai/` (Chat Completions)", "openai"),
    Case("… if a mark covers results before it", "openai", mark_covers_tool_results=True),
    Case("`openai/` with `cache_tool_results`", "openai", cache_tool_results=True),
    Case("… if a mark covers results before it", "openai", cache_tool_results=True, mark_covers_tool_results=True),
)


def script() -> str:
    """The session as a prompt. The model of the stand-in does what it says."""

    def turns() -> Iterator[str]:
        for number in range(TURNS - 1):
            calls = [output(lines) for lines in LINES[: 1 + number % len(LINES)]]
            yield f"[[thinking: {f'Where is turn {number} going? ' * 10}]] [[tools: {' ; '.join(calls)}]]"
        yield "[[text: done]]"

    def output(lines: int) -> str:
        command = f"seq -f 'line %g of a file or of a log' {lines}"
        return f"Bash {json.dumps({'command': command})}"

    return " ".join(turns())


def count(set_up: SetUp, case: Case) -> dict[str, int]:
    """Run one session and count its requests and tokens."""
    set_up.stub.set_options(mark_covers_tool_results=case.mark_covers_tool_results)
    set_up.stub.skew += CACHE_SECONDS + 1  # the cache of the session before has ended
    before = set_up.stub.totals()
    done = set_up.claude(script(), "--model", case.row, "--allowedTools", "Bash", seconds=300)
    assert done["result"] == "done", done
    return {name: total - before[name] for name, total in set_up.stub.totals().items()}


def table(counted: dict[Case, dict[str, int]]) -> str:
    """Show the counts as Markdown, with their cost in tokens of uncached input."""
    lines = [
        "| row | requests | " + " | ".join(TITLES) + " | cost |",
        "|---|" + "---:|" * (len(TITLES) + 2),
    ]
    for case, tokens in counted.items():
        cost = sum(tokens[name] * price for name, price in PRICES.items())
        numbers = [tokens["requests"], *(tokens[name] for name in PRICES), round(cost)]
        lines.append(f"| {case.name} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    return "\n".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        set_up = SetUp(Path(folder))
        rows = "".join({case.row: case.yaml() for case in CASES}.values())
        try:
            set_up.start_both()
            with set_up.template(lambda text: text.replace("\nlitellm_settings:", f"{rows}\nlitellm_settings:", 1)):
                counted = {case: count(set_up, case) for case in CASES}
        finally:
            set_up.close()
    prices = ", ".join(f"{title} {price:g}" for title, price in zip(TITLES, PRICES.values(), strict=True))
    print(f"One session of {TURNS} turns; the cost is in tokens of uncached input ({prices}).\n\n{table(counted)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
