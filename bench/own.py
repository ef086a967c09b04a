"""What the bundle's own code costs, called by itself: the refresher's work, the hook, the dialect's functions."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from bench.load import JSON, session_body, small_body
from bundle.bootstrap import state_folder
from bundle.files import write_private
from bundle.proxy.server import LITELLM_ENVIRONMENT
from bundle.render import render_config
from bundle.settings import load_settings
from bundle.tokens import sign


def median_ms(work: Callable[[], object], times: int) -> float:
    """Return the median of `times` calls in milliseconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


def refresher_costs(environ: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds to sign a token, to render the configuration, and to write it so that a crash loses nothing."""
    settings = load_settings(environ)
    token = sign(settings, time.time())
    text = render_config(settings, token)
    return {
        "sign": median_ms(lambda: sign(settings, time.time()), 20),
        "render": median_ms(lambda: render_config(settings, token), 20),
        "write": median_ms(lambda: write_private(settings.folder / "written.yaml", text), 20),
    }


def hook_costs(environ: Mapping[str, str], config: JSON) -> dict[str, float]:
    """Milliseconds of the hooks for a small request, and of the dialect's functions for the large one.

    The arguments are LiteLLM's own: a router with the bundle's rows is asked, a callback keeps what it is given, and
    Cortex is a function in this process.
    """
    os.environ.update({**environ, **LITELLM_ENVIRONMENT})
    import litellm  # noqa: PLC0415 - takes seconds, and reads the environment that was just set
    from litellm.integrations.custom_logger import CustomLogger  # noqa: PLC0415

    from bundle.cortex.refusals import Refusals  # noqa: PLC0415
    from bundle.proxy.hooks import CortexHooks, to_chat  # noqa: PLC0415
    from bundle.proxy.live_config import LiveConfig  # noqa: PLC0415

    hooks = CortexHooks(LiveConfig(state_folder(environ) / "litellm_config.yaml"))

    given: list[tuple[JSON, Any]] = []

    async def keep(kwargs: JSON, call_type: Any) -> None:
        given.append((dict(kwargs), call_type))

    spy = CustomLogger()
    spy.async_pre_call_deployment_hook = keep
    answer = httpx.Response(200, json=_ANSWER)
    for name, value in config["litellm_settings"].items():
        setattr(litellm, name, [spy] if name == "callbacks" else value)

    async def arguments_for(body: JSON) -> list[tuple[JSON, Any]]:
        given.clear()
        await router.aanthropic_messages(**body)
        return list(given)

    async def one_request(calls: list[tuple[JSON, Any]]) -> float:
        url = f"{calls[0][0]['api_base']}/chat/completions"
        came = httpx.Response(200, content=answer.content, headers=answer.headers, request=httpx.Request("POST", url))
        start = time.perf_counter()
        for kwargs, call_type in calls:
            await hooks.async_pre_call_deployment_hook(kwargs, call_type)
        await hooks.on_answer(came)
        return time.perf_counter() - start

    async def measure() -> dict[str, float]:
        calls = await arguments_for(small_body())
        taken = [await one_request(calls) for _ in range(1000)]
        large, _ = (await arguments_for(session_body()))[-1]
        return {
            "hooks": statistics.median(taken) * 1000,
            "dialect_large": median_ms(lambda: to_chat(large, Refusals()), 50),
        }

    async def with_client() -> dict[str, float]:
        litellm.aclient_session = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer))
        async with litellm.aclient_session:
            return await measure()

    router = litellm.Router(model_list=config["model_list"], **config["router_settings"])
    return asyncio.run(with_client())


_ANSWER = {
    "id": "",
    "object": "chat.completion",
    "created": 0,
    "model": "claude-sonnet-4-5",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello.", "refusal": ""}, "finish_reason": ""}
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


def body_size(body: JSON) -> int:
    return len(json.dumps(body, ensure_ascii=False).encode())
