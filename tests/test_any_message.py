"""Promises for any conversation on the Messages route: Cortex takes it, and nothing of it is lost."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from bundle.cortex.contents import IMAGE_TOO_OLD
from bundle.cortex.documents import TOOL_FAILED
from bundle.cortex.models import JSON
from tests.conversations import requests, sessions
from tests.cortex_rules import Options
from tests.messages import MODEL, adapted, unmarked

anything = settings(deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


def labels(value: object) -> list[str]:
    return re.findall(r"#\d+#", json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("model", [MODEL, "claude-opus-5"])
@anything
@given(asked=requests())
def test_cortex_takes_it_and_nothing_of_it_is_lost(model: str, asked: JSON) -> None:
    out = adapted({**asked, "model": model}, options=Options(documents=True))
    said = [out.get("system"), out["messages"]]
    assert Counter(labels(said)) == Counter(labels([asked.get("system"), asked["messages"]]))
    results = [part for each in asked["messages"] for part in each["content"] if isinstance(part, dict)]
    told = json.dumps(said)
    failed = told.count(TOOL_FAILED) + told.count('"is_error": true')
    assert failed == sum(part.get("is_error", False) for part in results)


@anything
@given(session=sessions())
def test_a_session_that_grows_keeps_its_prefix(session: list[JSON]) -> None:
    outs = [adapted({**asked, "model": MODEL}, options=Options(documents=True))["messages"] for asked in session]
    for this, following in itertools.pairwise(outs):
        if IMAGE_TOO_OLD not in json.dumps(following):
            kept = this[:-1]  # the newest message may go on (a reminder follows it)
            assert unmarked(following[: len(kept)]) == unmarked(kept)
