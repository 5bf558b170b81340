"""start-single and start-instances: the shapes that older clients rely on, and what is written for them."""

import asyncio
from pathlib import Path

import pytest

from comfyd.host.clock import container_id
from comfyd.model.desired import Want
from comfyd.model.observed import Phase
from tests.api.world import JSON, MAIN, SPARE, World, world

SINGLE = "/api/comfyui/start-single"
MANY = "/api/comfyui/start-instances"


async def stored(w: World, kind: str, key: str) -> object:
    return next((o for o in await w.context.node.overrides() if (o.kind, o.key) == (kind, key)), None)


@pytest.mark.asyncio
async def test_a_disabled_instance_of_the_file_is_started(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(SINGLE, {**SPARE, "enabled": False})
        assert answer.status == 200
        assert answer.json["status"] == "success"
        assert answer.json["message"] == "Instance 'spare' started on port 3002"
        assert answer.json["instance"]["state"] == "ready"
        assert isinstance(answer.json["output"], str)
        assert w.phase("comfyui/1") is Phase.READY
        assert await stored(w, "spec", "comfyui/1") is None
        run = await stored(w, "run", "comfyui/1")
        assert run.want is Want.UP
        assert run.scope is None


@pytest.mark.asyncio
async def test_only_given_fields_that_differ_are_overridden(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        first = w.processes["comfyui/0"].generation
        answer = await w.post(SINGLE, {**MAIN, "port": 3005, "description": "moved"})
        assert answer.json["message"] == "Instance 'main' started on port 3005"
        assert (await stored(w, "spec", "comfyui/0")).fields == {"port": 3005, "description": "moved"}
        assert w.processes["comfyui/0"].generation != first
        assert w.processes["comfyui/0"].port == 3005
        back = await w.post(SINGLE, MAIN)
        assert back.json["message"] == "Instance 'main' started on port 3001"
        assert await stored(w, "spec", "comfyui/0") is None


@pytest.mark.asyncio
async def test_already_running_as_asked_is_started_and_nothing_moves(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        before = w.processes["comfyui/0"]
        answer = await w.post(SINGLE, {"id": 0, "port": 3001, "name": "main", "extra_args": ["--lowvram"]})
        assert answer.json["message"] == "Instance 'main' started on port 3001"
        assert w.processes["comfyui/0"] == before


@pytest.mark.asyncio
async def test_an_undeclared_id_lives_in_its_override(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(
            SINGLE, {"id": 7, "port": 3007, "name": "extra", "extra_args": "--cpu '--x y'", "enabled": False}
        )
        assert answer.status == 200, answer.body
        assert answer.json["instance"]["origin"] == "override"
        spec = await stored(w, "spec", "comfyui/7")
        assert spec.fields == {
            "id": 7, "port": 3007, "name": "extra", "extra_args": ["--cpu", "--x y"], "environment": "comm",
        }  # fmt: skip


@pytest.mark.asyncio
async def test_the_environment_of_the_query_is_used_if_the_body_names_none(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.prepared.add("aua-sp")
        first = await w.post(f"{SINGLE}?environment=aua-sp", {"id": 7, "port": 3007, "name": "a"})
        assert first.json["instance"]["environment"] == "aua-sp"
        second = await w.post(
            f"{SINGLE}?environment=aua-sp", {"id": 8, "port": 3008, "name": "b", "environment": "comm"}
        )
        assert second.json["instance"]["environment"] == "comm"


@pytest.mark.asyncio
async def test_json_with_the_tail_that_curl_adds(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.prepared.add("aua-sp")
        body = b'{"id": 7, "port": 3007, "name": "a"}&environment=aua-sp'
        answer = await w.post(SINGLE, data=body, headers=JSON)
        assert answer.json["instance"]["environment"] == "aua-sp"
        for bad in (b"&other=1", b"&environment=comm&x=1", b" x", b"&environment=comm&environment=comm"):
            refused = await w.post(SINGLE, data=b'{"id": 7, "port": 3007, "name": "a"}' + bad, headers=JSON)
            assert (refused.status, refused.code) == (400, "invalid_json")


@pytest.mark.asyncio
async def test_a_crashing_instance_fails_with_its_reason_and_is_retried_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.crashing = {"comfyui/1"}
        answer = await w.post(SINGLE, SPARE)
        assert (answer.status, answer.code) == (500, "start_failed")
        assert answer.json["detail"].startswith("Failed to start instance: ")
        assert "exit code 1" in answer.json["detail"]
        w.crashing = set()
        again = await w.post(SINGLE, SPARE)
        assert again.json["message"] == "Instance 'spare' started on port 3002"
        assert (await stored(w, "restart", "comfyui/1")).token


@pytest.mark.asyncio
async def test_a_missing_environment_answers_installing_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        entry = {"id": 7, "port": 3007, "name": "swapper", "environment": "aua-sp"}
        answer = await w.post(SINGLE, entry)
        assert answer.status == 200
        assert answer.json["message"] == "Instance 'swapper' is installing"
        assert answer.json["instance"]["state"] == "waiting_env"


@pytest.mark.asyncio
async def test_an_unknown_environment_fails(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(SINGLE, {"id": 7, "port": 3007, "name": "x", "environment": "nope"})
        assert answer.code == "start_failed"
        assert "nope" in answer.json["detail"]


@pytest.mark.asyncio
async def test_the_wait_ends_with_starting(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.stuck = {"comfyui/1"}
        answer = await w.post(f"{SINGLE}?wait=0.2", SPARE)
        assert answer.status == 200
        assert answer.json["message"] == "Instance 'spare' is starting"


@pytest.mark.asyncio
async def test_without_control_the_wait_ends_too(tmp_path: Path) -> None:
    async with world(tmp_path, control=False) as w:
        await w.reconcile_once()
        answer = await w.post(f"{SINGLE}?wait=0", SPARE)
        assert answer.json["message"] == "Instance 'spare' is starting"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"id": 7, "port": 3001, "name": "other"}, "port 3001"),
        ({"id": 7, "port": 3007, "name": "main"}, "name 'main'"),
    ],
)
async def test_a_port_or_name_of_a_running_instance_is_refused(tmp_path: Path, entry: dict, word: str) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(SINGLE, entry)
        assert answer.code == "start_failed"
        assert word in answer.json["detail"]
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_a_port_and_name_of_a_stopped_instance_are_free(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(SINGLE, {"id": 7, "port": 3002, "name": "spare"})
        assert answer.json["message"] == "Instance 'spare' started on port 3002"


@pytest.mark.asyncio
async def test_without_autolaunch_a_start_ends_with_the_container(tmp_path: Path) -> None:
    async with world(tmp_path, disable_autolaunch=True) as w:
        assert w.phase("comfyui/0") is None
        assert (await w.post(SINGLE, MAIN)).status == 200
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        assert (await w.post(SINGLE, MAIN)).json["message"] == "Instance 'main' started on port 3001"
        assert (await stored(w, "run", "comfyui/0")).scope == container_id()


@pytest.mark.asyncio
async def test_unknown_keys_are_ignored_with_a_warning(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(SINGLE, {**SPARE, "colour": "red", "gpus": None})
        assert answer.status == 200
        assert any("colour" in text for text in answer.json["warnings"])


@pytest.mark.asyncio
async def test_many_run_in_parallel_and_are_reported_one_by_one(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.crashing, w.stuck = {"comfyui/3"}, {"comfyui/4"}
        entries = [
            MAIN, {**SPARE, "enabled": True}, {"id": 2, "port": 3008, "name": "off", "enabled": False},
            {"id": 3, "port": 3003, "name": "crash"}, {"id": 4, "port": 3004, "name": "slow"},
            {"id": 5, "port": 3001, "name": "twin"},
            {"id": 6, "port": 3006, "name": "fresh", "environment": "aua-sp"},
        ]  # fmt: skip
        answer = await w.post(f"{MANY}?wait=1", {"environment": "comm", "instances": entries})
        assert answer.status == 200
        found = answer.json
        assert found["status"] == "completed"
        assert found["environment"] == "comm"
        assert {r["instance_id"]: r["status"] for r in found["results"]} == {
            0: "started", 1: "started", 3: "failed", 4: "timeout", 5: "failed", 6: "installing",
        }  # fmt: skip
        assert found["message"] == "Instances started"
        assert (found["total_instances"], found["started_instances"], found["instances_count"]) == (7, 2, 7)
        assert isinstance(found["output"], str)
        first = found["results"][0]
        assert (first["name"], first["port"], first["error"]) == ("main", 3001, None)
        assert found["results"][2]["error"]


@pytest.mark.asyncio
async def test_two_may_swap_their_ports(tmp_path: Path) -> None:
    async with world(tmp_path, MAIN, {**SPARE, "enabled": True}) as w:
        await w.settle(lambda: w.phase("comfyui/1") is Phase.READY)
        entries = [{**MAIN, "port": 3002}, {"id": 1, "port": 3001, "name": "spare"}]
        answer = await w.post(MANY, {"instances": entries})
        assert [r["status"] for r in answer.json["results"]] == ["started", "started"]
        assert (w.processes["comfyui/0"].port, w.processes["comfyui/1"].port) == (3002, 3001)


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [{"instances": {}}, {"instances": None}, {"instances": "x"}, {}])
async def test_instances_that_are_no_list(tmp_path: Path, body: dict) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(MANY, body)
        assert answer.status == 400
        assert answer.code == "bad_request"
        assert answer.json["detail"] == "Invalid instances array"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"port": 3005, "name": "x"}, "/instances/0/id"),
        ({"id": True, "port": 3005, "name": "x"}, "/instances/0/id"),
        ({"id": "1", "port": 3005, "name": "x"}, "/instances/0/id"),
        ({"id": -1, "port": 3005, "name": "x"}, "/instances/0/id"),
        ({"id": 9, "port": 70000, "name": "x"}, "/instances/0/port"),
        ({"id": 9, "port": 3005, "name": "a/b"}, "/instances/0/name"),
        ({"id": 9, "port": 3005, "name": "../../etc"}, "/instances/0/name"),
        ({"id": 9, "port": 3005, "name": "a\nb"}, "/instances/0/name"),
        ({"id": 9, "port": 3005, "name": "all"}, "/instances/0/name"),
        ({"id": 9, "port": 3005, "name": "x", "extra_args": "'open"}, "/instances/0/extra_args"),
        ({"id": 9, "port": 3005, "name": "x", "extra_args": "--base-directory /"}, "/instances/0/extra_args"),
        ({"id": 9, "port": 3005, "name": "x", "environment": "../x"}, "/instances/0/environment"),
        ({"id": 9, "port": 3005, "name": "x", "stop_grace_s": -1}, "/instances/0/stop_grace_s"),
        ("text", "/instances/0"),
    ],
)
async def test_a_bad_entry_refuses_the_whole_call(tmp_path: Path, entry: object, path: str) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(MANY, {"instances": [entry]})
        assert answer.status == 422
        assert answer.code == "validation_failed"
        assert path in [one["path"] for one in answer.json["error"]["details"]["errors"]]
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_shell_characters_stay_plain_arguments(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        words = "--a $(touch /tmp/x) '; rm -rf' `id`"
        await w.post(SINGLE, {**SPARE, "extra_args": words})
        process = w.live.resolved.get().process("comfyui/1")
        assert process.instance.extra_args == ("--a", "$(touch", "/tmp/x)", "; rm -rf", "`id`")


@pytest.mark.asyncio
async def test_concurrent_starts_of_one_instance_agree(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answers = await asyncio.gather(*(w.post(SINGLE, SPARE) for _ in range(5)))
        assert {a.json["message"] for a in answers} == {"Instance 'spare' started on port 3002"}
