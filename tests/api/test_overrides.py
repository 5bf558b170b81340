"""Overrides, previews and reload."""

import json
from pathlib import Path

import pytest

from comfyd.model.observed import Phase
from tests.api.world import JSON, MAIN, SPARE, world

OVERRIDES = "/api/comfyui/overrides"


@pytest.mark.asyncio
async def test_an_override_is_set_shown_and_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        assert (await w.get(OVERRIDES)).json == {"overrides": []}
        put = await w.call("PUT", f"{OVERRIDES}/main", {"fields": {"extra_args": "--cpu"}, "want": "up"})
        assert put.status == 200, put.body
        kinds = {o["kind"]: o for o in put.json["overrides"]}
        assert kinds["spec"]["fields"] == {"extra_args": ["--cpu"]}
        assert kinds["run"]["want"] == "up"
        assert kinds["run"]["by"] == "127.0.0.1"
        assert kinds["run"]["created_at"].endswith("Z")

        def instance() -> object:
            return w.live.resolved.get().process("comfyui/0").instance

        await w.settle(lambda: instance().extra_args == ("--cpu",))
        shown = (await w.get("/api/comfyui/instances/0")).json["override"]
        assert shown["fields"] == ["extra_args"]
        assert len((await w.get(f"{OVERRIDES}/0")).json["overrides"]) == 2
        gone = await w.call("DELETE", f"{OVERRIDES}/0")
        assert gone.json["deleted"] == 2
        await w.settle(lambda: instance().extra_args == ("--lowvram",))
        assert (await w.get(f"{OVERRIDES}/0")).code == "unknown_override"
        assert (await w.call("DELETE", f"{OVERRIDES}/0")).code == "unknown_override"


@pytest.mark.asyncio
async def test_a_put_replaces_what_was_there(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.call("PUT", f"{OVERRIDES}/1", {"fields": {"port": 3005}, "want": "up"})
        await w.call("PUT", f"{OVERRIDES}/1", {"want": "down"})
        assert [(o.kind, o.want) for o in await w.context.node.overrides()] == [("run", "down")]


@pytest.mark.asyncio
async def test_a_put_without_restart_keeps_what_was_restarted(tmp_path: Path) -> None:
    """The token of the last restart is part of what runs: losing it, or letting it expire, would restart once more."""
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        assert (await w.post("/api/comfyui/instances/0/restart")).status == 200
        fingerprint = w.live.resolved.get().process("comfyui/0").fingerprint
        await w.call("PUT", f"{OVERRIDES}/0", {"want": "up"})
        await w.settle(lambda: w.live.overrides.get() and "up" in [o.want for o in w.live.overrides.get()])
        assert {o.kind for o in await w.context.node.overrides()} == {"restart", "run"}
        assert w.live.resolved.get().process("comfyui/0").fingerprint == fingerprint

        put = await w.call(
            "PUT", f"{OVERRIDES}/0", {"want": "up", "restart": True, "expires_at": "2100-01-02T03:04:05Z"}
        )
        assert {o["kind"]: o["expires_at"] for o in put.json["overrides"]} == {
            "restart": None,
            "run": "2100-01-02T03:04:05.000Z",
        }


@pytest.mark.asyncio
async def test_an_override_may_expire(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        put = await w.call("PUT", f"{OVERRIDES}/1", {"want": "up", "expires_at": "2100-01-02T03:04:05Z"})
        assert put.json["overrides"][0]["expires_at"] == "2100-01-02T03:04:05.000Z"
        past = await w.call("PUT", f"{OVERRIDES}/1", {"want": "up", "expires_at": 1700000000})
        assert (past.status, past.code) == (422, "validation_failed")


@pytest.mark.asyncio
async def test_a_new_instance_by_override(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        put = await w.call("PUT", f"{OVERRIDES}/9", {"fields": {"port": 3008, "name": "extra"}, "want": "up"})
        assert put.status == 200, put.body
        await w.settle(lambda: w.phase("comfyui/9") is Phase.READY)
        deleted = await w.call("DELETE", OVERRIDES)
        assert deleted.json["deleted"] == 2
        await w.settle(lambda: w.phase("comfyui/9") is Phase.GONE)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("ref", "body", "status"),
    [
        ("1", {}, 422),
        ("1", {"want": "sideways"}, 422),
        ("1", {"colour": 1}, 422),
        ("1", {"fields": {"port": 0}}, 422),
        ("1", {"fields": {"port": "3005"}}, 422),
        ("1", {"fields": {"id": 2}}, 422),
        ("9", {"fields": {"port": 3008}}, 422),
        ("1", {"want": "up", "expires_at": "soon"}, 422),
        ("nobody", {"want": "up"}, 404),
        ("99999999999", {"want": "up"}, 404),
    ],
)
async def test_bad_overrides_change_nothing(tmp_path: Path, ref: str, body: dict, status: int) -> None:
    async with world(tmp_path) as w:
        answer = await w.call("PUT", f"{OVERRIDES}/{ref}", body)
        assert answer.status == status, answer.body
        assert answer.code
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_the_plan_says_what_happens_and_what_waits(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        plan = (await w.get("/api/comfyui/plan")).json
        assert plan["actions"] == []
        assert plan["holds"]["comfyui/1"]["reason"] == "disabled"


@pytest.mark.asyncio
async def test_a_candidate_is_previewed_and_not_used(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        candidate = '{"instances": [ // only this one\n' + json.dumps({**SPARE, "enabled": True}) + "]}"
        answer = await w.post("/api/comfyui/plan", data=candidate, headers=JSON)
        assert answer.status == 200, answer.body
        actions = {(a["action"], a["key"]) for a in answer.json["actions"]}
        assert actions == {("stop", "comfyui/0"), ("start", "comfyui/1")}
        same = await w.post("/api/comfyui/plan", {"instances": [MAIN, SPARE]})
        assert same.json["actions"] == []
        assert w.phase("comfyui/0") is Phase.READY


@pytest.mark.asyncio
async def test_a_broken_candidate_lists_every_error_with_its_place(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        candidate = (
            '{"instances": [\n{"id": 0, "port": 3001, "name": "a"},\n{"id": 0, "port": 3001, "name": "b", "x": 1}]}'
        )
        answer = await w.post("/api/comfyui/plan", data=candidate, headers=JSON)
        assert (answer.status, answer.code) == (422, "invalid_config")
        issues = answer.json["error"]["details"]["issues"]
        assert {i["code"] for i in issues} >= {"duplicate_id", "duplicate_port", "unknown_key"}
        assert {i["line"] for i in issues} == {3}


@pytest.mark.asyncio
async def test_reload_reads_the_files_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.write_instances(MAIN, {**SPARE, "enabled": True})
        answer = await w.post("/api/comfyui/reload")
        assert answer.json["status"] == "success"
        assert answer.json["config"]["state"] == "ok"
        await w.settle(lambda: w.phase("comfyui/1") is Phase.READY)


@pytest.mark.asyncio
async def test_environments_and_a_fresh_install(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        listed = (await w.get("/environments")).json["environments"]
        one = next(e for e in listed if e["name"] == "comm")
        assert {"name", "description", "port", "workflows", "nodes", "models", "installed", "state", "install"} <= set(
            one
        )
        assert one["installed"] is True
        assert "secret" not in str(listed)
        assert (await w.get("/api/environments/comm")).json == one
        assert (await w.get("/environments/nope")).code == "unknown_environment"
        assert (await w.post("/environments/nope/install")).code == "unknown_environment"

        (tmp_path / "workspace/logs/install_aua-sp.log").write_text("one\ntwo\n")
        asked = await w.post("/environments/aua-sp/install")
        assert asked.status == 202
        assert asked.json["environment"] == "aua-sp"
        await w.settle(lambda: any(name == "aua-sp" for name, _ in w.installs))
        state = (await w.get("/environments/aua-sp/install")).json
        assert state["install"]["state"] == "installing"
        assert state["install"]["step"] == "clone"
        assert state["tail"] == ["one", "two"]

        before = [i for i in w.installs if i[0] == "comm"]
        await w.post("/environments/comm/install")
        await w.settle(lambda: len([i for i in w.installs if i[0] == "comm"]) > len(before))
        assert len({i for i in w.installs if i[0] == "comm"}) == len(before) + 1


@pytest.mark.asyncio
async def test_workflows(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        found = (await w.get("/workflows")).json
        assert found["mapping"] == {"paint": "comm", "sketch": "comm", "swap": "aua-sp"}
        by_name = {one["name"]: one for one in found["workflows"]}
        assert by_name["paint"] == {"name": "paint", "environment": "comm", "port": 3001, "ready_ports": [3001]}
        assert by_name["swap"] == {"name": "swap", "environment": "aua-sp", "port": 3009, "ready_ports": []}
