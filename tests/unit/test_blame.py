"""Whose fault device errors are."""

import pytest

from comfyd.core.blame import MAX_PROCESSES, DeviceError, is_poison


def errors(*seen: tuple[str, int]) -> list[DeviceError]:
    return [DeviceError(generation, good) for generation, good in seen]


@pytest.mark.parametrize(
    ("seen", "poison"),
    [
        ([("a", 0)], False),
        ([("a", 7)], False),
        ([("a", 0), ("a", 0), ("a", 0)], False),
        ([("a", 0), ("b", 0)], False),
        ([("a", 5), ("b", 0)], False),
        ([("a", 0), ("b", 1)], True),
        ([("a", 3), ("a", 4)], True),
        ([("a", 3), ("a", 3)], False),
        ([("a", 0), ("b", 0), ("c", 0)], True),
        ([("a", 0), ("b", 0), ("b", 0)], False),
    ],
)
def test_a_task_is_to_blame_where_others_go_well_or_in_the_third_process(
    seen: list[tuple[str, int]], poison: bool
) -> None:
    assert is_poison(errors(*seen)) is poison


def test_no_task_spoils_more_processes_than_that() -> None:
    assert is_poison(errors(*((str(n), 0) for n in range(MAX_PROCESSES))))
