"""The small forms that every view shares: an instant, a condition, the end of a log. Pure."""

from datetime import UTC, datetime

from comfyd.model.base import Condition
from comfyd.model.view import ConditionView

SHOWN_LINES = 20
"""So many of the last lines of a log go into a status."""


def rfc3339(wall: float | None) -> str | None:
    """Epoch seconds → `2026-01-31T12:00:00.000Z`."""
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def condition_view(condition: Condition) -> ConditionView:
    return ConditionView(
        type=condition.type,
        reason=condition.reason,
        message=condition.message,
        hint=condition.hint,
        since=rfc3339(condition.since),
    )
