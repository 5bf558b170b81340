"""instances.json and the rules that join all files: accepted whole, or every error at once with its place."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from comfyd.core.config import STOCK_SHA256, check_fields, fallback_state, parse, state_from_json, state_to_json
from comfyd.core.config_args import REFUSED_FLAGS
from comfyd.core.config_report import MAX_ISSUES
from comfyd.core.lint import EXCLUSIVE_FLAGS
from comfyd.core.memo import Entries
from comfyd.model.desired import ConfigIssue, DesiredState
from comfyd.model.sources import ConfigFiles, EnvironmentFolder, ParseResult, SourceFile, Variables

STOCK = Path(__file__).parents[2] / "config" / "instances.stock.json"
INSTANCES = "/instances.json"
ENTRY = {"id": 0, "port": 3001, "name": "main"}


def environment(name: str, config: Any = None, **given: Any) -> EnvironmentFolder:
    data = config if isinstance(config, bytes) else json.dumps(config or {}).encode()
    path = f"/config/environments/{name}/config.json"
    given = {"build_hash": "h", "has_install": True} | given
    return EnvironmentFolder(name, SourceFile(path, data), **given)


def files(raw: Any, *environments: EnvironmentFolder, services: Any = None) -> ConfigFiles:
    if isinstance(raw, SourceFile):
        source = raw
    else:
        source = SourceFile(INSTANCES, raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    side = SourceFile("/config/services.json", json.dumps(services).encode()) if services is not None else None
    return ConfigFiles(source, environments or (environment("comm"),), side)


def read(raw: Any, variables: Variables | None = None, previous: DesiredState | None = None) -> ParseResult:
    return parse(files(raw), variables or Variables(), previous)


def entries(*given: Mapping[str, Any], **top: Any) -> dict[str, Any]:
    return {"instances": [{**ENTRY, **one} for one in given], **top}


def good(result: ParseResult) -> DesiredState:
    assert result.desired is not None, [i.text() for i in result.issues]
    assert result.state == "ok"
    return result.desired


def errors(result: ParseResult) -> list[tuple[str, str]]:
    assert result.desired is None
    assert result.state == "refused"
    return [(i.code, i.path) for i in result.issues if i.severity == "error"]


def warnings(result: ParseResult) -> list[tuple[str, str]]:
    return [(i.code, i.path) for i in result.issues if i.severity == "warning"]


def test_the_smallest_entry_has_the_defaults_of_the_contract() -> None:
    spec = good(read(entries({}))).instances[0]
    assert (spec.id, spec.port, spec.name, spec.description, spec.extra_args) == (0, 3001, "main", "", ())
    assert (spec.enabled, spec.environment, spec.restart.policy, spec.gpu_exclusive) == (True, "comm", "always", False)
    assert (spec.gpus, spec.env, spec.listen) == (None, {}, None)


def test_every_field_is_read() -> None:
    desired = good(
        read(
            entries(
                {
                    "description": "Main", "extra_args": "--lowvram --preview-method 'la tent'", "enabled": False,
                    "restart": {"policy": "on_failure"}, "gpu_exclusive": True, "gpus": [0, "GPU-8932f937"],
                    "env": {"OMP_NUM_THREADS": "4"}, "listen": "0.0.0.0,::", "stop_grace_s": 3, "drain_timeout_s": 4.5,
                    "probe": {"type": "tcp", "path": "/x", "startup_deadline_s": 7}, "_note": 1, "$schema": "x",
                },
                global_settings={
                    "log_directory": "/workspace/l", "pid_directory": "/p", "default_extra_args": "--a b",
                    "startup_delay": 2, "_why": "x",
                },
                environment="comm",
            )
        )
    )  # fmt: skip
    spec = desired.instances[0]
    assert spec.extra_args == ("--lowvram", "--preview-method", "la tent")
    assert (spec.restart.policy, spec.gpus, spec.env) == ("on_failure", (0, "GPU-8932f937"), {"OMP_NUM_THREADS": "4"})
    assert (spec.listen, spec.stop_grace_s, spec.drain_timeout_s) == ("0.0.0.0,::", 3.0, 4.5)
    assert (spec.probe.type, spec.probe.path, spec.probe.startup_deadline_s) == ("tcp", "/x", 7.0)
    assert (spec.enabled, spec.gpu_exclusive, desired.default_environment) == (False, True, "comm")
    assert desired.settings.default_extra_args == ("--a", "b")
    assert (desired.settings.log_directory, desired.settings.pid_directory) == ("/workspace/l", "/p")
    assert desired.settings.startup_delay == 2.0


def test_comments_and_a_byte_order_mark_are_accepted() -> None:
    text = b'\xef\xbb\xbf// mine\n{"instances": [/* one */ {"id": 0, "port": 1, "name": "a"}]}'
    assert good(read(text)).instances[0].name == "a"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", ()),
        ("  ", ()),
        ("--a 'b c' \"d\"", ("--a", "b c", "d")),
        ("--a $(touch /x) `id` ; rm -rf /", ("--a", "$(touch", "/x)", "`id`", ";", "rm", "-rf", "/")),
        (["--a", "b c", "$(x)"], ("--a", "b c", "$(x)")),
        ("--a # b", ("--a", "#", "b")),
    ],
)
def test_extra_args_are_split_once_and_never_expanded(args: Any, expected: tuple[str, ...]) -> None:
    assert good(read(entries({"extra_args": args}))).instances[0].extra_args == expected


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6), max_size=5))
def test_a_list_of_arguments_is_taken_as_it_is(args: list[str]) -> None:
    result = read(entries({"extra_args": args}))
    special = any(a.startswith("--") and a != "--" for a in args)
    if not special:
        assert good(result).instances[0].extra_args == tuple(args)


def test_unbalanced_quotes_are_an_error_with_a_place() -> None:
    result = read(b'{"instances": [\n  {"id": 0, "port": 1, "name": "a",\n   "extra_args": "--a \'b"}]}')
    assert errors(result) == [("bad_arguments", "/instances/0/extra_args")]
    assert (result.issues[0].line, result.issues[0].column) == (3, 18)
    assert result.issues[0].hint


@pytest.mark.parametrize("flag", [*REFUSED_FLAGS, "--tls-anything", "--base-dir", "--user-d", "--extra-m", "--tls-k"])
@pytest.mark.parametrize("shape", ["{} x", "{}=x", "--lowvram {}"])
@pytest.mark.parametrize("where", ["extra_args", "default_extra_args", "EXTRA_ARGS"])
def test_refused_flags(flag: str, shape: str, where: str) -> None:
    args = shape.format(flag)
    if where == "extra_args":
        result = read(entries({"extra_args": args}))
    elif where == "default_extra_args":
        result = read(entries({}, global_settings={"default_extra_args": args}))
    else:
        result = read(entries({}), Variables(extra_args=args))
    assert [code for code, _ in errors(result)] == ["refused_argument"]
    issue = result.issues[0]
    assert flag in issue.message
    assert where in (issue.file, issue.path.rpartition("/")[2])


@pytest.mark.parametrize("flag", ["--l", "--list", "--po", "--p"])
def test_beginnings_of_flags_with_a_field_are_refused(flag: str) -> None:
    assert errors(read(entries({"extra_args": f"{flag} 3001"}))) == [("refused_argument", "/instances/0/extra_args")]


@pytest.mark.parametrize("args", ["--port 3001", "--port=3001", ["--port", "3001"]])
def test_port_among_arguments_moves_to_its_field(args: Any) -> None:
    agreeing = read(entries({"extra_args": args}))
    assert good(agreeing).instances[0].extra_args == ()
    assert warnings(agreeing) == [("argument_moved", "/instances/0/port")]
    unset = read({"instances": [{"id": 0, "name": "a", "extra_args": args}]})
    assert good(unset).instances[0].port == 3001
    assert errors(read(entries({"port": 3002, "extra_args": args}))) == [("argument_conflict", "/instances/0/port")]


@pytest.mark.parametrize(
    ("args", "listen"),
    [("--listen 0.0.0.0 --cpu", "0.0.0.0"), ("--listen=::1 --cpu", "::1"), ("--listen --cpu", "0.0.0.0,::")],
)
def test_listen_among_arguments_moves_to_its_field(args: str, listen: str) -> None:
    result = read(entries({"extra_args": args}))
    spec = good(result).instances[0]
    assert (spec.listen, spec.extra_args) == (listen, ("--cpu",))
    assert warnings(result) == [("argument_moved", "/instances/0/listen")]
    conflict = read(entries({"extra_args": args, "listen": "10.0.0.1"}))
    assert errors(conflict) == [("argument_conflict", "/instances/0/listen")]


def test_listen_of_shared_arguments_becomes_the_field_of_every_instance() -> None:
    desired = good(read(entries({}, {"id": 1, "port": 2, "name": "b"}), Variables(extra_args="--listen 0.0.0.0 --x")))
    assert [i.listen for i in desired.instances] == ["0.0.0.0", "0.0.0.0"]
    top = entries({"listen": "127.0.0.1"}, global_settings={"default_extra_args": "--listen 0.0.0.0"})
    assert errors(read(top)) == [("argument_conflict", "/instances/0/listen")]


@pytest.mark.parametrize("args", ["--port", "--port x", "--port 0", "--port 70000", "--port --cpu", "--port=٣"])
def test_a_bad_port_argument(args: str) -> None:
    assert errors(read(entries({"extra_args": args})))[0][0] in ("bad_arguments", "bad_value")


def test_exclusive_and_own_flags_are_warnings() -> None:
    top = entries({"extra_args": "--cpu"}, global_settings={"default_extra_args": "--lowvram --temp-directory /t"})
    assert warnings(read(top)) == [
        ("exclusive_flags", "/instances/0/extra_args"),
        ("own_argument", "/instances/0/extra_args"),
    ]
    for flag in EXCLUSIVE_FLAGS:
        assert warnings(read(entries({"extra_args": f"{flag} {flag}"}))) == []


@pytest.mark.parametrize("name", ["a", "x" * 64, "Grüße 世界 main", "comfyui-main", "3001a", "-", "1-2-3", "All", "😀"])
def test_names_that_are_allowed(name: str) -> None:
    assert good(read(entries({"name": name}))).instances[0].name == name


@pytest.mark.parametrize(
    "name", ["", " ", "x" * 65, "a/b", "../x", "a\nb", "a\tb", "\x1b[31m", "12", "٣", "all", "1-2", "\u202ex", "\u2028"]
)
def test_names_that_are_refused(name: str) -> None:
    result = read(entries({"name": name}))
    assert errors(result) == [("bad_value", "/instances/0/name")]
    assert all(i.message.isprintable() for i in result.issues)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"id": "0"}, "id"), ({"id": -1}, "id"), ({"id": True}, "id"), ({"id": 1.0}, "id"), ({"id": None}, "id"),
        ({"id": 2**31}, "id"), ({"port": 0}, "port"), ({"port": 65536}, "port"), ({"port": "3001"}, "port"),
        ({"name": 5}, "name"), ({"description": 1}, "description"), ({"enabled": "true"}, "enabled"),
        ({"enabled": 1}, "enabled"), ({"extra_args": 5}, "extra_args"), ({"extra_args": None}, "extra_args"),
        ({"extra_args": ["a", 5]}, "extra_args/1"), ({"environment": "../x"}, "environment"),
        ({"environment": "Comm"}, "environment"), ({"environment": 1}, "environment"),
        ({"restart": {"policy": "sometimes"}}, "restart/policy"), ({"restart": "always"}, "restart"),
        ({"gpus": []}, "gpus"), ({"gpus": "all"}, "gpus"), ({"gpus": [-1]}, "gpus/0"), ({"gpus": ["0"]}, "gpus/0"),
        ({"gpus": [True]}, "gpus/0"), ({"gpus": [1, 1]}, "gpus/1"), ({"env": []}, "env"), ({"env": {"A": 1}}, "env/A"),
        ({"env": {"A B": "x"}}, "env/A B"), ({"env": {"COMFYD_UUID": "x"}}, "env/COMFYD_UUID"),
        ({"listen": "localhost; rm"}, "listen"), ({"listen": ""}, "listen"), ({"listen": "1.2.3.999"}, "listen"),
        ({"stop_grace_s": -1}, "stop_grace_s"), ({"stop_grace_s": "5"}, "stop_grace_s"),
        ({"drain_timeout_s": 1e9}, "drain_timeout_s"), ({"probe": {"type": "icmp"}}, "probe/type"),
        ({"probe": {"failures": 0}}, "probe/failures"), ({"probe": []}, "probe"),
        ({"gpu_exclusive": 1}, "gpu_exclusive"),
    ],
)  # fmt: skip
def test_bad_values_are_placed(fields: dict[str, Any], place: str) -> None:
    result = read(entries(fields))
    assert errors(result) == [("bad_value", f"/instances/0/{place}")]
    assert result.issues[0].line == 1
    assert place.partition("/")[0] in result.issues[0].message or place.startswith(("gpus/", "env/"))


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ([], [("bad_value", "")]),
        (5, [("bad_value", "")]),
        ({}, [("missing_key", "/instances")]),
        ({"instances": {}}, [("bad_value", "/instances")]),
        ({"instances": [5]}, [("bad_value", "/instances/0")]),
        ({"instances": [{}]}, [("missing_key", f"/instances/0/{n}") for n in ("id", "port", "name")]),
        ({"instances": [], "global_settings": []}, [("bad_value", "/global_settings")]),
        (
            {"instances": [], "global_settings": {"startup_delay": "2"}},
            [("bad_value", "/global_settings/startup_delay")],
        ),
        (
            {"instances": [], "global_settings": {"log_directory": "/workspace/../etc"}},
            [("bad_value", "/global_settings/log_directory")],
        ),
        ({"instances": [], "environment": "X"}, [("bad_value", "/environment")]),
    ],
)
def test_wrong_shapes(raw: Any, found: list[tuple[str, str]]) -> None:
    assert errors(read(raw)) == found


def test_unknown_keys_are_errors_with_a_suggestion() -> None:
    text = b'{"instances": [\n {"id": 0, "port": 1, "name": "a", "extra_arg": "", "probe": {"patch": 1}}],\n'
    text += b' "global_setting": 1}'
    result = read(text)
    assert errors(result) == [
        ("unknown_key", "/instances/0/extra_arg"),
        ("unknown_key", "/instances/0/probe/patch"),
        ("unknown_key", "/global_setting"),
    ]
    assert [(i.line, i.column) for i in result.issues] == [(2, 36), (2, 63), (3, 2)]
    assert [i.hint for i in result.issues] == [
        "did you mean extra_args?",
        "did you mean path?",
        "did you mean global_settings?",
    ]


def test_duplicates_are_errors_that_name_the_first() -> None:
    result = read(entries({}, {"id": 1}, {"port": 3002, "enabled": False}))
    assert sorted(errors(result)) == [
        ("duplicate_id", "/instances/2/id"),
        ("duplicate_name", "/instances/1/name"),
        ("duplicate_name", "/instances/2/name"),
        ("duplicate_port", "/instances/1/port"),
    ]
    assert all("/instances/0" in i.message for i in result.issues)


def test_the_port_of_the_api_is_refused() -> None:
    assert errors(read(entries({"port": 8001}))) == [("api_port", "/instances/0/port")]
    assert good(read(entries({"port": 8001}), Variables(api_port=9000))).instances[0].port == 8001


def test_all_errors_of_a_revision_are_listed_in_the_order_of_the_text() -> None:
    text = b"""{
 "instances": [
  {"id": 0, "port": "3001", "name": "a/b", "extra_arg": "x"},
  {"id": 0, "id": 1, "port": 8001, "name": "ok", "extra_args": "--tls-keyfile x"},
  {"id": true, "name": "c", "stop_grace_s": NaN}
 ],
 "global_settings": {"startup_delay": -1}
}"""
    result = read(text)
    assert sorted((i.line, i.code) for i in result.issues) == [
        (3, "bad_value"), (3, "bad_value"), (3, "unknown_key"), (4, "api_port"), (4, "duplicate_id"),
        (4, "duplicate_key"), (4, "refused_argument"), (5, "bad_value"), (5, "invalid_number"), (5, "missing_key"),
        (7, "bad_value"),
    ]  # fmt: skip
    assert [i.line for i in result.issues] == sorted(i.line for i in result.issues)
    assert all(i.file == INSTANCES and i.line and i.column for i in result.issues)


@pytest.mark.parametrize("problem", ["unreadable", "not_a_file", "too_large"])
def test_a_file_without_bytes_is_one_clear_issue(problem: str) -> None:
    result = read(SourceFile(INSTANCES, None, problem, f"{INSTANCES} cannot be used"))
    assert errors(result) == [(f"file_{problem}", "")]
    assert result.issues[0].hint


@pytest.mark.parametrize("data", [b"", b"  \n", b"// nothing\n", b"\xff\xfe{}", b"{", b"\0"])
def test_a_broken_file_is_refused(data: bytes) -> None:
    assert len(errors(read(data))) == 1


def test_a_missing_file_is_missing_not_empty() -> None:
    result = read(SourceFile(INSTANCES, None, "missing", "gone"))
    assert (result.state, result.desired) == ("missing", None)
    assert [i.code for i in result.issues] == ["file_missing"]


def test_every_prefix_of_a_valid_file_is_refused() -> None:
    data = STOCK.read_bytes().rstrip()
    for cut in range(len(data)):
        assert read(data[:cut]).state == "refused"


def test_the_stock_file_agrees_with_its_hash_and_with_the_contract() -> None:
    data = STOCK.read_bytes()
    assert hashlib.sha256(data).hexdigest() == STOCK_SHA256
    desired = good(read(data))
    assert desired.stock
    assert [(i.id, i.name, i.port, i.enabled) for i in desired.instances] == [
        (0, "comfyui-main", 3001, True),
        (1, "comfyui-backup", 3005, True),
    ]
    assert not good(read(data + b"\n")).stock


@pytest.mark.parametrize("source", [SourceFile(INSTANCES, None, "missing"), SourceFile(INSTANCES, STOCK.read_bytes())])
def test_comfyui_instances_gives_the_legacy_fleet(source: SourceFile) -> None:
    desired = good(read(source, Variables(instances=3, base_port=4000, environment="comm")))
    assert [(i.id, i.name, i.port, i.enabled) for i in desired.instances] == [
        (n, f"instance-{n}", 4000 + n, True) for n in range(3)
    ]
    assert not desired.stock
    assert good(read(source, Variables(instances=0))).instances == ()


def test_comfyui_instances_does_not_touch_an_edited_file() -> None:
    assert [i.name for i in good(read(entries({}), Variables(instances=3))).instances] == ["main"]
    broken = read(b"{", Variables(instances=3))
    assert broken.state == "refused"


def test_a_legacy_fleet_over_the_api_port_names_the_variable() -> None:
    result = read(SourceFile(INSTANCES, None, "missing"), Variables(instances=2, base_port=8000))
    assert errors(result) == [("api_port", "/instances/1/port")]
    assert result.issues[0].file == "COMFYUI_INSTANCES"


def test_the_environment_comes_from_the_instance_the_file_then_the_variable() -> None:
    folders = [environment(n) for n in ("a", "b", "c")]
    top = entries({"environment": "a"}, {"id": 1, "port": 2, "name": "x"}, environment="b")
    both = good(parse(files(top, *folders), Variables(environment="c"), None))
    assert [i.environment for i in both.instances] == ["a", "b"]
    variable = good(parse(files(entries({}), *folders), Variables(environment="c"), None))
    assert variable.instances[0].environment == "c"
    wrong = read(entries({}), Variables(environment="../x"))
    assert [i.file for i in wrong.issues if i.severity == "error"] == ["COMFYUI_ENVIRONMENT"]


def test_an_unknown_environment_blocks_and_does_not_refuse() -> None:
    result = read(entries({}, {"id": 1, "port": 2, "name": "x", "environment": "com"}))
    assert len(good(result).instances) == 2
    issue = result.issues[0]
    assert (issue.severity, issue.code, issue.path) == ("blocked", "environment_unknown", "/instances/1/environment")
    assert issue.hint == "did you mean comm?"


def test_nothing_enabled_with_multi_instance_says_which_file_to_edit() -> None:
    result = read(entries({"enabled": False}), Variables(multi_instance=True))
    assert warnings(result) == [("nothing_enabled", "/instances")]
    assert INSTANCES in result.issues[0].hint


def test_messages_never_break_a_line() -> None:
    result = read(b'{"instances": [{"id": 0, "port": 1, "name": "a", "x\\n\\u001b[1m": "y", "env": {"\\n": "\\n"}}]}')
    assert errors(result)
    assert all(i.text().isprintable() for i in result.issues)


def test_a_flood_of_errors_is_cut() -> None:
    result = read({"instances": [{"bad": 1}] * 5000})
    assert len(result.issues) == MAX_ISSUES + 1


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["instances", "id", "port", "name", "extra_args", "env", "gpus", "probe", "x"]), inner
            )
        ),
        max_leaves=12,
    )
)
@example({"instances": [{"id": 0, "port": 3001, "name": "a", "env": None, "gpus": None, "probe": None}]})
@example({"instances": [{"id": 0, "port": 3001, "name": "a", "env": None, "gpus": "none"}]})
@example({"instances": [{"id": 0, "port": 3001, "name": "a", "env": 1, "gpus": "none"}]})
def test_any_json_is_accepted_or_refused_with_reasons(raw: Any) -> None:
    result = read(json.dumps(raw).encode())
    assert (result.desired is None) == any(i.severity == "error" for i in result.issues)


VARIANTS = st.fixed_dictionaries(
    {
        "id": st.sampled_from([0, 1, 1.0, True]),
        "port": st.sampled_from([3001, 3002, 8001]),
        "name": st.just("a") | st.just("b"),
    },
    optional={
        "extra_args": st.sampled_from(["", "--lowvram", "--port 3001", "--listen", "--no-such"]),
        "environment": st.sampled_from(["comm", "other"]),
        "gpus": st.sampled_from([[0], "none", 3]),
        "env": st.sampled_from([{"CUDA_VISIBLE_DEVICES": "1"}, {"A": "b"}]),
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"instances": st.lists(VARIANTS, max_size=3)},
    optional={"environment": st.just("other"), "global_settings": st.just({"default_extra_args": "--highvram"})},
)


@given(
    st.lists(
        st.tuples(DOCUMENTS, st.sampled_from([Variables(), Variables(extra_args="--cpu", api_port=3002)])), max_size=6
    )
)
def test_what_is_remembered_of_earlier_documents_changes_nothing(documents: list[tuple[Any, Variables]]) -> None:
    memo = Entries()
    for raw, variables in documents:
        again, fresh = parse(files(raw), variables, None, memo=memo), parse(files(raw), variables, None)
        assert again == fresh
        if again.desired is not None and fresh.desired is not None:
            sets = [[i.model_fields_set for i in each.desired.instances] for each in (again, fresh) if each.desired]
            assert sets[0] == sets[1]


def test_state_survives_a_round_trip_and_keeps_defaults_open() -> None:
    top = entries({"gpus": "none", "probe": {"path": "/x"}}, {"id": 1, "port": 2, "name": "ü"}, environment="comm")
    folders = (
        environment("comm", {"nodes": ["a/b@v1"], "models": ["https://h/m.safetensors"]}),
        environment("bad", b"{"),
    )
    services = {"services": [{"name": "jupyter", "command": "jupyter lab --port {port}", "port": 8888}]}
    desired = good(parse(files(top, *folders, services=services), Variables(), None))
    again = state_from_json(state_to_json(desired))
    assert again == desired
    assert [i.model_fields_set for i in again.instances] == [i.model_fields_set for i in desired.instances]
    assert "stop_grace_s" not in again.instances[0].model_fields_set


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"version": 2, "state": {}}', b"\xff", b'{"version":1,"state":{"x":1}}']
)
def test_a_torn_last_good_state_is_none(data: bytes) -> None:
    assert state_from_json(data) is None


def test_fields_of_a_request() -> None:
    fields, issues = check_fields({"extra_args": "--a 'b c' --port 3005", "weird": 1, "_x": 1})
    assert fields == {"extra_args": ["--a", "b c"], "port": 3005}
    assert [(i.severity, i.code) for i in issues] == [("warning", "unknown_key"), ("warning", "argument_moved")]
    for raw in ({"port": "x"}, {"name": "a/b"}, {"extra_args": "'"}, {"extra_args": "--tls-keyfile x"}, 5, []):
        assert _failed(check_fields(raw)[1]), raw


def _failed(issues: tuple[ConfigIssue, ...]) -> bool:
    return any(i.severity == "error" for i in issues)


def test_the_fallback_has_environments_but_no_instances() -> None:
    state = fallback_state(files(b"{", environment("comm"), environment("x")), Variables())
    assert (state.instances, [e.name for e in state.environments]) == ((), ["comm", "x"])


@pytest.mark.parametrize("path", ["prompt", "", "@evil.example/", "/x y", "/x\r\nHost: y", "/\u00e9", ":80/x"])
def test_a_probe_path_cannot_leave_the_instance(path: str) -> None:
    assert errors(read(entries({"probe": {"path": path}}))) == [("bad_value", "/instances/0/probe/path")]


def test_true_is_no_duplicate_of_one() -> None:
    found = read(entries({"id": 1, "port": 5, "name": "a"}, {"id": True, "port": 6, "name": "b"}))
    assert errors(found) == [("bad_value", "/instances/1/id")]


def test_an_empty_file_is_told_what_would_be_accepted() -> None:
    hint = read(b" \n").issues[0].hint
    assert '{"instances": []}' in hint
    assert good(read(b'{"instances": []}')).instances == ()


def test_more_errors_than_are_listed_are_counted() -> None:
    found = read({"instances": [{**ENTRY, "id": n, "port": n + 1, "name": f"n{n}", "colour": 1} for n in range(500)]})
    assert len(found.issues) == MAX_ISSUES + 1
    assert (found.issues[-1].code, found.issues[-1].severity) == ("too_many", "error")
    assert "300 more" in found.issues[-1].message


@pytest.mark.parametrize(("replaced", "says"), [(False, "edits in place are seen"), (True, "was replaced")])
def test_a_file_that_is_mounted_by_itself_is_a_warning(replaced: bool, says: str) -> None:
    data = json.dumps({"instances": [ENTRY]}).encode()
    result = read(SourceFile(INSTANCES, data, inode=7, mounted=True, replaced=replaced))
    assert good(result).instances[0].id == 0
    assert [(i.severity, i.code, i.file) for i in result.issues] == [("warning", "mounted_file", INSTANCES)]
    assert says in result.issues[0].message


def test_a_folder_of_environments_that_is_lost_is_no_wish_to_have_none() -> None:
    first = good(read(entries({})))
    lost = ConfigFiles(SourceFile(INSTANCES, json.dumps(entries({})).encode()), lost="/config/environments: gone")
    result = parse(lost, Variables(), first)
    assert good(result).environments == first.environments
    assert [(i.code, i.file) for i in result.issues] == [("environments_lost", "/config/environments")]
    assert good(parse(lost, Variables(), None)).environments == ()
