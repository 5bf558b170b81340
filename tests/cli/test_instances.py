"""`start`, `stop`, `restart`, `logs`: which instances a word means, what is asked, what comes out."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.serving import World, comfyd, environment, instance, serving


def fleet() -> World:
    disabled = [{"type": "stopped", "reason": "disabled", "message": "disabled in the file"}]
    return World(
        instances=[
            instance(0, "comfyui-main", 3001),
            instance(1, "comfyui-backup", 3005, "stopped"),
            instance(7, "spare one", 3007, "stopped", conditions=disabled),
            instance(3005, "odd", 3009),
            instance(None, "jupyter", 8888),
        ]
    )


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["0"], ["instances/0/start"]),
        (["comfyui-main"], ["instances/0/start"]),
        (["comfyui/1"], ["instances/1/start"]),
        (["3001"], ["instances/0/start"]),
        (["3005"], ["instances/3005/start"]),
        (["spare one"], ["instances/7/start"]),
        (["jupyter"], ["instances/jupyter/start"]),
        (["3005-3007"], ["instances/1/start", "instances/7/start"]),
        (["0", "comfyui-main", "3001-3001"], ["instances/0/start"]),
        (["all"], ["instances/0/start", "instances/1/start", "instances/3005/start"]),
    ],
)
def test_a_word_is_an_id_then_a_name_then_a_port(words: list[str], asked: list[str]) -> None:
    with serving(fleet()) as seen:
        ran = comfyd("start", *words, "--url", seen.url)
    assert ran.code == 0, ran.err
    assert sorted(seen.verbs()) == sorted(asked)


def test_a_name_that_looks_like_an_option_stands_behind_two_dashes() -> None:
    with serving(World(instances=[instance(4, "-dash", 3004)])) as seen:
        ran = comfyd("start", "--url", seen.url, "--", "-dash")
    assert ran.code == 0, ran.err
    assert seen.verbs() == ["instances/4/start"]


@pytest.mark.parametrize(
    ("word", "code", "message"),
    [
        (
            "comfyui-mian",
            1,
            "no instance 'comfyui-mian'; did you mean comfyui-main? known: comfyui-main, comfyui-backup",
        ),
        ("99", 1, "no instance '99'; known: comfyui-main"),
        ("9000-9001", 1, "no instance on a port in '9000-9001'; known:"),
        ("3005-3001", 2, "write the lower one first"),
        ("../etc", 1, "no instance '../etc'; known:"),
    ],
)
def test_a_word_that_means_nothing_changes_nothing(word: str, code: int, message: str) -> None:
    with serving(fleet()) as seen:
        ran = comfyd("stop", word, "--url", seen.url)
    assert ran.code == code
    assert message in ran.err
    assert seen.verbs() == []


def test_a_port_of_two_instances_is_ambiguous() -> None:
    with serving(World(instances=[instance(0, "a", 3001), instance(1, "b", 3001, "stopped")])) as seen:
        ran = comfyd("start", "3001", "--json", "--url", seen.url)
    assert ran.code == 2
    assert ran.json["error"]["code"] == "ambiguous_instance"


def test_several_are_asked_at_once() -> None:
    world = World(instances=[instance(n, f"i{n}", 3000 + n, "stopped") for n in range(5)], together=5)
    with serving(world) as seen:
        ran = comfyd("start", "all", "--url", seen.url)
    assert ran.code == 0, ran.err
    assert ran.out.count("started") == 5


@pytest.mark.parametrize(
    ("state", "options", "code", "outcome"),
    [
        ("failed", [], 1, "failed"),
        ("starting", [], 4, "starting"),
        ("waiting_env", [], 4, "installing"),
        ("starting", ["--wait", "0"], 0, "starting"),
        ("stopped", [], 0, "started"),
    ],
)
def test_how_a_start_ends(state: str, options: list[str], code: int, outcome: str) -> None:
    with serving(World(instances=[instance(0, "main", 3001, state)])) as seen:
        ran = comfyd("start", "main", "--json", *options, "--url", seen.url)
    result = ran.json["results"][0]
    assert (ran.code, result["outcome"], result["timed_out"]) == (code, outcome, code == 4)
    assert {"id", "name", "port", "pid", "state", "message"} <= set(result)


def test_one_that_fails_does_not_hide_the_others() -> None:
    with serving(World(instances=[instance(0, "bad", 3001, "failed"), instance(1, "good", 3002, "stopped")])) as seen:
        ran = comfyd("restart", "all", "bad", "good", "--url", seen.url)
    assert ran.code == 1
    assert "bad: failed: Failed to start instance: it is broken" in ran.err
    assert "good: restarted (port 3002, pid 77)" in ran.out


def test_stop_all_is_one_call_and_tells_who_is_left() -> None:
    with serving(fleet()) as seen:
        ran = comfyd("stop", "all", "--json", "--url", seen.url)
        assert seen.verbs() == ["stop-all"]
        seen.instances[0].update(state="stopping", desired="up")
        late = comfyd("stop", "all", "--wait", "1", "--url", seen.url)
    assert ran.code == 0
    assert {r["name"]: r["outcome"] for r in ran.json["results"]} == {"comfyui-main": "stopped", "odd": "stopped"}
    assert late.code == 4
    assert "comfyui-main: stopping" in late.err


def test_the_wait_is_handed_on() -> None:
    with serving(fleet()) as seen:
        comfyd("start", "0", "--wait", "7.5", "--url", seen.url)
        assert comfyd("start", "0", "--wait", "-1", "--url", seen.url).code == 2
        assert comfyd("start", "0", "--wait", "nan", "--url", seen.url).code == 2
    assert [p for m, p, _, _ in seen.requests if m == "POST"] == ["/api/comfyui/instances/0/start?wait=7.5"]


def test_logs_are_bytes_as_they_are() -> None:
    world = fleet()
    world.log = b"caf\xc3\xa9 \xff\x00\nlast line\n"
    with serving(world) as seen:
        command = [sys.executable, "-m", "comfyd", "logs", "comfyui-main", "--url", seen.url]
        raw = subprocess.run(command, capture_output=True, env=environment(), check=True).stdout
        tail = comfyd("logs", "0", "--tail", "1", "--url", seen.url)
        lines = comfyd("logs", "0", "--json", "--url", seen.url)
    assert raw == world.log
    assert tail.out == "last line\n"
    assert [json.loads(line)["line"] for line in lines.out.splitlines()] == ["café \ufffd\0", "last line"]


def test_follow_shows_what_comes_and_ends_by_ctrl_c() -> None:
    with serving(fleet()) as seen:
        command = [sys.executable, "-m", "comfyd", "logs", "-f", "3001", "--url", seen.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            lines = [process.stdout.readline() for _ in range(6)]
            process.send_signal(signal.SIGINT)
            code = process.wait(10)
            noise = process.stderr.read()
    assert lines == [b"one\n", b"two\n", b"three\n", b"more 0\n", b"more 1\n", b"more 2\n"]
    assert (code, noise) == (130, b"")


def test_overrides(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "kind": "run",
        "key": "comfyui/0",
        "want": "down",
        "fields": {},
        "by": "cli",
        "expires_at": None,
    }
    world = fleet()
    world.overrides = [row, {**row, "kind": "install", "key": "comm"}]
    with serving(world) as seen:
        table = comfyd("overrides", "list", "--url", seen.url)
        machine = comfyd("overrides", "list", "--json", "--url", seen.url)
        for word in ("comfyui-main", "comm", "all"):
            assert comfyd("overrides", "clear", word, "--url", seen.url).code == 0
        unknown = comfyd("overrides", "clear", "nobody", "--url", seen.url)
        assert comfyd("overrides", "clear", "--url", seen.url).code == 2
    assert table.out.splitlines()[1].split() == ["comfyui/0", "run", "down", "cli"]
    assert machine.json["overrides"] == world.overrides
    assert unknown.code == 1
    deleted = [p.removeprefix("/api/comfyui/overrides") for m, p, _, _ in seen.requests if m == "DELETE"]
    assert deleted == ["/0", "/comm", ""]
