"""Result files: linked, copied or fetched, and never from outside of their folder."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyd.dispatch.comfy import ComfyClient, NotServed, Unanswered
from comfyd.dispatch.comfy_history import OutputFile
from comfyd.dispatch.outputs import checked_parts, link_below, store_outputs, stored_name
from tests.dispatch.rig import PACE, Fakes
from tests.ports import free_port

SECRET = b"not for you"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a.png").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "stored").mkdir()
    return folder


def test_a_file_is_linked_and_nothing_is_left_beside_it(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "stored/0-a.png"
    for _ in range(2):  # a second attempt of a task replaces what the first one left
        assert link_below(root, ("sub", "a.png"), target)
        assert target.samefile(root / "sub/a.png")
        assert [p.name for p in target.parent.iterdir()] == ["0-a.png"]
    assert (root / "sub/a.png").stat().st_nlink == 2


def test_another_file_of_that_name_is_replaced(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "stored/0-a.png"
    target.write_bytes(b"older")
    assert link_below(root, ("sub", "a.png"), target)
    assert target.read_bytes() == b"picture"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_are_not_possible_it_is_copied(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "stored/0-a.png"
    assert link_below(root, ("sub", "a.png"), target)
    assert target.read_bytes() == b"picture"
    assert not target.samefile(root / "sub/a.png")
    assert [p.name for p in target.parent.iterdir()] == ["0-a.png"]


def test_no_link_is_followed_below_the_root(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    target = tmp_path / "stored/x"
    for parts in (("link",), ("folder", "secret"), ("sub",), ("fifo",), ("missing",), ("sub", "a.png", "b")):
        assert not link_below(root, parts, target), parts
    assert list(target.parent.iterdir()) == []


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    assert link_below(tmp_path / "alias", ("sub", "a.png"), tmp_path / "stored/x")


@pytest.mark.parametrize(
    ("filename", "subfolder", "kind"),
    [
        ("../secret", "", "output"),
        ("..", "", "output"),
        ("a/b", "", "output"),
        ("a\\b", "", "output"),
        ("a\0b", "", "output"),
        ("a\nb", "", "output"),
        ("a.png", "..", "output"),
        ("a.png", "sub/../..", "output"),
        ("a.png", "/etc", "output"),
        ("a.png", "./sub", "output"),
        ("a.png", "", "models"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(filename: str, subfolder: str, kind: str) -> None:
    with pytest.raises(NotServed, match="outside"):
        checked_parts(OutputFile("1", filename, subfolder, kind))


def test_honest_names_are_taken_apart() -> None:
    assert checked_parts(OutputFile("1", "ö 1.png", "a//b", "temp")) == ("a", "b", "ö 1.png")


@pytest.mark.parametrize(
    ("filename", "stored"),
    [
        ("a_00001_.png", "3-a_00001_.png"),
        ("ein Bild (1).png", "3-ein_Bild_1_.png"),
        ("图.png", "3-图.png"),
        (".hidden", "3-hidden"),
        ("...", "3-file."),
        ("x" * 300 + ".webp", "3-" + "x" * 80 + ".webp"),
        ("a." + "y" * 300, "3-a." + "y" * 16),
        ("-rf", "3--rf"),
    ],
)
def test_stored_names_are_plain(filename: str, stored: str) -> None:
    assert stored_name(3, filename) == stored
    assert "/" not in stored


@pytest.mark.asyncio
async def test_what_is_not_on_this_disk_is_fetched(tmp_path: Path, fakes: Fakes) -> None:
    one = fakes()
    (one.output / "big.bin").write_bytes(os.urandom(3_000_000))
    async with aiohttp.ClientSession() as session:
        client = ComfyClient(session, one.url, PACE)
        files = [OutputFile("1", "big.bin", "", "output")]
        for roots in ({}, {"output": tmp_path / "nowhere"}):
            (stored,) = await store_outputs(files, tmp_path / "out/task", roots, client)
            path = tmp_path / "out/task" / stored["path_name"]
            assert path.read_bytes() == (one.output / "big.bin").read_bytes()
            assert stored["size"] == 3_000_000
            assert [p.name for p in path.parent.iterdir()] == ["0-big.bin"]
        assert (tmp_path / "out/task").stat().st_mode & 0o777 == 0o700


@pytest.mark.asyncio
async def test_a_file_that_cannot_be_had_leaves_nothing(tmp_path: Path, fakes: Fakes) -> None:
    one = fakes()
    async with aiohttp.ClientSession() as session:
        client = ComfyClient(session, one.url, PACE)
        files = [OutputFile("1", "missing.png", "", "output")]
        with pytest.raises(NotServed, match=r"missing\.png"):
            await store_outputs(files, tmp_path / "out", {"output": one.output}, client)
        one.kill()
        with pytest.raises(Unanswered):
            await store_outputs(files, tmp_path / "out", {"output": one.output}, client)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.asyncio
async def test_a_body_that_breaks_off_is_no_result(tmp_path: Path) -> None:
    async def torn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    port = free_port()
    server = await asyncio.start_server(torn, "127.0.0.1", port)
    async with server, aiohttp.ClientSession() as session:
        client = ComfyClient(session, f"http://127.0.0.1:{port}", PACE)
        with pytest.raises(Unanswered):
            await store_outputs([OutputFile("1", "a.png", "", "output")], tmp_path / "out", {}, client)
    assert list((tmp_path / "out").iterdir()) == []
