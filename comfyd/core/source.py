"""One position-aware reader of JSON with comments: bytes -> plain values, where each of them stands, and every flaw.

Owns: the syntax (JSON plus `//` and `/* */`), the limits on it and the positions. Must not: know what a file means.
Lines and columns count from 1, columns in characters of the original text (a byte order mark is not counted).
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from comfyd.core.plain import MAX_DEPTH, MAX_NUMBER, read_plain

_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
_STRING_START = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[^\s,:\[\]{}\"/]+")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}
_NOT_FINITE = {"NaN", "Infinity", "-Infinity", "+Infinity", "nan", "inf", "-inf"}
_MEANT = {"True": "write true", "False": "write false", "None": "write null", "yes": "write true", "no": "write false"}


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong with the text. path: JSON pointer of the value it belongs to."""

    code: str
    message: str
    line: int
    column: int
    path: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Document:
    """The parsed text. `value` is meaningless (None) when `broken`; flaws that leave a value to go on with do not
    break it: a duplicate key keeps its first value, NaN and bad numbers become None."""

    text: str
    value: Any = None
    flaws: tuple[Flaw, ...] = ()
    broken: bool = False
    places: tuple[dict[str, int], dict[str, int]] | None = None
    """Offsets of values and of keys by pointer; None: read again once somebody asks."""

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.places or read_slowly(self.text).places or ({}, {})

    def at(self, pointer: str) -> tuple[int, int]:
        """(line, column) of the value at `pointer`, or of the nearest enclosing one that exists."""
        values, _ = self._places
        while pointer not in values and pointer:
            pointer = pointer.rpartition("/")[0]
        return self.position(values.get(pointer, 0))

    def at_key(self, pointer: str) -> tuple[int, int]:
        """(line, column) of the key that `pointer` ends with, else as `at`."""
        _, keys = self._places
        return self.position(keys[pointer]) if pointer in keys else self.at(pointer)

    def position(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    @cached_property
    def _lines(self) -> list[int]:
        return [0, *(m.end() for m in _NEWLINE.finditer(self.text))]


def child(pointer: str, key: str | int) -> str:
    """The JSON pointer of a member (RFC 6901)."""
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def quoted(value: Any) -> str:
    """A value as it would be written in the file, on one line and not too long, for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _shown(word: str) -> str:
    """Part of the text for a message; letters that look like others, or like nothing, are named."""
    plain = word.isascii() and word.isprintable()
    return word[:40] if plain else f"{word[:40]!r} (U+{ord(word[0]):04X})"


def parse_source(data: bytes) -> Document:
    """Read one file. Never raises: everything wrong is in `flaws`, in the order of the text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode("utf-8")
        line, column = Document(good, places=({}, {})).position(len(good))
        hint = "save the file as UTF-8"
        flaw = Flaw("invalid_utf8", "this is not UTF-8 text", line, column, "", hint)
        return Document(good, None, (flaw,), True, ({}, {}))
    try:
        return Document(text, read_plain(text))
    except (ValueError, RecursionError):
        return read_slowly(text)


def read_slowly(text: str) -> Document:
    """The reader of ours: it knows comments and places, and finds every flaw."""
    reader = _Reader(text)
    try:
        value = reader.whole()
    except _BrokenError:
        return reader.document(None, broken=True)
    return reader.document(value, broken=False)


class _BrokenError(Exception):
    """The flaw just noted leaves nothing to go on with."""


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.places = Document(text, places=({}, {}))
        self.flaws: list[Flaw] = []
        self.values: dict[str, int] = {}
        self.keys: dict[str, int] = {}

    def document(self, value: Any, *, broken: bool) -> Document:
        return Document(self.text, value, tuple(self.flaws), broken, (self.values, self.keys))

    def note(self, code: str, message: str, offset: int, path: str, hint: str = "") -> None:
        line, column = self.places.position(offset)
        self.flaws.append(Flaw(code, message, line, column, path, hint))

    def fail(self, message: str, offset: int, path: str, hint: str = "", code: str = "invalid_json") -> _BrokenError:
        self.note(code, message, offset, path, hint)
        return _BrokenError()

    def space(self, path: str) -> str:
        """Skip white space and comments; the next character ("" at the end)."""
        char = self.text[self.pos : self.pos + 1]
        if char > " " and char != "/":
            return char
        match = _SPACE.match(self.text, self.pos)
        self.pos = match.end() if match else self.pos
        if self.text.startswith("/*", self.pos):
            raise self.fail("this comment is never closed", self.pos, path, "end it with */")
        return self.text[self.pos : self.pos + 1]

    def whole(self) -> Any:
        if not self.space(""):
            raise self.fail("the file is empty", self.pos, "", "write at least {}", code="empty")
        value = self.value("", 0)
        if self.space(""):
            raise self.fail(f"unexpected {self.seen()} after the end of the value", self.pos, "", "remove what follows")
        return value

    def value(self, path: str, depth: int) -> Any:
        char = self.space(path)
        self.values[path] = self.pos
        if char == '"':
            return self.string(path)
        if char in ("{", "["):
            if depth >= MAX_DEPTH:
                raise self.fail(f"nested deeper than {MAX_DEPTH} levels", self.pos, path)
            return self.mapping(path, depth + 1) if char == "{" else self.sequence(path, depth + 1)
        return self.scalar(path)

    def mapping(self, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in self.members(path, "}"):
            start = self.pos
            if self.text[start] != '"':
                raise self.fail(f"expected a key in double quotes, found {self.seen()}", start, path)
            key = self.string(path)
            inner = child(path, key)
            first = self.keys.setdefault(inner, start) if key in found else None
            if self.space(inner) != ":":
                raise self.fail(f'expected ":" after the key {quoted(key)}, found {self.seen()}', self.pos, inner)
            self.pos += 1
            if first is None:
                self.keys[inner] = start
                found[key] = self.value(inner, depth)
                continue
            line = self.places.position(first)[0]
            message = f"the key {quoted(key)} is already there in line {line}"
            self.note("duplicate_key", message, start, inner, "keep one of the two")
            self.value(inner + "#duplicate", depth)
        return found

    def sequence(self, path: str, depth: int) -> list[Any]:
        found: list[Any] = []
        for index, _ in enumerate(self.members(path, "]")):
            found.append(self.value(child(path, index), depth))
        return found

    def members(self, path: str, end: str) -> Iterator[None]:
        """Stop before each member, until `end` is passed; trailing commas are noted and skipped."""
        what, opened = ("object" if end == "}" else "list"), self.pos
        self.pos += 1
        while (char := self.space(path)) != end:
            if not char:
                raise self.unfinished(what, opened, path)
            yield
            char = self.space(path)
            if char == ",":
                comma, self.pos = self.pos, self.pos + 1
                if self.space(path) == end:
                    self.note("trailing_comma", f'a comma stands before "{end}"', comma, path, "remove the comma")
            elif char and char != end:
                raise self.fail(f'expected "," or "{end}", found {self.seen()}', self.pos, path, "is a comma missing?")
        self.pos += 1

    def unfinished(self, what: str, opened: int, path: str) -> _BrokenError:
        line = self.places.position(opened)[0]
        return self.fail(f"the file ends inside the {what} that begins in line {line}", len(self.text), path)

    def string(self, path: str) -> str:
        match = _STRING.match(self.text, self.pos)
        if match is None:
            raise self.bad_string(path)
        token, start = match.group(), self.pos
        self.pos = match.end()
        if "\\" not in token:
            return token[1:-1]
        text: str = json.loads(token)
        if _SURROGATE.search(text):
            self.note("invalid_string", "half of a surrogate pair is not a character", start, path)
            text = _SURROGATE.sub("\ufffd", text)
        if "\0" in text:
            self.note("invalid_string", "a NUL character is not allowed", start, path)
            text = text.replace("\0", "\ufffd")
        return text

    def bad_string(self, path: str) -> _BrokenError:
        match = _STRING_START.match(self.text, self.pos)
        stop = match.end() if match else self.pos
        char = self.text[stop : stop + 1]
        if char == "\\" and len(self.text) > stop + 1:
            return self.fail(f"unknown escape {self.text[stop : stop + 2]!r}", stop, path, "write a backslash as \\\\")
        if char in ("", "\n", "\r", "\\"):
            return self.fail("this text is never closed", self.pos, path, 'end it with "')
        hint = "write a tab as \\t" if char == "\t" else "remove it"
        return self.fail(f"control character U+{ord(char):04X} in a text", stop, path, hint)

    def scalar(self, path: str) -> Any:
        match = _WORD.match(self.text, self.pos)
        word = match.group() if match else ""
        if word in _CONSTANTS:
            self.pos += len(word)
            return _CONSTANTS[word]
        if (word and word[0] in "-+.0123456789") or word in _NOT_FINITE:
            start, self.pos = self.pos, self.pos + len(word)
            return self.number(word, start, path)
        if not self.text[self.pos : self.pos + 1]:
            raise self.fail("the file ends where a value is expected", self.pos, path)
        hint = _MEANT.get(word, "texts stand in double quotes" if word[:1].isalpha() or "'" in word else "")
        raise self.fail(f"expected a value, found {self.seen()}", self.pos, path, hint)

    def number(self, word: str, start: int, path: str) -> Any:
        match = _NUMBER.fullmatch(word)
        if match is None or len(word) > MAX_NUMBER:
            what = "not allowed" if word in _NOT_FINITE else "not a number in JSON"
            self.note("invalid_number", f"{_shown(word)} is {what}", start, path)
            return None
        if match.group(1) is None and match.group(2) is None:
            return int(word)
        value = float(word)
        if not math.isfinite(value):
            self.note("invalid_number", f"{_shown(word)} is too large", start, path)
            return None
        return value

    def seen(self) -> str:
        """What stands at `pos`, for a message."""
        match = _WORD.match(self.text, self.pos)
        found = match.group() if match else self.text[self.pos : self.pos + 1]
        if not found:
            return "the end of the file"
        return _shown(found)
