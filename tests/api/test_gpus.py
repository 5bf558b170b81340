"""Which memory belongs to which instance: by session or by uuid, and nobody else's."""

import asyncio
import os
import subprocess
import sys

import pytest

from comfyd.api import gpus
from comfyd.api.gpus import GpuLook
from comfyd.host import procfs
from comfyd.host.gpu import Gpu, GpuProcess, GpuReading
from comfyd.model.observed import ObservedProcess, ObservedState, Phase


@pytest.mark.asyncio
async def test_memory_is_counted_for_the_whole_process_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    leader = subprocess.Popen(sleep, start_new_session=True)
    escaped = subprocess.Popen(sleep, start_new_session=True, env={**os.environ, "COMFYD_PROCESS_UUID": "u1"})
    try:
        while procfs.uuid_of(escaped.pid) != "u1":  # in the midst of its exec it has no environment yet
            await asyncio.sleep(0.01)
        held = (GpuProcess(leader.pid, 5), GpuProcess(escaped.pid, 7), GpuProcess(os.getpid(), 100))
        reading = GpuReading((Gpu(0, "GPU-a", "x", 1000, 112, 3, None, held),), "1.0")
        monkeypatch.setattr(gpus, "read_gpus", lambda: reading)
        run = ObservedProcess(key="comfyui/0", phase=Phase.READY, pid=leader.pid, generation="u1")
        look = GpuLook()
        await look.refresh(ObservedState(processes=(run,)))
        assert look.memory == {"comfyui/0": 12}
        assert [v.uuid for v in look.views] == ["GPU-a"]
        monkeypatch.setattr(gpus, "read_gpus", GpuReading)
        await look.refresh(ObservedState())
        assert look.memory == {"comfyui/0": 12}, "a fresh reading is not read again at once"
    finally:
        for one in (leader, escaped):
            one.kill()
            one.wait()
