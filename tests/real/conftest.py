"""One real ComfyUI for all tests here: installed by the daemon from build/comm, then left running.

Without COMFYD_TEST_CACHE everything is made anew in a temporary folder (about two minutes, 1.8 GB); with it the root
is kept in that folder, and a later run starts the environment that an earlier one installed.
"""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import REPOSITORY, Daemon
from tests.fake import free_port

INSTALL_S = 900
NAME = "comfyui-main"


class GaveUp(RuntimeError):
    """The install or the start failed: waiting longer is useless."""


@dataclass
class RealComfyUI:
    """The running instance: the daemon that keeps it and its entry of instances.json."""

    daemon: Daemon
    entry: dict[str, Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.entry['port']}"

    def write_instances(self, **changed: Any) -> None:
        """What an editor does: a new file renamed over the old one."""
        replace_instances(self.daemon.root, {**self.entry, **changed})


def replace_instances(root: Path, *entries: dict[str, Any]) -> None:
    fresh = root / "instances.json.new"
    fresh.write_text(json.dumps({"instances": entries}, indent=2))
    fresh.replace(root / "instances.json")


def make_real_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A root as `make demo-real` uses it, and the variables that its build script is told."""
    cache = os.environ.get("COMFYD_TEST_CACHE")
    root = Path(cache).absolute() / "real-root" if cache else tmp_path_factory.mktemp("real") / "root"
    subprocess.run([REPOSITORY / "scripts/dev/real_root.sh", root], check=True)
    told = dict(word.split("=", 1) for word in shlex.split((root / "build.env").read_text()))
    return root, told


def ready(daemon: Daemon) -> bool:
    environment = daemon.get("/environments/comm")
    if environment["install"]["state"] == "failed" or environment["state"] == "conflict":
        raise GaveUp("\n".join([str(environment), *daemon.get("/environments/comm/install")["tail"]]))
    instance = daemon.instance(NAME)
    if instance["state"] in {"failed", "conflict", "backoff", "blocked"}:
        raise GaveUp(json.dumps(instance, indent=1))
    return bool(instance["ready"])


def wait_until_ready(daemon: Daemon) -> None:
    """Asks once a second: the install needs the processors more than the test does."""
    deadline = time.monotonic() + INSTALL_S
    while not ready(daemon):
        if time.monotonic() > deadline:
            raise GaveUp(f"not ready within {INSTALL_S} s\n{daemon.output[-6000:]}")
        time.sleep(1)


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealComfyUI]:
    root, told = make_real_root(tmp_path_factory)
    entry = {"id": 0, "port": free_port(), "name": NAME, "extra_args": "--cpu", "enabled": False}
    real = RealComfyUI(Daemon(root, **told), entry)
    real.write_instances()
    try:
        real.daemon.start()
        real.daemon.until(lambda: real.daemon.state(NAME) == "stopped", 20, "the file is read")
        entry["enabled"] = True
        real.write_instances()
        wait_until_ready(real.daemon)
        yield real
    finally:
        real.daemon.end_everything()
        if "COMFYD_TEST_CACHE" not in os.environ:
            for generation in (root / "workspace").glob(".ComfyUI-*"):
                shutil.rmtree(generation)
