"""The last state that was asked for without an error, kept on disk so that the next daemon goes on from it.

Owns: that file. Must not: judge what is good (the loop does).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from comfyd.core.config import state_from_json, state_to_json
from comfyd.host.files import atomic_write, read_bounded, sync_replaced
from comfyd.logs import get_logger
from comfyd.model.desired import DesiredState

log = get_logger("comfyd.control")
MAX_BYTES = 64 * 1024 * 1024


class LastGood:
    """later: takes a blocking call that nobody waits for."""

    def __init__(self, path: Path, later: Callable[[Callable[[], None]], None]) -> None:
        self._path, self._later = path, later

    async def load(self) -> DesiredState | None:
        """None if there is none, or it cannot be read."""
        saved = await asyncio.to_thread(read_bounded, self._path, MAX_BYTES)
        if saved.data is None:
            return None
        desired = state_from_json(saved.data)
        if desired is None:
            log.warning("last good state unreadable", path=str(self._path))
        return desired

    async def keep(self, desired: DesiredState) -> None:
        """Synced later: what a power cut takes back had processes that it ended as well."""
        try:
            await asyncio.to_thread(self._write, state_to_json(desired))
        except OSError as error:
            log.error("last good state not saved", reason=str(error))
        else:
            self._later(self._sync)

    def _write(self, data: bytes) -> None:
        atomic_write(self._path, data, 0o600, sync=False)

    def _sync(self) -> None:
        try:
            sync_replaced(self._path)
        except OSError as error:
            log.error("last good state not saved", reason=str(error))
