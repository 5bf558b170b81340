"""Where an instance is reached, where it writes, and what is heard of its prompts."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from comfyd.dispatch.comfy import ComfyClient
from comfyd.dispatch.comfy_socket import Listener
from comfyd.dispatch.link import base_url, output_roots, progress_of
from comfyd.model.paths import Paths
from comfyd.model.process import DesiredProcess, ProcessSpec
from tests.dispatch.rig import PACE, Fakes
from tests.fake import Fake, eventually
from tests.graphs import fresh, sleep


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9"),
        ("0.0.0.0", "http://127.0.0.1:9"),
        ("0.0.0.0,::", "http://127.0.0.1:9"),
        ("::", "http://[::1]:9"),
        ("10.0.0.5", "http://10.0.0.5:9"),
        ("", "http://127.0.0.1:9"),
    ],
)
def test_where_it_is_reached(listen: str, url: str) -> None:
    assert base_url(listen, 9) == url


def wanted(*argv: str, trailing: tuple[str, ...] = (), output: str = "") -> DesiredProcess:
    spec = ProcessSpec(key="comfyui/0", argv=("python", *argv), trailing_argv=trailing, cwd="/", log="/log")
    return DesiredProcess(key="comfyui/0", spec=spec, fingerprint="f", run=True, environment="comm", output=output)


def test_where_it_writes() -> None:
    paths = Paths.under(Path("/r"))
    data = Path("/r/workspace/data/comm")
    assert output_roots(wanted(), paths) == {"output": data / "output"}
    assert output_roots(wanted(output="1"), paths) == {"output": data / "output/1"}
    own = wanted("--output-directory", f"{data}/output/7", "--temp-directory", f"{data}/instances/7")
    assert output_roots(own, paths) == {"output": data / "output/7", "temp": data / "instances/7/temp"}


def test_folders_that_an_operator_moved_elsewhere_are_not_read() -> None:
    paths = Paths.under(Path("/r"))
    moved = wanted(
        "--output-directory",
        "/r/workspace/data/comm/output",
        trailing=("--output-directory=/mnt", "--temp-directory", "/tmp"),
    )
    assert output_roots(moved, paths) == {}
    assert output_roots(wanted("--output-directory=/r/workspace/data/../../.."), paths) == {}


def state(value: Any, state: str = "running") -> dict[str, Any]:
    return {"value": value, "max": 2.0, "state": state}


@pytest.mark.parametrize(
    ("event", "data", "shown"),
    [
        ("executing", {"node": "3"}, (0, 1, "3")),
        ("progress", {"node": "3", "value": 1, "max": 20}, (1, 20, "3")),
        ("progress_state", {"nodes": {"1": state(2.0, "finished"), "2": state(0.5)}}, (0.5, 2.0, "2")),
        ("progress_state", {"nodes": {"1": state(0.5), "2": state(1.0), "3": state(2.0, "error")}}, (1.0, 2.0, "2")),
        ("progress_state", {"nodes": {"1": state(2.0, "finished")}}, None),
        ("progress_state", {"nodes": {}}, None),
        ("progress_state", {"nodes": [1]}, None),
        ("progress_state", {"nodes": {"1": 7}}, None),
        ("progress_state", {}, None),
        ("progress", {"node": "3", "value": float("nan"), "max": 1}, None),
        ("progress", {"node": "3", "value": 1, "max": float("inf")}, None),
        ("progress", {"node": "3", "value": "1", "max": 2}, None),
        ("executed", {"node": "3", "value": 1, "max": 2}, None),
    ],
)
def test_what_an_event_says_of_progress(event: str, data: dict[str, Any], shown: Any) -> None:
    assert progress_of(event, data) == shown


class Ear:
    """What a listener hands on."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        self.heard.append((event, data.get("node")))

    def ends(self) -> int:
        return self.heard.count(("executing", None))


async def submit(session: aiohttp.ClientSession, one: Fake, listener: Listener, graph: Any) -> None:
    await ComfyClient(session, one.url, PACE).submit(str(uuid.uuid4()), graph, listener.client_id)


@pytest.mark.asyncio
async def test_a_cut_websocket_is_opened_again(fakes: Fakes) -> None:
    one, ear = fakes(DROP_WS="3"), Ear()
    async with aiohttp.ClientSession() as session, anyio.create_task_group() as group:
        listener = Listener(session, one.url, "me", ear, PACE)
        group.start_soon(listener.run)
        listener.want(True)
        for count in (2, 3):
            await eventually(lambda: listener.connected.is_set())
            await submit(session, one, listener, fresh())
            await eventually(lambda count=count: listener.connections >= count)  # type: ignore[misc]
        group.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_a_deaf_websocket_is_replaced_while_a_prompt_is_open(fakes: Fakes) -> None:
    one, ear = fakes(), Ear()
    async with aiohttp.ClientSession() as session, anyio.create_task_group() as group:
        listener = Listener(session, one.url, "me", ear, PACE)
        group.start_soon(listener.run)
        listener.want(True)
        await eventually(lambda: listener.connected.is_set())
        # An older socket of the same id that is cleaned up later: ComfyUI forgets ours with it.
        async with session.ws_connect(f"{one.url}/ws", params={"clientId": "me"}):
            pass
        await submit(session, one, listener, sleep(3))
        await eventually(lambda: any(event == "progress" for event, _ in ear.heard), 3, "events on a new socket")
        assert listener.connections >= 2
        group.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_silence_is_no_reason_while_nothing_is_open(fakes: Fakes) -> None:
    one, ear = fakes(), Ear()
    async with aiohttp.ClientSession() as session, anyio.create_task_group() as group:
        listener = Listener(session, one.url, "me", ear, PACE)
        group.start_soon(listener.run)
        await anyio.sleep(0.2)
        assert listener.connections == 0
        listener.want(True)
        await eventually(lambda: listener.connected.is_set())
        listener.want(False)
        await anyio.sleep(2 * PACE.quiet_s)
        assert listener.connections == 1
        listener.want(True)
        await submit(session, one, listener, fresh())
        await eventually(lambda: ear.ends() == 1)
        assert listener.connections == 1
        group.cancel_scope.cancel()
