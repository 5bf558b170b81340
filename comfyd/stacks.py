"""Where every task of the loop stands: for the state dump (SIGUSR1). Reads only."""

import asyncio
from typing import Any


def task_stacks() -> dict[str, list[str]]:
    """Task name -> the chain of awaits from outside in, each as `function (file:line)`."""
    return {task.get_name(): _chain(task.get_coro()) for task in asyncio.all_tasks()}


def _chain(awaited: Any) -> list[str]:
    found: list[str] = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            break
        code = frame.f_code
        found.append(f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{frame.f_lineno})")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return found
