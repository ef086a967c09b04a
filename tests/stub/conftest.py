"""The stand-in that the tests in this folder ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cortex_stub import CortexStub
from tests.stub.sending import PEM


@pytest.fixture
def stub() -> Iterator[CortexStub]:
    with CortexStub("org-acc", "me", [PEM]) as running:
        yield running
