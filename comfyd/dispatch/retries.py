"""Which tasks have been tried again because of memory or a device error. Forgotten with the daemon: a task has its
budgets in the store besides.

Owns: that memory. Must not: decide whose fault an error is (core/blame.py does).
"""

from typing import TypeVar

from comfyd.core.blame import DeviceError, is_poison

KEPT = 1000
T = TypeVar("T")


class Retries:
    """By task id; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._device: dict[str, tuple[DeviceError, ...]] = {}
        self._memory: dict[str, bool] = {}

    def again_after_memory(self, task_id: str) -> bool:
        """Whether a task that ran out of memory is to be tried again: the first time."""
        if self._memory.pop(task_id, False):
            return False
        _keep(self._memory, task_id, True)
        return True

    def again_after_device(self, task_id: str, error: DeviceError) -> bool:
        """Whether a task with a device error is to be tried again: unless the errors are its own."""
        errors = (*self._device.pop(task_id, ()), error)
        if is_poison(errors):
            return False
        _keep(self._device, task_id, errors)
        return True


def _keep(kept: dict[str, T], task_id: str, value: T) -> None:
    kept[task_id] = value
    while len(kept) > KEPT:
        del kept[next(iter(kept))]
