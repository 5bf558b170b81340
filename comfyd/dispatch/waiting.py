"""Waiting for whichever comes first."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio


async def first_of(*waits: Callable[[], Awaitable[Any]]) -> None:
    """Return as soon as one of them does; the others are cancelled."""
    async with anyio.create_task_group() as group:
        for wait in waits:
            group.start_soon(_end_with, wait, group.cancel_scope)


async def _end_with(wait: Callable[[], Awaitable[Any]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
