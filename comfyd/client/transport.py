"""One HTTP exchange over TCP, TLS or a unix socket, and how the daemon is found."""

import http.client
import json
import os
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

MAX_SUN_PATH = 107
DEFAULT_PORT = 8001


class ClientError(Exception):
    """Anything this client raises on purpose."""


class DaemonUnreachable(ClientError):
    """Nobody answered. tried: each place with the reason."""

    def __init__(self, message: str, tried: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.tried = tried


class DaemonTimeout(DaemonUnreachable):
    """Connected, but no answer in time; whether the request took effect is not known."""


class ApiError(ClientError):
    """The daemon refused. code: one of comfyd.errors; status: HTTP status."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.status = status


class Target(NamedTuple):
    """Where a daemon may listen. scheme: unix | http | https; path: the socket, or a prefix of every URL."""

    scheme: str
    host: str = "localhost"
    port: int | None = None
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def prefix(self) -> str:
        """What stands before every path."""
        return "" if self.scheme == "unix" else self.path

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        if self.scheme == "unix":
            return UnixConnection(self.path, timeout)
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket whose path may be longer than the kernel's address takes."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            connect_unix(sock, self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


def connect_unix(sock: socket.socket, path: str) -> None:
    """connect() that reaches a path of any length through an open descriptor of its folder."""
    if len(os.fsencode(path)) <= MAX_SUN_PATH:
        sock.connect(path)
        return
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def parse_url(url: str) -> Target:
    """`http(s)://host[:port][/prefix]` or `unix:/path`. Raises ValueError that says what is wrong."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        return Target("unix", path="/" + path.lstrip("/") if path.startswith("//") else path)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an address: write http://HOST:PORT, https://HOST or unix:/PATH")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("an address has no user, query or fragment; a token belongs in COMFYD_TOKEN")
    default = DEFAULT_PORT if parts.scheme == "http" else 443
    port = parts.port if parts.port is not None else default
    return Target(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def state_socket(root: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> str:
    """Where the daemon of `root` (else COMFYD_ROOT, else /) has its unix socket."""
    if root is None and environ.get("COMFYD_STATE_DIR"):
        return os.path.join(environ["COMFYD_STATE_DIR"], "api.sock")
    if root is None and environ.get("COMFYD_WORKSPACE"):
        return os.path.join(environ["COMFYD_WORKSPACE"], ".comfyd", "api.sock")
    base = os.path.abspath(root or environ.get("COMFYD_ROOT") or "/")
    return os.path.join(base, "workspace", ".comfyd", "api.sock")


def candidates(
    url: str | None, path: str | None, root: str | os.PathLike[str] | None, environ: Mapping[str, str]
) -> tuple[Target, ...]:
    """Places to try, in order. A root named by the caller is never answered by a daemon of another root, so the
    TCP port is then tried only if COMFYD_PORT names it."""
    if path is not None:
        return (Target("unix", path=os.path.abspath(path)),)
    chosen = url or (None if root is not None else environ.get("COMFYD_URL"))
    if chosen:
        return (parse_url(chosen),)
    unix = Target("unix", path=state_socket(root, environ))
    port = environ.get("COMFYD_PORT")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"COMFYD_PORT={port!r} is not a port number")
    if root is not None and not port:
        return (unix,)
    return (unix, Target("http", "127.0.0.1", int(port or DEFAULT_PORT)))


def open_first(targets: tuple[Target, ...], timeout: float) -> tuple[Target, http.client.HTTPConnection]:
    """Connect to the first place that takes it. Raises DaemonUnreachable that names every place tried."""
    tried: list[str] = []
    for target in targets:
        connection = target.connection(timeout)
        try:
            connection.connect()
        except OSError as error:
            tried.append(f"{target} ({_reason(error)})")
        else:
            return target, connection
    raise DaemonUnreachable("cannot reach the daemon; tried " + ", ".join(tried), tuple(tried))


@contextmanager
def talking(target: object, method: str, path: str) -> Iterator[None]:
    """What goes wrong on the wire becomes DaemonTimeout or DaemonUnreachable. Never wrap a caller's code in it."""
    try:
        yield
    except TimeoutError as error:
        raise DaemonTimeout(f"{target} did not answer {method} {path} in time") from error
    except (OSError, http.client.HTTPException) as error:
        raise DaemonUnreachable(f"{target} closed the connection during {method} {path} ({error!r})") from error


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    return (error.strerror or str(error) or type(error).__name__).lower()


def dropped(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle kept-alive connection was closed (or spoken on) by the other side."""
    sock = connection.sock
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def decode(response: http.client.HTTPResponse, where: Target) -> Any:
    """The JSON of an answer; raises ApiError for every status that is not 2xx and for what is not JSON."""
    raw = response.read()
    try:
        body = json.loads(raw) if raw else {}
    except ValueError:
        body = None
    if not 200 <= response.status < 300:
        raise api_error(response.status, response.reason, body)
    if body is None:
        raise ApiError("bad_answer", f"{where} did not answer with JSON: is it comfyd?", status=response.status)
    return body


def api_error(status: int, reason: str, body: Any) -> ApiError:
    """From `{"error": {code, message, details}, "detail": message}`, or the best that another server gave."""
    body = body if isinstance(body, dict) else {}
    error = body.get("error")
    if isinstance(error, dict):
        details = error.get("details")
        message = str(error.get("message") or reason)
        given = details if isinstance(details, dict) else {"details": details} if details else {}
        return ApiError(str(error.get("code") or "internal"), message, given, status)
    return ApiError("unknown_answer", f"HTTP {status}: {body.get('detail') or reason}", {}, status)
