"""The heart: desired against observed gives actions, holds and the time to look again.

At most one action per key. There is no restart: a changed fingerprint stops now; the exit wakes the loop and the next
plan starts once the observed port is free. Whatever is not started has a hold that says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from comfyd.core import gates
from comfyd.core.backoff import install_delay_s
from comfyd.core.doubts import doubts
from comfyd.core.gpu import Pins, gpu_hold, gpu_rival, rival_hold
from comfyd.model.base import Condition, Now
from comfyd.model.observed import ObservedEnvironment, ObservedProcess, ObservedState, Phase
from comfyd.model.plan import Action, InstallEnvironment, Plan, StartProcess, StopProcess
from comfyd.model.process import DesiredEnvironment, DesiredProcess, ResolvedState

RECHECK_S = {"port_in_use": 2.0, "gpu_unknown": 60.0}
STOP_DRAIN_S = 5.0
"""Prompts of an instance that is stopped, disabled or removed get this long before they are given back."""


@dataclass(slots=True)
class _Draft:
    """The plan while it is being made, with what its own starts already take."""

    observed: ObservedState
    now: Now
    startup_delay: float
    last_start: float | None
    edited_at: float | None = None
    actions: list[Action] = field(default_factory=list)
    holds: dict[str, Condition] = field(default_factory=dict)
    wakes: list[float] = field(default_factory=list)
    ports: dict[int, str] = field(default_factory=dict)
    gpus: dict[str, tuple[Pins, bool]] = field(default_factory=dict)
    alone: dict[str, tuple[Pins, bool]] = field(default_factory=dict)
    """Those of `gpus` that want theirs exclusively."""

    def take_gpus(self, key: str, gpus: Pins, exclusive: bool) -> None:
        self.gpus[key] = (gpus, exclusive)
        if exclusive:
            self.alone[key] = (gpus, exclusive)

    def hold(self, key: str, condition: Condition, wake_at: float | None = None) -> None:
        self.holds[key] = condition
        if wake_at is not None:
            self.wakes.append(wake_at)


def plan(desired: ResolvedState, observed: ObservedState, now: Now, edited_at: float | None = None) -> Plan:
    """Decide the next step of every key. Pure: the same input gives the same plan, whatever the order within it.

    edited_at: when (mono) the files were last seen to change.
    """
    draft = _Draft(observed, now, desired.startup_delay, observed.last_start_mono, edited_at)
    wishes, runs = {wish.key: wish for wish in desired.processes}, observed.by_key()
    for process in observed.processes:
        if process.alive:
            draft.take_gpus(process.key, process.gpus, _exclusive(process, wishes.get(process.key)))
            if process.port is not None:
                draft.ports[process.port] = process.key
    _stop_undesired(draft, wishes)
    for environment in desired.environments:
        _plan_environment(draft, environment)
    for wish in sorted(desired.processes, key=_start_order):
        _plan_process(draft, wish, runs.get(wish.key))
    if desired.wake_at is not None:
        draft.wakes.append(now.mono + max(0.0, desired.wake_at - now.wall))
    wake_at = min(draft.wakes, default=None)
    return Plan(tuple(draft.actions), draft.holds, wake_at, doubts(desired, observed))


def _exclusive(process: ObservedProcess, wish: DesiredProcess | None) -> bool:
    """The wish of now counts: changing gpu_exclusive restarts nothing, so what it was started with may be stale."""
    return process.gpu_exclusive if wish is None or wish.fingerprint != process.fingerprint else wish.gpu_exclusive


def _start_order(wish: DesiredProcess) -> tuple[int, str]:
    return (wish.instance.id if wish.instance else -1, wish.key)


def _stop_undesired(draft: _Draft, known: Mapping[str, DesiredProcess]) -> None:
    for process in draft.observed.processes:
        if process.alive and process.key not in known:
            _stop(draft, process, STOP_DRAIN_S, "no longer declared")


def _stop(draft: _Draft, process: ObservedProcess, drain_s: float, reason: str) -> None:
    """A run that drains already is asked again only if it may drain for less long now."""
    left = (process.drain_until_mono or 0.0) - draft.now.mono
    sooner = process.phase is Phase.DRAINING and left > drain_s + 1.0
    if sooner or process.phase not in (Phase.DRAINING, Phase.STOPPING):
        draft.actions.append(StopProcess(process.key, process.generation, drain_s, reason))


def _plan_environment(draft: _Draft, wish: DesiredEnvironment) -> None:
    seen = draft.observed.environment(wish.name) or ObservedEnvironment(name=wish.name)
    key = f"environment/{wish.name}"
    stuck = wish.spec.issue or (seen.condition if seen.state == "conflict" else None)
    if stuck is not None:
        draft.holds[key] = stuck
    if not wish.wanted or seen.state in ("installing", "conflict") or stuck:
        return
    current = seen.fingerprint == wish.fingerprint
    if seen.installed and current and seen.models_fingerprint == wish.spec.models_fingerprint:
        return
    if not wish.spec.has_install and not seen.foreign and not (seen.installed and current):
        draft.holds[key] = gates.no_build_script(wish.name, installed=seen.installed)
        return
    if seen.failures and seen.failed_fingerprint == wish.fingerprint and seen.failed_mono is not None:
        again = seen.failed_mono + install_delay_s(seen.failures, wish.name)
        if draft.now.mono < again:
            draft.hold(key, gates.install_backoff(seen, again - draft.now.mono), again)
            return
    reason = "not installed"
    if seen.installed:
        reason = "models changed" if current else "build scripts, nodes or fixes changed"
    draft.actions.append(InstallEnvironment(wish, reason))


def _plan_process(draft: _Draft, wish: DesiredProcess, seen: ObservedProcess | None) -> None:
    if seen is not None and seen.alive:
        _plan_running(draft, wish, seen)
    else:
        _plan_absent(draft, wish, seen)


def _plan_running(draft: _Draft, wish: DesiredProcess, seen: ObservedProcess) -> None:
    if not wish.run:
        why = wish.why_not.message if wish.why_not else "not wanted"
        _stop(draft, seen, min(STOP_DRAIN_S, wish.drain_timeout_s), why)
    elif wish.held is not None:
        draft.holds[wish.key] = wish.held
    elif seen.fingerprint != wish.fingerprint:
        waits = gates.edit_hold(seen, draft.edited_at, draft.now)
        if waits is not None:
            draft.hold(wish.key, *waits)
            return
        hung = seen.phase is Phase.UNREADY  # its prompts are not going to end by themselves
        drain_s = min(STOP_DRAIN_S, wish.drain_timeout_s) if hung else wish.drain_timeout_s
        _stop(draft, seen, drain_s, "its settings changed")


def _plan_absent(draft: _Draft, wish: DesiredProcess, seen: ObservedProcess | None) -> None:
    if not wish.run:
        off = wish.why_not or Condition("stopped", "not_wanted", "not wanted to run", "`comfyd start` it")
        draft.hold(wish.key, off)
        return
    environment = draft.observed.environment(wish.environment) if wish.environment else None
    refusal = wish.held or gates.exit_hold(wish, seen) or gates.environment_hold(wish, environment)
    if refusal is not None:
        unbuildable = draft.holds.get(f"environment/{wish.environment}")
        draft.hold(wish.key, unbuildable if unbuildable and refusal.reason == "not_installed" else refusal)
        return
    if _waits_for_backoff(draft, wish, seen) or _waits_for_room(draft, wish) or _waits_for_turn(draft, wish):
        return
    flags = environment.flags if environment else frozenset()
    draft.actions.append(StartProcess(wish, flags, gates.why_start(wish, seen)))
    draft.take_gpus(wish.key, wish.gpus, wish.gpu_exclusive)
    if wish.spec.port is not None:
        draft.ports[wish.spec.port] = wish.key
    draft.last_start = draft.now.mono


def _waits_for_backoff(draft: _Draft, wish: DesiredProcess, seen: ObservedProcess | None) -> bool:
    hold, again = gates.backoff_hold(wish, seen, draft.now.mono)
    if hold is not None:
        draft.hold(wish.key, hold, again)
    return hold is not None


def _waits_for_room(draft: _Draft, wish: DesiredProcess) -> bool:
    hold = gpu_hold(wish, draft.observed.gpus) or gates.port_hold(wish, draft.ports, draft.observed)
    if hold is not None:
        wait_s = RECHECK_S.get(hold.reason)
        draft.hold(wish.key, hold, None if wait_s is None else draft.now.mono + wait_s)
        return True
    other = gpu_rival(wish, draft.gpus if wish.gpu_exclusive else draft.alone, draft.observed.gpus)
    if other is None:
        return False
    draft.hold(wish.key, rival_hold(other))
    return True


def _waits_for_turn(draft: _Draft, wish: DesiredProcess) -> bool:
    if draft.last_start is None or draft.startup_delay <= 0:
        return False
    turn = draft.last_start + draft.startup_delay
    if draft.now.mono >= turn:
        return False
    draft.hold(wish.key, gates.turn_hold(draft.startup_delay), turn)
    return True
