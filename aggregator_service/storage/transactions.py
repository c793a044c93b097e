"""The only place that commits: `write(name, body)` and `read(name, body)`.

A body is a plain function of a transaction and may run several times; what it returns counts only once it has
committed. Bodies run on threads, so no transaction can be open across an upload, a wait or the network.

All writes of a process pass through one thread, which commits whatever has queued up in one transaction (group
commit): the cost of making a commit durable is shared by everyone who waits for it. `write_grouped` lets them share
the statements, too.
"""

import asyncio
import queue
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from aggregator_service.clock import Clock
from aggregator_service.storage.engine import NUM_READERS, Database
from aggregator_service.storage.failures import as_problem, is_conflict, is_disconnect
from aggregator_service.telemetry import Telemetry
from fl_protocol.problems import ProblemError, ProblemType

T = TypeVar("T")
Item = TypeVar("Item")

MAX_BATCH: Final = 64
MAX_QUEUED: Final = 4096
MAX_ATTEMPTS: Final = 8
_ONE_VIEW: Final = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_ONE_STATEMENT: Final = {"isolation_level": "AUTOCOMMIT"}
NOTIFICATION_CHANNEL: Final = "fedquorum"
_NOTIFY: Final = sa.select(
    sa.func.pg_notify(NOTIFICATION_CHANNEL, sa.func.unnest(sa.bindparam("topics", type_=ARRAY(sa.Text))))
)


@dataclass(slots=True)
class ReadTx:
    """A consistent view of the database; nothing can be changed through it."""

    connection: sa.Connection
    dialect: str
    _clock: Clock
    _now: datetime | None = None

    def now(self) -> datetime:
        """Gives the instant of this transaction: Postgres's own clock, so that replicas agree; else the process's."""
        if self._now is None:
            self._now = self._database_time() if self.dialect == "postgresql" else self._clock()
        return self._now

    def _database_time(self) -> datetime:
        moment: datetime = self.connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        return moment


@dataclass(slots=True)
class WriteTx(ReadTx):
    """A transaction that may change things and says what it changed, so that waiters look again."""

    topics: set[str] = field(default_factory=set)

    def wake(self, topic: str) -> None:
        """Notes that whoever waits on a topic should look again once this is committed."""
        self.topics.add(topic)


GroupBody = Callable[[WriteTx, Sequence[Item]], Sequence[T | ProblemError]]
"""Gives each item, in order, what it is to be told: a value, or the problem for which it was refused."""


@dataclass(slots=True)
class _Pending(Generic[Item, T]):
    """A write that waits; those of one `group` may be given to one body together.

    Whoever waits in an event loop waits for its own kind of future, so that those of a batch are told in one turn.
    """

    name: str
    body: GroupBody[Item, T]
    item: Item
    future: Future[T] | asyncio.Future[T]
    group: str | None = None
    outcome: T | BaseException | None = None

    def begin(self) -> bool:
        """Tells whether anybody still waits for it."""
        return self.future.set_running_or_notify_cancel() if isinstance(self.future, Future) else not self.future.done()

    def settle(self) -> None:
        if self.future.done():
            return
        if isinstance(self.outcome, BaseException):
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.outcome)  # type: ignore[arg-type]


class Transactions:
    """Runs named, re-runnable bodies against the database."""

    def __init__(
        self, database: Database, clock: Clock, *, on_commit: Callable[[frozenset[str]], None], telemetry: Telemetry
    ) -> None:
        self.database = database
        self._clock = clock
        self._on_commit = on_commit
        self._telemetry = telemetry
        self._closed = False
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="reader")
        self._queue: queue.Queue[_Pending[Any, Any] | None] = queue.Queue(MAX_QUEUED)
        self._thread = threading.Thread(target=self._write_loop, name="writer", daemon=True)
        self._thread.start()

    async def write(self, name: str, body: Callable[[WriteTx], T]) -> T:
        """Runs a body in a committed transaction; raises what the body raised, and then nothing of it is kept."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(_alone(name, body, future))
        return await future

    def write_blocking(self, name: str, body: Callable[[WriteTx], T]) -> T:
        """Does the same from a worker thread."""
        future: Future[T] = Future()
        self._submit(_alone(name, body, future))
        return future.result()

    async def write_grouped(self, name: str, item: Item, body: GroupBody[Item, T]) -> T:
        """Hands an item to a body together with whatever else has queued up under the name, in order of arrival.

        A name goes with one body. An item that the body refuses leaves the others as they are; if the body raises,
        it is run again for each item alone.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(_Pending(name, body, item, future, group=name))
        return await future

    async def read(self, name: str, body: Callable[[ReadTx], T]) -> T:
        """Runs a body against one consistent view of the database."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.read_blocking, name, body)

    async def read_one(self, name: str, body: Callable[[ReadTx], T]) -> T:
        """Runs a body that executes a single statement, which is consistent by itself: on Postgres one round trip."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.read_one_blocking, name, body)

    def read_blocking(self, name: str, body: Callable[[ReadTx], T]) -> T:
        """Does what `read` does, from a worker thread."""
        return self._read_retrying(name, body, _ONE_VIEW)

    def read_one_blocking(self, name: str, body: Callable[[ReadTx], T]) -> T:
        """Does what `read_one` does, from a worker thread."""
        return self._read_retrying(name, body, _ONE_STATEMENT)

    def _read_retrying(self, name: str, body: Callable[[ReadTx], T], options: Mapping[str, Any]) -> T:
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._read_once(body, options)
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                self._pause_or_raise(name, error, attempt)
        raise AssertionError("the last attempt raises")

    def close(self) -> None:
        """Finishes what is queued, then closes every connection; later writes are refused."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout=30)
        self._readers.shutdown(wait=True)
        self.database.dispose()

    def _read_once(self, body: Callable[[ReadTx], T], options: Mapping[str, Any]) -> T:
        with self.database.readers.connect() as connection:
            if self.database.dialect == "postgresql":
                connection.execution_options(**options)
            with connection.begin():
                return body(ReadTx(connection, self.database.dialect, self._clock))

    def _submit(self, pending: _Pending[Any, Any]) -> None:
        if self._closed:
            raise ProblemError(ProblemType.UNAVAILABLE, "the server is stopping; try again", retry_after_seconds=1)
        try:
            self._queue.put_nowait(pending)
        except queue.Full:
            raise ProblemError(
                ProblemType.UNAVAILABLE,
                f"{MAX_QUEUED} writes already wait for the database; try again shortly",
                retry_after_seconds=2,
            ) from None

    def _write_loop(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first, *self._drain()]
            batch = [pending for pending in batch if pending.begin()]
            if batch:
                self._run(batch)

    def _drain(self) -> list[_Pending[Any, Any]]:
        batch: list[_Pending[Any, Any]] = []
        while len(batch) < MAX_BATCH - 1:
            try:
                pending = self._queue.get_nowait()
            except queue.Empty:
                break
            if pending is None:
                self._queue.put(None)
                break
            batch.append(pending)
        return batch

    def _run(self, batch: list[_Pending[Any, Any]]) -> None:
        started = time.perf_counter()
        try:
            topics = self._commit(batch)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it, and the thread must live on
            if len(batch) > 1 and isinstance(error, sa.exc.SQLAlchemyError):
                for pending in batch:
                    self._run_alone(pending)
                return
            if isinstance(error, (sa.exc.DBAPIError, sa.exc.TimeoutError)) and _may_rerun(error):
                self._run_alone(batch[0])
                return
            _fail(batch, error)
            return
        self._announce(batch, topics, time.perf_counter() - started)

    def _run_alone(self, pending: _Pending[Any, Any]) -> None:
        for attempt in range(MAX_ATTEMPTS):
            started = time.perf_counter()
            try:
                topics = self._commit([pending])
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                try:
                    self._pause_or_raise(pending.name, error, attempt)
                except Exception as final:  # noqa: BLE001 - passed on to whoever waits
                    _fail([pending], final)
                    return
            except BaseException as error:  # noqa: BLE001 - passed on to whoever waits
                _fail([pending], error)
                return
            else:
                self._announce([pending], topics, time.perf_counter() - started)
                return

    def _commit(self, batch: list[_Pending[Any, Any]]) -> frozenset[str]:
        """Runs every body in one transaction; a body that raises is undone alone."""
        # Savepoints are a third of a small body's statements, and bodies that raise are rare.
        try:
            return self._commit_with(_run_body, batch)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception:
            if len(batch) == 1:
                raise
            return self._commit_with(_run_body_in_savepoint, batch)

    def _commit_with(
        self, run_body: Callable[[WriteTx, list[_Pending[Any, Any]]], None], batch: list[_Pending[Any, Any]]
    ) -> frozenset[str]:
        with self.database.writer.connect() as connection, connection.begin():
            tx = WriteTx(connection, self.database.dialect, self._clock)
            for group in _groups(batch):
                run_body(tx, group)
            self._notify(connection, tx.topics)
        return frozenset(tx.topics)

    def _notify(self, connection: sa.Connection, topics: set[str]) -> None:
        if topics and self.database.dialect == "postgresql":
            connection.execute(_NOTIFY, {"topics": sorted(topics)})

    def _announce(self, batch: list[_Pending[Any, Any]], topics: frozenset[str], seconds: float) -> None:
        self._telemetry.committed(len(batch), seconds)
        if topics:
            self._on_commit(topics)
        _settle(batch)

    def _pause_or_raise(self, name: str, error: sa.exc.SQLAlchemyError, attempt: int) -> None:
        if attempt + 1 == MAX_ATTEMPTS or not _may_rerun(error):
            problem = as_problem(error)
            if problem is None:
                raise error
            raise problem from error
        self._telemetry.retried(name)
        # Jitter only keeps two processes from colliding again; nothing depends on its value.
        time.sleep(min(1.0, 0.01 * 2**attempt) * (0.5 + random.random()))  # noqa: S311


def _alone(name: str, body: Callable[[WriteTx], T], future: Future[T] | asyncio.Future[T]) -> _Pending[None, T]:
    return _Pending(name, lambda tx, _items: [body(tx)], None, future)


def _groups(batch: list[_Pending[Any, Any]]) -> list[list[_Pending[Any, Any]]]:
    """Puts those of one group where its first one stands; nobody in a batch has been answered, so nobody can tell."""
    groups: dict[object, list[_Pending[Any, Any]]] = {}
    for place, pending in enumerate(batch):
        groups.setdefault(place if pending.group is None else pending.group, []).append(pending)
    return list(groups.values())


def _run_body(tx: WriteTx, group: list[_Pending[Any, Any]]) -> None:
    outcomes = group[0].body(tx, [pending.item for pending in group])
    for pending, outcome in zip(group, outcomes, strict=True):
        pending.outcome = outcome


def _run_body_in_savepoint(tx: WriteTx, group: list[_Pending[Any, Any]]) -> None:
    savepoint = tx.connection.begin_nested()
    try:
        _run_body(tx, group)
    except sa.exc.DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001 - passed on to whoever waits; the batch goes on
        savepoint.rollback()
        if len(group) == 1:
            group[0].outcome = error
            return
        for pending in group:
            _run_body_in_savepoint(tx, [pending])
        return
    savepoint.commit()


def _may_rerun(error: sa.exc.SQLAlchemyError) -> bool:
    return is_conflict(error) or is_disconnect(error)


def _fail(batch: list[_Pending[Any, Any]], error: BaseException) -> None:
    problem = as_problem(error)
    for pending in batch:
        pending.outcome = problem or error
    _settle(batch)


def _settle(batch: Sequence[_Pending[Any, Any]]) -> None:
    """Tells everyone who waits for a batch; each event loop is woken once."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[_Pending[Any, Any]]] = defaultdict(list)
    for pending in batch:
        if isinstance(pending.future, Future):
            pending.settle()
        else:
            by_loop[pending.future.get_loop()].append(pending)
    for loop, waiting in by_loop.items():
        # Nobody waits any more in a loop that was closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle_here, waiting)


def _settle_here(waiting: Sequence[_Pending[Any, Any]]) -> None:
    for pending in waiting:
        pending.settle()
