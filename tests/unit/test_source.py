"""The position-aware reader: equal to json.loads where that applies, and exact about every flaw."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comfyd.core.plain import read_plain
from comfyd.core.source import Document, child, parse_source, quoted, read_slowly

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
LEAF = (
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
WHOLE = st.lists(VALUE, max_size=4) | st.dictionaries(TEXT, VALUE, max_size=4)
SPACE = st.sampled_from(["", " ", "\n", "\r\n", "\t", "// note {\n", "/* a\n, */", " //x\r\n"])


def codes(document: Document) -> list[str]:
    return [flaw.code for flaw in document.flaws]


@settings(deadline=None)
@given(WHOLE, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_equals_json_loads_on_valid_json(value: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    found = parse_source(text.encode())
    assert found.flaws == ()
    assert found.value == json.loads(text)
    assert json.dumps(found.value) == json.dumps(value)


TOKENS = ["{", "}", "[", "]", ",", ":", '"a"', '"b"', "1", "-0", "01", "1e999", "NaN", "true", " ", "\n", "// x\n",
          '"\\u0041"', '"\t"', "9" * 401, "1." + "0" * 400]  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(TOKENS), max_size=12).map("".join) | WHOLE.map(lambda value: json.dumps(value, indent=1))
)
@example('{"a": 1, "a": 2}')
@example("[" * 65 + "]" * 65)
def test_the_quick_reader_takes_only_what_the_exact_one_reads_alike(text: str) -> None:
    try:
        value = read_plain(text)
    except (ValueError, RecursionError):
        return
    exact = read_slowly(text)
    assert exact.flaws == ()
    assert repr(exact.value) == repr(value)
    quick = parse_source(text.encode())
    places = ["", "/a", "/0", "/a/b", "/b/0"]
    assert [quick.at(p) + quick.at_key(p) for p in places] == [exact.at(p) + exact.at_key(p) for p in places]


@settings(deadline=None)
@given(WHOLE, st.data())
def test_comments_and_space_change_nothing(value: Any, data: st.DataObject) -> None:
    tokens = json.JSONEncoder(separators=(",", ":")).iterencode(value)
    noisy = "".join(data.draw(SPACE) + token for token in tokens) + data.draw(SPACE)
    found = parse_source(noisy.encode())
    assert (found.value, found.flaws) == (value, ())


@settings(deadline=None, max_examples=60)
@given(WHOLE, st.sampled_from(["", " \n", "// end\n", "/* end */"]))
@example({"a": [1, {"b": "x\\u00e9 \U0001f600"}]}, "/* tail */ \n")
def test_every_strict_prefix_is_an_error_or_lacks_only_trailing_space(value: Any, tail: str) -> None:
    core = json.dumps(value, ensure_ascii=False).encode()
    whole = core + tail.encode()
    for cut in range(len(whole)):
        found = parse_source(whole[:cut])
        if cut < len(core):
            assert found.broken, whole[:cut]
            assert found.flaws, whole[:cut]
        else:
            assert found.broken or found.value == value


@given(st.binary(max_size=60))
@example(b"\xef\xbb")
@example(b"\xef\xbb\xbf\xff")
@example(b"+\0")
@example(b"[" * 5000)
@example(b'{"a":' * 200)
def test_never_raises_and_places_flaws_inside_the_text(data: bytes) -> None:
    found = parse_source(data)
    assert found.broken <= bool(found.flaws)
    for flaw in found.flaws:
        assert flaw.line >= 1
        assert flaw.column >= 1
        assert flaw.message.isprintable(), flaw.message


@given(st.lists(st.sampled_from(["x", "é", "\U0001f600", "\n", "\r\n", "/* ü\n */", "// ö\n"]), max_size=20))
def test_places_refer_to_the_original_text(parts: list[str]) -> None:
    before = "".join(p if p in ("\n", "\r\n") or p.startswith("/") else f"/*{p}*/" for p in parts)
    text = before + '{"key": \n  7}'
    lines = text.replace("\r\n", "\n").split("\n")
    found = parse_source(b"\xef\xbb\xbf" + text.encode())
    line, column = found.at_key("/key")
    assert lines[line - 1][column - 1 :].startswith('"key"')
    line, column = found.at("/key")
    assert lines[line - 1][column - 1 :] == "7}"
    assert found.at("/key/missing/deeper") == (line, column)


@pytest.mark.parametrize(
    ("text", "code", "line", "column", "path", "says"),
    [
        ("", "empty", 1, 1, "", "empty"),
        ("  // only a note", "empty", 1, 17, "", "empty"),
        ('{"a": 1,}', "trailing_comma", 1, 8, "", "comma"),
        ('{"a": [1,\n]}', "trailing_comma", 1, 9, "/a", "comma"),
        ('{"a": 1,\n "a": 2}', "duplicate_key", 2, 2, "/a", "line 1"),
        ('{"b": {"a~/": 1, "a~/": 2}}', "duplicate_key", 1, 18, "/b/a~0~1", "already"),
        ('{"a": NaN}', "invalid_number", 1, 7, "/a", "NaN"),
        ('{"a": -Infinity}', "invalid_number", 1, 7, "/a", "not allowed"),
        ('{"a": 1e999}', "invalid_number", 1, 7, "/a", "too large"),
        ('{"a": 012}', "invalid_number", 1, 7, "/a", "012"),
        ('{"a": +1}', "invalid_number", 1, 7, "/a", "+1"),
        ('{"a": 1.}', "invalid_number", 1, 7, "/a", "1."),
        ('{"a": ' + "9" * 5000 + "}", "invalid_number", 1, 7, "/a", "999"),
        ('{"a": "\\ud800"}', "invalid_string", 1, 7, "/a", "surrogate"),
        ('{"a": "x\\u0000"}', "invalid_string", 1, 7, "/a", "NUL"),
        ('{"a": "x\ty"}', "invalid_json", 1, 9, "/a", "U+0009"),
        ('{"a": "x\0y"}', "invalid_json", 1, 9, "/a", "U+0000"),
        ('{"a": "x\n"}', "invalid_json", 1, 7, "/a", "never closed"),
        ('{"a": "\\x"}', "invalid_json", 1, 8, "/a", "escape"),
        ('{"a": "\\u12g4"}', "invalid_json", 1, 8, "/a", "escape"),
        ('{"a" 1}', "invalid_json", 1, 6, "/a", 'expected ":"'),
        ('{"a": 1 "b": 2}', "invalid_json", 1, 9, "", 'expected ","'),
        ('{"a": 1}\n}', "invalid_json", 2, 1, "", "after the end"),
        ("{'a': 1}", "invalid_json", 1, 2, "", "double quotes"),
        ("{a: 1}", "invalid_json", 1, 2, "", "double quotes"),
        ('{"a": True}', "invalid_json", 1, 7, "/a", "True"),
        ('{"a": /* x', "invalid_json", 1, 7, "/a", "never closed"),
        ('{\n "a": [1', "invalid_json", 2, 9, "/a", "list that begins in line 2"),
        ('{"a": 1, ', "invalid_json", 1, 10, "", "ends inside the object"),
        ('{"ä\U0001f600": [x]}', "invalid_json", 1, 9, "/ä\U0001f600/0", "expected a value"),
        ('{\u00a0"a": 1}', "invalid_json", 1, 2, "", "U+00A0"),
    ],
)
def test_flaws(text: str, code: str, line: int, column: int, path: str, says: str) -> None:
    flaw = parse_source(text.encode()).flaws[0]
    assert (flaw.code, flaw.line, flaw.column, flaw.path) == (code, line, column, path)
    assert says in flaw.message


def test_flaws_that_leave_a_value_are_all_listed() -> None:
    found = parse_source(b'{"a": NaN,\n "b": 1,\n "b": {"c": 2, "c": 3,},\n "d": [0x1, "\\udfff"],}')
    assert not found.broken
    assert found.value == {"a": None, "b": 1, "d": [None, "\ufffd"]}
    assert codes(found) == [
        "invalid_number", "duplicate_key", "duplicate_key", "trailing_comma", "invalid_number", "invalid_string",
        "trailing_comma",
    ]  # fmt: skip
    assert [flaw.line for flaw in found.flaws] == [1, 3, 3, 3, 4, 4, 4]


def test_depth_is_limited_to_64() -> None:
    assert parse_source(b"[" * 64 + b"]" * 64).flaws == ()
    deep = parse_source(b"[" * 65 + b"]" * 65)
    assert deep.broken
    assert "64" in deep.flaws[0].message


def test_invalid_utf8_is_placed() -> None:
    flaw = parse_source('{"a":\n "ä'.encode() + b'\xff"}').flaws[0]
    assert (flaw.code, flaw.line, flaw.column) == ("invalid_utf8", 2, 4)
    assert "UTF-8" in flaw.hint
    assert parse_source("{}".encode("utf-16")).flaws[0].code == "invalid_utf8"


def test_a_pointer_escapes_and_a_message_stays_on_one_line() -> None:
    assert child("/a", "b/c~d") == "/a/b~1c~0d"
    assert child("", 3) == "/3"
    assert quoted('x\n"\x1b') == '"x\\n\\"\\u001b"'
    assert len(quoted("y" * 500)) <= 80


def test_a_long_file_is_read_in_linear_time() -> None:
    entries = ", // e\n".join(f'{{"id": {n}, "name": "a\\u00e9{n}", "note": "x" /* c */}}' for n in range(10_000))
    found = parse_source(f"[{entries}\n]".encode())
    assert found.flaws == ()
    assert found.at("/9999/id") == (10_000, 8)
