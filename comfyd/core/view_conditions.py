"""Everything that says why one process is not as wished, for core/view.py. Decides nothing: plan() has decided.

Every state but `ready` has at least one condition with a hint.
"""

from collections.abc import Iterable

from comfyd.core.exits import bad_arguments, exit_hint
from comfyd.model.base import Condition
from comfyd.model.observed import ObservedProcess, Phase
from comfyd.model.plan import Plan, StartProcess
from comfyd.model.process import DesiredProcess

SHOWN_HOLDS = frozenset({"waiting_env", "blocked", "backoff", "failed", "conflict", "stopped"})


def state_of(seen: ObservedProcess | None, hold: Condition | None, *, run: bool) -> str:
    """The shown state: the phase of what lives, else what holds it, else that its start is due."""
    if seen is not None and seen.alive:
        return seen.phase.value
    if hold is None:
        return "starting" if run else "stopped"
    if hold.type in SHOWN_HOLDS:
        return hold.type
    return "starting" if hold.type == "waiting_turn" else "held"


def instance_conditions(
    wish: DesiredProcess, seen: ObservedProcess | None, plan: Plan, in_flight: int, loaded_at: float | None
) -> Iterable[Condition]:
    """What holds it first, then how the last run ended, the phase, and warnings. loaded_at: of the files, wall seconds.

    A bad argument stands before the backoff that it causes; a backoff that names the same cause says it once.
    """
    hold, alive = plan.holds.get(wish.key), seen is not None and seen.alive
    last = seen.last_exit if seen is not None and not alive else None
    if last is not None and not last.asked:
        refused = bad_arguments(last)
        if refused is not None:
            yield refused
    if hold is not None:
        yield hold
    unhealthy = _unhealthy(seen) if seen is not None else None
    if unhealthy is not None and (hold is None or hold.reason != unhealthy.reason):
        yield unhealthy
    if seen is not None and alive:
        yield from phase_conditions(seen, in_flight, _why_ending(wish, seen))
    elif hold is None:
        yield _due(wish, seen, plan, loaded_at)
    yield from plan.warnings.get(wish.key, ())


def phase_conditions(seen: ObservedProcess, in_flight: int, ending: str) -> Iterable[Condition]:
    """Why a living process is not ready. ending: why it is to end, if it is."""
    name, since = seen.key.rpartition("/")[2], seen.phase_since_wall
    if seen.phase is Phase.STARTING:
        message = seen.probe_message or "it was started and has not been asked yet"
        hint = f"wait; `comfyd logs {name}` shows what it does; `probe.startup_deadline_s` limits its start"
        yield Condition("not_ready", "probe", message, hint, since)
    elif seen.phase is Phase.UNREADY:
        message = seen.probe_message or "it does not answer"
        hint = f"it gets no tasks until it answers, and is started anew if it stays silent; see `comfyd logs {name}`"
        yield Condition("not_ready", "unready", message, hint, since)
    elif seen.phase is Phase.DRAINING:
        message = f"it finishes {in_flight} prompts before it ends ({ending})"
        hint = f"wait, or `comfyd stop {name}` to give them back to the queue after 5 s"
        yield Condition("not_ready", "draining", message, hint, since)
    elif seen.lingers is not None:
        yield seen.lingers
    elif seen.phase is Phase.STOPPING:
        message = f"it was asked to end ({ending})"
        yield Condition("not_ready", "stopping", message, "wait; it is killed when `stop_grace_s` is over", since)


def _unhealthy(seen: ObservedProcess) -> Condition | None:
    """Why we end it, or had to, or the kernel did: until it is ready again."""
    last = seen.last_exit
    if seen.trouble is not None:
        return seen.trouble
    if last is None or not last.reason or last.asked or seen.phase in (Phase.READY, Phase.UNREADY):
        return None
    return Condition("unhealthy", last.reason, last.text(), exit_hint(last), last.wall)


def _why_ending(wish: DesiredProcess, seen: ObservedProcess) -> str:
    if not wish.run:
        return wish.why_not.message if wish.why_not else "not wanted"
    return "its settings changed" if seen.fingerprint != wish.fingerprint else "it did not become ready, or the end"


def _due(wish: DesiredProcess, seen: ObservedProcess | None, plan: Plan, loaded_at: float | None) -> Condition:
    """Between two passes: it does not run and nothing holds it, so its start comes at once."""
    action = next((a for a in plan.actions if isinstance(a, StartProcess) and a.key == wish.key), None)
    why = action.reason if action else "it is wanted and does not run"
    last = seen.last_exit if seen is not None else None
    since = last.wall if last is not None else loaded_at
    return Condition("not_ready", "start_due", f"it is about to be started: {why}", "wait", since)
