"""Liveness on injected time: what a run may do and for how long before it is given up."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyd.core.liveness import Vigil, ailment, allowed_silence_s, is_unready, next_probe_s, threshold_s
from comfyd.model.base import Condition
from comfyd.model.desired import ProbeSpec
from comfyd.model.observed import DEVICE_ERRORS, Evidence

PROBE = ProbeSpec()
START = 5000.0
MINUTE = 60.0


def evidence(in_flight: int = 1, progress: float | None = None, **fields: object) -> Evidence:
    return Evidence(key="comfyui/0", generation="g", in_flight=in_flight, progress_mono=progress, **fields)


@dataclass
class Instance:
    """A run as the prober meets it: each question is a function of the seconds since START."""

    answers: Callable[[float], bool] = lambda _: True
    cpu_share: Callable[[float], float] = lambda _: 0.0
    gpu_busy: Callable[[float], bool] = lambda _: False
    in_flight: int = 0
    progress_every: float | None = None
    progress_until: float = float("inf")
    cpu_s: float = 100.0
    unready_at: list[float] = field(default_factory=list)

    def evidence(self, t: float) -> Evidence:
        progress = None
        if self.progress_every is not None:
            progress = START + min(t, self.progress_until) // self.progress_every * self.progress_every
        return evidence(self.in_flight, progress)

    def probes(self, until: float, probe: ProbeSpec) -> Iterator[tuple[float, Condition | None]]:
        """As control does it: ask, wait for the answer or the time-out, judge, wait until the next is due."""
        vigil, t = Vigil(START), 0.0
        while t < until:
            began, silent = t, vigil.silences > 0
            good = self.answers(began)
            t += 0.001 if good else probe.timeout_s
            self.cpu_s += self.cpu_share(began) * (t - began)
            mono = START + t
            if good:
                vigil = vigil.answered(mono, ready=True)
            else:
                used = self.gpu_busy(began) and silent
                vigil = vigil.missed(mono, self.cpu_s if silent else None, gpu_busy=used)
            if is_unready(vigil, probe):
                self.unready_at.append(t)
            yield t, ailment(vigil, probe, self.evidence(t), mono)
            due = began + next_probe_s(probe, vigil, starting=False)
            self.cpu_s += self.cpu_share(t) * max(0.0, due - t)
            t = max(t, due)

    def given_up(self, until: float, probe: ProbeSpec = PROBE) -> float | None:
        """When, in seconds since START."""
        return next((t for t, found in self.probes(until, probe) if found is not None), None)


def silent_from(begin: float, end: float = float("inf")) -> Callable[[float], bool]:
    return lambda t: not begin <= t < end


def test_a_wedge_is_unready_within_15_s_and_given_up_soon_after_60_s() -> None:
    one = Instance(answers=silent_from(100.001))
    ended = one.given_up(1000)
    assert ended is not None
    assert 60 <= ended - 100 <= 60 + PROBE.period_s + 2 * PROBE.timeout_s
    assert one.unready_at[0] - 100 <= 15


def test_a_45_minute_prompt_that_reports_is_never_given_up() -> None:
    """Even if it holds the interpreter all the time, so that nothing else answers."""
    video = Instance(answers=silent_from(0), in_flight=1, progress_every=5 * MINUTE)
    assert video.given_up(45 * MINUTE) is None


def test_a_45_minute_prompt_that_reports_nothing_but_answers_is_never_given_up() -> None:
    assert Instance(in_flight=1).given_up(45 * MINUTE) is None


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_wedge_of_45_s_is_survived(in_flight: int) -> None:
    one = Instance(answers=silent_from(100, 145), in_flight=in_flight)
    assert one.given_up(30 * MINUTE) is None
    assert one.unready_at


def test_ten_minutes_without_answer_or_progress_end_a_run_with_a_prompt() -> None:
    one = Instance(answers=silent_from(100.001), in_flight=1, progress_every=1, progress_until=130)
    ended = one.given_up(60 * MINUTE)
    assert ended is not None
    assert 0 <= ended - 130 - 10 * MINUTE <= 2 * PROBE.timeout_s


@pytest.mark.parametrize(
    ("in_flight", "share", "minutes"), [(0, 0.0, 1), (0, 1.0, 10), (1, 0.0, 10), (1, 1.0, 30), (2, 0.3, 30)]
)
def test_how_long_a_silence_may_be(in_flight: int, share: float, minutes: float) -> None:
    one = Instance(answers=silent_from(0), in_flight=in_flight, cpu_share=lambda _: share)
    ended = one.given_up(120 * MINUTE)
    assert ended is not None
    assert 0 <= ended - minutes * MINUTE <= 2 * PROBE.timeout_s
    allowed = allowed_silence_s(PROBE, prompts=in_flight > 0, busy=share > 0)
    assert allowed == minutes * MINUTE


@pytest.mark.parametrize(("in_flight", "minutes"), [(0, 10), (1, 30)])
def test_a_gpu_that_computes_is_a_sign_of_life(in_flight: int, minutes: float) -> None:
    """A kernel of minutes leaves the CPU idle; it counts like CPU time, until a minute after it was last seen."""
    one = Instance(answers=silent_from(0), in_flight=in_flight, gpu_busy=lambda _: True)
    ended = one.given_up(120 * MINUTE)
    assert ended is not None
    assert 0 <= ended - minutes * MINUTE <= 2 * PROBE.timeout_s
    short = Instance(answers=silent_from(0), gpu_busy=lambda t: t < 120).given_up(20 * MINUTE)
    assert short is not None
    assert 120 + 60 - 2 * PROBE.timeout_s <= short <= 120 + 60 + 3 * PROBE.timeout_s


def test_crumbs_of_cpu_time_are_no_work() -> None:
    """A wedged process still accepts the connections of the prober."""
    one = Instance(answers=silent_from(0), cpu_share=lambda _: 0.01)
    assert one.given_up(5 * MINUTE) is not None


def test_work_that_is_over_counts_for_one_more_minute() -> None:
    one = Instance(answers=silent_from(0), cpu_share=lambda t: 1.0 if t < 120 else 0.0)
    ended = one.given_up(20 * MINUTE)
    assert ended is not None
    assert 120 + 60 - 2 * PROBE.timeout_s <= ended <= 120 + 60 + 3 * PROBE.timeout_s


@pytest.mark.parametrize("every", [2, 3])
def test_one_failed_probe_in_some_changes_nothing(every: int) -> None:
    one = Instance()
    one.answers = counted(lambda n: n % every != 0)
    assert one.given_up(60 * MINUTE) is None
    assert one.unready_at == []


def test_flapping_is_unready_now_and_then_but_lives() -> None:
    one = Instance(answers=lambda t: t % 60 < 20)
    assert one.given_up(8 * 60 * MINUTE) is None
    assert one.unready_at


def counted(answer: Callable[[int], bool]) -> Callable[[float], bool]:
    asked = iter(range(1, 10**9))
    return lambda _: answer(next(asked))


def test_many_failures_need_their_time_and_a_long_time_needs_its_failures() -> None:
    silent = Vigil(START, failures=50, silences=50)
    assert ailment(silent, PROBE, None, START + 59) is None
    assert ailment(silent, PROBE, None, START + 61) is not None
    slept = Vigil(START, failures=5, silences=5)  # the machine was suspended, or this daemon was
    assert ailment(slept, PROBE, None, START + 8 * 3600) is None


def test_an_answer_that_is_no_200_keeps_it_alive_but_unready() -> None:
    vigil = Vigil(START)
    for n in range(100):
        vigil = vigil.answered(START + 10 * n, ready=False)
    assert is_unready(vigil, PROBE)
    assert ailment(vigil, PROBE, None, START + 1000) is None


def test_the_message_says_what_was_missing() -> None:
    silent = Vigil(START, failures=9, silences=9)
    idle = ailment(silent, PROBE, evidence(0), START + 61)
    busy = ailment(silent, PROBE, evidence(1), START + 601)
    assert idle is not None
    assert busy is not None
    assert (idle.type, idle.reason, idle.message) == ("unhealthy", "unresponsive", "no answer for 61 s")
    assert busy.message == "no answer and no progress of its prompt for 601 s"
    assert idle.hint


def test_device_errors_condemn_it_while_it_answers() -> None:
    healthy = Vigil(START)
    assert ailment(healthy, PROBE, evidence(device_errors=DEVICE_ERRORS - 1), START) is None
    lost = ailment(healthy, PROBE, evidence(device_errors=DEVICE_ERRORS, device_message="CUDA error: x"), START)
    assert lost is not None
    assert (lost.type, lost.reason) == ("unhealthy", "device_errors")
    assert lost.message == "3 device errors in a row: CUDA error: x"
    poisoned = ailment(healthy, PROBE, evidence(device_errors=1, poisoned=True), START)
    assert poisoned is not None
    assert "unusable" in poisoned.message


SPECS = st.builds(
    ProbeSpec,
    period_s=st.floats(2, 30), timeout_s=st.floats(2, 10), failures=st.integers(1, 5),
    liveness_period_s=st.floats(2, 20), liveness_failures=st.integers(1, 8),
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(SPECS, st.integers(0, 2), st.floats(0, 1000), st.floats(0, 1))
def test_whatever_the_settings_a_short_silence_is_survived_and_a_final_one_ends(
    probe: ProbeSpec, in_flight: int, begin: float, share: float
) -> None:
    limit = threshold_s(probe)
    # A silence is counted from the last answer, so one that is shorter by a round of probes is never too long.
    short = limit - probe.period_s - 2 * probe.timeout_s - probe.liveness_period_s
    if short > 0:
        one = Instance(answers=silent_from(begin, begin + short), in_flight=in_flight)
        assert one.given_up(begin + short + limit + 1, probe) is None
    final = Instance(answers=silent_from(begin), in_flight=in_flight, cpu_share=lambda _: share)
    rounds = max(probe.failures, probe.liveness_failures) + 2
    slack = rounds * (probe.timeout_s + probe.period_s + probe.liveness_period_s)
    ended = final.given_up(begin + 31 * limit + slack, probe)
    assert ended is not None
    assert ended >= begin + limit - probe.period_s


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), SPECS)
def test_only_failures_in_a_row_count(outcomes: list[bool], probe: ProbeSpec) -> None:
    vigil, row = Vigil(START), 0
    for n, good in enumerate(outcomes):
        mono = START + n
        vigil = vigil.answered(mono, ready=True) if good else vigil.missed(mono, None)
        row = 0 if good else row + 1
        assert (vigil.failures, vigil.silences) == (row, row)
        assert is_unready(vigil, probe) is (row >= probe.failures)
