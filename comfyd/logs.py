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
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    as_json = Once(structlog.processors.JSONRenderer(ensure_ascii=False), shared)
    as_text = Once(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ), shared)
    use_json = fmt == "json" or (fmt == "auto" and not sys.stderr.isatty())
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(level)
    _add(root, logging.StreamHandler(sys.stderr), as_json if use_json else as_text)
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        _add(root, LineFile(log_file), as_json)
        _link_older_name(log_file)
    for talkative in ("aiohttp.access", "watchfiles"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


class LineFile(logging.Handler):
    """Appends whole lines to a file. A full disk costs the lines that do not fit, never the caller, and no line is
    torn into another one; how many were lost is told as soon as there is room again."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._torn = False
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if self._lost and self._append(self.format(self._loss(record))):
            self._lost = 0
        self._lost += not self._append(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        super().close()

    def _loss(self, at: logging.LogRecord) -> logging.LogRecord:
        made = logging.LogRecord(at.name, logging.ERROR, "", 0, "log records lost: %d", (self._lost,), None)
        made.created = at.created
        return made

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


class Once(logging.Formatter):
    """Renders each record once, however many handlers share it."""

    def __init__(self, renderer: Any, shared: list[Any]) -> None:
        super().__init__()
        chain = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        self._inner = structlog.stdlib.ProcessorFormatter(processors=chain, foreign_pre_chain=shared)
        self._last: tuple[logging.LogRecord | None, str] = (None, "")

    def format(self, record: logging.LogRecord) -> str:
        known, text = self._last  # one tuple: other threads log as well
        if known is not record:
            text = self._inner.format(record)
            self._last = record, text
        return text


def _add(root: logging.Logger, handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.setFormatter(formatter)
    root.addHandler(handler)
