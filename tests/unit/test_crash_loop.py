"""An instance that crashes again and again, on an injected clock: plan() decides, control's History counts."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from comfyd.control.runs import History, Run, history_from_fact, observed_gone
from comfyd.core.backoff import JITTER, READY_RESETS_AFTER_S
from comfyd.core.plan import plan
from comfyd.host.proc import Status
from comfyd.model.base import Now
from comfyd.model.desired import EnvironmentSpec, InstanceSpec
from comfyd.model.observed import ObservedEnvironment, ObservedState
from comfyd.model.plan import StartProcess
from comfyd.model.process import DesiredEnvironment, DesiredProcess, ProcessSpec, ResolvedState

HOUR_S = 3600.0
CURVE = [0.0, 10.0, 20.0, 40.0, 80.0, 160.0]
CAP_S = 300.0


def wanted(key: str, fingerprint: str = "f") -> DesiredProcess:
    spec = ProcessSpec(key=key, argv=("x",), cwd="/", port=3001, log="/l")
    instance = InstanceSpec(id=0, port=3001, name="a")
    return DesiredProcess(key=key, spec=spec, instance=instance, fingerprint=fingerprint, run=True, environment="comm")


def resolved(wish: DesiredProcess) -> ResolvedState:
    environment = DesiredEnvironment(name="comm", spec=EnvironmentSpec(name="comm"), fingerprint="e", wanted=True)
    return ResolvedState(processes=(wish,), environments=(environment,))


def installed() -> ObservedEnvironment:
    models = EnvironmentSpec(name="comm").models_fingerprint
    return ObservedEnvironment(
        name="comm", state="installed", installed=True, fingerprint="e", models_fingerprint=models
    )


class Loop:
    """Time, and one key whose every run crashes after `alive_s`. starts and exits: monotonic seconds."""

    def __init__(self, key: str, alive_s: float = 0.5, ready_s: float = 0.0) -> None:
        self.wish, self.history, self.mono = wanted(key), History(), 5000.0
        self.alive_s, self.ready_s = alive_s, ready_s
        self.starts: list[float] = []
        self.exits: list[float] = []

    @property
    def now(self) -> Now:
        return Now(self.mono, 1e9 + self.mono)

    def run(self, for_s: float) -> None:
        end = self.mono + for_s
        while self.mono < end:
            processes = (observed_gone(self.wish.key, self.history),) if self.exits else ()
            decided = plan(
                resolved(self.wish), ObservedState(processes=processes, environments=(installed(),)), self.now
            )
            if any(isinstance(action, StartProcess) for action in decided.actions):
                self._crash()
            else:
                assert self.wish.key in decided.holds
                assert decided.wake_at is not None
                assert decided.wake_at > self.mono
                self.mono = decided.wake_at

    def _crash(self) -> None:
        self.starts.append(self.mono)
        run = Run(
            key=self.wish.key, spec=self.wish.spec, process=cast("Any", None), generation="g",
            fingerprint=self.wish.fingerprint, gpus=None, gpu_exclusive=False, tree=None, started=self.now,
        )  # fmt: skip
        self.mono += self.alive_s
        if self.ready_s:
            run.ready_since_mono = self.mono - self.ready_s
        self.history.ended(run, Status(code=1), self.now, (), oom=False)
        self.exits.append(self.mono)

    def delays(self) -> Iterator[float]:
        """From each exit to the start that follows it."""
        return (start - end for start, end in zip(self.starts[1:], self.exits, strict=False))


@pytest.mark.parametrize("key", [f"comfyui/{number}" for number in range(8)])
def test_an_hour_of_crashes_follows_the_curve(key: str) -> None:
    loop = Loop(key)
    loop.run(HOUR_S)
    delays = list(loop.delays())
    assert len(delays) <= 18
    wanted_s = [*CURVE, *[CAP_S] * len(delays)]
    for delay, due in zip(delays, wanted_s, strict=False):
        assert due * (1 - JITTER) - 1e-6 <= delay <= due * (1 + JITTER) + 1e-6
    assert len(delays) >= 14


def test_instances_do_not_crash_in_step() -> None:
    """The jitter is of the key: what failed together does not come back together."""
    later = set()
    for number in range(8):
        loop = Loop(f"comfyui/{number}")
        loop.run(HOUR_S)
        later.add(round(loop.starts[8]))
    assert len(later) > 4


def test_a_restart_of_the_daemon_does_not_start_the_curve_anew() -> None:
    loop, same = Loop("comfyui/0"), Loop("comfyui/0")
    end = loop.mono + HOUR_S
    while loop.mono < end:
        loop.run(1)
        loop.history = history_from_fact(loop.history.as_fact("boot"), "boot")
    same.run(HOUR_S)
    assert len(loop.starts) == len(same.starts)
    assert loop.history.crashes == same.history.crashes


@pytest.mark.parametrize(("ready_s", "anew"), [(READY_RESETS_AFTER_S, True), (READY_RESETS_AFTER_S - 1, False)])
def test_only_a_long_readiness_starts_the_curve_anew(ready_s: float, anew: bool) -> None:
    """Life alone does not: a run that was alive for an hour and never ready counts on."""
    loop = Loop("comfyui/0", alive_s=HOUR_S, ready_s=ready_s)
    loop.run(4 * HOUR_S)
    assert all(delay == 0 for delay in loop.delays()) is anew
    silent = Loop("comfyui/0", alive_s=HOUR_S)
    silent.run(4 * HOUR_S)
    assert [round(delay) for delay in silent.delays()][:2] == [0, round(list(silent.delays())[1])]
    assert silent.history.crashes == len(silent.exits)


def test_new_settings_start_at_once() -> None:
    loop = Loop("comfyui/0")
    loop.run(HOUR_S)
    loop.wish = wanted("comfyui/0", "other")
    began, before = loop.mono, len(loop.starts)
    loop.run(1)
    assert loop.starts[before] == began
