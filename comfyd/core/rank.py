"""Queue order: what a task of some priority costs. rank = max(now, last rank of its user and priority) + cost.

The lowest rank runs next, so a cost is a head start in arrival time: a vip task overtakes normal ones that came up to
52.5 s before it and guests up to 7 min 52.5 s before it, never earlier ones; so none is starved. Tasks of one user
and priority stand one cost apart, so a burst of one user lets another user in between.

| priority | as integer | cost |
|---|---|---|
| vip | 3 | 7.5 s |
| normal | 0 | 60 s |
| guest | -3 | 480 s |

Integers: one more halves the cost, one less doubles it; beyond -10..10 it stays as there (17 h .. 59 ms).
"""

import re
from typing import Final

from comfyd.errors import ComfydError

NORMAL_COST_US: Final = 60_000_000
CLASSES: Final = {"vip": 3, "normal": 0, "guest": -3}
_STEPS: Final = 10
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)


def parse_priority(value: str | int | None) -> str:
    """`vip`, `normal` (None and ""), `guest` or an integer as text. Raises validation_failed."""
    if value is None:
        return "normal"
    text = str(value).strip().lower()
    if text in CLASSES:
        return text
    if not isinstance(value, bool) and _INTEGER.fullmatch(text):
        return str(int(text))
    if text == "":
        return "normal"
    raise ComfydError(
        "priority is vip, normal, guest or an integer (higher runs earlier).",
        code="validation_failed",
        details={"priority": text[:40]},
    )


def rank_cost(priority: str) -> int:
    """Microseconds by which a task of this priority stands behind its arrival. Takes what parse_priority gave."""
    level = CLASSES[priority] if priority in CLASSES else int(priority)
    level = max(-_STEPS, min(_STEPS, level))
    return NORMAL_COST_US >> level if level >= 0 else NORMAL_COST_US << -level
