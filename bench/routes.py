"""What one and the same session costs on each route, counted by the stand-in: `python bench/routes.py`.

The real Claude Code works through two sessions: in one the model says a few words before most of its calls, in the
other it says nothing. A turn has one to three calls, whose output is as long as a file or a log. The stand-in charges
for each request as the contract says about Cortex: prefixes up to a cache mark, of at least 1024 tokens, for five
minutes. The contract does not say whether a mark behind tool results covers them too, so the chat route is counted both
ways. A token is four bytes here: the columns compare routes, and a bill will differ.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cortex_charging import CACHE_SECONDS
from tests.cortex_scripts import read_script
from tests.set_up import SetUp

MODEL = "claude-sonnet-4-6"
TURNS = 25
LINES = (40, 100, 250)  # lines of output of the first, second and third call of a turn
SILENT = 5  # also in the session with text, each turn with a number divisible by this has none
SESSIONS = ("with text before most calls", "without text before calls")  # also their prompts
# From Anthropic's price list. The unit is the price of a token of uncached input.
PRICES = {"input": 1.0, "cache_write": 1.25, "cache_read": 0.1, "output": 5.0}
TITLES = ("uncached input", "cache write", "cache read", "output")


@dataclass(frozen=True)
class Case:
    """A row of the template, and whether a cache mark covers the tool results before it."""

    name: str
    prefix: str
    mark_covers_tool_results: bool = False

    @property
    def row(self) -> str:
        """The name that Claude Code asks for. It knows no such model, so it treats all rows alike."""
        return f"bench-{self.prefix}"

    def yaml(self) -> str:
        return (
            f"  - model_name: {self.row}\n"
            f"    litellm_params: {{ <<: *cortex, model: {self.prefix}/{MODEL} }}\n"
            f"    model_info: {{ <<: *info, max_output_tokens: 64000 }}\n"
        )


CASES = (
    Case("`snowflake/` (Messages)", "snowflake"),
    Case("`openai/` (Chat Completions)", "openai"),
    Case("… if a mark covers results before it", "openai", mark_covers_tool_results=True),
)


def turns(session: str) -> Iterator[dict[str, object]]:
    """What the model of the stand-in does, as a script."""
    for number in range(TURNS - 1):
        commands = [f"seq -f 'line %g of a file or of a log' {lines}" for lines in LINES[: 1 + number % len(LINES)]]
        says = session == SESSIONS[0] and number % SILENT
        yield {
            "text": f"Step {number}: I look at the next files to see how they fit together." if says else "",
            "thinking": f"Where is turn {number} going? " * 10,
            "tools": [["Bash", {"command": command}] for command in commands],
        }
    yield {"text": "done"}


def count(set_up: SetUp, case: Case, session: str) -> dict[str, int]:
    """Run one session and count its requests and tokens."""
    set_up.stub.set_options(mark_covers_tool_results=case.mark_covers_tool_results)
    set_up.stub.skew += CACHE_SECONDS + 1  # the cache of the session before has ended
    before = set_up.stub.totals()
    done = set_up.claude(session, "--model", case.row, "--allowedTools", "Bash", seconds=300)
    assert done["result"] == "done", done
    return {name: total - before[name] for name, total in set_up.stub.totals().items()}


def cost(tokens: dict[str, int]) -> float:
    return sum(tokens[name] * price for name, price in PRICES.items())


def table(counted: dict[Case, dict[str, int]]) -> str:
    """Show the counts as Markdown, with their cost in tokens of uncached input."""
    lines = [
        "| row | requests | " + " | ".join(TITLES) + " | cost | times Messages |",
        "|---|" + "---:|" * (len(TITLES) + 3),
    ]
    least = cost(counted[CASES[0]])
    for case, tokens in counted.items():
        numbers = [tokens["requests"], *(tokens[name] for name in PRICES), round(cost(tokens))]
        shown = " | ".join(f"{number:,}" for number in numbers)
        lines.append(f"| {case.name} | {shown} | {cost(tokens) / least:.2f} |")
    return "\n".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        set_up = SetUp(Path(folder))
        set_up.stub.script = read_script([{"when": session, "turns": [*turns(session)]} for session in SESSIONS])
        rows = "".join({case.row: case.yaml() for case in CASES}.values())
        try:
            set_up.start_both()
            with set_up.template(lambda text: text.replace("\nlitellm_settings:", f"{rows}\nlitellm_settings:", 1)):
                counted = {session: {case: count(set_up, case, session) for case in CASES} for session in SESSIONS}
        finally:
            set_up.close()
    prices = ", ".join(f"{title} {price:g}" for title, price in zip(TITLES, PRICES.values(), strict=True))
    print(f"A session of {TURNS} turns; the cost is in tokens of uncached input ({prices}).")
    for session, cases in counted.items():
        print(f"\nA session {session}:\n\n{table(cases)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
