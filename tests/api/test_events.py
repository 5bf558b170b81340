"""The event stream: resume, gaps, slow readers, shutdown."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.world import World, world

Frame = tuple[str, str, Any]


async def frames(response: aiohttp.ClientResponse, count: int) -> list[Frame]:
    """The next `count` (id, event, data); pings are passed over."""
    found: list[Frame] = []
    fields: dict[str, str] = {}
    async with asyncio.timeout(15):
        while len(found) < count:
            raw = await response.content.readline()
            assert raw, "the stream ended"
            line = raw.decode().rstrip("\r\n")
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif not line and "data" in fields:
                found.append((fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])))
                fields = {}
    return found


async def note(w: World, *subjects: str) -> None:
    for subject in subjects:
        await w.context.node.append_event("process", subject, {"to": "ready"}, 1_700_000_000.0)


def stream(w: World, query: str = "", **headers: str) -> Any:
    assert w.session is not None
    return w.session.get(f"{w.url}/events{query}", headers=headers)


@pytest.mark.asyncio
async def test_only_new_events_come_by_default(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await note(w, "old")
        async with stream(w) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert response.headers["X-Accel-Buffering"] == "no"
            await note(w, "new")
            seq, kind, data = (await frames(response, 1))[0]
            assert kind == "process"
            assert data["seq"] == int(seq)
            assert data == {
                "seq": int(seq), "at": "2023-11-14T22:13:20.000Z", "type": "process", "subject": "new",
                "data": {"to": "ready"},
            }  # fmt: skip


@pytest.mark.asyncio
async def test_a_task_is_announced(tmp_path: Path) -> None:
    async with world(tmp_path) as w, stream(w) as response:
        task = (await w.post("/tasks/create/paint")).json["taskId"]
        _, _, data = (await frames(response, 1))[0]
        assert (data["subject"], data["data"]["to"]) == (task, "PENDING")


@pytest.mark.asyncio
async def test_a_client_resumes_where_it_left_off(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await note(w, *(f"s{n}" for n in range(10)))
        async with stream(w, "?after=0") as response:
            everything = await frames(response, 10)
        middle = everything[4][0]
        async with stream(w, "?after=0", **{"Last-Event-ID": middle}) as response:
            rest = await frames(response, 5)
        assert rest == everything[5:]
        async with stream(w, f"?after={middle}") as response:
            await note(w, "last")
            assert [f[2]["subject"] for f in await frames(response, 6)] == ["s5", "s6", "s7", "s8", "s9", "last"]


@pytest.mark.asyncio
async def test_what_is_not_kept_any_more_is_a_gap(tmp_path: Path) -> None:
    async with world(tmp_path, event_log_rows=100) as w:
        await note(w, *(f"s{n}" for n in range(400)))
        oldest = (await w.context.node.events(0, 1))[0].seq
        assert oldest > 2
        async with stream(w, "?after=1") as response:
            gap, first = await frames(response, 2)
        assert gap[1:] == ("gap", {"from_seq": 2, "to_seq": oldest - 1})
        assert first[0] == str(oldest)


@pytest.mark.asyncio
async def test_an_id_from_another_log_begins_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await note(w, "a")
        newest = await w.context.node.last_event()
        async with stream(w, **{"Last-Event-ID": "999999"}) as response:
            assert (await frames(response, 1))[0] == (str(newest), "gap", {"from_seq": 0, "to_seq": newest})
            await note(w, "b")
            assert (await frames(response, 1))[0][2]["subject"] == "b"


@pytest.mark.asyncio
async def test_bad_positions(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for value in ("x", "-1", "1" * 40):
            answer = await w.get("/events", headers={"Last-Event-ID": value})
            assert (answer.status, answer.code) == (400, "bad_request")
        for query in ("after=x", "after=-1", "after=1&after=2", "before=1"):
            assert (await w.get(f"/events?{query}")).status in (400, 422)


@pytest.mark.asyncio
async def test_a_reader_that_reads_nothing_delays_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port, limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        async with stream(w) as response:
            big = {"text": "x" * 10_000}
            for _ in range(300):
                await w.context.node.append_event("process", "s", big, 0.0)
            assert len(await frames(response, 300)) == 300
        writer.close()
        await writer.wait_closed()
