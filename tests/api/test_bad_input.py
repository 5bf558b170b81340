"""Bodies that must be refused with 4xx, never 5xx, and change nothing."""

import asyncio
import gzip
import io
import json
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from comfyd.api.graphs import MAX_NODES
from comfyd.api.strictjson import MAX_DEPTH, decode, decode_prefix
from comfyd.errors import ComfydError
from tests.api.world import GRAPH, JSON, Answer, World, world

BODIES = {
    "empty object cut": b"{",
    "text": b"hello",
    "nothing after comma": b'{"a": 1,}',
    "two values": b"{} {}",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "too deep": b'{"params":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    "many digits": b'{"priority": ' + b"9" * 10_000 + b"}",
    "NaN": b'{"params": {"a": NaN}}',
    "Infinity": b'{"params": {"a": -Infinity}}',
    "1e999": b'{"params": {"a": 1e999}}',
    "surrogate": b'{"params": {"a": "\\ud800"}}',
    "surrogate key": b'{"params": {"\\udc00": 1}}',
    "NUL": b'{"params": {"a": "x\\u0000y"}}',
    "NUL key": b'{"params": {"\\u0000": 1}}',
    "raw NUL": b'{"params": {"a": "x\0y"}}',
    "bad UTF-8": b'{"params": {"a": "\xff"}}',
    "raw surrogate": b'{"params": {"a": "\xed\xa0\x80"}}',
    "UTF-16": '{"params": {}}'.encode("utf-16"),
    "duplicate key": b'{"params": {}, "params": {"a": 1}}',
    "duplicate deep": b'{"params": {"a": {"x": 1, "x": 2}}}',
    "control": b'{"params": {"a": "x\x01y"}}',
    "array": b"[]",
    "number": b"1",
    "null": b"null",
    "string": b'"x"',
}
ROUTES = (
    ("POST", "/tasks/create/paint"),
    ("POST", "/tasks/create"),
    ("POST", "/comfyui-update-task"),
    ("POST", "/api/comm/task/update"),
    ("POST", "/api/comfyui/start-single"),
    ("POST", "/api/comfyui/start-instances"),
    ("PUT", "/api/comfyui/overrides/0"),
)


TOO_MANY = {
    "a million keys": b'{"params": {' + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}}",
    "a million items": b'{"params": {"a": [' + b"1," * 1_000_000 + b"1]}}",
}


async def nothing_happened(w: World) -> None:
    assert (await w.get("/tasks")).json["tasks"] == []
    assert await w.context.node.overrides() == ()


@pytest.mark.asyncio
async def test_every_body_is_refused_by_every_route(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for method, path in ROUTES:
            for name, body in BODIES.items():
                answer = await w.call(method, path, data=body, headers=JSON)
                assert answer.status in (400, 422), (path, name, answer.status)
                assert answer.code in ("invalid_json", "validation_failed")
                assert b"Traceback" not in answer.body
                assert b".py" not in answer.body
                assert len(answer.body) < 4000
        for name, body in BODIES.items():
            answer = await w.post("/api/comfyui/plan", data=body, headers=JSON)
            assert answer.status in (400, 422), name
        await nothing_happened(w)


@pytest.mark.asyncio
async def test_wrong_content_types_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"):
            for method, path in (*ROUTES, ("POST", "/api/comfyui/stop-all"), ("POST", "/environments/comm/install")):
                answer = await w.call(method, path, data=b"{}", headers={"Content-Type": kind})
                assert (answer.status, answer.code) == (415, "unsupported_media_type"), (path, kind)
        packed = {**JSON, "Content-Encoding": "gzip"}
        answer = await w.post("/tasks/create/paint", data=gzip.compress(b"{}"), headers=packed)
        assert answer.code == "unsupported_media_type"
        await nothing_happened(w)


@pytest.mark.asyncio
async def test_an_empty_post_needs_no_content_type(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path in (
            "/api/comfyui/stop-all",
            "/api/comfyui/reload",
            "/tasks/create/paint",
            "/environments/comm/install",
        ):
            raw = await raw_call(w, f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n")
            assert raw.status in (200, 202), (path, raw.body)
            raw = await raw_call(w, f"POST {path} HTTP/1.1\r\nHost: localhost\r\n")
            assert raw.status in (200, 202), (path, raw.body)
        assert (await raw_call(w, "POST /tasks/create HTTP/1.1\r\nHost: localhost\r\n")).code == "bad_request"


async def raw_call(w: World, head: str, body: bytes = b"") -> Answer:
    """One request as written, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
    try:
        writer.write(head.encode("latin-1") + b"Connection: close\r\n\r\n" + body)
        data = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()
    top, _, rest = data.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return Answer(int(lines[0].split()[1]), headers, rest)


@pytest.mark.asyncio
async def test_a_large_body_is_refused_by_its_length_before_it_is_read(tmp_path: Path) -> None:
    async with world(tmp_path, max_body_mb=1) as w:
        head = "POST /tasks/create/paint HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        answer = await raw_call(w, head + "Content-Length: 100000000\r\n")
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert answer.json["error"]["details"] == {"limit_bytes": 1024 * 1024}
        answer = await raw_call(w, head + "Content-Length: 100000000\r\nExpect: 100-continue\r\n")
        assert answer.status == 413


@pytest.mark.asyncio
async def test_a_large_body_is_refused_while_it_streams(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1024 * 1024
            yield b" " * 1024 * 1024

    async with world(tmp_path, max_body_mb=1) as w:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in ("/tasks/create/paint", "/api/comfyui/stop-all"):
            sent = 0
            try:
                answer = await w.post(path, data=endless(), headers=JSON)
                assert (answer.status, answer.code) == (413, "payload_too_large")
            except (ConnectionError, OSError):
                pass
            assert sent < 200 * 1024 * 1024
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024
        assert (await w.get("/health")).status == 200
        await nothing_happened(w)


@pytest.mark.asyncio
async def test_a_body_within_the_limit_passes(tmp_path: Path) -> None:
    async with world(tmp_path, max_body_mb=3) as w:
        graph = {**GRAPH, "2": {"class_type": "Text", "inputs": {"text": "x" * 2_000_000}}}
        data = json.dumps({"wf_json": graph})
        answer = await w.post("/tasks/create/paint", data=io.BytesIO(data.encode()), headers=JSON, expect100=True)
        assert answer.status == 200
        assert answer.json["task"]["params"]["input_data"]["wf_json"] == graph


@pytest.mark.asyncio
async def test_broken_http_is_answered_in_our_shape(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for head in (
            "GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n",
            "NONSENSE\r\n",
            "GET  HTTP/1.1\r\nHost localhost\r\n",
        ):
            answer = await raw_call(w, head)
            assert (answer.status, answer.code) == (400, "bad_request"), head
            assert b"Error" not in answer.body


@pytest.mark.parametrize("name", sorted(set(BODIES) - {"array", "number", "null", "string"}))
def test_the_decoder_alone(name: str) -> None:
    with pytest.raises(ComfydError) as caught:
        decode(BODIES[name])
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    "value",
    [
        {"a": "\\ud83d\\ude00 is not an escape"}, {"emoji": "😀", "n": [1, 2.5, -3, None, True]}, [], "x",
        {"deep": json.loads("[" * 60 + "]" * 60)},
    ],
)  # fmt: skip
def test_good_values_come_through(value: Any) -> None:
    assert decode(json.dumps(value).encode()) == value
    assert decode(json.dumps(value, ensure_ascii=False).encode("utf-8-sig")) == value
    assert decode_prefix(json.dumps(value).encode() + b" tail ") == (value, "tail")


@pytest.mark.asyncio
@pytest.mark.parametrize("body", TOO_MANY.values(), ids=list(TOO_MANY))
async def test_more_values_than_any_workflow_has_are_refused_unread(tmp_path: Path, body: bytes) -> None:
    async with world(tmp_path, max_body_mb=20) as w:
        answer = await w.call("POST", "/tasks/create/paint", data=io.BytesIO(body), headers=JSON)
        assert (answer.status, answer.code) == (413, "payload_too_large")
        await nothing_happened(w)


def test_a_graph_of_as_many_nodes_as_are_allowed_is_read() -> None:
    inputs = {"model": ["1", 0], "clip": ["2", 1], "seed": 1, "steps": 20, "cfg": 8.0, "sampler_name": "euler"}
    graph = {str(n): {"class_type": "KSampler", "inputs": inputs} for n in range(MAX_NODES)}
    assert decode(json.dumps(graph).encode()) == graph
