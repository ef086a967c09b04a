"""A running proxy whose family rows (those that say `newest`) a test may write anew, and what Cortex refuses them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bundle.cortex.catalogue import Listed
from bundle.files import write_private
from bundle.model_list import ModelList
from bundle.render import render
from bundle.settings import load_settings
from bundle.tokens import sign
from tests.cortex_rules import MODELS
from tests.set_up import SetUp, wait_until

PROXY = "claude_proxy.py"
OPUS = ["claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6", "claude-opus-4-5"]
NEW = {"claude-opus-5-5": 128_000, "claude-opus-5-1": 128_000}  # models that no row of the template names
Edit = Callable[[str], str]
_NUMBERS = itertools.count()


class Family(SetUp):
    """A running proxy whose rows a test may write anew."""

    def write_rows(self, route: str, listed: Sequence[str] = (), info: str = "", edit: Edit = str) -> None:
        """Give the proxy rows for this route that have refused nothing yet. `listed` are the generally available models
        of the account's list. `info` is added to the `model_info` of the rows that say `newest`, and `edit` changes the
        template."""
        settings, number, before = load_settings(self.environ), next(_NUMBERS), self.log(PROXY).count("models: ")
        template = settings.template_path.read_text()
        row = "openai/newest }\n    model_info: { <<: *info"
        assert row in template
        models = tuple(Listed(name, "GA") for name in listed)
        rendered = render(
            edit(template.replace(row, f"{row}, number: {number}{info}")),
            {
                "SNOWFLAKE_JWT": sign(settings, time.time()).value,
                "LITELLM_MASTER_KEY": self.master_key,
                "CORTEX_URL": settings.base_url,
            },
            route,
            ModelList(settings.account, settings.base_url, 0, models) if models else None,
        )
        write_private(self.config, rendered)
        wait_until(lambda: self.log(PROXY).count("models: ") > before, 10, lambda: self.log(PROXY))

    def refuse(self, *models: str) -> None:
        """Let these models be unknown on the REST API."""
        known = {**MODELS, **NEW}
        self.stub.set_options(models={name: limit for name, limit in known.items() if name not in models})

    def asked_for(self, since: int = 0) -> list[str]:
        """The models that Cortex was asked for, from this request on."""
        return [record["body"]["model"] for record in self.stub.requests[since:]]

    def patiently(self, model: str = "claude-opus-latest", **more: Any) -> list[httpx.Response]:
        """Ask until the answer is final, as Claude Code does."""
        answers: list[httpx.Response] = []
        while not answers or (answers[-1].status_code == 503 and len(answers) < 10):
            answers.append(self.ask("[[text: hello]]", model, **more))
        return answers


@contextmanager
def a_family(folder: Path) -> Iterator[Family]:
    made = Family(folder)
    try:
        made.refresh()
        made.start_proxy()
        yield made
    finally:
        made.close()
