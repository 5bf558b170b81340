"""Writing wishes and waiting for what becomes of them. The API never starts or stops anything by itself.

Owns: put override → wake → wait until the loop has seen it → read the outcome. Must not: decide outcomes (core does).
"""

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from comfyd.api.context import ApiContext
from comfyd.api.views import launches_by_itself
from comfyd.core.outcome import StartOutcome, start_outcome, stopped
from comfyd.host.clock import container_id
from comfyd.live import Cell
from comfyd.model.desired import Override, Want

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wished:
    """What was written for one key. left_behind: the fingerprint that must have changed before an outcome counts."""

    key: str
    overrides: tuple[Override, ...]
    left_behind: str | None = None


def run_up(context: ApiContext, key: str, by: str) -> Override:
    """A wish to run; while the file only declares, it ends with this container."""
    scope = None if launches_by_itself(context) else container_id()
    return Override(kind="run", key=key, want=Want.UP, scope=scope, created_at=context.clock().wall, by=by)


def run_down(context: ApiContext, key: str, by: str) -> Override:
    return Override(kind="run", key=key, want=Want.DOWN, created_at=context.clock().wall, by=by)


def fresh(context: ApiContext, kind: str, key: str, by: str) -> Override:
    """A `restart` or `install` wish with a token never used before."""
    return Override(kind=kind, key=key, token=uuid.uuid4().hex, created_at=context.clock().wall, by=by)


def ended_badly(context: ApiContext, key: str) -> bool:
    """Its last run ended by itself, so backoff or policy may hold it: a start by hand has to ask with a new token."""
    seen = context.live.observed.get().process(key)
    return seen is not None and not seen.alive and seen.last_exit is not None and not seen.last_exit.asked


def start_wish(context: ApiContext, key: str, by: str, *others: Override) -> Wished:
    """Run up, with a restart token where the last run ended by itself."""
    token = (fresh(context, "restart", key, by),) if ended_badly(context, key) else ()
    return Wished(key, (*others, *token, run_up(context, key, by)), _fingerprint(context, key) if token else None)


def restart_wish(context: ApiContext, key: str, by: str) -> Wished:
    overrides = (fresh(context, "restart", key, by), run_up(context, key, by))
    return Wished(key, overrides, _fingerprint(context, key))


def _fingerprint(context: ApiContext, key: str) -> str | None:
    wish = context.live.resolved.get().process(key)
    return wish.fingerprint if wish else None


async def write(
    context: ApiContext, overrides: Sequence[Override], instead_of: Collection[tuple[str, str]] = ()
) -> None:
    """Store the wishes, all or none, then wake the loop once."""
    await context.node.put_overrides(overrides, instead_of)
    context.live.wake.set()


async def started(context: ApiContext, wished: Sequence[Wished], wait_s: float) -> Mapping[str, StartOutcome]:
    """The outcome of each wish as soon as all are decided, or what they are after `wait_s`."""

    def outcomes() -> dict[str, StartOutcome]:
        return {one.key: _outcome(context, one) for one in wished}

    def decided() -> dict[str, StartOutcome] | None:
        found = outcomes()
        return found if all(o.status != "starting" for o in found.values()) else None

    return await until(context, decided, wait_s) or outcomes()


async def all_stopped(context: ApiContext, wished: Sequence[Wished], wait_s: float) -> bool:
    """Whether nothing of the keys is alive any more, at the latest after `wait_s`."""

    def decided() -> bool | None:
        observed = context.live.observed.get()
        return all(_seen(context, one) and stopped(observed, one.key) for one in wished) or None

    return await until(context, decided, wait_s) or False


def _outcome(context: ApiContext, wished: Wished) -> StartOutcome:
    live = context.live
    stale = wished.left_behind is not None and _fingerprint(context, wished.key) == wished.left_behind
    if stale or not _seen(context, wished):
        return StartOutcome("starting", "the control loop has not seen the request yet")
    return start_outcome(live.resolved.get(), live.observed.get(), live.plan.get(), wished.key)


def _seen(context: ApiContext, wished: Wished) -> bool:
    """Whether the loop has published these wishes, or later ones that replaced them."""
    published = {(o.kind, o.key): o.created_at for o in context.live.overrides.get()}
    return all(published.get((o.kind, o.key), -1.0) >= o.created_at for o in wished.overrides)


async def until(context: ApiContext, decided: Callable[[], T | None], wait_s: float) -> T | None:
    """`decided()` asked again after every change of a cell; None once `wait_s` seconds are over."""
    live = context.live
    cells: tuple[Cell[object], ...] = (live.overrides, live.resolved, live.observed, live.plan, live.passes)  # type: ignore[assignment]
    try:
        async with asyncio.timeout(wait_s):
            while True:
                seqs = [cell.seq for cell in cells]
                answer = decided()
                if answer is not None:
                    return answer
                await _any_changed(cells, seqs)
    except TimeoutError:
        return None


async def _any_changed(cells: Sequence[Cell[object]], seqs: Sequence[int]) -> None:
    waits = [asyncio.ensure_future(cell.wait_changed(seq)) for cell, seq in zip(cells, seqs, strict=True)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()
