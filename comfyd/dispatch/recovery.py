"""What this node held when its last daemon ended. Must not: judge whether a prompt is still known (attempt.py does)."""

import asyncio
from collections.abc import Callable
from typing import Final

from comfyd.errors import ComfydError
from comfyd.logs import get_logger
from comfyd.model.base import Now
from comfyd.model.task import Claim
from comfyd.store.protocol import TaskStore

LAST_DELAY_S: Final = 5.0

log = get_logger(__name__)


async def recovered(tasks: TaskStore, node_id: str, lease_s: float, clock: Callable[[], Now]) -> tuple[Claim, ...]:
    """Its claims with fresh leases; a store out of reach is asked until it answers."""
    delay = 0.5
    while True:
        try:
            return await tasks.recover(node_id, lease_s, clock())
        except ComfydError as error:
            log.warning("tasks not recovered yet", reason=error.message)
        await asyncio.sleep(delay)
        delay = min(delay * 2, LAST_DELAY_S)
