"""Overrides, autolaunch and command lines: what resolve() wishes, and which change restarts what."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyd.core.config import parse
from comfyd.core.memo import Memo
from comfyd.core.resolve import autolaunch, resolve
from comfyd.model.base import Now
from comfyd.model.desired import DesiredState, Override, Want
from comfyd.model.paths import Paths
from comfyd.model.process import DesiredProcess, ResolvedState
from comfyd.model.sources import ConfigFiles, EnvironmentFolder, MachineFacts, SourceFile, Variables

ROOT = Path("/r")
FACTS = MachineFacts(paths=Paths.under(ROOT), container="here")
NOW = Now(mono=50.0, wall=1000.0)
MAIN: dict[str, Any] = {"id": 0, "port": 3001, "name": "main"}
BACKUP: dict[str, Any] = {"id": 1, "port": 3002, "name": "backup"}
ENVIRONMENTS: dict[str, Any] = {"comm": {}, "aua": {"port": 3003}}


def source(raw: Any, path: str = "/f.json") -> SourceFile:
    return SourceFile(path, raw if isinstance(raw, bytes) else json.dumps(raw).encode())


def state(
    *instances: dict[str, Any],
    environments: Any = None,
    services: Any = (),
    variables: Variables | None = None,
    **top: Any,
) -> DesiredState:
    folders = [
        EnvironmentFolder(name, source(config, f"/{name}.json"), build_hash="h", has_install=True)
        for name, config in (environments or ENVIRONMENTS).items()
    ]
    raw = {"instances": list(instances), **top}
    files = ConfigFiles(source(raw), tuple(folders), source({"services": list(services)}))
    result = parse(files, variables or Variables(), None)
    assert result.desired is not None, [i.text() for i in result.issues]
    return result.desired


def solve(
    desired: DesiredState, *overrides: Override, variables: Variables | None = None, facts: MachineFacts = FACTS
) -> ResolvedState:
    return resolve(desired, overrides, variables or Variables(), facts, NOW)


def process(resolved: ResolvedState, key: str = "comfyui/0") -> DesiredProcess:
    found = resolved.process(key)
    assert found is not None
    return found


def run(key: str, want: Want, **given: Any) -> Override:
    return Override(kind="run", key=key, want=want, created_at=1.0, **given)


def spec(key: str, fields: dict[str, Any], **given: Any) -> Override:
    return Override(kind="spec", key=key, fields=fields, created_at=1.0, **given)


def reason(wish: DesiredProcess) -> str:
    return wish.held.reason if wish.held else ""


def test_the_command_of_an_instance() -> None:
    top = {"global_settings": {"default_extra_args": "--aa", "startup_delay": 2}}
    variables = Variables(extra_args="--bb 'c d'")
    resolved = solve(state({**MAIN, "extra_args": "--ee"}, variables=variables, **top), variables=variables)
    wish = process(resolved)
    made = wish.spec
    assert made.argv == (
        "/r/workspace/ComfyUI-comm/venv/bin/python", "main.py", "--listen", "127.0.0.1", "--port", "3001",
        "--output-directory", "/r/workspace/data/comm/output",
        "--temp-directory", "/r/workspace/data/comm/instances/0",
    )  # fmt: skip
    assert made.trailing_argv == ("--aa", "--bb", "c d", "--ee")
    database = ("--database-url", "sqlite:////r/workspace/data/comm/instances/0/comfyui.db")
    assert made.command(frozenset({"--database-url"})) == (*made.argv, *database, *made.trailing_argv)
    assert made.command(frozenset()) == (*made.argv, *made.trailing_argv)
    assert (made.cwd, made.pin) == ("/r/workspace/ComfyUI-comm", "/r/workspace/ComfyUI-comm")
    assert made.dirs == ("/r/workspace/data/comm/instances/0", "/r/workspace/data/comm/output")
    assert made.log == "/r/workspace/logs/comfyui_instance_0.log"
    assert made.pid_file == "/r/workspace/logs/comfyui_instance_0.pid"
    assert (made.stop_signal, made.probe.type, made.port, made.listen) == ("SIGINT", "http", 3001, "127.0.0.1")
    assert made.env["PYTHONUNBUFFERED"] == "1"
    assert made.env["__COMFY_CLI_SESSION__"] == "/r/workspace/data/comm/instances/0/session"
    assert "LD_PRELOAD" not in made.env
    assert (wish.run, wish.held, wish.environment, wish.origin) == (True, None, "comm", "file")
    assert resolved.startup_delay == 2


@pytest.mark.parametrize(
    ("gpus", "visible", "wished"),
    [([0, 2], "0,2", (0, 2)), (["GPU-1"], "GPU-1", ("GPU-1",)), ("none", "", ()), (None, None, None)],
)
def test_gpus(gpus: Any, visible: str | None, wished: Any) -> None:
    wish = process(solve(state({**MAIN, "gpus": gpus})))
    assert wish.gpus == wished
    assert wish.spec.env.get("CUDA_VISIBLE_DEVICES") == visible
    assert wish.spec.env.get("CUDA_DEVICE_ORDER") == ("PCI_BUS_ID" if visible is not None else None)


def test_variables_of_the_instance_win_and_tcmalloc_is_preloaded() -> None:
    facts = MachineFacts(paths=FACTS.paths, tcmalloc="/lib/tc.so")
    assert process(solve(state(MAIN), facts=facts)).spec.env["LD_PRELOAD"] == "/lib/tc.so"
    own = state({**MAIN, "env": {"LD_PRELOAD": "/mine.so", "A": "b"}})
    env = process(solve(own, facts=facts)).spec.env
    assert (env["LD_PRELOAD"], env["A"]) == ("/mine.so", "b")


def test_listen_field_then_extra_args_then_the_setting() -> None:
    assert process(solve(state(MAIN), variables=Variables(instance_listen="0.0.0.0"))).spec.listen == "0.0.0.0"
    own = state({**MAIN, "listen": "10.0.0.1"})
    assert process(solve(own, variables=Variables(instance_listen="0.0.0.0"))).spec.listen == "10.0.0.1"
    new = spec("comfyui/7", {"port": 4000, "name": "n"})
    wish = process(solve(state(MAIN), new, variables=Variables(extra_args="--listen ::1 --x")), "comfyui/7")
    assert (wish.spec.listen, wish.spec.trailing_argv) == ("::1", ("--x",))


def test_times_not_given_come_from_the_settings() -> None:
    variables = Variables(stop_grace_s=1, drain_timeout_s=2, startup_deadline_s=3)
    plain = process(solve(state(MAIN), variables=variables))
    assert (plain.spec.stop_grace_s, plain.drain_timeout_s, plain.spec.probe.startup_deadline_s) == (1, 2, 3)
    given = {**MAIN, "stop_grace_s": 15, "drain_timeout_s": 600, "probe": {"startup_deadline_s": 600, "path": "/p"}}
    own = process(solve(state(given), variables=variables))
    assert (own.spec.stop_grace_s, own.drain_timeout_s, own.spec.probe.startup_deadline_s) == (15, 600, 600)
    inherited = process(solve(state(MAIN, environments={"comm": {"probe": {"type": "tcp"}}}), variables=variables))
    assert (inherited.spec.probe.type, inherited.spec.probe.startup_deadline_s) == ("tcp", 3)


def test_log_and_pid_directories_are_taken_under_the_root() -> None:
    top = {"global_settings": {"log_directory": "/workspace/l", "pid_directory": "/var/p"}}
    made = process(solve(state(MAIN, **top))).spec
    assert (made.log, made.pid_file) == ("/r/workspace/l/comfyui_instance_0.log", "/var/p/comfyui_instance_0.pid")
    moved = MachineFacts(paths=Paths.under(ROOT, log_dir=Path("/logs")))
    assert process(solve(state(MAIN), facts=moved)).spec.log == "/logs/comfyui_instance_0.log"


def test_the_output_folder_is_shared_without_siblings_and_never_recomputed() -> None:
    assert process(solve(state(MAIN))).output == ""
    both = state(MAIN, {**BACKUP, "enabled": False})
    assert [p.output for p in solve(both).processes] == ["0", "1"]
    other = state(MAIN, {**BACKUP, "environment": "aua"})
    assert [p.output for p in solve(other).processes] == ["", ""]
    recorded = MachineFacts(paths=FACTS.paths, outputs={"comfyui/0": ""})
    first, second = solve(both, facts=recorded).processes
    assert (first.output, second.output) == ("", "1")
    assert second.spec.dirs[1] == "/r/workspace/data/comm/output/1"
    assert first.spec.dirs[1] == "/r/workspace/data/comm/output"


@pytest.mark.parametrize(
    ("multi", "disable", "stock", "expected"),
    [
        (multi, disable, stock, True if multi else (not disable if disable is not None else not stock))
        for multi, disable, stock in itertools.product((False, True), (None, False, True), (False, True))
    ],
)
def test_autolaunch(multi: bool, disable: bool | None, stock: bool, expected: bool) -> None:
    desired = state(MAIN).model_copy(update={"stock": stock})
    variables = Variables(multi_instance=multi, disable_autolaunch=disable)
    assert autolaunch(desired, variables) is expected
    wish = process(solve(desired, variables=variables))
    assert wish.run is expected
    assert (wish.why_not is None) is expected
    if wish.why_not:
        assert wish.why_not.reason == "autolaunch_off"
        assert ("DISABLE_AUTOLAUNCH is set" in wish.why_not.message) is (disable is True)
        assert ("unchanged example" in wish.why_not.message) is (disable is None)
    started = process(solve(desired, run("comfyui/0", Want.UP), variables=variables))
    assert (started.run, started.why_not) == (True, None)


def test_disabled_and_run_overrides() -> None:
    off = state({**MAIN, "enabled": False})
    wish = process(solve(off))
    assert (wish.run, wish.why_not and wish.why_not.reason) == (False, "disabled")
    assert process(solve(off, run("comfyui/0", Want.UP))).run
    down = process(solve(state(MAIN), run("comfyui/0", Want.DOWN, by="cli")))
    assert (down.run, down.why_not and down.why_not.reason) == (False, "stopped_by_override")
    assert solve(state(MAIN), run("comfyui/9", Want.UP)).process("comfyui/9") is None


def test_fields_of_an_override_win_over_the_file() -> None:
    desired = state({**MAIN, "extra_args": "--a", "description": "d", "probe": {"path": "/x"}})
    wish = process(solve(desired, spec("comfyui/0", {"port": 4000, "extra_args": "--bb 'c d'"})))
    assert wish.instance is not None
    assert (wish.spec.port, wish.spec.trailing_argv, wish.instance.description) == (4000, ("--bb", "c d"), "d")
    assert (wish.origin, wish.overridden, wish.instance.probe.path) == ("file", ("extra_args", "port"), "/x")


def test_an_override_alone_declares_an_instance() -> None:
    desired = state(MAIN, environment="aua")
    wish = process(solve(desired, spec("comfyui/5", {"port": 4000, "name": "new"})), "comfyui/5")
    assert (wish.origin, wish.environment, wish.run, wish.held) == ("override", "aua", True, None)
    assert wish.output == "5"
    plain = process(solve(state(), spec("comfyui/5", {"port": 4000, "name": "new"})), "comfyui/5")
    assert (plain.environment, plain.output) == ("comm", "")


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("comfyui/5", {}), ("comfyui/5", {"port": 4000}), ("comfyui/5", {"port": "4000", "name": "x"}),
        ("comfyui/5", {"port": 4000, "name": "a/b"}), ("comfyui/5", {"port": 8001, "name": "x"}),
        ("comfyui/5", {"port": 4000, "name": "x", "weird": 1}), ("comfyui/5", {"port": 4000, "name": "x", "id": 6}),
        ("comfyui/5", {"port": 4000, "name": "x", "extra_args": "--tls-keyfile x"}), ("sidecar/x", {"port": 4000}),
        ("comfyui/../x", {"port": 4000, "name": "x"}),
        ("comfyui/5", {"port": 4000, "name": "x", "environment": "../x"}),
    ],
)  # fmt: skip
def test_an_invalid_override_alone_is_shown_and_never_started(key: str, fields: dict[str, Any]) -> None:
    resolved = solve(state(MAIN), spec(key, fields))
    wish = process(resolved, key)
    assert (reason(wish), wish.origin, wish.spec.argv) == ("override_invalid", "override", ())
    assert wish.spec.log.startswith("/r/workspace/logs/")
    assert ".." not in Path(wish.spec.log).parts
    assert reason(process(resolved)) == ""


def test_an_invalid_override_of_a_declared_instance_holds_it_as_the_file_says() -> None:
    wish = process(solve(state(MAIN), spec("comfyui/0", {"port": 99999})))
    assert (reason(wish), wish.spec.port, wish.run) == ("override_invalid", 3001, True)


@pytest.mark.parametrize("fields", [{"port": 3001, "name": "x"}, {"port": 4000, "name": "main"}])
def test_the_file_wins_over_an_override_with_its_port_or_name(fields: dict[str, Any]) -> None:
    override = spec("comfyui/5", fields)
    resolved = solve(state(MAIN), override)
    assert (reason(process(resolved)), process(resolved).run) == ("", True)
    taken = process(resolved, "comfyui/5")
    assert taken.held is not None
    assert (taken.held.type, taken.run) == ("override_conflict", False)
    for stopped in (
        solve(state({**MAIN, "enabled": False}), override),
        solve(state(MAIN), override, run("comfyui/0", Want.DOWN)),
    ):
        assert (process(stopped, "comfyui/5").held, process(stopped, "comfyui/5").run) == (None, True)


def test_an_override_of_one_declared_instance_yields_to_another() -> None:
    desired = state(MAIN, BACKUP)
    resolved = solve(desired, spec("comfyui/0", {"port": 3002}))
    assert reason(process(resolved)) == "port_taken"
    assert reason(process(resolved, "comfyui/1")) == ""
    swapped = solve(desired, spec("comfyui/0", {"port": 3002}), spec("comfyui/1", {"port": 3001}))
    assert [(reason(p), p.spec.port) for p in swapped.processes] == [("", 3002), ("", 3001)]


def test_expired_and_foreign_overrides_are_ignored_and_the_next_expiry_is_told() -> None:
    desired = state(MAIN)
    gone = run("comfyui/0", Want.DOWN, expires_at=1000.0)
    foreign = run("comfyui/0", Want.DOWN, scope="elsewhere", expires_at=1001.0)
    assert process(solve(desired, gone, foreign)).run
    assert solve(desired, gone, foreign).wake_at is None
    here = run("comfyui/0", Want.DOWN, scope="here", expires_at=1060.0)
    later = spec("comfyui/0", {"description": "x"}, expires_at=1030.0)
    resolved = solve(desired, here, later)
    assert (process(resolved).run, resolved.wake_at) == (False, 1030.0)


def test_unknown_broken_and_commandless_environments_hold() -> None:
    environments = {"comm": b"{", "face": {"service_type": "facefusion"}}
    desired = state(
        MAIN, {**BACKUP, "environment": "nope"}, {"id": 2, "port": 5, "name": "f", "environment": "face"},
        environments=environments,
    )  # fmt: skip
    assert [reason(p) for p in solve(desired).processes] == ["environment_invalid", "environment_unknown", "no_command"]
    assert all(p.run and p.held and p.held.type == "held" for p in solve(desired).processes)


def test_bad_extra_args_hold_everything_instead_of_starting_without_them() -> None:
    resolved = solve(state(MAIN, BACKUP), variables=Variables(extra_args="--a 'b"))
    assert [reason(p) for p in resolved.processes] == ["bad_extra_args"] * 2


SERVICE = {"face": {"command": "venv/bin/python app.py {port} {id} {env_dir} {root} {other} 'a {port}'"}}


def test_the_command_of_a_service_environment() -> None:
    variables = Variables(extra_args="--for-comfyui")
    face = {"id": 3, "port": 3005, "name": "facefusion", "environment": "face", "extra_args": "--x {port}"}
    desired = state(face, {**face, "id": 4, "port": 3006, "name": "g"}, environments=SERVICE)
    resolved = solve(desired, variables=variables)
    made = process(resolved, "comfyui/3").spec
    folder = "/r/workspace/ComfyUI-face"
    assert made.command(frozenset({"--database-url"})) == (
        f"{folder}/venv/bin/python", "app.py", "3005", "3", folder, "/r", "{other}", "a 3005", "--x", "{port}",
    )  # fmt: skip
    assert (made.stop_signal, made.probe.type, made.cwd, made.pin) == ("SIGTERM", "tcp", folder, folder)
    assert (made.env["HOST"], made.env["PORT"]) == ("127.0.0.1", "3005")
    assert (made.log, made.pid_file) == ("/r/workspace/logs/face.log", "/r/workspace/logs/face.pid")
    assert process(resolved, "comfyui/4").spec.log == "/r/workspace/logs/face_4.log"


@pytest.mark.parametrize(
    ("script", "program"),
    [
        ("run.sh", "/r/workspace/ComfyUI-face/run.sh"),
        ("bin/run.sh", "/r/workspace/ComfyUI-face/bin/run.sh"),
        ("/build/face/run.sh", "/r/build/face/run.sh"),
        ("/opt/run.sh", "/opt/run.sh"),
    ],
)
def test_a_startup_script_is_run_as_a_file(script: str, program: str) -> None:
    desired = state({**MAIN, "environment": "face"}, environments={"face": {"startup_script": script}})
    assert process(solve(desired)).spec.argv == (program,)


def test_sidecars() -> None:
    services = [
        {"name": "jupyter", "command": ["jupyter", "--port", "{port}", "{root}"], "port": 8888, "env": {"A": "b"}},
        {"name": "tool", "command": "bin/tool", "enabled": False},
    ]
    resolved = solve(state(services=services), variables=Variables(disable_autolaunch=True))
    jupyter, tool = process(resolved, "sidecar/jupyter"), process(resolved, "sidecar/tool")
    assert jupyter.spec.argv == ("jupyter", "--port", "8888", "/r")
    assert (jupyter.run, jupyter.spec.probe.type, jupyter.spec.stop_signal) == (True, "tcp", "SIGTERM")
    assert (jupyter.origin, jupyter.gpus, jupyter.environment, jupyter.spec.env) == ("services", (), None, {"A": "b"})
    assert (tool.run, tool.spec.argv, tool.spec.probe.type) == (False, ("/r/bin/tool",), "none")
    assert tool.why_not is not None
    assert process(solve(state(services=services), run("sidecar/tool", Want.UP)), "sidecar/tool").run
    down = process(solve(state(services=services), run("sidecar/jupyter", Want.DOWN)), "sidecar/jupyter")
    assert (down.run, down.why_not and down.why_not.reason) == (False, "stopped_by_override")


def fingerprint(fields: dict[str, Any], *overrides: Override, facts: MachineFacts = FACTS, **top: Any) -> str:
    return process(solve(state({**MAIN, **fields}, BACKUP, **top), *overrides, facts=facts)).fingerprint


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 4000}, {"environment": "aua"}, {"extra_args": "--a"}, {"extra_args": ["--a b"]}, {"listen": "0.0.0.0"},
        {"env": {"A": "b"}}, {"gpus": [0]}, {"gpus": "none"},
    ],
)  # fmt: skip
def test_what_needs_a_restart_changes_the_fingerprint(fields: dict[str, Any]) -> None:
    assert fingerprint(fields) != fingerprint({})


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x"}, {"description": "x"}, {"enabled": False}, {"probe": {"type": "tcp"}}, {"stop_grace_s": 1},
        {"drain_timeout_s": 1}, {"restart": {"policy": "never"}}, {"gpu_exclusive": True}, {"extra_args": ""},
        {"extra_args": []}, {"environment": "comm"}, {"listen": "127.0.0.1"}, {"listen": None}, {"_note": 1},
    ],
)  # fmt: skip
def test_what_needs_no_restart_does_not(fields: dict[str, Any]) -> None:
    assert fingerprint(fields) == fingerprint({})


def test_shared_arguments_tokens_and_commands_are_in_the_fingerprint_and_facts_are_not() -> None:
    plain = fingerprint({})
    assert fingerprint({}, global_settings={"default_extra_args": "--a"}) == fingerprint({"extra_args": "--a"}) != plain
    token = Override(kind="restart", key="comfyui/0", token="t1", created_at=1)
    again = token.model_copy(update={"token": "t2"})
    assert len({plain, fingerprint({}, token), fingerprint({}, again)}) == 3
    assert fingerprint({}, token.model_copy(update={"key": "comfyui/1"})) == plain
    facts = MachineFacts(Paths.under(Path("/other")), "/tc.so", "there", {"comfyui/0": ""})
    assert fingerprint({}, facts=facts) == plain
    in_face = {**MAIN, "environment": "face"}
    commands = [process(solve(state(in_face, environments={"face": {"command": c}}))).fingerprint for c in ("a", "b")]
    assert commands[0] != commands[1]
    assert process(solve(state({**MAIN, "port": 9}), spec("comfyui/0", {"port": 3001}))).fingerprint == plain


def test_environments_are_wanted_by_running_instances_or_an_install_override() -> None:
    desired = state(MAIN, {**BACKUP, "environment": "aua", "enabled": False})
    aua, comm = solve(desired).environments
    assert (aua.name, aua.wanted, comm.name, comm.wanted) == ("aua", False, "comm", True)
    install = Override(kind="install", key="aua", token="t", created_at=1)
    forced = solve(desired, install).environment("aua")
    assert forced is not None
    assert forced.wanted
    assert forced.fingerprint != aua.fingerprint == aua.spec.fingerprint
    assert solve(desired, install).environment("comm") == comm


KEYS = ("comfyui/0", "comfyui/1", "comfyui/5", "sidecar/s", "nobody")
OVERRIDES = st.lists(
    st.builds(
        Override,
        kind=st.sampled_from(["run", "spec", "restart", "install"]),
        key=st.sampled_from([*KEYS, "comm"]),
        want=st.sampled_from([None, Want.UP, Want.DOWN]),
        fields=st.fixed_dictionaries(
            {},
            optional={
                "port": st.sampled_from([3001, 3002, 4000, 8001, "x"]),
                "name": st.sampled_from(["main", "new", "a/b"]),
                "environment": st.sampled_from(["comm", "aua", "nope"]),
                "enabled": st.booleans(),
            },
        ),
        token=st.sampled_from([None, "t"]),
        scope=st.sampled_from([None, "here", "there"]),
        created_at=st.just(1.0),
        expires_at=st.sampled_from([None, 900.0, 1100.0]),
    ),
    max_size=6,
    unique_by=lambda o: (o.kind, o.key),
)


@given(OVERRIDES, st.randoms(use_true_random=False))
def test_any_overrides_give_one_wish_per_key_whatever_their_order(overrides: list[Override], order: Any) -> None:
    desired = state(MAIN, BACKUP, services=[{"name": "s", "command": "x"}])
    resolved = solve(desired, *overrides)
    keys = [p.key for p in resolved.processes]
    assert keys == sorted(set(keys))
    assert {"comfyui/0", "comfyui/1", "sidecar/s"} <= set(keys)
    assert all(p.why_not is not None for p in resolved.processes if not p.run)
    assert all(p.spec.argv for p in resolved.processes if not p.held)
    shuffled = list(overrides)
    order.shuffle(shuffled)
    assert solve(desired, *shuffled) == resolved


ENTRY = st.fixed_dictionaries(
    {"id": st.integers(0, 3), "name": st.just("")},
    optional={
        "environment": st.sampled_from(["comm", "aua", "none"]), "extra_args": st.sampled_from(["", "--cpu"]),
        "stop_grace_s": st.sampled_from([15.0, 3.0]), "enabled": st.booleans(), "env": st.just({"A": "b"}),
        "probe": st.sampled_from([{}, {"period_s": 5.0}, {"startup_deadline_s": 600.0}]),
    },
)  # fmt: skip
STEP = st.tuples(
    st.lists(ENTRY, max_size=4, unique_by=lambda e: e["id"]), st.sampled_from(["", "--lowvram"]),
    st.sampled_from([15.0, 9.0]), st.sampled_from([{}, {"probe": {}}, {"probe": {"startup_deadline_s": 600.0}}]),
    st.sampled_from([None, "t1", "t2"]), st.booleans(),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(STEP, min_size=2, max_size=5))
def test_a_memo_changes_no_result(steps: list[Any]) -> None:
    memo = Memo()
    for entries, extra, grace, comm, token, recorded in steps:
        named = [{**e, "port": 4000 + e["id"], "name": f"i{e['id']}"} for e in entries]
        desired = state(*named, environments={"comm": comm, "aua": {"port": 3003}})
        overrides = [Override(key="comfyui/0", kind="restart", token=token, by="t", created_at=1.0)] if token else []
        variables = Variables(extra_args=extra, stop_grace_s=grace, startup_deadline_s=77.0)
        facts = MachineFacts(paths=Paths.under(ROOT), container="here", outputs={"comfyui/1": "x"} if recorded else {})
        fresh = resolve(desired, overrides, variables, facts, NOW)
        kept = resolve(desired, overrides, variables, facts, NOW, memo)
        assert kept.model_dump() == fresh.model_dump()
        assert kept.model_dump(exclude_unset=True) == fresh.model_dump(exclude_unset=True)
