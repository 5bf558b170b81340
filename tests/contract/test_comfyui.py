"""What comfyd relies on in ComfyUI, said once and asked of the stand-in and of the real one."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from comfyd.dispatch.comfy import ComfyClient, NotServed, PromptRefused, Sighting, Submitted
from comfyd.dispatch.comfy_history import OutputFile, Verdict, judge
from tests.contract.conftest import Comfy
from tests.fake import eventually
from tests.graphs import EXACT, Graph, blur, fresh, invert, node, pixels, sleep

pytestmark = pytest.mark.asyncio
WAIT_S = 40.0


def new_id() -> str:
    return str(uuid.uuid4())


@asynccontextmanager
async def connected(comfyui: Comfy) -> AsyncIterator[ComfyClient]:
    async with aiohttp.ClientSession() as session:
        yield ComfyClient(session, comfyui.url)


async def ended(client: ComfyClient, prompt_id: str) -> Sighting:
    seen = await client.sight(prompt_id)

    async def look() -> bool:
        nonlocal seen
        seen = await client.sight(prompt_id)
        return seen.state == "ended"

    await eventually(look, WAIT_S, f"end of {prompt_id}")
    return seen


async def run(client: ComfyClient, graph: Graph, client_id: str = "contract") -> Verdict:
    answer = await client.submit(new_id(), graph, client_id)
    seen = await ended(client, answer.prompt_id)
    assert seen.entry is not None
    return judge(seen.entry)


async def fetched(client: ComfyClient, file: OutputFile) -> bytes:
    async with client.view(file) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def slow(client: ComfyClient) -> Graph:
    """Runs for long and can be interrupted at any time, or on a real one without test nodes from time to time."""
    return sleep(20, f"slow-{new_id()[:8]}") if await client.knows("TestSleep") else blur()


async def until_running(client: ComfyClient, prompt_id: str) -> None:
    async def running() -> bool:
        return (await client.sight(prompt_id)).state == "running"

    await eventually(running, WAIT_S, "the prompt runs")


async def test_it_says_what_it_is(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        assert (await client.version()).count(".") == 2
        assert await client.knows("SaveImage")
        assert not await client.knows("NoSuchNodeAnywhere")
        expected = {"fake-legacy": "legacy", "fake-new": "new"}.get(comfyui.kind)
        assert await client.generation() in ({expected} if expected else {"legacy", "new"})


async def test_a_prompt_runs_under_our_id_and_leaves_an_image(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        prompt_id = new_id()
        prefix = f"contract-{prompt_id[:8]}"
        answer = await client.submit(prompt_id, invert(EXACT[0], prefix), "contract")
        assert answer == Submitted(prompt_id)
        seen = await ended(client, prompt_id)
        assert seen.entry is not None
        verdict = judge(seen.entry)
        assert verdict.kind == "success"
        (file,) = verdict.files
        assert file == OutputFile("3", f"{prefix}_00001_.png", "", "output")
        assert pixels(await fetched(client, file)) == (16, 16, {(0xCC, 0x99, 0x00)})


@pytest.mark.parametrize("color", [0x0033CC, 0x414345, 0x102030, 0xFEDCBA])
async def test_inverted_pixels_are_those_of_32_bit_floats(comfyui: Comfy, color: int) -> None:

    def as_f32(value: float) -> float:
        cell = memoryview(bytearray(4)).cast("f")
        cell[0] = value
        return float(cell[0])

    expected = tuple(int(as_f32(255.0 * as_f32(1.0 - as_f32((color >> s & 255) / 255)))) for s in (16, 8, 0))
    async with connected(comfyui) as client:
        verdict = await run(client, invert(color, f"pixels-{new_id()[:8]}"))
        assert pixels(await fetched(client, verdict.files[0]))[2] == {expected}


async def test_every_image_of_a_batch_and_a_sub_folder_is_listed(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        below = f"contract-{new_id()[:8]}"
        graph = invert(EXACT[1], f"{below}/deep/x", batch=2)
        graph["9"] = node("PreviewImage", images=["1", 0])
        verdict = await run(client, graph)
        saved = [f for f in verdict.files if f.type == "output"]
        assert [(f.filename, f.subfolder) for f in saved] == [(f"x_0000{n}_.png", f"{below}/deep") for n in (1, 2)]
        shown = [f for f in verdict.files if f.type == "temp"]
        assert len(shown) == 2
        for file in (*saved, *shown):
            assert (await fetched(client, file)).startswith(b"\x89PNG")


async def test_an_identical_prompt_repeats_the_same_files(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        graph = fresh(f"same-{new_id()[:8]}")
        first, second = await run(client, graph), await run(client, graph)
        assert first.files == second.files != ()


async def test_texts_are_listed(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        if not (await client.knows("StringConcatenate") and await client.knows("PreviewAny")):
            pytest.skip("this ComfyUI has no text nodes")
        graph = {
            "1": node("StringConcatenate", string_a="a", string_b="b", delimiter="-"),
            "2": node("PreviewAny", source=["1", 0]),
        }
        assert (await run(client, graph)).texts == ("a-b",)


async def test_a_missing_input_is_refused_with_the_node(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        graph = {"5": node("SaveImage", filename_prefix="x")}
        with pytest.raises(PromptRefused, match=r"node 5 \(SaveImage\): .*images.*\[required_input_missing\]"):
            await client.submit(new_id(), graph, "contract")


async def test_values_out_of_range_are_refused(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        graph = invert()
        graph["1"]["inputs"] |= {"width": 0, "color": "red"}
        with pytest.raises(PromptRefused) as caught:
            await client.submit(new_id(), graph, "contract")
        assert "[value_smaller_than_min]" in caught.value.message
        assert "[invalid_input_type]" in caught.value.message
        assert not caught.value.retryable


async def test_an_unknown_node_is_refused_by_name(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        with pytest.raises(PromptRefused, match=r"NoSuchNode.*\[(invalid_prompt|missing_node_type)\]") as caught:
            await client.submit(new_id(), {"1": node("NoSuchNode")}, "contract")
        if comfyui.kind == "fake-new":
            assert "[missing_node_type]" in caught.value.message


async def test_a_graph_without_outputs_is_refused(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        with pytest.raises(PromptRefused, match=r"\[prompt_no_outputs\]"):
            await client.submit(new_id(), {"1": invert()["1"]}, "contract")


async def test_an_output_with_errors_beside_a_good_one_is_told(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        graph = fresh() | {"7": node("SaveImage", filename_prefix="x")}
        answer = await client.submit(new_id(), graph, "contract")
        assert "node 7 (SaveImage)" in answer.skipped
        assert (await ended(client, answer.prompt_id)).state == "ended"


async def test_a_node_that_fails_is_an_error_with_its_words(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        verdict = await run(client, fresh("../../outside"))
        assert verdict.kind == "error"
        assert verdict.message.startswith("node 3 (SaveImage): ")
        assert "outside" in verdict.message
        assert not verdict.device


async def test_a_waiting_prompt_is_cancelled_without_a_trace(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        first = await client.submit(new_id(), await slow(client), "contract")
        second = await client.submit(new_id(), fresh(), "contract")
        await until_running(client, first.prompt_id)
        assert (await client.sight(second.prompt_id)).state == "waiting"
        await client.cancel(second.prompt_id)
        assert (await client.sight(second.prompt_id)).state == "unknown"
        assert (await client.sight(first.prompt_id)).state == "running"
        await client.cancel(first.prompt_id)
        assert judge((await ended(client, first.prompt_id)).entry or {}).kind == "interrupted"
        assert await client.history(second.prompt_id) is None


async def test_cancelling_an_unknown_prompt_hurts_nobody(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        running = await client.submit(new_id(), await slow(client), "contract")
        await until_running(client, running.prompt_id)
        await client.cancel(new_id())
        await asyncio.sleep(0.2)  # an interrupt by mistake would show by now
        assert (await client.sight(running.prompt_id)).state == "running"
        await client.cancel(running.prompt_id)
        assert judge((await ended(client, running.prompt_id)).entry or {}).kind == "interrupted"


async def test_a_prompt_is_found_until_it_is_forgotten(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        prompt_id = new_id()
        assert await client.find(prompt_id) is None
        assert (await client.sight(prompt_id)).state == "unknown"
        await client.submit(prompt_id, fresh(), "contract")
        assert await client.find(prompt_id) == prompt_id
        await ended(client, prompt_id)
        await client.forget(prompt_id)
        assert await client.history(prompt_id) is None
        assert await client.find(prompt_id) is None


async def test_a_file_that_is_not_there_is_not_served(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        for name in ("nothing-here.png", "../main.py"):
            with pytest.raises(NotServed):
                await fetched(client, OutputFile("1", name, "", "output"))


async def test_frames_come_in_order_and_history_is_there_at_the_end_marker(comfyui: Comfy) -> None:
    async with connected(comfyui) as client, aiohttp.ClientSession() as session:
        sid = new_id()
        async with session.ws_connect(f"{comfyui.url}/ws", params={"clientId": sid}) as socket:
            first = json.loads((await socket.receive(5)).data)
            assert first["type"] == "status"
            assert first["data"]["sid"] == sid
            assert "queue_remaining" in first["data"]["status"]["exec_info"]
            answer = await client.submit(new_id(), fresh(), sid)
            frames = await frames_of(socket, answer.prompt_id)
            assert await client.history(answer.prompt_id) is not None
    assert frames[:2] == [("execution_start", None), ("execution_cached", None)]
    assert frames[2:5] == [("executing", "1"), ("executing", "2"), ("executing", "3")]
    assert frames[5:] == [("executed", "3"), ("execution_success", None), ("executing", None)]


async def frames_of(socket: aiohttp.ClientWebSocketResponse, prompt_id: str) -> list[tuple[str, Any]]:
    """(type, node) of the prompt's text frames up to its end marker, without the optional ones."""
    found: list[tuple[str, Any]] = []
    while not found or found[-1] != ("executing", None):
        message = await socket.receive(WAIT_S)
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
        frame = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {"type": "preview"}
        if frame["type"] not in ("status", "progress_state", "progress", "preview", "crystools.monitor"):
            assert frame["data"]["prompt_id"] == prompt_id
            found.append((frame["type"], frame["data"].get("node")))
    return found


async def test_progress_goes_only_to_the_client_that_asked(comfyui: Comfy) -> None:
    async with connected(comfyui) as client, aiohttp.ClientSession() as session:
        if not await client.knows("TestSleep"):
            pytest.skip("this ComfyUI has no node that reports progress without a model")
        url = f"{comfyui.url}/ws"
        async with (
            session.ws_connect(url, params={"clientId": "mine"}) as mine,
            session.ws_connect(url, params={"clientId": "other"}) as other,
        ):
            await mine.receive(5)
            answer = await client.submit(new_id(), sleep(0.3, f"progress-{new_id()[:8]}"), "mine")
            progress = []
            while True:
                frame = json.loads((await mine.receive(5)).data)
                if frame["type"] == "progress":
                    progress.append(frame["data"])
                if frame["type"] == "executing" and frame["data"]["node"] is None:
                    break
            values = [p["value"] for p in progress]
            assert values == sorted(values)
            assert len(set(values)) >= 3
            assert {(p["node"], p["prompt_id"], p["value"] <= p["max"]) for p in progress} == {
                ("2", answer.prompt_id, True)
            }
            await other.close()
            heard = [json.loads(m.data)["type"] async for m in other if m.type is aiohttp.WSMsgType.TEXT]
            assert set(heard) <= {"status"}


async def test_an_upload_keeps_names_apart(comfyui: Comfy) -> None:
    async with aiohttp.ClientSession() as session:
        names = []
        stem = new_id()
        for data in (b"one", b"two"):
            form = aiohttp.FormData()
            form.add_field("image", data, filename=f"{stem}.png", content_type="image/png")
            async with session.post(f"{comfyui.url}/upload/image", data=form) as answer:
                names.append((await answer.json())["name"])
        assert names == [f"{stem}.png", f"{stem} (1).png"]
        client = ComfyClient(session, comfyui.url)
        assert await fetched(client, OutputFile("", names[1], "", "input")) == b"two"


async def test_a_page_of_another_origin_is_refused(comfyui: Comfy) -> None:
    async with aiohttp.ClientSession() as session:
        for origin, status in (("https://evil.example", 403), (comfyui.url, 200)):
            async with session.get(f"{comfyui.url}/prompt", headers={"Origin": origin}) as answer:
                assert answer.status == status


async def test_the_newer_contract_insists_on_uuids(comfyui: Comfy) -> None:
    async with connected(comfyui) as client:
        if await client.generation() == "legacy":
            assert (await client.submit(f"any-{new_id()}", fresh(), "contract")).prompt_id.startswith("any-")
        else:
            with pytest.raises(PromptRefused, match=r"\[invalid_prompt_id\]"):
                await client.submit("any-text", fresh(), "contract")
