"""Every process that is not ready says why, since when and what to do, whatever state it is in."""

from typing import Any

import pytest
from hypothesis import given, settings

from comfyd.core.since import dated
from comfyd.core.view import ViewInput, describe
from comfyd.model.base import Condition
from comfyd.model.observed import Evidence, ExitInfo, Phase
from comfyd.model.plan import Plan
from comfyd.model.view import InstanceView
from tests.unit.test_plan import (
    LIFE,
    SLOW,
    desire,
    environment,
    gone,
    happen,
    installed,
    resolved_states,
    running,
    wish,
    with_processes,
    world,
)
from tests.unit.world import WALL, World

SINCE = WALL + 900.0


def shown(machine: World, desired: Any, **more: Any) -> tuple[InstanceView, ...]:
    decided = dated(machine.plan(desired), Plan(), machine.now)
    given = ViewInput(desired, machine.observed(), decided, machine.now, "0", loaded_at=WALL, **more)
    return describe(given).instances


def only(machine: World, desired: Any, **more: Any) -> InstanceView:
    (one,) = shown(machine, desired, **more)
    return one


@pytest.mark.parametrize(
    ("phase", "given", "reason", "message"),
    [
        (Phase.STARTING, {}, "probe", "has not been asked yet"),
        (Phase.STARTING, {"probe_message": "port 3001 is not open yet"}, "probe", "port 3001 is not open yet"),
        (Phase.UNREADY, {"probe_message": "/prompt answers 500"}, "unready", "/prompt answers 500"),
        (Phase.DRAINING, {}, "draining", "finishes 2 prompts"),
        (Phase.STOPPING, {}, "stopping", "asked to end"),
    ],
)
def test_a_phase_says_why(phase: Phase, given: dict[str, Any], reason: str, message: str) -> None:
    machine = with_processes(running(0, phase=phase, phase_since_wall=SINCE, **given))
    evidence = {"comfyui/0": Evidence(key="comfyui/0", generation="g0", in_flight=2)}
    seen = only(machine, desire(wish(0)), evidence=evidence)
    (why,) = seen.conditions
    assert (why.type, why.reason) == ("not_ready", reason)
    assert message in why.message
    assert why.hint
    assert why.since == seen.since


def test_a_ready_one_has_nothing_to_explain() -> None:
    assert only(with_processes(running(0)), desire(wish(0))).conditions == ()


@pytest.mark.parametrize(
    ("given", "why"),
    [({"run": False}, "disabled in the file"), ({"fingerprint": "new"}, "its settings changed")],
)
def test_what_ends_says_why_it_is_to_end(given: dict[str, Any], why: str) -> None:
    machine = with_processes(running(0, phase=Phase.STOPPING, phase_since_wall=SINCE))
    assert why in only(machine, desire(wish(0, **given))).conditions[0].message


def test_one_whose_start_is_due_is_starting_and_says_so() -> None:
    fresh = only(world(), desire(wish(0)))
    assert (fresh.state, fresh.conditions[0].reason) == ("starting", "start_due")
    assert fresh.conditions[0].since is not None
    again = only(with_processes(gone(0, crashes=1)), desire(wish(0)))
    assert again.state == "starting"
    assert "exit code 1" in again.conditions[0].message


def test_the_message_of_the_argument_parser_stands_before_the_backoff_it_causes() -> None:
    lines = ("usage: main.py", "main.py: error: unrecognized arguments: --foo")
    seen = only(with_processes(gone(0, crashes=3, code=2, last_lines=lines)), desire(wish(0)))
    assert [c.type for c in seen.conditions] == ["bad_arguments", "backoff"]
    assert "--foo" in seen.conditions[0].message
    assert seen.state == "backoff"


def test_warnings_stand_last_and_go_with_a_ready_one_too() -> None:
    flags = frozenset({"--lowvram", "--cpu"})
    machine = world(installed(flags=flags))
    machine.processes = {"comfyui/0": running(0)}
    one = wish(0)
    doubtful = one.model_copy(update={"spec": one.spec.model_copy(update={"trailing_argv": ("--lowvrm",)})})
    (why,) = only(machine, desire(doubtful)).conditions
    assert (why.type, why.reason, why.hint) == ("argument_warning", "unknown_flag", "did you mean --lowvram?")
    assert why.since is not None


def test_what_nobody_declares_any_more_says_that_it_ends() -> None:
    machine = with_processes(running(0, phase=Phase.STOPPING, phase_since_wall=SINCE))
    (one,) = shown(machine, desire())
    assert "no longer declared" in one.conditions[0].message


def test_the_last_exit_is_shown_with_oom_signal_and_lines() -> None:
    last = ExitInfo(signal="SIGKILL", reason="oom", at=1000.0, wall=WALL, fingerprint="f3001", last_lines=("a", "b"))
    machine = with_processes(gone(0, crashes=2).model_copy(update={"last_exit": last}))
    seen = only(machine, desire(wish(0)))
    assert seen.last_exit is not None
    assert (seen.last_exit.oom, seen.last_exit.signal, seen.last_exit.last_lines) == (True, "SIGKILL", ("a", "b"))
    assert (seen.conditions[0].type, seen.conditions[0].reason) == ("backoff", "oom")
    assert "out of memory" in seen.conditions[0].message
    assert "last line: b" in seen.conditions[0].message


def test_an_environment_that_cannot_be_is_shown_once_and_dated() -> None:
    issue = Condition("held", "environment_invalid", "line 3", "correct it")
    desired, machine = desire(environments=[environment(spec={"issue": issue})]), world()
    decided = dated(machine.plan(desired), Plan(), machine.now)
    status = describe(ViewInput(desired, machine.observed(), decided, machine.now, "0"))
    (shown_once,) = status.environments[0].conditions
    assert (shown_once.reason, shown_once.hint) == ("environment_invalid", "correct it")
    assert shown_once.since == status.time


@settings(SLOW, max_examples=60)
@given(LIFE, resolved_states())
def test_whatever_is_not_ready_has_a_condition_with_hint_and_instant(life: Any, last: Any) -> None:
    machine, before = World(), Plan()
    for desired, happenings in [*life, (last, [])]:
        for event in [("none", 0), *happenings]:
            happen(machine, event)
            decided = dated(machine.plan(desired), before, machine.now)
            given = ViewInput(desired, machine.observed(), decided, machine.now, "0", loaded_at=WALL)
            for one in describe(given).instances:
                if one.ready:
                    continue
                assert one.conditions, one
                assert all(c.hint and c.message for c in one.conditions)
                assert all(c.since for c in one.conditions), one
            machine.apply(decided)
            machine.mono += 1
            before = decided
