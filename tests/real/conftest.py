"""One real ComfyUI for all tests here: installed by the daemon from build/comm, then left running.

Its only custom node is ComfyUI's own pack of test nodes (sleeps, errors, progress, loops; no models), taken out of the
same tree into a git repository of its own.

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
from tests.ports import free_port

INSTALL_S = 900
NAME = "comfyui-main"
NODES = "testing-pack"


class GaveUp(RuntimeError):
    """The install or the start failed: waiting longer is useless."""


@dataclass
class RealComfyUI:
    """The running instance: the daemon that keeps it, its entry of instances.json, the commit of its test nodes."""

    daemon: Daemon
    entry: dict[str, Any]
    nodes: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.entry['port']}"

    @property
    def tree(self) -> Path:
        """The installed environment."""
        return self.daemon.root / "workspace/ComfyUI-comm"

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
    if environment["state"] != "installed" or not instance["ready"]:
        return False
    if "restart_required" in {condition["type"] for condition in instance["conditions"]}:
        daemon.post(
            f"/api/comfyui/instances/{instance['id']}/restart"
        )  # a kept root had an environment of earlier scripts
        return False
    return True


def wait_until_ready(daemon: Daemon) -> None:
    """Asks once a second: the install needs the processors more than the test does."""
    deadline = time.monotonic() + INSTALL_S
    while not ready(daemon):
        if time.monotonic() > deadline:
            raise GaveUp(f"not ready within {INSTALL_S} s\n{daemon.output[-6000:]}")
        time.sleep(1)


def git(repository: Path, *arguments: str) -> str:
    fixed = {"GIT_AUTHOR_DATE": "2025-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2025-01-01T00:00:00Z"}
    identity = ("-c", "user.name=test nodes", "-c", "user.email=nodes@localhost", "-c", "commit.gpgsign=false")
    ran = subprocess.run(
        ["git", *identity, "-C", str(repository), *arguments],
        env=os.environ | fixed,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def add_test_nodes(root: Path) -> str:
    """Name the pack in the environment's config.json, pinned. Returns the commit, the same on every machine."""
    repository = root / "nodes" / NODES
    if not (repository / ".git").is_dir():
        shutil.copytree(root / "comfyui-repository/tests/execution/testing_nodes" / NODES, repository)
        git(repository, "init", "--quiet", "--initial-branch=master")
        git(repository, "add", "--all", "--force")
        git(repository, "commit", "--quiet", "--message", "ComfyUI's test nodes")
    commit = git(repository, "rev-parse", "HEAD")
    path = root / "config/environments/comm/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "nodes": [f"{repository}@{commit}"]}, indent=2))
    return commit


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealComfyUI]:
    root, told = make_real_root(tmp_path_factory)
    nodes = add_test_nodes(root)
    entry = {"id": 0, "port": free_port(), "name": NAME, "extra_args": "--cpu", "enabled": False}
    real = RealComfyUI(Daemon(root, **told), entry, nodes)
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
