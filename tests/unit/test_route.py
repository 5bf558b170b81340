"""core.route: workflow -> environment -> instance, and the room there is."""

from typing import Any

import pytest

from comfyd.core.route import pick_target, route, slots
from comfyd.errors import ComfydError
from comfyd.model.desired import DesiredState, EnvironmentSpec, InstanceSpec
from comfyd.model.observed import Evidence, ObservedProcess, ObservedState, Phase
from comfyd.model.process import DesiredEnvironment, DesiredProcess, ProcessSpec, ResolvedState

COMM = EnvironmentSpec(name="comm", port=3001, workflows=("invert", "upscale"))
OTHER = EnvironmentSpec(name="other", workflows=("swap",))


def wanted(number: int, environment: str = "comm", **fields: Any) -> DesiredProcess:
    port = 3001 + number
    instance = InstanceSpec(id=number, port=port, name=f"i{number}", environment=environment)
    spec = ProcessSpec(key=instance.key, argv=("python",), cwd="/", port=port, log="/log")
    given = {"fingerprint": "f", "run": True, **fields}
    return DesiredProcess(key=instance.key, spec=spec, environment=environment, instance=instance, **given)


def seen(number: int, phase: Phase = Phase.READY, **fields: Any) -> ObservedProcess:
    given = {"port": 3001 + number, "generation": f"g{number}", **fields}
    return ObservedProcess(key=f"comfyui/{number}", phase=phase, **given)


def state(*processes: DesiredProcess, environments: tuple[EnvironmentSpec, ...] = (COMM, OTHER)) -> ResolvedState:
    return ResolvedState(
        processes=tuple(sorted(processes, key=lambda p: p.key)),
        environments=tuple(DesiredEnvironment(name=e.name, spec=e, fingerprint="") for e in environments),
    )


def facts(*processes: ObservedProcess) -> ObservedState:
    return ObservedState(processes=processes)


def busy(number: int, in_flight: int, generation: str | None = None) -> dict[str, Evidence]:
    key = f"comfyui/{number}"
    return {key: Evidence(key=key, generation=generation or f"g{number}", in_flight=in_flight)}


def test_a_workflow_goes_to_the_environment_that_lists_it() -> None:
    desired = DesiredState(environments=(COMM, OTHER))
    assert route(desired, "upscale") is COMM
    assert route(desired, "swap") is OTHER


def test_an_unknown_workflow_names_the_known_ones() -> None:
    with pytest.raises(ComfydError) as caught:
        route(DesiredState(environments=(COMM, OTHER)), "nope")
    assert caught.value.code == "unknown_workflow"
    assert caught.value.http_status == 404
    assert caught.value.details["known"] == ["invert", "swap", "upscale"]
    assert "invert, swap, upscale" in caught.value.message


def test_no_workflow_at_all_says_what_to_do() -> None:
    with pytest.raises(ComfydError, match=r"config\.json"):
        route(DesiredState(), "nope")


def test_the_target_is_the_ready_instance_with_the_least_work() -> None:
    resolved, observed = state(wanted(0), wanted(1), wanted(2)), facts(seen(0), seen(1), seen(2, Phase.STARTING))
    assert pick_target(resolved, observed, COMM, {3001: 2, 3002: 1}) == (3002, "comfyui/1")
    assert pick_target(resolved, observed, COMM, {3001: 1, 3002: 1}) == (3001, "comfyui/0")


def test_the_target_is_the_port_it_runs_on_now() -> None:
    assert pick_target(state(wanted(0)), facts(seen(0, port=4000)), COMM, {}) == (4000, "comfyui/0")


def test_without_a_ready_instance_the_first_declared_one_is_the_target() -> None:
    resolved = state(wanted(10), wanted(2), wanted(0, "other"))
    assert pick_target(resolved, facts(seen(2, Phase.UNREADY)), COMM, {3003: 9}) == (3003, "comfyui/2")


def test_without_any_instance_the_config_port_is_the_target() -> None:
    assert pick_target(state(), facts(), COMM, {}) == (3001, None)


def test_without_instance_and_port_there_is_no_target() -> None:
    with pytest.raises(ComfydError) as caught:
        pick_target(state(), facts(), OTHER, {})
    assert caught.value.code == "not_ready"
    assert caught.value.retryable


def test_slots_come_least_loaded_first() -> None:
    resolved, observed = state(wanted(0), wanted(1)), facts(seen(0), seen(1))
    assert [s.key for s in slots(resolved, observed, {})] == ["comfyui/0", "comfyui/1"] * 2
    room = slots(resolved, observed, busy(0, 1))
    assert [s.key for s in room] == ["comfyui/1", "comfyui/0", "comfyui/1"]
    assert room[0].model_dump() == {
        "key": "comfyui/1",
        "generation": "g1",
        "port": 3002,
        "environment": "comm",
        "instance": "i1",
    }


def test_a_full_instance_has_no_slot_and_a_new_generation_is_empty() -> None:
    resolved, observed = state(wanted(0)), facts(seen(0))
    assert slots(resolved, observed, busy(0, 2)) == []
    assert slots(resolved, observed, busy(0, 5)) == []
    assert len(slots(resolved, observed, busy(0, 2, generation="older"))) == 2


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.READY])
def test_only_ready_instances_have_slots(phase: Phase) -> None:
    assert slots(state(wanted(0)), facts(seen(0, phase)), {}) == []


def test_a_condemned_run_has_no_slots_but_the_next_one_has() -> None:
    evidence = {"comfyui/0": Evidence(key="comfyui/0", generation="g0", poisoned=True)}
    processes = state(wanted(0), wanted(1))
    assert {s.key for s in slots(processes, facts(seen(0), seen(1)), evidence)} == {"comfyui/1"}
    assert {s.key for s in slots(processes, facts(seen(0, generation="g9"), seen(1)), evidence)} == {
        "comfyui/0", "comfyui/1",
    }  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        EnvironmentSpec(name="comm", dispatch="external"),
        EnvironmentSpec(name="comm", service_type="facefusion"),
    ],
)
def test_external_and_service_environments_have_no_slots(environment: EnvironmentSpec) -> None:
    assert slots(state(wanted(0), environments=(environment,)), facts(seen(0)), {}) == []


def test_an_instance_that_should_stop_or_is_not_declared_has_no_slots() -> None:
    assert slots(state(wanted(0, run=False)), facts(seen(0)), {}) == []
    assert slots(state(), facts(seen(0)), {}) == []
    assert slots(state(wanted(0, "gone")), facts(seen(0)), {}) == []
