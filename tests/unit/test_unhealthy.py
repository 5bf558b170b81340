"""What status says of an instance that was ended because it was of no use any more, or by the kernel."""

import pytest

from comfyd.core.view import ViewInput, describe
from comfyd.model.base import Condition, Now
from comfyd.model.observed import ExitInfo, ObservedProcess, ObservedState, Phase
from comfyd.model.plan import Plan
from comfyd.model.process import DesiredProcess, ProcessSpec, ResolvedState
from comfyd.model.view import InstanceView

WISH = DesiredProcess(
    key="comfyui/0", spec=ProcessSpec(key="comfyui/0", argv=("x",), cwd="/", log="/l"), fingerprint="f", run=True
)


def shown(
    phase: Phase,
    last: ExitInfo | None = None,
    trouble: Condition | None = None,
    probe: str = "",
    kind: str = "unhealthy",
) -> InstanceView:
    """The instance with its conditions of that kind."""
    seen = ObservedProcess(key=WISH.key, phase=phase, last_exit=last, trouble=trouble, probe_message=probe)
    given = ViewInput(ResolvedState(processes=(WISH,)), ObservedState(processes=(seen,)), Plan(), Now(5, 5), "0")
    (one,) = describe(given).instances
    return one.model_copy(update={"conditions": tuple(c for c in one.conditions if c.type == kind)})


def ended(**fields: object) -> ExitInfo:
    return ExitInfo(at=1, wall=2, fingerprint="f", **fields)


@pytest.mark.parametrize("reason", ["unresponsive", "device_errors", "not_ready_in_time"])
@pytest.mark.parametrize("phase", [Phase.GONE, Phase.STARTING])
def test_why_it_was_ended_is_shown_until_it_is_ready_again(reason: str, phase: Phase) -> None:
    one = shown(phase, ended(code=0, cause="the words", reason=reason))
    (why,) = one.conditions
    assert (why.type, why.reason, why.message, bool(why.hint)) == ("unhealthy", reason, "the words", True)
    assert why.since == "1970-01-01T00:00:02.000Z"
    assert one.last_exit is not None
    assert one.last_exit.reason == reason


def test_memory_is_named() -> None:
    one = shown(Phase.GONE, ended(signal="SIGKILL", reason="oom"))
    (why,) = one.conditions
    assert (why.type, why.reason, why.message) == ("unhealthy", "oom", "killed by the kernel: out of memory")
    assert why.hint
    assert one.last_exit is not None
    assert (one.last_exit.oom, one.last_exit.text) == (True, why.message)


def test_while_it_is_being_ended_the_reason_is_the_present_one() -> None:
    trouble = Condition("unhealthy", "unresponsive", "no answer for 60 s", "look", 3.0)
    (why,) = shown(Phase.STOPPING, ended(reason="oom"), trouble).conditions
    assert (why.reason, why.message) == ("unresponsive", "no answer for 60 s")


@pytest.mark.parametrize("phase", [Phase.READY, Phase.UNREADY])
def test_what_is_over_is_over(phase: Phase) -> None:
    assert "unhealthy" not in {c.type for c in shown(phase, ended(reason="oom")).conditions}


def test_an_ordinary_crash_or_a_stop_by_hand_is_not_unhealthy() -> None:
    assert shown(Phase.GONE, ended(code=1)).conditions == ()
    assert shown(Phase.GONE, ended(code=0, reason="oom", asked=True)).conditions == ()


def test_an_unready_one_says_what_its_last_probe_saw() -> None:
    (why,) = shown(Phase.UNREADY, probe="no answer", kind="not_ready").conditions
    assert (why.type, why.reason, why.message, bool(why.hint)) == ("not_ready", "unready", "no answer", True)
