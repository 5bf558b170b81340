"""The documented command lines, run with the real curl."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from comfyd.model.observed import Phase
from tests.api.world import world

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def curl(*arguments: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--noproxy", "*", "--max-time", "20", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out)


@pytest.mark.asyncio
async def test_the_calls_as_documented(tmp_path: Path) -> None:
    async with world(tmp_path, {"id": 1, "port": 3002, "name": "other"}) as w:
        url, kind = f"http://localhost:{w.port}", ("-H", "Content-Type: application/json")
        single = '{"id": 0, "port": 3001, "name": "main-instance", "extra_args": "--lowvram", "enabled": true}'
        started = await curl(
            "-X", "POST", f"{url}/api/comfyui/start-single", *kind, "-d", single, "--data-urlencode", "environment=comm"
        )
        assert started["status"] == "success"
        assert started["message"] == "Instance 'main-instance' started on port 3001"
        assert started["instance"]["environment"] == "comm"
        quick = '{"id": 0, "port": 3001, "name": "comfyui-quick", "extra_args": "", "enabled": true}'
        started = await curl("-X", "POST", f"{url}/api/comfyui/start-single", *kind, "-d", quick)
        assert started["message"] == "Instance 'comfyui-quick' started on port 3001"
        many = json.dumps(
            {
                "environment": "comm",
                "instances": [
                    {"id": 0, "port": 3001, "name": "main", "extra_args": "", "enabled": True},
                    {"id": 1, "port": 3002, "name": "backup", "extra_args": "--lowvram", "enabled": True},
                ],
            }
        )
        completed = await curl("-X", "POST", f"{url}/api/comfyui/start-instances", *kind, "-d", many)
        assert [r["status"] for r in completed["results"]] == ["started", "started"]
        status = await curl("-X", "GET", f"{url}/api/comfyui/status")
        assert {i["name"]: i["state"] for i in status["instances"]} == {"main": "ready", "backup": "ready"}
        stopped = await curl("-X", "POST", f"{url}/api/comfyui/stop-all")
        assert stopped["message"] == "All instances stopped"
        assert {run.phase for run in w.processes.values()} == {Phase.GONE}
        assert (await curl(f"{url}/health"))["status"] == "healthy"
        created = await curl("-X", "POST", f"{url}/tasks/create/paint")
        assert (await curl(f"{url}/tasks"))["tasks"][0]["taskId"] == created["taskId"]
        fetched = await curl(f"{url}/comfyui-fetch-task")
        update = json.dumps({"taskId": fetched["taskId"], "status": "COMPLETED"})
        assert await curl("-X", "POST", f"{url}/comfyui-update-task", *kind, "-d", update) == {
            "success": True, "message": "Task updated successfully",
        }  # fmt: skip
        assert (await curl("--unix-socket", str(w.context.paths.socket), "http://localhost/tasks"))["queue_length"] == 0
