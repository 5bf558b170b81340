"""What a start call may answer, from the same facts that plan() sees. Pure; waiting is the caller's."""

from dataclasses import dataclass
from typing import Literal

from comfyd.model.base import Condition
from comfyd.model.observed import ObservedState, Phase
from comfyd.model.plan import Plan
from comfyd.model.process import ResolvedState


@dataclass(frozen=True, slots=True)
class StartOutcome:
    """status `starting`: not decided yet, ask again after a change; the caller's time-out decides then."""

    status: Literal["started", "installing", "failed", "starting"]
    message: str = ""
    condition: Condition | None = None


_FINAL_HOLDS = {"backoff", "failed", "conflict", "stopped", "override_conflict", "held"}
_FINAL_REASONS = {"port_in_use", "gpu_exclusive", "gpu_unknown", "environment_unknown"}


def start_outcome(desired: ResolvedState, observed: ObservedState, plan: Plan, key: str) -> StartOutcome:
    """Ready with the wished fingerprint: started. Environment not there: installing (or failed with its reason).
    Backoff, failed, or blocked by somebody else: failed with that condition. Else starting."""
    wish = desired.process(key)
    if wish is None:
        return StartOutcome("failed", f"{key} is not declared")
    seen = observed.process(key)
    if seen is not None and seen.alive and seen.fingerprint == wish.fingerprint:
        return StartOutcome("started" if seen.phase is Phase.READY else "starting", "ready")
    hold = plan.holds.get(key)
    if hold is None:
        return StartOutcome("starting")
    if hold.type == "waiting_env":
        hopeless = hold.reason in ("install_failed", "no_build_script")
        status: Literal["installing", "failed"] = "failed" if hopeless else "installing"
        return StartOutcome(status, hold.message, hold)
    if hold.type in _FINAL_HOLDS or hold.reason in _FINAL_REASONS:
        return StartOutcome("failed", hold.message, hold)
    return StartOutcome("starting", hold.message, hold)


def stopped(observed: ObservedState, key: str) -> bool:
    """Whether a stop call may answer: nothing of `key` is alive."""
    seen = observed.process(key)
    return seen is None or not seen.alive
