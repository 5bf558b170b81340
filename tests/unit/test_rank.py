"""Priorities as people write them, and what they cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyd.core.rank import parse_priority, rank_cost
from comfyd.errors import ComfydError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, "normal"),
        ("", "normal"),
        ("vip", "vip"),
        (" VIP ", "vip"),
        ("Guest", "guest"),
        (0, "0"),
        (-7, "-7"),
        ("+12", "12"),
        ("007", "7"),
        (999_999_999, "999999999"),
    ],
)
def test_what_is_understood(written: str | int | None, meant: str) -> None:
    assert parse_priority(written) == meant
    assert parse_priority(meant) == meant


@pytest.mark.parametrize("written", ["high", "1.5", "1e3", "٣", "9" * 10, "--1", True, "vip\x00"])
def test_what_is_refused(written: str) -> None:
    with pytest.raises(ComfydError) as caught:
        parse_priority(written)
    assert caught.value.code == "validation_failed"


def test_the_documented_numbers() -> None:
    assert (rank_cost("vip"), rank_cost("normal"), rank_cost("guest")) == (7_500_000, 60_000_000, 480_000_000)
    assert rank_cost("3") == rank_cost("vip")
    assert rank_cost("-3") == rank_cost("guest")
    assert rank_cost("999999999") == rank_cost("10") == 58_593
    assert rank_cost("-999999999") == rank_cost("-10") == 61_440_000_000


@given(st.integers(-(10**9) + 1, 10**9 - 1), st.integers(-(10**9) + 1, 10**9 - 1))
def test_a_higher_integer_never_costs_more(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert rank_cost(parse_priority(low)) >= rank_cost(parse_priority(high)) > 0
