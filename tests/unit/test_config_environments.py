"""config.json and services.json: every form that people write, and errors that block only their own file."""

import json
from typing import Any

import pytest

from comfyd.core.config import parse
from comfyd.model.desired import DesiredState, EnvironmentSpec, ModelSpec, NodeSpec
from comfyd.model.sources import ConfigFiles, EnvironmentFolder, ParseResult, SourceFile, Variables

NONE: dict[str, Any] = {"instances": []}
CONFIG = "/config/environments/{}/config.json"


FULL_MODEL = {
    "url": "http://h/x", "type": "a/b", "filename": "é.safetensors", "path": "sub/dir", "source": "civitai",
    "sha256": "a" * 64, "size": 5, "revision": "main", "token_env": "MY_TOKEN", "headers": {"X-A": "b"}, "unpack": True,
    "allow_pickle": True, "download_params": {"retries": 3, "timeout": 1, "repo_type": "dataset"},
}  # fmt: skip


def folder(name: str, config: Any, **given: Any) -> EnvironmentFolder:
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    given = {"build_hash": "h", "has_install": True} | given
    return EnvironmentFolder(name, SourceFile(CONFIG.format(name), data), **given)


def read(
    *folders: EnvironmentFolder,
    previous: DesiredState | None = None,
    strict: bool = False,
    services: Any = None,
    instances: Any = NONE,
) -> ParseResult:
    side = None
    if services is not None:
        side = SourceFile("/s.json", services if isinstance(services, bytes) else json.dumps(services).encode())
    files = ConfigFiles(SourceFile("/instances.json", json.dumps(instances).encode()), folders, side)
    return parse(files, Variables(strict=strict), previous)


def state(result: ParseResult) -> DesiredState:
    assert result.state == "ok", [i.text() for i in result.issues]
    assert result.desired is not None
    return result.desired


def one(config: Any, **given: Any) -> EnvironmentSpec:
    result = read(folder("comm", config, **given))
    spec = state(result).environments[0]
    assert spec.issue is None, [i.text() for i in result.issues]
    return spec


def blocked(result: ParseResult) -> list[tuple[str, str]]:
    assert result.state == "ok"
    assert not [i for i in result.issues if i.severity == "error"]
    return [(i.code, i.path) for i in result.issues if i.severity == "blocked"]


def warned(result: ParseResult) -> list[tuple[str, str]]:
    return [(i.code, i.path) for i in result.issues if i.severity == "warning"]


def test_every_field_is_read() -> None:
    spec = one(
        {
            "name": "comm", "description": "All", "port": 3001, "workflows": ["a", "b.c-d_e"], "_note": 1,
            "service_type": "face", "startup_script": "run.sh", "command": "python 'a b' --port {port}",
            "python_environment": "venv", "conda_env": "x", "requirements": ["torch"], "dispatch": "external",
            "mode": "extra_model_paths", "probe": {"type": "http", "path": "/health"},
        },
        fix_hash="f", workflows=("b", "a"),
    )  # fmt: skip
    assert spec.command == ("python", "a b", "--port", "{port}")
    assert (spec.port, spec.workflows, spec.requirements) == (3001, ("a", "b.c-d_e"), ("torch",))
    assert (spec.dispatch, spec.mode, spec.probe and spec.probe.path) == ("external", "extra_model_paths", "/health")
    assert (spec.build_hash, spec.has_install, spec.fix_hash, spec.stored_workflows) == ("h", True, "f", ("a", "b"))


def test_command_as_a_list_is_taken_as_it_is() -> None:
    assert one({"command": ["python", "a b", "$(x)"]}).command == ("python", "a b", "$(x)")


@pytest.mark.parametrize(
    ("written", "url", "ref", "requirements"),
    [
        ("owner/repo", "https://github.com/owner/repo", None, True),
        (" owner/repo.x_y-z ", "https://github.com/owner/repo.x_y-z", None, True),
        ("owner/repo@v1.2", "https://github.com/owner/repo", "v1.2", True),
        ("owner/repo@feature/x", "https://github.com/owner/repo", "feature/x", True),
        ("https://git.example/o/r.git", "https://git.example/o/r.git", None, True),
        ("https://user@git.example/o/r", "https://user@git.example/o/r", None, True),
        ("https://git.example/o/r@abc1234", "https://git.example/o/r", "abc1234", True),
        ("git@github.com:o/r.git", "git@github.com:o/r.git", None, True),
        ("git@github.com:o/r.git@v2", "git@github.com:o/r.git", "v2", True),
        ("ssh://git@h/o/r", "ssh://git@h/o/r", None, True),
        ("/srv/git/r", "/srv/git/r", None, True),
        ("file:///srv/git/r", "file:///srv/git/r", None, True),
        ({"url": "https://h/r", "ref": "main", "requirements": False}, "https://h/r", "main", False),
        ({"repo": "o/r"}, "https://github.com/o/r", None, True),
        ({"repo": "o/r", "ref": None, "_why": 1}, "https://github.com/o/r", None, True),
        ({"url": "o/r@v1", "ref": "v1"}, "https://github.com/o/r", "v1", True),
    ],
)
def test_forms_of_nodes(written: Any, url: str, ref: str | None, requirements: bool) -> None:
    result = read(folder("comm", {"nodes": [written]}))
    assert state(result).environments[0].nodes == (NodeSpec(url=url, ref=ref, requirements=requirements),)
    assert warned(result) == ([] if ref else [("unpinned_node", "/nodes/0")])


@pytest.mark.parametrize(
    "written",
    [
        "", "repo", "-x/y", "--upload-pack=x", "ext::sh -c x", "../x", "/a/../b", "https://", "https://-h/o/r",
        "ftp://h/r", "o/r@", "o/r@-x", "o/r@a..b", "o/r\nx", "https://h/o r", 5, None, [], {}, {"url": 5},
        {"url": "o/r", "repo": "o/r"}, {"url": "o/r@v1", "ref": "v2"}, {"url": "o/r", "reff": "x"}, {"repo": "https://h/.."},
    ],
)  # fmt: skip
def test_nodes_that_are_refused(written: Any) -> None:
    result = read(folder("comm", {"nodes": ["a/b@c", written]}))
    assert blocked(result)
    assert all(path.startswith("/nodes/1") for _, path in blocked(result))
    assert state(result).environments[0].issue is not None


def test_two_nodes_in_one_folder() -> None:
    result = read(folder("comm", {"nodes": ["a/Node@v1", "-bad", "b/node@v1"]}))
    assert ("duplicate_node", "/nodes/2") in blocked(result)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (" https://h/m.safetensors\n", {"url": "https://h/m.safetensors"}),
        ({"url": " https://h/x ", "type": "loras"}, {"url": "https://h/x", "type": "loras"}),
        (FULL_MODEL, FULL_MODEL),
    ],
)
def test_forms_of_models(written: Any, expected: dict[str, Any]) -> None:
    result = read(folder("comm", {"models": [written]}))
    assert state(result).environments[0].models == (ModelSpec.model_validate(expected),)
    assert warned(result) == []


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"url": "file:///etc/passwd"}, "url"), ({"url": "ftp://h/x"}, "url"), ({"url": "https://"}, "url"),
        ({"url": "https://h:99999/x"}, "url"), ({"url": "https://h/a b"}, "url"), ({"url": "https://[x/"}, "url"),
        ({"url": 5}, "url"), ({"url": None}, "url"),
        ({"type": "../x"}, "type"), ({"type": "/x"}, "type"), ({"type": "a//b"}, "type"), ({"type": ""}, "type"),
        ({"type": "a\\b"}, "type"), ({"path": "a/../b"}, "path"), ({"filename": "a/b"}, "filename"),
        ({"filename": ".."}, "filename"), ({"filename": "a\nb"}, "filename"), ({"sha256": "x"}, "sha256"),
        ({"size": -1}, "size"), ({"source": "ftp"}, "source"), ({"token_env": "hf_abc.def"}, "token_env"),
        ({"headers": {"A\r\nB": "x"}}, "headers/A\\u000d\\u000aB"), ({"headers": {"A": "x\r\ny"}}, "headers/A"),
        ({"download_params": []}, "download_params"), ({"download_params": {"retries": -1}}, "download_params/retries"),
        ({"sha265": "x"}, "sha265"),
    ],
)  # fmt: skip
def test_models_that_are_refused(fields: dict[str, Any], place: str) -> None:
    result = read(folder("comm", {"models": [{"url": "https://h/x", "type": "vae"} | fields]}))
    assert [path for _, path in blocked(result)] == [f"/models/0/{place}"]


def test_an_unknown_download_parameter_is_only_a_warning() -> None:
    model = {"url": "https://h/x", "type": "vae", "download_params": {"colour": "red", "retries": 1}}
    result = read(folder("comm", {"models": [model]}))
    assert blocked(result) == []
    assert warned(result) == [("unknown_parameter", "/models/0/download_params/colour")]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("allow", [None, True, False])
def test_pickles_without_sha256(strict: bool, allow: bool | None) -> None:
    model = {"url": "https://h/x.CKPT?download=1", "type": "vae", "allow_pickle": allow}
    result = read(folder("comm", {"models": [model, {**model, "filename": "y.safetensors"}]}), strict=strict)
    found = [("pickle_without_sha256", "/models/0")]
    refused = strict or allow is False
    assert (blocked(result), warned(result)) == ((found, []) if refused else ([], found))
    pinned = read(folder("comm", {"models": [{**model, "sha256": "0" * 64}]}), strict=strict)
    assert (blocked(pinned), warned(pinned)) == ([], [])


def test_strict_wants_commits() -> None:
    nodes = ["a/b", "a/c@v1", "a/d@0123abc"]
    assert blocked(read(folder("comm", {"nodes": nodes}), strict=True)) == [
        ("unpinned_node", "/nodes/0"),
        ("unpinned_node", "/nodes/1"),
    ]


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"port": 0}, "/port"), ({"port": "3001"}, "/port"), ({"workflows": "a"}, "/workflows"),
        ({"workflows": ["a/b"]}, "/workflows/0"), ({"workflows": [5]}, "/workflows/0"),
        ({"workflows": ["a", "a"]}, "/workflows/1"), ({"nodes": {}}, "/nodes"), ({"models": "x"}, "/models"),
        ({"workflow": []}, "/workflow"), ({"command": "a 'b"}, "/command"), ({"command": []}, "/command"),
        ({"command": ""}, "/command"), ({"command": 5}, "/command"), ({"dispatch": "off"}, "/dispatch"),
        ({"max_running": 0}, "/max_running"), ({"max_running": "2"}, "/max_running"),
        ({"workflow_limits": {"a": 0}}, "/workflow_limits/a"), ({"workflow_limits": [1]}, "/workflow_limits"),
        ({"startup_script": "../x.sh"}, "/startup_script"), ({"probe": {"paths": "/"}}, "/probe/paths"),
        ({"name": 5}, "/name"), ({"description": 5}, "/description"), ([], ""), (None, ""), (b"{", ""), (b"", ""),
    ],
)  # fmt: skip
def test_a_broken_config_blocks_only_its_environment(config: Any, place: str) -> None:
    instances = [{"id": 0, "port": 1, "name": "a", "environment": "bad"}, {"id": 1, "port": 2, "name": "b"}]
    result = read(folder("bad", config), folder("comm", {"port": 3001}), instances={"instances": instances})
    assert [path for _, path in blocked(result)] == [place]
    desired = state(result)
    assert len(desired.instances) == 2
    bad, comm = desired.environments
    assert (comm.port, comm.issue) == (3001, None)
    assert bad.issue is not None
    assert bad.issue.reason == "environment_invalid"
    assert CONFIG.format("bad") in bad.issue.message + bad.issue.hint


def test_limits_of_workflows_that_are_not_listed_are_a_warning() -> None:
    result = read(folder("comm", {"workflows": ["a"], "max_running": 3, "workflow_limits": {"a": 1, "b": 2}}))
    assert warned(result) == [("unknown_workflow", "/workflow_limits/b")]
    (comm,) = state(result).environments
    assert (comm.max_running, comm.workflow_limits) == (3, {"a": 1, "b": 2})
    assert comm.fingerprint == comm.model_copy(update={"max_running": 1, "workflow_limits": {}}).fingerprint


def test_a_broken_config_keeps_its_last_good_version_whole() -> None:
    first = state(read(folder("comm", {"port": 3001}, build_hash="old"), folder("x", {})))
    result = read(folder("comm", b"{", build_hash="new"), folder("x", {"port": 5}), previous=first)
    assert [code for code, _ in blocked(result)] == ["invalid_json"]
    assert state(result).environments == (first.environments[0], EnvironmentSpec(
        name="x", port=5, build_hash="h", has_install=True,
    ))  # fmt: skip
    again = state(read(folder("comm", {"port": 3002}, build_hash="new"), previous=state(result)))
    assert (again.environments[0].port, again.environments[0].build_hash) == (3002, "new")


def test_a_missing_config_keeps_the_last_good_version_too() -> None:
    first = state(read(folder("comm", {"port": 3001})))
    gone = EnvironmentFolder("comm", SourceFile(CONFIG.format("comm"), None, "missing", "gone"), "h", True)
    result = read(gone, previous=first)
    assert blocked(result) == [("file_missing", "")]
    assert state(result).environments == first.environments
    assert state(read(gone)).environments[0].issue is not None


def test_an_issue_is_not_a_good_version_to_keep() -> None:
    first = state(read(folder("comm", b"{")))
    second = state(read(folder("comm", b"[]"), previous=first)).environments[0]
    assert second.issue is not None
    assert "must be an object" in second.issue.message


def test_a_workflow_of_two_environments_names_both_files() -> None:
    result = read(
        folder("a", {"workflows": ["x", "y"]}), folder("b", {"workflows": ["y"]}), folder("c", {"workflows": ["z"]})
    )
    assert blocked(result) == [("workflow_clash", "/workflows/1"), ("workflow_clash", "/workflows/0")]
    for issue in result.issues:
        assert CONFIG.format("a") in issue.message
        assert CONFIG.format("b") in issue.message
    assert [(e.name, e.workflows, e.issue is None) for e in state(result).environments] == [
        ("a", (), False), ("b", (), False), ("c", ("z",), True),
    ]  # fmt: skip


def test_a_clash_keeps_what_was_good() -> None:
    first = state(read(folder("a", {"workflows": ["x"], "port": 1}), folder("b", {"workflows": ["y"]})))
    result = read(folder("a", {"workflows": ["x"], "port": 2}), folder("b", {"workflows": ["x", "y"]}), previous=first)
    assert [code for code, _ in blocked(result)] == ["workflow_clash", "workflow_clash"]
    assert state(result).environments == first.environments


def test_a_new_environment_that_takes_a_workflow_gets_the_issue() -> None:
    first = state(read(folder("a", {"workflows": ["x"]})))
    result = read(folder("a", {"workflows": ["x"]}), folder("b", {"workflows": ["x"]}), previous=first)
    a, b = state(result).environments
    assert (a.issue, a.workflows) == (None, ("x",))
    assert b.issue is not None


def test_a_kept_version_that_clashes_with_a_new_owner() -> None:
    first = state(read(folder("a", {"workflows": ["x"]}), folder("b", {"workflows": []})))
    result = read(folder("a", b"{"), folder("b", {"workflows": ["x"]}), previous=first)
    owners = [e.name for e in state(result).environments if "x" in e.workflows]
    assert owners == ["a"]
    assert ("workflow_clash", "/workflows/0") in blocked(result)


def test_a_missing_build_script_blocks_but_not_for_a_service() -> None:
    nothing = {"build_hash": None, "has_install": False}
    result = read(folder("comm", {}, **nothing), folder("face", {"command": "x"}, **nothing))
    assert blocked(result) == [("no_build_script", "")]
    assert "build/comm/install.sh" in result.issues[0].message
    bare = read(folder("face", {"service_type": "facefusion"}, **nothing))
    assert blocked(bare) == [("no_command", "")]


def test_bad_folder_names_are_shown_and_ignored() -> None:
    bad = EnvironmentFolder("My Env", SourceFile("/config/environments", None, "bad_name", ""))
    result = read(bad, folder("comm", {}))
    assert [e.name for e in state(result).environments] == ["comm"]
    assert warned(result) == [("bad_environment_name", "")]


def test_a_name_that_differs_from_the_folder_is_a_warning() -> None:
    result = read(folder("comm", {"name": "other"}))
    assert warned(result) == [("name_differs", "/name")]
    assert state(result).environments[0].name == "comm"


JUPYTER: dict[str, Any] = {"name": "jupyter", "command": "jupyter lab --port {port}", "port": 8888}


def test_services_are_read() -> None:
    services = {"services": [{**JUPYTER, "env": {"A": "b"}, "enabled": False, "probe": {"type": "tcp"}}]}
    spec = state(read(services=services)).services[0]
    assert (spec.name, spec.command, spec.port) == ("jupyter", ("jupyter", "lab", "--port", "{port}"), 8888)
    assert (spec.env, spec.enabled, spec.key) == ({"A": "b"}, False, "sidecar/jupyter")
    assert state(read(services={})).services == ()


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"name": "../x"}, "name"), ({"name": ""}, "name"), ({"name": 5}, "name"), ({"command": []}, "command"),
        ({"command": "a 'b"}, "command"), ({"command": "x {id}"}, "command"), ({"port": 8001}, "port"),
        ({"port": None}, "command"), ({"env": {"A": 1}}, "env/A"), ({"enabled": 1}, "enabled"), ({"prot": 1}, "prot"),
        ({"probe": {"type": "http", "x": 1}}, "probe/x"),
    ],
)  # fmt: skip
def test_broken_services_keep_the_last_good_ones(fields: dict[str, Any], place: str) -> None:
    first = state(read(services={"services": [JUPYTER]}))
    result = read(services={"services": [JUPYTER | fields]}, previous=first)
    assert [path for _, path in blocked(result)] == [f"/services/0/{place}"]
    assert state(result).services == first.services


def test_services_need_unique_names_and_ports() -> None:
    result = read(services={"services": [JUPYTER, JUPYTER]})
    assert sorted(blocked(result)) == [("duplicate_name", "/services/1/name"), ("duplicate_port", "/services/1/port")]
    assert state(result).services == ()
    unprobed = {"name": "x", "command": "x", "probe": {"type": "http"}}
    assert blocked(read(services={"services": [unprobed]})) == [("bad_value", "/services/0/probe")]
    assert blocked(read(services=b"[1")) == [("invalid_json", "")]


def test_a_services_file_that_is_gone_keeps_its_services_until_an_empty_list_ends_them() -> None:
    first = state(read(services={"services": [JUPYTER]}))
    gone = read(previous=first)
    assert state(gone).services == first.services
    assert warned(gone) == [("file_missing", "")]
    assert state(read(services={"services": []}, previous=first)).services == ()
    assert warned(read()) == []
