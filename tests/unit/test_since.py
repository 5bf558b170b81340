"""Since when a condition holds: kept while its cause goes on, new with a new one, the same however often asked."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given

from comfyd.core.since import carried, dated
from comfyd.model.base import Condition, Now
from comfyd.model.observed import ObservedEnvironment
from comfyd.model.plan import Plan
from tests.unit.test_plan import (
    LIFE,
    OFF,
    SLOW,
    desire,
    environment,
    gone,
    happen,
    resolved_states,
    running,
    wish,
    with_processes,
    world,
)
from tests.unit.world import World


def at(wall: float) -> Now:
    return Now(wall, wall)


def held(condition: Condition) -> Plan:
    return Plan(holds={"comfyui/0": condition})


PORT = Condition("blocked", "port_in_use", "held by 7", "end it")


def test_a_new_hold_begins_now_and_goes_on_whatever_its_message_says() -> None:
    first = dated(held(PORT), Plan(), at(100))
    assert first.holds["comfyui/0"].since == 100
    later = dated(held(dataclasses.replace(PORT, message="held by 8")), first, at(200))
    assert later.holds["comfyui/0"].since == 100
    assert later.holds["comfyui/0"].message == "held by 8"


@pytest.mark.parametrize(
    "other", [OFF, dataclasses.replace(PORT, reason="gpu_exclusive"), dataclasses.replace(PORT, type="held")]
)
def test_another_cause_begins_anew(other: Condition) -> None:
    first = dated(held(PORT), Plan(), at(100))
    assert dated(held(other), first, at(200)).holds["comfyui/0"].since == 200


def test_an_instant_of_its_own_wins() -> None:
    crash = Condition("backoff", "crashed", "m", "h", 50)
    assert dated(held(crash), dated(held(crash), Plan(), at(100)), at(200)).holds["comfyui/0"].since == 50


def test_warnings_of_one_cause_begin_each_by_itself() -> None:
    one, two = (Condition("argument_warning", "unknown_flag", flag, "h") for flag in ("--a", "--b"))
    first = dated(Plan(warnings={"k": (one,)}), Plan(), at(100))
    later = dated(Plan(warnings={"k": (one, two)}), first, at(200))
    assert [c.since for c in later.warnings["k"]] == [100, 200]
    assert [c.since for c in carried((two,), later.warnings["k"], 300)] == [200]


def test_a_hold_that_went_away_and_came_back_is_new() -> None:
    machine, desired = world(), desire(wish(0, run=False))
    first = dated(machine.plan(desired), Plan(), machine.now)
    machine.mono += 60
    nothing = dated(machine.plan(desire()), first, machine.now)
    again = dated(machine.plan(desired), nothing, machine.now)
    assert again.holds["comfyui/0"].since == machine.now.wall
    machine.mono += 60
    assert dated(machine.plan(desired), again, machine.now) == again


def test_the_plan_dates_what_it_knows_the_instant_of() -> None:
    crashed = with_processes(gone(0, crashes=3, wall=77.0)).plan(desire(wish(0)))
    assert crashed.holds["comfyui/0"].since == 77.0
    cause = Condition("install_failed", "script_failed", "exit 1", "read it", 55.0)
    failed = ObservedEnvironment(
        name="comm", state="failed", failures=2, failed_mono=1000.0, failed_fingerprint="e1", condition=cause
    )
    decided = World(environments={"comm": failed}).plan(desire(wish(0)))
    assert {key: hold.since for key, hold in decided.holds.items()} == {"comfyui/0": 55.0, "environment/comm": 55.0}


def test_a_broken_or_blocked_environment_is_held_wanted_or_not() -> None:
    broken = Condition("held", "environment_invalid", "line 3", "correct it")
    desired = desire(environments=[environment(wanted=False, spec={"issue": broken})])
    assert world().plan(desired).holds == {"environment/comm": broken}
    blocked = Condition("conflict", "directory_in_the_way", "there", "move it")
    seen = ObservedEnvironment(name="comm", state="conflict", condition=blocked)
    assert World(environments={"comm": seen}).plan(desire(environments=[environment()])).holds == {
        "environment/comm": blocked
    }


def test_a_run_of_an_older_generation_is_a_warning_of_the_plan() -> None:
    machine = with_processes(running(0, tree="/w/.ComfyUI-comm.1"))
    machine.environments["comm"] = machine.environments["comm"].model_copy(
        update={"tree": "/w/.ComfyUI-comm.2", "generation": 2}
    )
    decided = machine.plan(desire(wish(0)))
    (one,) = decided.warnings["comfyui/0"]
    assert (one.type, one.reason) == ("restart_required", "new_generation")
    assert decided.holds == {}


@SLOW
@given(LIFE, resolved_states())
def test_every_condition_has_an_instant_that_does_not_move_and_lies_in_the_past(life: Any, last: Any) -> None:
    machine, before = World(), Plan()
    for desired, happenings in [*life, (last, [])]:
        for event in [("none", 0), *happenings]:
            happen(machine, event)
            now = machine.now
            decided = dated(machine.plan(desired), before, now)
            assert dated(machine.plan(desired), decided, Now(now.mono + 5, now.wall + 5)).holds == decided.holds
            for key, hold in decided.holds.items():
                assert hold.since is not None
                assert hold.since <= now.wall
                former = before.holds.get(key)
                if former is not None and (former.type, former.reason) == (hold.type, hold.reason):
                    assert hold.since >= (former.since or 0), "never earlier than it was said to be"
            machine.apply(decided)
            machine.mono += 1
            before = decided
