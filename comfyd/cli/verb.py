"""What all verbs share: how they are declared, the common options, and errors becoming exit codes.

argparse and not typer: typer's parameters import pydantic, which makes a verb start in 17 times the time of a bare
interpreter; this takes 7 (docs/decisions/0010-argparse.md).
"""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from comfyd import __version__
from comfyd.cli.text import clean, print_json, say
from comfyd.client import ApiError, Client, DaemonTimeout, DaemonUnreachable
from comfyd.errors import ComfydError, LockHeldError

FAILED, USAGE, DEGRADED, TIMED_OUT, UNREACHABLE, LOCKED, BAD_CONFIG = 1, 2, 3, 4, 69, 75, 78

Argument = tuple[tuple[str, ...], dict[str, Any]]
Verb = Callable[..., int | None]


class Entry(NamedTuple):
    """One declared verb."""

    function: Verb
    about: str
    arguments: tuple[Argument, ...]


_ENTRIES: dict[str, Entry] = {}


def argument(*flags: str, **options: Any) -> Argument:
    """One argument in the words of argparse."""
    return flags, options


def verb(name: str, *arguments: Argument) -> Callable[[Verb], Verb]:
    """Declare `comfyd NAME`: a function (session, its arguments by name) -> exit code, None = 0."""

    def register(function: Verb) -> Verb:
        _ENTRIES[name] = Entry(function, inspect.getdoc(function) or "", arguments)
        return function

    return register


def entries(top: str) -> dict[str, Entry]:
    """The verb `top`, or those below it (`task submit`, ...), of the files imported so far."""
    return {name: entry for name, entry in _ENTRIES.items() if name.split(" ")[0] == top}


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with the options that every verb takes before and after its name."""

    def __init__(self, prog: str, about: str, **options: Any) -> None:
        super().__init__(
            prog=prog,
            description=about,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def add_common(self) -> None:
        absent = argparse.SUPPRESS
        self.add_argument("--root", metavar="DIR", default=absent, help="folder that everything hangs off")
        self.add_argument("--url", default=absent, help="daemon to talk to: http://HOST:PORT, unix:/PATH")
        self.add_argument(
            "--json", dest="as_json", action="store_true", default=absent, help="machine-readable output on stdout"
        )

    def unknown(self, word: str, known: Sequence[str]) -> NoReturn:
        self.error(f"no command '{clean(word)}'{did_you_mean(word, known)} see {self.prog} --help")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` or `;`."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ";"


def between(kind: type[float], low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number within both bounds."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return convert


SECONDS = between(float, 0, 86400)


class Failure(Exception):
    """A verb's own bad end. code: stable and snake_case; details: data for programs."""

    def __init__(
        self, message: str, exit_code: int = FAILED, code: str = "failed", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code
        self.details = dict(details or {})


class Session:
    """The common options of one call, and its one client."""

    def __init__(self, root: str | None = None, url: str | None = None, as_json: bool = False) -> None:
        self.root, self.url, self.as_json = root, url, as_json
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def new_client(self, timeout: float = 30.0) -> Client:
        """A client of its own, for another thread or with another patience (seconds for an answer)."""
        try:
            return Client(self.url, root=self.root, timeout=timeout)
        except ValueError as error:
            raise Failure(str(error), USAGE, "bad_address") from None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def run(function: Verb, session: Session, given: Mapping[str, Any]) -> int:
    """Call a verb; every expected error becomes a message and an exit code."""
    try:
        return function(session, **given) or 0
    except (Failure, ApiError, DaemonUnreachable, ComfydError) as error:
        return report(error, session.as_json)
    except UnicodeEncodeError:
        return report(Failure("an argument is not valid UTF-8", USAGE, "usage"), session.as_json)
    finally:
        session.close()


def report(error: Exception, as_json: bool) -> int:
    """Say what went wrong (stderr; with --json also as the API's error shape on stdout) and give the exit code."""
    exit_code, code = _judge(error)
    message = str(getattr(error, "message", error))
    if exit_code == UNREACHABLE:
        message += "\nis it running? `comfyd run` starts it; --url or COMFYD_URL names another one"
    if as_json:
        print_json({"error": {"code": code, "message": message, "details": getattr(error, "details", {})}})
        sys.stdout.flush()
    say(f"comfyd: {clean(message, lines=True)}")
    return exit_code


def _judge(error: Exception) -> tuple[int, str]:
    if isinstance(error, Failure):
        return error.exit_code, error.code
    if isinstance(error, DaemonTimeout):
        return TIMED_OUT, "timed_out"
    if isinstance(error, DaemonUnreachable):
        return UNREACHABLE, "daemon_unreachable"
    if isinstance(error, LockHeldError):
        return LOCKED, error.code
    code = str(getattr(error, "code", "failed"))
    return BAD_CONFIG if code == "invalid_config" else FAILED, code


def version_text() -> str:
    return f"comfyd {__version__}"
