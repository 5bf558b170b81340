"""The connection to PostgreSQL: a pool for calls, and one connection that listens and finds out when all is well.

Owns: connecting in the background with backoff, what a lost connection means, and sending a call again whose outcome is
unknown (the caller's work sees to it that this changes nothing twice). Must not: know a statement of the queue.
"""

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import asyncpg

from comfyd.errors import ComfydError, StoreError
from comfyd.logs import get_logger
from comfyd.store.postgres_schema import Connection, migrate

T = TypeVar("T")
Work = Callable[[Connection, bool], Awaitable[T]]
"""(connection, again) -> result. again: an earlier try may have been committed."""

CHANNEL: Final = "comfyd_task"
POOL_SIZE: Final = 8
CONNECT_S: Final = 5.0
COMMAND_S: Final = 5.0
PATIENCE_S: Final = 5.0
"""How long a call whose connection was lost is tried again before it is refused."""
POLL_S: Final = 4.0
"""A notification may be lost: after so long everything is looked at without one."""
LAST_DELAY_S: Final = 4.0
FOLD_AT: Final = 500
_SERVER: Final = {
    "application_name": "comfyd",
    "lock_timeout": "4s",
    "plan_cache_mode": "force_generic_plan",  # decision 0073
    "enable_seqscan": "off",
    "jit": "off",
    "idle_in_transaction_session_timeout": "10s",
}
_FOLD: Final = f"""
WITH gone AS (
    DELETE FROM comfyd_tally
    WHERE (SELECT count(*) FROM comfyd_tally) > {FOLD_AT} AND (SELECT pg_try_advisory_xact_lock($1))
    RETURNING environment, workflow_name, state, n
)
INSERT INTO comfyd_tally SELECT environment, workflow_name, state, sum(n) FROM gone
GROUP BY 1, 2, 3 HAVING sum(n) <> 0"""
_SYNCHRONOUS: Final = """
SELECT current_setting('synchronous_standby_names') <> ''
    AND current_setting('synchronous_commit') NOT IN ('off', 'local')"""
FOLD_LOCK: Final = 0x636F_6D66_7965
_GONE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    OSError,
    TimeoutError,
    EOFError,
    asyncpg.InternalClientError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)
"""After these nobody knows what was committed, or nothing was: worth another try."""
_TAKEN_BACK: Final = (asyncpg.TransactionRollbackError, asyncpg.LockNotAvailableError)
"""Of these, the server has taken the call back and the connection is as good as before."""

log = get_logger(__name__)


class _Plain(asyncpg.Connection):  # type: ignore[misc]
    """Nothing here sets a session up differently, so nothing has to be reset between two calls."""

    def get_reset_query(self) -> str:
        return ""


class Link:
    """`start`, calls, `close`. wake: the queue may have changed. tell: why no call can succeed, None once they can.
    assure: whether what is acknowledged outlives the server."""

    def __init__(
        self,
        url: str,
        wake: Callable[[], None],
        tell: Callable[[str | None], None],
        assure: Callable[[str], None] = lambda durability: None,
    ) -> None:
        self._url = url
        self._wake = wake
        self._tell = tell
        self._assure = assure
        self._pool: Any = None
        self._trouble: StoreError | None = StoreError("The task database has not been reached yet; try again.")
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="task database")

    async def close(self) -> None:
        self._set_trouble(StoreError("The task database is closed: the daemon is shutting down."))
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._pool is not None:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._pool.close()
            except Exception:
                self._pool.terminate()

    async def call(self, work: "Work[T]", command_s: float = COMMAND_S) -> T:
        """Run `work` on a connection. Raises StoreError store_unavailable if that cannot be done now."""
        loop = asyncio.get_running_loop()
        deadline, delay, again = loop.time() + PATIENCE_S, 0.02, False
        while True:
            pool = await self._ready()
            try:
                async with pool.acquire(timeout=CONNECT_S) as db:
                    tried, again = again, True
                    return await _within(command_s, db, work(db, tried))
            except ComfydError:
                raise
            except _GONE as error:
                if loop.time() > deadline:
                    raise _unreachable(error) from error
                log.info("task database lost a call", reason=_text(error))
            except asyncpg.InsufficientResourcesError as error:
                raise StoreError(
                    "The task database has no room left; free some space there.", code="storage_full"
                ) from error
            except asyncpg.DataError:
                raise
            except asyncpg.PostgresError as error:
                log.error("task database refused a call", reason=_text(error))
                raise StoreError(f"The task database refused this ({type(error).__name__}); see the log.") from error
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, 0.5)

    async def _ready(self) -> Any:
        """The pool. While the first try to connect lasts, its end is awaited."""
        if not self._tried.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    await self._tried.wait()
        if self._trouble is not None:
            trouble = self._trouble
            raise StoreError(trouble.message, code=trouble.code, retryable=trouble.retryable)
        return self._pool

    # in the background
    async def _run(self) -> None:
        failures, said = 0, ""
        while True:
            db: Any = None
            try:
                db = await self._connect()
                failures, said = 0, ""
                await self._listen(db)
            except Exception as error:
                if _text(error) != said:
                    said = _text(error)
                    log.warning("task database out of reach", reason=said)
                failures += 1
                if self._pool is None or failures > 1:  # a first failure may be a cut: calls find out by themselves
                    self._set_trouble(error if isinstance(error, StoreError) else _unreachable(error))
            finally:
                if db is not None:
                    db.terminate()
            delay = min(LAST_DELAY_S, 0.1 * 2 ** min(failures, 6)) if failures else 0.02
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _connect(self) -> Any:
        """A connection to listen on. With it the pool is known to be of use."""
        db = await self._open()
        try:
            async with asyncio.timeout(60):  # not wait_for: that of Python 3.11 may swallow the cancel of `close`
                await migrate(db)
            await self._ask_durability(db)
            await db.add_listener(CHANNEL, lambda *_: self._wake())
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url, min_size=0, max_size=POOL_SIZE, connection_class=_Plain, timeout=CONNECT_S,
                    command_timeout=60, server_settings=_SERVER, **_writable(self._url),
                )  # fmt: skip
            else:
                await self._pool.expire_connections()
        except BaseException:
            db.terminate()
            raise
        log.info("task database reached")
        self._set_trouble(None)
        return db

    async def _open(self) -> Any:
        return await asyncpg.connect(
            self._url, timeout=CONNECT_S, command_timeout=COMMAND_S, server_settings=_SERVER, **_writable(self._url)
        )

    async def _listen(self, db: Any) -> None:
        """Until this connection is lost. Then the next one is made at once: until that fails twice, calls go on."""
        lost = asyncio.Event()
        db.add_termination_listener(lambda _: lost.set())
        while not (lost.is_set() or db.is_closed()):  # it may be gone since before there was a listener
            self._wake()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await lost.wait()
                return
            try:
                await db.execute(_FOLD, FOLD_LOCK)
                await self._ask_durability(db)
            except _GONE as error:
                log.info("task database lost a call", reason=_text(error))
                return

    async def _ask_durability(self, db: Any) -> None:
        self._assure("sync" if await db.fetchval(_SYNCHRONOUS) else "async")

    def _set_trouble(self, trouble: StoreError | None) -> None:
        self._trouble = trouble
        self._tried.set()
        self._tell(None if trouble is None else trouble.message)


async def _within(seconds: float, db: Connection, work: Awaitable[T]) -> T:
    """A connection that failed in the middle of something is not to be used again. One that is slow is cut: to cancel
    would be to wait for its answer to that."""
    late = asyncio.get_running_loop().call_later(seconds, _cut, db)
    try:
        return await work
    except _GONE as error:
        if not isinstance(error, _TAKEN_BACK):
            _cut(db)
        raise
    finally:
        late.cancel()


def _cut(db: Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # the pool knows already
        db.terminate()


def _writable(url: str) -> dict[str, str]:
    """Of several servers the one that takes writes, unless the address says otherwise."""
    return {} if "target_session_attrs" in url else {"target_session_attrs": "read-write"}


def _unreachable(error: Exception) -> StoreError:
    return StoreError(
        f"The task database cannot be reached ({type(error).__name__}); it is tried again by itself, so try again soon."
    )


def _text(error: BaseException) -> str:
    """For the log. What the server says names users and addresses, never a password."""
    if isinstance(error, ssl.SSLError):
        return f"{type(error).__name__}: {error.reason}"
    return f"{type(error).__name__}: {error}"[:300]
