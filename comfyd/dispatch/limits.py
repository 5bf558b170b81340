"""Hands the limits of the configuration to the store. Must not: count anything."""

from comfyd.core.route import limits
from comfyd.live import Live
from comfyd.model.task import Limit
from comfyd.store.protocol import TaskStore


class Limiter:
    def __init__(self, live: Live, tasks: TaskStore) -> None:
        self._live, self._tasks = live, tasks
        self._set: dict[str, Limit] = {}

    def keep(self) -> None:
        """Before claims: what the newest configuration says."""
        found = limits(one.spec for one in self._live.resolved.get().environments)
        if found != self._set:
            self._set = found
            self._tasks.set_limits(found)
