"""comfyd as it is used: instances of a service environment, installed by its build script, edited in instances.json.

Spawn barrier, journal, logs and event log are on; probes are `none`, because the child listens nowhere.
"""

import contextlib
import http.client
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import comfyd_argv, free_port, until
from benchmarks.systems.base import System

_INSTALL = """#!/usr/bin/env bash
set -euo pipefail
mkdir -p /ComfyUI
cp "$(cd "$(dirname "$0")" && pwd)/child" /ComfyUI/child
"""
_ENVIRONMENT = {
    "service_type": "bench",
    "command": ["./child", "{root}/r.sock", "{id}"],
    "probe": {"type": "none"},
}
FIRST_PORT = 20000
WARM = 5000


class Comfyd(System):
    name = "comfyd"

    def start(self) -> None:
        config, build = self.folder / "config/environments/bench", self.folder / "build/bench"
        for folder in (config, build):
            folder.mkdir(parents=True)
        (config / "config.json").write_text(json.dumps(_ENVIRONMENT))
        shutil.copy(self.child, build / "child")
        (build / "install.sh").write_text(_INSTALL)
        (build / "install.sh").chmod(0o755)
        self.wanted = {WARM: 0}
        self.write({})
        self.port = free_port()
        self.launch()
        assert self.world.is_exactly({WARM: 0}, 30) < float("inf"), self.output.read_text()[-4000:]
        self.apply({})
        assert self.world.is_exactly({}, 30) < float("inf")
        assert until(lambda: not self.call("GET", "/api/comfyui/status")["instances"], 10)

    def launch(self) -> None:
        self.spawn(*comfyd_argv(self.folder), COMFYD_PORT=str(self.port), COMFYD_LOG_FORMAT="json")

    def relaunch(self, limit_s: float) -> tuple[float, float]:
        """SIGKILL the daemon, start the next one. Seconds from its spawn to the first status, and to a status that has
        every child of now with its pid, ready."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        pids = {number: child.pid for number, child in self.world.children.items()}
        first = found = float("inf")
        begun = time.monotonic()
        self.launch()
        while found == float("inf") and time.monotonic() - begun < limit_s:
            with contextlib.suppress(OSError):
                shown = self.call("GET", "/api/comfyui/status")["instances"]
                took = time.monotonic() - begun
                first = min(first, took)
                assert isinstance(shown, list)
                if {one["id"]: one["pid"] for one in shown if one["ready"]} == pids:
                    found = took
            time.sleep(0.002)
        return first, found

    def write(self, before: Mapping[int, int]) -> None:
        entries = [
            {
                "id": number, "port": FIRST_PORT + number, "name": f"child-{number}", "environment": "bench",
                "env": {"VERSION": str(version)},
            }
            for number, version in sorted(self.wanted.items())
        ]  # fmt: skip
        self.replace(self.folder / "instances.json", json.dumps({"instances": entries}, indent=1))

    @property
    def output(self) -> Path:
        """Beside the root, so that it does not look like an edit."""
        return self.folder.with_name("comfyd.out")

    def call(self, method: str, path: str) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def ask(self, number: int, verb: str) -> tuple[http.client.HTTPConnection, float]:
        """Send one verb; the answer is left to be read. Returns when it was sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.connect()
        sent = time.monotonic()
        connection.request("POST", f"/api/comfyui/instances/{number}/{verb}?wait=0")
        return connection, sent
