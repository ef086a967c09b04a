"""Clients of Anthropic's API other than Claude Code: the official SDKs and the Agent SDKs, against docs/clients.md.

One proxy has rows for both routes and for GPT. All checks of an SDK run at the same time, once, and each test looks at
one outcome. Its name says the feature, the SDK and the route.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.clients import table
from tests.clients.features import CHECKS, run_all
from tests.cortex_rules import JSON
from tests.set_up import CLAUDE, SetUp

Outcomes = dict[tuple[str, str, str], str]
FOLDER = Path(__file__).parent / "clients"
CLAUDES = ("claude-haiku-4-5", "claude-sonnet-4-6", "claude-opus-4-7")
GPTS = ("openai-gpt-4.1", "openai-gpt-5.1")
CASES = [pytest.param(*case, id=f"{case[0].name}-{case[1]}-{case[2]}") for case in table.cases()]


def with_rows(template: str) -> str:
    """The template with rows for the Messages API and for GPT beside those for Chat Completions."""
    names = {f"messages-{name}": f"snowflake/{name}" for name in CLAUDES} | {name: f"openai/{name}" for name in GPTS}
    row = "  - model_name: {}\n    litellm_params: {{ <<: *cortex, model: {} }}\n    model_info: {{ <<: *info }}\n"
    rows = "".join(row.format(*pair) for pair in names.items())
    return template.replace("\nlitellm_settings:", f"\n{rows}\nlitellm_settings:", 1)


def selected(request: pytest.FixtureRequest, sdk: str) -> list[tuple[str, str]]:
    """The features and routes of this SDK whose tests were selected."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    return [(each["feature"].name, each["route"]) for each in params if each.get("sdk") == sdk]


@pytest.fixture(scope="module")
def outcomes(running: SetUp, request: pytest.FixtureRequest) -> Outcomes:
    """What each check has seen, by feature, SDK and route."""
    if not (FOLDER / "node_modules").exists():
        pytest.fail("The SDKs are not installed. Run: make tests/clients/node_modules/installed", pytrace=False)
    told: JSON = {"url": running.url, "key": running.master_key, "stub": running.stub.url, "claude": str(CLAUDE)}
    told |= {"home": str(running.folder), "environ": {**running.environ, **running.claude_env()}}
    told["wanted"] = selected(request, "typescript")
    with running.template(with_rows):
        node = subprocess.Popen(
            ["node", FOLDER / "features.mjs"],
            env={"PATH": os.environ["PATH"], "CLIENTS": json.dumps(told)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with node:
            try:
                python = asyncio.run(run_all(running, selected(request, "python")))
                printed, errors = node.communicate(timeout=120)
            finally:
                node.kill()
    assert printed, errors
    found = {(name, "python", route): outcome for (name, route), outcome in python.items()}
    for pair, outcome in json.loads(printed).items():
        name, _, route = pair.partition("/")
        found[name, "typescript", route] = outcome
    return found


@pytest.mark.real
@pytest.mark.parametrize(("feature", "sdk", "route"), CASES)
def test_a_feature_comes_out_as_the_table_says(
    outcomes: Outcomes, feature: table.Feature, sdk: str, route: str
) -> None:
    outcome = outcomes[feature.name, sdk, route]
    if outcome.startswith("FAILED"):
        pytest.fail(outcome, pytrace=False)
    assert outcome == str(feature.expected(route)).partition(":")[0]


def test_every_row_of_the_table_has_a_check_in_each_sdk_and_every_check_a_row() -> None:
    exported = re.compile(r"^export (?:async function|const) ([a-z_]+)\b", re.MULTILINE)
    modules = [FOLDER / f"{name}.mjs" for name in ("answers", "inputs", "service", "agent")]
    checks = {
        "python": list(CHECKS),
        "typescript": [name for path in modules for name in exported.findall(path.read_text())],
    }
    for sdk, names in checks.items():
        assert sorted(names) == sorted(feature.name for feature in table.FEATURES if sdk in feature.sdks)


def test_an_outcome_that_is_not_yes_says_why() -> None:
    for feature, _, route in table.cases():
        outcome, colon, why = str(feature.expected(route)).partition(": ")
        assert outcome in {"yes", "as text", "in part", "not supported"}
        assert bool(why) == bool(colon) == (outcome in {"in part", "not supported"})
