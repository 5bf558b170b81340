"""Whether open tasks are to be cancelled: asked when a task is said to have changed, never by the clock.

Owns: how often the store is asked while tasks come quickly. Must not: decide what a cancel means (attempt.py does).
"""

import asyncio
from collections.abc import Iterable

from comfyd.dispatch.attempt import Attempt
from comfyd.errors import ComfydError
from comfyd.logs import get_logger

log = get_logger(__name__)


class Cancels:
    """`look` asks soon for every attempt that is open then; looks within `pause_s` are one."""

    def __init__(self, attempts: Iterable[Attempt], pause_s: float) -> None:
        self._attempts = attempts
        self._pause_s = pause_s
        self._due = asyncio.Event()

    def look(self) -> None:
        self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            for attempt in list(self._attempts):
                try:
                    await attempt.notice_cancel()
                except ComfydError as error:
                    log.debug("cancel not looked up", task=attempt.task_id, reason=error.message)
            await asyncio.sleep(self._pause_s)
