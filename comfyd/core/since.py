"""Since when a condition holds. plan() knows only the moment; what it said before tells what is new.

Pure: the instants come from the former plan and from `now`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from comfyd.model.base import Condition, Now
from comfyd.model.plan import Plan

Sameness = Callable[[Condition], tuple[Any, ...]]


def same_cause(condition: Condition) -> tuple[Any, ...]:
    """A hold goes on while its cause does, whatever its message counts down."""
    return condition.type, condition.reason


def same_words(condition: Condition) -> tuple[Any, ...]:
    """Of several with one cause (models, options) each begins by itself."""
    return condition.type, condition.reason, condition.message


def dated(decided: Plan, before: Plan, now: Now) -> Plan:
    """`decided` with a `since` for every condition: its own, else that of the same one in `before`, else now."""
    holds = {
        key: carried((hold,), (before.holds[key],) if key in before.holds else (), now.wall, same_cause)[0]
        for key, hold in decided.holds.items()
    }
    warnings = {
        key: carried(found, before.warnings.get(key, ()), now.wall, same_words)
        for key, found in decided.warnings.items()
    }
    return replace(decided, holds=holds, warnings=warnings)


def carried(
    conditions: Iterable[Condition], before: Iterable[Condition], wall: float, same: Sameness = same_words
) -> tuple[Condition, ...]:
    """Each with a `since`: its own, else that of the same one before, else `wall` (epoch seconds)."""
    known = {same(one): one.since for one in before if one.since is not None}
    return tuple(one if one.since is not None else replace(one, since=known.get(same(one), wall)) for one in conditions)
