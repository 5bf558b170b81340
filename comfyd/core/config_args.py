"""Command line arguments as written in files and in EXTRA_ARGS: split once, never given to a shell, checked.

Owns: which flags have a field of their own and which are refused. Must not: build commands.
"""

import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from comfyd.core.config_report import Report
from comfyd.core.lint import flags_among, rivals, suggestion, unknown_flags
from comfyd.core.source import child, quoted

FIELD_FLAGS = ("--listen", "--port")
REFUSED_FLAGS = (
    "--base-directory",
    "--user-directory",
    "--extra-model-paths-config",
    "--front-end-root",
    "--enable-cors-header",
    "--tls-keyfile",
    "--tls-certfile",
)
OWN_FLAGS = ("--output-directory", "--temp-directory", "--database-url")
LISTEN_EVERYWHERE = "0.0.0.0,::"
"""What ComfyUI makes of a bare `--listen`."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What remains to be passed on, and what belongs in fields (None = not among the arguments)."""

    args: tuple[str, ...] = ()
    port: int | None = None
    listen: str | None = None


def split(value: Any, report: Report, pointer: str, what: str) -> tuple[str, ...] | None:
    """A string split once like a shell would, or a list of strings as it is. None (and an error) otherwise."""
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            hint = 'close the quotes, or write a list: ["--flag", "value"]'
            report.error("bad_arguments", f"{what} cannot be split: {str(error).lower()}", pointer, hint)
            return None
    if not isinstance(value, list):
        report.error("bad_value", f"{what} must be a text or a list of texts, not {quoted(value)}", pointer)
        return None
    for index, part in enumerate(value):
        if not isinstance(part, str):
            place = child(pointer, index)
            report.error("bad_value", f"{what}[{index}] must be a text, not {quoted(part)}", place, 'write "..."')
    return None if report.wrong(pointer) else tuple(value)


def read_arguments(value: Any, report: Report, pointer: str, what: str) -> Arguments | None:
    """Arguments for ComfyUI: `--port` and `--listen` are taken out, refused flags are errors."""
    words = split(value, report, pointer, what)
    if words is None:
        return None
    kept: list[str] = []
    port: int | None = None
    listen: str | None = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, given = word.partition("=")
        if flag == "--port":
            port = _port(given if equals else _next(rest), report, pointer)
        elif flag == "--listen":
            listen = (given if equals else _next(rest)) or LISTEN_EVERYWHERE
        elif not _refused(flag, report, pointer, what):
            kept.append(word)
    return None if report.wrong(pointer) else Arguments(tuple(kept), port, listen)


def _next(rest: list[str]) -> str | None:
    return rest.pop(0) if rest and not rest[0].startswith("-") else None


def _port(word: str | None, report: Report, pointer: str) -> int | None:
    if word is None or not word.isascii() or not word.isdigit() or not 1 <= int(word[:9]) <= 65535:
        report.error("bad_arguments", f"--port needs a number from 1 to 65535, not {quoted(word)}", pointer)
        return None
    return int(word)


def _refused(flag: str, report: Report, pointer: str, what: str) -> bool:
    """argparse takes any unambiguous beginning of a flag, so beginnings are refused too."""
    if not flag.startswith("--") or flag == "--":
        return False
    meant = next((f for f in (*REFUSED_FLAGS, *FIELD_FLAGS) if f.startswith(flag)), None)
    if meant is None and not flag.startswith("--tls-"):
        return False
    if meant in FIELD_FLAGS:
        report.error("refused_argument", f"{what}: {flag} may mean {meant}", pointer, "write flags in full")
    else:
        of = "" if meant in (flag, None) else f" (may mean {meant})"
        report.error("refused_argument", f"{what}: {flag}{of} is not allowed", pointer, "remove it")
    return True


def check_together(args: Iterable[str], report: Report, pointer: str, known: Collection[str] = ()) -> None:
    """Warnings about the whole command line of one instance. known: what the --help of its environment lists."""
    words = tuple(args)
    flags = flags_among(words)
    for flag in unknown_flags(words, known):
        text = f"{flag}: the --help of its environment does not list it: ComfyUI may end at once"
        report.warning("unknown_flag", text, pointer, suggestion(flag, known))
    for group in rivals(words, known):
        text = f"{' and '.join(group)} exclude each other: ComfyUI will not start"
        report.warning("exclusive_flags", text, pointer, "keep one of them")
    for flag in (f for f in OWN_FLAGS if f in flags):
        text = f"{flag} replaces what comfyd sets for each instance"
        report.warning("own_argument", text, pointer, "remove it unless you really want that")
