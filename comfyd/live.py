"""Single-writer latest-value cells and the one wake event: what the four hands share while running.

Owns: nothing but the newest value of each cell. One writer per cell, named beside it. Loop thread only.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from comfyd.model.desired import ConfigIssue, DesiredState, Override
from comfyd.model.observed import Evidence, ObservedEnvironment, ObservedState
from comfyd.model.plan import Plan
from comfyd.model.process import ResolvedState
from comfyd.model.sources import ConfigFiles

T = TypeVar("T")


class Cell(Generic[T]):
    """The latest value. `set` wakes all waiters; equal values are not a change."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._seq = 0
        self._changed = asyncio.Event()

    @property
    def seq(self) -> int:
        return self._seq

    def get(self) -> T:
        return self._value

    def set(self, value: T) -> None:
        if value == self._value:
            return
        self._value = value
        self._seq += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_changed(self, seq: int) -> int:
        """Return the current seq as soon as it differs from `seq`."""
        while self._seq == seq:
            await self._changed.wait()
        return self._seq


class Wake:
    """One event without payload; whoever is woken reads everything again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass(frozen=True, slots=True)
class ConfigView:
    """The files as last read. state: ok | stale (newest revision refused) | missing | empty (nothing good yet).

    revision: short hash of the accepted instances.json; path: where it lies; warnings and errors in `issues`.
    sha256: of the newest instances.json, accepted or not ("" if there is none).
    """

    desired: DesiredState = field(default_factory=DesiredState)
    issues: tuple[ConfigIssue, ...] = ()
    state: str = "empty"
    path: str = ""
    revision: str = ""
    seen_revision: str = ""
    loaded_at: float | None = None
    sha256: str = ""
    files: ConfigFiles | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """Who writes what.

    control, once per reconcile pass: config, overrides, resolved, observed, plan, passes (count of finished passes),
    polling (edits are found by comparing only).
    environments: installs. dispatch: evidence, progress (task id -> frame, never stored). daemon: draining,
    longest_stall_s (how long the event loop was blocked at worst, 0 while that never was noteworthy),
    queue_trouble (why the task store cannot be used now, "" while it can),
    queue_durability ("sync" or "async" of a shared queue, else "").
    """

    wake: Wake = field(default_factory=Wake)
    task_wake: Wake = field(default_factory=Wake)
    config: Cell[ConfigView] = field(default_factory=lambda: Cell(ConfigView()))
    overrides: Cell[tuple[Override, ...]] = field(default_factory=lambda: Cell(()))
    resolved: Cell[ResolvedState] = field(default_factory=lambda: Cell(ResolvedState()))
    observed: Cell[ObservedState] = field(default_factory=lambda: Cell(ObservedState()))
    plan: Cell[Plan] = field(default_factory=lambda: Cell(Plan()))
    passes: Cell[int] = field(default_factory=lambda: Cell(0))
    polling: Cell[bool] = field(default_factory=lambda: Cell(False))
    installs: Cell[dict[str, ObservedEnvironment]] = field(default_factory=lambda: Cell({}))
    evidence: Cell[dict[str, Evidence]] = field(default_factory=lambda: Cell({}))
    progress: Cell[dict[str, dict[str, object]]] = field(default_factory=lambda: Cell({}))
    draining: Cell[bool] = field(default_factory=lambda: Cell(False))
    longest_stall_s: Cell[float] = field(default_factory=lambda: Cell(0.0))
    queue_trouble: Cell[str] = field(default_factory=lambda: Cell(""))
    queue_durability: Cell[str] = field(default_factory=lambda: Cell(""))
