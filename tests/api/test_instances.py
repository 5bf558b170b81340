"""Status, the verbs of one instance, stop-all, logs."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from comfyd.api.app import SHUTDOWN_S, serve
from comfyd.model.observed import Phase
from tests.api.world import MAIN, SPARE, World, world

BOTH = (MAIN, {**SPARE, "enabled": True})


async def running(w: World, *keys: str) -> None:
    await w.settle(lambda: all(w.phase(key) is Phase.READY for key in keys))


@pytest.mark.asyncio
async def test_status_shows_instances_environments_and_config(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await running(w, "comfyui/0")
        found = (await w.get("/api/comfyui/status")).json
        assert found["status"] == "success"
        assert "Instance 0 (main): ready, port 3001" in found["output"]
        one = found["instances"][0]
        keys = {
            "id", "name", "environment", "port", "state", "ready", "pid", "since", "restarts", "gpus", "conditions",
            "override",
        }  # fmt: skip
        assert keys <= set(one)
        assert (one["id"], one["state"], one["ready"], one["pid"]) == (0, "ready", True, 1)
        assert found["instances"][1]["conditions"][0]["reason"] == "disabled"
        assert {e["name"] for e in found["environments"]} == {"comm", "aua-sp"}
        assert found["config"]["state"] == "ok"
        assert "secret" not in str(found)


@pytest.mark.asyncio
async def test_a_broken_file_is_shown_and_moves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await running(w, "comfyui/0")
        before = dict(w.processes)
        (tmp_path / "instances.json").write_text('{"instances": [}')
        answer = await w.post("/api/comfyui/reload")
        assert answer.json["status"] == "refused"
        config = (await w.get("/api/comfyui/status")).json["config"]
        assert config["state"] == "stale"
        assert config["issues"][0]["severity"] == "error"
        assert config["issues"][0]["line"] == 1
        assert w.processes == before


@pytest.mark.asyncio
@pytest.mark.parametrize("ref", ["0", "main", "comfyui%2F0"])
async def test_one_instance_by_id_name_or_key(tmp_path: Path, ref: str) -> None:
    async with world(tmp_path) as w:
        assert (await w.get(f"/api/comfyui/instances/{ref}")).json["name"] == "main"


@pytest.mark.asyncio
async def test_an_unknown_instance_lists_the_known_ones(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for method, tail in (
            ("GET", ""),
            ("POST", "/start"),
            ("POST", "/stop"),
            ("POST", "/restart"),
            ("GET", "/logs"),
        ):
            answer = await w.call(method, f"/api/comfyui/instances/nope{tail}")
            assert (answer.status, answer.code) == (404, "unknown_instance")
            assert "0 (main)" in answer.json["detail"]
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_stop_and_start(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await running(w, "comfyui/0")
        stopped = await w.post("/api/comfyui/instances/main/stop")
        assert stopped.json["message"] == "Instance 'main' stopped"
        assert stopped.json["instance"]["state"] == "stopped"
        assert w.phase("comfyui/0") is Phase.GONE
        started = await w.post("/api/comfyui/instances/0/start")
        assert started.json["message"] == "Instance 'main' started on port 3001"
        kinds = sorted(o.kind for o in await w.context.node.overrides())
        assert kinds == ["run"]


@pytest.mark.asyncio
async def test_restart_is_answered_by_the_new_run(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await running(w, "comfyui/0")
        before = w.processes["comfyui/0"].generation
        answer = await w.post("/api/comfyui/instances/0/restart")
        assert answer.json["message"] == "Instance 'main' restarted on port 3001"
        assert w.phase("comfyui/0") is Phase.READY
        assert w.processes["comfyui/0"].generation != before


@pytest.mark.asyncio
async def test_a_stop_that_takes_longer_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await running(w, "comfyui/0")
        w.deaf = {"comfyui/0"}
        one = await w.post("/api/comfyui/instances/0/stop?wait=0.1")
        assert one.json["message"] == "Instance 'main' is stopping"
        everything = await w.post("/api/comfyui/stop-all?wait=0.1")
        assert (everything.status, everything.code) == (500, "stop_failed")
        assert "main" in everything.json["detail"]


@pytest.mark.asyncio
@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "1e9", "x", "", "1&wait=2"])
async def test_a_wait_that_is_none(tmp_path: Path, wait: str) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(f"/api/comfyui/stop-all?wait={wait}")
        assert answer.status in (400, 422)
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_stop_all_stops_what_runs_or_should_run(tmp_path: Path) -> None:
    async with world(tmp_path, *BOTH) as w:
        await running(w, "comfyui/0", "comfyui/1")
        answer = await w.call("POST", "/api/comfyui/stop-all")
        assert answer.status == 200
        assert answer.json["status"] == "success"
        assert answer.json["message"] == "All instances stopped"
        assert [r["status"] for r in answer.json["results"]] == ["stopped", "stopped"]
        assert {run.phase for run in w.processes.values()} == {Phase.GONE}
        again = await w.call("POST", "/api/comfyui/stop-all")
        assert again.json["results"] == []


@pytest.mark.asyncio
async def test_the_end_of_a_log(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        path = "/api/comfyui/instances/0/logs"
        assert (await w.get(path)).body == b""
        log = tmp_path / "workspace/logs/comfyui_instance_0.log"
        log.write_text("".join(f"line {n}\n" for n in range(1000)))
        answer = await w.get(f"{path}?tail=2")
        assert answer.body == b"line 998\nline 999\n"
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert len((await w.get(path)).body.splitlines()) == 200
        assert (await w.get(f"{path}?tail=0")).body == b""
        for bad in ("-1", "100000", "x"):
            assert (await w.get(f"{path}?tail={bad}")).code == "validation_failed"


@pytest.mark.asyncio
async def test_a_huge_log_is_capped(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        log = tmp_path / "workspace/logs/comfyui_instance_0.log"
        log.write_bytes((b"x" * 1023 + b"\n") * 3000)
        body = (await w.get("/api/comfyui/instances/0/logs?tail=10000")).body
        assert len(body) <= 1024 * 1024
        assert len(body.splitlines()[0]) == 1023


@pytest.mark.asyncio
async def test_a_log_that_is_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    import os

    async with world(tmp_path) as w:
        log = tmp_path / "workspace/logs/comfyui_instance_0.log"
        (tmp_path / "secret").write_text("secret\n")
        log.symlink_to(tmp_path / "secret")
        assert (await w.get("/api/comfyui/instances/0/logs")).body == b""
        log.unlink()
        os.mkfifo(log)
        assert (await w.get("/api/comfyui/instances/0/logs")).body == b""


@pytest.mark.asyncio
async def test_following_goes_on_through_a_truncation_and_ends_with_the_server(tmp_path: Path) -> None:
    log = tmp_path / "workspace/logs/comfyui_instance_0.log"
    async with world(tmp_path) as w, asyncio.timeout(20):
        log.write_text("one\ntwo\n")
        assert w.session is not None
        async with w.session.get(f"{w.url}/api/comfyui/instances/0/logs?tail=1&follow=1") as response:
            assert await response.content.readline() == b"two\n"
            with log.open("a") as file:
                file.write("three\n")
            assert await response.content.readline() == b"three\n"
            log.write_text("4\n")
            assert await response.content.readline() == b"4\n"


@pytest.mark.asyncio
async def test_open_streams_do_not_hold_up_the_shutdown(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    async with world(tmp_path) as w, asyncio.timeout(20):
        (tmp_path / "workspace/logs/comfyui_instance_0.log").write_text("one\n")
        context = replace(w.context, paths=replace(w.context.paths, state_dir=tmp_path / "second"))
        assert w.session is not None
        async with serve(context) as listeners:
            url = f"http://127.0.0.1:{listeners.port}"
            log = await w.session.get(f"{url}/api/comfyui/instances/0/logs?follow=1")
            events = await w.session.get(f"{url}/events")
            assert await log.content.readline() == b"one\n"
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun < SHUTDOWN_S
        assert await log.content.read() == b""
        log.release()
        events.close()
