"""`GET /v1/models`: what a client finds there, how fast, and what Claude Code makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.family import OPUS, Family, a_family
from tests.set_up import CLAUDE, TOKEN

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with a_family(tmp_path_factory.mktemp("family")) as made:
        yield made


def get(family: Family, path: str, **headers: str) -> httpx.Response:
    given = {"Authorization": f"Bearer {family.master_key}", **headers}
    given = {name: value for name, value in given.items() if value}
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.get(
            f"{family.url}/v1/models{path}", headers={key: value for key, value in given.items() if value}
        )


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [entry["id"] for entry in answer.json()["data"]]


@pytest.mark.parametrize("query", ["", "?limit=1000", "?before_id=x&after_id=y&limit=-1", "?limit=%00&limit="])
def test_the_list_has_anthropic_s_shape_whatever_the_query_says(family: Family, query: str) -> None:
    answer = get(family, query)
    found = ids(answer)
    assert {"claude-opus-5", "claude-sonnet-5", "claude-haiku-4-5"} <= set(found)
    body = answer.json()
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, found[0], found[-1])
    assert all({"type", "id", "display_name", "created_at"} < entry.keys() for entry in body["data"])


def test_a_model_that_cortex_refuses_leaves_the_list_and_comes_back_when_it_answers(family: Family) -> None:
    family.write_rows("chat", listed=["claude-opus-5-5", "claude-opus-5-1", "claude-opus-4-8"])
    assert get(family, "/claude-opus-9-9").json()["id"] == "claude-opus-5-5"
    family.refuse("claude-opus-5-5", "claude-opus-4-8")
    family.patiently()
    family.patiently("claude-opus-4-8")  # a row of its own
    assert ids(get(family, "")) == ["claude-opus-5-1"]
    assert get(family, "/claude-opus-9-9").json()["id"] == "claude-opus-5-1"
    assert get(family, "/claude-opus-4-8").status_code == 404
    family.refuse()
    family.patiently("claude-opus-4-8")  # the reason has gone, perhaps for the other one too
    assert ids(get(family, "")) == ["claude-opus-4-8", "claude-opus-5-5"]
    family.write_rows("chat")


@pytest.mark.parametrize("path", ["/claude-opus-5", "/claude%2Dopus%2D5", "/anthropic%2Fclaude-opus-5", "/opus"])
def test_one_model_is_found_however_its_name_is_written(family: Family, path: str) -> None:
    answer = get(family, path)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["id"], answer.json()["display_name"]) == ("claude-opus-5", "Claude Opus 5")


@pytest.mark.parametrize("path", ["/gpt-9", "/%00", "/%E2%80%AE", "/..%2f..", "/" + "x" * 5000, "/"])
def test_a_name_that_nothing_answers_is_not_found_in_anthropic_s_form(family: Family, path: str) -> None:
    answer = get(family, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert len(answer.content) < 500


@pytest.mark.keeps("key-is-needed")
@pytest.mark.parametrize("path", ["", "/claude-opus-5"])
def test_the_models_are_told_only_to_who_has_the_key(family: Family, path: str) -> None:
    for wrong in ("", "Bearer wrong"):
        assert get(family, path, Authorization=wrong).status_code == 401
    assert get(family, path, Origin="https://evil.example").status_code == 403


def test_the_list_is_there_at_once_while_litellm_is_busy_and_cortex_is_not_asked(family: Family) -> None:
    text = "word " * 60_000
    with ThreadPoolExecutor(16) as pool:
        working = [pool.submit(family.ask, text, "claude-opus-5", stream=True) for _ in range(32)]
        time.sleep(0.2)
        slowest = 0.0
        while not all(each.done() for each in working):
            began = time.monotonic()
            ids(get(family, "?limit=1000"))
            slowest = max(slowest, time.monotonic() - began)
        assert {each.result().status_code for each in working} == {200}
    assert 0 < slowest < 3
    before = len(family.stub.requests)
    get(family, "/claude-opus-5")
    assert len(family.stub.requests) == before


def test_claude_code_finds_the_models_and_answers_with_one_that_it_found(family: Family, tmp_path: Path) -> None:
    assert OPUS[0] in ids(get(family, ""))
    environ: dict[str, Any] = {
        **family.claude_env(),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "",
        "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY": "1",
        "CLAUDE_CONFIG_DIR": str(tmp_path),
        "DISABLE_TELEMETRY": "1",
    }
    done = family.run(str(CLAUDE), "-p", "[[text: found]]", "--model", "opus", **environ)
    assert done.stdout.strip() == "found", done.stderr
    kept = json.loads((tmp_path / "cache" / "gateway-models.json").read_text())
    assert kept["baseUrl"] == family.url
    assert [entry["id"] for entry in kept["models"]] == ids(get(family, ""))
    assert {"id": "claude-opus-5", "display_name": "Claude Opus 5"} in kept["models"]
    assert not TOKEN.search(json.dumps(kept))
