"""The lint of arguments says what a real argparse would do, without starting anything."""

import argparse
import io
from contextlib import redirect_stderr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyd.core.config import parse
from comfyd.core.lint import EXCLUSIVE_FLAGS, EXCLUSIVE_GROUPS, argument_warnings, rivals, unknown_flags
from comfyd.environments.verify import _FLAG
from comfyd.model.sources import ConfigFiles, EnvironmentFolder, SourceFile, Variables

SWITCHES = ("--disable-metadata", "--disable-all-custom-nodes", "--fast", "--cpu-vae")
GROUPED = tuple(flag for group in EXCLUSIVE_GROUPS for flag in group)
KNOWN = frozenset({"--help", "--reserve-vram", *SWITCHES, *GROUPED})


def parser() -> argparse.ArgumentParser:
    """A parser of the same options, as ComfyUI makes its own."""
    made = argparse.ArgumentParser(prog="main.py")
    made.add_argument("--reserve-vram", type=float)
    for flag in SWITCHES:
        made.add_argument(flag, action="store_true")
    for group in EXCLUSIVE_GROUPS:
        exclusive = made.add_mutually_exclusive_group()
        for flag in group:
            exclusive.add_argument(flag, action="store_true")
    return made


PARSER = parser()


def accepted(args: list[str]) -> bool:
    try:
        with redirect_stderr(io.StringIO()):
            PARSER.parse_args(args)
    except SystemExit:
        return False
    return True


def beginnings(flag: str) -> st.SearchStrategy[str]:
    return st.integers(3, len(flag)).map(lambda length: flag[:length])


FLAGS = st.sampled_from(sorted(KNOWN - {"--help", "--reserve-vram"}))
WORDS = st.one_of(
    FLAGS.map(lambda flag: [flag]),
    FLAGS.flatmap(beginnings).filter(lambda word: not "--help".startswith(word)).map(lambda flag: [flag]),
    st.sampled_from([["--reserve-vram", "0.5"], ["--reserve-vram=2"], ["--lowvrm"], ["--xformers"], ["--cpu2"]]),
)
LINES = st.lists(WORDS, max_size=4).map(lambda parts: [word for part in parts for word in part])


@settings(max_examples=400, deadline=None)
@given(LINES)
def test_it_warns_exactly_where_argparse_refuses(args: list[str]) -> None:
    doubts = argument_warnings(tuple(args), "comm", KNOWN)
    assert (doubts == ()) is accepted(args), (args, doubts)
    assert all(c.hint and c.message and c.type == "argument_warning" for c in doubts)


def test_options_are_read_from_the_help_of_that_parser() -> None:
    assert set(_FLAG.findall(PARSER.format_help())) >= KNOWN


@pytest.mark.parametrize(
    ("args", "unknown", "hint"),
    [
        ("--lowvrm", ["--lowvrm"], "did you mean --lowvram?"),
        ("--lowvrm=1 --lowvrm", ["--lowvrm"], "did you mean --lowvram?"),
        ("--disable", ["--disable"], "--disable-all-custom-nodes or --disable-cuda-malloc or --disable-metadata"),
        ("--zzzz", ["--zzzz"], "remove it"),
        ("--lowv --reserve-vram 1 -5 x", [], ""),
        ("-- --lowvrm", [], ""),
        ("", [], ""),
    ],
)
def test_unknown_options(args: str, unknown: list[str], hint: str) -> None:
    words = tuple(args.split())
    assert unknown_flags(words, KNOWN) == unknown
    found = argument_warnings(words, "comm", KNOWN)
    assert [c.reason for c in found] == ["unknown_flag"] * len(unknown)
    assert all(hint in c.hint and unknown[0] in c.message and "comm" in c.message for c in found)


def test_nothing_is_unknown_before_the_environment_is_installed() -> None:
    assert unknown_flags(("--whatever",), frozenset()) == []
    (pair,) = argument_warnings(("--cpu", "--whatever", "--lowvram"), "comm", frozenset())
    assert pair.reason == "exclusive_flags"


@pytest.mark.parametrize("first", EXCLUSIVE_FLAGS)
@pytest.mark.parametrize("second", EXCLUSIVE_FLAGS)
def test_two_memory_options_exclude_each_other(first: str, second: str) -> None:
    expected = [] if first == second else [(first, second)]
    assert rivals((first, second)) == expected
    for condition in argument_warnings((first, second), "comm", KNOWN):
        assert first in condition.message
        assert second in condition.message


def test_abbreviations_exclude_each_other_too() -> None:
    assert rivals(("--lowv", "--nov"), KNOWN) == [("--lowv", "--nov")]


def test_files_are_checked_against_an_installed_environment_with_line_and_column() -> None:
    text = b'{"instances": [\n {"id": 0, "port": 3001, "name": "a", "extra_args": "--lowvrm"},\n'
    text += b' {"id": 1, "port": 3002, "name": "b", "extra_args": "--lowvrm", "environment": "other"}]}'
    folders = [EnvironmentFolder(n, SourceFile(f"/{n}", b"{}"), "h", has_install=True) for n in ("comm", "other")]
    files = ConfigFiles(SourceFile("/i", text), tuple(folders))
    result = parse(files, Variables(extra_args="--novrm"), None, {"comm": KNOWN})
    found = [(i.code, i.line, i.severity, i.hint) for i in result.issues]
    assert found == [
        ("unknown_flag", 2, "warning", "did you mean --novram?"),
        ("unknown_flag", 2, "warning", "did you mean --lowvram?"),
    ]
    assert result.desired is not None
    assert parse(files, Variables(), None).issues == ()
