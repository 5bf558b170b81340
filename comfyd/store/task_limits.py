"""How many tasks may be leased at once, by environment and by workflow; the limits are those of the configuration.

Every lease counts, of instances and of outside workers. A holder that comes back after its lease ran out may exceed a
limit: its task runs, whatever we count.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from comfyd.model.task import Limit, Limits

Place = tuple[str, str | None]
"""(environment, workflow); None = whatever is next there."""

_LEASED: Final = (
    "SELECT environment, workflow_name, count(*) FROM task INDEXED BY task_held "
    "WHERE token IS NOT NULL AND lease_mono IS NOT NULL GROUP BY environment, workflow_name"
)
_NEXT_WORKFLOW: Final = (
    "SELECT min(workflow_name) FROM task INDEXED BY task_workflow_queue WHERE state = 'PENDING' AND workflow_name > ?"
)


class Room:
    """used: (environment, workflow, leased tasks)."""

    def __init__(self, limits: Limits, used: Iterable[Sequence[object]]) -> None:
        self._limits = limits
        self._total: dict[str, int] = {}
        self._used: dict[Place, int] = {}
        for environment, workflow, n in used:
            self.take(str(environment), str(workflow), int(str(n)))

    def take(self, environment: str, workflow: str, n: int = 1) -> None:
        self._total[environment] = self._total.get(environment, 0) + n
        place = environment, workflow
        self._used[place] = self._used.get(place, 0) + n

    def left(self, environment: str) -> float:
        """How many more tasks of it may be leased."""
        most = self._limit(environment).running
        return float("inf") if most is None else most - self._total.get(environment, 0)

    def full(self, environment: str) -> set[str]:
        """Workflows of it that are at their limit."""
        most = self._limit(environment).workflows
        return {name for name, n in most.items() if self._used.get((environment, name), 0) >= n}

    def _limit(self, environment: str) -> Limit:
        return self._limits.get(environment, _NONE)


_NONE: Final = Limit()


def room(db: sqlite3.Connection, limits: Limits) -> Room:
    return Room(limits, db.execute(_LEASED) if limits else ())


def places(
    room: Room, environments: Iterable[str], workflows: Iterable[str] | None, queued: Sequence[str]
) -> list[Place]:
    """Where a task may be taken from. queued: workflows that have tasks, for environments where some are full."""
    found: list[Place] = []
    for environment in environments:
        if room.left(environment) <= 0:
            continue
        full = room.full(environment)
        if workflows is None and not full:
            found.append((environment, None))
            continue
        names = queued if workflows is None else sorted(set(workflows))
        found += [(environment, name) for name in names if name not in full]
    return found


def queued_workflows(db: sqlite3.Connection) -> list[str]:
    """By hops over the index: as many steps as there are workflows, however long the queue."""
    names: list[str] = []
    while True:
        (name,) = db.execute(_NEXT_WORKFLOW, (names[-1] if names else "",)).fetchone()
        if name is None:
            return names
        names.append(name)
