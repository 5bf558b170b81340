"""Who may come in: Host, Origin and Sec-Fetch-Site, with requests as a hostile page would send them."""

import socket
from pathlib import Path

import pytest

from comfyd.api.gate import host_is_known, known_hosts
from comfyd.settings import Settings
from tests.api.test_bad_input import raw_call
from tests.api.world import world

KNOWN = known_hosts(Settings().model_copy(update={"allowed_hosts": "gpu.example.org, Box.Local"}))
GOOD = (
    "localhost", "localhost:8001", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8001", "[::1]", "[::1]:8001", "10.1.2.3:8001",
    "gpu.example.org", "gpu.example.org:443", "box.local", socket.gethostname(), "localhost.",
)  # fmt: skip
BAD = (
    "", "evil.example", "evil.example:8001", "127.evil.example", "127.0.0.1.evil.example", "localhost.evil.example",
    "evil.example#localhost", "evil.example@localhost", "localhost@evil.example", "localhost/evil", "localhost:",
    "localhost:x", "[::1", "::1]", "127.0.0.1:99999", "2130706433", "0x7f000001", "127.1", "localhost\\evil", "a b",
    "sub.gpu.example.org",
)  # fmt: skip


@pytest.mark.parametrize("host", GOOD)
def test_known_hosts(host: str) -> None:
    assert host_is_known(host, KNOWN)


@pytest.mark.parametrize("host", BAD)
def test_unknown_hosts(host: str) -> None:
    assert not host_is_known(host, KNOWN)


def test_the_ends_of_a_known_name_are_not_enough() -> None:
    assert not host_is_known("xlocalhost", KNOWN)
    assert not host_is_known("localhostx", KNOWN)


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["evil.example", "127.evil.example:8001", "127.0.0.1.nip.io", "a@localhost"])
async def test_a_rebound_host_is_refused_everywhere_but_on_health(tmp_path: Path, host: str) -> None:
    async with world(tmp_path) as w:
        for line in ("GET /tasks", "GET /", "POST /api/comfyui/stop-all", "GET /nope", "GET /metrics", "DELETE /tasks"):
            answer = await raw_call(w, f"{line} HTTP/1.1\r\nHost: {host}\r\n")
            assert (answer.status, answer.code) == (403, "forbidden_host"), line
        for path in ("/health", "/healthz", "/ready"):
            assert (await raw_call(w, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n")).status == 200
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_a_request_without_host_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await raw_call(w, "GET /tasks HTTP/1.0\r\n")
        assert answer.status in (400, 403)
        assert answer.code in ("bad_request", "forbidden_host")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "http://localhost", "http://localhost:3001", "https://127.0.0.1", "x", ""]
)
async def test_a_foreign_origin_is_refused_for_every_method(tmp_path: Path, origin: str) -> None:
    async with world(tmp_path) as w:
        for line in ("GET /tasks", "POST /api/comfyui/stop-all", "DELETE /api/tasks/clear", "OPTIONS /tasks"):
            head = f"{line} HTTP/1.1\r\nHost: localhost:{w.port}\r\nOrigin: {origin}\r\n"
            answer = await raw_call(w, head)
            assert (answer.status, answer.code) == (403, "forbidden_origin"), line
        upgrade = f"GET /events HTTP/1.1\r\nHost: localhost:{w.port}\r\nOrigin: {origin}\r\nUpgrade: websocket\r\n"
        assert (await raw_call(w, upgrade)).status in (400, 403)
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_the_own_origin_is_accepted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for host in (f"localhost:{w.port}", f"127.0.0.1:{w.port}"):
            head = f"GET /tasks HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n"
            assert (await raw_call(w, head)).status == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
async def test_requests_that_a_browser_marks_as_foreign(tmp_path: Path, site: str) -> None:
    async with world(tmp_path) as w:
        await w.post("/tasks/create/paint")
        for line in ("POST /api/comfyui/stop-all", "POST /tasks/create/paint", "GET /comfyui-fetch-task",
                     "GET /api/comm/task/fetch", "GET /tasks"):  # fmt: skip
            for mode in ("no-cors", "navigate"):
                head = f"{line} HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\n"
                answer = await raw_call(w, head)
                if (line, mode) == ("GET /tasks", "navigate"):
                    assert answer.status == 200
                else:
                    assert (answer.status, answer.code) == (403, "forbidden_origin"), (line, mode)
        assert (await w.get("/tasks")).json["queue_length"] == 1
        assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_what_a_person_types_is_accepted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for site in ("none", "same-origin"):
            head = f"POST /tasks/create/paint HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: {site}\r\n"
            assert (await raw_call(w, head)).status == 200
