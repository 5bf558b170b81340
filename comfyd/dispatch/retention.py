"""Results that were kept long enough go, a few at a time: their files first, then their rows.

So a crash in between leaves a row without files, which goes next time, and never files that nothing names. FAILED tasks
stay until somebody deletes them. Must not: touch what has not ended.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from comfyd.errors import ComfydError
from comfyd.host.files import remove_trees
from comfyd.logs import get_logger
from comfyd.model.base import Now
from comfyd.store.protocol import TaskStore

BATCH: Final = 100
BREATH_S: Final = 0.2
"""Between two batches, so that nobody waits for many of them."""
AGAIN_S: Final = 60.0
LONGEST_S: Final = 24 * 3600.0

log = get_logger(__name__)


class Retention:
    """keep_s: how long a result is kept, 0 = for ever. outputs: folder of result files."""

    def __init__(self, tasks: TaskStore, keep_s: float, outputs: Path, clock: Callable[[], Now]) -> None:
        self._tasks, self._keep_s, self._outputs, self._clock = tasks, keep_s, outputs, clock

    async def run(self) -> None:
        while self._keep_s > 0:
            try:
                pause_s = await self.run_once()
            except (ComfydError, OSError) as error:
                log.warning("old results not removed", reason=str(error))
                pause_s = AGAIN_S
            await asyncio.sleep(pause_s)

    async def run_once(self) -> float:
        """Remove one batch. Returns the seconds until there may be another."""
        found, left_s = await self._tasks.expired(self._keep_s, self._clock(), BATCH)
        if not found:
            return min(LONGEST_S, max(BREATH_S, self._keep_s if left_s is None else left_s))
        await asyncio.to_thread(remove_trees, self._outputs, found)
        removed = await self._tasks.remove(found)
        log.info("old results removed", tasks=removed)
        return BREATH_S
