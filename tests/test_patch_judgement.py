"""How patches/apply_patch.py judges a file of LiteLLM, and what the real LiteLLM sends with the patch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.errors import ConfigError
from bundle.proxy.server import restore_patch
from patches import apply_patch
from patches.apply_patch import PatchState
from tests.patched import renamed_before_each_call, shipped_source
from tests.set_up import BUNDLE


def test_the_release_named_in_messages_is_the_pinned_one() -> None:
    assert f"litellm[proxy]=={apply_patch.MADE_FOR}\n" in (BUNDLE / "requirements.in").read_text()


STATEMENT = b"""        headers, response = self.make_sync_openai_chat_completion_request(
            openai_client=openai_client,
            data=data,
            timeout=timeout,
            logging_obj=logging_obj,
        )
"""
CONDITION = b"        if not data:\n            pass\n        elif %b:\n            pass\n" % STATEMENT.strip()[20:]
MOVES = (
    (b"async def acompletion(", b"async def other(", "0 times self.make_openai_chat_completion_request(data=data)"),
    (b"class OpenAIChatCompletion(", b"class ChatCompletion(", "0 times"),
    (
        b"data=data,\n                    timeout",
        b"data=body,\n                    timeout",
        "1 times self.make_openai",
    ),
    (STATEMENT, STATEMENT * 2, "2 times"),
    (STATEMENT, CONDITION, "0 times"),
    (STATEMENT, b"        headers = None; " + STATEMENT.lstrip(), "invalid syntax"),
    (b"def __init__(self) -> None:\n", b"def __init__(self) -> None:\n        \x00\n", "null bytes"),
)


@pytest.mark.parametrize(("old", "new", "reason"), MOVES)
def test_code_that_has_moved_is_told_from_somebody_s_edit(old: bytes, new: bytes, reason: str) -> None:
    shipped = shipped_source()
    moved = shipped.replace(old, new)
    assert moved != shipped
    for source_of_record, state in ((moved, PatchState.MOVED), (shipped, PatchState.CHANGED)):
        report = apply_patch.judge(moved, apply_patch.digest(source_of_record))
        assert (report.state, report.patched, reason in report.reason) == (state, None, True)


def test_code_that_renames_only_sometimes_is_patched_all_the_same() -> None:
    for lines in (
        'data["max_completion_tokens"] = data.pop("max_tokens")',  # a request without a limit is a KeyError
        'if model.startswith("o1"): data["max_completion_tokens"] = data.pop("max_tokens")',
        'if "max_tokens" in data:\n    if stream: data["max_completion_tokens"] = data.pop("max_tokens")',
        'if "max_tokens" in data: data["max_completion_tokens"] = data["max_tokens"]',
    ):
        source = renamed_before_each_call(shipped_source(), lines)
        assert apply_patch.judge(source, apply_patch.digest(source)).state is PatchState.NOT_PATCHED, lines


SEND = """
import asyncio, contextlib, importlib.util, json, sys
import httpx

class PatchedFile:
    def find_spec(name, path=None, target=None):
        if name == "litellm.llms.openai.openai":
            return importlib.util.spec_from_file_location(name, sys.argv[1])

sys.meta_path.insert(0, PatchedFile)
import litellm

bodies = []

def refuse(request):
    bodies.append(json.loads(request.content))
    return httpx.Response(400, json={})

litellm.client_session = httpx.Client(transport=httpx.MockTransport(refuse))
litellm.aclient_session = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
common = {"model": "openai/m", "api_key": "none", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 7}
for stream, more in (False, {}), (True, {}), (False, {"max_completion_tokens": 9}):
    request = common | more | {"stream": stream}
    with contextlib.suppress(litellm.BadRequestError):
        litellm.completion(**request)
    with contextlib.suppress(litellm.BadRequestError):
        asyncio.run(litellm.acompletion(**request))
print(json.dumps({"file": sys.modules["litellm.llms.openai.openai"].__file__, "bodies": bodies}))
"""


@pytest.mark.real
def test_the_real_litellm_sends_only_the_new_name_on_all_four_ways(tmp_path: Path) -> None:
    file = tmp_path / "patched.py"
    file.write_bytes(apply_patch.judge(shipped_source(), None).patched or b"")
    done = subprocess.run(
        [sys.executable, "-c", SEND, file],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["file"] == str(file)
    assert [bool(body.get("stream")) for body in seen["bodies"]] == [False, False, True, True, False, False]
    assert [body.get("max_completion_tokens") for body in seen["bodies"]] == [7, 7, 7, 7, 9, 9]
    assert not any("max_tokens" in body for body in seen["bodies"])


@pytest.mark.keeps("litellm-release")
def test_only_the_tested_release_older_ones_and_pinned_ones_are_not_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_patch, "LOCK", tmp_path / "requirements.txt")
    newer = ["1.106.3", "1.106.2.1", "1.106.2rc1", "1.106.2+local", "1!0.1", "2", "1.200.0", "1.10²"]
    assert [version for version in newer if not apply_patch.is_newer(version)] == []
    assert [version for version in ("1.106.2", "1.106.1", "1.84.0", "0.9") if apply_patch.is_newer(version)] == []
    apply_patch.LOCK.write_text("# litellm==1.300.0\nlitellm[proxy]==1.200.0 \\\n    --hash=x\nlitellm-proxy==2\n")
    assert [version for version in newer if not apply_patch.is_newer(version)] == ["1.200.0"]


@pytest.mark.keeps("litellm-release")
def test_the_proxy_does_not_start_with_a_litellm_that_is_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_patch, "MADE_FOR", "1.84.0")
    monkeypatch.setattr(apply_patch, "LOCK", Path("/no/such/file"))
    with pytest.raises(ConfigError, match=r"is newer than 1\.84\.0.*\n.*(?s:.*)make -C .* lock stop start"):
        restore_patch()
