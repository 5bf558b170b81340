"""Whose fault a device error is: that of the task, or that of the process or GPU that it happened to run on. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROCESSES = 3
"""A task may spoil so many processes before it is called poison, whatever else speaks for it."""


@dataclass(frozen=True, slots=True)
class DeviceError:
    """One device error of a task. generation: the process; good: prompts that the process had run well by then."""

    generation: str
    good: int


def is_poison(errors: Sequence[DeviceError]) -> bool:
    """Whether the task itself is to blame, judged at its latest error. errors: all of one task, oldest first.

    It is if it fails in a second process where others went well, or once more in one where others went well since.
    """
    latest, before = errors[-1], errors[:-1]
    processes = {error.generation for error in errors}
    elsewhere = len(processes) > 1 and latest.good > 0
    since = any(error.generation == latest.generation and error.good < latest.good for error in before)
    return elsewhere or since or len(processes) >= MAX_PROCESSES
