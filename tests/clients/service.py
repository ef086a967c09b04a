"""Checks of the Python SDK: errors, request ids, models, cancelling, load, and APIs that Cortex does not have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from anthropic import (
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncAnthropic,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
)

from tests.clients.asked import IN_PART, NOT, YES, Asked, Check, error_of, refused, text_of


async def bad_request(a: Asked) -> str:
    """Fields of a wrong shape are refused by name, and never reach Cortex (case C6)."""
    hologram = {"role": "user", "content": [{"type": "hologram", "words": a.mark}]}
    wrong: list[tuple[str, Any]] = [
        *(("max_tokens", value) for value in ("five", 0)),
        *(("messages", value) for value in ("hi", [5], [], [{"content": f"{a.mark} no role"}], [hologram])),
        *(("tools", "no"), ("temperature", "hot"), ("stream", "yes"), ("tool_choice", "any"), ("thinking", True)),
    ]
    wrongly = []
    for field, value in wrong:
        try:
            refused(await error_of(a.ask(extra_body={field: value}), BadRequestError), field)
        except (AssertionError, APIError) as found:  # noqa: PERF203 - all of them are shown
            wrongly.append(f"{field}={str(value)[:50]}: {found}")
    assert not wrongly, wrongly
    assert a.records() == []
    return YES


async def wrong_key(a: Asked) -> str:
    client = a.client.with_options(api_key="sk-ant-not-the-key")
    error = await error_of(client.messages.create(**a.body()), AuthenticationError)
    assert error.type == "authentication_error"
    assert "key" in str(error)
    assert a.records() == []
    return YES


async def both_headers_of_a_key(a: Asked) -> str:
    """`api_key` goes as x-api-key, `auth_token` as a bearer token."""
    key = str(a.client.api_key)
    async with AsyncAnthropic(auth_token=key, base_url=a.client.base_url, max_retries=0) as client:
        assert text_of(await client.messages.create(**a.body("[[text: bearer]]"))) == "bearer"
    assert text_of(await a.ask("[[text: key]]")) == "key"
    return YES


async def permission(a: Asked) -> str:
    error = await error_of(a.ask("[[error: no_role]]"), PermissionDeniedError)
    assert error.type == "permission_error"
    assert "GRANT DATABASE ROLE" in str(error)
    return YES


async def unknown_model(a: Asked) -> str:
    """Anthropic says 404. Of a 404, Claude Code shows no words, so here it is a 400 that says what to do."""
    refused(await error_of(a.ask(extra_body={"model": "no-such-model"}), BadRequestError), "no-such-model")
    return IN_PART


async def rate_limit(a: Asked) -> str:
    error = await error_of(a.ask("[[error: too_many]]"), RateLimitError)
    assert error.type == "rate_limit_error"
    return YES


async def overloaded(a: Asked) -> str:
    """A 400 of Cortex that means: later."""
    error = await error_of(a.ask("[[error: throttled]]"), RateLimitError)
    assert error.type in {"rate_limit_error", "overloaded_error"}
    return YES


async def server_error(a: Asked) -> str:
    for fault in ("internal", "inference_timeout"):
        error = await error_of(a.ask(f"[[error: {fault}]]"), InternalServerError)
        assert error.type in {"api_error", "overloaded_error", "timeout_error"}, error.type
    return YES


async def retried(a: Asked) -> str:
    """The SDK tries again by itself where that can help, and only there."""
    client = a.client.with_options(max_retries=2)
    answer = await client.messages.create(**a.body("[[error: too_many]] [[text: second try]]"))
    assert text_of(answer) == "second try"
    assert [record["status"] for record in a.records()] == [429, 200]
    error = await error_of(client.messages.create(**a.body("[[error: budget]]")), APIStatusError)
    assert error.status_code == 402
    assert error.response.headers["x-should-retry"] == "false"
    assert [record["status"] for record in a.records()] == [429, 200, 402]
    return YES


async def error_in_a_stream(a: Asked) -> str:
    """Or before its first event, if Cortex breaks off at once."""

    async def read() -> None:
        async with a.client.messages.stream(**a.body('[[error: cut {"after": 4}]] [[stream: 30]]')) as events:
            await events.get_final_message()

    error = await error_of(read(), APIStatusError)
    assert error.type in {"api_error", "overloaded_error"}, error.type
    return YES


async def request_ids(a: Asked) -> str:
    answer = await a.ask()
    assert answer._request_id, "the answer has no request id"
    async with a.client.messages.stream(**a.body()) as events:
        await events.get_final_message()
        assert events.request_id, "the stream has no request id"
        assert events.request_id != answer._request_id
    return YES


async def request_ids_of_errors(a: Asked) -> str:
    """Of Cortex's errors, of those of the proxy itself, and of a 404."""
    errors = await asyncio.gather(
        error_of(a.ask("[[error: too_many]]"), RateLimitError),
        error_of(a.ask(extra_body={"messages": []}), BadRequestError),
        error_of(a.client.models.retrieve("no-such-model"), NotFoundError),
    )
    assert all(error.request_id for error in errors), [error for error in errors if not error.request_id]
    return YES


async def token_counting(a: Asked) -> str:
    short = await a.client.messages.count_tokens(model=a.model(), messages=[{"role": "user", "content": "one"}])
    long = await a.client.messages.count_tokens(model=a.model(), messages=[{"role": "user", "content": "one " * 500}])
    assert 0 < short.input_tokens < long.input_tokens < 2000
    return YES


async def models_list(a: Asked) -> str:
    listed = [model async for model in a.client.models.list()]
    found = next(model for model in listed if model.id == a.model())
    assert found.type == "model"
    assert found.display_name
    return YES


async def models_retrieve(a: Asked) -> str:
    assert (await a.client.models.retrieve(a.model())).id == a.model()
    error = await error_of(a.client.models.retrieve("no-such-model"), NotFoundError)
    assert error.type == "not_found_error"
    return YES


async def _missing_api(call: Awaitable[object]) -> str:
    error = await error_of(call, NotFoundError)
    assert error.type == "not_found_error"
    assert error.response.headers["x-should-retry"] == "false"
    return NOT


async def batches(a: Asked) -> str:
    one: Any = {"custom_id": "1", "params": a.body()}
    return await _missing_api(a.client.messages.batches.create(requests=[one]))


async def files(a: Asked) -> str:
    return await _missing_api(a.client.beta.files.upload(file=("a.txt", b"text", "text/plain")))


async def file_in_a_message(a: Asked) -> str:
    """A file that was uploaded to Anthropic, by its id."""
    block = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    await a.client.beta.messages.create(**a.body("", block), betas=["files-api-2025-04-14"])
    assert "left out" in str(a.received()["messages"])
    return NOT


async def cancelled_stream(a: Asked) -> str:
    async with a.client.messages.stream(**a.body("[[stream: 400 0.05]]")) as events:
        async for _ in events.text_stream:
            break
    await a.wait_for(lambda record: record.get("aborted"))
    return YES


async def cancelled_request(a: Asked) -> str:
    task = asyncio.ensure_future(a.ask('[[error: slow_start {"seconds": 60}]]'))
    await a.wait_for(bool)
    task.cancel()
    await a.wait_for(lambda record: record.get("aborted"))
    return YES


async def timeout(a: Asked) -> str:
    asked = a.body('[[error: slow_start {"seconds": 60}]]')
    await error_of(a.client.with_options(timeout=1.0).messages.create(**asked), APITimeoutError)
    await a.wait_for(lambda record: record.get("aborted"))
    return YES


async def many_at_once(a: Asked) -> str:
    asked = [a.ask(f"[[text: answer {number}]]") for number in range(32)]
    answers = await asyncio.gather(*asked)
    assert [text_of(answer) for answer in answers] == [f"answer {number}" for number in range(32)]
    return YES


async def long_stream(a: Asked) -> str:
    async with a.client.messages.stream(**a.body("[[stream: 400 0.005]]", max_tokens=8000)) as events:
        text = await events.get_final_text()
    assert text == " ".join(f"w{number}" for number in range(400))
    return YES


async def client_without_async(a: Asked) -> str:
    def ask() -> str:
        with a.plain.messages.stream(**a.body("[[text: streamed]]")) as events:
            streamed = events.get_final_text()
        return streamed + text_of(a.plain.messages.create(**a.body("[[text: whole]]")))

    assert await asyncio.to_thread(ask) == "streamedwhole"
    return YES


CHECKS: dict[str, Check] = {
    each.__name__: each
    for each in (
        *(bad_request, wrong_key, both_headers_of_a_key, permission, unknown_model, rate_limit, overloaded),
        *(
            server_error,
            retried,
            error_in_a_stream,
            request_ids,
            request_ids_of_errors,
            token_counting,
            models_list,
            models_retrieve,
        ),
        *(batches, files, file_in_a_message, cancelled_stream, cancelled_request, timeout, many_at_once),
        *(long_stream, client_without_async),
    )
}
