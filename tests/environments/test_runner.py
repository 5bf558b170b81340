"""The daemon's installer: what it publishes, that there is one install at a time, restarts and kills."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from comfyd.environments.runner import Installer
from comfyd.live import Live
from comfyd.model.desired import EnvironmentSpec, ModelSpec
from comfyd.model.observed import ObservedEnvironment
from comfyd.model.process import DesiredEnvironment
from comfyd.store.open import Stores, open_stores
from tests.environments.fileserver import Served, serving
from tests.environments.house import House, alive_with, safetensors, script, until

pytestmark = pytest.mark.asyncio


def wish(fingerprint: str = "f1", env: str = "comm", **given: Any) -> DesiredEnvironment:
    return DesiredEnvironment(name=env, spec=EnvironmentSpec(name=env, **given), fingerprint=fingerprint, wanted=True)


class Running:
    """An open installer with its cells."""

    def __init__(self, house: House, stores: Stores) -> None:
        self.live = Live()
        self.stores = stores
        self.installer = Installer(self.live, stores.node, house.settings, house.paths, house.environ)

    def seen(self, env: str = "comm") -> ObservedEnvironment:
        return self.live.installs.get().get(env) or ObservedEnvironment(name=env)

    async def state(self, state: str, env: str = "comm") -> ObservedEnvironment:
        await until(lambda: self.seen(env).state == state, f"{env} is {state}, not {self.seen(env)}")
        return self.seen(env)

    async def after(self, action: DesiredEnvironment) -> ObservedEnvironment:
        self.installer.install(action)
        await until(lambda: self.seen(action.name).state != "installing", "the install ends")
        return self.seen(action.name)


@asynccontextmanager
async def running(house: House) -> AsyncIterator[Running]:
    async with open_stores(house.paths.state_dir / "comfyd.db", "boot", 1000) as stores:
        one = Running(house, stores)
        async with one.installer:
            yield one


async def test_an_install_is_published_and_recorded(house: House) -> None:
    house.write_script(script("while [ ! -e /ComfyUI/go ]; do sleep 0.05; done"))
    async with running(house) as one:
        one.live.wake.clear()
        one.installer.install(wish())
        seen = one.seen()
        assert (seen.state, seen.installing_fingerprint, seen.installed) == ("installing", "f1", False)
        await until(lambda: any(s.name == "run_script" and s.state == "running" for s in one.seen().steps), "it runs")
        one.installer.install(wish("f2"))
        one.installer.install(wish())
        await until(lambda: (house.paths.generation("comm", 1) / "env.txt").exists(), "the script runs")
        (house.paths.generation("comm", 1) / "go").touch()
        seen = await one.state("installed")
        with anyio.fail_after(5):
            await one.live.wake.wait()
        assert (seen.installed, seen.fingerprint, seen.generation, seen.progress) == (True, "f1", 1, 1.0)
        assert seen.tree == str(house.link().resolve())
        assert "--port" in seen.flags
    async with open_stores(house.paths.state_dir / "comfyd.db", "boot", 1000) as stores:
        events = await stores.node.events(0)
    assert {(e.type, e.subject) for e in events} == {("install", "comm")}
    steps = [e.data["step"] for e in events if e.data["step"]]
    assert steps[0] == "validate"
    assert steps[-1] == "verify"
    assert events[-1].data["state"] == "installed"
    assert house.trees() == [".ComfyUI-comm.1", "ComfyUI-comm"]


async def test_what_is_on_disk_is_known_at_once(house: House) -> None:
    house.write_script(script())
    await house.install()
    house.write_script("#!/bin/sh\necho why; exit 4\n", env="bad")
    await house.install(EnvironmentSpec(name="bad"))
    async with running(house) as one:
        assert one.seen().state == "installed"
        bad = one.seen("bad")
        assert (bad.state, bad.failures, bad.failed_fingerprint) == ("failed", 1, "f1")
        assert bad.failed_mono is not None
        assert bad.condition
        assert "why" in bad.condition.message
        assert (await one.after(wish())).generation == 1
        assert (await one.after(wish(env="bad"))).failures == 2


async def test_one_environment_fails_and_another_goes_on(house: House) -> None:
    house.write_script("#!/bin/sh\nexit 4\n", env="bad")
    house.write_script(script("sleep 0.3"))
    async with running(house) as one:
        one.installer.install(wish())
        one.installer.install(wish(env="bad"))
        assert (await one.state("failed", "bad")).condition
        assert (await one.state("installed")).installed


async def test_the_installed_generation_stays_while_a_new_one_is_built(house: House) -> None:
    house.write_script(script())
    async with running(house) as one:
        await one.after(wish())
        house.write_script(script("while [ ! -e /ComfyUI/go ]; do sleep 0.05; done"))
        one.installer.install(wish("f2"))
        await until(lambda: (house.paths.generation("comm", 2) / "env.txt").exists(), "the second one is built")
        seen = one.seen()
        assert (seen.state, seen.installed, seen.generation, seen.fingerprint) == ("installing", True, 1, "f1")
        assert os.readlink(house.link()) == ".ComfyUI-comm.1"
        (house.paths.generation("comm", 2) / "go").touch()
        assert (await one.state("installed")).generation == 2


async def test_leaving_ends_the_group_and_the_next_boot_tries_again(house: House) -> None:
    house.write_script("#!/bin/bash\nmkdir /ComfyUI\nsleep 300 &\necho > /ComfyUI/up\nsleep 300\n")
    async with running(house) as one:
        one.installer.install(wish())
        await until(lambda: (house.paths.generation("comm", 1) / "up").exists(), "the script runs")
        uuid = house.record().uuid
    assert alive_with(f"COMFYD_PROCESS_UUID={uuid}") == []
    assert house.record().state == "interrupted"
    house.write_script(script())
    async with running(house) as one:
        seen = one.seen()
        assert (seen.state, seen.installed, seen.failures) == ("absent", False, 0)
        assert seen.condition
        assert seen.condition.reason == "interrupted"
        assert (await one.after(wish())).installed


async def test_refresh_sees_what_others_did(house: House) -> None:
    house.write_script(script())
    async with running(house) as one:
        spec = wish().spec
        await one.installer.refresh([spec])
        assert one.seen().state == "absent"
        await house.install()
        await one.installer.refresh([spec])
        assert one.seen().state == "installed"
        seq = one.live.installs.seq
        await one.installer.refresh([spec])
        assert one.live.installs.seq == seq
        house.link().unlink()
        await one.installer.refresh([spec])
        assert not one.seen().installed


async def test_a_conflict_lasts_until_the_directory_is_gone(house: House) -> None:
    house.write_script(script())
    house.link().mkdir(parents=True)
    async with running(house) as one:
        assert one.seen().state == "absent"
        assert (await one.after(wish())).state == "conflict"
        await one.installer.refresh([wish().spec])
        assert one.seen().state == "conflict"
        house.link().rename(house.root / "moved")
        await one.installer.refresh([wish().spec])
        assert one.seen().state == "absent"
        assert (await one.after(wish())).installed


async def test_models_are_tried_again_when_they_change(house: House) -> None:
    house.write_script(script())
    async with serving() as server, running(house) as one:
        server.files["/b.safetensors"] = Served(safetensors())
        gone = wish(models=(ModelSpec(url=server.url("/a.safetensors")),))
        seen = await one.after(gone)
        assert (seen.state, seen.installed, seen.failures, seen.failed_fingerprint) == ("installed", True, 1, "f1")
        assert seen.models_fingerprint != gone.spec.models_fingerprint
        assert [c.type for c in seen.conditions] == ["model_failed"]
        await one.installer.refresh([gone.spec])
        assert one.seen().failures == 1
        there = wish(models=(ModelSpec(url=server.url("/b.safetensors")),))
        await one.installer.refresh([there.spec])
        assert one.seen().failures == 0
        seen = await one.after(there)
        assert (seen.generation, seen.models_fingerprint, seen.conditions) == (1, there.spec.models_fingerprint, ())


async def test_an_install_asked_for_before_the_start_is_not_lost(house: House) -> None:
    house.write_script(script())
    async with open_stores(house.paths.state_dir / "comfyd.db", "boot", 1000) as stores:
        one = Running(house, stores)
        one.installer.install(wish())
        async with one.installer:
            assert (await one.state("installed")).installed


VICTIM = """
import anyio, sys
from pathlib import Path
from comfyd.environments.install import install_environment
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.paths import Paths
from comfyd.settings import load_settings

async def main():
    root = Path(sys.argv[1])
    await install_environment(
        EnvironmentSpec(name="comm"), "f1", Paths.under(root), load_settings({}, root=root), lambda record: None
    )

anyio.run(main)
"""


def victim(house: House) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", VICTIM, str(house.root)], env=env)


async def test_a_leftover_installer_is_found_and_ended_before_another_begins(house: House) -> None:
    house.write_script("#!/bin/bash\nmkdir /ComfyUI\nsetsid sleep 300 &\necho > /ComfyUI/up\nsleep 300\n")
    with victim(house) as process:
        try:
            await until(lambda: (house.paths.generation("comm", 1) / "up").exists(), "the script runs", 45)
            uuid = house.record().uuid
        finally:
            process.kill()
    assert len(alive_with(f"COMFYD_PROCESS_UUID={uuid}")) >= 2
    house.write_script(script())
    async with running(house) as one:
        seen = await one.after(wish())
        assert (seen.installed, seen.generation) == (True, 2)
    assert alive_with(f"COMFYD_PROCESS_UUID={uuid}") == []
    assert house.trees() == [".ComfyUI-comm.1.failed", ".ComfyUI-comm.2", "ComfyUI-comm"]


async def test_two_daemons_build_once(house: House) -> None:
    house.write_script(script("sleep 0.5; echo built >> ../built"))
    async with open_stores(house.paths.state_dir / "comfyd.db", "boot", 1000) as stores:
        first, second = Running(house, stores), Running(house, stores)
        async with first.installer, second.installer:
            first.installer.install(wish())
            second.installer.install(wish())
            await first.state("installed")
            assert (await second.state("installed")).generation == 1
    assert house.trees() == [".ComfyUI-comm.1", "ComfyUI-comm"]
