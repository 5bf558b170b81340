"""How the daemon is found, and what the typed client makes of answers."""

import socket
import threading
from pathlib import Path

import pytest

from comfyd.client import ApiError, Client, DaemonTimeout, DaemonUnreachable
from comfyd.client.transport import candidates, parse_url
from tests.cli.serving import World, comfyd, instance, serving


@pytest.fixture
def world() -> World:
    return World(instances=[instance(0, "main", 3001)])


def socket_of(root: Path) -> Path:
    return root / "workspace/.comfyd/api.sock"


@pytest.mark.parametrize("depth", [0, 12])
def test_the_unix_socket_below_the_root_however_long_its_path(tmp_path: Path, world: World, depth: int) -> None:
    root = tmp_path.joinpath(*["a-rather-long-folder"] * depth)
    with serving(world, socket_of(root)):
        by_option = comfyd("status", "--root", str(root))
        by_variable = comfyd("status", env={"COMFYD_ROOT": str(root), "COMFYD_PORT": "1"})
        by_url = comfyd("status", "--url", f"unix:{socket_of(root)}")
        relative = comfyd("--root", ".", "status", cwd=root)
        started = comfyd("restart", "main", "--root", str(root))
    assert [r.code for r in (by_option, by_variable, by_url, relative, started)] == [0] * 5, by_option.err
    assert (len(str(socket_of(root))) > 107) is (depth > 0)


def test_a_dead_socket_falls_back_to_the_port(tmp_path: Path, world: World) -> None:
    socket_of(tmp_path).parent.mkdir(parents=True)
    socket_of(tmp_path).touch()
    with serving(world) as seen:
        port = seen.url.rpartition(":")[2]
        ran = comfyd("status", env={"COMFYD_ROOT": str(tmp_path), "COMFYD_PORT": port})
    assert ran.code == 0


def test_a_root_given_by_hand_is_never_answered_by_another_daemon(tmp_path: Path) -> None:
    unix = candidates(None, None, tmp_path, {"COMFYD_URL": "http://127.0.0.1:9"})
    assert [str(t) for t in unix] == [f"unix:{socket_of(tmp_path)}"]
    both = candidates(None, None, tmp_path, {"COMFYD_PORT": "9"})
    assert [t.scheme for t in both] == ["unix", "http"]
    assert [str(t) for t in candidates(None, None, None, {})] == [
        "unix:/workspace/.comfyd/api.sock",
        "http://127.0.0.1:8001",
    ]
    moved = candidates(None, None, None, {"COMFYD_STATE_DIR": "/s"})
    assert str(moved[0]) == "unix:/s/api.sock"
    ran = comfyd("stop", "all", "--root", str(tmp_path))
    assert ran.code == 69
    assert "(no such socket)" in ran.err


def test_url_before_variable_and_token_as_bearer(world: World) -> None:
    with serving(world) as seen:
        env = {"COMFYD_URL": "http://127.0.0.1:1", "COMFYD_TOKEN": "s3cret"}
        assert comfyd("task", "list", env=env).code == 69
        assert comfyd("task", "list", "--url", seen.url, env=env).code == 0
        assert comfyd("task", "list", env={"COMFYD_URL": seen.url}).code == 0
    assert [headers.get("Authorization") for _, _, headers, _ in seen.requests] == ["Bearer s3cret", None]


@pytest.mark.parametrize(
    "url", ["", "localhost:8001", "ftp://x", "http://", "http://u:p@h", "http://h?x=1", "http://h:bad"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_url(url)


def test_addresses() -> None:
    assert str(parse_url("http://[::1]:9/prefix/")) == "http://[::1]:9/prefix"
    assert str(parse_url("https://example.org")) == "https://example.org:443"
    assert str(parse_url("unix:///a/b")) == "unix:/a/b"


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (409, {"error": {"code": "conflict", "message": "no", "details": {"a": 1}}, "detail": "no"}, "conflict", "no"),
        (422, {"detail": "old style"}, "unknown_answer", "HTTP 422: old style"),
        (502, b"<html>", "unknown_answer", "HTTP 502: Bad Gateway"),
        (200, b"<html>", "bad_answer", "is it comfyd?"),
    ],
)
def test_answers_that_are_errors(world: World, status: int, body: object, code: str, message: str) -> None:
    world.answers["GET /health"] = (status, body)
    with serving(world) as seen, Client(seen.url) as client:
        with pytest.raises(ApiError, match=message) as caught:
            client.health()
        assert client.status()["instances"][0]["name"] == "main"
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.details == ({"a": 1} if code == "conflict" else {})


def test_one_connection_serves_many_calls_and_a_dropped_one_is_replaced(world: World) -> None:
    with serving(world) as first, Client(first.url) as client:
        for _ in range(3):
            client.tasks()
        connection = client._exchange._connection
        assert connection is not None
        local = connection.sock.getsockname()
        client.status()
        assert connection.sock.getsockname() == local
        connection.sock.shutdown(2)
        assert client.status()["status"] == "success"
        assert client._exchange._connection is not connection


def test_a_server_that_goes_away(world: World) -> None:
    with serving(world) as seen:
        client = Client(seen.url)
        client.status()
    with client, pytest.raises(DaemonUnreachable, match="cannot reach the daemon"):
        client.status()


def test_silence_is_a_timeout(world: World) -> None:
    world.together = 2
    with serving(world) as seen, Client(seen.url, timeout=0.2) as client:
        with pytest.raises(DaemonTimeout, match="did not answer POST"):
            client.start("main", wait=-15)
        world.together = 0
        assert client.status()["status"] == "success"


def test_events_resume_after_an_id(world: World) -> None:
    with serving(world) as seen, Client(seen.url) as client:
        with client.events() as stream:
            first = list(stream)
        with client.events(after="41") as stream:
            later = [event["id"] for event in stream]
    assert [(e["id"], e["event"], e["data"]["seq"]) for e in first] == [("1", "instance", 1), ("2", "instance", 2)]
    assert later == ["42", "43"]


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, world: World) -> None:
    def speak(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak, args=(listener,))
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client, pytest.raises(DaemonUnreachable):
            client.download_output("task_1", 0, tmp_path / "out", "a.png")
        thread.join(10)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"kept")
    return target


def test_a_link_in_the_output_folder_is_not_written_through(tmp_path: Path, world: World, elsewhere: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(elsewhere)
    world.outputs[0] = ("a.png", b"new")
    with serving(world) as seen, Client(seen.url) as client:
        saved = client.download_output("task_1", 0, tmp_path / "out")
    assert Path(saved).name == "a-1.png"
    assert elsewhere.read_bytes() == b"kept"


def test_names_are_one_segment_of_the_path(world: World) -> None:
    with serving(world) as seen, Client(seen.url) as client:
        for name in ("..", "a/b", "主要?x#y", "a%2Fb"):
            with pytest.raises(ApiError):
                client.task(name)
    asked = [path for _, path, _, _ in seen.requests]
    assert asked[1:] == ["/tasks/a%2Fb", "/tasks/%E4%B8%BB%E8%A6%81%3Fx%23y", "/tasks/a%252Fb"]
