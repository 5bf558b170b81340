"""Whether a run is ready and whether it still lives: what its probes, prompts, CPU time and GPU say together. Pure.

A run that does not answer is not dead for that: a node may hold the interpreter while it loads a model or computes.
How long it may be silent depends on what else speaks for it (`allowed_silence_s`).
"""

from dataclasses import dataclass, replace

from comfyd.model.base import Condition
from comfyd.model.desired import ProbeSpec
from comfyd.model.observed import Evidence

PROMPT_FACTOR = 10.0
"""With a prompt in it, or at work on something we did not give to it, a run may be silent this many times longer ..."""
WORKING_PROMPT_FACTOR = 30.0
"""... and this many times longer with both: then only a hang that burns the CPU is left, and it must end some time."""
STARTING_PERIOD_S = 0.25
BUSY_SHARE = 0.1
"""A tenth of one CPU: below that are the crumbs of a process that only accepts connections."""


@dataclass(frozen=True, slots=True)
class Vigil:
    """What was seen of one run so far. Times: mono seconds.

    heard: its latest answer of any kind, or when the vigil began. failures: probes in a row that were not ready.
    silences: probes in a row without any answer. cpu: (when, CPU seconds of all its processes) at the latest silence.
    worked: when it, or a GPU that it uses, was last seen to compute during a silence.
    """

    heard: float
    failures: int = 0
    silences: int = 0
    cpu: tuple[float, float] | None = None
    worked: float | None = None

    def answered(self, mono: float, *, ready: bool) -> "Vigil":
        """It answered: ready, or something else that only a living process says."""
        return Vigil(heard=mono, failures=0 if ready else self.failures + 1)

    def missed(self, mono: float, cpu_s: float | None, *, gpu_busy: bool = False) -> "Vigil":
        """No answer. cpu_s: CPU seconds that its processes have used so far, None if not known."""
        worked, cpu = mono if gpu_busy else self.worked, self.cpu
        if cpu_s is not None:
            if cpu is not None and mono > cpu[0] and (cpu_s - cpu[1]) / (mono - cpu[0]) >= BUSY_SHARE:
                worked = mono
            cpu = (mono, cpu_s)
        return replace(self, failures=self.failures + 1, silences=self.silences + 1, cpu=cpu, worked=worked)


def is_unready(vigil: Vigil, probe: ProbeSpec) -> bool:
    return vigil.failures >= probe.failures


def threshold_s(probe: ProbeSpec) -> float:
    """Seconds of silence that an idle run may keep."""
    return probe.liveness_period_s * probe.liveness_failures


def allowed_silence_s(probe: ProbeSpec, *, prompts: bool, busy: bool) -> float:
    """Seconds without any sign of life after which a run is given up.

    | | neither CPU nor GPU used | CPU or GPU used |
    | idle | 60 s | 10 min |
    | a prompt of ours in it | 10 min | 30 min |
    """
    if prompts and busy:
        return threshold_s(probe) * WORKING_PROMPT_FACTOR
    return threshold_s(probe) * (PROMPT_FACTOR if prompts or busy else 1.0)


def ailment(vigil: Vigil, probe: ProbeSpec, evidence: Evidence | None, mono: float) -> Condition | None:
    """Why the run has to be ended and started anew; None: let it live. evidence: dispatch's, of this very run."""
    if evidence is not None and evidence.condemned:
        return _broken_device(evidence)
    if not is_unready(vigil, probe) or vigil.silences < probe.liveness_failures:
        return None
    prompts = evidence is not None and evidence.in_flight > 0
    progress = evidence.progress_mono if evidence is not None else None
    silent_s = mono - max(vigil.heard, progress or 0.0)
    busy = vigil.worked is not None and mono - vigil.worked < threshold_s(probe)
    if silent_s < allowed_silence_s(probe, prompts=prompts, busy=busy):
        return None
    message = f"no answer and no progress of its prompt for {silent_s:.0f} s"
    if not prompts:
        message = f"no answer for {silent_s:.0f} s"
    hint = "the end of its log shows what it did last; `probe.liveness_failures` gives it longer"
    return Condition("unhealthy", "unresponsive", message, hint)


def _broken_device(evidence: Evidence) -> Condition:
    hint = "`nvidia-smi` and the kernel log tell whether the GPU is lost; its tasks went back to the queue"
    said = f": {evidence.device_message}" if evidence.device_message else ""
    if evidence.poisoned:
        message = f"a device error has left it unusable{said}"
    else:
        message = f"{evidence.device_errors} device errors in a row{said}"
    return Condition("unhealthy", "device_errors", message, hint)


def never_ready(probe: ProbeSpec, problem: str) -> Condition:
    """Its startup deadline has passed; problem: what the last probe said."""
    message = f"not ready within {probe.startup_deadline_s:g} s: {problem}"
    hint = "its log shows what it waits for; `probe.startup_deadline_s` gives it longer"
    return Condition("unhealthy", "not_ready_in_time", message, hint)


def next_probe_s(probe: ProbeSpec, vigil: Vigil, *, starting: bool) -> float:
    """From the beginning of one probe to that of the next. A failed one is repeated sooner: three fit into 15 s."""
    if starting:
        return min(STARTING_PERIOD_S, probe.period_s)
    if not vigil.failures:
        return probe.period_s
    return min(probe.period_s / 2, probe.liveness_period_s)
