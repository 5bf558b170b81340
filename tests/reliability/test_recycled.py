"""A recorded process is gone and its pid belongs to a stranger with the same argv: it is never signalled (P7, V3)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY


def require_namespaces() -> None:
    able = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False)
    if able.returncode == 0:
        return
    reason = f"needs root and pid namespaces: {able.stderr.decode().strip()}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.ns
@pytest.mark.reliability
@pytest.mark.timeout(400)
def test_a_stranger_with_the_pid_of_an_instance_is_left_alone(tmp_path: Path) -> None:
    require_namespaces()
    ran = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--propagation", "private",
         sys.executable, "-m", "tests.reliability.recycled", str(tmp_path)],
        cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=390, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout)
    assert told["harmed"] == []
    assert told["after"]["comfyui/1"] == told["before"]["comfyui/1"]
    assert told["after"]["comfyui/0"] != told["before"]["comfyui/0"]
