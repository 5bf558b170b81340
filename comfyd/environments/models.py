"""Step 7, models: what is there already, one transfer per final file, failures as conditions.

Owns: `workspace/.comfyd/models/` (what we know of fetched files) and the locks that keep two from fetching one file.
Must not: fail an install because a model cannot be had.
"""

import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread

from comfyd.environments.places import (
    ModelFailed,
    Place,
    bytes_of,
    is_unchecked_pickle,
    place_of,
    request_of,
)
from comfyd.errors import ComfydError, LockHeldError
from comfyd.host.download import Transfer, download
from comfyd.host.files import atomic_write, exclusive_lock, read_bounded
from comfyd.host.net import Net, Request, shown
from comfyd.model.base import Condition
from comfyd.model.desired import ModelSpec
from comfyd.model.paths import Paths
from comfyd.settings import Settings

AT_ONCE = 4
LOCK_RECHECK_S = 0.5

Progress = Callable[[float], None]


@dataclass(slots=True)
class ModelFetcher:
    """Fetches models for all environments of this daemon; one per process, closed with `aclose`."""

    paths: Paths
    settings: Settings
    environ: Mapping[str, str]
    net: Net = field(init=False)
    _locks: "WeakValueDictionary[str, anyio.Lock]" = field(default_factory=WeakValueDictionary, init=False)

    def __post_init__(self) -> None:
        self.net = Net(allow_private=self.settings.allow_private_urls)

    async def aclose(self) -> None:
        await self.net.aclose()

    async def fetch_all(self, models: tuple[ModelSpec, ...], progress: Progress) -> list[Condition]:
        """Bring every model to its place. Returns conditions: `model_failed` and warnings, in the given order."""
        found: dict[int, list[Condition]] = {}
        shares = [0.0] * len(models)
        limit = anyio.Semaphore(AT_ONCE)

        def advance(index: int, share: float) -> None:
            shares[index] = share
            progress(sum(shares) / len(shares))

        async def one(index: int, model: ModelSpec) -> None:
            async with limit:
                found[index] = await self._one(model, lambda share: advance(index, share))
            advance(index, 1.0)

        async with anyio.create_task_group() as group:
            for index, model in enumerate(models):
                group.start_soon(one, index, model)
        return [condition for index in range(len(models)) for condition in found[index]]

    async def _one(self, model: ModelSpec, progress: Progress) -> list[Condition]:
        where = shown(model.url.strip()) if "://" in model.url else model.url
        try:
            return await self._fetch(model, progress)
        except ModelFailed as error:
            return [Condition("model_failed", error.reason, f"{where}: {error}", error.hint)]
        except ComfydError as error:
            reason = str(error.details.get("reason", "download_failed"))
            return [
                Condition("model_failed", reason, error.message, "correct the entry in `models` or try again later")
            ]

    async def _fetch(self, model: ModelSpec, progress: Progress) -> list[Condition]:
        if model.unpack:
            raise ModelFailed("unpack_unsupported", "archives are not unpacked", "unpack it and list its files")
        place = place_of(model)
        request = request_of(model, self.settings, self.environ)
        warnings = self._judge(model, place.name or "")
        key = hashlib.sha256("\n".join([*place.folder, place.name or str(request.url)]).encode()).hexdigest()[:32]
        async with self._alone(key):
            note = self.paths.state_dir / "models" / f"{key}.json"
            if await anyio.to_thread.run_sync(self._present, model, place, note):
                return warnings
            name = await self._download(model, place, request, note, progress)
        return warnings or self._judge(model, name)

    def _judge(self, model: ModelSpec, name: str) -> list[Condition]:
        if not is_unchecked_pickle(model, name):
            return []
        message = f"{name} is a pickle without sha256: loading it runs whatever code it holds"
        if self.settings.strict or model.allow_pickle is False:
            raise ModelFailed("pickle_refused", message, "give its sha256 or use a safetensors file")
        return [Condition("model_unchecked", "pickle", message, "give its sha256 or use a safetensors file")]

    @asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """One at a time per final file: in this process by a lock, between processes by flock."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = anyio.Lock()
        path = self.paths.state_dir / "locks" / f"file-{key}.lock"
        async with lock, AsyncExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive_lock(path, "this model"))
                    break
                except LockHeldError:
                    await anyio.sleep(LOCK_RECHECK_S)
            yield

    def _present(self, model: ModelSpec, place: Place, note: Path) -> bool:
        known = _read_note(note)
        name = place.name or known.get("name")
        if not isinstance(name, str):
            return False
        path = self.paths.models_dir.joinpath(*place.folder, name)
        try:
            info = path.lstat()
        except OSError:
            return False
        if not path.is_file() or (model.size is not None and path.stat().st_size != model.size):
            return False
        if model.sha256 is None:
            return True
        stamp = [info.st_size, info.st_mtime_ns]
        if known.get("stamp") != stamp or known.get("sha256") is None:
            with path.open("rb") as file:
                known = {"name": name, "stamp": stamp, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            _write_note(note, known)
        return bool(known["sha256"] == model.sha256.lower())

    async def _download(self, model: ModelSpec, place: Place, request: Request, note: Path, progress: Progress) -> str:
        given = model.download_params
        transfer = Transfer(
            request, self.paths.models_dir, place.folder, place.name,
            part=f"{place.name or note.stem}.part",
            journal=self.paths.state_dir / "downloads" / note.name,
            sha256=model.sha256, size=model.size, max_bytes=bytes_of(given.max_filesize),
            tries=5 if given.retries is None else given.retries + 1,
            delay_s=1.0 if given.retry_delay is None else given.retry_delay,
            speed=bytes_of(given.speed_limit),
        )  # fmt: skip
        try:
            with anyio.fail_after(given.timeout):
                done = await download(self.net, transfer, lambda now, all_: progress(now / all_ if all_ else 0.0))
        except TimeoutError:
            raise ModelFailed("timeout", f"took longer than {given.timeout:g} s", "raise `timeout`") from None
        path = self.paths.models_dir.joinpath(*place.folder, done.name)
        info = await anyio.to_thread.run_sync(os.lstat, path)
        stamp = [info.st_size, info.st_mtime_ns]
        known = {"name": done.name, "stamp": stamp, "sha256": done.sha256}
        await anyio.to_thread.run_sync(_write_note, note, known)
        return done.name


def _read_note(note: Path) -> dict[str, object]:
    try:
        known = json.loads(read_bounded(note).data or b"{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _write_note(note: Path, known: Mapping[str, object]) -> None:
    note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(note, json.dumps(known).encode(), mode=0o600)
