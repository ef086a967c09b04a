"""bundle/prices.py: what the prices are multiplied with, and why."""

from __future__ import annotations

import pytest

from bundle.cortex.usage import Used
from bundle.model_list import ModelList
from bundle.prices import Cost, Price, cost, price_factor


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


# What is read, written and answered: a million tokens each, of which two million are cached.
USED = Used(1_000_000, 1_000_000, 1_000_000, 1_000_000)


@pytest.mark.parametrize(
    ("price", "counted", "estimated"),
    [
        (Price(3, 3.75, 0.3, 15), Cost(22.05, 22.05, 22.05), Cost(22.05, 18.6, 25.5)),
        (Price(3, None, 0.3, 15), Cost(18.3, 18.3, 18.3, 1_000_000), Cost(18, 18, 18, 2_000_000)),
        (Price(3, 3.75, None, 15), Cost(21.75, 21.75, 21.75, 1_000_000), Cost(18, 18, 18, 2_000_000)),
        (Price(3, None, None, 15), Cost(18, 18, 18, 2_000_000), Cost(18, 18, 18, 2_000_000)),
        (Price(None, 3.75, 0.3, 15), Cost(19.05, 19.05, 19.05, 1_000_000), Cost(19.05, 15.6, 22.5, 1_000_000)),
        (None, Cost(unpriced=4_000_000), Cost(unpriced=4_000_000)),
    ],
)
def test_an_estimate_between_two_prices_needs_both(price: Price | None, counted: Cost, estimated: Cost) -> None:
    for found, expected in ((cost(USED, price), counted), (cost(USED, price, estimated=True), estimated)):
        assert found.unpriced == expected.unpriced
        amounts = (found.usd, found.low, found.high)
        assert amounts == pytest.approx((expected.usd, expected.low, expected.high))


def test_an_estimate_of_one_kind_alone_has_no_price_either_if_the_other_one_is_missing() -> None:
    only_read = cost(Used(cache_read=1_000_000), Price(input=3, cache_read=0.3, output=15), estimated=True)
    assert only_read == Cost(unpriced=1_000_000)
