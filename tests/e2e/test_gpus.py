"""GPU figures in the status, through the real binding and a compiled stand-in for the driver's library."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.daemon import Daemon

STUB = Path(__file__).parents[1] / "host/nvml_stub.c"


def test_status_shows_every_gpu_and_a_machine_without_any_shows_none(daemon: Daemon, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for NVML with")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libnvidia-ml.so.1"), str(STUB)], check=True)
    daemon.environ["LD_LIBRARY_PATH"] = str(tmp_path)
    daemon.start().until_ready(0, 1)
    status = daemon.get("/api/comfyui/status")
    assert [(g["index"], g["uuid"], g["memory_used"] >> 30) for g in status["gpus"]] == [
        (0, "GPU-aaaa", 1),
        (1, "GPU-bbbb", 2),
    ]
    assert status["gpu_problem"] is None
    assert [i["gpu_memory"] for i in status["instances"]] == [None, None]
    daemon.environ["NVML_STUB"] = "driver"
    daemon.kill()
    daemon.start().until_ready(0, 1)
    status = daemon.get("/api/comfyui/status")
    assert (status["gpus"], status["gpu_problem"]) == ([], None)
