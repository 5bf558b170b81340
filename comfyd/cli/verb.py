"""What all verbs share: the common options, finding the daemon, and errors becoming exit codes."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.main import get_command_from_info, get_group

from comfyd import __version__
from comfyd.cli.text import clean, print_json, say
from comfyd.client import ApiError, Client, DaemonTimeout, DaemonUnreachable
from comfyd.errors import ComfydError, LockHeldError, SettingsError

FAILED, USAGE, DEGRADED, TIMED_OUT, UNREACHABLE, LOCKED, BAD_CONFIG = 1, 2, 3, 4, 69, 75, 78

Root = Annotated[str | None, typer.Option("--root", metavar="DIR", help="Folder that everything hangs off.")]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Daemon to talk to: http://HOST:PORT, unix:/PATH.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
_COMMON = {"root": Root, "url": Url, "as_json": Json}


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

    def new_client(self) -> Client:
        """A client of its own, for another thread."""
        try:
            return Client(self.url, root=self.root)
        except ValueError as error:
            raise Failure(str(error), USAGE, "bad_address") from None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


Verb = Callable[..., int | None]


class Verbs:
    """The verbs of one file. A verb is a function (session, its own parameters) -> exit code or None."""

    def __init__(self, help_text: str | None = None) -> None:
        self.app = typer.Typer(help=help_text, rich_markup_mode=None, no_args_is_help=True)

    def verb(self, name: str) -> Callable[[Verb], Verb]:
        """Register under `name` with the common options added."""

        def register(function: Verb) -> Verb:
            self.app.command(name, help=inspect.getdoc(function))(_with_common(function))
            return function

        return register

    def flat(self) -> dict[str, Any]:
        """name -> command, for verbs that stand right below `comfyd`."""
        made = {}
        for info in self.app.registered_commands:
            command = get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)
            made[str(info.name)] = command
        return made

    def group(self, name: str) -> dict[str, Any]:
        """One command with the verbs below it."""
        command = get_group(self.app)
        command.name = name
        return {name: command}


def _with_common(function: Verb) -> Callable[..., None]:
    own = list(inspect.signature(function).parameters.values())[1:]

    def call(ctx: typer.Context, **given: Any) -> None:
        above = ctx.find_root().obj or {}
        root, url, as_json = (given.pop(name) or above.get(name) for name in _COMMON)
        code = _guarded(function, Session(root, url, bool(as_json)), given)
        if code:
            raise typer.Exit(code)

    kind = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared = [
        inspect.Parameter(n, kind, annotation=a, default=False if n == "as_json" else None) for n, a in _COMMON.items()
    ]
    parameters = [context, *(p.replace(kind=kind) for p in own), *shared]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _guarded(function: Verb, session: Session, given: Mapping[str, Any]) -> int:
    try:
        code = function(session, **given) or 0
        sys.stdout.flush()
    except (Failure, ApiError, DaemonUnreachable, ComfydError) as error:
        return report(error, session.as_json)
    except UnicodeEncodeError:
        return report(Failure("an argument is not valid UTF-8", USAGE, "usage"), session.as_json)
    finally:
        session.close()
    return code


def report(error: Exception, as_json: bool) -> int:
    """Say what went wrong (stderr; with --json also as the API's error shape on stdout) and give the exit code."""
    exit_code, code = _judge(error)
    message = str(getattr(error, "message", error))
    if isinstance(error, DaemonUnreachable) and not isinstance(error, DaemonTimeout):
        message += "\nis it running? `comfyd run` starts it; --url or COMFYD_URL names another one"
    if as_json:
        print_json({"error": {"code": code, "message": message, "details": getattr(error, "details", {})}})
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
    if isinstance(error, SettingsError):
        return BAD_CONFIG, error.code
    return FAILED, str(getattr(error, "code", "failed"))


def version_text() -> str:
    return f"comfyd {__version__}"
