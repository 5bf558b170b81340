"""plan(): tables for each rule, and properties over a small simulated machine."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyd.core.backoff import JITTER, crash_delay_s, install_delay_s
from comfyd.core.gates import EDITS_QUIET_S, JUST_RESTARTED_S
from comfyd.core.outcome import start_outcome
from comfyd.core.plan import RECHECK_S, STOP_DRAIN_S, plan
from comfyd.model.base import Condition
from comfyd.model.desired import EnvironmentSpec, InstanceSpec, ModelSpec
from comfyd.model.observed import (
    ExitInfo,
    ObservedEnvironment,
    ObservedGpu,
    ObservedProcess,
    ObservedState,
    Phase,
    PortHolder,
)
from comfyd.model.plan import InstallEnvironment, Plan, StartProcess, StopProcess
from comfyd.model.process import DesiredEnvironment, DesiredProcess, ProcessSpec, ResolvedState
from tests.unit.world import WALL, World

HELD = Condition("held", "environment_unknown", "no such environment", "correct `environment`")
FAILED = ObservedEnvironment(name="comm", state="failed", failures=1, failed_mono=1000.0, failed_fingerprint="e1")
OFF = Condition("stopped", "disabled", "disabled in the file", "enable it")


def wish(number: int, port: int | None = None, **given: Any) -> DesiredProcess:
    key = f"comfyui/{number}"
    port = 3001 + number if port is None else port
    spec = ProcessSpec(key=key, argv=("x",), cwd="/", port=port, log="/l")
    instance = InstanceSpec(id=number, port=port, name=f"n{number}")
    fields = {"fingerprint": f"f{port}", "run": True, "environment": "comm"} | given
    if not fields["run"]:
        fields.setdefault("why_not", OFF)
    return DesiredProcess(key=key, spec=spec, instance=instance, **fields)


def environment(name: str = "comm", fingerprint: str = "e1", **given: Any) -> DesiredEnvironment:
    spec = EnvironmentSpec(name=name, has_install=given.pop("has_install", True), **given.pop("spec", {}))
    return DesiredEnvironment(name=name, spec=spec, fingerprint=fingerprint, **({"wanted": True} | given))


def desire(*wishes: DesiredProcess, environments: Sequence[DesiredEnvironment] = (), **given: Any) -> ResolvedState:
    return ResolvedState(processes=wishes, environments=tuple(environments or [environment()]), **given)


def installed(name: str = "comm", fingerprint: str = "e1", **given: Any) -> ObservedEnvironment:
    models = EnvironmentSpec(name=name).models_fingerprint
    fields = {"state": "installed", "installed": True, "fingerprint": fingerprint, "models_fingerprint": models}
    return ObservedEnvironment(name=name, **(fields | given))


def world(*environments: ObservedEnvironment) -> World:
    return World(environments={e.name: e for e in environments or (installed(),)})


def running(number: int, port: int | None = None, phase: Phase = Phase.READY, **given: Any) -> ObservedProcess:
    port = 3001 + number if port is None else port
    fields = {"generation": f"g{number}", "fingerprint": f"f{port}", "port": port, "pid": 100 + number} | given
    return ObservedProcess(key=f"comfyui/{number}", phase=phase, **fields)


def gone(number: int, crashes: int = 0, **given: Any) -> ObservedProcess:
    last = ExitInfo(**({"code": 1, "at": 1000.0, "wall": WALL, "fingerprint": f"f{3001 + number}"} | given))
    return ObservedProcess(key=f"comfyui/{number}", phase=Phase.GONE, crashes=crashes, last_exit=last)


def with_processes(*processes: ObservedProcess) -> World:
    made = world()
    made.processes = {p.key: p for p in processes}
    return made


def verbs(decided: Plan) -> list[tuple[str, str]]:
    return [
        (type(a).__name__.removesuffix("Process").removesuffix("Environment").lower(), a.key) for a in decided.actions
    ]


# --- tables


def test_an_absent_wish_is_started_with_the_flags_of_its_environment() -> None:
    decided = world(installed(flags=frozenset({"--database-url"}))).plan(desire(wish(0)))
    assert verbs(decided) == [("start", "comfyui/0")]
    action = decided.actions[0]
    assert isinstance(action, StartProcess)
    assert action.flags == frozenset({"--database-url"})
    assert action.reason
    assert (decided.holds, decided.wake_at) == ({}, None)


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert with_processes(running(0)).plan(desire(wish(0))) == Plan()
    assert world().plan(desire(environments=[environment(wanted=False)])) == Plan()


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY, Phase.UNREADY])
def test_a_changed_fingerprint_stops_now_and_starts_only_after_the_exit(phase: Phase) -> None:
    machine = with_processes(running(0, phase=phase))
    desired = desire(wish(0, fingerprint="new", drain_timeout_s=77))
    decided = machine.plan(desired)
    assert verbs(decided) == [("stop", "comfyui/0")]
    action = decided.actions[0]
    assert isinstance(action, StopProcess)
    drain_s = STOP_DRAIN_S if phase is Phase.UNREADY else 77
    assert (action.drain_s, action.generation) == (drain_s, "g0")
    machine.apply(decided)
    while machine.processes["comfyui/0"].alive:
        assert verbs(machine.plan(desired)) == []
        machine.advance("comfyui/0")
    assert verbs(machine.plan(desired)) == [("start", "comfyui/0")]


def test_a_hung_one_is_restarted_without_waiting_for_its_prompts() -> None:
    machine = with_processes(running(0, phase=Phase.UNREADY, fingerprint="old"))
    (stop,) = machine.plan(desire(wish(0, drain_timeout_s=600.0))).actions
    assert isinstance(stop, StopProcess)
    assert stop.drain_s == STOP_DRAIN_S


@pytest.mark.parametrize("drain", [0.0, 1.0, 600.0])
def test_what_is_not_wanted_is_stopped_with_a_short_drain(drain: float) -> None:
    decided = with_processes(running(0)).plan(desire(wish(0, run=False, drain_timeout_s=drain)))
    action = decided.actions[0]
    assert isinstance(action, StopProcess)
    assert action.drain_s == min(drain, STOP_DRAIN_S)
    assert OFF.message in action.reason


def test_what_no_file_declares_any_more_is_stopped() -> None:
    assert verbs(with_processes(running(0), running(1)).plan(desire(wish(0)))) == [("stop", "comfyui/1")]


def test_a_stop_is_not_repeated_unless_it_may_drain_for_less_long() -> None:
    for phase in (Phase.DRAINING, Phase.STOPPING):
        machine = with_processes(running(0, phase=phase, drain_until_mono=1000 + STOP_DRAIN_S))
        assert verbs(machine.plan(desire(wish(0, run=False)))) == []
        assert verbs(machine.plan(desire())) == []
    patient = with_processes(running(0, phase=Phase.DRAINING, drain_until_mono=1600.0))
    assert verbs(patient.plan(desire(wish(0, fingerprint="new", drain_timeout_s=600)))) == []
    assert verbs(patient.plan(desire(wish(0, run=False)))) == [("stop", "comfyui/0")]


def test_a_wish_that_is_off_is_held_with_its_reason() -> None:
    assert world().plan(desire(wish(0, run=False))).holds == {"comfyui/0": OFF}


def test_a_held_wish_is_not_started_and_a_running_one_is_left_alone() -> None:
    held = desire(wish(0, held=HELD, fingerprint="other"))
    assert world().plan(held).holds == {"comfyui/0": HELD}
    left = with_processes(running(0)).plan(held)
    assert (left.actions, left.holds) == ((), {"comfyui/0": HELD})
    conflict = desire(wish(0, held=HELD, run=False, why_not=HELD))
    assert verbs(with_processes(running(0)).plan(conflict)) == [("stop", "comfyui/0")]


@pytest.mark.parametrize(
    ("policy", "given", "starts"),
    [
        ("always", {"code": 0}, True), ("always", {"code": 1}, True), ("always", {"signal": "SIGTERM"}, True),
        ("on_failure", {"code": 1}, True), ("on_failure", {"code": 0}, False),
        ("on_failure", {"code": None, "signal": "SIGKILL"}, True),
        ("on_failure", {"code": None, "signal": "SIGTERM"}, False),
        ("on_failure", {"code": None, "signal": "SIGINT"}, False),
        ("never", {"code": 1}, False), ("never", {"code": 0}, False),
        ("never", {"code": 0, "asked": True}, True), ("never", {"code": 1, "fingerprint": "older"}, True),
        ("on_failure", {"code": 0, "cause": "no answer for 60 s"}, True), ("never", {"cause": "no answer"}, False),
        ("on_failure", {"code": 0, "asked": True}, True),
    ],
)  # fmt: skip
def test_restart_policy(policy: Any, given: dict[str, Any], starts: bool) -> None:
    decided = with_processes(gone(0, crashes=1, **given)).plan(desire(wish(0, restart_policy=policy)))
    assert verbs(decided) == ([("start", "comfyui/0")] if starts else [])
    assert ("comfyui/0" in decided.holds) is not starts


@pytest.mark.parametrize(
    ("crashes", "least", "most"), [(1, 0, 0), (2, 9, 11), (3, 18, 22), (6, 144, 176), (7, 270, 330), (99, 270, 330)]
)
def test_crash_backoff(crashes: int, least: float, most: float) -> None:
    machine = with_processes(gone(0, crashes=crashes))
    desired = desire(wish(0))
    decided = machine.plan(desired)
    if most == 0:
        assert verbs(decided) == [("start", "comfyui/0")]
        return
    assert verbs(decided) == []
    assert decided.holds["comfyui/0"].type == "backoff"
    assert decided.wake_at is not None
    assert least <= decided.wake_at - 1000.0 <= most
    machine.mono = decided.wake_at - 0.001
    assert verbs(machine.plan(desired)) == []
    machine.mono = decided.wake_at
    assert verbs(machine.plan(desired)) == [("start", "comfyui/0")]


def test_a_start_refused_for_want_of_something_is_tried_again_soon_and_charged_to_nobody() -> None:
    machine = with_processes(gone(0, crashes=6, errno="EMFILE", cause="could not be started: Too many open files"))
    for policy in ("always", "on_failure", "never"):
        decided = machine.plan(desire(wish(0, restart_policy=policy)))
        assert decided.holds["comfyui/0"].reason == "no_resources"
        assert "Too many open files" in decided.holds["comfyui/0"].message
        assert decided.wake_at is not None
        assert decided.wake_at - machine.mono <= 3
    machine.mono += 3
    assert verbs(machine.plan(desire(wish(0)))) == [("start", "comfyui/0")]


def test_backoff_ends_with_another_fingerprint_or_an_asked_stop() -> None:
    machine = with_processes(gone(0, crashes=9))
    assert verbs(machine.plan(desire(wish(0, fingerprint="restarted")))) == [("start", "comfyui/0")]
    assert verbs(with_processes(gone(0, crashes=9, asked=True)).plan(desire(wish(0)))) == [("start", "comfyui/0")]


@pytest.mark.parametrize(
    ("seen", "type_", "reason"),
    [
        (None, "waiting_env", "not_installed"),
        (ObservedEnvironment(name="comm"), "waiting_env", "not_installed"),
        (ObservedEnvironment(name="comm", state="installing"), "waiting_env", "installing"),
        (FAILED, "waiting_env", "install_failed"),
        (ObservedEnvironment(name="comm", state="conflict"), "conflict", "environment_conflict"),
    ],
)  # fmt: skip
def test_an_instance_waits_for_its_environment(seen: ObservedEnvironment | None, type_: str, reason: str) -> None:
    machine = World(environments={"comm": seen} if seen else {})
    decided = machine.plan(desire(wish(0)))
    hold = decided.holds["comfyui/0"]
    assert (hold.type, hold.reason) == (type_, reason)
    assert ("start", "comfyui/0") not in verbs(decided)


@pytest.mark.parametrize("state", ["installing", "failed", "conflict"])
def test_an_installed_environment_serves_while_its_next_generation_is_built_or_fails(state: Any) -> None:
    decided = world(installed(state=state)).plan(desire(wish(0)))
    assert verbs(decided) == [("start", "comfyui/0")]


@pytest.mark.parametrize(
    ("seen", "given", "installs"),
    [
        (None, {}, True), (None, {"wanted": False}, False), (None, {"has_install": False}, False),
        (None, {"spec": {"issue": HELD}}, False), (installed(), {}, False), (installed(), {"fingerprint": "e2"}, True),
        (installed(), {"fingerprint": "e2", "wanted": False}, False),
        (installed(state="conflict"), {"fingerprint": "e2"}, False),
        (installed(state="installing"), {"fingerprint": "e2"}, False),
        (installed(), {"spec": {"models": (ModelSpec(url="https://h/x"),)}}, True),
        (installed(), {"fingerprint": "e2", "has_install": False}, False),
        (installed(), {"has_install": False, "spec": {"models": (ModelSpec(url="https://h/x"),)}}, True),
        (ObservedEnvironment(name="comm", foreign=True), {"has_install": False}, True),
    ],
)  # fmt: skip
def test_installs(seen: ObservedEnvironment | None, given: dict[str, Any], installs: bool) -> None:
    machine = World(environments={"comm": seen} if seen else {})
    decided = machine.plan(desire(environments=[environment(**given)]))
    assert verbs(decided) == ([("install", "environment/comm")] if installs else [])
    assert all(a.reason for a in decided.actions)


def test_without_a_build_script_the_instance_says_so() -> None:
    decided = World().plan(desire(wish(0), environments=[environment(has_install=False)]))
    assert decided.actions == ()
    assert decided.holds["comfyui/0"].reason == "no_build_script"
    assert "build/comm/install.sh" in decided.holds["comfyui/0"].message


def test_a_build_folder_that_went_away_leaves_what_is_installed_alone_and_says_so() -> None:
    decided = world(installed()).plan(desire(wish(0), environments=[environment(fingerprint="e2", has_install=False)]))
    assert verbs(decided) == [("start", "comfyui/0")]
    assert decided.holds["environment/comm"].reason == "no_build_script"
    assert "is not installed" not in decided.holds["environment/comm"].message


@pytest.mark.parametrize(("failures", "delay"), [(1, 30), (2, 60), (3, 120), (50, 3600)])
def test_install_backoff_until_the_files_change(failures: int, delay: float) -> None:
    machine = World(environments={"comm": FAILED.model_copy(update={"failures": failures})})
    decided = machine.plan(desire(wish(0)))
    assert decided.actions == ()
    assert decided.wake_at is not None
    assert delay * (1 - JITTER) <= decided.wake_at - 1000 <= delay * (1 + JITTER)
    edited = machine.plan(desire(wish(0), environments=[environment(fingerprint="e2")]))
    assert verbs(edited) == [("install", "environment/comm")]
    machine.mono = decided.wake_at
    assert verbs(machine.plan(desire(wish(0)))) == [("install", "environment/comm")]


def test_a_foreign_listener_blocks_with_its_name_and_is_looked_at_again() -> None:
    machine = world()
    machine.foreign = (PortHolder(port=3001, pid=77, name="nginx"),)
    decided = machine.plan(desire(wish(0), wish(1)))
    assert verbs(decided) == [("start", "comfyui/1")]
    hold = decided.holds["comfyui/0"]
    assert (hold.type, hold.reason) == ("blocked", "port_in_use")
    assert "77" in hold.message
    assert "nginx" in hold.message
    assert decided.wake_at == 1000.0 + RECHECK_S["port_in_use"]


def test_two_ports_are_swapped_in_two_steps() -> None:
    machine = with_processes(running(0), running(1))
    desired = desire(wish(0, 3002), wish(1, 3001))
    assert verbs(machine.plan(desired)) == [("stop", "comfyui/0"), ("stop", "comfyui/1")]
    machine.apply(machine.plan(desired))
    for _ in range(2):
        machine.advance("comfyui/0")
    decided = machine.plan(desired)
    assert verbs(decided) == []
    assert decided.holds["comfyui/0"].reason == "port_of_instance"
    for _ in range(2):
        machine.advance("comfyui/1")
    assert verbs(machine.plan(desired)) == [("start", "comfyui/0"), ("start", "comfyui/1")]


def test_one_port_for_two_wishes_starts_one() -> None:
    decided = world().plan(desire(wish(0, 3001), wish(1, 3001)))
    assert verbs(decided) == [("start", "comfyui/0")]
    assert decided.holds["comfyui/1"].reason == "port_of_instance"


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ({"gpus": (0,), "gpu_exclusive": True}, {"gpus": (0,)}, False),
        ({"gpus": (0,)}, {"gpus": (0,), "gpu_exclusive": True}, False),
        ({"gpus": (0,), "gpu_exclusive": True}, {"gpus": (1,)}, True),
        ({"gpus": (0,), "gpu_exclusive": True}, {"gpus": None}, False),
        ({"gpus": None, "gpu_exclusive": True}, {"gpus": (3,)}, False),
        ({"gpus": (), "gpu_exclusive": True}, {"gpus": (), "gpu_exclusive": True}, True),
        ({"gpus": (0,)}, {"gpus": (0,)}, True),
        ({"gpus": (0, 1), "gpu_exclusive": True}, {"gpus": (1, 2)}, False),
    ],
)
def test_an_exclusive_gpu(first: dict[str, Any], second: dict[str, Any], both: bool) -> None:
    desired = desire(wish(0, **first), wish(1, **second))
    decided = world().plan(desired)
    assert len(decided.actions) == (2 if both else 1)
    machine = with_processes(running(0, gpus=first["gpus"], gpu_exclusive=first.get("gpu_exclusive", False)))
    decided = machine.plan(desired)
    assert verbs(decided) == ([("start", "comfyui/1")] if both else [])
    if not both:
        assert decided.holds["comfyui/1"].reason == "gpu_exclusive"


TWO_GPUS = (ObservedGpu(index=0, uuid="GPU-aaaa", name="A"), ObservedGpu(index=1, uuid="GPU-bbbb", name="B"))


@pytest.mark.parametrize(
    ("first", "second", "one_gpu"),
    [
        ((0,), ("GPU-aaaa",), True),
        (("GPU-bb",), (1,), True),
        (("GPU-BBBB",), ("GPU-b",), True),
        ((0,), ("GPU-bbbb",), False),
    ],
)
def test_a_gpu_has_one_name_however_it_is_written(first: Any, second: Any, one_gpu: bool) -> None:
    desired = desire(wish(0, gpus=first, gpu_exclusive=True), wish(1, gpus=second))
    machine = with_processes(running(0, gpus=first, gpu_exclusive=True))
    assert verbs(machine.plan(desired)) == [("start", "comfyui/1")], "nobody knows what the two names mean"
    machine.gpus = TWO_GPUS
    decided = machine.plan(desired)
    assert verbs(decided) == ([] if one_gpu else [("start", "comfyui/1")])
    assert [hold.reason for hold in decided.holds.values()] == (["gpu_exclusive"] if one_gpu else [])


@pytest.mark.parametrize(
    ("pins", "absent"),
    [
        ((0, 1), ""), (("GPU-aaaa",), ""), (("GPU-b",), ""), (None, ""), ((), ""), (("MIG-aaaa",), ""),
        ((0, 5), "5"), (("GPU-cccc", 7), "GPU-cccc, 7"), (("GPU-",), "GPU-"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_not_there(pins: Any, absent: str) -> None:
    machine = world()
    assert verbs(machine.plan(desire(wish(0, gpus=pins)))) == [("start", "comfyui/0")], "no driver: as it always was"
    machine.gpus = TWO_GPUS
    decided = machine.plan(desire(wish(0, gpus=pins)))
    assert verbs(decided) == ([] if absent else [("start", "comfyui/0")])
    if absent:
        hold = decided.holds["comfyui/0"]
        assert (hold.type, hold.reason) == ("blocked", "gpu_unknown")
        assert f"names {absent}, which" in hold.message
        assert "0 (GPU-aaaa, A), 1 (GPU-bbbb, B)" in hold.hint
        assert decided.wake_at == machine.mono + RECHECK_S["gpu_unknown"]
        assert start_outcome(desire(wish(0, gpus=pins)), machine.observed(), decided, "comfyui/0").status == "failed"


def test_a_driver_without_gpus_knows_none_and_what_runs_is_left_alone() -> None:
    machine = with_processes(running(0, gpus=(0,)))
    machine.gpus = ()
    decided = machine.plan(desire(wish(0, gpus=(0,)), wish(1, gpus=(0,))))
    assert verbs(decided) == []
    assert decided.holds["comfyui/1"].hint.endswith("no GPU")


def test_a_variable_of_its_own_beats_the_pins() -> None:
    spec = InstanceSpec(id=0, port=3001, name="a", gpus=(9,), env={"CUDA_VISIBLE_DEVICES": "0"})
    machine = world()
    machine.gpus = TWO_GPUS
    decided = machine.plan(desire(wish(0, gpus=(9,)).model_copy(update={"instance": spec})))
    assert verbs(decided) == [("start", "comfyui/0")]


def test_giving_up_exclusiveness_needs_no_restart() -> None:
    """gpu_exclusive is no part of the fingerprint: the wish of now counts, not what the run was started with."""
    machine = with_processes(running(0, gpus=None, gpu_exclusive=True))
    decided = machine.plan(desire(wish(0, gpu_exclusive=False), wish(1)))
    assert verbs(decided) == [("start", "comfyui/1")]


def test_startup_delay_lets_one_start_through_at_a_time_in_id_order() -> None:
    machine = world()
    desired = desire(wish(10), wish(2), wish(1), startup_delay=2.0)
    order: list[str] = []
    for _ in range(3):
        decided = machine.plan(desired)
        order += [a.key for a in decided.actions]
        machine.apply(decided)
        assert verbs(machine.plan(desired)) == []
        machine.mono += 2.0
    assert order == ["comfyui/1", "comfyui/2", "comfyui/10"]


def test_the_next_override_expiry_wakes() -> None:
    machine = with_processes(running(0))
    assert machine.plan(desire(wish(0), wake_at=machine.now.wall + 7)).wake_at == machine.mono + 7
    assert machine.plan(desire(wish(0), wake_at=machine.now.wall - 7)).wake_at == machine.mono


# --- properties

NUMBERS = range(4)
GPUS = st.sampled_from([None, (), (0,), (1,), (0, 1)])


@st.composite
def resolved_states(draw: st.DrawFn, *, calm: bool = False) -> ResolvedState:
    """calm: ports are unique, nothing is held or exclusive: everything wanted can run."""
    ports = draw(st.permutations(range(3001, 3007)))
    wishes: list[DesiredProcess] = []
    for number in draw(st.sets(st.sampled_from(list(NUMBERS)))):
        port = ports[number] if calm else draw(st.sampled_from([3001, 3002, 3003]))
        given: dict[str, Any] = {
            "fingerprint": f"{port}{draw(st.sampled_from('ab'))}",
            "run": draw(st.booleans()),
            "environment": draw(st.sampled_from(["comm", "aua", None])),
            "gpus": draw(GPUS),
            "drain_timeout_s": draw(st.sampled_from([0.0, 1.0, 600.0])),
        }
        if not calm:
            given |= {
                "gpu_exclusive": draw(st.booleans()),
                "held": draw(st.sampled_from([None, None, None, HELD])),
                "restart_policy": draw(st.sampled_from(["always", "on_failure", "never"])),
            }
        wishes.append(wish(number, port, **given))
    environments = [
        environment(
            name, draw(st.sampled_from(["e1", "e2"])), wanted=any(w.run and w.environment == name for w in wishes)
        )
        for name in ("comm", "aua")
    ]
    delay = draw(st.sampled_from([0.0, 0.0, 2.0]))
    return ResolvedState(processes=tuple(wishes), environments=tuple(environments), startup_delay=delay)


@st.composite
def events(draw: st.DrawFn) -> list[tuple[str, int]]:
    kinds = st.sampled_from(["advance", "advance", "crash", "install", "fail", "time", "foreign", "free"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, 40)), max_size=8))


def happen(machine: World, event: tuple[str, int]) -> None:
    kind, number = event
    keys = sorted(machine.processes)
    if kind in ("advance", "crash") and keys:
        key = keys[number % len(keys)]
        machine.advance(key) if kind == "advance" else machine.crash(key, code=number % 2)
    elif kind in ("install", "fail"):
        machine.finish_install(["comm", "aua"][number % 2], good=kind == "install")
    elif kind == "time":
        machine.mono += number
    elif kind == "foreign":
        used = {p.port for p in machine.alive()}
        machine.foreign = tuple(PortHolder(port=p, pid=9, name="x") for p in (3001 + number % 3,) if p not in used)
    elif kind == "free":
        machine.foreign = ()


def check(machine: World, desired: ResolvedState, decided: Plan) -> None:
    """Everything that must hold of one plan before it is applied."""
    keys = [a.key for a in decided.actions]
    assert len(keys) == len(set(keys)), "one step per key"
    starts = [a for a in decided.actions if isinstance(a, StartProcess)]
    for action in decided.actions:
        if isinstance(action, StopProcess):
            check_stop(machine, desired, action)
        elif isinstance(action, InstallEnvironment):
            check_install(machine, action)
    ports = [p.port for p in machine.alive()] + [h.port for h in machine.foreign]
    last = machine.last_start
    for action in starts:
        check_start(machine, action)
        assert action.process.spec.port not in ports, "no port twice"
        ports.append(action.process.spec.port or 0)
        assert last is None or machine.mono >= last + desired.startup_delay, "startup_delay"
        last = machine.mono
    for one in desired.processes:
        seen = machine.processes.get(one.key)
        if not (seen and seen.alive) and one.key not in keys:
            assert one.key in decided.holds, "whatever does not run says why"
    assert all(hold.hint and hold.message for hold in decided.holds.values()), "and what to do"
    assert decided.wake_at is None or decided.wake_at >= machine.mono


def check_stop(machine: World, desired: ResolvedState, action: StopProcess) -> None:
    seen, wanted = machine.processes[action.key], desired.process(action.key)
    assert seen.alive
    assert action.generation == seen.generation
    assert action.reason
    untouched = wanted is not None and wanted.run and wanted.fingerprint == seen.fingerprint
    assert not untouched, "an untouched process is never stopped"
    assert not (wanted is not None and wanted.run and wanted.held), "a held process is left alone"


def check_start(machine: World, action: StartProcess) -> None:
    wanted, seen = action.process, machine.processes.get(action.key)
    assert wanted.run
    assert not wanted.held
    assert not (seen and seen.alive)
    if wanted.environment:
        assert machine.environments[wanted.environment].installed
    last = seen.last_exit if seen else None
    if seen and last and not last.asked and last.fingerprint == wanted.fingerprint:
        assert machine.mono >= last.at + crash_delay_s(seen.crashes, action.key), "nothing before its time"


def check_install(machine: World, action: InstallEnvironment) -> None:
    seen = machine.environments.get(action.environment.name)
    assert action.environment.wanted
    if seen and seen.failures and seen.failed_fingerprint == action.environment.fingerprint:
        assert seen.failed_mono is not None
        assert machine.mono >= seen.failed_mono + install_delay_s(seen.failures, seen.name), "nothing before its time"


def check_machine(machine: World) -> None:
    alive = machine.alive()
    ports = [p.port for p in alive]
    assert len(ports) == len(set(ports)), "no port twice"


def check_gpus(machine: World, desired: ResolvedState, started: set[str]) -> None:
    """Nobody is started beside an exclusive one. Two that ran when one became exclusive are left alone."""
    alone = {w.key: w.gpu_exclusive for w in desired.processes}
    for one in (p for p in machine.alive() if p.key in started):
        for other in (p for p in machine.alive() if p.key != one.key):
            wanted = desired.process(other.key)
            current = wanted is not None and wanted.fingerprint == other.fingerprint
            exclusive = alone[other.key] if current else other.gpu_exclusive
            if alone[one.key] or exclusive:
                assert not overlap(one.gpus, other.gpus), "no exclusive GPU twice"


def overlap(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    if one == () or other == ():
        return False
    return one is None or other is None or bool(set(one) & set(other))


def step(machine: World, desired: ResolvedState) -> Plan:
    decided = machine.plan(desired)
    check(machine, desired, decided)
    machine.apply(decided)
    check_machine(machine)
    check_gpus(machine, desired, {a.key for a in decided.actions if isinstance(a, StartProcess)})
    return decided


def converge(machine: World, desired: ResolvedState, trouble: int = 0) -> Plan:
    """Move time only to what plan() asks for, until nothing is left to do. trouble: rounds in which all goes wrong."""
    machine.foreign = ()
    for _ in range(120):
        decided = step(machine, desired)
        if decided.actions or machine.busy():
            machine.let_all_happen(good=trouble <= 0)
            trouble -= 1
        elif decided.wake_at is not None:
            machine.mono = max(machine.mono, decided.wake_at)
        else:
            return decided
    raise AssertionError("it does not come to rest")


LIFE = st.lists(st.tuples(resolved_states(), events()), max_size=4)
SLOW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def live(machine: World, life: list[tuple[ResolvedState, list[tuple[str, int]]]]) -> None:
    for desired, happenings in life:
        step(machine, desired)
        for event in happenings:
            happen(machine, event)
            step(machine, desired)


@SLOW
@given(LIFE, resolved_states())
def test_it_is_safe_at_every_step_and_comes_to_rest(life: Any, last: ResolvedState) -> None:
    machine = World()
    live(machine, life)
    rest = converge(machine, last)
    assert rest.actions == ()
    assert machine.plan(last) == rest
    for process in machine.alive():
        wanted = last.process(process.key)
        assert wanted is not None
        assert wanted.run
        assert wanted.held or process.fingerprint == wanted.fingerprint


@SLOW
@given(LIFE, resolved_states(calm=True), st.integers(0, 6))
def test_it_converges_to_what_is_wished(life: Any, last: ResolvedState, trouble: int) -> None:
    machine = World()
    live(machine, life)
    converge(machine, last, trouble)
    wanted = {w.key: (w.fingerprint, w.spec.port, Phase.READY) for w in last.processes if w.run}
    assert {p.key: (p.fingerprint, p.port, p.phase) for p in machine.alive()} == wanted
    for one in last.environments:
        if one.wanted:
            assert machine.environments[one.name].fingerprint == one.fingerprint


@SLOW
@given(LIFE, resolved_states(calm=True), st.permutations(range(3001, 3007)))
def test_any_permutation_of_ports_converges_and_touches_only_what_moved(
    life: Any, first: ResolvedState, ports: Any
) -> None:
    machine = World()
    live(machine, life)
    converge(machine, first)
    before = {p.key: p.pid for p in machine.alive()}
    moved = {w.key: wish(int(w.key[8:]), ports[int(w.key[8:])], **_kept(w)) for w in first.processes}
    second = first.model_copy(update={"processes": tuple(moved.values())})
    converge(machine, second)
    for process in machine.alive():
        assert process.port == moved[process.key].spec.port
        same = next(w.fingerprint for w in first.processes if w.key == process.key) == process.fingerprint
        assert (before[process.key] == process.pid) is same


def _kept(one: DesiredProcess) -> dict[str, Any]:
    kept = one.model_dump(include={"run", "environment", "gpus", "drain_timeout_s"})
    return kept | {"gpus": one.gpus, "why_not": one.why_not}


@SLOW
@given(LIFE, resolved_states(), st.integers(0, 2**32))
def test_the_order_of_its_inputs_changes_nothing(life: Any, desired: ResolvedState, seed: int) -> None:
    machine = World()
    live(machine, life)
    observed = machine.observed()
    decided = plan(desired, observed, machine.now)
    order = random.Random(seed)

    def shuffled(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(order.sample(items, len(items)))

    other = plan(
        desired.model_copy(
            update={"processes": shuffled(desired.processes), "environments": shuffled(desired.environments)}
        ),
        ObservedState(
            processes=shuffled(observed.processes),
            environments=shuffled(observed.environments),
            ports=shuffled(observed.ports),
            last_start_mono=observed.last_start_mono,
        ),
        machine.now,
    )
    assert sorted(other.actions, key=lambda a: a.key) == sorted(decided.actions, key=lambda a: a.key)
    assert (other.holds, other.wake_at) == (decided.holds, decided.wake_at)


@SLOW
@given(resolved_states(calm=True), st.lists(st.sampled_from(list(NUMBERS)), max_size=6))
def test_a_crash_moves_only_the_crashed(desired: ResolvedState, crashes: list[int]) -> None:
    machine = World()
    converge(machine, desired)
    before = {p.key: p.pid for p in machine.alive()}
    crashed = {f"comfyui/{n}" for n in crashes} & set(before)
    for number in crashes:
        if f"comfyui/{number}" in machine.processes:
            machine.crash(f"comfyui/{number}")
        converge(machine, desired)
    assert {p.key: p.pid for p in machine.alive() if p.key not in crashed} == {
        key: pid for key, pid in before.items() if key not in crashed
    }
    assert {p.key for p in machine.alive()} == set(before)


def restarted(machine: World, ago_s: float, *, asked: bool = True) -> ObservedProcess:
    """Runs again since its last end, `ago_s` seconds ago."""
    last = ExitInfo(code=0, asked=asked, at=machine.mono - ago_s, wall=WALL, fingerprint="before")
    return running(0, fingerprint="old", last_exit=last)


@pytest.mark.parametrize(
    ("ago_s", "asked", "edited_ago_s", "waits"),
    [
        (1.0, True, 0.1, True), (1.0, True, EDITS_QUIET_S, False), (JUST_RESTARTED_S, True, 0.1, False),
        (1.0, False, 0.1, False), (1.0, True, None, False),
    ],
)  # fmt: skip
def test_one_just_restarted_waits_for_the_end_of_a_flood_of_edits(
    ago_s: float, asked: bool, edited_ago_s: float | None, waits: bool
) -> None:
    machine = world()
    machine.processes = {"comfyui/0": restarted(machine, ago_s, asked=asked)}
    edited_at = None if edited_ago_s is None else machine.mono - edited_ago_s
    decided = plan(desire(wish(0)), machine.observed(), machine.now, edited_at)
    if waits:
        assert edited_at is not None
        assert (decided.actions, decided.wake_at) == ((), edited_at + EDITS_QUIET_S)
        assert decided.holds["comfyui/0"].reason == "edits_arriving"
    else:
        assert verbs(decided) == [("stop", "comfyui/0")]


def test_one_that_is_not_wanted_any_more_does_not_wait_for_edits_to_end() -> None:
    machine = world()
    machine.processes = {"comfyui/0": restarted(machine, 0.5)}
    decided = plan(desire(wish(0, run=False)), machine.observed(), machine.now, machine.mono)
    assert verbs(decided) == [("stop", "comfyui/0")]
