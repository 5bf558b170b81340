"""GPUs through the real binding and a compiled stand-in for the driver's library: shown, and held to by pins."""

import os
import signal
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.host.nvml import build_library


def test_status_shows_every_gpu_and_a_machine_without_any_shows_none(daemon: Daemon, tmp_path: Path) -> None:
    daemon.environ["LD_LIBRARY_PATH"] = str(build_library(tmp_path))
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


def pin(daemon: Daemon, *pins: object, **fields: object) -> None:
    def change(data: dict[str, list[dict[str, object]]]) -> None:
        for entry, gpus in zip(data["instances"], pins, strict=True):
            entry |= {"gpus": gpus, **fields}

    daemon.edit(change)


def reason(daemon: Daemon) -> str:
    return str(daemon.instance(1)["conditions"][0]["reason"])


@pytest.mark.slow
def test_pins_are_held_to_what_the_driver_knows(daemon: Daemon, tmp_path: Path) -> None:
    daemon.environ["LD_LIBRARY_PATH"] = str(build_library(tmp_path))
    pin(daemon, [1], [5])
    daemon.start().until_ready(0)
    variables = Path(f"/proc/{daemon.instance(0)['pid']}/environ").read_bytes().split(b"\0")
    assert {b"CUDA_VISIBLE_DEVICES=1", b"CUDA_DEVICE_ORDER=PCI_BUS_ID"} <= set(variables)
    daemon.until(lambda: daemon.state(1) == "blocked", what="the pin of the second is refused")
    (condition,) = daemon.instance(1)["conditions"]
    assert condition["reason"] == "gpu_unknown"
    assert "1 (GPU-bbbb, Stub 80GB)" in condition["hint"]
    pin(daemon, [1], ["GPU-bbbb"], gpu_exclusive=True)
    daemon.until(lambda: reason(daemon) == "gpu_exclusive", what="both names are one GPU")
    assert "comfyui/0" in daemon.instance(1)["conditions"][0]["message"]
    pin(daemon, [1], ["GPU-aaaa"], gpu_exclusive=True)
    daemon.until_ready(0, 1)
    daemon.environ["NVML_STUB"] = "driver"
    pin(daemon, [1], [5])
    assert daemon.stop() == 0
    daemon.start().until_ready(0, 1)


@pytest.mark.slow
def test_a_silent_one_whose_gpu_computes_is_given_longer(daemon: Daemon, tmp_path: Path) -> None:
    """Both stand still; the driver says that a busy GPU belongs to the first one. Ten times longer is 10 s here."""
    holder = tmp_path / "holder"
    daemon.environ |= {"LD_LIBRARY_PATH": str(build_library(tmp_path)), "NVML_STUB_PID": str(holder)}
    probe = {"timeout_s": 0.5, "period_s": 0.4, "failures": 1, "liveness_period_s": 0.5, "liveness_failures": 2}
    daemon.edit(lambda data: [entry.update(probe=probe, stop_grace_s=1) for entry in data["instances"]])
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    holder.write_text(str(before["comfyui/0"]))
    for pid in before.values():
        os.kill(pid, signal.SIGSTOP)
    daemon.until(lambda: daemon.pids().get("comfyui/1", before["comfyui/1"]) != before["comfyui/1"])
    assert daemon.pids()["comfyui/0"] == before["comfyui/0"]
    daemon.until_ready(1)
    assert daemon.pids()["comfyui/0"] == before["comfyui/0"]
    holder.write_text("1")
    daemon.until(lambda: daemon.pids().get("comfyui/0", before["comfyui/0"]) != before["comfyui/0"], 9)
    assert daemon.instance(0)["last_exit"]["reason"] == "unresponsive"
