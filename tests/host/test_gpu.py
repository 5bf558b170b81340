"""GPU readings through the real NVML binding: a compiled stand-in library, and a machine without any."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfyd.host.gpu import Gpu, GpuProcess, GpuReading, read_gpus
from tests.host.nvml import build_library

READ = """
import dataclasses, json
from comfyd.host.gpu import read_gpus
print(json.dumps(dataclasses.asdict(read_gpus())))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


def read(library: Path | None, mode: str = "") -> dict[str, Any]:
    env = {**os.environ, "LD_LIBRARY_PATH": str(library or ""), "NVML_STUB": mode}
    done = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


def test_every_gpu_is_read_with_what_it_supports(library: Path) -> None:
    reading = read(library)
    assert (reading["driver"], reading["problem"]) == ("999.1", None)
    first, second = reading["gpus"]
    assert (first["index"], first["uuid"], first["name"]) == (0, "GPU-aaaa", "Stub 80GB")
    assert (first["memory_total"], first["memory_used"]) == (80 << 30, 1 << 30)
    assert (first["utilisation"], first["temperature"]) == (42, 55)
    assert first["processes"] == [{"pid": 100, "memory": 5 << 30}, {"pid": 200, "memory": None}]
    assert (second["uuid"], second["utilisation"], second["processes"]) == ("GPU-bbbb", None, [])


def test_a_lost_gpu_is_named_and_the_others_are_read(library: Path) -> None:
    reading = read(library, "lost")
    assert [g["index"] for g in reading["gpus"]] == [0]
    assert "GPU 1" in reading["problem"]


def test_no_driver_is_no_gpus(library: Path) -> None:
    assert read(library, "driver") == {"gpus": [], "driver": "", "problem": None}


def test_no_library_is_no_gpus() -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    assert read_gpus() == GpuReading()


def test_memory_of_a_process_tree() -> None:
    held = (GpuProcess(1, 10), GpuProcess(2, None), GpuProcess(3, 7))
    gpu = Gpu(0, "u", "n", 100, 50, None, None, held)
    reading = GpuReading((gpu, gpu))
    assert reading.memory_of(frozenset({1, 2})) == 20
    assert reading.memory_of(frozenset({2})) is None
    assert reading.memory_of(frozenset({9})) is None


@pytest.mark.parametrize(
    ("utilisation", "pids", "busy"),
    [(42, {7}, True), (42, {7, 9}, True), (42, {9}, False), (42, set(), False), (9, {7}, False), (None, {7}, False)],
)
def test_a_gpu_is_busy_for_those_who_use_it(utilisation: int | None, pids: set[int], busy: bool) -> None:
    gpu = Gpu(0, "GPU-aaaa", "A", 1, 0, utilisation, None, (GpuProcess(7, None),))
    assert GpuReading((gpu,), "999.1").busy(frozenset(pids)) is busy
