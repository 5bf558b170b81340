"""A root with build scripts that make tiny trees: what the tests of this room share."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyd.environments.install import Site
from comfyd.environments.install import install as install_into
from comfyd.environments.models import ModelFetcher
from comfyd.environments.record import InstallRecord, Marker, load_marker, load_record
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.paths import Paths
from comfyd.settings import Settings

MAIN = """import sys
if "--help" in sys.argv:
    print("usage: main.py [--listen IP] [--port P] [--database-url URL] [--temp-directory D]")
"""

SCRIPT = """#!/bin/bash
set -e
mkdir -p /ComfyUI/venv/bin /ComfyUI/models/checkpoints/deep /ComfyUI/output /ComfyUI/custom_nodes/shipped
cat > /ComfyUI/main.py <<'END'
{main}END
ln -s "$(command -v python3)" /ComfyUI/venv/bin/python
echo "# activate" > "/ComfyUI/venv/bin/activate"
echo model > /ComfyUI/models/checkpoints/deep/put.txt
echo picture > /ComfyUI/output/old.png
env > /ComfyUI/env.txt
{more}
echo installed to /ComfyUI
"""


def script(more: str = "") -> str:
    return SCRIPT.format(main=MAIN, more=more)


@dataclass
class House:
    """A root folder, its environments and how to install them."""

    root: Path
    given: dict[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    reports: list[InstallRecord] = field(default_factory=list)

    @property
    def paths(self) -> Paths:
        return Paths.under(self.root)

    @property
    def settings(self) -> Settings:
        return Settings.model_construct(
            **{**{n: f.get_default(call_default_factory=True) for n, f in Settings.model_fields.items()}, **self.given}
        )

    def write_script(self, text: str, env: str = "comm", mode: int = 0o755) -> Path:
        folder = self.root / "build" / env
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "install.sh"
        path.write_text(text)
        path.chmod(mode)
        return path

    def write_fix(self, text: str, env: str = "comm") -> None:
        folder = self.root / "config" / "environments" / env
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fix_dependencies.sh").write_text(text)

    def link(self, env: str = "comm") -> Path:
        return self.paths.environment_link(env)

    def marker(self, env: str = "comm") -> Marker:
        marker = load_marker(self.link(env))
        assert marker is not None
        return marker

    def record(self, env: str = "comm") -> InstallRecord:
        record = load_record(self.paths, env)
        assert record is not None
        return record

    def log(self, env: str = "comm") -> str:
        return self.paths.install_log(env).read_text()

    def trees(self) -> list[str]:
        return sorted(p.name for p in self.paths.workspace.iterdir() if "ComfyUI" in p.name)

    async def install(self, spec: EnvironmentSpec | None = None, fingerprint: str = "f1") -> InstallRecord:
        fetcher = ModelFetcher(self.paths, self.settings, self.environ)
        site = Site(self.paths, self.settings, self.environ, fetcher)
        try:
            return await install_into(site, spec or EnvironmentSpec(name="comm"), fingerprint, self.reports.append)
        finally:
            await fetcher.aclose()


def git(*arguments: str, cwd: Path) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *arguments], cwd=cwd, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_repository(folder: Path, files: Mapping[str, str]) -> str:
    """A git repository with one commit; returns its hash."""
    folder.mkdir(parents=True)
    git("init", "-q", cwd=folder)
    return commit(folder, files)


def commit(folder: Path, files: Mapping[str, str]) -> str:
    for name, text in files.items():
        (folder / name).write_text(text)
    git("add", "-A", cwd=folder)
    git("commit", "-q", "-m", "change", cwd=folder)
    return git("rev-parse", "HEAD", cwd=folder)


def safetensors(size: int = 4096) -> bytes:
    """A valid file with `size` bytes of data."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(i * 7 % 251 for i in range(size))


async def until(met: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    """Poll a condition of the world with a deadline."""
    end = time.monotonic() + limit_s
    while not met():
        assert time.monotonic() < end, f"never came true: {what}"
        await asyncio.sleep(0.02)


def alive_with(text: str) -> list[int]:
    """Pids of live processes whose environment holds `text`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and text.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found
