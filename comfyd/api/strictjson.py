"""Bytes of a request body into plain data, refusing what pydantic and json let pass.

Owns: duplicate keys, NaN and infinities, NUL, lone surrogates, depth, how many values. Must not: know any model.
"""

import json
import re
from typing import Any, NoReturn

from comfyd.errors import ComfydError

MAX_DEPTH = 64
MAX_VALUES = 250_000
"""More than 20,000 nodes with their inputs. Judged by the commas, before anything is made of them."""
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse(message: str, **details: Any) -> NoReturn:
    raise ComfydError(f"the body is not acceptable JSON: {message}", code="invalid_json", details=details)


def decode(data: bytes) -> Any:
    """The JSON value in `data`. Raises ComfydError `invalid_json` that says where, or payload_too_large."""
    value, rest = decode_prefix(data)
    if rest:
        refuse("there is text after its end")
    return value


def decode_prefix(data: bytes) -> tuple[Any, str]:
    """The JSON value at the start of `data`, and the stripped text that follows it."""
    if data.count(b",") > MAX_VALUES:
        raise ComfydError(f"the body has more than {MAX_VALUES} values", code="payload_too_large")
    try:
        text = data.decode("utf-8-sig").lstrip(" \t\r\n")
    except UnicodeDecodeError as error:
        refuse(f"byte {error.start} is not UTF-8", offset=error.start)
    try:
        value, end = _DECODER.raw_decode(text)
    except RecursionError:
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    except json.JSONDecodeError as error:
        refuse(f"{error.msg} at line {error.lineno} column {error.colno}", line=error.lineno, column=error.colno)
    except ValueError:
        refuse("a number has too many digits")
    if _SUSPECT.search(text) or text.count("[") + text.count("{") > MAX_DEPTH:
        _walk(value)
    return value, text[end:].strip()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        refuse(f"the key {twice[:100]!r} is given twice", key=twice[:100])
    return made


def _constant(name: str) -> NoReturn:
    refuse(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        refuse(f"the number {text[:40]} is too large")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_finite)


def _walk(value: Any) -> None:
    """Look at every string and the depth, without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                deeper += one.keys()
                deeper += one.values()
            elif isinstance(one, list):
                deeper += one
            elif isinstance(one, str):
                _text(one)
        if not deeper:
            return
        level = deeper
    if any(isinstance(one, dict | list) for one in level):
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    for one in level:
        if isinstance(one, str):
            _text(one)


def _text(text: str) -> None:
    if "\0" in text:
        refuse("a text holds a NUL character")
    if _SURROGATE.search(text):
        refuse("a text holds half of a surrogate pair")
