"""Which GPU a pin of `gpus` names, whether it is there, and whether two processes may share it. Pure.

A pin is an index in PCI bus order or a UUID, whole or its beginning as CUDA takes it. known: what the driver told, None
if it told nothing; then pins are compared as they are written. A MIG slice is not judged: the driver lists whole GPUs.
"""

from collections.abc import Mapping

from comfyd.model.base import Condition
from comfyd.model.observed import ObservedGpu
from comfyd.model.process import DesiredProcess

Pins = tuple[int | str, ...] | None
"""() = no GPU, None = all visible ones."""
KnownGpus = tuple[ObservedGpu, ...] | None


def gpu_hold(wish: DesiredProcess, known: KnownGpus) -> Condition | None:
    """Whether a GPU that the instance is pinned to does not exist."""
    if known is None or not wish.gpus or _env_wins(wish):
        return None
    absent = [str(pin) for pin in wish.gpus if not str(pin).startswith("MIG-") and _gpu(pin, known) is None]
    if not absent:
        return None
    there = ", ".join(f"{gpu.index} ({gpu.uuid}, {gpu.name})" for gpu in known) or "no GPU"
    message = f"`gpus` names {', '.join(absent)}, which the driver does not know"
    return Condition("blocked", "gpu_unknown", message, f"correct `gpus`; this machine has: {there}")


def gpu_rival(wish: DesiredProcess, others: Mapping[str, tuple[Pins, bool]], known: KnownGpus) -> str | None:
    """Who keeps `wish` from its GPU, if one of the two wants it for itself. others: key -> (pins, exclusive)."""
    found = (key for key, (pins, alone) in others.items() if (wish.gpu_exclusive or alone) and _meet(wish, pins, known))
    return min(found, default=None)


def rival_hold(other: str) -> Condition:
    message = f"{other} runs on the same GPU and one of the two wants it exclusively"
    return Condition("blocked", "gpu_exclusive", message, "stop the other one or give it other `gpus`")


def _meet(wish: DesiredProcess, pins: Pins, known: KnownGpus) -> bool:
    if wish.gpus == () or pins == ():
        return False
    if wish.gpus is None or pins is None:
        return True
    return bool({_name(pin, known) for pin in wish.gpus} & {_name(pin, known) for pin in pins})


def _env_wins(wish: DesiredProcess) -> bool:
    return wish.instance is not None and "CUDA_VISIBLE_DEVICES" in wish.instance.env


def _name(pin: int | str, known: KnownGpus) -> int | str:
    """One name for every way to write it."""
    gpu = _gpu(pin, known or ())
    return pin if gpu is None else gpu.uuid


def _gpu(pin: int | str, known: tuple[ObservedGpu, ...]) -> ObservedGpu | None:
    if isinstance(pin, int):
        return next((gpu for gpu in known if gpu.index == pin), None)
    found = [gpu for gpu in known if gpu.uuid.lower().startswith(pin.lower())]
    return found[0] if len(found) == 1 else None
