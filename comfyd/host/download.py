"""One file from one URL: to `.part`, resumed, checked, then renamed into place.

Owns: ranges, retries, size, sha256 and format checks, and that a final name never shows a partial or wrong file.
Must not: choose where a file goes or which token it needs. Folders are opened without following links.
"""

import errno
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread

from comfyd.errors import ComfydError
from comfyd.failpoint import failpoint
from comfyd.host.clock import mono, wall
from comfyd.host.net import NOT_PUBLIC, Net, Request, UrlRefused, shown
from comfyd.host.part import Folder, Part, WrongContent, install

CHUNK = 1024 * 1024
RETRY_AFTER_CAP_S = 3600.0
WRONG_CONTENT_TRIES = 3
RESERVE_BYTES = 256 * 1024 * 1024
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})

Progress = Callable[[int, int | None], None]
"""Called with (bytes on disk, bytes in all or None)."""


class DownloadFailed(ComfydError):
    """The file could not be had. reason: stable snake_case cause; the message names the URL without secrets."""

    def __init__(self, request: Request, reason: str, message: str) -> None:
        super().__init__(f"{shown(request.url)}: {message}", code="download_failed", details={"reason": reason})
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Transfer:
    """What to fetch and where to. root/folder/name is the file; name None = the answer names it.

    journal: a path outside of `root` that remembers how far we are. tries: failures in a row without any progress.
    delay_s: first pause, doubled each time. speed: bytes per second at most. reserve: bytes that stay free.
    """

    request: Request
    root: Path
    folder: tuple[str, ...]
    name: str | None
    part: str
    journal: Path
    sha256: str | None = None
    size: int | None = None
    max_bytes: int | None = None
    tries: int = 5
    delay_s: float = 1.0
    speed: float | None = None
    reserve: int = RESERVE_BYTES


@dataclass(frozen=True, slots=True)
class Downloaded:
    """name: the final file name; sha256 is None if nobody asked for it."""

    name: str
    size: int
    sha256: str | None


class _Again(Exception):
    """Try once more. wait_s: as the server told, None = by the backoff curve."""

    def __init__(self, reason: str, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.wait_s = wait_s


async def download(net: Net, transfer: Transfer, progress: Progress = lambda done, total: None) -> Downloaded:
    """Fetch, check and rename. Raises DownloadFailed or UrlRefused; a partial file stays for the next try."""
    folder = await anyio.to_thread.run_sync(_open_folder, transfer)
    part = Part(folder, transfer.part, transfer.journal, str(transfer.request.url.with_user(None)))
    failures = wrong = 0
    try:
        await anyio.to_thread.run_sync(part.open)
        while True:
            before = part.size
            try:
                name = await _fetch(net, transfer, part, progress)
                return await _install(transfer, part, name)
            except WrongContent as error:
                await anyio.to_thread.run_sync(part.restart)
                wrong += 1
                if error.permanent or wrong >= WRONG_CONTENT_TRIES:
                    raise DownloadFailed(transfer.request, error.reason, str(error)) from error
                again = _Again(error.reason, str(error))
            except _Again as error:
                again = error
            except (aiohttp.ClientError, TimeoutError) as error:
                again = _network(transfer.request, error)
            failures = failures + 1 if part.size <= before else 0
            await _pause(transfer, again, failures)
    except OSError as error:
        raise await _disk_failure(transfer.request, part, error) from error
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(part.close)


def _open_folder(transfer: Transfer) -> Folder:
    try:
        return Folder.below(transfer.root, transfer.folder)
    except OSError as error:
        where = transfer.root.joinpath(*transfer.folder)
        message = f"{where} is no folder below {transfer.root} (links are not followed): {error.strerror}"
        raise DownloadFailed(transfer.request, "bad_folder", message) from error


def _network(request: Request, error: Exception) -> _Again:
    if NOT_PUBLIC in str(error):
        raise UrlRefused(f"{shown(request.url)}: {error}") from error
    if isinstance(error, aiohttp.InvalidURL):
        raise DownloadFailed(request, "bad_url", "is not a valid URL") from error
    return _Again("network", f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


async def _disk_failure(request: Request, part: Part, error: OSError) -> DownloadFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        await anyio.to_thread.run_sync(part.restart)
        return DownloadFailed(request, "disk_full", "the disk is full; free some space")
    return DownloadFailed(request, "disk_error", f"{error.strerror} ({error.filename})")


async def _pause(transfer: Transfer, again: _Again, failures: int) -> None:
    if failures >= transfer.tries:
        message = f"{again} (tried {failures} times)" if failures > 1 else str(again)
        raise DownloadFailed(transfer.request, again.reason, message)
    wait = again.wait_s
    if wait is None:
        wait = transfer.delay_s * 2 ** max(0, failures - 1)
    await anyio.sleep(min(RETRY_AFTER_CAP_S, wait) * random.uniform(1.0, 1.1))


async def _fetch(net: Net, transfer: Transfer, part: Part, progress: Progress) -> str | None:
    """Bring the part to its full length. Returns the file name that the answer gave."""
    offset = part.resume_at()
    headers = dict(transfer.request.headers)
    if offset and part.etag:
        headers |= {"Range": f"bytes={offset}-", "If-Range": part.etag}
    request = Request(
        transfer.request.url, headers, transfer.request.secret_headers, transfer.request.connect_timeout_s,
        transfer.request.read_timeout_s,
    )  # fmt: skip
    async with net.get(request) as response:
        if await _accept(transfer, part, response, offset):
            return _name_of(response)
        await _check_before(transfer, part, response)
        failpoint("part_opened")
        await _body(transfer, part, response, progress)
        if part.total is not None and part.size != part.total:
            raise _Again("truncated", f"{part.size} of {part.total} bytes came")
        return _name_of(response)


async def _accept(transfer: Transfer, part: Part, response: aiohttp.ClientResponse, offset: int) -> bool:
    """Judge status and range. True if the part is complete already; raises if there is no usable body."""
    status = response.status
    if status == 200:
        if part.size:
            await anyio.to_thread.run_sync(part.restart)
        return False
    if status in (206, 416):
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        same = response.headers.get("ETag", part.etag) == part.etag
        if status == 206 and same and unit == "bytes" and offset and span.partition("-")[0] == str(offset):
            return False
        if status == 416 and offset and total == str(offset):
            return True
        await anyio.to_thread.run_sync(part.restart)
        raise _Again("bad_range", f"the server answered the wrong range ({status})", 0.0)
    message = f"the server answered {status} {response.reason or ''}".rstrip()
    if status in _RETRIED or status > 504:
        raise _Again(f"http_{status}", message, _retry_after(response) if status in (429, 503) else None)
    if status in (401, 403):
        message += "; a token may be missing (HF_TOKEN, CIVITAI_TOKEN or token_env) or the licence not accepted"
    raise DownloadFailed(transfer.request, f"http_{status}", message)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - wall())
    except (ValueError, TypeError, OverflowError):
        return None


def _name_of(response: aiohttp.ClientResponse) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = response.content_disposition
    return (given.filename if given else None) or response.url.name or None


async def _check_before(transfer: Transfer, part: Part, response: aiohttp.ClientResponse) -> None:
    """What can be refused before a byte is written."""
    if response.content_type in ("text/html", "application/xhtml+xml"):
        raise WrongContent("html", "the server sent a web page instead of the file", permanent=True)
    length = response.content_length
    total = part.size + length if length is not None else None
    if total is not None and transfer.size is not None and total != transfer.size:
        message = f"the file has {total} bytes, the config says {transfer.size}"
        raise WrongContent("wrong_size", message, permanent=True)
    _check_max(transfer, total or transfer.size or 0)
    needed = (length if length is not None else transfer.size or 0) + transfer.reserve
    free = await anyio.to_thread.run_sync(part.folder.free_bytes)
    if needed > free:
        message = f"{needed} bytes are needed (with a reserve of {transfer.reserve}), {free} are free"
        raise DownloadFailed(transfer.request, "disk_full", message)
    etag = response.headers.get("ETag")
    await anyio.to_thread.run_sync(part.begin, etag, total)


def _check_max(transfer: Transfer, size: int) -> None:
    if transfer.max_bytes is not None and size > transfer.max_bytes:
        message = f"the file is larger than max_filesize ({transfer.max_bytes} bytes)"
        raise WrongContent("too_large", message, permanent=True)


async def _body(transfer: Transfer, part: Part, response: aiohttp.ClientResponse, progress: Progress) -> None:
    buffer, begun, came = bytearray(), mono(), 0
    try:
        async for chunk in response.content.iter_any():
            buffer += chunk
            came += len(chunk)
            if len(buffer) < CHUNK:
                continue
            _check_max(transfer, part.size + len(buffer))
            await anyio.to_thread.run_sync(part.write, bytes(buffer))
            buffer.clear()
            failpoint("bytes_n")
            progress(part.size, part.total)
            if transfer.speed:
                await anyio.sleep(max(0.0, came / transfer.speed - (mono() - begun)))
    except aiohttp.ClientError:
        buffer += _rest(response.content)
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(part.write, bytes(buffer))
    _check_max(transfer, part.size)
    progress(part.size, part.total)


def _rest(content: aiohttp.StreamReader) -> bytes:
    """What came before the connection broke: a reader with an error set gives out nothing, however much it holds."""
    content.set_exception(None)  # type: ignore[arg-type]
    return content.read_nowait()


async def _install(transfer: Transfer, part: Part, name: str | None) -> Downloaded:
    final = transfer.name or name
    if not final or not is_file_name(final) or "." not in final:
        message = "neither the config nor the server names the file; set `filename`"
        raise DownloadFailed(transfer.request, "no_file_name", message)
    digest = await anyio.to_thread.run_sync(install, part, final, transfer.size, transfer.sha256)
    return Downloaded(final, part.size, digest)


def is_file_name(text: str) -> bool:
    """One path segment that is safe below a folder: no separators, no `.`/`..`, printable, at most 255 bytes."""
    plain = text not in ("", ".", "..") and "/" not in text and "\\" not in text and text.isprintable()
    return plain and len(text.encode("utf-8", "replace")) <= 255
