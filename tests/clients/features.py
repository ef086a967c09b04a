"""The checks of the Python SDK by the names of the table, and the run of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from anthropic import Anthropic, AsyncAnthropic

from tests.clients import agent, answers, inputs, service
from tests.clients.asked import Asked, Check
from tests.set_up import SetUp

CHECKS: dict[str, Check] = {**answers.CHECKS, **inputs.CHECKS, **service.CHECKS, **agent.CHECKS}
AT_ONCE = 12
SECONDS = 60  # for one check


async def run_all(set_up: SetUp, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Run the checks `wanted` (name and route). Returns the outcome of each; a failure begins with "FAILED: "."""
    key, url = set_up.master_key, set_up.url
    slots = asyncio.Semaphore(AT_ONCE)
    async with AsyncAnthropic(api_key=key, base_url=url, max_retries=0) as client:
        with Anthropic(api_key=key, base_url=url, max_retries=0) as plain:

            async def run(name: str, route: str) -> str:
                async with slots:
                    try:
                        return await asyncio.wait_for(CHECKS[name](Asked(name, route, client, plain, set_up)), SECONDS)
                    except Exception as error:  # noqa: BLE001 - every failure of a check is its result
                        return f"FAILED: {type(error).__name__}: {error}"

            pairs = list(wanted)
            return dict(zip(pairs, await asyncio.gather(*(run(*pair) for pair in pairs)), strict=True))
