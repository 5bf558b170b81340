"""Sockets: the unix socket and its mode, long paths, stale files, a port in use, the connection cap, slow clients."""

import asyncio
import contextlib
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from comfyd.api import listen
from comfyd.api.app import serve
from comfyd.errors import ComfydError
from tests.api.world import world


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def status_over(path: Path) -> int:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://comfyd/tasks") as response,
    ):
        return response.status


@pytest.mark.asyncio
async def test_the_unix_socket_is_private_and_needs_no_known_host(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        path = w.context.paths.socket
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert await status_over(path) == 200
    assert not path.exists()


@pytest.mark.asyncio
async def test_a_path_too_long_for_a_socket_address(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 30)
    root.mkdir()
    async with world(root) as w:
        path = w.context.paths.socket
        assert len(str(path)) > 108
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (tmp_path / "d").symlink_to(path.parent)
        assert await status_over(tmp_path / "d" / path.name) == 200
    assert not path.exists()


@pytest.mark.asyncio
async def test_sockets(tmp_path: Path) -> None:
    """A stale one is replaced, a live one is not. (The short name keeps the path below 108 bytes.)"""
    async with world(tmp_path) as w:
        second = replace(w.context)
        with pytest.raises(ComfydError, match="another daemon answers"):
            async with serve(second):
                pytest.fail("it must not serve")
        assert await status_over(w.context.paths.socket) == 200
        context = w.context
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(context.paths.socket))
    dead.close()
    async with serve(context):
        assert stat.S_ISSOCK(context.paths.socket.stat().st_mode)


@pytest.mark.asyncio
async def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        context = w.context
    context.paths.socket.write_text("mine")
    with pytest.raises(ComfydError, match="not a socket"):
        async with serve(context):
            pytest.fail("it must not serve")
    assert context.paths.socket.read_text() == "mine"


@pytest.mark.asyncio
async def test_a_port_in_use_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with world(tmp_path) as w:
            context = replace(w.context, settings=w.context.settings.model_copy(update={"port": port}))
        with pytest.raises(ComfydError, match=f"port {port} .*COMFYD_PORT"):
            async with serve(context):
                pytest.fail("it must not serve")


@pytest.mark.asyncio
async def test_connections_over_the_cap_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_CONNECTIONS", 3)
    async with world(tmp_path) as w:
        streams = [await asyncio.open_connection("127.0.0.1", w.port) for _ in range(3)]
        for reader, writer in streams:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in await reader.readline()
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        refused = await asyncio.wait_for(reader.read(), 5)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"too many connections" in refused
        for _, open_writer in (*streams, (reader, writer)):
            await closed(open_writer)
        async with asyncio.timeout(5):
            while (await w.get("/health")).status != 200:
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_client_that_never_finishes_its_first_request_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "FIRST_REQUEST_S", 0.2)
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: loc")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        await closed(writer)
        kept, served = await asyncio.open_connection("127.0.0.1", w.port)
        served.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await kept.readline()
        while (await kept.readline()).strip():
            pass
        assert b"healthy" in await kept.read(1000)
        await asyncio.sleep(0.3)  # longer than the deadline of a first request
        served.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await kept.readline()
        await closed(served)


@pytest.mark.asyncio
async def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyd.api.operation.BODY_DEADLINE_S", 0.2)
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        writer.write(b"POST /tasks/create/paint HTTP/1.1\r\nHost: x.localhost\r\n".replace(b"x.", b""))
        writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer
        await closed(writer)


def test_importing_the_api_loads_nothing_heavy() -> None:
    heavy = ("rich", "typer", "stamina", "psutil", "prometheus_client", "aiohttp_sse")
    code = f"import sys, comfyd.api.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
