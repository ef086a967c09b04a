"""bundle/prices.py: what the prices are multiplied with, and why."""

from __future__ import annotations

import pytest

from bundle.model_list import ModelList
from bundle.prices import price_factor


def listed(cross_region: str) -> ModelList:
    return ModelList("MYORG-MYACCT", "https://host.example", 0, cross_region=cross_region)


@pytest.mark.parametrize(
    ("setting", "factor", "words"),
    [
        ("ANY_REGION", 1.0, "with global routing (CORTEX_ENABLED_CROSS_REGION is ANY_REGION)"),
        ("AWS_US,AWS_GLOBAL", 1.0, "with global routing (CORTEX_ENABLED_CROSS_REGION is AWS_US,AWS_GLOBAL)"),
        ("DISABLED", 1.1, "with regional routing, which is 10 % more (CORTEX_ENABLED_CROSS_REGION is DISABLED)"),
        ("AWS_US,AWS_EU", 1.1, "with regional routing, which is 10 % more"),
        ("", 1.0, "because the account's setting is not known. With regional routing, set PRICE_FACTOR=1.1."),
    ],
)
def test_the_account_s_setting_decides_between_the_two_prices(setting: str, factor: float, words: str) -> None:
    found = price_factor(None, listed(setting))
    assert found.number == factor
    assert words in found.why


def test_a_given_factor_beats_the_account_s_setting_and_without_both_routing_is_global() -> None:
    found = price_factor(0.9, listed("DISABLED"))
    assert (found.number, found.why) == (0.9, "The published prices times 0.9 (PRICE_FACTOR).")
    assert price_factor(None, None) == price_factor(None, listed(""))
