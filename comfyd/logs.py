"""Log records: a constant message plus keys, JSON lines or text at the edge.

Owns: the format of `comfyd.log` and stderr, and the older name of that file. Control characters are escaped, long
values cut, secrets masked by key.
Must not: be imported for anything but `get_logger` and `configure`.
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def _not_importable(name: str) -> Iterator[None]:
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


with _not_importable("rich"):  # structlog would import it for tracebacks that we never draw: 50 ms of start time
    import structlog

MAX_VALUE = 2000
OLDER_NAME = "fastapi.log"
_SECRET_KEY = re.compile(r"token|secret|password|authorization|api_?key|cookie", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def get_logger(name: str) -> Any:
    """A structured logger: `log.info("instance ready", instance="comfyui/0")`."""
    return structlog.get_logger(name)


def _clean(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if _SECRET_KEY.search(key):
            event[key] = "***"
        elif isinstance(value, str):
            short = _shortened(key, value)
            event[key] = _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", short)
    return event


def _shortened(key: str, value: str) -> str:
    """A traceback says what happened at its end, everything else at its beginning."""
    if len(value) <= MAX_VALUE:
        return value
    return "…" + value[-MAX_VALUE:] if key == "exception" else value[:MAX_VALUE] + "…"


def configure(level: str, fmt: str, log_file: Path | None) -> None:
    """Send structlog and stdlib records to stderr and, if given, append them as JSON lines to `log_file`, which can
    also be read as `fastapi.log` beside it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _clean,
    ]
    as_json = structlog.processors.JSONRenderer(ensure_ascii=False)
    as_text = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ)
    use_json = fmt == "json" or (fmt == "auto" and not sys.stderr.isatty())
    outputs: list[tuple[Any, Output]] = [(as_json if use_json else as_text, LineStream(sys.stderr))]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        outputs.append((as_json, LineFile(log_file)))
    structlog.configure(
        processors=[*shared, _as_it_is],
        logger_factory=lambda name: Direct(name, outputs),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )
    _take_over(outputs, shared, level)
    if log_file is not None:
        _link_older_name(log_file)


def _take_over(outputs: Iterable[tuple[Any, "Output"]], shared: list[Any], level: str) -> None:
    """Records of libraries, made by the standard library, get the same shape."""
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(level)
    for renderer, output in outputs:
        chain = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        output.setFormatter(structlog.stdlib.ProcessorFormatter(processors=chain, foreign_pre_chain=shared))
        root.addHandler(output)
    for talkative in ("aiohttp.access", "watchfiles"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


def _as_it_is(
    _: Any, __: str, event: MutableMapping[str, Any]
) -> tuple[tuple[MutableMapping[str, Any]], dict[str, Any]]:
    return (event,), {}


class Direct:
    """Where structured records end: straight in the outputs, each rendering made once.

    By way of the standard library a line takes twice as long, and where hundreds of processes end there are many.
    """

    def __init__(self, name: str, outputs: Sequence[tuple[Any, "Output"]]) -> None:
        self.name = name
        self._outputs = outputs

    def msg(self, event: MutableMapping[str, Any]) -> None:
        made: dict[int, str] = {}
        for renderer, output in self._outputs:
            if id(renderer) not in made:
                made[id(renderer)] = renderer(None, "", dict(event))
            output.line(self.name, made[id(renderer)])

    debug = info = warning = error = critical = msg


class Output(logging.Handler):
    """Takes whole lines, and records of the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.line(record.name, text)

    def line(self, name: str, text: str) -> None:
        """Write one line of the logger `name`. Never raises."""
        self.acquire()
        try:
            self.put(name, text)
        finally:
            self.release()

    def put(self, name: str, text: str) -> None:
        raise NotImplementedError


class LineStream(Output):
    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def put(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            self._stream.write(text + "\n")
            self._stream.flush()


class LineFile(Output):
    """Appends whole lines to a file. A full disk costs the lines that do not fit, never the caller, and no line is
    torn into another one; how many were lost is told as soon as there is room again."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._torn = False
        self._lost = 0

    def put(self, name: str, text: str) -> None:
        if self._lost and self._append(self.format(self._loss(name))):
            self._lost = 0
        self._lost += not self._append(text)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        super().close()

    def _loss(self, name: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "", 0, "log records lost: %d", (self._lost,), None)

    def _append(self, line: str) -> bool:
        data = ("\n" if self._torn else "").encode() + line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError:
            return False
        whole = written == len(data)
        self._torn = not whole and (self._torn or written > 0)
        return whole


def _link_older_name(log_file: Path) -> None:
    """What an earlier image wrote under that name is kept as `fastapi.log.1`."""
    link = log_file.with_name(OLDER_NAME)
    try:
        if link.is_symlink() and os.readlink(link) == log_file.name:
            return
        if link.exists() or link.is_symlink():
            link.rename(link.with_name(f"{OLDER_NAME}.1"))
        link.symlink_to(log_file.name)
    except OSError as error:
        get_logger("comfyd").warning("no link to the log", link=str(link), reason=str(error))
