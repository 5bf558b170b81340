"""What NVML says of the GPUs. Reads only. No driver, no library or no package means "no GPUs", not an error.

Indices are NVML's, which are in PCI bus order: the same as CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID.
Blocking (a driver may take long): call it off the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BUSY_PERCENT = 10
"""Of the driver's last sample (up to a second): below that is a desktop, or nothing."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """memory: bytes, None where the driver does not tell (in a container, for processes outside it)."""

    pid: int
    memory: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory_*: bytes. utilisation: percent of the last sample, temperature: degrees C; None if not supported."""

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    utilisation: int | None
    temperature: int | None
    processes: tuple[GpuProcess, ...]


@dataclass(frozen=True, slots=True)
class GpuReading:
    """problem: why there may be fewer GPUs than expected (driver and library do not match, a GPU is lost)."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    problem: str | None = None

    def memory_of(self, pids: frozenset[int]) -> int | None:
        """Bytes that these processes hold on all GPUs; None if no GPU knows any of them."""
        held = [p.memory for gpu in self.gpus for p in gpu.processes if p.pid in pids and p.memory is not None]
        return sum(held) if held else None

    def busy(self, pids: frozenset[int]) -> bool:
        """Whether a GPU that one of these processes uses has computed lately, for whomever.

        A driver outside our pid namespace names no pid that we know: then it says nothing.
        """
        return any(
            (gpu.utilisation or 0) >= BUSY_PERCENT and any(p.pid in pids for p in gpu.processes) for gpu in self.gpus
        )


def read_gpus() -> GpuReading:
    """One reading of all GPUs. Never raises."""
    try:
        import pynvml
    except ImportError:
        return GpuReading()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return GpuReading(problem=None if error.value in absent else f"NVML: {error}")
    try:
        return _read(pynvml)
    except pynvml.NVMLError as error:
        return GpuReading(problem=f"NVML: {error}")
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: Any) -> GpuReading:
    gpus: list[Gpu] = []
    problems: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_gpu(nvml, index))
        except nvml.NVMLError as error:
            problems.append(f"GPU {index}: {error}")
    return GpuReading(tuple(gpus), nvml.nvmlSystemGetDriverVersion(), "; ".join(problems) or None)


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    rates = _optional(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        memory_total=memory.total,
        memory_used=memory.used,
        utilisation=rates.gpu if rates is not None else None,
        temperature=_optional(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        processes=_processes(nvml, handle),
    )


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    found = _optional(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return tuple(GpuProcess(p.pid, p.usedGpuMemory) for p in found)


def _optional(nvml: Any, ask: Callable[[], Any]) -> Any:
    """None where this GPU or driver does not support the question."""
    try:
        return ask()
    except nvml.NVMLError:
        return None
